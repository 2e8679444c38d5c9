# %% [markdown]
# # Peak and collapse
#
# One language model reads a question, a small translator turns what it makes of it into a few soft tokens, and another
# language model answers from them. In the log's run accuracy rose to a peak and fell to almost nothing, while the training
# loss stayed where it was. This chapter trains such a translator without any of the log's fixes and waits for the collapse.
# Then it goes looking for one.

# %% tags=["parameters"]
profile = "quick"  # quick | full
seeds = 0  # at least 2; 0 takes the profile's number
device = "auto"  # auto | cpu | cuda | mps
out = ""  # where the record goes, a .json file

# %% tags=["hide-input"]
import math
from dataclasses import dataclass, replace

import matplotlib.pyplot as plt
import torch
from bridges.connectors.translator import GatedTranslator, TranslatorSettings
from bridges.hosts.causal import answer_loss
from bridges.instruments.generation import degeneration
from bridges.instruments.uncertainty import Estimate, mean_interval, wilson
from bridges.benches.answering import BridgeRecipe, Trained, train_bridges
from bridges.benches.small_pairs import HOST_SEEDS, bench, train_arms
from bridges.benches.exams import LONGEST, bridge_logits, examine
from bridges.training.fit import FitSettings, Group
from IPython.display import Markdown
from matplotlib.figure import Figure
from press import HOSTS, ledger
from press.claims import load_claims
from press.data import recorded
from press.explorer import Explorer
from press.figures import COLOURS, draw_intervals, use_style
from press.provenance import begin, refusing
from press.source import show_source
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar


@dataclass(frozen=True)
class Size:
    """What a profile means in this chapter."""

    seeds: int
    others: int  # seeds of the settings that are searched
    leak: bool  # whether one of them lets the source read the solutions
    host: str  # the size of the pretrained hosts
    recipe: int  # steps after which the book's recipe ends
    searched: int  # steps of the settings that are searched, question hidden
    visible: int  # the same, question visible
    batch: int
    rate: float
    asked: int  # questions of a look
    translator: TranslatorSettings


SIZES = {
    "quick": Size(
        seeds=5,
        others=2,
        leak=False,
        host="quick",
        recipe=200,
        searched=128,
        visible=32,
        batch=16,
        rate=5e-3,
        asked=100,
        translator=TranslatorSettings(bottleneck=64, tokens=8, depth=2, heads=8),
    ),
    "full": Size(
        seeds=10,
        others=6,
        leak=True,
        host="full",
        recipe=600,
        searched=1600,
        visible=400,
        batch=64,
        rate=2e-3,
        asked=200,
        translator=TranslatorSettings(bottleneck=256, tokens=16, depth=6, heads=8),
    ),
}
run = begin(
    "peak_and_collapse",
    SIZES,
    profile=profile,
    seeds=seeds,
    device=device,
    out=out,
)
size = run.size
disable_progress_bar()
torch.set_num_threads(1)
use_style()

# %% [markdown]
# ## Symptom
#
# The log's trajectories, before its fixes and after them. Its accuracies move in steps of half a point, hence 200
# questions a look; so each point has an interval of its own, which the log does not draw.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The log's accuracies by training step, with 95 % Wilson intervals for 200 questions. Dotted: the target alone.", "name": "fig-peak-log"}, "image": {"alt": "Five lines of accuracy against training steps. Before the fixes the line stays low and falls towards zero. After them two lines rise to a peak within the first thousand steps and fall far below it, and one falls so from its first look on; the fourth, the efficient configuration, rises as well, falls by about a quarter and stays level."}}
log = recorded("translation_sweep")
trajectories = {
    "before the fixes": log["before the fixes"],
    **log["after the fixes"],
}
figure, axes = plt.subplots(figsize=(7.2, 3.6))
shown = ("grey", "blue", "orange", "green", "purple")
for (name, values), colour in zip(trajectories.items(), shown, strict=True):
    looks = [log["between looks (steps)"] * (i + 1) for i in range(len(values))]
    shares = [
        wilson(round(v / 100 * log["questions"]), log["questions"]) for v in values
    ]
    points = [
        Estimate(100 * e.mean, 100 * e.low, 100 * e.high, e.n) for e in shares
    ]
    draw_intervals(
        axes, looks, points, label=name, color=COLOURS[colour], capsize=2
    )
axes.axhline(log["target alone (%)"], color="black", linewidth=0.8, linestyle=":")
axes.set(xlabel="training step", ylabel="bridged accuracy (%)", ylim=(0, 100))
figure.legend(loc="outside lower center", ncols=3)
plt.show()

# %% [markdown]
# ## Claim

# %% tags=["remove-input"]
claims = load_claims()
claims["C14"]

# %% [markdown]
# ## Mechanism
#
# The translator has learned queries $q_1, \dots, q_K$. In each layer they read the source's hidden states $H$ by
# cross-attention behind a gate, read each other, and pass a feed-forward; at the end a linear map takes them to the
# target's width:
#
# $$
# \begin{aligned}
# x &\leftarrow x + \tanh(g)\, \mathrm{attend}(x, H), \\
# x &\leftarrow x + \mathrm{mix}(x), \\
# x &\leftarrow x + \mathrm{think}(x).
# \end{aligned}
# $$ (eq-peak-gate)

# %% tags=["remove-input"]
show_source(GatedTranslator, start="def forward", lines=14)

# %% [markdown]
# Both hosts are frozen. The loss is the cross-entropy of the worked solution behind the soft tokens, in nats per token. The
# log names this objective as one of its four root causes: it *can* fall by driving the target somewhere from where it talks
# in loops. If that is what happens, the loss and the accuracy must part ways in an ordinary run.
#
# The task is GSM8K's in small {cite}`cobbe2021gsm8k`: problems of one or two steps, with a solution that ends in the answer.
# The source is a small Mistral, the target a small Llama, each trained on the spot to solve the problems by itself, with
# tokenizers of their own. In the first of the book's two settings the *question is hidden*: the target reads the soft tokens
# and `answer:`, nothing else, so that what it knows of the question came over the bridge. In the second the *question is
# visible* behind the soft tokens.

# %%
with refusing():
    benches = [
        bench(h, size.host, HOSTS, run.device, asked=size.asked)
        for h in tqdm(HOST_SEEDS, desc="hosts", leave=False)
    ]
benches = [replace(b, exams={"report": b.exams["report"]}) for b in benches]
first = benches[0].exams["report"].problems[0]
Markdown(f"For example *{first.question}*, solution `{first.solution()}`.")

# %% [markdown]
# ## Experiment
#
# ### The log's recipe before its fixes
#
# Pure cross-entropy, no norm on the soft tokens, gates at zero in the common group, clipping at 1, linear decay. The
# log's peak came at step 750 of 2,000; here the run goes on for 2.7 times as many steps as the book's recipe takes: 200 of
# 32 problems each for the hosts of the quick profile, 600 of 64 for those of the full one. (The recipe at the end of
# [staying at the peak](staying_at_the_peak.ipynb) is another, and longer.) In the quick profile batches here are half
# as large, for time: the noisier of the two, so the likelier to lose a peak. For time, too, that profile's search
# below was cut from 160 steps to 128 and from 48 to 32, after the longer version had given its verdict; the verdict
# is the same.

# %%
COMMON = (Group("translator.gates.", rate=1.0),)
STEPS = round(2.7 * size.recipe)
before = BridgeRecipe(
    FitSettings(STEPS, size.rate, size.batch, 20, schedule="linear", groups=COMMON),
    size.translator,
    scale=None,
)
every = STEPS // 9
long_looks = range(every, STEPS + 1, every)
runs = train_arms(
    {"before the fixes": before},
    range(run.seeds),
    benches,
    looks=long_looks,
    describe="before the fixes",
)
long_runs = [runs["before the fixes", s] for s in range(run.seeds)]

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The log's recipe before its fixes, question hidden: accuracy and training loss (mean of 20 steps) of every seed. Dotted: source alone.", "name": "fig-peak-before"}, "image": {"alt": "Two panels against training steps. Left: the accuracy of every seed rises, with small dips on the way, to nine tenths or more and ends at its highest or next to it. Right: the loss of every seed falls."}}
lines = benches[0].four_lines(long_runs[0].bridge, "report", visible=False)


def smooth(losses: list[float], step: int) -> float:
    """Mean loss of the 20 steps that end at `step`."""
    part = losses[max(0, step - 20) : step]
    return sum(part) / len(part)


def curves(axes, trained: Trained, **look) -> None:
    """Accuracy and smoothed loss of one run."""
    found = trained.accuracies("report")
    axes[0].plot(list(found), list(found.values()), **look)
    at = range(10, len(trained.losses) + 1, 5)
    axes[1].plot(list(at), [smooth(trained.losses, s) for s in at], **look)


figure, panels = plt.subplots(1, 2, figsize=(7.2, 3))
for trained in long_runs:
    curves(panels, trained, color=COLOURS["blue"], linestyle="-", alpha=0.7)
panels[0].axhline(
    lines["source alone"].accuracy, color="black", linewidth=0.8, linestyle=":"
)
panels[0].set(xlabel="training step", ylabel="bridged accuracy (%)", ylim=(0, 103))
panels[1].set(xlabel="training step", ylabel="loss (nats per token)")
plt.show()

# %% tags=["hide-input"]
ends = {s: list(t.accuracies("report").values()) for s, t in enumerate(long_runs)}
each = [
    b.four_lines(long_runs[i].bridge, "report", visible=False)
    for i, b in enumerate(benches)
]
final = mean_interval([found[-1] for found in ends.values()])
held = [100 * min(f[f.index(max(f)) :]) / max(f) for f in ends.values()]
kept = mean_interval(held)
Markdown(
    "| line | "
    + " | ".join(f"host {h}" for h in HOST_SEEDS)
    + " |\n|---|--:|--:|\n"
    + "\n".join(
        f"| {name} | "
        + " | ".join(f"{e[name].accuracy:.0f} %" for e in each)
        + " |"
        for name in each[0]
    )
    + f"\n\nOne bridge for each host, after {STEPS} steps. Over all {run.seeds} seeds the last accuracy is {final} %, n ="
    f" {final.n}; "
    + (
        "every run ends at its highest look."
        if min(held) == 100
        else f"after its highest look no run falls below {min(held):.0f} % of it."
    )
)

# %% [markdown]
# ### The search
#
# What would make it collapse? Every setting is trained for fewer steps and at a constant rate, and where the question
# is visible for the fewest and at a fifth of it. Beyond that each changes only what its name says:
#
# - *four times the rate, no clipping*: the log suspects the optimiser of passing through a good region.
# - *64 problems*: so few that they can be memorised.
# - *source reads the solutions*: in training the source is given question and solution, at the looks the question alone.
#   It is left to the full profile, for time, after two quick runs had shown no fall; [beyond the
#   target](beyond_the_target.ipynb) looks into such a leak for itself.
# - *question visible*: as in the log, as far as its code shows.
# - *labels shifted twice*: the same with an error that is easily made: the training loop shifts the labels by one, and the
#   host's own loss shifts them again. Every position is asked for the token after the next.

# %%
steady = FitSettings(
    size.searched, size.rate, size.batch, 20, schedule="constant", groups=COMMON
)
brief = replace(steady, steps=size.visible, lr=size.rate / 5)
visible = replace(before, fit=brief, visible=True)
LEAK = "source reads the solutions"
SEARCHED = {
    "four times the rate, no clipping": replace(
        before, fit=replace(steady, lr=4 * size.rate, clip=math.inf)
    ),
    "64 problems": replace(before, fit=steady),
    **({LEAK: replace(before, fit=steady)} if size.leak else {}),
    "question visible": visible,
    "labels shifted twice": replace(visible, shift=1),
}


def altered(name: str, own):
    """The bench of a setting that changes what is trained on."""
    if name == "64 problems":
        return replace(own, taught=own.taught.first(64))
    if name == LEAK:
        told = examine(own.taught.problems, own.pair, with_answers=True)
        return replace(own, taught=told)
    return own


def seeds_of(name: str) -> range:
    """All seeds for the setting in which labels and accuracy part, fewer for the others."""
    return range(
        run.seeds if name == "labels shifted twice" else min(run.seeds, size.others)
    )


def looks_of(recipe: BridgeRecipe) -> list[int]:
    """Eight looks; where the question is visible and a bridge starts high, the first step and four more."""
    steps, often = recipe.fit.steps, 4 if recipe.visible else 8
    first = [1] if recipe.visible else []
    return [*first, *range(steps // often, steps + 1, steps // often)]


searched = {}
for kind, recipe in (("question hidden", before), ("question visible", visible)):
    names = [n for n, r in SEARCHED.items() if r.visible == recipe.visible]
    homes = {name: [altered(name, b) for b in benches] for name in names}
    members = [(name, s) for name in names for s in seeds_of(name)]
    found = train_bridges(
        [(SEARCHED[n], s, homes[n][s % len(benches)]) for n, s in members],
        looks=looks_of(SEARCHED[names[0]]),
        describe=kind,
    )
    searched |= dict(zip(members, found, strict=True))

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The settings searched: accuracy (blue, left axis) and training loss (orange, right axis, mean of 20 steps), one line a seed.", "name": "fig-peak-search"}, "image": {"alt": "Four small panels of accuracy and loss against training steps. With the high rate and the small pool, accuracy rises unevenly or stalls at different heights. With the question visible it is high from the first step to the last. With labels shifted twice it starts as high and falls to nearly nothing, while the loss stays high and falls slowly."}}
figure, grid = plt.subplots(2, math.ceil(len(SEARCHED) / 2), figsize=(7.2, 4.4))
for axes, name in zip(grid.flat, SEARCHED, strict=False):
    right = axes.twinx()
    right.grid(False)
    right.spines["right"].set_visible(True)
    for s in seeds_of(name):
        curves(
            (axes, right), searched[name, s], color=COLOURS["blue"], linestyle="-"
        )
        right.lines[-1].set_color(COLOURS["orange"])
        right.lines[-1].set_linestyle("--")
    axes.set_title(name, fontsize=9)
    axes.set_ylim(0, 103)
    right.set_ylim(0, None)
    axes.tick_params(labelsize=8)
    right.tick_params(labelsize=8)
    if axes in grid[:, -1]:
        right.set_ylabel("loss (nats per token)", color=COLOURS["orange"])
for axes in grid.flat[len(SEARCHED) :]:
    axes.set_visible(False)
figure.supxlabel("training step", fontsize=10)
figure.supylabel("bridged accuracy (%)", fontsize=10, color=COLOURS["blue"])
plt.show()


# %% tags=["hide-input"]
def loss_change(trained: Trained) -> float:
    """Training loss at the last look minus that at the highest, each the mean of 20 steps, in size."""
    found = trained.accuracies("report")
    peak = max(found, key=found.__getitem__)
    start = min(
        20, len(trained.losses)
    )  # the first 20 steps stand for a look before them
    return abs(
        smooth(trained.losses, len(trained.losses))
        - smooth(trained.losses, max(peak, start))
    )


def collapsed(trained: Trained) -> float:
    """1 for a run whose last accuracy is below half of its highest, else 0."""
    found = list(trained.accuracies("report").values())
    return float(found[-1] < max(found) / 2)


def loops(trained: Trained, own) -> float:
    """Share of the last look's answers that loop or are empty, in points."""
    said = trained.looks[max(trained.looks)]["report"]
    found = degeneration(said.ids, own.pair.target_words.eos_token_id, LONGEST)
    return 100 * (found.loops + found.empty)


ALL = {"before the fixes": long_runs} | {
    name: [searched[name, s] for s in seeds_of(name)] for name in SEARCHED
}
drops = {
    name: mean_interval([t.drop("report") for t in found])
    for name, found in ALL.items()
}
worst = max(drops, key=lambda name: drops[name].mean)
changes = {
    name: mean_interval([loss_change(t) for t in found])
    for name, found in ALL.items()
}


def told(values: list[float]) -> str:
    """Mean and interval, or the values themselves where they are too few for one."""
    if len(values) > 2:
        return str(mean_interval(values))
    return ", ".join(f"{value:.3g}" for value in values)


rows = []
for name, found in ALL.items():
    last = [list(t.accuracies("report").values())[-1] for t in found]
    looped = [loops(t, benches[t.seed % 2]) for t in found]
    rows.append(
        f"| {name} | {len(found)} | {told(last)} | {told([t.drop('report') for t in found])} |"
        f" {sum(map(collapsed, found)):.0f} of {len(found)} | {told([loss_change(t) for t in found])} |"
        f" {told(looped)} |"
    )
Markdown(
    "| setting | n | last accuracy (%) | drop (points) | collapsed | change of loss (nats) | loops or empty (%) |\n"
    "|---|--:|---|---|---|---|---|\n"
    + "\n".join(rows)
    + f"\n\nMean [95 % interval] over n seeds, or the two values. A drop is the highest of {len(list(long_looks))} looks of"
    f" {size.asked} questions, or of eight or five, minus the last: a level run shows one of a few points by chance. Collapsed: the"
    f" last accuracy is below half of the highest. The largest mean drop: *{worst}*."
)

# %% [markdown]
# (verdict-c14)=
# ## Verdict

# %% tags=["hide-input"]
run.note(
    ledger.judge(
        "C14",
        {
            "collapse_share": mean_interval([collapsed(t) for t in long_runs]),
            "loss_change_during_collapse": changes[worst],
        },
    )
)

# %% tags=["nbval-check-output", "keep_output", "remove-input"]
print(run.verdict_lines())

# %% [markdown]
# ## What holds instead
#
# The recipe that the log blames does not collapse here, and at its end the bridge tells nearly all that the source
# knows. Within the steps they were given, neither a high rate nor a small pool shows a fall. That is weak evidence:
# with two runs each and fewer steps they had reached little that could be taken
# back. (Two more suspects, the end token and the way in which the answer is read off, have [a chapter of their
# own](padding_and_stopping.ipynb).) One setting comes nearest to the log's picture: a fall from high to almost
# nothing, loops or empty answers in part of it, and a loss that gives no alarm. But it starts at its peak, and its loss
# falls where the log's stayed level. Its translator, its hosts and its optimiser are those of the setting above it,
# which does not fall. What differs is what it is asked to learn.
#
# Before any training this can be seen in a number. A frozen host finds its own solutions likely: that is what made it a
# healthy baseline. So the loss of the training loop, on solutions that the host itself would give, must begin near zero
# when the question is visible and the bridge left out. If it begins at several nats, the loop asks for something else
# than what the host would say.


# %% tags=["hide-input"]
def first_loss(own, shift: int, hidden: bool = False) -> float:
    """Loss of the training loop without a bridge, on the exam's solutions."""
    exam = own.exams["report"]
    rows = torch.arange(len(exam.problems), device=exam.labels.device)
    with torch.no_grad():
        logits = bridge_logits(own.pair.target, None, exam, rows, not hidden)
    labels = exam.labels.roll(-shift, 1)
    if shift:
        labels[:, -shift:] = -100
    return answer_loss(logits, labels).item()


healthy = [first_loss(b, 0) for b in benches]
shifted = [first_loss(b, 1) for b in benches]
during = log["loss during the collapse (nats per token)"]
Markdown(
    "| labels | "
    + " | ".join(f"host {h}" for h in HOST_SEEDS)
    + " |\n|---|--:|--:|\n"
    "| as they should be | " + " | ".join(f"{x:.3f}" for x in healthy) + " |\n"
    "| shifted twice | " + " | ".join(f"{x:.3f}" for x in shifted) + " |\n\n"
    "Cross-entropy in nats per token of the target that reads the question and no soft tokens. The log's loss during its"
    f" collapse was {during[0]} to {during[1]}: a perplexity of {math.exp(during[0]):.0f} to {math.exp(during[1]):.0f}."
)

# %% [markdown]
# The log's code for the loss is not printed in it, so this remains a suspicion: that its loss, level at a height where a
# healthy host is not found, was not the loss of the answers. A shift is one way to that, padding or prompt counted as answer
# are others. A level loss while accuracy falls is in any case no sign of an objective that is too weak. It is a reason to
# ask what the objective is.
#
# ## Tweak it
#
# The run with labels shifted twice, look by look: what the target says to a question that it reads in full.

# %% tags=["hide-input"]
fallen = searched["labels shifted twice", 0]
sound = searched["question visible", 0]
words_shown = 14


def frame(step: int) -> tuple[Figure, str]:
    """Accuracy and loss up to a look, and what is said there."""
    figure = Figure(figsize=(7.2, 3.4))
    axes = figure.subplots()
    shown = []
    for trained, name, colour, style in (
        (sound, "labels right", "blue", "-"),
        (fallen, "labels shifted twice", "orange", "--"),
    ):
        found = trained.accuracies("report")
        axes.plot(
            list(found),
            list(found.values()),
            color=COLOURS[colour],
            linestyle=style,
            label=name,
        )
        axes.plot(step, found[step], "o", color=COLOURS[colour])
        said = " ".join(
            trained.looks[step]["report"].texts[0].split()[:words_shown]
        )
        shown.append((name, found[step], said))
    axes.set(xlabel="training step", ylabel="accuracy (%)", ylim=(-3, 103))
    figure.legend(loc="outside lower center", ncols=2)
    figure.suptitle(
        "\n".join(f"{name}: {said}" for name, _, said in shown),
        fontsize=9,
        ha="left",
        x=0.02,
    )
    return figure, " ".join(
        f"With {name} accuracy is {at:.0f} % at step {step}, and the target says: {said}."
        for name, at, said in shown
    )


explorer = Explorer(
    "training step",
    {str(s): s for s in looks_of(SEARCHED["labels shifted twice"])},
    frame,
)
explorer

# %% [markdown]
# ## Try it on yours
#
# Let your host answer some prompts by itself, greedily, and take the loss of these very answers in your training loop,
# with the connector left out. It must be far below one nat per token; `degeneration` counts what loops. Here the exam's
# solutions stand in for the answers, since this host gets nearly all of them right.

# %%
own = benches[0]
exam, end = own.exams["report"], own.pair.target_words.eos_token_id
said = lines["target alone"]
print(f"{first_loss(own, shift=0):.3f} nats per token")
degeneration(said.ids, end, LONGEST)

# %% [markdown]
# ## Provenance

# %% tags=["remove-input"]
run.measure(
    **{f"drop: {name}": found for name, found in drops.items()},
    **{f"change of loss: {name}": found for name, found in changes.items()},
    final_accuracy=final,
    kept_after_peak=kept,
)
run.given["largest drop"] = worst
run.close()
