"""Why does a contrastive bridge stay at chance? What the loss curve can say, and what the tensors add."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from bridges.instruments.chance import NEAR, other_lines, read_loss
from bridges.instruments.probe import linear_probe

FAULTS = ("collapse", "constant text", "constant image", "shuffled pairs", "frozen")
CONSTANT = 1e-6  # deviation from the mean, relative to the rows' own size, below which all rows are one
CURVE = 8  # values below which a loss curve is not judged
SMOOTH = 32  # values from which the means of eighths, four at least in each, say more than single ones
SURE = 3  # standard errors that make a fall or a rise; a test counts how often healthy and broken logs cross them
LEFT = 2  # standard errors that have to leave no room for a fall, where a curve is called still
SHARE = 0.1  # of a loss: a change by less may be called none


def spread(rows: Float[Tensor, "samples width"]) -> float:
    """How far unit vectors lie from all being one: 1 minus the squared length of their mean; 0 is constant."""
    mean = normalize(rows.double(), dim=-1).mean(0)
    return max(0.0, 1 - mean.square().sum().item())


def variation(rows: Float[Tensor, "samples width"]) -> float:
    """How far rows lie from their mean, relative to their size: 0 for rows that are all the same, all zero included.

    Raises:
        ValueError: when a value is not finite, naming the row.
    """
    rows = rows.double()
    broken = (~rows.isfinite()).any(1).nonzero()
    if len(broken):
        raise ValueError(f"row {broken[0].item()} holds a value that is not finite: look at what made these inputs")
    size = rows.norm().item()
    return (rows - rows.mean(0)).norm().item() / size if size else 0.0


class Trend(NamedTuple):
    """Where a loss curve went, in nats: what it changed by, how much of that is noise, and where it ended."""

    change: float  # mean of the last quarter minus that of the first
    noise: float  # standard error of the change
    level: float  # median of the last quarter
    state: str  # falls, rises, still, or open where the values are too few or too noisy to say

    def held(self, above: bool) -> bool:
        """Whether the training moved nothing.

        A curve that ends `above` its chance line need not be still: noise may hide a fall in it, but a healthy one has
        fallen below that line by its end, and would show it.
        """
        return self.state == "still" or (above and self.state == "open" and math.isfinite(self.noise))


def trend(losses: Sequence[float]) -> Trend:
    """Whether a loss curve falls, rises or stays, told from its noise.

    The deviation inside a quarter is no measure of the noise: where a run is logged seldom, it holds the fall itself.
    Second differences of neighbours hold none of a steady fall, and their median little of a sudden one. They are taken
    of single values and, where there are enough, of the means of eighths, and the larger noise counts: a log of running
    means is smoother from value to value than its drift is.

    A fall is one of more than three standard errors, a rise also one of a tenth of the level. A curve is still only
    where two standard errors leave no room for a fall by a tenth, or by as many nats as count for nothing at a chance
    line. A first value far above the level is a fall too, one that came before the second.

    Raises:
        ValueError: for a single value.
    """
    if len(losses) < 2:
        raise ValueError("one value is no curve: give the loss of at least two steps")
    values = np.asarray(losses, dtype=float)
    quarter = max(2, len(values) // 4)
    first, last = values[:quarter], values[-quarter:]
    change, level = float(last.mean() - first.mean()), float(np.median(last))
    if len(values) < CURVE:
        return Trend(change, math.inf, level, "open")
    single = _deviation(values)
    noise = single * math.sqrt(2 / quarter)
    if len(values) >= SMOOTH:  # a quarter is two eighths, so that the roots of the two cancel
        noise = max(noise, _deviation(np.array([part.mean() for part in np.array_split(values, 8)])))
    tenth = SHARE * abs(level)
    if change < -SURE * noise or values[0] - level > max(2 * SURE * single, tenth):
        state = "falls"
    elif change > max(SURE * noise, tenth):
        state = "rises"
    else:
        state = "still" if LEFT * noise - change <= max(tenth, NEAR) else "open"
    return Trend(change, noise, level, state)


def _deviation(values: Float[np.ndarray, " steps"]) -> float:
    """The standard deviation of independent noise about a smooth curve, from the median of its second differences."""
    return float(1.4826 * np.median(np.abs(np.diff(values, 2))) / math.sqrt(6))


@dataclass(frozen=True)
class Diagnosis:
    """The explanations that what was given cannot tell apart, and why each other one was left out."""

    candidates: tuple[str, ...]
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return " or ".join(self.candidates)

    def _repr_markdown_(self) -> str:
        return f"**{self}**\n\n" + "\n".join(f"- {reason}" for reason in self.reasons)


def diagnose_generative(losses: Sequence[float], vocabulary: int = 0) -> Diagnosis:
    """Name the faults of a training of a speaking model that fit its loss curve.

    A curve that falls says that something is learned, and not that the input is used: for that the check-up needs the
    bridge.

    Args:
        losses: the training loss of every step in nats per token, of total weight 1.
        vocabulary: words among which the model chooses, where they are known; ln(vocabulary) is the loss of one to
            whom all are alike.

    Raises:
        ValueError: for a single value, one that is not finite, or a vocabulary below 2.
    """
    if vocabulary and vocabulary < 2:
        raise ValueError(f"a vocabulary of {vocabulary} leaves nothing to choose: give the number of its words")
    broken = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), None)
    if broken is not None:
        raise ValueError(f"the loss is {losses[broken]} at step {broken}: cut the curve there, the run ended there too")
    way, line = trend(losses), math.log(vocabulary) if vocabulary else math.inf
    ends = f"first {losses[0]:.3f}, last {way.level:.3f}"
    reasons = [f"{ends}, ln({vocabulary:,}) is {line:.3f} nats" if vocabulary else f"{ends} nats"]
    if impossible := _impossible(losses):
        return Diagnosis(impossible[:1], (*reasons, *impossible[1:]))
    if abs(way.level - line) <= NEAR:
        return Diagnosis(
            ("words at chance",), (*reasons, "all words are alike to the host: see that its weights are loaded")
        )
    found, told = _moved(way, "above chance" if way.level > line else "")
    if found == "frozen" and way.level < 20:  # half a billion words
        told.append(f"at this level {math.exp(way.level):,.0f} words would be equally likely")
    elif found == "healthy":
        told.append("whether the input is used, a log cannot say: give the bridge")
    return Diagnosis((found,), (*reasons, *told))


def _impossible(losses: Sequence[float]) -> tuple[str, ...]:
    """The fault that makes a curve no curve of a cross-entropy, and why it is one; empty where there is none."""
    lowest, last = min(losses), losses[-max(2, len(losses) // 4) :]
    if lowest < -NEAR:
        return (
            "below zero",
            f"it falls to {lowest:.3f}, and no cross-entropy lies below 0: see that the right one is in the"
            " denominator, and that no term is subtracted",
        )
    if len(losses) >= CURVE and not any(last):
        return (
            "zero loss",
            "it is 0 to the last digit: nothing is supervised, or the answer can be read, or the log rounds it away",
        )
    return ()


def _moved(way: Trend, state: str) -> tuple[str, list[str]]:
    """What a curve that lies above its line, below it ("learns") or beside none ("") is called by where it went."""
    above, below = state in ("above chance", "diverged"), state == "learns"
    told = [f"from the first quarter to the last it changed by {way.change:+.3f} nats, noise {way.noise:.2g}"]
    if state == "diverged" or way.state == "rises":
        return "diverged", told
    if way.held(above):
        return ("flat below chance" if below else "frozen"), told
    if above:
        many = "train longer" if way.state == "falls" else "log more values"
        return "too early to tell", [*told, f"it may be on its way down to the line: {many} before judging"]
    if way.state == "open" and not below:
        return "too early to tell", [*told, "its values are too few or too noisy to show a fall"]
    return "healthy", [] if below else told


def diagnose(
    losses: Sequence[float],
    batch: int,
    inputs: tuple[Float[Tensor, "pairs ..."], Float[Tensor, "pairs ..."]] | None = None,
    outputs: tuple[Float[Tensor, "pairs width"], Float[Tensor, "pairs width"]] | None = None,
) -> Diagnosis:
    """Name the faults of a contrastive training that fit what is known of it.

    The loss curve alone tells a model that learns from one that does not move and from one at its chance line, but not
    why a model is at that line. The inputs of both sides, as they enter the bridge, tell a broken tower (all inputs
    the same) and broken pairs (a linear probe finds nothing) from a broken bridge.

    Args:
        losses: the training loss of every step in nats, of total weight 1.
        batch: pairs in a batch.
        inputs: image and text features as they enter the bridge, row by row; more than two dimensions are averaged.
        outputs: the embeddings of the same rows, for the reasons only.

    Raises:
        ValueError: as `read_loss` and `linear_probe` do.
    """
    reading = read_loss(losses, batch)
    reasons = [str(reading)]
    if impossible := _impossible(losses):
        return Diagnosis(impossible[:1], (*reasons, *impossible[1:]))
    if reading.state in ("learns", "above chance", "diverged"):
        way = trend(losses)
        found, told = _moved(way, reading.state)
        if found == "healthy" and way.state == "open" and losses[0] < reading.line - NEAR:
            found, told = "too early to tell", ["it lies below chance from the first value on, and shows no fall yet"]
        lines = other_lines(way.level, batch) if found in ("frozen", "flat below chance") else []
        return Diagnosis((found,), (*reasons, *told, *lines))
    suspects = [fault for fault in FAULTS if fault != "frozen"]
    if inputs is not None:
        image, text = (side if side.dim() == 2 else side.flatten(1, -2).mean(1) for side in inputs)
        whole = [side.flatten(1) for side in inputs]
        for name, rows in zip(("constant image", "constant text"), whole, strict=True):
            amount = variation(rows)
            reasons.append(f"{name.split()[1]} inputs vary by {amount:.2g} of their size")
            if amount < CONSTANT:
                suspects = [name]
                break
            suspects.remove(name)
        else:
            probe = linear_probe(image, text)
            reasons.append(f"from image inputs to text inputs, {probe}")
            suspects.remove("collapse" if not probe.found else "shuffled pairs")
    if outputs is not None:
        image, text = outputs
        reasons.append(f"embeddings: spread of images {spread(image):.2g}, of texts {spread(text):.2g}")
    return Diagnosis(tuple(suspects), tuple(reasons))
