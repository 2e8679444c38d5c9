"""Why a measurement points to its fault, what the mend costs, and which other faults it can bring about."""

from typing import NamedTuple

LOOK, LINE, RUN = "a look", "a line of code", "a training"  # what a mend costs, the cheapest first
COSTS = (LOOK, LINE, RUN)

# What many causes come to, in a bridge that speaks and in one of two sides.
DEAF = (
    "tokens that do not follow the input",
    "input that is not used",
    "held-out loss far above the log's end",
    "one sentence for all inputs",
)
LOST = ("held-out pairs at chance",)
ALIKE = ("image embeddings all alike", "text embeddings all alike")
STILL = ("training that moves nothing", "parameters that no gradient reaches", *DEAF, *LOST)
UNMOVED = ("gates that are shut", "parameters that did not move", *STILL)


class Advice(NamedTuple):
    """What the mend costs, why the measurement points there, and the faults that it can bring about."""

    cost: str
    why: str
    brings: tuple[str, ...] = ()


ADVICE = {
    "values that are not finite": Advice(
        LOOK,
        "one value that is not finite makes all that is computed from it so, and no step can mend it",
        ("loss that diverged", "no gradient to the connector", *UNMOVED, *ALIKE),
    ),
    "no label is supervised": Advice(LOOK, "without a label there is no loss, and nothing to learn from"),
    "padding is supervised": Advice(LINE, "the mean over labels is then mostly that of padding, which is easily said"),
    "constant inputs": Advice(
        LOOK,
        "where all inputs are one, nothing after them can tell the samples apart",
        ("inputs too quiet", "what is to be said is faint", *STILL),
    ),
    "constant image inputs": Advice(
        LOOK, "where all images are one, no pair can be told from another", (*STILL, *ALIKE)
    ),
    "constant text inputs": Advice(LOOK, "where all texts are one, no pair can be told from another", (*STILL, *ALIKE)),
    "pairs that do not belong together": Advice(
        LOOK,
        "not even a linear map finds on other samples what inputs tell of outputs, and it does where pairs are right",
        ("training that moves nothing", *ALIKE, *DEAF, *LOST),
    ),
    "the source reads the answers": Advice(
        LOOK, "a source that reads the answer passes it on: the loss is low for no skill", DEAF[2:]
    ),
    "the answers are read before they are scored": Advice(
        LINE, "a loss near zero whatever the input says that the host sees what it is asked for", DEAF
    ),
    "labels shifted twice": Advice(
        LINE, "labels that are the next place's ids are shifted once more by the model: it learns the token after next"
    ),
    "host in training mode": Advice(
        LINE,
        "two calls on the same tokens give two losses: something still draws at random, as dropout does in training",
        ("another model in evaluation", *DEAF),
    ),
    "a rate of zero": Advice(LOOK, "at a rate of zero every step leaves the weights as they are", UNMOVED),
    "parameters outside the optimiser": Advice(LINE, "only what the optimiser holds is moved by its steps", UNMOVED),
    "connector is not the trained one": Advice(
        LINE,
        "the log falls, but the weights look as they are first drawn, which no step leaves as it is",
        ("parameters that did not move", "gates that are shut", "scale far from the host's", *DEAF),
    ),
    "parameters that did not move": Advice(
        LOOK, "the weights lie where they began, so that nothing can have been learned by them", STILL
    ),
    "no gradient to the connector": Advice(
        LOOK, "the loss does not depend on what is to be trained, so that no step can know where to go", UNMOVED
    ),
    "no gradient in training mode": Advice(
        LINE, "there is a gradient in evaluation mode, and training goes by the other", UNMOVED
    ),
    "another model in evaluation": Advice(
        LOOK, "the input is used in training mode and not in evaluation: the modes compute two things", (*DEAF, *LOST)
    ),
    "loss below zero": Advice(
        LOOK, "no cross-entropy lies below zero: what is logged is another loss, or has another term in it", LOST
    ),
    "loss that diverged": Advice(
        RUN,
        "the loss rises, as it does where steps are too large for it",
        ("scale far from the host's", "parameters that no gradient reaches", *ALIKE, *DEAF, *LOST),
    ),
    "training that moves nothing": Advice(
        LOOK,
        "the loss ends where it began, beyond what its own noise can hide: most often nothing is moved",
        (*ALIKE, *DEAF, *LOST),
    ),
    "gates that are shut": Advice(
        LOOK,
        "what a gate near zero lets through is nothing, and all behind it gets as little gradient",
        ("scale far from the host's", "parameters that no gradient reaches", *DEAF),
    ),
    "inputs too quiet": Advice(
        LINE,
        "against inputs so small the connector's own biases decide, the same for every sample",
        ("scale far from the host's", "parameters that no gradient reaches", *DEAF),
    ),
    "inputs too loud": Advice(
        LINE,
        "the loss is lower where the inputs are made as loud as usual: these drive the connector to its ends",
        ("scale far from the host's", "parameters that no gradient reaches", *DEAF),
    ),
    "what is to be said is faint": Advice(
        LINE, "most of the inputs' variance is other than what they should pass on, and is learned first", DEAF
    ),
    "tokens that do not follow the input": Advice(
        LOOK, "the host can hear of an input only by tokens that change with it, and these hardly do", DEAF[1:]
    ),
    "image embeddings all alike": Advice(
        RUN, "embeddings in one place cannot be told apart by any factor", ("temperature that hides the pairs", *LOST)
    ),
    "text embeddings all alike": Advice(
        RUN, "embeddings in one place cannot be told apart by any factor", ("temperature that hides the pairs", *LOST)
    ),
    "scale far from the host's": Advice(
        LINE, "the same tokens at another size give a clearly lower loss, and are heard there", DEAF[1:]
    ),
    "temperature that hides the pairs": Advice(
        LINE, "pairs are found by rank, but not by this loss: its factor makes all alike, or only one count", LOST
    ),
    "parameters that no gradient reaches": Advice(
        LOOK, "a part whose gradient is nothing beside the rest's stays as it was drawn", (*DEAF[1:], *LOST)
    ),
    "embeddings not of unit length": Advice(
        LINE, "the loss compares directions; a length beside them is a factor of each sample's own", LOST
    ),
    "input that is not used": Advice(
        RUN, "with another sample's input the loss is hardly higher: what the host says does not rest on it", DEAF[2:]
    ),
    "held-out loss far above the log's end": Advice(
        LOOK, "the log ends far below what is measured here: other weights, another host or other inputs"
    ),
    "held-out pairs at chance": Advice(RUN, "right pairs are found no more often than by drawing lots"),
    "padding that changes the answers": Advice(
        LINE, "a place that is masked out cannot change what is said; here it does"
    ),
    "generations that do not end": Advice(
        LINE, "a model ends only where it was taught to, by a label of its own at the end"
    ),
    "weight decay on gates": Advice(
        LINE, "decay pulls to zero, which for a gate or a temperature is a value of its own"
    ),
    "one sentence for all inputs": Advice(
        LOOK, "there are few distinct outputs for many distinct references, whatever their score"
    ),
    "texts that repeat": Advice(
        LINE, "of two pairs with one text each is a wrong answer for the other, so that no model's loss gets below that"
    ),
    "loss that does not tell what is said": Advice(
        LOOK, "at a loss so low most of what is said would be as wanted, and it is not: it scores something else"
    ),
    "penalty that cannot see the answers": Advice(
        LINE, "the penalty is the same with other samples' answers: it holds them to nothing"
    ),
}


def advice(name: str) -> Advice:
    """What is known of a fault besides its mend; a look, where nothing is."""
    return ADVICE.get(name, Advice(LOOK, ""))
