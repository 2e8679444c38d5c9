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
from itertools import combinations, pairwise
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
from bridges.training.pretrain import small_host
from bridges.training.translators import (
    Recipe,
    Sentences,
    Trained,
    train_translators,
)
from IPython.display import Markdown
from matplotlib.figure import Figure
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
    others: int  # seeds of the arms that decide none
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
        host="quick",
        steps=32,
        batch=16,
        warmup=10,
        held_out=150,
        resampler=ResamplerSettings(width=64, latents=8, depth=2, heads=4),
    ),
    "full": Size(
        seeds=12,
        others=4,
        host="full",
        steps=80,
        batch=128,
        warmup=10,
        held_out=300,
        resampler=ResamplerSettings(width=256, latents=32, depth=2, heads=8),
    ),
}
run = begin(
    "06_architectures",
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
        raise ValueError(f"{manifest} has {len(clips)} clips: give at least {FEWEST}")
    return clips


with refusing():
    mine = load_mine()
torch.set_num_threads(1)
disable_progress_bar()
use_style()

# %% [markdown]
# ## Symptom
#
# The log's comparison: four measured connectors, and a fifth row that was never run.

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
# The log reads its table as a matter of the encoder call, had promised itself much of the perceiver, and would try BART
# next.

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
# All three are functions of the same $x$, and none of them adds to what it says. In the perceiver there is one key, whose
# weight is 1 whatever is asked ([what 64 latents can say](03_latents.ipynb)). The explicit call of the encoder is no
# architecture at all: it is what `inputs_embeds` does already ([the encoder bypass](02_encoder_bypass.ipynb)).
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
# [chapter 4](04_collapse.ipynb). The vectors are those of a small sentence encoder, because one column of the table trains
# it; it then learns at a fifth of the common rate, as in the log. Connector and host are trained together.
#
# Each comparison is made twice over: at equal inner width, as in the log, and at equal parameters, where the two smaller
# connectors are made wider inside until they have as many as the perceiver.

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
    candidates=100,
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
counts = {kind: parameters(kind, size.resampler, width, token_width) for kind in KINDS}
wide_counts = {k: parameters(k, s, width, token_width) for k, s in WIDE.items()}
for count in wide_counts.values():
    assert abs(count / counts["perceiver"] - 1) < 0.05
Markdown(
    f"| connector | tokens | inner width | parameters | inner width at equal parameters | parameters |\n"
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
    " constant is the best of 100 training sentences."
)


# %% [markdown]
# Half of the seeds choose (which architecture, which rate), the other half measure. Steps, batch and tokens are those of
# [the chapter before](05_rates.ipynb), set by what a minute and a half allows; trial runs for this chapter had other
# seeds, from 100 on. The criteria stood before them.


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
    gap: float  # nats per token
    said: tuple[str, ...]
    losses: tuple[float, ...]  # of training


RATE, LOG_RATE = 1e-3, 5e-5
GRID = (3e-4, RATE, 3e-3)
half = run.seeds // 2
CHOOSING, MEASURING = range(half), range(half, run.seeds)
FEW = MEASURING[: size.others]
readings: dict[tuple[Arm, float, int], Reading] = {}


def read(found: Trained) -> Reading:
    """Judge one translator."""
    inputs = unseen.inputs(found.recipe)
    said = tuple(
        words.batch_decode(
            found.model.generate(inputs, size.longest), skip_special_tokens=True
        )
    )
    scores = score(said, references)
    gap = conditioning_gap(lambda x: found.model(x, unseen.labels), inputs)
    return Reading(
        scores.bleu, 100 * scores.distinct, gap, said, tuple(found.losses)
    )


def train(arm: Arm, rates: tuple[float, ...], seeds: range) -> None:
    """Train an arm at every rate with every seed, all in one vectorised graph, and judge each."""
    cells = [(arm, rate, seed) for rate in rates for seed in seeds]
    runs = [(arm.recipe(rate), seed) for _, rate, seed in cells]
    found = train_translators(runs, known, hosts, encoder, describe=arm.kind)
    readings.update(zip(cells, map(read, found), strict=True))


def mean(
    arm: Arm, part: str = "bleu", rate: float = RATE, seeds: range = MEASURING
) -> Estimate:
    """The mean of one reading of an arm over seeds."""
    return mean_interval([getattr(readings[arm, rate, s], part) for s in seeds])


def seeds_of(arm: Arm) -> list[int]:
    """The measuring seeds that an arm was trained with at the recipe's rate."""
    return [s for s in MEASURING if (arm, RATE, s) in readings]


# %% [markdown]
# ### The table
#
# The five rows of the log have all seeds. The other cells, and the two connectors made wider, have fewer. By
# `encoder_outputs` the other connectors were trained with one seed each, only to show what comes of it.

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
]
for arm in CELLS:
    if not seeds_of(arm):
        train(arm, (RATE,), FEW if arm.route != "encoder_outputs" else FEW[:1])
WIDER = Arm("projection", wide=True)
train(WIDER, (RATE,), FEW)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The table, one panel for each connector at equal inner width: BLEU by route, with the sentence encoder frozen (circles) and trained (squares). Small dots are seeds, large marks their mean with its 95 % interval; a cross is a single run. Dotted: the best constant sentence and the nearest training sentence.", "name": "fig-architectures-table"}, "image": {"alt": "Three panels, projection, attention bridge and perceiver, with a row for each of the routes inputs_embeds, encoder_outputs and bypass. All marks lie far to the right of the line of the best constant sentence. Within a panel the crosses and marks of the first two routes coincide."}}
figure, panels = plt.subplots(1, 3, figsize=(7.2, 3.3), sharey=True, sharex=True)
for axes, (kind, name) in zip(panels, KINDS.items(), strict=True):
    for arm in (a for a in CELLS if a.kind == kind):
        y = ROUTES.index(arm.route) + (0.2 if arm.unfrozen else -0.2)
        colour = COLOURS["blue" if arm.unfrozen else "orange"]
        values = [readings[arm, RATE, s].bleu for s in seeds_of(arm)]
        if len(values) == 1:
            axes.plot(values, [y], "x", color=colour)
            continue
        axes.plot(values, [y - 0.13] * len(values), ".", color=COLOURS["grey"])
        over = mean_interval(values)
        axes.errorbar(
            over.mean,
            y,
            xerr=[[over.mean - over.low], [over.high - over.mean]],
            fmt="s" if arm.unfrozen else "o",
            color=colour,
            capsize=3,
            label="trained" if arm.unfrozen else "frozen",
        )
    for at in (floor.constant, floor.retrieval):
        axes.axvline(at, color="black", linewidth=0.8, linestyle=":")
    axes.set(title=name, xlabel="BLEU", xlim=(0, None))
panels[0].set_yticks(range(len(ROUTES)), ROUTES)
panels[0].invert_yaxis()
handles, labels = panels[0].get_legend_handles_labels()
figure.legend(
    handles[:2],
    labels[:2],
    title="sentence encoder",
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
    """A cell as a row: means over its seeds, or the one value."""
    chosen = seeds_of(arm)
    if len(chosen) == 1:
        told = [f"{getattr(readings[arm, RATE, chosen[0]], p):.3g}" for p in PARTS]
    else:
        told = [str(mean(arm, p, seeds=chosen)) for p in PARTS]
    return f"| {label(arm)} | {len(chosen)} | {' | '.join(told)} |"


Markdown(
    f"| connector | route | sentence encoder | n | {' | '.join(PARTS.values())} |\n|---|---|---|--:|---|---|---|\n"
    + "\n".join(row(arm) for arm in [*CELLS, WIDER])
    + f"\n\nMean [95 % interval] over n of the measuring seeds, {size.steps} steps of {size.batch} sentences, rate {RATE:g}."
    f" Floors of BLEU: {floor}."
)


# %% tags=["hide-input"]
def same(arm: Arm, other: Arm) -> list[int]:
    """The seeds in which two arms have every training loss equal to the last bit, and every translation."""
    chosen = [s for s in seeds_of(other) if s in seeds_of(arm)]
    pairs = [(readings[arm, RATE, s], readings[other, RATE, s]) for s in chosen]
    return [a.losses == b.losses and a.said == b.said for a, b in pairs]


equal = same(WITHOUT["perceiver"], WITH)
singles = [
    (
        readings[arm, RATE, FEW[0]],
        readings[replace(arm, route="inputs_embeds"), RATE, FEW[0]],
    )
    for arm in CELLS
    if arm.route == "encoder_outputs" and arm != WITH
]
apart = max(
    abs(x - y)
    for a, b in singles
    for x, y in zip(a.losses, b.losses, strict=True)
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
# arm chooses its own rate from one grid.

# %%
MATCHED, BART = Arm("bridge", wide=True), Arm("perceiver", host="bart")
PERCEIVER = WITHOUT["perceiver"]
best_rate = {}
for arm in (PERCEIVER, MATCHED, BART):
    if arm is not PERCEIVER:
        train(arm, GRID, CHOOSING)
    best_rate[arm] = max(
        GRID, key=lambda rate, a=arm: mean(a, rate=rate, seeds=CHOOSING).mean
    )
    if (arm, best_rate[arm], MEASURING[0]) not in readings:
        train(arm, (best_rate[arm],), MEASURING)
LOGGED = Arm("perceiver", logged=True)
train(LOGGED, (LOG_RATE,), MEASURING)  # for what follows

# %% tags=["hide-input"] mystnb={"figure": {"caption": "BLEU against the learning rate on the choosing seeds, mean and 95 % interval, for the perceiver into T5, the attention bridge with as many parameters, and the perceiver into BART. Crosses: the chosen rate on the measuring seeds.", "name": "fig-architectures-rates"}, "image": {"alt": "Three curves of BLEU against three learning rates on a logarithmic axis, with intervals, and a cross for each near its highest point. The curves lie close to one another at the two higher rates and are lower at the lowest rate."}}
figure, axes = plt.subplots(figsize=(7.2, 3.2))
TRIED = {
    "perceiver into T5": (PERCEIVER, "orange", "o-", 0.95),
    "attention bridge into T5": (MATCHED, "blue", "s--", 1.0),
    "perceiver into BART": (BART, "green", "^-.", 1.05),
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
        [1.1 * shift * best_rate[arm]],
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
axes.legend(loc="lower right")
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
# tested on. The paired bootstrap {cite}`koehn2004statistical` accounts for the second alone. It draws test sets from the
# test set and asks how often the difference would have come out otherwise; the two trained models stay as they are.
#
# Here it is asked about perceivers that differ in nothing but the seed: those above, and, since the log's differences lie
# near the floor, others trained by the recipe that [collapses](04_collapse.ipynb), with the log's rate and scale.

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
least, widest = {}, {}
for name, (arm, rate) in EQUALS.items():
    tested = {s: readings[arm, rate, s] for s in TESTED}
    found = [tested[s].bleu for s in TESTED]
    p = [p_value(tested[a], tested[b]) for a, b in PAIRS]
    # Two new runs differ by less than this in 95 of 100 cases.
    least[name] = (
        float(stdtrit(len(TESTED) - 1, 0.975)) * np.sqrt(2) * np.std(found, ddof=1)
    )
    widest[name] = max(found) - min(found)
    rows.append(
        f"| {name} | {', '.join(f'{b:.2f}' for b in found)} | {widest[name]:.2f} | {max(found) / min(found):.2f} |"
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
    + f"\n\nThe last but one column is $t_{{0.975}} \\sqrt 2\\, s$ with the standard deviation $s$ over {len(TESTED)} seeds."
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
print(champion)

# %% [markdown]
# ## Provenance

# %% tags=["remove-input"]
run.close()
