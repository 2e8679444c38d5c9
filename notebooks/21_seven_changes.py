# %% [markdown]
# # Seven changes
#
# The log ends with a list of what to try next. Five of its items are about the optimiser, the size of the translator and
# what it is trained on, and they hold seven changes, none of which the log ran. Each is easily tried, which is the danger:
# the best of seven looks good even where none of them does anything. This chapter tries all seven in two settings,
# chooses on one half of the seeds, and measures on the other.

# %% tags=["parameters"]
profile = "quick"  # quick | full
seeds = 0  # at least 4, half of them to choose with; 0 takes the profile's number
device = "auto"  # auto | cpu | cuda | mps
out = ""  # where the record goes, a .json file

# %% tags=["hide-input"]
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import matplotlib.pyplot as plt
import torch
from bridges.connectors.translator import Bridge, TranslatorSettings
from bridges.hosts.causal import answer_loss
from bridges.instruments.gradients import gradient_flow
from bridges.instruments.uncertainty import Estimate, mean_interval
from bridges.benches.answering import (
    BridgeRecipe,
    Trained,
    train_bridges,
    untrained,
)
from bridges.benches.small_pairs import HOST_SEEDS, bench
from bridges.training.ensemble import fit_ensemble
from bridges.benches.exams import Bench, bridge_logits
from bridges.training.fit import (
    GATE_GROUP,
    FitSettings,
    Group,
    History,
)
from IPython.display import Markdown
from matplotlib.figure import Figure
from press import HOSTS, ledger
from press.claims import load_claims
from press.data import recorded, reference
from press.explorer import Explorer
from press.figures import COLOURS, draw_intervals, use_style
from press.provenance import begin
from press.source import show_source
from transformers.utils.logging import disable_progress_bar


@dataclass(frozen=True)
class Size:
    """What a profile means in this chapter."""

    seeds: int
    host: str  # the size of the pretrained hosts
    batch: int
    lr: float
    shifted: int  # steps of the setting that falls
    asked: int  # questions of a look
    few: int  # the same where accuracy is near none or all, and for the plateau
    apart: bool  # whether each half of the seeds has a pair of hosts of its own
    translator: TranslatorSettings
    depth: int  # the translator's layers in the ordinary recipe
    steps: int = 160  # the criterion's own numbers, in every profile
    horizon: int = 240
    warmup: int = 20


SIZES = {
    "quick": Size(
        seeds=6,
        host="quick",
        batch=8,
        lr=5e-3,
        shifted=32,
        asked=60,
        few=40,
        apart=True,
        translator=TranslatorSettings(bottleneck=64, tokens=8, depth=2, heads=8),
        depth=1,
    ),
    "full": Size(
        seeds=20,
        host="full",
        batch=64,
        lr=3e-3,
        shifted=96,
        asked=200,
        few=100,
        apart=False,
        translator=TranslatorSettings(bottleneck=128, tokens=8, depth=4, heads=8),
        depth=4,
    ),
}
run = begin(
    "seven_changes",
    SIZES,
    profile=profile,
    seeds=seeds,
    device=device,
    out=out,
    least=4,
)
size = run.size
disable_progress_bar()
torch.set_num_threads(1)
use_style()

# %% [markdown]
# ## Symptom
#
# After its fixes the log trains four configurations. All of them end below their peaks:

# %% tags=["remove-input"]
sweep = recorded("translation_sweep")["after the fixes"]
Markdown(
    "| configuration | peak (%) | last look (%) | drop (points) |\n|---|--:|--:|--:|\n"
    + "\n".join(
        f"| {name} | {max(seen)} | {seen[-1]} | {max(seen) - seen[-1]:g} |"
        for name, seen in sweep.items()
    )
)

# %% [markdown]
# What it would change next, in its own order of priority:

# %% tags=["remove-input"]
ahead = recorded("next_steps")["steps"]
PRIORITIES = ("high", "medium", "low")
Markdown(
    "| "
    + " | ".join(ahead["columns"])
    + " |\n|---|---|---|---|---|\n"
    + "\n".join(
        "| " + " | ".join(row) + " |"
        for row in sorted(ahead["rows"], key=lambda r: PRIORITIES.index(r[3]))
    )
)

# %% [markdown]
# ## Claim

# %% tags=["remove-input"]
claims = load_claims()
claims["C12"]

# %% [markdown]
# ## Mechanism
#
# The first three changes act on the optimiser, the next three on the translator's shape, the last on what is asked of it.
#
# *Clipping* scales the gradient $g$ of a step down to norm $c$ where it is longer. AdamW {cite}`loshchilov2019adamw`
# then divides a running mean of the gradients by a running root mean square of them:
#
# $$
# g_t \leftarrow g_t \min\Bigl(1, \frac{c}{\lVert g_t \rVert}\Bigr), \qquad
# \Delta\theta_t = -\eta_t \frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon} .
# $$ (eq-seven-clip)
#
# A factor that all gradients share drops out of the fraction. So if every step's norm lies above 1, clipping at 0.3
# gives the same training as clipping at 1, but for $\epsilon$; if every norm lies below 0.3, neither does anything. The
# lower limit can only make a difference where norms lie between the two, or some above and some below. Nor does it
# bound the length of a step, which is $\eta_t$'s.

# %% tags=["remove-input"]
show_source(fit_ensemble, start="_clip(gradients, clips)", lines=3)

# %% [markdown]
# The last lines above are the *plateau*: the rate is halved after a number of looks without a better accuracy, and an
# optimiser that looks at accuracy must be given an exam of its own to look at. *Cosine and linear decay* are values of
# one function of the step:

# %% tags=["remove-input"]
show_source(FitSettings.rate)

# %% [markdown]
# *Staged answers* mask the loss behind the first tokens of each solution and let in more with every step. The three changes
# of shape are other settings of the same translator.
#
# *The best of seven.* Let $\bar d_j$ be the mean paired difference that change $j$ makes over the choosing seeds, and let
# $\delta_j$ be what it would make over all seeds there could be. Even if every $\delta_j$ is zero,
#
# $$
# \mathbb{E}\Bigl[\max_j \bar d_j\Bigr] > 0 = \max_j \delta_j ,
# $$ (eq-seven-best)
#
# and the more so, the wider the differences scatter between seeds. On seeds that had no part in the choice the chosen
# change has no such advantage: what it loses there is the regression to the mean.
#
# ## Experiment
#
# Every change is one line on the recipe that it is compared with. Where the log gives two values, the farther one is
# taken: clipping at 0.3, half of the bottleneck (with half of the heads, so that a head keeps its width). Its 40 tokens
# and 5 layers are a modest step up from its efficient translator of 32 tokens and 4 layers, for which this book's own
# translator stands: a quarter more of both, rounded up. Answers are staged over the first half of the steps.

# %%
CLIP, COSINE, PLATEAU = "clipping at 0.3", "cosine decay", "halved on a plateau"
FEED, NARROW = "feed-forward × 2", "half the bottleneck"
BETWEEN, STAGED = "a quarter more tokens, layers", "staged answers"
BASE = "baseline"


def seven(base: BridgeRecipe) -> dict[str, BridgeRecipe]:
    """A recipe and its seven changes, one each."""
    fit, shape = base.fit, base.translator
    half = replace(shape, bottleneck=shape.bottleneck // 2, heads=shape.heads // 2)
    more = replace(
        shape,
        tokens=math.ceil(1.25 * shape.tokens),
        depth=math.ceil(1.25 * shape.depth),
    )
    return {
        BASE: base,
        CLIP: replace(base, fit=replace(fit, clip=0.3)),
        COSINE: replace(base, fit=replace(fit, schedule="cosine")),
        PLATEAU: replace(base, fit=replace(fit, schedule="plateau")),
        FEED: replace(base, translator=replace(shape, feed_forward=2)),
        NARROW: replace(base, translator=half),
        BETWEEN: replace(base, translator=more),
        STAGED: replace(base, staged=fit.steps // 2),
    }


CHANGES = (CLIP, COSINE, PLATEAU, FEED, NARROW, BETWEEN, STAGED)

# %% [markdown]
# The first setting is the one that falls. Of all that [peak and collapse](peak_and_collapse.ipynb) tried, *labels
# shifted twice* has the largest mean drop, the highest accuracy at any look minus the last. The target reads the question,
# so that it answers well before any training, and the training loop asks each position for the token after the next. The
# rate is constant there after its warm-up, which takes 20 of the quick profile's 32 steps; cosine decay means a decay
# where there was none. The second is the book's ordinary recipe
# with the question hidden, the log's linear decay over 240 steps, stopped after 160: the accuracy is read while it still
# rises, since final accuracies
# saturate. In the quick profile batches are of 8 problems, half of what the earlier chapters take, which pays for the
# number of runs; the three choosing seeds share one pair of hosts and the three measuring seeds the other, so that
# choice and measurement have neither seeds nor hosts in common; and the ordinary recipe's translator has one layer in
# place of two, so that a quarter more of it, rounded up, is two (in the falling setting two become three).


# %%
@dataclass(frozen=True)
class Setting:
    """A baseline with its looks, and what is read off a run."""

    name: str
    base: BridgeRecipe
    looks: tuple[int, ...]  # at which every run is read
    asked: int  # questions of such a look
    every: int  # steps between the looks that the plateau follows
    falls: bool  # whether it is the drop that is read, or else the mean accuracy

    @property
    def arms(self) -> dict[str, BridgeRecipe]:
        return seven(self.base)

    def seen(self, one: Trained) -> list[float]:
        """Accuracy at each of the looks."""
        found = one.accuracies("report")
        return [found[step] for step in self.looks]

    def read(self, one: Trained) -> float:
        """Drop, or mean accuracy, in points."""
        seen = self.seen(one)
        return max(seen) - seen[-1] if self.falls else fmean(seen)


COMMON = (Group("translator.gates.", rate=1.0),)
FALLING = Setting(
    "labels shifted twice",
    BridgeRecipe(
        FitSettings(
            size.shifted,
            size.lr / 5,
            size.batch,
            size.warmup,
            schedule="constant",
            groups=COMMON,
        ),
        size.translator,
        scale=None,
        visible=True,
        shift=1,
    ),
    looks=(1, size.shifted // 2, size.shifted),
    asked=size.few,
    every=size.shifted // 8,
    falls=True,
)
ORDINARY = Setting(
    "ordinary recipe",
    BridgeRecipe(
        FitSettings(
            size.steps,
            size.lr,
            size.batch,
            size.warmup,
            schedule="linear",
            groups=(GATE_GROUP,),
            horizon=size.horizon,
        ),
        replace(size.translator, depth=size.depth),
    ),
    looks=(120, 140, 160),
    asked=size.asked,
    every=20,
    falls=False,
)
SETTINGS = (FALLING, ORDINARY)
CHOOSING = range(run.seeds // 2)
MEASURING = range(run.seeds // 2, run.seeds)


def place_of(seed: int) -> int:
    """Which pair of hosts a seed is trained on."""
    return int(seed in MEASURING) if size.apart else seed % len(HOST_SEEDS)


# %% [markdown]
# A run's accuracy is read on one exam. The plateau follows another, of questions of its own, with a look at every eighth
# part of the falling setting's steps and at every twentieth step of the ordinary one's: twelve over 240 steps, about as
# often as the log looked at its runs.
#
# The quick profile was shortened twice after numbers had been seen, for time alone. A first version also looked at an
# eighth of the falling setting's steps, and took gradient norms at every look. A second one had four seeds in each half,
# both pairs of hosts in each, 48 steps of the falling setting, two layers in the ordinary recipe, and looks of 60 and 100
# questions. It gave the same verdict, and all but one of its intervals were narrower. Three of what it measured on the
# seeds that choose:

# %% tags=["remove-input"]
Markdown(
    "| gain over the baseline | n | points |\n|---|--:|---|\n"
    + "\n".join(
        f"| {name} | {n} | {Estimate(*values, n)} |"
        for chapter, name, *values, n in recorded("earlier_runs")["rows"]
        if chapter == "seven_changes"
    )
)

# %% [markdown]
# The two of the ordinary recipe left out zero, both for the worse. Where the accuracy falls half the bottleneck was chosen,
# and the plateau made no difference; what it makes below came with the shorter runs.

# %%
benches = [
    bench(h, size.host, HOSTS, run.device, asked=size.asked) for h in HOST_SEEDS
]


def asked(own: Bench, setting: Setting, follows: bool) -> Bench:
    """The bench with the setting's exam, and the one that the plateau follows."""
    exams = {"report": own.exams["report"].first(setting.asked)}
    if follows:
        exams = {"select": own.exams["select"].first(size.few)} | exams
    return replace(own, exams=exams)


def train(setting: Setting, runs: Sequence[tuple[str, int]]) -> None:
    """Train arms, each with its seed, on the seed's pair of hosts; the plateau apart, as it looks more often."""
    often = range(setting.every, setting.base.fit.steps + 1, setting.every)
    for follows in (False, True):
        own = [asked(bench, setting, follows) for bench in benches]
        members = [
            (name, seed) for name, seed in runs if (name == PLATEAU) == follows
        ]
        trained = train_bridges(
            [
                (setting.arms[name], seed, own[place_of(seed)])
                for name, seed in members
            ],
            looks=sorted({*setting.looks, *(often if follows else ())}),
            select="select" if follows else "",
            describe=setting.name,
        )
        found[setting.name] |= dict(zip(members, trained, strict=True))


found: dict[str, dict[tuple[str, int], Trained]] = {s.name: {} for s in SETTINGS}
for setting in SETTINGS:
    trying = [(name, seed) for name in CHANGES for seed in CHOOSING]
    train(setting, [(BASE, seed) for seed in range(run.seeds)] + trying)


# %% tags=["hide-input"]
def differences(setting: Setting, name: str, seeds: Sequence[int]) -> list[float]:
    """How much better an arm did than the baseline, seed by seed, in points."""
    runs, sign = found[setting.name], -1 if setting.falls else 1
    return [
        sign * (setting.read(runs[name, s]) - setting.read(runs[BASE, s]))
        for s in seeds
    ]


def effect(setting: Setting, name: str, seeds: Sequence[int]) -> Estimate:
    """The mean of these differences."""
    return mean_interval(differences(setting, name, seeds))


def level(setting: Setting, name: str, seeds: Sequence[int]) -> float:
    """Mean of what is read off an arm's runs."""
    return fmean(setting.read(found[setting.name][name, s]) for s in seeds)


rows = []
for name in (BASE, *CHANGES):
    cells = []
    for setting in SETTINGS:
        own = None if name == BASE else effect(setting, name, CHOOSING)
        cells.append(f"{level(setting, name, CHOOSING):.1f}")
        cells += [str(own), f"{own.half:.1f}"] if own else ["", ""]
    rows.append(f"| {name} | " + " | ".join(cells) + " |")
Markdown(
    "| points | drop, labels shifted twice | less than the baseline's by | smallest visible effect | accuracy, ordinary recipe |"
    " more than the baseline's by | smallest visible effect |\n|---|--:|---|--:|--:|---|--:|\n"
    + "\n".join(rows)
    + f"\n\nPaired within seeds: mean [95 % interval] over the {len(CHOOSING)} choosing seeds; the smallest effect that"
    f" could have been told from none is half of the interval. The drop is the highest of {len(FALLING.looks)} looks minus"
    f" the last, the accuracy the mean over {len(ORDINARY.looks)} looks; {FALLING.asked} and {ORDINARY.asked} questions a look, the same for all arms."
)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "What each change gains over the baseline on the choosing seeds, paired within seeds: one small dot a seed, means with 95 % intervals. Left, how much less the accuracy falls with labels shifted twice; right, how much higher it is in the ordinary recipe between steps 120 and 160. Dotted: the criterion's 5 points. Orange: the largest mean, which is chosen.", "name": "fig-seven-forest"}, "image": {"alt": "Two panels with one row for each change. All bars reach across zero. With labels shifted twice the means lie within ten points of zero but for the plateau's, which is orange and has the widest bar. In the ordinary recipe the orange bar of a quarter more tokens and layers is the widest and has its mean near zero; the other means lie below it."}}
figure, panels = plt.subplots(1, 2, figsize=(7.2, 3.9), sharey=True)
chosen = {
    s.name: max(CHANGES, key=lambda name, s=s: effect(s, name, CHOOSING).mean)
    for s in SETTINGS
}
for axes, setting in zip(panels, SETTINGS, strict=True):
    for y, name in enumerate(CHANGES):
        colour = COLOURS["orange" if name == chosen[setting.name] else "blue"]
        values = differences(setting, name, CHOOSING)
        axes.plot(values, [y - 0.2] * len(values), ".", color=colour, alpha=0.6)
        draw_intervals(
            axes,
            [y],
            [mean_interval(values)],
            flat=True,
            fmt="o",
            color=colour,
            capsize=3,
        )
    axes.axvline(0, color="black", linewidth=0.8)
    axes.axvline(5, color="black", linewidth=0.8, linestyle=":")
    axes.set_title(setting.name, fontsize=10)
panels[0].set_yticks(range(len(CHANGES)), CHANGES)
panels[0].invert_yaxis()
panels[0].set_xlabel("drop, less by (points)")
panels[1].set_xlabel("accuracy, more by (points)")
plt.show()

# %% [markdown]
# The largest mean is chosen, in each setting by itself. How large would it have been if no change did anything? Then, as
# long as differences scatter evenly to both sides, each seed's could as well have come with the other sign, all seven
# together. Every way of turning the signs of the seeds gives a best of seven that chance alone would have offered:


# %%
def best_by_chance(effects: Sequence[Sequence[float]]) -> torch.Tensor:
    """The best mean of several changes for every way of turning the signs of the seeds.

    `effects` holds the paired differences of each change, one a seed. Of more than 12 seeds 4,096 ways are drawn.
    """
    table = torch.tensor(effects, dtype=torch.double)  # (changes, seeds)
    count = table.shape[1]
    if count <= 12:
        signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * count)
    else:
        draw = torch.Generator().manual_seed(0)
        signs = torch.randint(2, (4096, count), generator=draw) * 2.0 - 1
    return (signs.double() @ table.T / count).max(1).values


by_chance = {
    s.name: best_by_chance([differences(s, name, CHOOSING) for name in CHANGES])
    for s in SETTINGS
}

# %% [markdown]
# Then the chosen change is trained with the other half of the seeds, as the baseline was.

# %%
for setting in SETTINGS:
    train(setting, [(chosen[setting.name], seed) for seed in MEASURING])

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The chosen change of each setting on the seeds that chose it and on the seeds that did not: one small dot a seed, means with 95 % intervals, n as in the table below. The grey bar beside the choosing seeds spans what the best of seven reaches by turning the seeds' signs, its tick the mean of that. Dotted: the criterion's 5 points.", "name": "fig-seven-regression"}, "image": {"alt": "Two panels. In the left panel both means lie far above the dotted line, with bars that reach from below zero to several times the mean; in the right panel both lie just above zero. On the choosing seeds the left mean lies at the upper end of the grey bar of what chance offers, the right one low in it."}}
figure, panels = plt.subplots(1, 2, figsize=(7.2, 3.3))
for axes, setting in zip(panels, SETTINGS, strict=True):
    best = chosen[setting.name]
    ends = [effect(setting, best, half) for half in (CHOOSING, MEASURING)]
    for x, half in enumerate((CHOOSING, MEASURING)):
        values = differences(setting, best, half)
        axes.plot([x + 0.07] * len(values), values, ".", color=COLOURS["sky"])
    draw_intervals(axes, [0, 1], ends, fmt="o-", color=COLOURS["blue"], capsize=3)
    chance = by_chance[setting.name]
    axes.plot(
        [-0.14] * 2,
        [chance.min(), chance.max()],
        "-",
        color=COLOURS["grey"],
        lw=5,
        alpha=0.4,
    )
    axes.plot([-0.14], [chance.mean()], "_", color=COLOURS["grey"], ms=12, mew=2)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.axhline(5, color="black", linewidth=0.8, linestyle=":")
    axes.set_xticks([0, 1], ["choosing seeds", "measuring seeds"])
    axes.set(xlim=(-0.4, 1.3), title=f"{setting.name}:\n{best}")
    axes.title.set_fontsize(10)
panels[0].set_ylabel("drop, less by (points)")
panels[1].set_ylabel("accuracy, more by (points)")
plt.show()

# %% tags=["hide-input"]
rows = []
for setting in SETTINGS:
    best = chosen[setting.name]
    before, after = (effect(setting, best, half) for half in (CHOOSING, MEASURING))
    chance = by_chance[setting.name]
    as_high = int((chance >= before.mean - 1e-9).sum())
    rows.append(
        f"| {setting.name} | {best} | {before} | {chance.mean():.1f} | {as_high} of {len(chance)} | {after} | {after.half:.1f} |"
    )
Markdown(
    "| setting | chosen | choosing seeds (points) | best of seven by chance, mean | at least as high by chance |"
    " measuring seeds (points) | smallest visible effect |\n|---|---|---|--:|--:|---|--:|\n"
    + "\n".join(rows)
    + f"\n\nMean [95 % interval], paired within seeds; n = {len(CHOOSING)} to choose, {len(MEASURING)} to measure."
)

# %% [markdown]
# The four lines of the ordinary recipe, for the baseline and the first seed of each pair of hosts. A *shuffled
# source* speaks of another problem than the one that is marked.

# %% tags=["hide-input"]
ordinary = found[ORDINARY.name]
shown = {place_of(s): s for s in reversed(range(run.seeds))}
lines = {
    seed: benches[place].four_lines(
        ordinary[BASE, seed].bridge, "report", visible=False
    )
    for place, seed in sorted(shown.items())
}
Markdown(
    f"| accuracy at step {size.steps} (%) | "
    + " | ".join(f"hosts {HOST_SEEDS[place_of(s)]}, seed {s}" for s in lines)
    + " |\n|---"
    + "|--:" * len(lines)
    + "|\n"
    + "\n".join(
        f"| {line} | "
        + " | ".join(f"{of[line].accuracy:.1f}" for of in lines.values())
        + " |"
        for line in next(iter(lines.values()))
    )
)

# %% [markdown]
# (verdict-c12)=
# ## Verdict

# %% tags=["hide-input"]
run.note(
    ledger.judge(
        "C12",
        {
            "best_drop_reduction": effect(FALLING, chosen[FALLING.name], MEASURING),
            "best_accuracy_gain": effect(
                ORDINARY, chosen[ORDINARY.name], MEASURING
            ),
        },
    )
)

# %% tags=["nbval-check-output", "keep_output", "remove-input"]
print(run.verdict_lines())

# %% [markdown]
# ## What holds instead
#
# ### What the optimiser's changes change
#
# Clipping first. The norms of the baseline's gradients before its first step and after its last, each of one batch:


# %% tags=["hide-input"]
def norm(setting: Setting, own: Bench, bridge: Bridge) -> float:
    """The norm of the gradient of one batch's loss, as the setting takes it."""
    rows, shift = torch.arange(size.batch, device=run.device), setting.base.shift
    labels = own.taught.labels[rows].roll(-shift, 1)
    labels[:, labels.shape[1] - shift :] = -100

    def loss() -> torch.Tensor:
        soft = bridge(own.taught.states[:, rows], own.taught.mask[rows])
        visible = setting.base.visible
        told = bridge_logits(own.pair.target, soft, own.taught, rows, visible)
        return answer_loss(told, labels)

    return gradient_flow(bridge.named_parameters(), loss).norm()


rows = []
for setting in SETTINGS:
    points = {
        0: [(b, untrained(setting.base, 0, b.pair)) for b in benches],
        setting.base.fit.steps: [
            (benches[place_of(s)], found[setting.name][BASE, s].bridge)
            for s in CHOOSING
        ],
    }
    for step, bridges in points.items():
        norms = [norm(setting, own, bridge) for own, bridge in bridges]
        shares = [min(1, 0.3 / n) / min(1, 1 / n) for n in norms]
        rows.append(
            f"| {setting.name} | {step} | {len(norms)} | {min(norms):.2g} to {max(norms):.2g} |"
            f" {min(shares):.2g} to {max(shares):.2g} |"
        )
Markdown(
    "| setting | after step | batches | gradient norm | what a limit of 0.3 leaves of what 1 leaves |\n"
    "|---|--:|--:|---|---|\n" + "\n".join(rows)
)

# %% [markdown]
# In the last column is what the lower limit changes: a factor on the gradient. Were it the same throughout, AdamW would
# not see it at all. Where it differs between batches, the lower limit weighs some batches less against the others. So the
# two arms should be nearly one training, and no interval above tells them apart.
#
# The schedules are next: how much of the rate each arm had.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The learning rate as a share of its highest, by training step. The plateau's line is the mean over the choosing seeds, each of which halves its rate at looks of its own in the ordinary recipe, and all at the same ones with labels shifted twice. Shaded: where the accuracy of the ordinary recipe is read.", "name": "fig-seven-rates"}, "image": {"alt": "Two panels. With labels shifted twice the baseline stays at the full rate after its warm-up, cosine decay falls to zero, and the plateau's rate is halved again and again, already during the warm-up. In the ordinary recipe linear and cosine decay run close together and cross within the shaded part, and the plateau's mean falls in steps, above them at first, then below them, and close to them in the shaded part."}}


def halved(one: Trained, until: int) -> int:
    """How often a plateau run had halved its rate before a step."""
    looks = {s: -a for s, a in one.accuracies("select").items() if s <= until}
    return History(validation=looks).halvings


def rates(setting: Setting, name: str) -> list[float]:
    """The share of the rate that an arm uses at each step."""
    fit = setting.arms[name].fit
    shares = [fit.rate(t) for t in range(fit.steps)]
    if name != PLATEAU:
        return shares
    runs = [found[setting.name][PLATEAU, s] for s in CHOOSING]
    return [
        share * fmean(0.5 ** halved(one, t) for one in runs)
        for t, share in enumerate(shares)
    ]


figure, panels = plt.subplots(1, 2, figsize=(7.2, 2.9), sharey=True)
STYLES = {BASE: ("grey", "-"), COSINE: ("blue", "--"), PLATEAU: ("orange", "-.")}
for axes, setting in zip(panels, SETTINGS, strict=True):
    for name, (colour, line) in STYLES.items():
        axes.step(
            range(setting.base.fit.steps),
            rates(setting, name),
            line,
            where="post",
            color=COLOURS[colour],
            label=name,
        )
    axes.set(xlabel="training step", ylim=(0, 1.05))
    axes.set_title(setting.name, fontsize=10)
panels[1].axvspan(
    ORDINARY.looks[0], ORDINARY.looks[-1], color=COLOURS["grey"], alpha=0.12, lw=0
)
panels[0].set_ylabel("share of the rate")
figure.legend(
    *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3
)
plt.show()

# %% tags=["hide-input"]
earlier = reference("peak_and_collapse", "quick")["measurements"]
right = Estimate(**earlier["drop: question visible"])


def ends(name: str, seeds: Sequence[int]) -> str:
    """The highest and the last look of an arm's runs in the falling setting, as two cells."""
    seen = [FALLING.seen(found[FALLING.name][name, s]) for s in seeds]
    return f"{mean_interval([max(v) for v in seen])} | {mean_interval([v[-1] for v in seen])}"


best = chosen[FALLING.name]
rows = []
for name in dict.fromkeys((*STYLES, best)):
    spent = [
        100 * sum(rates(s, name)) / sum(rates(s, BASE)) for s in (ORDINARY, FALLING)
    ]
    rows.append(
        f"| {name} | {spent[0]:.0f} | {spent[1]:.0f} | {ends(name, CHOOSING)} |"
    )
rows += [
    f"| {name}, measuring seeds | | | {ends(name, MEASURING)} |"
    for name in (BASE, best)
]
halvings = {
    s.name: [
        halved(found[s.name][PLATEAU, seed], s.base.fit.steps) for seed in CHOOSING
    ]
    for s in SETTINGS
}
Markdown(
    "| | rate spent, ordinary (% of the baseline's) | rate spent, shifted (%) | highest look, shifted (%) |"
    " last look, shifted (%) |\n|---|--:|--:|---|---|\n"
    + "\n".join(rows)
    + f"\n\nRate summed over all steps of the run; accuracies: mean [95 % interval], n = {len(CHOOSING)}. Halvings of the"
    " plateau's rate, seed by seed: "
    + "; ".join(f"{name}, {', '.join(map(str, n))}" for name, n in halvings.items())
    + f". With its labels right the falling setting had a drop of {right.mean:.0f} points in its own chapter (n ="
    f" {right.n}, there with batches of 16)."
)

# %% [markdown]
# In the ordinary setting linear and cosine decay have spent nearly the same rate by the step where they are compared, so
# there is little by which they could differ. The plateau waits for accuracy to stand still, and at first keeps
# its whole rate where the baseline's has begun to fall. In the falling setting both cut the rate. There no look is better
# than the first, after one step, so that the plateau halves at every second one, whatever comes, and twice within the
# warm-up. The accuracy falls all the same, by how much less these few seeds cannot say.
#
# That was to be expected. All seven changes leave the wrong labels in place, and with right ones the setting's own
# chapter saw no fall. Smaller steps towards the wrong goal get there later: after so few steps of so small a rate a run
# may simply not have arrived. So the criterion's first half was asked of a fall that none of the seven is made for, and
# it says nothing of falls that come from steps too long. Nor is a smaller drop a gain by itself: a change of shape also
# moves where a run starts, and the drop shrinks where the highest look is lower.
#
# ### What seven small effects can show
#
# How far can such an experiment see at all?

# %% tags=["hide-input"]
every = {(s.name, n): effect(s, n, CHOOSING) for s in SETTINGS for n in CHANGES}
apart = [
    f"{name}, {where}: {e}"
    for (where, name), e in every.items()
    if e.low * e.high > 0
]
below = {
    s.name: [name for name in CHANGES if every[s.name, name].high < 5]
    for s in SETTINGS
}
wide = {
    s.name: fmean(every[s.name, name].half for name in CHANGES) for s in SETTINGS
}
earlier = reference("gate_schedules", "quick")["measurements"]
gate = Estimate(**earlier["own group, × 3 over common group, steps 120 to 160"])
kept = {
    s.name: (
        every[s.name, chosen[s.name]].mean,
        effect(s, chosen[s.name], MEASURING),
    )
    for s in SETTINGS
}
Markdown(
    f"Over the choosing seeds a change had to make {wide[ORDINARY.name]:.1f} points of accuracy on average to be told from"
    f" none, and {wide[FALLING.name]:.1f} points of the drop. Of {len(every)} intervals {len(apart)} exclude zero"
    f" ({'; '.join(apart) or 'none'}); of intervals where nothing differs one in twenty does so by chance. Wholly below five points lie: "
    + "; ".join(f"{name}, {', '.join(n) or 'none'}" for name, n in below.items())
    + ". "
    + " ".join(
        f"*{chosen[name]}* was chosen for {before:.1f} points ({name}); the measuring seeds show {after.mean:.1f}, where less"
        f" than {after.half:.1f} could not be told from none."
        for name, (before, after) in kept.items()
    )
    + f" For comparison, the gates' threefold rate made {gate} points over the same looks in [its own"
    f" chapter](gate_schedules.ipynb) (n = {gate.n}, there with batches of 16)."
    + (" That interval holds zero as well." if gate.low <= 0 <= gate.high else "")
)

# %% [markdown]
# A change whose interval lies wholly below five points does not gain five with these seeds, at these sizes; the rest is left
# open, and among it the drop of the chosen change, which the measuring seeds hardly bound. {numref}`fig-seven-regression`
# has the best of seven beside what chance alone would have offered as the best of seven. With three seeds there are
# eight ways to turn the signs, so that even the best of them is worth one in eight, and no choice made on them can stand
# out from chance. Whoever reads the choosing seeds' means alone will find a best change all the same. Regression to the
# mean is an expectation, too: in one draw of a few seeds the second mean can land on either side of the first, and its
# interval is what counts.
#
# The arms are compared at equal steps. A quarter more tokens and layers costs more time a step, half
# of the bottleneck less; at equal time the comparison would be another one. And the changes were tried one by one, each
# at the value that the log names, so nothing is said of their combinations.
#
# ## Tweak it
#
# Choose a change and see its runs beside the baseline's, on the choosing seeds: thin lines are runs, thick ones means.
# Right, what it gained, seed by seed. With staged answers the loss of the first half of the steps is that of the tokens
# asked for so far.


# %% tags=["hide-input"]
def smooth(losses: Sequence[float], over: int = 10) -> list[float]:
    """Means of so many losses each."""
    return [fmean(losses[i : i + over]) for i in range(0, len(losses), over)]


def frame(name: str) -> tuple[Figure, str]:
    """Accuracy where it falls, loss where it is learnt, and both effects."""
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    falling, learning, gained = figure.subplots(1, 3, width_ratios=(1, 1, 0.8))
    for arm, colour in ((BASE, "grey"), (name, "orange")):
        seen = [FALLING.seen(found[FALLING.name][arm, s]) for s in CHOOSING]
        lost = [smooth(ordinary[arm, s].losses) for s in CHOOSING]
        steps = range(10, size.steps + 1, 10)
        for axes, x, runs in (
            (falling, FALLING.looks, seen),
            (learning, steps, lost),
        ):
            look = {"color": COLOURS[colour], "linestyle": "-"}
            for values in runs:
                axes.plot(x, values, lw=0.6, alpha=0.5, **look)
            mean = [fmean(at) for at in zip(*runs, strict=True)]
            axes.plot(x, mean, lw=2, label=arm, **look)
    falling.set(xlabel="step", ylabel="accuracy (%)", ylim=(-3, 103))
    falling.set_title("labels shifted twice", fontsize=10)
    learning.set(xlabel="step", ylabel="loss (nats per token)")
    learning.set_title("ordinary recipe", fontsize=10)
    words = []
    for x, setting in enumerate(SETTINGS):
        values = differences(setting, name, CHOOSING)
        own = mean_interval(values)
        gained.plot([x + 0.12] * len(values), values, ".", color=COLOURS["orange"])
        draw_intervals(
            gained, [x], [own], fmt="o", color=COLOURS["orange"], capsize=3
        )
        words.append(f"{setting.name} {own} points")
    gained.axhline(0, color="black", linewidth=0.8)
    gained.axhline(5, color="black", linewidth=0.8, linestyle=":")
    gained.set_xticks([0, 1], ["shifted", "ordinary"])
    gained.set(xlim=(-0.5, 1.5), ylabel="gain (points)")
    figure.legend(
        *falling.get_legend_handles_labels(), loc="outside lower center", ncols=2
    )
    return figure, f"{name}, gain over the baseline: {'; '.join(words)}."


explorer = Explorer("change", {name: name for name in CHANGES}, frame)
explorer

# %% [markdown]
# ## Try it on yours
#
# Give `best_by_chance` the paired differences of everything that you tried, one list a change and one number a seed,
# those that you would rather forget included. It says how much of your best is owed to having tried many. What remains,
# only other seeds can show.

# %%
yours = [differences(ORDINARY, name, CHOOSING) for name in CHANGES]
best = max(fmean(values) for values in yours)
print(
    f"best of {len(yours)}: {best:.1f} points;"
    f" by chance {best_by_chance(yours).mean():.1f} on average"
)

# %% [markdown]
# ## Provenance

# %% tags=["remove-input"]
run.measure(
    **{
        f"{s.name}, choosing: {name}": effect(s, name, CHOOSING)
        for s in SETTINGS
        for name in CHANGES
    },
    **{
        f"{s.name}, by chance: best of seven": by_chance[s.name].mean().item()
        for s in SETTINGS
    },
    **{
        f"{s.name}, measuring: {chosen[s.name]}": effect(
            s, chosen[s.name], MEASURING
        )
        for s in SETTINGS
    },
)
for setting in SETTINGS:
    run.given[f"chosen, {setting.name}"] = chosen[setting.name]
run.close()
