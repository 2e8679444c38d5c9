# %% [markdown]
# # The problem of bridging
#
# Two models were trained apart, and a small connector is to let one speak to the other. It does not work, and the
# output does not say why. This chapter builds a bridge of which everything is known, breaks it in six ways, one at a
# time, and asks which readings tell the breaks apart. BLEU does not, nor does the variety of the outputs. Four
# questions do, asked in order along the bridge: is there anything in the input, does the connector carry it, does the
# host listen, and is the number read rightly?

# %% tags=["parameters"]
profile = "quick"  # quick | full
seeds = 0  # at least 2; 0 takes the profile's number
device = "auto"  # auto | cpu | cuda | mps
out = ""  # where the record goes, a .json file

# %% tags=["hide-input"]
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from bridges.benches import translation
from bridges.benches.study import Outcome
from bridges.benches.translation import Recipe
from bridges.connectors.resampler import ResamplerSettings
from bridges.instruments.conditioning import conditioning_gap, derangement
from bridges.instruments.gradients import gradient_flow
from bridges.instruments.probe import linear_probe
from bridges.instruments.tokens import token_geometry
from bridges.instruments.translation import score
from bridges.training.fit import FitSettings, fit
from press.book import BLUE, HOSTS, ORANGE, Markdown, begin, dots, explore, plt, recorded, show_source, table
from torch.nn.functional import normalize

# Pairs: quick, full profile.
run = begin("bridging", globals(), seeds=(2, 10), host=("quick", "full"),  # the size of the pretrained host
    steps=(48, 300), batch=(16, 64), rate=(3e-3, 1e-3),
    low_rate=(5e-5, 1e-6),  # of the bridge whose rate is the fault
    held_out=(200, 300),  # sentences that every reading is taken on
    tokens=(8, 16),  # that the connector makes of a vector
)  # fmt: skip

# %% [markdown]
# ## Symptom
#
# Three working logs start the three parts of this book. In the first a video clip is reduced to one vector, and T5 is
# to say what was signed: whatever the connector, its translations are generic phrases that hardly depend on the clip.
# In the second, image patches and captions are to meet in one space, and after ten epochs the loss stands where a model
# stands that tells no pair from another. In the third, one language model passes its hidden states to another as a few
# soft tokens. The share of right answers rises for a while, once above what the second model reaches alone. Then it
# falls, and the answers turn into loops, while the training loss hardly moves.

# %% tags=["remove-input"]
bleus = [row[2] for row in recorded("t5_architectures")["rows"] if row[4] == "measured"]
split = {row[1]: row for row in recorded("alignment_log")["rows"] if row[0] == "perceiver"}
peaks = recorded("staying_at_the_peak")["runs"]["rows"]
table(
    "what was seen | reading | recorded",
    (
        ("the same phrases for every input", "BLEU of each connector (%)", bleus),
        ("a loss that stays where it is", "training loss per term, after ten epochs", split["train"][3]),
        ("", "right caption ranked first, held out (%)", split["validation"][5]),
        ("a peak, and then a collapse", "right answers, highest of each run (%)", [run[1] for run in peaks]),
        ("", "right answers, last of each run (%)", [run[3] for run in peaks]),
    ),
)

# %% [markdown]
# Each log then changed something in or around the connector: another architecture, another route into the host, another
# initialisation, another scale. The evidence was in all three a bad number at the far end. Such a number says that a
# bridge is broken. It does not say where.
#
# ## Mechanism
#
# A bridge is a source $S$, a connector $C_\theta$ and a host $H$. For an input $s$ that should come out as the words
# $y$,
#
# $$
# x = S(s), \qquad E = C_\theta(x) \in \mathbb{R}^{K \times d}, \qquad
# \log p(y \mid s) = \sum_t \log H(y_t \mid y_{<t}, E).
# $$ (eq-bridging-bridge)
#
# Source and host are frozen; only $\theta$ is trained. {eq}`eq-bridging-bridge` can break in four places, and each has
# a question of its own:
#
# | place | what is wrong there | what asks for it |
# |---|---|---|
# | the input | $x$ says nothing about $y$ | a linear probe from $x$ to the words of $y$, against the same with the pairs shuffled |
# | the connector | $E$ is nearly the same for every $x$ | token geometry: the share of the tokens' variance that follows the input; and the probe again, from $E$ |
# | the host | $E$ differs from input to input, the output does not | the conditioning gap; where it is small, the gradient at the connector says whether training could change that |
# | the reading | the number does not measure what it is taken for | its floor or chance line: what a bridge would score that carries nothing |
#
# The conditioning gap is the loss when every sentence gets another's input, minus the loss with its own. An output that
# does not depend on the input loses nothing by the exchange:

# %% tags=["remove-input"]
show_source(conditioning_gap, start="order =")

# %% [markdown]
# The four are asked in this order, along the bridge. A break upstream spoils every reading downstream: a host cannot
# listen to what never reached it.
#
# ## Experiment
#
# ### A bridge of which everything is known
#
# The source is the book's own sentence embedding, in which a sentence is a sum over its words. The connector is a small
# MLP from one vector to a few tokens. The host is a real T5 {cite}`raffel2020t5`, small, pretrained on the spot to
# restore masked words of the same corpus, and frozen; each seed has one of its own. The bridge is to carry a sentence
# through its vector and say it again.

# %%
bench = translation.bench(HOSTS, run.device, size=run.host, held_out=run.held_out)
healthy = Recipe(
    FitSettings(run.steps, run.rate, run.batch, warmup=10),
    ResamplerSettings(width=64, latents=run.tokens, depth=1, heads=4),
    connector="mlp",
)
Markdown(
    f"{len(bench.known.texts):,} sentences to train on, {run.held_out} held out; for example *{bench.known.texts[0]}*."
    f" Floors of BLEU: {bench.floors}."
)

# %% [markdown]
# The floors are what can be had without translating. Two need no input: the best of a few sentences said to everything,
# and sentences drawn at random. The third is the known sentence with the nearest vector.
#
# ### Six planted faults
#
# Each differs from the healthy bridge in one thing. The name of the place is what a diagnosis should come to.

# %%
INPUT, CONNECTOR = "nothing in the input", "the connector does not carry it"
CUT_OFF, NOT_YET = "the host is cut off", "the host does not listen yet"
READING, HEALTHY = "the number is misread", "healthy"


@dataclass(frozen=True)
class Planted:
    """A bridge with one fault at most, and the place where it is."""

    place: str
    recipe: Recipe = healthy
    spoil: Callable | None = None  # from vectors and a generator, the vectors that the bridge is given
    shut: bool = False  # the decoder attends to its encoder, and nothing comes of it
    misread: bool = False  # outputs are compared with references in another order


def noise(own, draw):
    """Vectors that say nothing."""
    return normalize(torch.randn(own.shape, generator=draw), dim=1).to(own)


def shuffled(own, draw):
    """Every sentence with another's vector."""
    return own[derangement(len(own), draw.initial_seed())]


def faint(own, draw):
    """Another unit."""
    return own / 1000


PLANTED = {
    "no fault": Planted(HEALTHY),
    "vectors of noise": Planted(INPUT, spoil=noise),
    "pairs shuffled": Planted(INPUT, spoil=shuffled),
    "input scaled away": Planted(CONNECTOR, replace(healthy, logged_scale=True), spoil=faint),  # and not standardised
    "cross-attention shut": Planted(CUT_OFF, shut=True),
    "rate far too low": Planted(NOT_YET, replace(healthy, fit=replace(healthy.fit, lr=run.low_rate))),
    "references shuffled": Planted(READING, misread=True),
}

# %% [markdown]
# Four of the six are mistakes that are easily made: a manifest and a feature folder in different orders, a unit that
# slipped by a thousand, a learning rate copied from another model, outputs compared with references in another order.
# The shut cross-attention stands for a gate that was initialised at zero and never opened {cite}`alayrac2022flamingo`.
# Noise stands for a source that does not see what it should.
#
# ### The readings
#
# Every instrument is put to every bridge, on sentences that it has not seen:

# %%
ENTRANCE = "connector.1.mlp.0.weight"  # the trained weight that meets the vector


def word_counts(sentences) -> torch.Tensor:
    """How often each word stands in each sentence (sentences, words)."""
    each = [Counter(sentence.lower().split()) for sentence in sentences]
    words = sorted(set().union(*each))
    return torch.tensor([[float(counts[word]) for word in words] for counts in each])


def readings(model, given, references) -> dict[str, float]:
    """What the instruments say of one bridge, with the vectors that it is given."""

    @torch.no_grad()
    def loss(vectors) -> float:
        return model(vectors, given.labels).item()

    with torch.no_grad():
        soft = model.connector(given.vectors).cpu()  # (sentences, tokens, width)
    said = bench.tokenizer.batch_decode(model.generate(given.vectors, bench.longest), skip_special_tokens=True)
    scores, counts = score(said, references), word_counts(given.texts)
    probes = {"vectors": linear_probe(given.vectors, counts), "tokens": linear_probe(soft.flatten(1), counts)}
    flow = gradient_flow(model.named_parameters(), lambda: model(given.vectors, given.labels))
    return {
        "bleu": scores.bleu,
        "distinct": 100 * scores.distinct,
        "loss": loss(given.vectors),
        "gap": conditioning_gap(loss, given.vectors),
        **{f"probe of {place}": probe.r2 - max(probe.null) for place, probe in probes.items()},  # over its shuffles
        "follows": 100 * (1 - token_geometry(soft).identity),  # the share of the tokens' variance, in percent
        "gradient": flow.gradient[ENTRANCE],
        "dead": float(ENTRANCE in flow.dead),
    }


# %% [markdown]
# Only the connector is trained; source and host stay as they are:


# %%
def trained(arm, seed):
    """A bridge with its fault after training, and the held-out sentences with the vectors that it is given."""
    draw = torch.Generator().manual_seed(seed)
    given, asked = (
        replace(s, vectors=arm.spoil(s.vectors, draw)) if arm.spoil else s for s in (bench.known, bench.unseen)
    )
    model = translation.untrained(arm.recipe, seed, given, bench.host, None)
    model.host.requires_grad_(False)
    for name, parameter in model.host.named_parameters():
        if arm.shut and "EncDecAttention.o." in name:
            parameter.zero_()
    fit(model, lambda rows: model(given.vectors[rows], given.labels[rows]), len(given.texts), arm.recipe.fit, seed)
    return model, asked


def planted(arms, seeds):
    """Readings of a bridge for each fault and seed."""
    found = {}
    for seed in seeds:
        order = derangement(len(bench.references), seed)
        for fault, arm in arms.items():
            model, asked = trained(arm, seed)
            references = [bench.references[i] for i in order] if arm.misread else bench.references
            said = bench.tokenizer.batch_decode(model.generate(asked.vectors[:1]), skip_special_tokens=True)
            found[fault, seed] = Outcome({arm.recipe.fit.steps: readings(model, asked, references)}, {"said": said})
    return found


study = run.study("planted", planted, PLANTED)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "One row for each planted fault, one panel for each instrument: means over seeds with their 95 % interval, small dots are the seeds trained on this page. Above, what comes out: BLEU, the share of distinct outputs, the loss and the conditioning gap. Below, what goes in: the probes from vectors and from tokens to words, as held-out R² above the best of 40 shuffles; the share of the tokens' variance that follows the input; the gradient norm at the weight that meets the vector. Dotted: the floors of BLEU, the loss of the bridge that gets no input, and the lines of the decision.", "name": "fig-bridging-readings"}, "image": {"alt": "Eight panels with seven rows, the first without a fault. In BLEU the healthy bridge stands far to the right of all others. In distinct outputs the bridge with shuffled references is level with it, the one with the low rate far above, noise and shuffled pairs well below, and two stand next to zero. In the gap the healthy bridge and the one with shuffled references stand apart. The probe from vectors is below its line for noise and shuffled pairs alone, the share of variance for the input scaled away alone, and the gradient is zero for the shut cross-attention alone."}}
FOLLOWS = 1.0  # percent of the tokens' variance
GAP = 0.3  # nats per token
no_input = study.mean("input scaled away", "loss").mean
PANELS = {
    "bleu": ("BLEU", (bench.floors.constant, bench.floors.random, bench.floors.retrieval)),
    "distinct": ("distinct outputs\n(%)", ()),
    "loss": ("loss\n(nats per token)", (no_input,)),
    "gap": ("conditioning gap\n(nats per token)", (GAP,)),
    "probe of vectors": ("probe of vectors\n(R² over shuffles)", (0,)),
    "probe of tokens": ("probe of tokens\n(R² over shuffles)", (0,)),
    "follows": ("tokens that follow\nthe input (%)", (FOLLOWS,)),
    "gradient": ("gradient at the\nentrance (norm)", ()),
}
colours = {fault: ORANGE if arm.place != HEALTHY else BLUE for fault, arm in PLANTED.items()}
grid = plt.subplots(2, 4, figsize=(7.2, 5.6), sharey=True)[1]
for axes, (reading, (title, at)) in zip(grid.flat, PANELS.items(), strict=True):
    here = {fault: study.live.values(fault, reading) for fault in PLANTED}
    dots(axes, {fault: study.mean(fault, reading) for fault in PLANTED}, points=here, colour=colours, at=at)
    axes.set_xlabel(title, fontsize=9)
    axes.tick_params(labelsize=9)
grid[1, 3].set_xscale("symlog", linthresh=1e-4)
grid[1, 3].set(xlim=(-5e-5, 50), xticks=(0, 1e-3, 1))
plt.show()

# %% [markdown]
# ## Which place is it?
#
# BLEU tells the healthy bridge from the others and no fault from another: the six score no more than the best constant
# sentence, or next to no more. The healthy one is far above, if below the nearest known sentence: that it works is all
# that is asked of it here. The distinct share does not even tell the healthy bridge from the others: one broken bridge
# says just as many different sentences, and the one that was hardly trained says more. Varied and fluent is not yet
# translated:

# %% tags=["remove-input"]
said = study.texts("vectors of noise", 0, "said")[0]
Markdown(f"Asked for *{bench.unseen.texts[0]}*, a bridge that is given noise says *{said}*.")

# %% [markdown]
# What separates them is the way from one end to the other:
#
# - **The gap** is small wherever the output does not depend on the input: the bridge is broken, whatever its outputs look
#   like. It does not say where.
# - **The probe from the vectors** parts the two faulty inputs from the rest. No change to the connector can help those
#   two.
# - **The share of variance** finds the connector that drowns its input. The probe from its tokens does not: it brings
#   every feature to unit variance before it looks, and finds a message however faint. A host needs it loud enough.
# - **The gradient** parts a host that cannot hear from one that was not trained to. Only the second is mended by more
#   training: its gradient is the largest of all, and waits to be used.
# - **The floor** catches the last: a gap that says that the host listens beside a BLEU that says that it does not is a
#   fault of the comparison.
#
# In this order they make a decision, whose lines were fixed before these bridges were trained. A probe has found
# something if it beats the best of 40 shuffles of the pairs, a weight is dead below a millionth of the model's
# gradient, and BLEU has to beat the two floors that need no input. The line for the share of variance and that for the
# gap were chosen on other seeds and another host, the second between bridges that work and bridges that were hardly
# trained.


# %%
def where(r) -> str:
    """The first place along the bridge that a reading speaks against."""
    if r["probe of vectors"] <= 0:
        return INPUT
    if r["follows"] < FOLLOWS or r["probe of tokens"] <= 0:
        return CONNECTOR
    if r["gap"] < GAP:
        return CUT_OFF if r["dead"] else NOT_YET
    if r["bleu"] <= max(bench.floors.constant, bench.floors.random):
        return READING
    return HEALTHY


# %% [markdown]
# In how many seeds does it name the planted place?

# %% tags=["nbval-check-output", "keep_output", "remove-input"]
rightly = {}
for fault, arm in PLANTED.items():
    runs = [study.course(fault, seed) for seed in study.seeds(fault)]
    places = [where({name: float(values.iloc[-1]) for name, values in run_of.items()}) for run_of in runs]
    rightly[fault] = places.count(arm.place)
    print(f"{fault}: {arm.place}, {rightly[fault]} of {len(places)}")

# %% [markdown]
# ### What the instruments cannot tell
#
# *Vectors of noise* and *pairs shuffled* get one name, and they have to: in both the vectors say nothing about the
# sentences beside them. What tells them apart lies outside the bridge, such as encoding a few sentences once more.
#
# The decision names the first place only; a bridge with two faults shows the second when the first is mended. And a
# linear probe is good evidence where it finds something. Where it finds nothing, a connector with more layers may still
# find more.
#
# The two chosen lines belong to this task: what a gap of so many nats is worth depends on how much there is to say. A
# reference that any task has is a bridge trained without its input, here *input scaled away*, whose loss is the dotted
# line in the third panel of {numref}`fig-bridging-readings`. Its connector learns one prompt for all sentences, and its
# host does as well as it can without hearing a thing. The bridges of noise and of shuffled pairs end above that line.
# They were taught to trust vectors that say nothing of new sentences, and that is worse than to hear nothing.
#
# ### A number and its chance line
#
# The fourth place is the easiest to overlook, because nothing in the bridge is broken. The second log's loss is
# contrastive: in a batch of $b$ pairs each picture is to pick its caption. Where all pairs look alike to the model the
# loss is $\ln b$, whatever the temperature {cite}`radford2021clip`, so a loss without its batch says nothing. Retrieval
# has a trap of the same kind. A model that gives one vector to everything makes all candidates equal, and if ties are
# counted in favour of the right one, its score is perfect. [Reading a stuck loss](stuck_loss.ipynb) takes the log's own
# digits apart in this way.
#
# ## Tweak it
#
# The planted faults are clear-cut; a bridge that half works gives readings in between. Here noise is mixed into the
# vectors of the healthy bridge of seed 0. Move the slider from the right vectors to noise alone and see which reading
# falls first, and which hardly falls. Each bar is a reading as a share of what it is without noise; the orange mark is
# the line of the decision. In the title stand what the bridge says for one sentence and the place that the decision
# names. On the way it names the wrong one: vectors that hold no more than a trace still pass the probe, and the small
# gap that follows is laid at the host. In a live kernel, mix in another sentence's vector.

# %% tags=["hide-input"]
bridge, told_of = trained(PLANTED["no fault"], 0)
whole = readings(bridge, told_of, bench.references)
LINES = {"probe of vectors": 0, "follows": FOLLOWS, "gap": GAP, "bleu": bench.floors.constant, "distinct": None}


def frame(axes, share: float, mixed_with: str) -> str:
    """The readings at one share of the other vector, in percent of those without it."""
    own = told_of.vectors
    other = noise(own, torch.Generator().manual_seed(0)) if mixed_with == "noise" else own[derangement(len(own))]
    mixed = replace(told_of, vectors=normalize((1 - share) * own + share * other, dim=1))
    found = readings(bridge, mixed, bench.references)
    said = bench.tokenizer.decode(bridge.generate(mixed.vectors[:1])[0], skip_special_tokens=True)
    title = f"asked for: {told_of.texts[0]}\nsaid: {said}\nnamed: {where(found)}"
    parts = {PANELS[name][0].split("\n")[0]: 100 * found[name] / whole[name] for name in LINES}
    axes.barh(list(parts), parts.values(), color=BLUE, height=0.6)
    lines = [100 * line / whole[name] for name, line in LINES.items() if line is not None]
    axes.plot(lines, range(len(lines)), "|", color=ORANGE, ms=20, mew=3)
    axes.set(xlim=(-15, 120), ylim=(4.6, -0.6), xlabel="share of the reading without noise (%)")
    axes.set_title(title, fontsize=9.5)
    return f"{title}. In percent: {', '.join(f'{name} {value:.0f}' for name, value in parts.items())}."


explore("share of the other vector", (0, 0.5, 0.75, 0.875, 1), frame, mixed_with=["noise", "another sentence"])

# %% [markdown]
# ## Try it on yours
#
# The gap takes a function from inputs to the loss, and the inputs:

# %%
round(conditioning_gap(lambda x: bridge(x, told_of.labels), told_of.vectors), 3)  # yours

# %% [markdown]
# The probe takes what goes into your bridge and what should come out, and answers the first question, whether there is
# anything in the vectors. `bridges.tasks.features.read_clips` reads vectors and sentences from a folder with one `.npy`
# file for each clip and a manifest of lines `id<TAB>sentence`.

# %%
print(linear_probe(told_of.vectors, word_counts(told_of.texts)))  # yours

# %% [markdown]
# The next chapter starts with the first log: [a sentence vector goes into T5](encoder_bypass.ipynb), and the host is
# said not to listen.
#
# ## Provenance

# %% tags=["remove-input"]
run.measure(
    named_rightly=sum(rightly.values()),
    planted=sum(len(study.seeds(fault)) for fault in PLANTED),
    floor_constant=bench.floors.constant,
    **{f"bleu: {fault}": study.mean(fault, "bleu") for fault in PLANTED},
)
run.close()
