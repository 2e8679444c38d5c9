# %% [markdown]
# # Capacity
#
# Of the log's four runs the one with the largest translator peaks highest, and the one with the smallest falls least.
# The log reads this as the work of size and suspects 143 million parameters to be too many, though elsewhere it holds
# that the trouble is optimisation and not capacity. This chapter counts what was built, part by part, then trains
# translators of four sizes with the same compute and compares the largest with the smallest, seed by seed. The largest
# reaches a few points more than the smallest; whether by the five that were asked, 64 pairs of hosts cannot tell. A
# size between the two reaches far more than both: one end is too small for the task, the other too large for the
# compute. None falls far.

# %% tags=["parameters"]
profile = "quick"  # quick | full
seeds = 0  # at least 2; 0 takes the profile's number
device = "auto"  # auto | cpu | cuda | mps
out = ""  # where the record goes, a .json file

# %% tags=["hide-input"]
from copy import deepcopy
from dataclasses import astuple

import torch
from bridges.benches import answering
from bridges.benches.answering import BridgeRecipe
from bridges.benches.exams import bridge_logits
from bridges.benches.study import drop
from bridges.connectors.translator import LOG, GatedTranslator, TranslatorLayer, TranslatorSettings
from bridges.hosts.causal import answer_loss
from bridges.training.fit import GATE_GROUP, FitSettings
from press.book import (
    HOSTS, ORANGE, Markdown, begin, claims, dots, explore, figure, lines, plt, recorded, show_source, table,
)  # fmt: skip
from press.figures import COLOURS
from torch.utils.flop_counter import FlopCounterMode

# Pairs: quick, full profile.
run = begin("capacity", globals(), seeds=(2, 12), host=("quick", "full"),  # the size of the pretrained hosts
    steps=(110, 400),  # of the largest translator; their compute is everybody's
    batch=(16, 32), rate=(5e-3, 3e-3),
    others=((2e-3, 1.5e-2), (1e-3, 9e-3)),  # a lower rate for the largest, a higher one for the smallest
    asked=(100, 200),  # problems of an exam
    width=(24, 48),  # of the smallest bottleneck
    widest=(64, 128), tokens=(3, 4),  # of the smallest
    looks=8)  # fmt: skip

# %% [markdown]
# ## Symptom
#
# The log's sweep, one run a configuration. A translator's parameters are counted here, from the widths, layers and soft
# tokens that the log gives (the log itself gives one number, for the first row):

# %% tags=["hide-input"]
WIDTH = recorded("gate_groups")["translator"]["width of both models"]
PARTS = {
    "cross-attention": ".read.",
    "self-attention": ".mix.",
    "feed-forward": ".think.",
    "map to the target": ".out.",
    "soft tokens": ".queries",
    "norms and gates": "",
}


def count(shape: TranslatorSettings) -> dict[str, float]:
    """Millions of parameters by where they sit, between models of the log's width; no value is allocated."""
    with torch.device("meta"):
        made = GatedTranslator(WIDTH, shape, WIDTH)
    found = dict.fromkeys(PARTS, 0.0)
    for name, parameter in made.named_parameters():
        found[next(part for part, key in PARTS.items() if key in f".{name}")] += parameter.numel() / 1e6
    return found


curves = recorded("translation_sweep")["after the fixes"]
swept = {name: (rate, warmup) for name, rate, warmup, *_ in recorded("gate_groups")["sweep"]["rows"]}
table(
    "configuration | bottleneck | tokens | layers | parameters (millions) | rate | warm-up | peak (%) | last (%)",
    (
        (n, s.bottleneck, s.tokens, s.depth, sum(count(s).values()), *swept[n], max(curves[n]), curves[n][-1])
        for n, s in LOG.items()
    ),
)

# %% [markdown]
# So the 143 million are those of two of the four configurations. The high-capacity one has more, the efficient one,
# which the log calls stable, less than half. The two of one size differ in rate, warm-up and length alone, reach the
# same highest look and end equally low. Between the largest and the smallest, bottleneck, soft tokens, layers, heads
# and warm-up all differ. And across the three sizes the last accuracies do not fall: those of the middle size are the
# lowest.
#
# ## Claim

# %% tags=["remove-input"]
claims("C11")

# %% [markdown]
# ## Mechanism
#
# A translator has $K$ learned queries of width $b$, the *bottleneck*, which become the soft tokens. Each of its $L$
# layers reads the source's states, mixes the queries and thinks:

# %% tags=["remove-input"]
show_source(TranslatorLayer, start="self.norms", lines=7)

# %% [markdown]
# Each attention has four maps: of the cross-attention, those for keys and values start at the source's width $d_s$. The
# feed-forward has two, four times as wide inside as outside. A last map leads to the target's width $d_t$. Without
# norms, gates and biases,
#
# $$
# P = L \bigl( \underbrace{2 b^2 + 2 d_s b}_{\text{cross-attention}} + \underbrace{4 b^2}_{\text{self-attention}}
#   + \underbrace{8 b^2}_{\text{feed-forward}} \bigr) + d_t b + K b .
# $$ (eq-capacity-count)
#
# The cross-attention is the largest item up to a bottleneck of a third of the source's width. The number of soft tokens
# enters through the last term only. Parameters are depth and bottleneck, then. Soft tokens cost next to none, although
# they are what the target is handed: twice as many are twice as many vectors to speak through. In the log all three
# change at once.
#
# Size also decides what a step costs. Compute is counted in FLOPs, the multiplications and additions of all matrix
# products: the translator's by torch's own counter, those of a frozen model by the usual rule, two for a parameter and
# a token it reads, and two more where a gradient passes back through it. Here for the log's models with the question
# visible, a question of 100 tokens and an answer of 150 (lengths assumed here; the log gives none):

# %% tags=["hide-input"]
QUESTION, ANSWER = 100, 150  # tokens
TARGET, SOURCE = 8.03e9, 7.24e9  # parameters of Llama-3.1-8B and Mistral-7B
steps = {}
for name in ("high capacity", "efficient"):
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        made = GatedTranslator(WIDTH, LOG[name], WIDTH)
        made(torch.empty(1, QUESTION, WIDTH), torch.ones(1, QUESTION)).sum().backward()
    steps[name] = counter.get_total_flops(), 4 * TARGET * (LOG[name].tokens + QUESTION + ANSWER) + 2 * SOURCE * QUESTION
Markdown(
    f"A step of the high-capacity configuration costs {sum(steps['high capacity']) / sum(steps['efficient']):.1f} times one"
    f" of the efficient one. The translator itself takes {' and '.join(f'{own / (own + rest):.1%}' for own, rest in steps.values())}"
    " of it, the frozen models the rest."
)

# %% [markdown]
# In the log's setting equal steps are nearly equal compute, then. Between the book's small hosts they are not, and the
# two comparisons have to be kept apart.
#
# ## Experiment
#
# Four sizes, three in the log's proportions and one with half the bottleneck, soft tokens and layers of the efficient
# one, under the ordinary recipe of this part: question hidden (the target reads the soft tokens and `answer:` alone),
# soft tokens normed and scaled, gates in a group of their own, a cosine schedule after a warm-up of a tenth of the
# steps. All get the compute that the largest spends in its steps: forward and backward through translator and frozen
# target.
# (The source's states are computed once, before training, and are not counted.) Every run is looked at after equal shares
# of its compute, on two exams. The checkpoint is chosen by `select`; its accuracy is read off `report`. Smallest and
# largest are paired: seed, hosts and the generator of the batches are the same.

# %%
NAMES = ("half of efficient", "efficient", "conservative", "high capacity")
SMALLEST, *MIDDLE, LARGEST = NAMES
w, k, widest = run.width, run.tokens, run.widest
SHAPES = {
    SMALLEST: TranslatorSettings(bottleneck=w, tokens=k, depth=1, heads=3),
    "efficient": TranslatorSettings(bottleneck=2 * w, tokens=2 * k, depth=2, heads=6),
    "conservative": TranslatorSettings(bottleneck=widest, tokens=3 * k, depth=3, heads=8),
    LARGEST: TranslatorSettings(bottleneck=widest, tokens=4 * k, depth=4, heads=8),
}
bench = answering.bench(HOSTS, run.device, run.host, asked=run.asked, exams=("report", "select"))


def recipe_of(name: str, steps: int, rate: float = run.rate) -> BridgeRecipe:
    """The ordinary recipe at one size."""
    fit = FitSettings(steps, rate, run.batch, warmup=round(steps / 10), groups=(GATE_GROUP,))
    return BridgeRecipe(fit, SHAPES[name])


def cost(name: str) -> tuple[int, int]:
    """A translator's parameters, and the FLOPs of a training step."""
    bridge, own = bench.untrained(recipe_of(name, 10), 0), bench.home(0)
    host, rows = deepcopy(own.pair.target), torch.arange(run.batch, device=run.device)
    host.set_attn_implementation("eager")  # attention written out, so that its products are counted
    with FlopCounterMode(display=False) as counter:
        soft = bridge(own.taught.states[:, rows], own.taught.mask[rows])
        told = bridge_logits(host, soft, own.taught, rows, visible=False)
        answer_loss(told, own.taught.labels[rows]).backward()
    return sum(p.numel() for p in bridge.parameters()), counter.get_total_flops()


# %% tags=["hide-input"]
COSTS = {name: cost(name) for name in NAMES}
budget = run.steps * COSTS[LARGEST][1]
STEPS = {name: round(budget / step) for name, (_, step) in COSTS.items()}
small_target = sum(p.numel() for p in bench.home(0).pair.target.parameters())
table(
    "size | bottleneck | tokens | layers | heads | parameters | of the target's (%) | MFLOP a step | steps",
    (
        (name, *astuple(shape)[:4], held, 100 * held / small_target, step / 1e6, STEPS[name])
        for (name, shape), (held, step) in zip(SHAPES.items(), COSTS.values(), strict=True)
    ),
    f"A step has {run.batch} problems. The budget is {budget / 1e9:.0f} GFLOP a run.",
)

# %% [markdown]
# Measured against the model that it speaks to, even the smallest of these is larger than any of the log's. The two in
# between have no part in the criterion. One learning rate serves all four, and a rate that suits one need not suit
# another: so the largest is also trained at a lower rate, and the smallest at a higher one.

# %%
LOWER, HIGHER = f"{LARGEST}, rate {run.others[0]:g}", f"{SMALLEST}, rate {run.others[1]:g}"
SIZE = {name: name for name in NAMES} | {LOWER: LARGEST, HIGHER: SMALLEST}
ARMS = {name: recipe_of(name, STEPS[name]) for name in NAMES}
ARMS |= {
    arm: recipe_of(SIZE[arm], STEPS[SIZE[arm]], rate) for arm, rate in zip((LOWER, HIGHER), run.others, strict=True)
}
looks = {arm: tuple(round(STEPS[SIZE[arm]] * (i + 1) / run.looks) for i in range(run.looks)) for arm in ARMS}
study = run.study("ends", bench.train, {n: ARMS[n] for n in (SMALLEST, LARGEST)}, looks=looks)
study |= run.study("between", bench.train, {n: ARMS[n] for n in MIDDLE}, seeds=(), looks=looks)
study |= run.study("other rates", bench.train, {n: ARMS[n] for n in (LOWER, HIGHER)}, seeds=(), looks=looks)
SEEN = [arm for arm in ARMS if arm in study]

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Bridged accuracy on the exam `report`, question hidden, by size; left against compute, equal for all at the end, right the same runs against training steps. Thick lines are means over seeds with their 95 % interval, thin ones runs. Dotted on the right: the largest's last step.", "name": "fig-capacity-sweep"}, "image": {"alt": "Two panels of rising lines. Against compute the efficient size ends far above the others, the conservative one second, the largest below it and the smallest lowest, a little below the largest. Against steps the two of middle size and the largest rise side by side at first; the largest stops first, and the smallest creeps up over several times as many steps."}}
TINTS = {name: COLOURS[tint] for name, tint in zip(NAMES, ("blue", "sky", "amber", "orange"), strict=True)}
left, right = figure(columns=2, height=3.7)
grown = {name: study.curve(name, "report") for name in NAMES if name in study}
lines(left, {n: c.set_axis(100 * c.index / STEPS[n]) for n, c in grown.items()}, colour=TINTS)
lines(right, grown, colour=TINTS, xlabel="training steps")
right.axvline(run.steps, color="black", lw=0.8, ls=":")
left.set(xlabel="compute (% of the budget)", ylabel="bridged accuracy (%)", ylim=(0, None))
left.figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
plt.show()


# %% tags=["hide-input"]
def chosen(one) -> float:
    """Accuracy on `report` at the look that is best on `select`, the first of equals."""
    return one["report"][one["select"].idxmax()]


def at_equal_steps(one) -> float:
    """Accuracy at the look that comes nearest to the largest's number of steps."""
    return one["report"][min(one["report"].index, key=lambda look: abs(look - run.steps))]


views = (chosen, "report", drop("report"), "shuffled source")
table(
    "size | n | chosen look (%) | last look (%) | drop (points) | shuffled source (%)",
    ((arm, len(study.seeds(arm)), *(study.mean(arm, view) for view in views)) for arm in SEEN),
    f"Mean [95 % interval] over n seeds; {run.asked} questions an exam. A *shuffled source* speaks of another problem than"
    f" the one that is marked. The target alone reads the question and has {study.mean(SMALLEST, 'target alone').mean:.0f} %.",
)

# %% [markdown]
# The criterion's three differences, and beside them one at equal steps: the smaller translator is then taken at the
# look that comes nearest to the largest's number of steps. Its learning rate is still high by that time, while the
# largest's has come down to zero, which favours the largest.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Differences between the largest and the smallest translator within each seed: means and 95 % intervals, small dots the seeds of this page. The first three rows are at equal compute, the last at equal steps. Dotted: zero, and the criterion's 5 points, in the direction that the log claims.", "name": "fig-capacity-differences"}, "image": {"alt": "Four rows of means with intervals. That of the chosen look has its mean near five points and a wide interval across both lines. That of the drop is narrow, across zero and short of five. That of the last look has its mean left of zero, and its interval ends between the lines. That at equal steps lies wholly to the right of zero, most of it beyond five."}}
PAIRS = {
    "chosen look:\nlargest − smallest": (LARGEST, SMALLEST, chosen),
    "drop:\nlargest − smallest": (LARGEST, SMALLEST, drop("report")),
    "last look:\nsmallest − largest": (SMALLEST, LARGEST, "report"),
    "equal steps:\nlargest − smallest": (LARGEST, SMALLEST, at_equal_steps),
}
dots(
    figure(height=3.2),
    {row: study.gain(*pair) for row, pair in PAIRS.items()},
    points={row: study.live.values(a, view) - study.live.values(b, view) for row, (a, b, view) in PAIRS.items()},
    at=(0, 5),
    xlabel="difference in accuracy (points)",
)
plt.show()

# %% [markdown]
# (verdict-c11)=
# ## Verdict

# %% tags=["hide-input"]
run.judge(
    "C11",
    lambda: {
        "peak_gain_of_capacity": study.gain(LARGEST, SMALLEST, chosen),
        "drop_increase_with_capacity": study.gain(LARGEST, SMALLEST, drop("report")),
        "final_gain_of_smallest": study.gain(SMALLEST, LARGEST, "report"),
    },
)

# %% tags=["nbval-check-output", "keep_output", "remove-input"]
print(run.verdict_lines())

# %% [markdown]
# ## What holds instead
#
# ### Between the ends

# %% tags=["hide-input"]
OTHERS = [(m, end) for m in MIDDLE for end in (SMALLEST, LARGEST)] + [(LOWER, LARGEST), (HIGHER, SMALLEST)]
table(
    "paired within seeds | chosen look (points) | last look (points) | equal steps (points)",
    (
        (f"{a} over {b}", *(study.gain(a, b, view) for view in (chosen, "report", at_equal_steps)))
        for a, b in [(LARGEST, SMALLEST), *OTHERS]
        if a in study
    ),
)

# %% [markdown]
# At equal compute accuracy rises with size and falls again. A translator that is too small learns little in many steps,
# one that is too large has too few of them: at equal steps the largest is well ahead of the smallest, and between it
# and the efficient size there is no sure difference. The steps are not all of it, though. The conservative size is
# ahead of the largest even then, if at a look that comes a few steps later. A comparison of two sizes, such as the
# claim asks for, cannot see a maximum that lies between them. Neither end gains by the other rate that was tried; the
# largest loses some points by the lower one at its chosen look.
#
# ### Falling
#
# In the log the high-capacity run falls some thirty points further than the efficient one, at three times its size.
# Here the ends are nearly twenty-fold apart, and {numref}`fig-capacity-differences` has the difference between their
# falls: less than a point, with an interval that reaches across zero and stops far short of the criterion. Nor is the
# largest small for what it speaks to: it has more than twice the parameters of its target, where the log's has about a
# fortieth. So a surplus of parameters brings about no large fall within these steps. A fall like the log's was hardly
# possible: a run that has not risen cannot fall far, the rate comes down to zero, and the largest sees less than half
# of its pool of problems, the smallest each of them twice at most, so that there is little to memorise. [Peak and
# collapse](peak_and_collapse.ipynb) takes a pool that can be memorised, and looks for what else makes a run fall.
#
# ### The log's own comparison
#
# Its largest and smallest differ in five settings at once, and there is one run of each. Its 143 million is neither the
# size of the run with the highest peak nor of the stable one, and the two runs of that size are those that end lowest.
# This sweep adds seeds, equal compute and a checkpoint chosen on other questions. Bottleneck, layers, heads and soft
# tokens still change together in it, as the claim has them: which of these matters it cannot say.
#
# ## Tweak it
#
# A translator between two models of width 4,096: set its bottleneck and see where its parameters sit. The slider names
# the log's own. In a live kernel, choose layers and soft tokens as well.


# %% tags=["hide-input"]
def frame(axes, bottleneck: int, layers: int, tokens: int) -> str:
    """Where the parameters of one shape sit."""
    parts = count(TranslatorSettings(bottleneck, tokens, layers, bottleneck // 64))
    bars = axes.barh(list(parts), list(parts.values()), color=ORANGE)
    axes.bar_label(bars, fmt="%.3g", padding=3)
    axes.invert_yaxis()
    axes.set(xlabel="parameters (millions)", xlim=(0, 1.25 * max(parts.values())))
    whole = f"{sum(parts.values()):.1f} million parameters, {sum(parts.values()) * 1e8 / TARGET:.2g} % of the target's"
    axes.set_title(whole)
    told = ", ".join(f"{part} {n:.2f}" for part, n in parts.items())
    return f"Bottleneck {bottleneck}, {layers} layers, {tokens} soft tokens: {whole}. In millions: {told}."


known = {768: " (as efficient)", 1024: " (as the others)"}
positions = {f"{b}{known.get(b, '')}": b for b in (256, 512, 768, 1024, 2048)}
explore("bottleneck", positions, frame, layers=(6, 8, 4, 2, 1), tokens=(48, 64, 32, 8))

# %% [markdown]
# ## Try it on yours
#
# Parameters and compute of any connector, without a GPU and without its weights: built on torch's meta device it
# allocates nothing, and the counter still sees every product. The same around your whole training step gives the number
# by which two sizes can be compared at equal compute.

# %%
with torch.device("meta"), FlopCounterMode(display=False) as counter:
    yours = GatedTranslator(WIDTH, LOG["efficient"], WIDTH)  # your connector
    states = torch.empty(1, QUESTION, WIDTH)  # what it reads
    yours(states, torch.ones(1, QUESTION)).sum().backward()
print(f"{sum(p.numel() for p in yours.parameters()) / 1e6:.2f} million parameters")
print(f"{counter.get_total_flops() / 1e9:.1f} GFLOP, forward and backward")

# %% [markdown]
# ## Provenance

# %% tags=["remove-input"]
run.measure(
    **{f"steps: {name}": n for name, n in STEPS.items()},
    **{f"last look: {arm}": study.mean(arm, "report") for arm in SEEN},
    **{"largest over smallest at equal steps": study.gain(LARGEST, SMALLEST, at_equal_steps)},
)
run.close()
