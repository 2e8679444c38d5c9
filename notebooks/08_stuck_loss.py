# %% [markdown]
# # Reading a stuck loss
#
# A contrastive training prints 4.8 for ten epochs and finds one pair in three thousand. The log that saw this called the
# number suspiciously high and went looking for a bug. This chapter reads the digits first: they say what the model put
# out, on how many pairs, and in which batches. What they cannot say is why.

# %% tags=["parameters"]
profile = "quick"  # quick | full
seeds = 0  # at least 2; 0 takes the profile's number
device = "auto"  # auto | cpu | cuda | mps
out = ""  # where the record goes, a .json file
losses = ""  # your own loss log: .csv or .jsonl, with a column or key loss
batch_size = 128  # pairs in a batch of that log
weight = 1.0  # sum of the weights of that log's terms

# %% tags=["hide-input"]
import math
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from bridges.connectors.resampler import ResamplerSettings
from bridges.hosts.contrastive import AlignmentSettings
from bridges.instruments.alignment import FAULTS, diagnose
from bridges.instruments.chance import (
    Printed,
    chance_loss,
    chance_recall,
    fitting_datasets,
    mean_chance_loss,
    read_loss,
    stuck,
)
from bridges.instruments.retrieval import recall
from bridges.instruments.uncertainty import mean_interval
from bridges.tasks.loss_log import read_losses
from bridges.tasks.pairs import Features
from bridges.tasks.scenes import WIDTH, scenes
from bridges.benches.alignment import (
    Bridges,
    Run,
    held_out_loss,
    sampled_widths,
    train_bridges,
)
from bridges.training.fit import FitSettings
from bridges.training.losses import alignment_loss, info_nce, log_as_written
from IPython.display import Markdown
from matplotlib.figure import Figure
from press import ledger
from press.cards import number
from press.claims import load_claims
from press.data import recorded
from press.explorer import Explorer
from press.figures import COLOURS, use_style
from press.provenance import begin, refusing
from press.source import show_source


@dataclass(frozen=True)
class Size:
    """What a profile means in this chapter."""

    seeds: int
    width: int  # of the perceiver
    steps: int  # training steps of a healthy run
    long: int  # and of one under a fault, which may take long to settle
    batch: int
    train: int  # pairs to train on
    widths: tuple[int, ...]  # Matryoshka prefixes; the last is the whole


SIZES = {
    "quick": Size(
        seeds=8,
        width=24,
        steps=150,
        long=250,
        batch=64,
        train=4096,
        widths=(8, 16, 32),
    ),
    "full": Size(
        seeds=16,
        width=64,
        steps=600,
        long=1500,
        batch=128,
        train=65536,
        widths=(16, 32, 64, 128),
    ),
}
run = begin(
    "stuck_loss", SIZES, profile=profile, seeds=seeds, device=device, out=out
)
size = run.size
with refusing():
    mine = read_losses(Path(losses)) if losses else None
    if mine:
        read_loss(mine, batch_size, weight)
torch.set_num_threads(1)
use_style()

# %% [markdown]
# ## Symptom
#
# Two models of one project were to align image patches with captions. The one with a perceiver between them printed the
# same loss for ten epochs; the one without it learned ({numref}`fig-stuck-symptom`).

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The losses the log printed for its last epoch, and what a model earns that says nothing: the natural logarithm of the batch size. The total weighs the CLIP loss by 0.25 and the Matryoshka (MRL) loss by 1.", "name": "fig-stuck-symptom"}, "image": {"alt": "Dot plot. Rows: perceiver train, perceiver validation, direct train. For the perceiver the CLIP and MRL losses lie on top of each other at 4.85 and 4.80, next to the dotted line ln 128 and far from ln 64; totals lie at 6.06 and 6.00, next to 1.25 ln 128. For the direct model all three lie near 1."}}
log = recorded("alignment_log")
figure, axes = plt.subplots(figsize=(7.2, 2.8))
for y, row in enumerate(log["rows"]):
    for name, value, marker, colour in (
        ("CLIP loss", row[3], "o", "blue"),
        ("MRL loss", row[4], "x", "orange"),
        ("total", row[2], "s", "green"),
    ):
        axes.plot(
            float(value),
            y,
            marker,
            color=COLOURS[colour],
            markersize=8,
            label=name if y == 0 else None,
        )
for value, text in (
    (math.log(64), "ln 64"),
    (math.log(128), "ln 128"),
    (1.25 * math.log(128), "1.25 ln 128"),
):
    axes.axvline(value, color=COLOURS["grey"], linestyle=":", linewidth=1)
    axes.text(value, -0.62, text, ha="center", color=COLOURS["grey"], fontsize=9)
axes.set(
    yticks=range(3),
    yticklabels=[f"{row[0]}, {row[1]}" for row in log["rows"]],
    xlim=(0, 7),
    ylim=(2.5, -0.5),
    xlabel="loss (nats)",
)
axes.legend(loc="upper left")
plt.show()

# %% [markdown]
# ## Claim
#
# The log says three things about these numbers: that logging one sampled Matryoshka width as if it were all of them
# makes the two losses look alike; that an untrained model should start at 2 to 3 (though its own verification steps
# expect 4 to 5); and that this is a run at batch 64 whose text encoder, another than the working model's, "shouldn't
# break training, but worth noting for reproducibility".

# %% tags=["remove-input"]
claims = load_claims()
claims["B6"]

# %% tags=["remove-input"]
claims["B7"]

# %% tags=["remove-input"]
claims["B8"]

# %% [markdown]
# The arithmetic behind B8 was known when its criterion was written, so that part of the verdict is no blind test; the
# code below does the sums anew.
#
# ## Mechanism
#
# A batch of $b$ images and texts with unit embeddings $u_i, v_i$ and scale $s$ (one over the temperature) has the loss
#
# $$
# \mathcal{L} = -\frac{1}{2b} \sum_{i=1}^{b} \left[ \log \frac{e^{s\,u_i \cdot v_i}}{\sum_j e^{s\,u_i \cdot v_j}}
#   + \log \frac{e^{s\,u_i \cdot v_i}}{\sum_j e^{s\,u_j \cdot v_i}} \right],
# $$ (eq-stuck-infonce)
#
# CLIP's {cite}`radford2021clip`:

# %% tags=["remove-input"]
show_source(info_nce)

# %% [markdown]
# Let all images share one embedding and all texts another. Every logit is the same number, it cancels, and
# {eq}`eq-stuck-infonce` is $\ln b$ *at any temperature*. That is the chance line. An epoch of $N$ pairs ends with a short
# batch, so an evaluation loop prints the mean of $\ln b$ over its batches, a number that depends on $N$:

# %% tags=["remove-input"]
show_source(mean_chance_loss)

# %% [markdown]
# And retrieval? With equal similarities a plain top-$k$ returns the same $k$ candidates to every query: it is right for
# exactly $k$ of $N$ queries.
#
# ## Experiment
#
# ### What the digits say
#
# We ask which batch sizes and numbers of pairs would print the log's validation loss, R@1, R@5 and R@10 to the digit.

# %%
stuck_train, stuck_validation = log["rows"][0], log["rows"][1]
printed_loss = Printed(stuck_validation[3])
printed_recalls = {
    k: Printed(text)
    for k, text in zip((1, 5, 10), stuck_validation[5:], strict=True)
}
printed_train = Printed(stuck_train[3])
solutions = fitting_datasets(printed_loss, printed_recalls, range(2, 1025))


def trains_so(batch: int) -> bool:
    """Whether a training at chance can print the log's training loss: no mean over batches exceeds ln(batch)."""
    return chance_loss(batch) >= printed_train.value - printed_train.digit / 2


Markdown(
    "| batch | pairs | last batch | mean of ln b (nats) | ln(batch) (nats) | can print the training loss |\n"
    "|--:|--:|--:|--:|--:|---|\n"
    + "\n".join(
        f"| {s.batch} | {s.pairs:,} | {s.last_batch} | {s.loss:.5f} | {chance_loss(s.batch):.5f} |"
        f" {'yes' if trains_so(s.batch) else 'no'} |"
        for s in solutions
    )
    + f"\n\nAll solutions with a batch from 2 to 1,024. The log prints {printed_loss.text} for validation and"
    f" {printed_train.text} for training."
)

# %% tags=["hide-input"]
usual = [s for s in solutions if s.batch & (s.batch - 1) == 0]
whole = [s for s in solutions if trains_so(s.batch)]
solved = usual[0]
residuals = {
    row[1]: abs(
        log["weights"]["clip"] * float(row[3])
        + log["weights"]["mrl"] * float(row[4])
        - float(row[2])
    )
    for row in (stuck_train, stuck_validation)
}
Markdown(
    f"Among powers of two there is {len(usual)} solution, and {len(whole)} that prints the training loss too:"
    f" **{solved.pairs:,} pairs in batches of {solved.batch}**,"
    f" the last of {solved.last_batch}. The weights check too: 0.25 CLIP + 1.0 MRL differs from the printed total by"
    f" {residuals['train']:.6f} (train) and {residuals['validation']:.6f} (validation), within rounding."
)

# %% [markdown]
# The loss compared each pair with 127 others, not with 63. Either the run did not use the batch of 64 that the log
# quotes from a configuration file, or two processes of 64 pooled their negatives: halves of 1,492 pairs end in batches
# of 20, and 2 × (23 × 64 + 20) prints the same digits. Either way the advice to double the batch from 64 to 128 starts
# from the wrong number of negatives. And the similarities no longer told pairs apart, to the precision printed, of
# which nearly constant embeddings, on one side or on both, are the simplest cause. Four odd batch sizes fit the
# validation digits as well. At chance a loss is at most ln(batch), though, and for those four that lies below the
# training loss printed beside it: if training and validation shared one batch size and both were at chance, the
# solution is the only one.
#
# ### Where a healthy model starts
#
# The book's task: small scenes of three coloured shapes, seen as the patches of a frozen image tower, against the
# caption's vector from a frozen text tower. The connectors are those of the log, scaled down: a perceiver or a direct
# projector, mean or attention pooling. The task was made easier once before any recorded run, by leaving out of the
# captions where the shapes lie: with places named, healthy connectors learned next to nothing in the time there is.

# %%
pairs = scenes(size.train, seed=0).features(seed=0)
test = scenes(512, seed=1).features(seed=1)
PERCEIVER = AlignmentSettings(
    WIDTH, WIDTH, size.widths[-1], ResamplerSettings(size.width, 4, 2, 2)
)
CONNECTORS = {
    "perceiver, mean": PERCEIVER,
    "perceiver, attention": replace(PERCEIVER, pooling="attention"),
    "direct, mean": replace(PERCEIVER, connector="direct"),
    "direct, attention": replace(
        PERCEIVER, connector="direct", pooling="attention"
    ),
}
healthy_fit = FitSettings(
    size.steps,
    lr=2e-3,
    batch=size.batch,
    warmup=0,
    clip=math.inf,
    schedule="constant",
)
BATCHES = (32, 64, 128, 256)


def first_loss(start: Run, batch: int) -> float:
    """The CLIP loss before any training, in nats, on one batch of test pairs."""
    bridge = start.build()
    with torch.no_grad():
        return info_nce(*bridge(test.patches[:batch], test.text[:batch])).item()


starts = {
    name: [Run(bridge, healthy_fit, seed) for seed in range(run.seeds)]
    for name, bridge in CONNECTORS.items()
}
healthy = train_bridges(
    [r for group in starts.values() for r in group],
    pairs,
    size.widths,
    run.device,
    "healthy connectors",
)
final_r1 = healthy.measure(test, lambda e: recall(e.image, e.text).at[1])
learned = final_r1 > 10 * 100 / len(test)
first = {
    batch: np.array([first_loss(r, batch) for r in healthy.runs])
    for batch in BATCHES
}

# %% tags=["hide-input"] mystnb={"figure": {"caption": "CLIP loss before training minus ln(batch), at CLIP's usual first temperature of 0.07. Each dot is one connector and seed that then learned; the log's expectation of 2 to 3 is the shaded band.", "name": "fig-stuck-start"}, "image": {"alt": "Dots of initial loss minus the chance line for batches 32, 64, 128 and 256. All lie above zero. The shaded band of the log's expected 2 to 3 nats lies below zero throughout and falls as the batch grows."}}
figure, axes = plt.subplots(figsize=(7.2, 3))
x = np.arange(len(BATCHES))
axes.fill_between(
    x,
    [2 - chance_loss(b) for b in BATCHES],
    [3 - chance_loss(b) for b in BATCHES],
    color=COLOURS["amber"],
    alpha=0.3,
    label="start at 2 to 3, as the log expects",
)
kept = learned.numpy()
jitter = np.linspace(-0.12, 0.12, int(kept.sum()))
for i, batch in enumerate(BATCHES):
    axes.plot(
        i + jitter,
        first[batch][kept] - chance_loss(batch),
        ".",
        color=COLOURS["blue"],
        label="connectors that learned" if i == 0 else None,
    )
axes.axhline(
    0, color="black", linewidth=0.8, linestyle="-", label="chance, ln(batch)"
)
axes.set_xticks(x, [str(b) for b in BATCHES])
axes.set(xlabel="batch size (pairs)", ylabel="first loss − ln(batch) (nats)")
axes.legend(loc="lower left", fontsize=9)
plt.show()

# %% [markdown]
# Random embeddings disagree with every pairing, and at a temperature of 0.07 they pay for it: a healthy model starts
# *above* chance. A first loss of 4.8 at batch 128 is no alarm; a last one is.
#
# ### What the logger hides
#
# Each step computes one Matryoshka width {cite}`kusupati2022matryoshka`, and the logger writes it down as `loss_mrl`:

# %% tags=["remove-input"]
show_source(log_as_written)

# %%
# A stuck model and a healthy one, looked at with fixed weights over the same batches.
STUCK = replace(PERCEIVER, resampler=replace(PERCEIVER.resampler, layer_norm=False))
stuck_fit = replace(healthy_fit, lr=0.1)
collapsed = train_bridges(
    [Run(STUCK, stuck_fit, seed) for seed in range(run.seeds)],
    pairs,
    size.widths,
    run.device,
    "high rate, no LayerNorm",
)


def logged_and_full(embeddings, batch: int = size.batch) -> tuple[float, ...]:
    """Mean logged loss_mrl, mean full sum, spread of the logged values, and the mean CLIP loss, over test batches."""
    logged, full, clip = [], [], []
    widths = sampled_widths(4 * len(test) // batch, size.widths)
    for step, sampled in enumerate(widths):
        i = step * batch % len(test)
        batch_of = (
            embeddings.image[i : i + batch],
            embeddings.text[i : i + batch],
            embeddings.scale,
        )
        _, one = alignment_loss(*batch_of, size.widths, sampled)
        _, every = alignment_loss(*batch_of, size.widths)
        logged.append(log_as_written(one)["loss_mrl"].item())
        full.append(log_as_written(every)["loss_mrl"].item())
        clip.append(every["loss_clip"].item())
    return np.mean(logged), np.mean(full), np.std(logged), np.mean(clip)


def seen(bridges: Bridges, indices: list[int]) -> np.ndarray:
    """`logged_and_full` of the chosen bridges."""
    return np.array(
        [logged_and_full(e) for i, e in bridges.embed(test) if i in indices]
    )


final = collapsed.measure(test, lambda e: held_out_loss(e, size.batch))
at_chance = [i for i, loss in enumerate(final.tolist()) if stuck(loss, size.batch)]
logger_healthy = seen(healthy, list(range(run.seeds)))
logger_stuck = seen(collapsed, at_chance)
ratio = mean_interval((logger_healthy[:, 0] / logger_healthy[:, 1]).tolist())
difference = mean_interval(
    (
        abs(logger_stuck[:, 1] / len(size.widths) - logger_stuck[:, 3])
        / logger_stuck[:, 3]
    ).tolist()
)

# %% tags=["hide-input"]
rows = []
for name, table in (
    ("healthy perceiver", logger_healthy),
    (f"stuck perceiver ({len(at_chance)} of {run.seeds} seeds)", logger_stuck),
):
    logged, full, _, clip = (mean_interval(column.tolist()) for column in table.T)
    scatter = f"{number(table[:, 2].min())} to {number(table[:, 2].max())}"
    rows.append(f"| {name} | {clip} | {logged} | {scatter} | {full} |")
Markdown(
    "| model | CLIP loss | `loss_mrl` as logged | its standard deviation from step to step | all widths |\n"
    "|---|---|---|---|---|\n"
    + "\n".join(rows)
    + f"\n\nNats, mean [95 % interval] over seeds, the standard deviation from the lowest seed to the highest;"
    f" {len(size.widths)} widths. In the stuck models the logged value and the CLIP loss differ by at most"
    f" {np.abs(logger_stuck[:, 0] - logger_stuck[:, 3]).max():.2g} nats."
)

# %% [markdown]
# So the log is right about its logger: what it prints is one width's loss, about one part in as many as there are widths
# of the sum it is named after. But that is not why CLIP and MRL print the same digits in the stuck run. At chance *every*
# prefix costs $\ln b$; average over all widths and the two are still equal.
#
# ### Which faults print these digits?
#
# Five faults that keep a model from learning are planted, four of which end on the line, and a healthy case. None of
# these seeds, nor this width and batch, was used when the lines of the instrument were set (that was done at width 16
# and batch 32).


# %%
def planted(
    fault: str,
) -> tuple[Features, Features, AlignmentSettings, FitSettings]:
    """Training pairs, test pairs, bridge and settings under a fault."""
    bridge = STUCK if fault == "collapse" else PERCEIVER
    rate = {"collapse": 0.1, "frozen": 0.0}.get(fault, 2e-3)
    steps = size.steps if fault in ("healthy", "frozen") else size.long

    def broken(f: Features) -> Features:
        patches, text = f.patches, f.text
        if fault == "constant text":
            text = text[:1].expand_as(text)
        if fault == "constant image":
            patches = patches[:1].expand_as(patches)
        if fault == "shuffled pairs":
            shuffle = torch.Generator().manual_seed(5)
            text = text[torch.randperm(len(text), generator=shuffle)]
        return Features(patches, text)

    settings = replace(healthy_fit, lr=rate, steps=steps)
    return broken(pairs), broken(test), bridge, settings


gallery = scenes(solved.pairs, seed=2).features(seed=2)
faults = {}
for fault in ("healthy", *FAULTS):
    train_on, judge_on, bridge, settings = planted(fault)
    found = train_bridges(
        [Run(bridge, settings, 100 + seed) for seed in range(run.seeds)],
        train_on,
        size.widths,
        run.device,
        fault,
    )
    held_out = found.measure(judge_on, lambda e: held_out_loss(e, size.batch))
    faults[fault] = found, judge_on, held_out


# %% tags=["hide-input"]
def misfit(fault: str) -> np.ndarray:
    """Units of the last printed digit between the log's validation figures and each seed's, on as many pairs."""
    shuffled = torch.randperm(
        len(gallery), generator=torch.Generator().manual_seed(6)
    )
    data = {
        "constant text": Features(
            gallery.patches, gallery.text[:1].expand_as(gallery.text)
        ),
        "constant image": Features(
            gallery.patches[:1].expand_as(gallery.patches), gallery.text
        ),
        "shuffled pairs": Features(gallery.patches, gallery.text[shuffled]),
    }.get(fault, gallery)
    worst = []
    for _, e in faults[fault][0].embed(data):
        recalls = recall(e.image, e.text, tuple(printed_recalls), ties="index")
        misfits = [printed_loss.misfit(held_out_loss(e, solved.batch))]
        misfits += [
            printed.misfit(recalls.at[k]) for k, printed in printed_recalls.items()
        ]
        worst.append(max(misfits))
    return np.array(worst)


constant = max(  # of the log's figures, for embeddings that are all one
    printed_loss.misfit(solved.loss),
    *(p.misfit(chance_recall(k, solved.pairs)) for k, p in printed_recalls.items()),
)
rows, by_curve, by_tensors, misfits = [], {}, {}, {}
for fault, (found, judge_on, held_out) in faults.items():
    fell = [
        i
        for i in range(run.seeds)
        if stuck(held_out[i].item(), size.batch) != (fault == "healthy")
    ]
    curves = {i: found.curve(i).tolist() for i in fell}
    inputs = judge_on.patches, judge_on.text
    by_curve[fault] = [diagnose(curves[i], size.batch) for i in fell]
    by_tensors[fault] = [diagnose(curves[i], size.batch, inputs) for i in fell]
    misfits[fault] = misfit(fault)[fell]
    right = sum(d.candidates == (fault,) for d in by_tensors[fault])
    kept_in = sum(fault in d.candidates for d in by_curve[fault])
    above = mean_interval(
        [held_out[i].item() - chance_loss(size.batch) for i in fell]
    )
    digits = f"{number(misfits[fault].min())} to {number(misfits[fault].max())} | {(misfits[fault] <= 0.5).sum()}"
    left = sorted({len(d.candidates) for d in by_curve[fault]})
    rows.append(
        f"| {fault} | {len(fell)} | {above} | {digits} | {kept_in} | {' or '.join(map(str, left))} | {right} |"
    )
Markdown(
    "| planted | runs | held-out loss − ln(batch) (nats) | misfit to the log (last digits) | prints the log's digits |"
    " kept by the curve | candidates left | named with the inputs |\n"
    "|---|--:|---|---|--:|--:|--:|--:|\n"
    + "\n".join(rows)
    + f"\n\nRuns: those of {run.seeds} seeds on which the fault took hold (or, healthy, that learned). A misfit of up to 0.5"
    f" prints the log's very digits; exactly constant embeddings have {number(constant)}. Kept: the planted"
    " fault is among the candidates that `diagnose` gives for the loss curve. Named: with the inputs it is the only one."
)

# %% [markdown]
# (verdict-b6)=
# (verdict-b7)=
# (verdict-b8)=
# ## Verdict

# %% tags=["hide-input"]
run.note(
    ledger.judge(
        "B6",
        {"logged_over_full": ratio, "hidden_difference_when_stuck": difference},
    )
)


# %% tags=["hide-input"]
def by_seed(values: np.ndarray):
    """Mean over the connectors that learned, one value for each seed, with its interval."""
    values = np.where(kept, values, np.nan).reshape(len(CONNECTORS), run.seeds)
    return mean_interval(np.nanmean(values, axis=0).tolist())


run.note(
    ledger.judge(
        "B7",
        {
            "healthy_initial_loss": by_seed(first[128]),
            "healthy_start_below_chance": by_seed(
                np.mean([first[b] - chance_loss(b) for b in BATCHES], axis=0)
            ),
        },
    )
)

# %% tags=["hide-input"]
run.note(
    ledger.judge(
        "B8",
        {
            "batch_size_solved": solved.batch,
            "weighted_sum_residual": max(residuals.values()),
            "constant_text_misfit": float(misfits["constant text"].min()),
        },
        n=len(misfits["constant text"]),
    )
)

# %% tags=["nbval-check-output", "keep_output", "remove-input"]
print(run.verdict_lines())

# %% [markdown]
# ## What holds instead
#
# The log's last epoch says that the model's similarities did not depend on its inputs. From there the digits stop
# helping. A bridge that collapsed, a text tower that returns one vector, an image tower that does the same and pairs
# that were shuffled all run into the line. Whether they also *print* the same four digits depends on how nearly
# constant the embeddings have become: a loss that is flat to second order pulls them in slowly.

# %% tags=["remove-input"]
Markdown(
    "In the table "
    + ", ".join(
        f"{(misfits[fault] <= 0.5).sum()} of {len(misfits[fault])} runs with {fault} print them (misfits"
        f" {number(misfits[fault].min())} to {number(misfits[fault].max())})"
        for fault in FAULTS
        if fault != "frozen"
    )
    + f". After {size.long} steps that is a statement about how far this short training had come as much as about the fault."
)

# %% [markdown]
# One constant-text run that prints the log's figures is enough to keep the text tower a suspect, so that part of B8 is
# judged by the closest seed. The criterion had left open how seeds combine, and this was settled after scouting; of its
# three parts, then, two are arithmetic and the third rests on the closest of a few trained runs. That constant images
# did not print the digits here does not clear the image tower either. The log exchanged the text encoder between its
# two models; a minute with the tensors would have settled what ten epochs of log cannot.
#
# {numref}`fig-stuck-faults` shows why a curve cannot: collapse, constant text, constant image and shuffled pairs run into
# the same line, and from the curve alone the instrument declares these four indistinguishable. With the inputs of both
# sides it tells them apart: an input that is constant, or a probe that finds no relation between the two, is not the
# bridge's fault.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Training loss per term under each planted fault, one seed each, averaged over ten steps. All but the healthy and the frozen run end on ln(batch), dotted.", "name": "fig-stuck-faults"}, "image": {"alt": "Six training curves against step. The healthy curve falls below the dotted chance line; the frozen one stays above it; collapse, constant text, constant image and shuffled pairs converge onto the line."}}
figure, axes = plt.subplots(figsize=(7.2, 3.4))
for (fault, (found, _, _)), colour in zip(
    faults.items(), COLOURS.values(), strict=False
):
    curve = found.curve(0).cpu().numpy()
    smooth = np.convolve(curve, np.ones(10) / 10, mode="valid")
    axes.plot(np.arange(len(smooth)) + 5, smooth, color=colour, label=fault)
axes.axhline(
    chance_loss(size.batch), color=COLOURS["grey"], linestyle=":", linewidth=1
)
axes.set(
    xlabel="training step",
    ylabel="loss per unit of weight (nats)",
    ylim=(0, 2 * chance_loss(size.batch)),
)
axes.legend(ncols=2)
plt.show()

# %% [markdown]
# ## Tweak it
#
# Which numbers of pairs would print the log's digits, if the batch had been another? Move the batch size. The log quotes
# 64; at 64 no number of pairs comes near. In a live kernel, choose another figure of the log to be matched alone.


# %% tags=["hide-input"]
def frame(batch: int, matched: str) -> tuple[Figure, str]:
    """The misfit of every number of pairs at one batch size."""
    counts = np.arange(2880, 3005)
    loss = np.array(
        [printed_loss.misfit(mean_chance_loss(int(n), batch)) for n in counts]
    )
    ranks_ = {
        k: np.array([p.misfit(100 * k / n) for n in counts])
        for k, p in printed_recalls.items()
    }
    worst = {
        "all figures": np.max([loss, *ranks_.values()], axis=0),
        "loss alone": loss,
        "retrieval alone": np.max(list(ranks_.values()), axis=0),
    }[matched]
    figure = Figure(figsize=(7.2, 3.2))
    axes = figure.subplots()
    axes.semilogy(counts, worst, color=COLOURS["blue"])
    axes.axhline(0.5, color=COLOURS["orange"], linestyle="--", linewidth=1)
    fits = counts[worst <= 0.5 + 1e-9]
    axes.plot(fits, worst[worst <= 0.5 + 1e-9], "o", color=COLOURS["orange"])
    axes.set(
        xlabel="pairs in the validation set",
        ylabel="misfit (units of the last digit)",
        ylim=(0.01, 1e5),
        title=f"batch {batch}: {len(fits)} solutions"
        + (f", {fits[0]:,}" if len(fits) == 1 else ""),
    )
    return figure, (
        f"Misfit to {matched} of the log against the number of pairs at batch {batch}, with the line at half a digit"
        f" under which the log's figures are printed: {len(fits)} numbers of pairs lie under it."
    )


Explorer(
    "batch size",
    {str(b): b for b in (32, 64, 96, 112, 120, 123, 125, 128, 132, 160, 256)},
    frame,
    choices={"matched": ["all figures", "loss alone", "retrieval alone"]},
)

# %% [markdown]
# ## Try it on yours
#
# On the command line, `python -m bridges checkup --loss log.csv --batch-size 128` reads a loss log. Here, set the parameter
# `losses` to a log of your own, with its `batch_size` and the sum of its loss `weight`s. Without one, a
# curve from this chapter is written to a file and read back.

# %%
if mine is None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "losses.csv"
        curve = collapsed.curve(at_chance[0]).tolist()
        path.write_text(
            "step,loss\n" + "\n".join(f"{i},{x}" for i, x in enumerate(curve))
        )
        mine, batch_size, weight = read_losses(path), size.batch, 1.0
read_loss(mine, batch_size, weight)

# %% [markdown]
# With the tensors at hand, `diagnose` goes on where the curve ends:

# %%
found, judge_on, _ = faults["constant text"]
embeddings = next(e for _, e in found.embed(judge_on))
diagnose(
    found.curve(0).tolist(),
    size.batch,
    inputs=(judge_on.patches, judge_on.text),
    outputs=(embeddings.image, embeddings.text),
)

# %% [markdown]
# ## Provenance

# %% tags=["remove-input"]
run.measure(
    solutions=len(solutions),
    solutions_with_training_loss=len(whole),
    pairs_solved=solved.pairs,
    named_by_tensors=sum(
        d.candidates == (fault,) for fault, ds in by_tensors.items() for d in ds
    ),
    planted=sum(len(ds) for ds in by_tensors.values()),
)
run.close()
