# %% [markdown]
# # The sweep
#
# With its fixes in place the log ran four configurations, one time each. Three rose to a peak and lost more than half of
# it; the smallest lost a quarter and then stayed level. "Smallest model = most stable!", says the log, and plans smaller
# ones. This chapter runs the four again, scaled to small hosts and over many seeds, and asks what four runs can tell that
# differ in everything at once. Hardly a run collapses here. On average the smallest falls least again, but by two points
# or so where the log has thirty: no effect worth having. And what the log's own figures bear out is that its runs fell,
# the smallest too, and not that size made them fall.

# %% tags=["parameters"]
profile = "quick"  # quick | full
seeds = 0  # at least 2; 0 takes the profile's number
device = "auto"  # auto | cpu | cuda | mps
out = ""  # where the record goes, a .json file

# %% tags=["hide-input"]
from dataclasses import replace
from functools import partial
from statistics import fmean

import torch
from bridges.benches import answering
from bridges.benches.answering import BridgeRecipe
from bridges.benches.study import drop, peak
from bridges.connectors.translator import LOG, GatedTranslator
from bridges.instruments.uncertainty import best_of_looks, mcnemar, mean_interval, wilson
from bridges.tasks.gsm8k import marked_answer
from bridges.training.fit import GATE_GROUP, FitSettings
from bridges.training.losses import kl_as_written
from press.book import (
    BLUE, GREEN, GREY, HOSTS, ORANGE, PURPLE, Markdown, begin, claims, dots, explore, figure, lines, plt, recorded,
    table,
)  # fmt: skip
from scipy.stats import chi2_contingency

# Pairs: quick, full profile.
run = begin("the_sweep", globals(), seeds=(2, 10), host=("quick", "full"),  # the size of the pretrained hosts
    steps=(16, 12),  # the log's steps and warm-ups are divided by this,
    width=(16, 8),  # its bottlenecks by this,
    rate=(50, 30),  # and its learning rates multiplied by this
    batch=(8, 32), asked=(80, 200),  # questions of a look
    taught=(2000, 4000),  # problems to train on
)  # fmt: skip

# %% [markdown]
# ## Symptom
#
# The whole trajectories stand in {numref}`fig-peak-log`. What the log draws its conclusion from are two of each one's
# looks: the highest and the last.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Highest and last look of the log's four runs, with 95 % Wilson intervals for 200 questions. A small bar marks half of the highest, below which a run counts as collapsed here; dotted, the target alone.", "name": "fig-sweep-log"}, "image": {"alt": "Four rows, one a configuration, each with its highest accuracy to the right and its last one to the left. In the first two rows the last lies far left of the bar at half of the highest, in the third a little left of it, with an interval across it; in the row of the efficient configuration it lies between that bar and the highest, and the two intervals just overlap."}}
log = recorded("translation_sweep")
asked, gap = log["questions"], log["between looks (steps)"]
logged = log["after the fixes"]
axes = figure(height=2.5)
for label, pick, colour, nudge, mark in (
    ("highest", max, BLUE, -0.12, "o"),
    ("last", lambda v: v[-1], ORANGE, 0.12, "s"),
):
    seen = {name: wilson(round(pick(values) / 100 * asked), asked) for name, values in logged.items()}
    dots(axes, seen, colour=colour, nudge=nudge, mark=mark, legend=label)
for y, values in enumerate(logged.values()):
    axes.plot([max(values) / 200] * 2, [y - 0.3, y + 0.3], "-", color="black", lw=0.9)
axes.axvline(log["target alone (%)"] / 100, color="black", lw=0.8, ls=":")
axes.set(xlabel="bridged accuracy", xlim=(0, 1))
axes.xaxis.set_major_formatter("{x:.0%}")
axes.figure.legend(loc="outside right upper")
plt.show()

# %% [markdown]
# ## Claim

# %% tags=["remove-input"]
claims("C7")

# %% [markdown]
# ## Mechanism
#
# The log offers one: fewer parameters, a simpler loss landscape, steadier gradients. A comparison bears that out only if
# the runs differ in size and in nothing else that matters. Rate and length belong together: AdamW
# {cite}`loshchilov2019adamw` moves a weight by at most about its learning rate in a step ([how fast](rates.ipynb)). Under
# a linear warm-up over $W$ of $T$ steps and a linear decay to zero, which is what the log used, the most that a weight
# can travel is the area of a triangle,
#
# $$
# \sum_t \eta_t \;\approx\; \eta\,\frac{W}{2} + \eta\,\frac{T - W}{2} \;=\; \frac{\eta T}{2},
# $$ (eq-sweep-travel)
#
# whatever the warm-up. What the four differ in:

# %% tags=["hide-input"]
groups = recorded("gate_groups")
width = groups["translator"]["width of both models"]
RATES = {name: (rate, warmup) for name, rate, warmup, *_ in groups["sweep"]["rows"]}
SETTINGS = ("rate", "warm-up", "steps", "tokens", "layers", "bottleneck", "heads")
DESIGN = {
    n: (*RATES[n], gap * len(logged[n]), LOG[n].tokens, LOG[n].depth, LOG[n].bottleneck, LOG[n].heads) for n in logged
}
with torch.device("meta"):  # counted without a value being made
    translators = [GatedTranslator(width, LOG[name], width) for name in DESIGN]
rows = list(zip(SETTINGS, *DESIGN.values(), strict=True))
rows += [
    ("parameters (millions)", *(sum(p.numel() for p in made.parameters()) / 1e6 for made in translators)),
    ("most that a weight can travel", *(rate * steps / 2 for rate, _, steps, *_ in DESIGN.values())),
    ("the log's drop (points)", *(max(v) - v[-1] for v in logged.values())),
]
table(f"in the log | {' | '.join(DESIGN)}", rows)

# %% [markdown]
# No two differ in one thing. The two that have a rate in common differ in size and in warm-up, the two that have a size
# in common differ in rate, warm-up and length. Tokens and layers keep one proportion throughout, so that nothing can tell
# them apart. And with four runs, a mean and three settings fit any outcomes exactly: nothing is left over by which an
# explanation could fail.
#
# The way that a weight can travel explains no more. High capacity and efficient have the same way to go, and the
# conservative run has the shortest of all, with a drop as large as the aggressive run's. By size the four drops are in
# order, three of them nearly alike; but as a share of its highest accuracy the largest translator kept more than the two
# in the middle.
#
# ## Experiment
#
# The four configurations with all of the log's fixes on, as in its second round: soft tokens through LayerNorm at the RMS
# of the target's embeddings; gates at three times the rate and without decay; dropout 0.1; padding on the left; clipping
# at 1; linear decay; and [the KL penalty as the log wrote it](kl_anchor.ipynb), from the end of the warm-up on.
# Everything that tells the four apart is the log's, scaled by factors that are the same for all of them: steps and
# warm-ups, bottlenecks, layers and heads, tokens, and the rates, whose middle value becomes that of the book's recipe.
# The penalty looks at 20 positions beside 48 soft tokens in the log, and here at that share of every configuration's
# tokens, rounded down.


# %%
def penalty(batch, start: int, positions: int, weight: float = 0.03):
    """KL to the target that reads the question and no soft tokens, over the first positions of both, as logged."""
    if batch.step < start:
        return batch.logits.new_zeros(())
    unbridged = batch.bench.prompt_logits[batch.rows, :positions]
    return weight * kl_as_written(batch.logits, unbridged, positions)


def scaled(name: str, visible: bool = False) -> BridgeRecipe:
    """The log's configuration, at the scale of the book's hosts."""
    (rate, warmup), shape = RATES[name], LOG[name]  # its dropout is the log's
    translator = replace(
        shape,
        bottleneck=shape.bottleneck // run.width,
        tokens=shape.tokens * 3 // 16,
        depth=shape.depth // 2,
        heads=shape.heads // 2,
    )
    steps, warmup = round(gap * len(logged[name]) / run.steps), round(warmup / run.steps)
    fit = FitSettings(steps, rate * run.rate, run.batch, warmup=warmup, schedule="linear", groups=(GATE_GROUP,))
    watch = partial(penalty, start=warmup, positions=translator.tokens * 20 // LOG["conservative"].tokens)
    return BridgeRecipe(fit, translator, visible=visible, penalty=watch)


# %% tags=["hide-input"]
made = {name: scaled(name) for name in logged}
bench = answering.bench(HOSTS, run.device, run.host, asked=run.asked, taught=run.taught)
here = {name: (r.fit, r.translator, r.penalty.keywords["positions"]) for name, r in made.items()}
table(
    f"as run here | {' | '.join(SETTINGS)} | positions of the penalty",
    (
        (name, f.lr, f.warmup, f.steps, t.tokens, t.depth, t.bottleneck, t.heads, positions)
        for name, (f, t, positions) in here.items()
    ),
    f"Batches of {run.batch}; a look at {run.asked} problems of the same exam as often as the log looked. The momentum"
    " terms of AdamW are torch's own; the log's sketch of its optimiser has 0.98 for the second.",
)

# %% [markdown]
# The question is *hidden*: the target reads the soft tokens and `answer:`, so that all it knows came over the bridge and
# a collapse of the bridge cannot be covered by the target's own knowledge. In the log's code the target reads the
# question too; runs of that kind stand beside, and decide nothing. A seed has the same hosts and draws the same batches
# in all four as far as they go.

# %%
IN_SIGHT = {f"{name}, question visible": scaled(name, visible=True) for name in logged}
count = {name: len(values) for name, values in logged.items()}  # as many looks as the log took, as far apart
looks = {n: tuple(round((i + 1) * r.fit.steps / count[n]) for i in range(count[n])) for n, r in made.items()}
study = run.study("four configurations", bench.train, made, looks=looks)
beside = dict(zip(IN_SIGHT, looks.values(), strict=True))
study |= run.study("question visible", bench.train, IN_SIGHT, seeds=(), looks=beside)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Bridged accuracy of the four configurations with the question hidden: means over seeds with their 95 % interval, single seeds thin. Shaded: the warm-up. Dotted: source alone.", "name": "fig-sweep-runs"}, "image": {"alt": "Four panels of accuracy against training steps. In three panels the mean rises to the end or near it, in that of the aggressive configuration it creeps up and stays low. All stay well below the dotted line, and seeds spread widely."}}
COLOUR = dict(zip(made, (BLUE, ORANGE, GREEN, PURPLE), strict=True))
for axes, name in zip(figure(columns=4, height=2.7), made, strict=True):
    lines(axes, {name: study.curve(name, "report")}, colour=COLOUR, at=[study.mean(name, "source alone").mean])
    axes.axvspan(0, made[name].fit.warmup, color=GREY, alpha=0.12, lw=0)
    axes.set_title(name, fontsize=10)
    axes.set(xlim=(0, None), ylim=(0, 104), xlabel="training steps")
    if name == "conservative":
        axes.set_ylabel("bridged accuracy (%)")
plt.show()

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The drop, highest look minus last: means over seeds with their 95 % interval, small dots the seeds of this page, crosses the log's single runs.", "name": "fig-sweep-drops"}, "image": {"alt": "A row for each configuration. The drops of this chapter are a few points in every row and least in the efficient one, where the log's are about fourteen in the efficient one and more than forty in the others."}}
axes = figure(height=2.5)
points = {name: study.live.values(name, drop("report")) for name in made if name in study.live}
dots(axes, {name: study.mean(name, drop("report")) for name in made}, points=points, colour=COLOUR)
dots(axes, {name: [max(v) - v[-1]] for name, v in logged.items()}, colour="black", nudge=-0.2)
axes.set(xlabel="drop (points)", xlim=(-2, None))
plt.show()

# %% [markdown]
# In numbers. A run counts as *collapsed* when its last accuracy is below half of its highest, and as *fallen* when so
# many looks at its last accuracy would hardly have brought its highest by chance (`best_of_looks`, a bound from above).


# %% tags=["hide-input"]
def collapsed(one) -> float:
    """1 for a run whose last accuracy is below half of its highest, else 0."""
    return float(one["report"].iloc[-1] < one["report"].max() / 2)


def fell(one) -> float:
    """1 for a run whose highest of all looks is more than chance makes of its last accuracy, else 0."""
    last, most = one["report"].iloc[-1] / 100, round(one["report"].max() / 100 * run.asked)
    return float(best_of_looks(last, run.asked, len(one["report"]), most) < 0.05)


views = (peak("report"), "report", "shuffled source", drop("report"))
table(
    "configuration | n | highest (%) | last (%) | another's states (%) | drop (points) | fallen | collapsed",
    (
        (
            a,
            len(study.seeds(a)),
            *(study.mean(a, v) for v in views),
            *(int(study.values(a, v).sum()) for v in (fell, collapsed)),
        )
        for a in (*made, *IN_SIGHT)
        if a in study
    ),
    "Mean [95 % interval] over n seeds; the last two columns count runs. The highest of many looks is chosen for being"
    " high: it and the drop are biased upwards.",
)

# %% [markdown]
# (verdict-c7)=
# ## Verdict

# %% tags=["hide-input"]
THREE = ("conservative", "aggressive", "high capacity")
run.judge(
    "C7",
    lambda: {
        "collapse_share_of_three": mean_interval(list(sum(study.values(name, collapsed) for name in THREE) / 3)),
        "stability_of_efficient": mean_interval(
            list(sum(study.values(n, drop("report")) for n in THREE) / 3 - study.values("efficient", drop("report")))
        ),
    },
)

# %% tags=["nbval-check-output", "keep_output", "remove-input"]
print(run.verdict_lines())

# %% [markdown]
# ## What holds instead
#
# ### No collapse to explain
#
# The log's "rise → peak → fall" does not come about here. With the same fixes and the same proportions, and a bridge that
# must carry the question, accuracy ends at or near its highest in nearly all runs. That holds within these steps. The
# log's highest looks came within the first third of its runs; here the means still rise at the end, and a run that is
# still rising has had no occasion to fall. The weights may travel further here than in the log, but distance is not time
# at a peak. In [longer runs without any of the fixes](peak_and_collapse.ipynb) accuracy stayed where it had come. With
# the question in sight, as in the log's code, the target is right by itself and a bridge can only harm. It hardly does,
# and with another problem's states nearly as little.
#
# What is left of the claim is at most a few points. On average the efficient configuration falls less than the other
# three, by a difference that the verdict's interval does not keep clear of zero and that is not worth having in either
# direction. Nor are the two pairs that have a setting in common told apart:

# %% tags=["hide-input"]
rate = study.gain("aggressive", "conservative", drop("report"))
size = study.gain("high capacity", "efficient", drop("report"))
Markdown(
    f"The aggressive configuration falls {rate} points further than the conservative one, which has its size; the"
    f" high-capacity one {size} points further than the efficient one, which has its rate."
)

# %% [markdown]
# ### What the log's looks can show
#
# What of the log's own trajectories? Chance alone moves an accuracy of 200 questions from look to look. Two questions can
# be asked of the counts: would so many looks at the mean of those behind the highest have brought that highest by chance?
# And are the last looks equal? The tests take the questions of every look as drawn anew. If they were the same 200, which
# the log does not say, McNemar's test would be sharper, and it cannot be had from counts.

# %% tags=["hide-input"]
LAST, found = 4, []
for name, values in logged.items():
    best, ends = max(values), [round(v / 100 * asked) for v in values[-LAST:]]
    behind = fmean(values[values.index(best) + 1 :])
    luck = best_of_looks(behind / 100, asked, len(values), round(best / 100 * asked))
    level = chi2_contingency([ends, [asked - right for right in ends]]).pvalue
    lost = 100 * (1 - values[-1] / best)
    found.append((name, best, behind, f"{luck:.1g}", lost, fmean(values[-LAST:]), f"{level:.2g}"))
table(
    "in the log | highest (%) | mean behind it (%) | p: highest by chance, at most | lost of the highest (%) |"
    f" last {LAST} looks (%) | p: all {LAST} equal",
    found,
)

# %% [markdown]
# So the log's falls are real, that of the efficient run too: no sampling of questions makes them. It lost a quarter of
# its highest accuracy, the others more than half. But over its last looks the test tells none of the four from level, the
# conservative run at a low accuracy, the efficient one at a higher.
#
# Four falls of different depth, one each, in configurations no two of which differ in one setting alone, are worth a
# second sweep with several seeds and one change at a time. They do not tell size from the rest. Were all four alike, one
# of them would still have come out the steadiest, and in one case of four the smallest. [The chapter on
# capacity](capacity.ipynb) varies the size at equal compute.
#
# ## Tweak it
#
# Had the sweep ended earlier: the drop after a share of the steps, from the highest look by then to the look at that
# place, here and in the log. In a live kernel, choose the runs with the question visible.


# %% tags=["hide-input"]
def frame(axes, share: float, question: str) -> str:
    """What every configuration had lost of its highest look after a share of its steps."""
    arms = {name: name if question == "hidden" else f"{name}, question visible" for name in made}
    at = {name: max(1, round(share * len(values))) for name, values in logged.items()}
    seen = {name: study.curve(arm, "report").iloc[: at[name]] for name, arm in arms.items()}
    drops = {name: mean_interval(list(curve.max() - curve.iloc[-1])) for name, curve in seen.items()}
    of_log = {name: max(values[: at[name]]) - values[at[name] - 1] for name, values in logged.items()}
    dots(axes, drops, colour=COLOUR)
    dots(axes, {name: [lost] for name, lost in of_log.items()}, colour="black", nudge=-0.2)
    axes.set(xlabel="drop so far (points)", xlim=(-2, 56))
    told = "; ".join(f"{name} {drops[name].mean:.1f} here, {of_log[name]:.1f} in the log" for name in made)
    return f"Drop after {share:.0%} of the steps, in points: {told}."


shares = {f"{20 * k} %": k / 5 for k in range(1, 6)}
questions = ("hidden", "visible") if all(arm in study for arm in IN_SIGHT) else ("hidden",)
explore("share of the steps", shares, frame, height=2.5, question=questions)

# %% [markdown]
# ## Try it on yours
#
# Keep which questions were answered right, not only how many. Then `mcnemar` says whether two runs, or two looks at one,
# differ, often with fewer questions than two counts need. Where only counts are left, `wilson` gives each its interval.
# Here are two configurations of one seed after their last steps:

# %%
answers = [str(p.answer) for p in bench.home(0).exams["report"].problems]
right = [
    [marked_answer(text) == a for text, a in zip(study.texts(name, 0, "report"), answers, strict=True)]
    for name in ("conservative", "efficient")  # yours: right or wrong, twice
]
print(
    f"paired: p = {mcnemar(*right):.2g}; counts alone: {wilson(sum(right[0]), run.asked)}, {wilson(sum(right[1]), run.asked)}"
)

# %% [markdown]
# ## Provenance

# %% tags=["remove-input"]
run.measure(
    **{f"highest: {n}": study.mean(n, peak("report")) for n in made},
    **{f"last: {n}": study.mean(n, "report") for n in made},
    **{f"drop: {n}": study.mean(n, drop("report")) for n in made},
)
run.close()
