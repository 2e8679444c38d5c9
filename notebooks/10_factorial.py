# %% [markdown]
# # A factorial of causes
#
# The alignment log proposes to change three things at once, and a fourth if that does not help. A factorial design
# changes such things in every combination and says which of them mattered, and which mattered only together. It needs a
# hundred runs; trained side by side in one graph, one core is enough for them.

# %% tags=["parameters"]
profile = "quick"  # quick | full
seeds = 0  # at least 2; 0 takes the profile's number
device = "auto"  # auto | cpu | cuda | mps
out = ""  # where the record goes, a .json file

# %% tags=["hide-input"]
import math
import time
from dataclasses import dataclass, replace
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import torch
from bridges.connectors.resampler import ResamplerSettings
from bridges.hosts.contrastive import AlignmentSettings
from bridges.instruments.chance import chance_loss, stuck
from bridges.instruments.factorial import effects
from bridges.instruments.retrieval import recall
from bridges.instruments.uncertainty import mean_interval
from bridges.tasks.scenes import WIDTH, scenes
from bridges.training import ensemble
from bridges.benches.alignment import (
    Run,
    held_out_loss,
    sampled_widths,
    train_bridges,
)
from bridges.training.ensemble import fit_ensemble
from bridges.training.fit import FitSettings, fit
from bridges.training.losses import alignment_loss
from IPython.display import Markdown
from matplotlib.figure import Figure
from press import ledger
from press.claims import load_claims
from press.explorer import Explorer
from press.figures import COLOURS, draw_intervals, use_style
from press.provenance import begin
from press.source import show_source


@dataclass(frozen=True)
class Size:
    """What a profile means in this chapter."""

    seeds: int
    width: int  # of the perceiver
    latents: int
    steps: int  # training steps of every run
    batch: int
    train: int  # pairs to train on
    widths: tuple[int, ...]  # Matryoshka prefixes; the last is the whole
    rates: tuple[float, float]  # the factorial's low and high learning rate
    timed: tuple[int, ...]  # models at once, in the timing


SIZES = {
    "quick": Size(
        seeds=8,
        width=16,
        latents=4,
        steps=250,
        batch=32,
        train=4096,
        widths=(8, 16, 32),
        rates=(2e-3, 3.2e-2),
        timed=(1, 8, 32, 128),
    ),
    "full": Size(
        seeds=16,
        width=64,
        latents=16,
        steps=1000,
        batch=128,
        train=65536,
        widths=(16, 32, 64, 128),
        rates=(2e-3, 3.2e-2),
        timed=(1, 8, 32, 128, 512),
    ),
}
run = begin(
    "factorial", SIZES, profile=profile, seeds=seeds, device=device, out=out
)
size = run.size
torch.set_num_threads(1)
use_style()

# %% [markdown]
# ## Symptom
#
# One model learned and one stayed at chance ({numref}`fig-stuck-symptom`). Between them lay the perceiver, the pooling,
# the learning rate, the text encoder and, on paper, the batch size. With two runs and five differences, every one of
# the five can be made the culprit.
#
# ## Claim

# %% tags=["remove-input"]
claims = load_claims()
claims["B3"]

# %% tags=["remove-input"]
claims["B5"]

# %% tags=["remove-input"]
claims["B11"]

# %% [markdown]
# B3 and B5 are the log's. B11 is the book's own, written down after an early trial had shown where runs get stuck. The
# batch size and the perceiver itself have the next chapter.
#
# ## Mechanism
#
# Four factors of two levels make sixteen cells: learning rate (0.002, and sixteen times as much), standard deviation of
# the latents, pooling, and a pre-LayerNorm before each block. LayerNorm is the factor the log never names
# {cite}`xiong2020layernorm`. Narrow connectors bear higher rates than wide ones; sixteen was chosen by scouting, as a
# rate at which this one gets into trouble, and nothing fixes its equivalent at the log's width of 1,024.
#
# The effect of a factor is the mean over the eight cells where it is high minus that over the eight where it is low; an
# interaction asks whether two factors do more together than their sum {cite}`box2005statistics`:

# %% tags=["remove-input"]
show_source(effects, start="for size in range", lines=9)

# %% [markdown]
# All runs of a design are trained side by side:

# %% tags=["remove-input"]
show_source(ensemble.fit_ensemble, start="def one(", lines=9)

# %% [markdown]
# That is the whole trick: the loss of *one* model as a function of its parameters, mapped over a stack of models by
# `vmap`, with AdamW {cite}`loshchilov2019adamw` written out for stacked tensors so that each model has its own rate.
#
# ## Experiment
#
# A run counts as *stuck* when its held-out loss ends above $\ln b - 0.05$, a line fixed beforehand. All runs take the
# log's loss, with one sampled Matryoshka width a step, and a constant learning rate. The rate is constant because it is
# the factor: under a cosine decay, which lowers it for every run before the end, fewer were stuck in scouting.

# %%
pairs = scenes(size.train, seed=0).features(seed=0)
test = scenes(512, seed=1).features(seed=1)
FACTORS = {
    "rate": size.rates,
    "latent std": (0.02, 1.0),
    "pooling": ("mean", "attention"),
    "LayerNorm": (False, True),
}


def cell(rate: float, std: float, pooling: str, norm: bool, seed: int) -> Run:
    """One run of the factorial."""
    resampler = ResamplerSettings(
        size.width, size.latents, 2, 2, layer_norm=norm, latent_std=std
    )
    bridge = AlignmentSettings(
        WIDTH, WIDTH, size.widths[-1], resampler, pooling=pooling
    )
    settings = FitSettings(
        size.steps,
        lr=rate,
        batch=size.batch,
        warmup=0,
        clip=math.inf,
        schedule="constant",
    )
    return Run(bridge, settings, seed)


def judged(
    runs: list[Run], describe: str
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Whether each run is stuck, its R@1 in percent, and its training curve in nats per unit of weight."""
    trained = train_bridges(runs, pairs, size.widths, run.device, describe)
    loss = trained.measure(test, lambda e: held_out_loss(e, size.batch))
    r1 = trained.measure(test, lambda e: recall(e.image, e.text).at[1])
    curves = [trained.curve(i).cpu().numpy() for i in range(len(runs))]
    return (
        np.array([stuck(x, size.batch) for x in loss.tolist()]),
        r1.numpy(),
        curves,
    )


started = time.process_time()
keys = list(product(*FACTORS.values(), range(run.seeds)))
is_stuck, r1, curves = judged([cell(*key) for key in keys], "factorial")
seconds = time.process_time() - started
shape = (2, 2, 2, 2, run.seeds)
stuck_share = torch.tensor(is_stuck, dtype=torch.float64).view(shape)
found_r1 = torch.tensor(r1).view(shape)
Markdown(
    f"{len(keys)} models ({len(keys) // run.seeds} cells, {run.seeds} seeds) of {size.steps} steps in {seconds:.0f} CPU"
    f" seconds. {int(is_stuck.sum())} are stuck."
)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "R@1 among 512 test pairs for each cell and seed (dots) with the mean and its 95 % interval; crosses mark stuck runs. Chance is 0.2 %. Labels give the latents' standard deviation and the pooling.", "name": "fig-factorial-cells"}, "image": {"alt": "Four groups of dots: low rate with LayerNorm, low rate without, high rate with, high rate without. Cell means of R@1 are high in both low-rate groups, several times lower at the high rate with LayerNorm, and near zero at the high rate without LayerNorm, the only group with crosses, most of them under attention pooling."}}
figure, panels = plt.subplots(1, 4, figsize=(7.2, 3.4), sharey=True)
for axes, (r, n) in zip(panels, ((0, 1), (0, 0), (1, 1), (1, 0)), strict=True):
    labels = []
    for x, (s, p) in enumerate(product(range(2), range(2))):
        values, marks = (
            found_r1[r, s, p, n].numpy(),
            stuck_share[r, s, p, n].numpy() > 0,
        )
        jitter = x + np.linspace(-0.25, 0.25, run.seeds)
        axes.plot(jitter[~marks], values[~marks], ".", color=COLOURS["blue"])
        axes.plot(jitter[marks], values[marks], "x", color=COLOURS["orange"])
        mean = mean_interval(values.tolist())
        draw_intervals(
            axes,
            [x],
            [mean],
            fmt="_",
            color="black",
            markersize=14,
            capsize=4,
        )
        labels.append(f"{FACTORS['latent std'][s]:g}, {FACTORS['pooling'][p]}")
    axes.set_xticks(
        range(4), labels, rotation=60, ha="right", rotation_mode="anchor"
    )
    axes.set_title(
        f"rate {FACTORS['rate'][r]:g}\n{'LayerNorm' if n else 'no LayerNorm'}",
        fontsize=10,
    )
panels[0].set_ylabel("R@1 (%)")
plt.show()

# %%
effects_on_stuck = effects(stuck_share, list(FACTORS))
effects_on_r1 = effects(found_r1, list(FACTORS))
Markdown(
    "| effect | on the share of stuck runs | on R@1 (points) |\n|---|---|---|\n"
    + "\n".join(
        f"| {' × '.join(names)} | {e} | {effects_on_r1[names]} |"
        for names, e in effects_on_stuck.of.items()
    )
    + f"\n\nMean [95 % interval] over {run.seeds} seeds. 'LayerNorm' goes from without to with, 'pooling' from mean to"
    " attention, the others from low to high. An interaction is half of what the one factor adds to the effect of the"
    " other."
)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Main effects and two-factor interactions with 95 % intervals over seeds: left on the share of stuck runs, right on R@1.", "name": "fig-factorial-effects"}, "image": {"alt": "Two dot plots with horizontal intervals, one row for each effect and a vertical line at zero. On the share of stuck runs rate and pooling are positive, LayerNorm and its interactions with rate and pooling negative; on R@1 rate is strongly negative, LayerNorm positive, latent standard deviation a little positive, and the interval of pooling includes zero."}}
figure, panels = plt.subplots(1, 2, figsize=(7.2, 3.6), sharey=True)
names = list(effects_on_stuck.of)
for axes, table, unit in (
    (panels[0], effects_on_stuck, "share of stuck runs"),
    (panels[1], effects_on_r1, "R@1 (points)"),
):
    for y, name in enumerate(names):
        e = table[name]
        draw_intervals(
            axes,
            [y],
            [e],
            flat=True,
            fmt="o",
            color=COLOURS["blue" if e.low * e.high <= 0 else "orange"],
            capsize=3,
        )
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set(xlabel=f"effect on {unit}")
panels[0].set_yticks(range(len(names)), [" × ".join(n) for n in names])
panels[0].invert_yaxis()
plt.show()

# %% [markdown]
# Pooling has the log's word that it is "much more effective". How it does where nothing is stuck, at the low rate:

# %% tags=["hide-input"]
rows = []
for s, n in product(range(2), range(2)):
    mean, attention = (
        mean_interval(found_r1[0, s, p, n].tolist()) for p in range(2)
    )
    gain = mean_interval((found_r1[0, s, 1, n] - found_r1[0, s, 0, n]).tolist())
    rows.append(
        f"| {FACTORS['latent std'][s]:g} | {'yes' if n else 'no'} | {mean} | {attention} | {gain} |"
    )
Markdown(
    "| latent std | LayerNorm | R@1, mean pooling (%) | R@1, attention pooling (%) | gain (points) |\n"
    "|---|---|---|---|---|\n"
    + "\n".join(rows)
    + f"\n\nLow rate, {run.seeds} seeds, paired by seed."
)

# %% [markdown]
# ### What else rescues
#
# At the high rate and without LayerNorm we add one thing at a time: a linear warm-up over 100 steps, or clipping gradients
# to norm 1.

# %%
ARMS = {
    "neither": {},
    "warm-up over 100 steps": {"warmup": 100},
    "clipping to norm 1": {"clip": 1.0},
}
trouble = [key for key in keys if key[0] == size.rates[1] and not key[3]]
rescued = {"neither": (is_stuck, r1)}
rescue_runs = [
    replace(cell(*key), fit=replace(cell(*key).fit, **change))
    for change in list(ARMS.values())[1:]
    for key in trouble
]
arm_stuck, arm_r1, _ = judged(rescue_runs, "rescues")
in_trouble = [keys.index(key) for key in trouble]
by_arm = {"neither": (is_stuck[in_trouble], r1[in_trouble])}
for i, name in enumerate(list(ARMS)[1:]):
    part = slice(i * len(trouble), (i + 1) * len(trouble))
    by_arm[name] = arm_stuck[part], arm_r1[part]
per_seed = {
    name: tuple(values.reshape(4, run.seeds).mean(0) for values in both)
    for name, both in by_arm.items()
}
rescue = {
    name: mean_interval((per_seed["neither"][0] - per_seed[name][0]).tolist())
    for name in list(ARMS)[1:]
}

# %% tags=["hide-input"]
rows = [
    f"| {name} | {int(by_arm[name][0].sum())} of {len(trouble)} | {mean_interval(per_seed[name][1].tolist())} |"
    f" {rescue.get(name, '')} |"
    for name in ARMS
]
Markdown(
    "| added | stuck runs | R@1 (%) | stuck share rescued, paired |\n|---|--:|---|---|\n"
    + "\n".join(rows)
    + f"\n\nHigh rate, no LayerNorm, over both deviations and poolings. For comparison: with LayerNorm and nothing else,"
    f" R@1 is {mean_interval(found_r1[1, :, :, 1].flatten(0, 1).mean(0).tolist())} %, and at the low rate without it"
    f" {mean_interval(found_r1[0, :, :, 0].flatten(0, 1).mean(0).tolist())} %."
)

# %% [markdown]
# ### What the ensemble saves
#
# The same training, one model at a time with `torch.optim.AdamW`, and side by side. Losses must agree; time is CPU time of
# one thread, in one process, back to back, the better of two tries.

# %%
timed_steps = 12
patches, text = pairs.patches.to(run.device), pairs.text.to(run.device)
sampled = sampled_widths(timed_steps, size.widths)
short = replace(cell(size.rates[0], 0.02, "mean", True, 0).fit, steps=timed_steps)


def batch_loss(model, rows: torch.Tensor, step: int) -> torch.Tensor:
    """The loss that both ways minimise."""
    return alignment_loss(
        *model(patches[rows], text[rows]), size.widths, sampled[step]
    )[0]


def clock() -> float:
    """Seconds: of this thread on a CPU, of the wall on a GPU, where the work is done elsewhere."""
    if run.device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def one_by_one(models: list) -> tuple[float, np.ndarray]:
    """Seconds for a model and a step, and the losses (steps, models), in a loop over `fit`."""
    columns = []
    begun = clock()
    for seed, model in enumerate(models):
        at = iter(range(timed_steps))
        columns.append(
            fit(
                model,
                lambda rows, m=model, at=at: batch_loss(
                    m, rows.to(run.device), next(at)
                ),
                len(pairs),
                short,
                seed,
            ).losses
        )
    return (clock() - begun) / len(models) / timed_steps, np.array(columns).T


def together(models: list) -> tuple[float, np.ndarray]:
    """The same, side by side."""
    begun = clock()
    found = fit_ensemble(
        models, batch_loss, len(pairs), [short] * len(models), range(len(models))
    )
    return (clock() - begun) / len(models) / timed_steps, found.losses.cpu().numpy()


def fresh(count: int, norm: bool) -> list:
    """Untrained models of one architecture, by seed."""
    return [
        cell(size.rates[0], 0.02, "mean", norm, seed).build().to(run.device)
        for seed in range(count)
    ]


def best_of_two(way, count: int, norm: bool) -> tuple[float, np.ndarray]:
    """The faster of two timings, and the losses: whatever else the machine does can only slow one down."""
    return min(
        (way(fresh(count, norm)) for _ in range(2)), key=lambda found: found[0]
    )


together(fresh(2, True))  # the first call pays for start-up
alone, apart, curve = {}, [], {True: {}, False: {}}
for norm in (True, False):
    alone[norm], reference = best_of_two(one_by_one, 8, norm)
    for count in size.timed:
        curve[norm][count], losses = best_of_two(together, count, norm)
        shared = min(count, 8)
        apart.append(np.abs(losses[:, :shared] - reference[:, :shared]).max())
most = max(size.timed)
speedup = sum(alone.values()) / sum(curve[norm][most] for norm in (True, False))
Markdown(
    f"One by one a model takes {1e3 * np.mean(list(alone.values())):.2f} ms a step; {most} together take"
    f" {1e3 * np.mean([curve[n][most] for n in (True, False)]):.2f} ms each: **{speedup:.1f} times faster** at width"
    f" {size.width}. Largest difference between the two ways' losses over {timed_steps} steps and"
    f" 8 models of either kind: {max(apart):.1g} nats."
)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Time for one model and one step against the number of models trained at once; the horizontal lines are the loop with torch.optim.AdamW.", "name": "fig-factorial-speed"}, "image": {"alt": "Log-log plot of milliseconds per model and step against the number of models. The ensemble's curves start above the loop's horizontal lines for a single model and fall below them as the number grows."}}
figure, axes = plt.subplots(figsize=(7.2, 2.8))
for norm, colour, marker in ((True, "blue", "o"), (False, "orange", "s")):
    name = "LayerNorm" if norm else "no LayerNorm"
    axes.loglog(
        list(curve[norm]),
        [1e3 * t for t in curve[norm].values()],
        marker=marker,
        color=COLOURS[colour],
        label=f"together, {name}",
    )
    axes.axhline(
        1e3 * alone[norm],
        color=COLOURS[colour],
        linestyle=":",
        linewidth=1.2,
        label=f"one by one, {name}",
    )
axes.set(xlabel="models at once", ylabel="ms per model and step")
axes.set_xticks(size.timed, [str(n) for n in size.timed])
axes.minorticks_off()
axes.legend(fontsize=9)
plt.show()

# %% [markdown]
# (verdict-b3)=
# (verdict-b5)=
# (verdict-b11)=
# ## Verdict

# %% tags=["hide-input"]
rate_with_norm = (
    (stuck_share[1, :, :, 1] - stuck_share[0, :, :, 1]).flatten(0, 1).mean(0)
)
run.note(
    ledger.judge(
        "B3",
        {
            "stuck_share_main_effect": effects_on_stuck[("rate",)],
            "stuck_share_effect_with_layernorm": mean_interval(
                rate_with_norm.tolist()
            ),
        },
    )
)

# %% tags=["hide-input"]
run.note(ledger.judge("B5", effects_on_r1[("pooling",)]))

# %% tags=["hide-input"]
run.note(
    ledger.judge(
        "B11",
        {
            "warmup_rescue": rescue["warm-up over 100 steps"],
            "clipping_rescue": rescue["clipping to norm 1"],
        },
    )
)

# %% tags=["nbval-check-output", "keep_output", "remove-input"]
print(run.verdict_lines())

# %% [markdown]
# ## What holds instead

# %% tags=["remove-input"]
stuck_cells = 100 * stuck_share.flatten(1, 2).mean((1, 3))  # (rate, LayerNorm)
Markdown(
    "| stuck runs (%) | no LayerNorm | LayerNorm |\n|---|--:|--:|\n"
    + "\n".join(
        f"| rate {rate:g} | {stuck_cells[i, 0]:.0f} | {stuck_cells[i, 1]:.0f} |"
        for i, rate in enumerate(size.rates)
    )
    + f"\n\nInteraction of rate and LayerNorm on the share of stuck runs: {effects_on_stuck[('rate', 'LayerNorm')]}; on"
    f" R@1: {effects_on_r1[('rate', 'LayerNorm')]} points. Main effect of the rate on R@1: {effects_on_r1[('rate',)]}"
    " points."
)

# %% [markdown]
# In the book's own run, of the quick profile, nothing gets stuck at the low rate, whatever the latents, the pooling or
# the norm, and at the high rate a LayerNorm keeps every run off the chance line. Being stuck takes both, a rate too
# high *and* no normalisation. With a single corner of the table filled, the two main effects and the interaction are
# equal in size by arithmetic: none of the three numbers means anything without the other two. B3 is judged by such a
# main effect, and its interval straddles the line.
#
# Two different questions are easily taken for one here. What puts a run *at chance* is the combination. What costs
# *R@1* is mostly the rate, with the norm or without, by a margin that no other factor comes near. So lowering the rate
# is the one piece of the log's advice that pays here, counted in R@1 and at this connector's scale; its account of why,
# a perceiver too delicate for the rate, leaves out the factor that decides between a poor model and none. And without
# LayerNorm at the high rate even the runs that are not stuck hardly retrieve anything ({numref}`fig-factorial-cells`):
# the line for *stuck* is a strict one.
#
# Attention pooling, offered by the log as a mend, does the opposite in the bad corner: its whole effect on stuck runs
# comes from there. Warm-up and clipping take some runs off the line, but these seeds do not settle whether it is more
# than a quarter of them, and what they take off hardly retrieves, as the table of rescues shows.
#
# None of this shows that the log's perceiver had no LayerNorm. It shows where to look first, and that in this task
# neither the size of the latents nor their mean makes a run stuck.
#
# ## Tweak it
#
# How a run of each cell fares, step by step. Move along the training; in a live kernel choose another pooling or latent
# deviation.


# %% tags=["hide-input"]
def smoothed(key: tuple) -> np.ndarray:
    """A training curve averaged over ten steps."""
    window = max(1, size.steps // 25)
    return np.convolve(
        curves[keys.index(key)], np.ones(window) / window, mode="valid"
    )


def frame(share: float, pooling: str, std: float) -> tuple[Figure, str]:
    """All seeds of the four cells of rate and LayerNorm, up to a share of the training."""
    figure = Figure(figsize=(7.2, 3))
    panels = figure.subplots(1, 4, sharey=True)
    below = []
    for axes, (rate, norm) in zip(
        panels,
        (
            (size.rates[0], True),
            (size.rates[0], False),
            (size.rates[1], True),
            (size.rates[1], False),
        ),
        strict=True,
    ):
        reached = 0
        for seed in range(run.seeds):
            curve_ = smoothed((rate, std, pooling, norm, seed))
            upto = max(2, round(share * len(curve_)))
            axes.plot(
                curve_[:upto], color=COLOURS["blue"], linewidth=0.9, linestyle="-"
            )
            reached += curve_[upto - 1] < chance_loss(size.batch) - 0.05
        axes.axhline(
            chance_loss(size.batch),
            color=COLOURS["orange"],
            linestyle=":",
            linewidth=1,
        )
        axes.set(xlim=(0, size.steps), ylim=(0, 5), xlabel="step")
        axes.set_title(
            f"rate {rate:g}\n{'LayerNorm' if norm else 'no LayerNorm'}", fontsize=10
        )
        below.append(reached)
    panels[0].set_ylabel("loss per unit of weight (nats)")
    return figure, (
        f"Training loss of {run.seeds} seeds in four cells after {share:.0%} of the steps, {pooling} pooling, latents at"
        f" {std:g}. Below the chance line: {below[0]} at the low rate with LayerNorm, {below[1]} without, {below[2]} at the"
        f" high rate with LayerNorm, {below[3]} without."
    )


Explorer(
    "share of the training",
    {f"{share:.0%}": share for share in (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)},
    frame,
    choices={"pooling": FACTORS["pooling"], "std": FACTORS["latent std"]},
)

# %% [markdown]
# ## Try it on yours
#
# `fit_ensemble` takes any module that `vmap` accepts, and a loss of one model; `effects` any table of results. Here is a
# two-factor design on a small regression, from nothing.

# %%
x = torch.randn(256, 4)
y = x.prod(1, keepdim=True)
design = list(product((1e-3, 1e-2), (0.0, 0.1), range(4)))
models = []
for _, _, seed in design:
    torch.manual_seed(seed)
    models.append(
        torch.nn.Sequential(
            torch.nn.Linear(4, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1)
        )
    )
yours = fit_ensemble(
    models,
    lambda model, rows, step: (model(x[rows]) - y[rows]).square().mean(),
    samples=len(x),
    settings=[
        FitSettings(100, lr=lr, weight_decay=decay) for lr, decay, _ in design
    ],
    seeds=[seed for *_, seed in design],
)
effects(yours.losses[-10:].mean(0).view(2, 2, 4), ["rate", "decay"])

# %% [markdown]
# A module that cannot be vectorised is refused with the reason, and is then a case for `fit`, one by one.
#
# ## Provenance

# %% tags=["remove-input"]
run.measure(
    rate_by_layernorm_on_stuck=effects_on_stuck[("rate", "LayerNorm")],
    factorial_seconds=seconds,
    ensemble_speedup=speedup,
    ensemble_loss_difference=float(max(apart)),
)
run.close()
