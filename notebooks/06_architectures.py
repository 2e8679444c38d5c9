# %% [markdown]
# # The architecture table
#
# The log tried four connectors, found them equally bad, and drew its conclusion: none of them calls T5's encoder by hand,
# so that must be what is missing. This chapter fills in the whole table with a recipe that works: every connector, by
# every route, with the sentence encoder frozen and trained. It also asks how far apart two runs of *one* architecture
# land, since the log's four differ by a few tenths of a BLEU.

# %% tags=["parameters"]
profile = "quick"  # quick | full
seeds = 0  # at least 4; 0 takes the profile's number
device = "auto"  # auto | cpu | cuda | mps
out = ""  # where the record goes, a .json file
features = ""  # your vectors: a folder with <id>.npy for each clip
manifest = ""  # your sentences: a file of lines id<TAB>sentence

# %% tags=["hide-input"]
import tempfile
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from bridges.connectors.projection import AttentionBridge
from bridges.connectors.resampler import NAMED, ResamplerSettings, VectorResampler
from bridges.hosts.sentence import SentenceEncoder
from bridges.hosts.seq2seq import ROUTES, Route
from bridges.instruments.conditioning import conditioning_gap
from bridges.instruments.translation import floors, score, validate
from bridges.instruments.uncertainty import Estimate, mean_interval
from bridges.tasks import instructions
from bridges.tasks.features import Clips, read_clips, write_clips
from bridges.tasks.sentences import spaced, word_tokenizer
from bridges.training.fit import LOG_GROUPS, FitSettings
from bridges.benches.pretrain import small_host
from bridges.benches.translation import (
    Recipe,
    Sentences,
    Trained,
    train_translators,
)
from IPython.display import Markdown
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from press import HOSTS, ledger
from press.claims import load_claims
from press.data import recorded
from press.explorer import Explorer
from press.figures import COLOURS, draw_intervals, use_style
from press.provenance import begin, refusing
from press.source import show_source
from sacrebleu.metrics import BLEU
from sacrebleu.significance import PairedTest
from scipy.special import stdtrit
from transformers.utils.logging import disable_progress_bar


@dataclass(frozen=True)
class Size:
    """What a profile means in this chapter."""

    seeds: int  # of the arms that decide a claim; half choose, half measure
    others: int  # seeds of the cells that decide none
    unfrozen: int  # of those among them that train the sentence encoder
    host: str  # the size of the pretrained hosts
    steps: int  # training steps of every run
    batch: int
    warmup: int
    held_out: int  # validation sentences
    resampler: ResamplerSettings
    longest: int = 20  # words that a translation may have


SIZES = {
    "quick": Size(
        seeds=8,
        others=3,
        unfrozen=1,
        host="quick",
        steps=32,
        batch=16,
        warmup=10,
        held_out=150,
        resampler=ResamplerSettings(width=64, latents=8, depth=2, heads=4),
    ),
    "full": Size(
        seeds=12,
        others=6,
        unfrozen=3,
        host="full",
        steps=80,
        batch=128,
        warmup=10,
        held_out=300,
        resampler=ResamplerSettings(width=256, latents=32, depth=2, heads=8),
    ),
}
run = begin(
    "architectures",
    SIZES,
    profile=profile,
    seeds=seeds,
    device=device,
    out=out,
    least=4,
)
size = run.size
FEWEST = 100  # clips of a reader


def load_mine() -> Clips | None:
    """The reader's clips, where both parameters are given."""
    if not features and not manifest:
        return None
    if not (features and manifest):
        raise ValueError("features and manifest belong together: give both")
    clips = read_clips(Path(features), Path(manifest))
    if len(clips) < FEWEST:
        raise ValueError(
            f"{manifest} has {len(clips)} clips: give at least {FEWEST}"
        )
    return clips


with refusing():
    mine = load_mine()
torch.set_num_threads(1)
disable_progress_bar()
use_style()

# %% [markdown]
# ## Symptom
#
# The log's comparison: four measured connectors, and a fifth row that is an expectation.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The log's table of architectures. Points were measured by the log, one number each and without an interval; the bar is what it expected of its fix.", "name": "fig-architectures-log"}, "image": {"alt": "Five rows. Four points, for projection, attention bridge, the same unfrozen and perceiver, lie close together near the left end of the BLEU axis. The fifth row, perceiver and encoder, is a long bar far to their right, labelled expected."}}
log = recorded("t5_architectures")["rows"]
measured = [row for row in log if row[4] == "measured"]
figure, axes = plt.subplots(figsize=(7.2, 2.2))
for y, (_, _, low, high, kind) in enumerate(log):
    if kind == "measured":
        axes.plot(low, y, "o", color=COLOURS["orange"])
    else:
        axes.barh(y, high - low, left=low, height=0.4, color=COLOURS["sky"])
        axes.text(high + 0.2, y, kind, va="center", fontsize=9)
axes.set_yticks(range(len(log)), [row[0] for row in log])
axes.invert_yaxis()
axes.set(xlabel="BLEU (%)", xlim=(0, 18))
plt.show()

# %% [markdown]
# ## Claim
#
# The log reads its table as a matter of the encoder call. Before that it had expected much of the perceiver; should the
# fix fail, it would try BART.

# %% tags=["remove-input"]
claims = load_claims()
claims["A3"]

# %% tags=["remove-input"]
claims["A4"]

# %% tags=["remove-input"]
claims["A13"]

# %% [markdown]
# ## Mechanism
#
# What can each connector say about one vector $x$? The projection makes one token, $W_2 W_1 x$. The attention bridge adds
# that token to $K$ learned ones and lets them read each other. The perceiver has $K$ latents ask $x$:

# %% tags=["remove-input"]
show_source(AttentionBridge.forward)

# %% tags=["remove-input"]
show_source(VectorResampler.forward)

# %% [markdown]
# All three are functions of the same $x$, and none can tell T5 more than $x$ holds. In the perceiver there is one key, whose
# weight is 1 whatever is asked ([what 64 latents can say](latents.ipynb)). The explicit call of the encoder is no
# architecture at all: it is what `inputs_embeds` does already ([the encoder bypass](encoder_bypass.ipynb)).
#
# The three differ in size. At the log's sizes all have the same inner width, hence very different numbers of parameters:

# %% tags=["hide-input"]
KINDS = {
    "projection": "projection",
    "bridge": "attention bridge",
    "perceiver": "perceiver",
}
ENCODED, TOKEN = 1024, 512  # widths of the log's sentence vectors and tokens
LOG_TOKENS = {"projection": 1, "bridge": 32, "perceiver": 64}
fit = FitSettings(size.steps, batch=size.batch, warmup=size.warmup)


def parameters(
    kind: str, settings: ResamplerSettings, width: int, token_width: int
) -> int:
    """The number of a connector's parameters, all of them trained."""
    made = Recipe(fit, settings, kind).build(width, token_width)
    return sum(p.numel() for p in made.parameters())


rows = []
for kind, name in KINDS.items():
    settings = replace(NAMED["resampler-log"], latents=LOG_TOKENS[kind])
    count = parameters(kind, settings, ENCODED, TOKEN)
    rows.append(
        f"| {name} | {LOG_TOKENS[kind]} | {LOG_TOKENS[kind] * TOKEN:,} | {count:,} |"
    )
Markdown(
    f"| connector | tokens | numbers for each vector of {ENCODED:,} | parameters |\n|---|--:|--:|--:|\n"
    + "\n".join(rows)
)

# %% [markdown]
# ## Experiment
#
# ### The recipe
#
# Vectors standardised, a rate of $10^{-3}$, LayerNorm on keys and values, latents of 0.02: what translates in
# [the chapter on collapse](collapse.ipynb). The vectors are those of a small sentence encoder, because one column of the table trains
# it; it then learns at a fifth of the common rate, as in the log. Connector and host are trained together.
#
# The table is filled at equal inner width, as the log's was. The perceiver's own claim is judged at equal parameters: the
# two smaller connectors are made wider inside until they have as many.

# %%
words = instructions.tokenizer()
corpus = instructions.corpus(validation=size.held_out)
references = spaced(corpus.validation, words)
hosts = {h: small_host(h, size.host, HOSTS, run.device) for h in ("t5", "bart")}
encoder = SentenceEncoder(
    small_host("bert", size.host, HOSTS, run.device), words.pad_token_id
).eval()


def prepared(texts: tuple[str, ...]) -> Sentences:
    """Sentences with their vectors by the frozen encoder, and the ids that an unfrozen one reads."""
    ids = words(list(texts), padding=True, return_tensors="pt")["input_ids"]
    return Sentences(
        texts,
        encoder.encode(texts, words).to(run.device),
        instructions.labels(texts, words).to(run.device),
        ids.to(run.device),
    )


known, unseen = prepared(corpus.train), prepared(corpus.validation)
width, token_width = known.vectors.shape[1], hosts["t5"].config.hidden_size
floor = floors(
    corpus.train,
    known.vectors.cpu(),
    references,
    unseen.vectors.cpu(),
    candidates=60,
)


def matched(kind: str) -> ResamplerSettings:
    """The inner width at which a connector has the perceiver's number of parameters; they grow linearly with it."""
    target = parameters("perceiver", size.resampler, width, token_width)
    less, more = (
        parameters(kind, replace(size.resampler, width=w), width, token_width)
        for w in (4, 8)
    )
    wide = 4 + round((target - less) * 4 / (more - less))
    return replace(size.resampler, width=wide)


WIDE = {kind: matched(kind) for kind in ("projection", "bridge")}
counts = {
    kind: parameters(kind, size.resampler, width, token_width) for kind in KINDS
}
wide_counts = {k: parameters(k, s, width, token_width) for k, s in WIDE.items()}
for count in wide_counts.values():
    assert abs(count / counts["perceiver"] - 1) < 0.05
Markdown(
    "| connector | tokens | inner width | parameters | inner width at equal parameters | parameters |\n"
    "|---|--:|--:|--:|--:|--:|\n"
    + "\n".join(
        f"| {name} | {1 if kind == 'projection' else size.resampler.latents} | {size.resampler.width} | {counts[kind]:,} | "
        + (
            f"{WIDE[kind].width} | {wide_counts[kind]:,} |"
            if kind in WIDE
            else "the same | |"
        )
        for kind, name in KINDS.items()
    )
    + f"\n\nVectors of {width} numbers, tokens of {token_width}. The hosts, {hosts['t5'].num_parameters():,} parameters in"
    f" T5 and {hosts['bart'].num_parameters():,} in BART, are trained beside each connector. Floors of BLEU: {floor}; the"
    " constant is the best of 60 training sentences."
)


# %% [markdown]
# Half of the seeds choose (which architecture, which rate), the other half measure. Steps, batch and tokens are those of
# [the chapter before](rates.ipynb), set by what a minute and a half allows. Trial runs had other seeds, from 100 on;
# besides, this chapter was run once with 120 validation sentences in the place of 150, to the same verdicts. The criteria
# stood before all of them.


# %%
@dataclass(frozen=True)
class Arm:
    """One cell of the table; with `wide` at the perceiver's number of parameters, with `logged` by the log's recipe."""

    kind: str
    route: Route = "inputs_embeds"
    unfrozen: bool = False
    host: str = "t5"
    wide: bool = False
    logged: bool = False

    def recipe(self, rate: float) -> Recipe:
        """How it is trained at a rate."""
        groups = LOG_GROUPS if self.unfrozen else ()
        settings = WIDE[self.kind] if self.wide else size.resampler
        if self.logged:
            settings = replace(settings, input_norm=False, latent_std=1.0)
        return Recipe(
            replace(fit, lr=rate, groups=groups),
            settings,
            self.kind,
            self.host,
            self.route,
            self.unfrozen,
            logged_scale=self.logged,
        )


@dataclass(frozen=True)
class Reading:
    """A trained translator on the held-out sentences."""

    bleu: float
    distinct: float  # percent of the outputs
    gap: float  # nats per token; NaN where it was not asked for
    said: tuple[str, ...]
    losses: tuple[float, ...]  # of training


RATE, LOG_RATE = 1e-3, 5e-5
GRID = (3e-4, RATE, 3e-3)
half = run.seeds // 2
CHOOSING, MEASURING = range(half), range(half, run.seeds)
FEW = MEASURING[: size.others]
readings: dict[tuple[Arm, float, int], Reading] = {}


def read(found: Trained, gap: bool) -> Reading:
    """Judge one translator."""
    inputs = unseen.inputs(found.recipe)
    said = tuple(
        words.batch_decode(
            found.model.generate(inputs, size.longest), skip_special_tokens=True
        )
    )
    scores = score(said, references)
    return Reading(
        scores.bleu,
        100 * scores.distinct,
        conditioning_gap(lambda x: found.model(x, unseen.labels), inputs)
        if gap
        else float("nan"),
        said,
        tuple(found.losses),
    )


def train(
    arm: Arm, rates: tuple[float, ...], seeds: range, shown: bool = True
) -> None:
    """Train an arm at every rate with every seed, all in one vectorised graph, and judge each.

    What is not shown in the table needs no conditioning gap.
    """
    cells = [(arm, rate, seed) for rate in rates for seed in seeds]
    runs = [(arm.recipe(rate), seed) for _, rate, seed in cells]
    found = train_translators(runs, known, hosts, encoder, describe=arm.kind)
    for cell, one in zip(cells, found, strict=True):
        readings[cell] = read(one, gap=shown and one.seed in MEASURING)


def mean(
    arm: Arm, part: str = "bleu", rate: float = RATE, seeds: range = MEASURING
) -> Estimate:
    """The mean of one reading of an arm over seeds."""
    return mean_interval([getattr(readings[arm, rate, s], part) for s in seeds])


def seeds_of(arm: Arm) -> list[int]:
    """The measuring seeds that an arm was trained with at the recipe's rate."""
    return [s for s in MEASURING if (arm, RATE, s) in readings]


def values_of(arm: Arm, part: str = "bleu") -> list[float]:
    """One reading of an arm at the recipe's rate, for each of its measuring seeds."""
    return [getattr(readings[arm, RATE, s], part) for s in seeds_of(arm)]


# %% [markdown]
# ### The table
#
# The five rows of the log have all seeds. The other cells decide nothing and have fewer. With the encoder called
# explicitly, projection and bridge were trained with one seed each, only to show what comes of it; the three cells that
# would train the sentence encoder as well were left out.

# %%
WITHOUT = {
    "projection": Arm("projection"),
    "attention bridge": Arm("bridge"),
    "attention bridge, unfrozen": Arm("bridge", unfrozen=True),
    "perceiver": Arm("perceiver"),
}
WITH = Arm("perceiver", "encoder_outputs")
for arm in WITHOUT.values():
    if arm.kind == "perceiver":  # chosen with its rate further down
        train(arm, GRID, CHOOSING)
        train(arm, (RATE,), MEASURING)
    else:
        train(arm, (RATE,), range(run.seeds))
train(WITH, (RATE,), MEASURING)  # the same call as the perceiver's, route apart

CELLS = [
    Arm(kind, route, unfrozen)
    for kind in KINDS
    for route in ROUTES
    for unfrozen in (False, True)
    if not (unfrozen and route == "encoder_outputs")
]
WIDER = Arm("projection", wide=True)
for arm in [*CELLS, WIDER]:
    if not seeds_of(arm):
        count = 1 if arm.route == "encoder_outputs" else size.others
        train(arm, (RATE,), FEW[: size.unfrozen if arm.unfrozen else count])

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The table, one panel for each connector at equal inner width: BLEU by route, with the sentence encoder frozen (circles) and trained (squares). Small dots are seeds, large marks their mean with its 95 % interval; crosses are single runs of cells with fewer than three seeds. Dotted: the best constant sentence and the nearest training sentence.", "name": "fig-architectures-table"}, "image": {"alt": "Three panels, projection, attention bridge and perceiver, with a row for each of the routes inputs_embeds, encoder_outputs and bypass. All marks lie far to the right of the line of the best constant sentence. Within a panel the first two routes lie at about the same place."}}
LEAST = 3  # seeds for an interval
figure, panels = plt.subplots(1, 3, figsize=(7.2, 3.3), sharey=True, sharex=True)
for axes, (kind, name) in zip(panels, KINDS.items(), strict=True):
    for arm in (a for a in CELLS if a.kind == kind):
        y = ROUTES.index(arm.route) + (0.2 if arm.unfrozen else -0.2)
        colour = COLOURS["blue" if arm.unfrozen else "orange"]
        values = values_of(arm)
        if len(values) < LEAST:
            axes.plot(values, [y] * len(values), "x", color=colour)
            continue
        axes.plot(values, [y - 0.13] * len(values), ".", color=COLOURS["grey"])
        over = mean_interval(values)
        draw_intervals(
            axes,
            [y],
            [over],
            flat=True,
            fmt="s" if arm.unfrozen else "o",
            color=colour,
            capsize=3,
        )
    for at in (floor.constant, floor.retrieval):
        axes.axvline(at, color="black", linewidth=0.8, linestyle=":")
    axes.set(title=name, xlabel="BLEU", xlim=(0, None))
panels[0].set_yticks(range(len(ROUTES)), ROUTES)
panels[0].invert_yaxis()
figure.legend(
    [
        Line2D([], [], marker="o", linestyle="", color=COLOURS["orange"]),
        Line2D([], [], marker="s", linestyle="", color=COLOURS["blue"]),
    ],
    ["sentence encoder frozen", "trained"],
    loc="outside lower center",
    ncols=2,
)
plt.show()

# %% tags=["hide-input"]
PARTS = {
    "bleu": "BLEU",
    "distinct": "distinct outputs (%)",
    "gap": "conditioning gap (nats per token)",
}


def label(arm: Arm) -> str:
    """A cell in words."""
    inside = f"{KINDS[arm.kind]}{', wide' if arm.wide else ''}"
    return f"{inside} | `{arm.route}` | {'trained' if arm.unfrozen else 'frozen'}"


def row(arm: Arm) -> str:
    """A cell as a row: means over its seeds, or the values where they are few."""
    told = [
        ", ".join(f"{v:.3g}" for v in values)
        if len(values) < LEAST
        else str(mean_interval(values))
        for values in (values_of(arm, part) for part in PARTS)
    ]
    return f"| {label(arm)} | {len(seeds_of(arm))} | {' | '.join(told)} |"


Markdown(
    f"| connector | route | sentence encoder | n | {' | '.join(PARTS.values())} |\n|---|---|---|--:|---|---|---|\n"
    + "\n".join(row(arm) for arm in [*CELLS, WIDER])
    + f"\n\nMean [95 % interval] over n of the measuring seeds, or single runs, {size.steps} steps of {size.batch} sentences, rate {RATE:g}."
    f" Floors of BLEU: {floor}."
)


# %% tags=["hide-input"]
def twins(arm: Arm) -> list[tuple[Reading, Reading]]:
    """An arm's readings beside those by `inputs_embeds`, seed by seed."""
    other = replace(arm, route="inputs_embeds")
    return [
        (readings[arm, RATE, s], readings[other, RATE, s]) for s in seeds_of(arm)
    ]


equal = [a.losses == b.losses and a.said == b.said for a, b in twins(WITH)]
singles = [
    pair
    for kind in KINDS
    if kind != WITH.kind
    for pair in twins(Arm(kind, "encoder_outputs"))
]
apart = max(
    abs(x - y) for a, b in singles for x, y in zip(a.losses, b.losses, strict=True)
)
letters = sum(a.said == b.said for a, b in singles)
Markdown(
    f"For the perceiver, `encoder_outputs` repeats `inputs_embeds` to the last bit of every loss and to the letter of every"
    f" translation in {sum(equal)} of {len(equal)} seeds. The single runs stand beside runs that were trained in larger"
    f" company, which changes the order of sums: their losses differ by at most {apart:.1g} nats, and {letters} of"
    f" {len(singles)} give the same translations to the letter."
)

# %% [markdown]
# ### Equal parameters, and BART
#
# Perceiver against attention bridge at equal parameters, and the perceiver into BART against the perceiver into T5. Each
# arm chooses its own rate from one grid, with the recipe's rate in the middle. At three times the grid's upper end all of
# them were worse in trial runs.

# %%
MATCHED, BART = Arm("bridge", wide=True), Arm("perceiver", host="bart")
PERCEIVER = WITHOUT["perceiver"]
best_rate = {}
for arm in (PERCEIVER, MATCHED, BART):
    if arm is not PERCEIVER:
        train(arm, GRID, CHOOSING, shown=False)
    best_rate[arm] = max(
        GRID, key=lambda rate, a=arm: mean(a, rate=rate, seeds=CHOOSING).mean
    )
    if (arm, best_rate[arm], MEASURING[0]) not in readings:
        train(arm, (best_rate[arm],), MEASURING, shown=False)
LOGGED = Arm("perceiver", logged=True)
train(LOGGED, (LOG_RATE,), MEASURING, shown=False)  # for what follows

# %% tags=["hide-input"] mystnb={"figure": {"caption": "BLEU against the learning rate on the choosing seeds, mean and 95 % interval, for the perceiver into T5, the attention bridge with as many parameters, and the perceiver into BART. Crosses: the chosen rate on the measuring seeds.", "name": "fig-architectures-rates"}, "image": {"alt": "Three curves of BLEU against three learning rates on a logarithmic axis, with intervals, and a cross for each near its highest point. The curves lie close to one another at the two higher rates and are lower at the lowest rate."}}
figure, axes = plt.subplots(figsize=(7.2, 3.2))
TRIED = {
    "perceiver into T5": (PERCEIVER, "orange", "o-", 0.96),
    "attention bridge into T5": (MATCHED, "blue", "s--", 1.0),
    "perceiver into BART": (BART, "green", "^-.", 1.04),
}
for name, (arm, colour, marker, shift) in TRIED.items():
    draw_intervals(
        axes,
        [shift * rate for rate in GRID],
        [mean(arm, rate=rate, seeds=CHOOSING) for rate in GRID],
        fmt=marker,
        color=COLOURS[colour],
        capsize=4,
        label=name,
    )
    draw_intervals(
        axes,
        [1.15 * shift * best_rate[arm]],
        [mean(arm, rate=best_rate[arm])],
        fmt="x",
        color=COLOURS[colour],
        markersize=8,
        markeredgewidth=2,
    )
axes.axhline(floor.constant, color="black", linewidth=0.8, linestyle=":")
axes.set(xscale="log", xlabel="learning rate", ylabel="BLEU", ylim=(0, None))
axes.set_xticks(GRID, [f"{rate:g}" for rate in GRID])
axes.minorticks_off()
axes.legend(loc=(0.5, 0.22))
plt.show()


# %% tags=["hide-input"]
def bleus(arm: Arm, seeds: range = MEASURING) -> list[float]:
    """BLEU of an arm at its chosen rate, seed by seed."""
    return [readings[arm, best_rate[arm], s].bleu for s in seeds]


def differences(after: list[float], before: list[float]) -> Estimate:
    """The mean difference within seeds."""
    return mean_interval([a - b for a, b in zip(after, before, strict=True)])


gain = differences(bleus(PERCEIVER), bleus(MATCHED))
ratio = mean_interval(
    [p / b for p, b in zip(bleus(PERCEIVER), bleus(MATCHED), strict=True)]
)
room = 100 / mean(MATCHED, rate=best_rate[MATCHED]).mean
bart_gain = differences(bleus(BART), bleus(PERCEIVER))
Markdown(
    "| arm | connector's parameters | chosen rate | BLEU on the measuring seeds |\n|---|--:|--:|---|\n"
    + "\n".join(
        f"| {name} | {wide_counts['bridge'] if arm.wide else counts['perceiver']:,} | {best_rate[arm]:g} |"
        f" {mean(arm, rate=best_rate[arm])} |"
        for name, (arm, *_) in TRIED.items()
    )
    + f"\n\nPerceiver minus bridge: {gain} BLEU. As a ratio: {ratio}; the largest that the bridge leaves room for is"
    f" {room:.2g}. BART minus T5: {bart_gain} BLEU. Mean [95 % interval] over {len(MEASURING)} seeds, paired."
)

# %% [markdown]
# ### How far apart do two equal runs land?
#
# The log compares single runs. Two things make two runs of one architecture differ: the seed, and the sentences they are
# tested on. The paired bootstrap (Koehn 2004) accounts for the second alone. It draws test sets from the
# test set and asks how often the difference would have come out otherwise; the two trained models stay as they are.
#
# Here it is asked about perceivers that differ in nothing but the seed: those above, and, since the log's differences lie
# near the floor, others trained by the recipe that [collapses](collapse.ipynb), with the log's rate and scale.

# %% tags=["hide-input"]
METRIC = BLEU(force=True)
TESTED = MEASURING[:4]
PAIRS = list(combinations(TESTED, 2))
EQUALS = {"collapsed": (LOGGED, LOG_RATE), "working": (PERCEIVER, RATE)}


def p_value(first: Reading, second: Reading) -> float:
    """Of sacrebleu's paired bootstrap test."""
    named = [("first", first.said), ("second", second.said)]
    _, found = PairedTest(
        named, {"BLEU": METRIC}, [references], test_type="bs", n_samples=1000
    )()
    return found["BLEU"][1].p_value


rows = []
least, widest, factor = {}, {}, {}
for name, (arm, rate) in EQUALS.items():
    tested = {s: readings[arm, rate, s] for s in TESTED}
    found = [tested[s].bleu for s in TESTED]
    p = [p_value(tested[a], tested[b]) for a, b in PAIRS]
    # Two new runs differ by less than this in 95 of 100 cases.
    least[name] = (
        float(stdtrit(len(TESTED) - 1, 0.975)) * np.sqrt(2) * np.std(found, ddof=1)
    )
    widest[name] = max(found) - min(found)
    factor[name] = max(found) / min(found)
    rows.append(
        f"| {name} | {', '.join(f'{b:.2f}' for b in found)} | {widest[name]:.2f} | {factor[name]:.2f} |"
        f" {least[name]:.2f} | {sum(q < 0.05 for q in p)} of {len(p)} |"
    )
logged = [row[2] for row in measured]
rows.append(
    f"| the log's four architectures | {', '.join(f'{b:.2f}' for b in logged)} | {max(logged) - min(logged):.2f} |"
    f" {max(logged) / min(logged):.2f} | not known | not known |"
)
Markdown(
    "| perceivers that differ in the seed alone | BLEU | largest difference | highest over lowest | two single runs must"
    " differ by | pairs that the paired bootstrap tells apart (p < 0.05) |\n|---|---|--:|--:|--:|--:|\n"
    + "\n".join(rows)
    + f"\n\nThe collapsed ones give {mean(LOGGED, 'distinct', LOG_RATE, TESTED).mean:.0f} % distinct outputs, the working ones"
    f" {mean(PERCEIVER, 'distinct', seeds=TESTED).mean:.0f} %. The last but one column is $t_{{0.975}} \\sqrt 2\\, s$ with the standard deviation $s$ over {len(TESTED)} seeds."
    f" The bootstrap is sacrebleu's, 1,000 samples of {len(references)} sentences."
)

# %% [markdown]
# (verdict-a3)=
# (verdict-a4)=
# (verdict-a13)=
# ## Verdict

# %% tags=["hide-input"]
champion = max(WITHOUT, key=lambda n: mean(WITHOUT[n], seeds=CHOOSING).mean)
best = WITHOUT[champion]


def at_recipe(arm: Arm) -> list[float]:
    """BLEU at the recipe's rate on the measuring seeds."""
    return [readings[arm, RATE, s].bleu for s in MEASURING]


over_floor = mean_interval([b / floor.constant for b in at_recipe(best)])
explicit_gain = differences(at_recipe(WITH), at_recipe(best))
run.note(
    ledger.judge(
        "A3",
        {
            "best_without_over_floor": over_floor,
            "gain_of_explicit_encoder": explicit_gain,
        },
    )
)

# %% tags=["hide-input"]
run.note(ledger.judge("A4", {"bleu_gain": gain, "bleu_ratio": ratio}))

# %% tags=["hide-input"]
run.note(ledger.judge("A13", bart_gain))

# %% tags=["nbval-check-output", "keep_output", "remove-input"]
print(run.verdict_lines())

# %% [markdown]
# ## What holds instead

# %% tags=["remove-input"]
means = {name: mean(arm).mean for name, arm in WITHOUT.items()}
lowest, highest = min(means, key=means.get), max(means, key=means.get)
few_words = [
    arm
    for arm in CELLS
    if sum(values_of(arm, "distinct")) < 50 * len(seeds_of(arm))
]
Markdown(
    f"Without the explicit call, the four architectures reach {means[lowest]:.1f} ({lowest}) to {means[highest]:.1f}"
    f" ({highest}) BLEU, {means[lowest] / floor.constant:.1f} to {means[highest] / floor.constant:.1f} times the best"
    " constant sentence. With it the perceiver gains"
    f" {differences(at_recipe(WITH), at_recipe(PERCEIVER)).mean:.2g} BLEU. By the log's line for mode collapse, fewer than"
    f" half of the outputs distinct, {len(few_words)} of {len(CELLS)} cells collapse"
    + (": " if few_words else "")
    + "; ".join(
        f"{label(arm).replace(' | ', ', ')}, at {np.mean(values_of(arm)):.1f} BLEU"
        for arm in few_words
    )
    + "."
)

# %% [markdown]
# No cell stays near the best constant sentence, and none is lifted by the explicit call. None stays there even where T5's
# encoder is really left out: by `bypass` the decoder reads the connector's tokens as they are, and translates.
#
# How much does each change make, then? All of them in one picture, against the change of recipe from the chapter on
# [what collapses](collapse.ipynb):


# %% tags=["hide-input"] mystnb={"figure": {"caption": "What each change gains in BLEU: mean and 95 % interval of the difference within seeds. Orange: the recipe, on one and the same perceiver. Blue: the connector. Green: the route past T5's encoder. Purple: the sentence encoder trained, and the other host.", "name": "fig-architectures-effects"}, "image": {"alt": "Horizontal plot of gains in BLEU, one row for each change, with a line at zero. The change from the collapsing recipe to the working one lies far to the right of all others, the higher rate next. Changes of the kind of connector, of route and host lie within a few points of zero, and the two wider connectors further to the right."}}
def gained(
    after: Arm, before: Arm, seeds: range, rate: float = RATE, was: float = RATE
) -> Estimate:
    """What one arm has over another on the same seeds."""
    return differences(
        [readings[after, rate, s].bleu for s in seeds],
        [readings[before, was, s].bleu for s in seeds],
    )


PROJECTION, BRIDGE = WITHOUT["projection"], WITHOUT["attention bridge"]
CHANGES = {
    "recipe that collapses → that works": (
        gained(PERCEIVER, LOGGED, MEASURING, was=LOG_RATE),
        "orange",
    ),
    f"rate {GRID[0]:g} → {RATE:g}": (
        gained(PERCEIVER, PERCEIVER, CHOOSING, was=GRID[0]),
        "orange",
    ),
    "projection → perceiver": (gained(PERCEIVER, PROJECTION, MEASURING), "blue"),
    "bridge → perceiver": (gained(PERCEIVER, BRIDGE, MEASURING), "blue"),
    "projection → wider projection": (gained(WIDER, PROJECTION, FEW), "blue"),
    "bridge → wider bridge": (gained(MATCHED, BRIDGE, CHOOSING), "blue"),
} | {
    f"{KINDS[kind]}: T5's encoder left out": (
        gained(Arm(kind, "bypass"), Arm(kind), FEW),
        "green",
    )
    for kind in KINDS
}
CHANGES |= {
    "bridge: sentence encoder trained": (
        gained(WITHOUT["attention bridge, unfrozen"], BRIDGE, MEASURING),
        "purple",
    ),
    "T5 → BART, each at its rate": (bart_gain, "purple"),
}
figure, axes = plt.subplots(figsize=(7.2, 3.8))
for y, (change, colour) in enumerate(CHANGES.values()):
    draw_intervals(
        axes,
        [y],
        [change],
        flat=True,
        fmt="o",
        color=COLOURS[colour],
        capsize=3,
    )
    axes.text(
        1.01,
        y,
        f"{change.mean:+.1f}".replace("-", "−"),
        transform=axes.get_yaxis_transform(),
        va="center",
        fontsize=9,
    )
axes.axvline(0, color="black", linewidth=0.8)
axes.set_yticks(range(len(CHANGES)), list(CHANGES))
axes.invert_yaxis()
axes.set_xlabel("gain in BLEU")
plt.show()

# %% tags=["hide-input"]
Markdown(
    "| change | gain in BLEU | n |\n|---|---|--:|\n"
    + "\n".join(f"| {name} | {c} | {c.n} |" for name, (c, _) in CHANGES.items())
)

# %% [markdown]
# Scale and rate make the difference between a translator and a collapse; the connector moves a working translator by
# points. And how wide a connector is inside counts for more than its kind:

# %% tags=["remove-input"]
Markdown(
    "Perceiver minus projection, at equal inner width:"
    f" {CHANGES['projection → perceiver'][0]} BLEU; at equal parameters, {gained(PERCEIVER, WIDER, FEW)}, both at the"
    f" recipe's rate. Perceiver minus bridge, at equal inner width: {CHANGES['bridge → perceiver'][0]}; at equal"
    f" parameters, each at its own rate, {gain}."
)

# %% [markdown]
# Two linear maps in a row are one linear map, and beyond the width of its ends more space between them adds nothing that it
# could say. The wider projection says the same things; it learns them in fewer steps. So what the perceiver gains at equal
# inner width, its parameters buy elsewhere too. In trial runs six times as long, at twice the batch and with two other
# seeds, the three connectors of equal inner width ended level, and the two wider ones well ahead.
#
# None of this is a law about perceivers. The input here is one vector. A resampler is made for inputs of many, and has
# something to choose there, which is the subject of [Part II](stuck_loss.ipynb).

# %% tags=["remove-input"]
logs = max(logged) / min(logged)
Markdown(
    f"The log's four numbers lie within {max(logged) - min(logged):.2f} BLEU of each other. Perceivers that collapse and"
    f" differ in nothing but the seed lie up to {widest['collapsed']:.2f} apart; two single runs of that kind would have to"
    f" differ by {least['collapsed']:.1f} to mean anything, and two of the working kind by {least['working']:.1f}. BLEU"
    " does not carry over from corpus to corpus, so the factor between highest and lowest is the fairer comparison: it is"
    f" {factor['collapsed']:.2f} among those equals and {logs:.2f} in the log. The log's order of architectures is"
    + (" not known." if logs < factor["collapsed"] else " more than this.")
)

# %% [markdown]
# The bootstrap over sentences does not decide such a question. It may call two equal runs different, and rightly so, since
# they are two different models. Only more runs say whether two *architectures* differ.
#
# ## Tweak it
#
# The paired bootstrap on perceivers that differ in the seed alone, for test sets of different sizes. Each bar is one pair.
# With more sentences the bars shrink, but to the difference of two runs, not to zero: a larger test set makes the
# bootstrap surer of something that is no property of the architecture. In a live kernel, look at the working ones.


# %% tags=["hide-input"]
RESAMPLES = 300


def additive(said: tuple[str, ...]) -> np.ndarray:
    """What BLEU sums over sentences (sentences, 10): n-grams that match, n-grams there are, words said, words wanted."""
    each = [
        METRIC.corpus_score([s], [[r]])
        for s, r in zip(said, references, strict=True)
    ]
    return np.array([[*e.counts, *e.totals, e.sys_len, e.ref_len] for e in each])


def bleu_of(sums: np.ndarray) -> float:
    """BLEU from such sums, smoothed as elsewhere."""
    counts, totals = sums[:4].tolist(), sums[4:8].tolist()
    said, wanted = sums[8:].tolist()
    return METRIC.compute_bleu(counts, totals, said, wanted, "exp").score


SUMS = {
    name: {s: additive(readings[arm, rate, s].said) for s in TESTED}
    for name, (arm, rate) in EQUALS.items()
}


def bars(sentences: int, perceivers: str) -> list[tuple[float, float]]:
    """The 95 % bootstrap interval of each pair's difference, on test sets of a size."""
    draw = np.random.default_rng(0)
    there = len(references)
    often = draw.multinomial(sentences, [1 / there] * there, size=RESAMPLES)
    drawn = {
        s: np.array([bleu_of(row) for row in often @ sums])
        for s, sums in SUMS[perceivers].items()
    }
    ends = [np.quantile(drawn[b] - drawn[a], (0.025, 0.975)) for a, b in PAIRS]
    return [(float(low), float(high)) for low, high in ends]


TEST_SETS = (20, 50, 100, 200, 500, 1000)
REACH = {
    name: 1.05 * max(abs(end) for bar in bars(TEST_SETS[0], name) for end in bar)
    for name in EQUALS
}


def frame(sentences: int, perceivers: str) -> tuple[Figure, str]:
    """All pairs at one size of the test set."""
    found = bars(sentences, perceivers)
    apart = sum(low > 0 or high < 0 for low, high in found)
    figure = Figure(figsize=(7.2, 2.8))
    axes = figure.subplots()
    for y, (low, high) in enumerate(found):
        sure = low > 0 or high < 0
        axes.barh(
            y,
            high - low,
            left=low,
            height=0.5,
            color=COLOURS["orange" if sure else "sky"],
        )
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(PAIRS)), [f"seeds {a} and {b}" for a, b in PAIRS])
    axes.invert_yaxis()
    axes.set(
        xlim=(-REACH[perceivers], REACH[perceivers]),
        xlabel="difference in BLEU, 95 % bootstrap interval",
        title=f"{sentences:,} sentences: {apart} of {len(PAIRS)} intervals leave out zero",
    )
    return figure, (
        f"Bars of the bootstrap interval of the BLEU difference for {len(PAIRS)} pairs of {perceivers} perceivers that"
        f" differ in the seed alone, on test sets of {sentences:,} sentences: {apart} leave out zero."
    )


Explorer(
    "sentences in the test set",
    {f"{n:,}": n for n in TEST_SETS},
    frame,
    choices={"perceivers": list(EQUALS)},
)

# %% [markdown]
# ## Try it on yours
#
# Your clips come as a folder with `<id>.npy` for each, one vector, and a manifest of lines `id<TAB>sentence`:
# `-p features features/train -p manifest manifests/train.tsv`, a hundred clips at least. A tokenizer is made of your
# sentences and a small T5 is pretrained on those that are not held out, which takes a minute the first time. Without them,
# some of the book's own sentences, which T5 has read already, are written to such a folder and read back, so that this is
# the loader that you would use.

# %%
clips = mine
if clips is None:
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder) / "features", Path(folder) / "train.tsv"
        ids = tuple(f"clip{i:04d}" for i in range(600))
        own = Clips(ids, known.vectors[:600].cpu(), corpus.train[:600])
        write_clips(*where, own)
        clips = read_clips(*where)
order = np.random.default_rng(0).permutation(len(clips)).tolist()
held_out = min(size.held_out, len(clips) // 5)
rows_of = {"seen": order[held_out:], "unseen": order[:held_out]}
yours = {k: tuple(clips.sentences[i] for i in rows) for k, rows in rows_of.items()}
their_words = word_tokenizer(yours["seen"]) if mine else words
corpus_read = (yours["seen"], their_words) if mine else None
their_host = small_host("t5", size.host, HOSTS, run.device, corpus_read)
parts = {
    k: Sentences(
        yours[k],
        clips.vectors[rows].to(run.device),
        instructions.labels(yours[k], their_words).to(run.device),
    )
    for k, rows in rows_of.items()
}
print(
    f"{len(clips):,} clips of {clips.vectors.shape[1]} numbers, {held_out} held out"
)

# %% [markdown]
# The connector is the best of the table, by the seeds that all of its rows have, and the recipe is the table's. The report
# is the one that the [next chapter](judging.ipynb) takes apart; its bands are the log's and hold on the log's corpus.
# With `-p profile full` everything trains longer, as real text needs.

# %%
RIVALS = [
    arm
    for arm in [*CELLS, WIDER]
    if not arm.unfrozen and arm.route != "encoder_outputs"
]
winner = max(RIVALS, key=lambda arm: mean(arm, seeds=FEW).mean)
(translator,) = train_translators(
    [(winner.recipe(RATE), 0)],
    parts["seen"],
    {"t5": their_host},
    describe="your clips",
)
print(label(winner).replace(" | ", ", "))

# %%
correct = spaced(yours["unseen"], their_words)
validate(
    lambda x: their_words.batch_decode(
        translator.model.generate(x), skip_special_tokens=True
    ),
    lambda x: translator.model(x, parts["unseen"].labels),
    parts["unseen"].vectors,
    correct,
    floors(
        spaced(yours["seen"], their_words),
        parts["seen"].vectors.cpu(),
        correct,
        parts["unseen"].vectors.cpu(),
    ),
)

# %% [markdown]
# ## Provenance

# %% tags=["remove-input"]
run.measure(
    **{f"bleu: {name}": mean(arm) for name, arm in WITHOUT.items()},
    **{f"gain: {name}": change for name, (change, _) in CHANGES.items()},
    floor_constant=floor.constant,
    floor_random=floor.random,
    floor_retrieval=floor.retrieval,
    least_difference_collapsed=least["collapsed"],
    least_difference_working=least["working"],
)
if mine:
    run.given["features"] = Path(features).name
    run.given["manifest"] = Path(manifest).name
run.close()
