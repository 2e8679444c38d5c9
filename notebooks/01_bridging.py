# %% [markdown]
# # The problem of bridging
#
# Two models were trained apart, and a small connector is to let one speak to the other. It does not work, and the output
# does not say why. This chapter builds a bridge of which everything is known, breaks it in six ways, one at a time, and
# asks which readings tell the breaks apart.

# %% tags=["parameters"]
profile = "quick"  # quick | full
seeds = 0  # at least 2; 0 takes the profile's number
device = "auto"  # auto | cpu | cuda | mps
out = ""  # where the record goes, a .json file
features = ""  # your own vectors: a folder with ID.npy for each clip
manifest = ""  # their sentences: a file of lines ID, tab, sentence

# %% tags=["hide-input"]
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from bridges.connectors.resampler import ResamplerSettings
from bridges.hosts.seq2seq import VectorToText
from bridges.instruments.chance import chance_loss, stuck
from bridges.instruments.conditioning import conditioning_gap, derangement
from bridges.instruments.gradients import GradientFlow, gradient_flow
from bridges.instruments.probe import Probe, linear_probe
from bridges.instruments.retrieval import recall
from bridges.instruments.tokens import TokenGeometry, token_geometry
from bridges.instruments.translation import Floors, floors, score
from bridges.instruments.uncertainty import Estimate, mean_interval
from bridges.tasks import instructions
from bridges.tasks.features import Clips, read_clips, write_clips
from bridges.training.fit import FitSettings, fit
from bridges.training.losses import info_nce
from bridges.benches.pretrain import small_host
from bridges.benches.translation import Recipe, Sentences, untrained
from IPython.display import Markdown
from matplotlib.figure import Figure
from press import HOSTS
from press.data import recorded
from press.explorer import Explorer
from press.figures import COLOURS, draw_intervals, use_style
from press.provenance import begin, refusing
from press.source import show_source
from torch.nn.functional import normalize
from transformers.utils.logging import disable_progress_bar


@dataclass(frozen=True)
class Size:
    """What a profile means in this chapter."""

    seeds: int
    host: str  # the size of the pretrained host
    steps: int  # training steps of every bridge
    batch: int
    rate: float
    low_rate: float  # of the bridge whose rate is the fault
    held_out: int  # sentences that every reading is taken on
    tokens: int  # tokens the connector makes of a vector


SIZES = {
    "quick": Size(
        seeds=5,
        host="quick",
        steps=48,
        batch=16,
        rate=3e-3,
        low_rate=5e-5,
        held_out=200,
        tokens=8,
    ),
    "full": Size(
        seeds=10,
        host="full",
        steps=300,
        batch=64,
        rate=1e-3,
        low_rate=1e-6,
        held_out=300,
        tokens=16,
    ),
}
run = begin(
    "bridging", SIZES, profile=profile, seeds=seeds, device=device, out=out
)
size = run.size
MOST_CLIPS = 2000  # of the reader's, for one probe


def load_mine() -> Clips:
    """The reader's clips, as many as one probe takes."""
    if not (features and manifest):
        raise ValueError(
            "features and manifest belong together: give both or neither"
        )
    clips = read_clips(Path(features), Path(manifest))
    if len(clips) < 8:
        raise ValueError(
            f"{manifest} names {len(clips)} clips: a probe takes 8 or more"
        )
    return Clips(
        clips.ids[:MOST_CLIPS],
        clips.vectors[:MOST_CLIPS],
        clips.sentences[:MOST_CLIPS],
    )


with refusing():
    mine = load_mine() if features or manifest else None
torch.set_num_threads(1)
disable_progress_bar()
use_style()

# %% [markdown]
# ## Symptom
#
# Three working logs start the three parts of this book. What each of them saw:

# %% tags=["remove-input"]
translator, alignment = recorded("t5_architectures"), recorded("alignment_log")
bleus = [row[2] for row in translator["rows"] if row[4] == "measured"]
by_split = {row[1]: row for row in alignment["rows"] if row[0] == "perceiver"}
Markdown(
    f"**The same sentence for every input.** A video clip is reduced to one vector, and T5 is to say what was signed."
    f" {len(bleus)} connectors in turn end between {min(bleus)} and {max(bleus)} BLEU, and their translations are"
    " generic phrases that hardly depend on the clip.\n\n"
    "**A loss that stays where it is.** Image patches and captions are to meet in one space. After ten epochs the"
    f" contrastive loss is {by_split['train'][3]} per term, and the right caption is ranked first for"
    f" {by_split['validation'][5]} % of the pictures. A model that tells no pair from another would score the same.\n\n"
    "**A peak, and then a collapse.** One language model passes its hidden states to another as a few soft tokens. The"
    " share of right answers rises for a while, once above what the second model reaches alone. Then it falls, at worst"
    " almost to nothing, and the answers turn into loops, while the training loss hardly moves."
)

# %% [markdown]
# Each log then changed something in or around the connector: another architecture, another route into the host, another
# initialisation, another scale. The evidence was in all three a bad number at the far end. A bad output says that a bridge
# is broken. It does not say where.
#
# ## Mechanism
#
# A bridge is a source $S$, a connector $C_\theta$ and a host $H$. For an input $s$ that should come out as the words $y$,
#
# $$
# \begin{aligned}
# x &= S(s), \qquad E = C_\theta(x) \in \mathbb{R}^{K \times d}, \\
# \log p(y \mid s) &= \sum_t \log H(y_t \mid y_{<t}, E).
# \end{aligned}
# $$ (eq-bridging-bridge)
#
# Source and host are frozen; only $\theta$ is trained. {eq}`eq-bridging-bridge` can break in four places, and each has a
# question of its own:
#
# ```{list-table}
# :header-rows: 1
# :widths: 20 38 42
#
# * - place
#   - what is wrong there
#   - what asks for it
# * - the input
#   - $x$ says nothing about $y$
#   - a linear probe from $x$ to the words of $y$, against the same probe with the pairs shuffled
# * - the connector
#   - $E$ is nearly the same for every $x$
#   - token geometry: the share of the tokens' variance that follows the input; and the probe again, from $E$
# * - the host
#   - $E$ differs from input to input, the output does not
#   - the conditioning gap; where it is small, the gradient at the connector says whether training could change that
# * - the reading
#   - the number does not measure what it is taken for
#   - its floor or chance line: what a bridge would score that carries nothing
# ```
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
# MLP from one vector to a few tokens. The host is a real T5 {cite}`raffel2020t5`, small, pretrained on the spot to restore
# masked words of the same corpus, and frozen. (The first log trained its T5 along with the connector.) The bridge is to
# carry a sentence through its vector and say it again.

# %%
words = instructions.tokenizer()
corpus = instructions.corpus(validation=size.held_out)


def prepared(texts: tuple[str, ...]) -> Sentences:
    """Sentences with their vectors and labels, on the device."""
    vectors = instructions.sentence_vectors(texts).to(run.device)
    return Sentences(
        texts, vectors, instructions.labels(texts, words).to(run.device)
    )


known, unseen = prepared(corpus.train), prepared(corpus.validation)
floor = floors(known.texts, known.vectors, unseen.texts, unseen.vectors)
frozen = small_host("t5", size.host, HOSTS, run.device).requires_grad_(False)
healthy = Recipe(
    FitSettings(size.steps, size.rate, size.batch, warmup=10),
    ResamplerSettings(width=64, latents=size.tokens, depth=1, heads=4),
    connector="mlp",
)
Markdown(
    f"{len(known.texts):,} sentences to train on, {len(unseen.texts)} held out; for example *{known.texts[0]}*. Floors of"
    f" BLEU: {floor}."
)

# %% [markdown]
# The floors are what can be had without translating: the best of a few sentences said to everything, sentences drawn at
# random, and the known sentence with the nearest vector.
#
# ### Six planted faults
#
# Each differs from the healthy bridge in one thing. The name of the place is what a diagnosis should come to.

# %%
INPUT, CONNECTOR = "nothing in the input", "the connector does not carry it"
CUT_OFF, NOT_YET = "the host is cut off", "the host does not listen yet"
READING, HEALTHY = "the number is misread", "healthy"

# The decoder of this host attends to its encoder, and nothing comes of it.
shut = deepcopy(frozen)
for name, parameter in shut.named_parameters():
    if "EncDecAttention.o." in name:
        parameter.zero_()
hosts = {"t5": frozen, "t5, shut": shut}

PLANTED: dict[str, tuple[str, Recipe]] = {
    "no fault": (HEALTHY, healthy),
    "vectors of noise": (INPUT, healthy),
    "pairs shuffled": (INPUT, healthy),
    "input scaled away": (CONNECTOR, replace(healthy, logged_scale=True)),
    "cross-attention shut": (CUT_OFF, replace(healthy, host="t5, shut")),
    "rate far too low": (
        NOT_YET,
        replace(healthy, fit=replace(healthy.fit, lr=size.low_rate)),
    ),
    "references shuffled": (READING, healthy),
}


def spoilt(fault: str, seed: int) -> tuple[Sentences, Sentences]:
    """Known and unseen sentences with the vectors that the faulty bridge gets."""
    draw = torch.Generator().manual_seed(seed)

    def vectors(own: torch.Tensor) -> torch.Tensor:
        match fault:
            case "vectors of noise":
                return normalize(torch.randn(own.shape, generator=draw), dim=1)
            case "pairs shuffled":
                return own[derangement(len(own), seed)]
            case "input scaled away":  # and not standardised, as its recipe says
                return own / 1000
        return own

    return tuple(
        replace(s, vectors=vectors(s.vectors.cpu()).to(run.device))
        for s in (known, unseen)
    )


# %% [markdown]
# Four of the six are mistakes that are easily made: a manifest and a feature folder in different orders, a unit that
# slipped by a thousand, a learning rate copied from another model, outputs compared with references in another order. The
# shut cross-attention stands for a gate that was initialised at zero and never opened {cite}`alayrac2022flamingo`. Noise
# stands for a source that does not see what it should.
#
# ### The lines
#
# The readings, and the decision they lead to. The decision is fixed here, before the bridges below are trained. Its lines
# were chosen on other seeds, 100 to 109, with this code at the quick profile.


# %%
@dataclass(frozen=True)
class Reading:
    """What the instruments say of one bridge, on held-out sentences."""

    bleu: float
    distinct: float  # share of outputs that differ, in percent
    loss: float  # nats per token
    gap: float  # nats per token
    vectors: Probe  # from the vectors to the words of their sentences
    tokens: Probe  # from the connector's tokens to those words
    geometry: TokenGeometry
    flow: GradientFlow

    @property
    def follows(self) -> float:
        """Share of the tokens' variance that depends on the input, in percent."""
        return 100 * (1 - self.geometry.identity)


ENTRANCE = "connector.1.mlp.0.weight"  # the trained weight that meets the vector
FOLLOWS = 1.0  # percent of the tokens' variance
GAP = 0.3  # nats per token


def where(r: Reading, floor: Floors) -> str:
    """The first place along the bridge that a reading speaks against."""
    if not r.vectors.found:
        return INPUT
    if r.follows < FOLLOWS or not r.tokens.found:
        return CONNECTOR
    if r.gap < GAP:
        return CUT_OFF if ENTRANCE in r.flow.dead else NOT_YET
    if r.bleu <= max(floor.constant, floor.random):
        return READING
    return HEALTHY


# %% [markdown]
# Three of the lines are the instruments' own. A probe has found a relation if it explains more on held-out sentences than
# in any of 40 shuffles of the pairs. A weight is dead if it gets less than a millionth of the model's gradient. BLEU has to
# beat its floors. Two had to be chosen: that for the share of the variance, and that for the gap, which lies
# between bridges that work and bridges that were hardly trained.
#
# ### The readings


# %%
def word_counts(sentences: Sequence[str], most: int = 500) -> torch.Tensor:
    """How often each of the commonest words stands in each sentence."""
    each = [Counter(sentence.lower().split()) for sentence in sentences]
    total = Counter(chain.from_iterable(c.elements() for c in each))
    common = [word for word, _ in total.most_common(most)]
    return torch.tensor([[float(c[word]) for word in common] for c in each])


def train(fault: str, seed: int) -> VectorToText:
    """A bridge with one planted fault, after its training."""
    recipe, (given, _) = PLANTED[fault][1], spoilt(fault, seed)
    model = untrained(recipe, seed, given, hosts, None)
    fit(
        model,
        lambda rows: model(given.vectors[rows], given.labels[rows]),
        len(given.texts),
        recipe.fit,
        seed,
        f"{fault}, seed {seed}",
    )
    return model


def say(model: VectorToText, vectors: torch.Tensor) -> list[str]:
    """Greedy translations."""
    return words.batch_decode(model.generate(vectors), skip_special_tokens=True)


def read(model: VectorToText, given: Sentences) -> Reading:
    """Every instrument on one bridge, with the vectors it is given."""

    @torch.no_grad()
    def loss(vectors: torch.Tensor) -> float:
        return model(vectors, given.labels).item()

    with torch.no_grad():
        tokens = model.connector(given.vectors).cpu()
    scores = score(say(model, given.vectors), given.texts)
    part = slice(size.batch)
    return Reading(
        scores.bleu,
        100 * scores.distinct,
        loss(given.vectors),
        conditioning_gap(loss, given.vectors),
        linear_probe(given.vectors, unseen_words),
        linear_probe(tokens.flatten(1), unseen_words),
        token_geometry(tokens),
        gradient_flow(
            model.named_parameters(),
            lambda: model(given.vectors[part], given.labels[part]),
        ),
    )


unseen_words = word_counts(unseen.texts)
models, readings = {}, {}
for fault in PLANTED:
    for seed in range(run.seeds):
        if fault == "references shuffled":  # healthy, but compared wrongly
            order = derangement(size.held_out, seed)
            said = say(models["no fault", seed], unseen.vectors)
            wrongly = score(said, [unseen.texts[i] for i in order]).bleu
            readings[fault, seed] = replace(
                readings["no fault", seed], bleu=wrongly
            )
        else:
            models[fault, seed] = train(fault, seed)
            readings[fault, seed] = read(
                models[fault, seed], spoilt(fault, seed)[1]
            )

# %% tags=["hide-input"] mystnb={"figure": {"caption": "One row for each planted fault, one panel for each instrument; small dots are seeds, large ones their mean with its 95 % interval. Above, what comes out: BLEU, the share of distinct outputs, the loss and the conditioning gap. Below, what goes in: the probes from vectors and from tokens to words, as held-out R² above the best of 40 shuffles; the share of the tokens' variance that follows the input; the gradient norm at the weight that meets the vector. Dotted: the floors of BLEU, the loss of the bridge that gets no input, and the lines of the decision.", "name": "fig-bridging-readings"}, "image": {"alt": "Eight panels with seven rows, the first without a fault. In BLEU the healthy bridge stands far to the right of all others. In distinct outputs four faulty bridges lie as high as it or near it and two at zero. In the gap it and the bridge with shuffled references stand apart. The probe from vectors is at or below its line for noise and shuffled pairs alone, the share of variance for the input scaled away alone, and the gradient is zero for the shut cross-attention alone."}}
VIEWS: dict[str, Callable[[Reading], float]] = {
    "BLEU": lambda r: r.bleu,
    "distinct outputs\n(%)": lambda r: r.distinct,
    "loss\n(nats per token)": lambda r: r.loss,
    "conditioning gap\n(nats per token)": lambda r: r.gap,
    "probe of vectors\n(R² over shuffles)": lambda r: (
        r.vectors.r2 - max(r.vectors.null)
    ),
    "probe of tokens\n(R² over shuffles)": lambda r: (
        r.tokens.r2 - max(r.tokens.null)
    ),
    "tokens that follow\nthe input (%)": lambda r: r.follows,
    "gradient at the\nentrance (norm)": lambda r: r.flow.gradient[ENTRANCE],
}


def over_seeds(fault: str, view: Callable[[Reading], float]) -> Estimate:
    """Mean over the seeds of one fault."""
    return mean_interval([view(readings[fault, s]) for s in range(run.seeds)])


bleu, distinct, loss, gap, *_ = VIEWS.values()
no_input = over_seeds("input scaled away", loss).mean
LINES = (
    (floor.constant, floor.random, floor.retrieval),
    (),
    (no_input,),
    (GAP,),
    (0,),
    (0,),
    (FOLLOWS,),
    (),
)
figure, grid = plt.subplots(2, 4, figsize=(7.2, 5.6), sharey=True)
for axes, (label, view), lines in zip(grid.flat, VIEWS.items(), LINES, strict=True):
    for y, fault in enumerate(PLANTED):
        mean = over_seeds(fault, view)
        each = [view(readings[fault, s]) for s in range(run.seeds)]
        axes.plot(
            each, [y - 0.25] * run.seeds, ".", color=COLOURS["grey"], alpha=0.6
        )
        draw_intervals(
            axes,
            [y],
            [mean],
            flat=True,
            fmt="o",
            markersize=5,
            color=COLOURS["orange" if y else "blue"],
            capsize=3,
        )
    for line in lines:
        axes.axvline(line, color="black", linewidth=0.9, linestyle=":")
    axes.set_xlabel(label, fontsize=9)
    axes.tick_params(labelsize=9)
grid[0, 0].set_yticks(range(len(PLANTED)), PLANTED)
grid[0, 0].set_ylim(len(PLANTED) - 0.5, -0.7)
entrance = grid[1, 3]
entrance.set_xscale("symlog", linthresh=1e-4)
entrance.set(xlim=(-5e-5, 50), xticks=(0, 1e-3, 1))
plt.show()

# %% tags=["hide-input"]
rows = [
    f"| {fault} | {over_seeds(fault, bleu)} | {over_seeds(fault, distinct)} | {over_seeds(fault, loss)} |"
    f" {over_seeds(fault, gap)} |"
    for fault in PLANTED
]
Markdown(
    "| planted | BLEU | distinct outputs (%) | loss (nats per token) | conditioning gap (nats per token) |\n"
    "|---|---|---|---|---|\n"
    + "\n".join(rows)
    + f"\n\nMean [95 % interval] over {run.seeds} seeds, {size.steps} steps of {size.batch} sentences each. Floors of BLEU:"
    f" {floor}. The bridge that gets no input ends at a loss of {no_input:.3g}."
)

# %% [markdown]
# ## Which place is it?
#
# BLEU tells the healthy bridge from the others and no fault from another. The distinct share does not even tell the
# healthy bridge from the others.

# %% tags=["remove-input"]
faults = [fault for fault in PLANTED if fault != "no fault"]
most_varied = max(PLANTED, key=lambda fault: over_seeds(fault, distinct).mean)
scaled = "input scaled away"
Markdown(
    f"The bridge without a fault reaches {over_seeds('no fault', bleu).mean:.1f} BLEU,"
    f" {'below' if over_seeds('no fault', bleu).mean < floor.retrieval else 'above'} what retrieval gets"
    f" ({floor.retrieval:.1f}): after {size.steps} steps it works, which is all that is asked of it here."
    f" The six faulty ones end between {min(over_seeds(f, bleu).mean for f in faults):.1f} and"
    f" {max(over_seeds(f, bleu).mean for f in faults):.1f} BLEU, around the floors of a constant and of random sentences."
    f" The most varied output, {over_seeds(most_varied, distinct).mean:.0f} % distinct, belongs to *{most_varied}*; the"
    f" bridge without a fault has {over_seeds('no fault', distinct).mean:.0f} %. Vectors of noise still give"
    f" {over_seeds('vectors of noise', distinct).mean:.0f} %: seed 0 says, for *{unseen.texts[0]}*,"
    f" *{say(models['vectors of noise', 0], spoilt('vectors of noise', 0)[1].vectors[:1])[0]}*."
)

# %% [markdown]
# What separates them is the way from one end to the other:
#
# - **The gap** is small wherever the output does not depend on the input. It says that the bridge is broken, whatever
#   its outputs look like, and not where.
# - **The probe from the vectors** parts the two faulty inputs from the rest. In those two no change to the connector can
#   help.
# - **The share of variance** finds the connector that drowns its input. The probe from its tokens does not: it brings every
#   feature to unit variance before it looks, so it finds a message however faint. To be there is not enough; it has to be
#   loud enough for the host.
# - **The gradient** parts a host that cannot hear from one that was not trained to. Only the second is mended by more training.
# - **The floor** catches the last: a bridge whose gap says that it listens, and whose BLEU says that it does not, has a
#   fault in the comparison.

# %% tags=["remove-input"]
tiny = over_seeds(scaled, VIEWS["tokens that follow\nthe input (%)"])
Markdown(
    f"In *{scaled}* {tiny.mean:.2g} % of the tokens' variance follows the input, and the probe from the tokens finds, in"
    f" seed 0, {readings[scaled, 0].tokens}."
)

# %% [markdown]
# In how many seeds did the decision, with the lines fixed above, name the planted place?

# %% tags=["nbval-check-output", "keep_output", "remove-input"]
named = {
    fault: Counter(where(readings[fault, s], floor) for s in range(run.seeds))
    for fault in PLANTED
}
for fault, (place, _) in PLANTED.items():
    others = [f"{n} {other}" for other, n in named[fault].items() if other != place]
    print(
        f"{fault}: {place}, {named[fault][place]} of {run.seeds}"
        + (f" ({', '.join(others)})" if others else "")
    )

# %% [markdown]
# ### What the instruments cannot tell
#
# *Vectors of noise* and *pairs shuffled* get one name, and they have to: in both the vectors say nothing about the
# sentences beside them. What tells them apart lies outside the bridge, such as encoding a few sentences again and comparing
# the vectors.
#
# The decision names the first place only. A bridge with two faults shows the second when the first is mended.
#
# A linear probe finds what a linear map can use. It is good evidence where it finds something; where it finds nothing, a
# connector with more layers may still find more.
#
# The two chosen lines belong to this task. What a gap of so many nats is worth depends on how much there is to say. A
# reference that any task has is a bridge trained without its input, here *input scaled away*. Its loss is the dotted line in
# the third panel of {numref}`fig-bridging-readings`; a bridge above that line does worse than one that hears nothing.
#
# And these faults are clear-cut. A bridge that half works gives readings in between, where one place can be taken for
# another: vectors that hold no more than a trace still pass the probe, and the small gap that follows is laid at the host.
# The section *Tweak it* walks there.
#
# ### A number and its chance line
#
# The second log reads a contrastive loss, which has a chance line of its own. With embeddings $u_i$ and $v_i$ of unit norm
# and a temperature $\tau$ {cite}`radford2021clip`, the loss of a batch of $b$ pairs is
#
# $$
# \mathcal{L} = -\frac{1}{b} \sum_i \ln \frac{e^{u_i \cdot v_i / \tau}}{\sum_j e^{u_i \cdot v_j / \tau}},
# $$ (eq-bridging-infonce)
#
# averaged over both directions. Where all $u_i \cdot v_j$ are equal, {eq}`eq-bridging-infonce` is $\ln b$, whatever the
# temperature. Four sets of embeddings, of which three are planted to carry nothing:

# %% tags=["hide-input"]
PAIRS, WIDTH, TEMPERATURE = 512, 32, 0.07
BATCHES = (32, 128, 512)


def embeddings(seed: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Both sides of some pairs, at unit norm."""
    draw = torch.Generator().manual_seed(seed)
    one, other = (torch.randn(PAIRS, WIDTH, generator=draw) for _ in range(2))
    same = torch.ones(PAIRS, WIDTH)
    sides = {
        "one vector for all": (same, same),
        "one vector, and some dust": (same + 0.01 * one, same + 0.01 * other),
        "random vectors": (one, other),
        "pairs that are alike": (one, one + 0.5 * other),
    }
    return {
        name: tuple(normalize(side, dim=-1) for side in both)
        for name, both in sides.items()
    }


drawn = [embeddings(seed) for seed in range(run.seeds)]
rows = []
for name in drawn[0]:
    losses = {
        b: [
            info_nce(u[:b], v[:b], torch.tensor(1 / TEMPERATURE)).item()
            for u, v in (each[name] for each in drawn)
        ]
        for b in BATCHES
    }
    found, generous = (
        mean_interval([recall(*each[name], ties=ties).at[1] for each in drawn])
        for ties in ("middle", "first")
    )
    at_chance = sum(stuck(x, b) for b in BATCHES for x in losses[b])
    rows.append(
        f"| {name} | "
        + " | ".join(f"{np.mean(losses[b]):.3f}" for b in BATCHES)
        + f" | {at_chance} of {len(BATCHES) * run.seeds} | {found.mean:.3g} | {generous.mean:.3g} |"
    )
Markdown(
    "| embeddings | "
    + " | ".join(f"loss, batch {b}" for b in BATCHES)
    + " | called stuck | R@1 (%) | R@1, ties won (%) |\n|---|--:|--:|--:|--:|--:|--:|\n"
    + "| *chance* | "
    + " | ".join(f"*{chance_loss(b):.3f}*" for b in BATCHES)
    + f" | | *{recall(*drawn[0]['random vectors']).chance[1]:.3g}* | |\n"
    + "\n".join(rows)
    + f"\n\nMeans over {run.seeds} draws of {PAIRS} pairs. Ties won: where candidates are equal, the right one is put first."
)

# %% [markdown]
# The loss of one and the same model rises with the batch, so a loss without its batch says nothing. Random vectors lie
# *above* the line. And in the last column a model that gives one vector to everything has a perfect score, from nothing but
# the way ties are counted: the fourth place again. [Reading a stuck loss](stuck_loss.ipynb) takes the log's own digits
# apart in this way.
#
# ## Tweak it
#
# The healthy bridge of seed 0, and a vector that is mixed with that of another sentence. Move the slider from the right
# vector to the wrong one, and see which reading notices. Above the panels stands what the bridge says for one sentence,
# and what the decision makes of the readings; it knows no in between. In a live kernel, choose noise to be mixed in.


# %% tags=["hide-input"]
SHARES = [n / 8 for n in range(9)]
NOTICED = {
    "probe of vectors\n(R² over shuffles)": 0,
    "tokens that follow\nthe input (%)": FOLLOWS,
    "conditioning gap\n(nats per token)": GAP,
    "BLEU": max(floor.constant, floor.random),
    "distinct outputs\n(%)": None,
}


@cache
def walk(mixed_with: str) -> list[tuple[Reading, str]]:
    """Readings, and what is said for one sentence, at each share."""
    if mixed_with == "another sentence":
        other = unseen.vectors[derangement(size.held_out)]
    else:
        other = spoilt("vectors of noise", 0)[1].vectors
    steps = []
    for share in SHARES:
        mixed = normalize((1 - share) * unseen.vectors + share * other, dim=1)
        told = say(models["no fault", 0], mixed[:1])[0]
        given = replace(unseen, vectors=mixed)
        steps.append((read(models["no fault", 0], given), told))
    return steps


def frame(position: int, mixed_with: str) -> tuple[Figure, str]:
    """Every reading along the slider, with the position marked."""
    readings_, told = zip(*walk(mixed_with), strict=True)
    figure = Figure(figsize=(7.2, 3.4))
    panels = figure.subplots(1, len(NOTICED))
    here = []
    for axes, (label, line) in zip(panels, NOTICED.items(), strict=True):
        values = [VIEWS[label](r) for r in readings_]
        lowest = min(0, *values)
        span = max(values) - lowest
        axes.plot(SHARES, values, "-", color=COLOURS["sky"])
        axes.plot(
            SHARES[position], values[position], "o", color=COLOURS["orange"], ms=8
        )
        if line is not None:
            axes.axhline(line, color="black", linewidth=0.9, linestyle=":")
        axes.set_title(
            f"{values[position]:.3g}", color=COLOURS["orange"], fontsize=10
        )
        axes.set_ylabel(label, fontsize=8.5)
        axes.set(
            xticks=(0, 0.5, 1),
            xlim=(-0.08, 1.08),
            ylim=(lowest - 0.05 * span, lowest + 1.1 * span),
        )
        axes.locator_params(axis="y", nbins=5)
        axes.tick_params(labelsize=8.5)
        here.append(f"{' '.join(label.split())}: {values[position]:.3g}")
    named_here = where(readings_[position], floor)
    figure.suptitle(
        f"asked for: {unseen.texts[0]}\nsaid: {told[position]}\nnamed: {named_here}",
        fontsize=9.5,
    )
    figure.supxlabel("share of the other vector", fontsize=9)
    return figure, (
        f"Five curves against the share of {mixed_with} in the vector, marked at {SHARES[position]:g}: {'; '.join(here)}."
        f" For '{unseen.texts[0]}' the bridge says '{told[position]}'. The decision: {named_here}."
    )


Explorer(
    "share of the other vector",
    {f"{share:g}": i for i, share in enumerate(SHARES)},
    frame,
    choices={"mixed_with": ["another sentence", "noise"]},
)

# %% [markdown]
# ## Try it on yours
#
# The gap takes a function from inputs to the loss, and the inputs:

# %%
bridge = models["no fault", 0]
round(conditioning_gap(lambda x: bridge(x, unseen.labels), unseen.vectors), 3)

# %% [markdown]
# The probe takes what goes into your bridge and what should come out. Give a folder with one `.npy` file for each clip and
# a manifest of their sentences (`-p features features/train -p manifest manifests/train.tsv`), and it answers the first
# question, whether there is anything in the vectors. Without them, the book's held-out sentences are written to such a
# folder and read back.

# %%
if mine is None:
    names = tuple(f"clip{i}" for i in range(size.held_out))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "features"), Path(folder, "manifest.tsv")
        write_clips(*place, Clips(names, unseen.vectors, unseen.texts))
        mine = read_clips(*place)
print(linear_probe(mine.vectors, word_counts(mine.sentences)))

# %% [markdown]
# The next chapter starts with the first log: [a sentence vector goes into T5](encoder_bypass.ipynb), and the host is
# said not to listen.
#
# ## Provenance

# %% tags=["remove-input"]
if features:
    run.given |= {"features": Path(features).name, "manifest": Path(manifest).name}
run.measure(
    named_rightly=sum(named[fault][place] for fault, (place, _) in PLANTED.items()),
    planted=sum(n.total() for n in named.values()),
    healthy_bleu=over_seeds("no fault", bleu),
    healthy_distinct=over_seeds("no fault", distinct),
    noise_distinct=over_seeds("vectors of noise", distinct),
    healthy_gap=over_seeds("no fault", gap),
    noise_gap=over_seeds("vectors of noise", gap),
    floor_constant=floor.constant,
)
run.close()
