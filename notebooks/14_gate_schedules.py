# %% [markdown]
# # Gate schedules
#
# A gate that starts shut keeps a new connector from disturbing a trained model, and it also keeps the connector from
# saying anything. The log held its gates to open too slowly or too abruptly, tripled their learning rate, took their
# weight decay away and added dropout, all at once. Of the three the decay cannot matter, dropout does not help, and the
# rate opens the gates further without making the bridge learn much sooner. Opening them by a schedule does.

# %% tags=["parameters"]
profile = "quick"  # quick | full
seeds = 0  # at least 2; 0 takes the profile's number
device = "auto"  # auto | cpu | cuda | mps
out = ""  # where the record goes, a .json file

# %% tags=["hide-input"]
import math
from dataclasses import replace

import torch
from bridges.benches import answering
from bridges.benches.answering import BridgeRecipe
from bridges.benches.exams import answer, bridge_logits
from bridges.benches.study import Outcome, over
from bridges.connectors.translator import LOG, GatedTranslator, TranslatorLayer, TranslatorSettings
from bridges.hosts.causal import answer_loss
from bridges.instruments.gradients import gradient_flow
from bridges.instruments.soft_prompt import gates
from bridges.training.fit import GATE_GROUP, FitSettings, Group
from press.book import (BLUE, GREEN, GREY, HOSTS, ORANGE, PURPLE, Markdown, begin, claims, dots,
    explore, figure, lines, plt, recorded, show_source, table)  # fmt: skip

# Pairs: quick, full profile.
run = begin("gate_schedules", globals(), seeds=(2, 12), host=("quick", "full"),  # the size of the pretrained hosts
    asked=(100, 200),  # questions of a look
    batch=(16, 64), rate=(5e-3, 3e-3), width=(64, 128),  # of the translator's bottleneck
    depth=(2, 4), steps=240,  # the criterion's own number, in every profile
)  # fmt: skip

# %% [markdown]
# ## Symptom
#
# The log's translator learns in six layers. In each, queries read the source's states by cross-attention, and what they
# read passes a gate: one number $g$, trained like any weight, of which $\tanh g$ is let through. All gates start at
# zero. They "are too slow to open, or open too aggressively without constraints", says the log, and it records how its
# optimiser treats them from then on. The value of a gate stands nowhere in it, nor is there a run in which the gates' group
# or the dropout is the only change. What its counts do tell is the translator's make: this book's was rebuilt from them, and
# at the log's sizes, with no memory spent on its values, it can be counted.

# %% tags=["hide-input"]
log = recorded("gate_groups")
width = log["translator"]["width of both models"]
with torch.device("meta"):
    rebuilt = GatedTranslator(width, LOG["conservative"], width)
shapes = [
    ("gates" if "gates" in name else "decay" if p.dim() > 1 else "no decay") for name, p in rebuilt.named_parameters()
]
table(
    "optimiser group | tensors, log | rebuilt | rate | weight decay",
    ((name, count, shapes.count(name), f"× {rate}", decay) for name, count, rate, decay in log["groups"]["rows"]),
    f"Parameters, in millions: {log['translator']['parameters (millions)']} in the log,"
    f" {sum(p.numel() for p in rebuilt.parameters()) / 1e6:.2f} rebuilt.",
)

# %% [markdown]
# Matrices decay, vectors do not, gates stand apart, and the three counts agree. It is a reconstruction all the same:
# another layout with the same counts cannot be excluded.
#
# ## Claim

# %% tags=["remove-input"]
claims("C4")

# %% [markdown]
# ## Mechanism
#
# The gate is Flamingo's {cite}`alayrac2022flamingo`. A layer adds to its queries $x$ what its cross-attention $A$ reads
# of the source's states $s$:
#
# $$
# \begin{aligned}
# x' &= x + \tanh(g)\, A_\theta(x, s), \\
# \frac{\partial L}{\partial \theta} &= \tanh(g)\, \Bigl\langle \frac{\partial L}{\partial x'},
#   \frac{\partial A_\theta}{\partial \theta} \Bigr\rangle, \\
# \frac{\partial L}{\partial g} &= \bigl(1 - \tanh^2 g\bigr) \Bigl\langle \frac{\partial L}{\partial x'}, A_\theta
#   \Bigr\rangle .
# \end{aligned}
# $$ (eq-gates-gradient)

# %% tags=["remove-input"]
show_source(TranslatorLayer, start="x = x + open_share", lines=1)

# %% [markdown]
# With $g = 0$ the second line is zero whatever the loss. On its first step the cross-attention learns nothing, and the
# gate alone learns whether to open, and to which side: its sign says only with which sign $A$ is added. Gradient norms
# of an untrained bridge with its gates shut, and opened by as little as one step can open them:

# %%
bench = answering.bench(HOSTS, run.device, run.host, asked=run.asked)
fit = FitSettings(run.steps, run.rate, run.batch, warmup=20, groups=(GATE_GROUP,))
recipe = BridgeRecipe(fit, TranslatorSettings(bottleneck=run.width, tokens=8, depth=run.depth, heads=8))
FIRST = fit.lr * fit.rate(0)  # what AdamW's first step moves a weight by, at the common rate


def flow(gate: float, seed: int = 0, problems: int = 64):
    """Where the gradient of the answers' loss arrives in an untrained bridge with every gate at one value."""
    shape = replace(recipe.translator, gate=gate)
    bridge, home = bench.untrained(replace(recipe, translator=shape), seed), bench.home(seed)
    rows = torch.arange(problems, device=run.device)

    def loss():
        soft = bridge(home.taught.states[:, rows], home.taught.mask[rows])
        logits = bridge_logits(home.pair.target, soft, home.taught, rows, visible=False)
        return answer_loss(logits, home.taught.labels[rows])

    return gradient_flow(bridge.named_parameters(), loss)


PARTS = {f"cross-attention, layer {i + 1}": f"layers.{i}.read" for i in range(run.depth)}
PARTS |= {"gates": "gates", "everything": ""}
shut, opened = flow(0.0), flow(3 * FIRST)
table(
    "gradient norm | gates shut | open by one step",
    ((part, shut.norm(prefix), opened.norm(prefix)) for part, prefix in PARTS.items()),
)

# %% [markdown]
# So the block lasts for one step, and what follows is a matter of speed. AdamW moves a weight by at most about its
# learning rate in a step ([how fast](rates.ipynb)), and its first step moves it by exactly that. With $r$ for the
# gates' multiple of the rate $\eta$ and $W$ steps of linear warm-up, after $n$ of them
#
# $$
# |g_n| \;\lesssim\; r \sum_{t=1}^{n} \eta_t \;=\; r\, \eta\, \frac{n(n+1)}{2W} .
# $$ (eq-gates-limit)
#
# That is a speed limit, and it needs no gate's value, so it can be put to the log's own rates and warm-ups. Past the
# warm-up the full rate is counted, since any decay only lowers the limit.


# %%
def limit(steps: int, settings: FitSettings, times: float) -> float:
    """The widest a gate can be open after so many steps at about `times` the learning rate a step."""
    return math.tanh(times * settings.lr * sum(settings.rate(t) for t in range(steps)))


# %% tags=["hide-input"]
table(
    "configuration | step | gates open at × 3, at most (%) | the log's accuracy there (%)",
    (
        (name, step, 100 * limit(step, FitSettings(step, rate, warmup=warmup, schedule="constant"), 3), accuracy)
        for name, rate, warmup, step, accuracy, *_ in log["sweep"]["rows"]
    ),
)

# %% [markdown]
# The log's gates were slow, then, by arithmetic, with the threefold rate as well: at its first looks next to nothing of
# what the cross-attention reads can have passed, and in three of four configurations it counts a good share of right
# answers there. By the log's code the target has the question in sight, so that it can answer without the source. What
# the bridge says and what the target knows by itself are not told apart by such a number.
#
# The other half of the group's setting, no weight decay, can be settled here too. AdamW's decay takes from a gate the
# share $\eta_t \lambda$ in each step, with $\lambda$ the weight decay:

# %% tags=["hide-input"]
decayed = 1 - math.prod(1 - fit.lr * fit.rate(t) * fit.weight_decay for t in range(fit.steps))
Markdown(f"Over all {fit.steps} steps of this chapter it shrinks a gate by {100 * decayed:.2g} %.")

# %% [markdown]
# Of the two settings, then, only the rate can matter.
#
# ## Experiment
#
# A small Mistral reads word problems of one and two steps, a small Llama answers them; both were taught and frozen, and each
# seed has a pair of its own. Only the bridge is trained, and the question is *hidden*: the target sees soft tokens and the
# word that asks for an answer, nothing else. Two arms decide the first part of the claim, with the gates in the common
# group and in a group of their own, and a third the second part, with dropout, which is in the feed-forward as well, as the
# log says of its own. Three more ask what it is about the gates that matters: gates that start open ($g = 1$), ten times the
# rate, and gates that no gradient moves, opened by a schedule in a straight line from 0 to 1.

# %%
WINDOW = (120, 140, 160)  # the criterion's looks
RAMP = 40  # steps
COMMON, OWN, DROPOUT = "common group", "own group, × 3", "× 3 and dropout"
OPEN, TENFOLD, SCHEDULE = "open from the start", "own group, × 10", "by schedule"


def ramp(step: int) -> float:
    """Gates that no gradient moves."""
    return min(1.0, step / RAMP)


def at_rate(times: float, decay: float | None = 0.0) -> BridgeRecipe:
    """The recipe with its gates at a multiple of the common rate."""
    return replace(recipe, fit=replace(fit, groups=(Group(GATE_GROUP.prefix, times, weight_decay=decay),)))


def opening(bridge, home) -> dict[str, float]:
    """How far each gate is open, its sign left out."""
    return {f"gate {i + 1}": abs(share) for i, share in enumerate(gates(bridge).values())}


deciding = {
    COMMON: at_rate(1.0, decay=None),
    OWN: recipe,
    DROPOUT: replace(recipe, translator=replace(recipe.translator, dropout=0.1)),
}
others = {
    OPEN: replace(recipe, translator=replace(recipe.translator, gate=1.0)),
    TENFOLD: at_rate(10.0),
    SCHEDULE: replace(recipe, opened=ramp),
}
looking = {"looks": (RAMP, *WINDOW), "read": opening}
study = run.study("gates", bench.train, deciding, **looking)
study |= run.study("other gates", bench.train, others, seeds=(), **looking)
ARMS = [arm for arm in (*deciding, *others) if arm in study]

# %% [markdown]
# How far the gates open, first:

# %% tags=["hide-input"] mystnb={"figure": {"caption": "How far each layer's gate is open, its sign left out, against training steps: means over seeds with their 95 % interval, single seeds thin. Dotted: the speed limits of the common and the threefold rate, the widest that the learning rates allow.", "name": "fig-gates-opening"}, "image": {"alt": "One panel for each layer. Of the gates that start shut, those in the common group open least; the threefold rate, with and without dropout, opens them further, far short of its speed limit; the tenfold rate furthest. Gates that start open stay open."}}
COLOUR = {COMMON: BLUE, OWN: ORANGE, DROPOUT: "#E69F00", OPEN: GREEN, TENFOLD: PURPLE, SCHEDULE: GREY}
panels = figure(columns=run.depth, height=3.9)
for layer, axes in enumerate(panels):
    curves = {arm: study.curve(arm, f"gate {layer + 1}") for arm in ARMS if arm != SCHEDULE}
    lines(axes, curves, colour=COLOUR, title=f"layer {layer + 1}", xlabel="training steps", ylim=(0, 1.04))
    for arm, times in ((COMMON, 1), (OWN, 3)):
        axes.plot(
            range(run.steps + 1), [limit(t, fit, times) for t in range(run.steps + 1)], ":", color=COLOUR[arm], lw=1
        )
panels[0].set_ylabel("gate open")
panels[0].figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
plt.show()

# %% [markdown]
# And what the bridges answer by then:

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Left: bridged accuracy with the question hidden in the three arms that decide, means over seeds with their 95 % interval; the criterion's looks are shaded. Right: differences paired by seed over those looks, mean and 95 % interval; small dots are the seeds trained on this page. Dotted: zero, and the criterion's 5 points.", "name": "fig-gates-accuracy"}, "image": {"alt": "Left, accuracy rises in all three arms, whose means stay within a few points of one another while single seeds fan out widely; at the last step the common group and the arm with dropout are level, below the threefold rate. Right, the interval of the threefold rate over the common group lies between zero and 5, that of dropout over the threefold rate at and below zero; those of the tenfold rate, of gates open from the start and of the schedule, each over the threefold rate, lie above zero."}}
window = over("report", WINDOW)
PAIRS = {
    f"{a}\nover {b}": (a, b) for a, b in ((OWN, COMMON), *((arm, OWN) for arm in ARMS if arm not in (COMMON, OWN)))
}
left, right = figure(columns=2, height=3.6, sharey=False, width_ratios=(1, 1.1))
curves = {arm: study.curve(arm, "report") for arm in deciding}
lines(left, curves, colour=COLOUR, xlabel="training steps", ylabel="bridged accuracy (%)", ylim=(0, 103))
left.axvspan(WINDOW[0], WINDOW[-1], color=GREY, alpha=0.12, lw=0)
left.legend(fontsize=8, loc="upper left")
here = {
    name: study.live.values(a, window) - study.live.values(b, window)
    for name, (a, b) in PAIRS.items()
    if a in study.live
}
gains = {name: study.gain(*pair, window) for name, pair in PAIRS.items()}
dots(right, gains, points=here, at=(0, 5), xlabel="difference in accuracy (points)")
right.tick_params(axis="y", labelsize=8)
plt.show()


# %% tags=["hide-input"]
table(
    f"arm | accuracy, steps {WINDOW[0]} to {WINDOW[-1]} (%) | accuracy, last step (%) | last step, over × 3 (points)",
    (
        (
            arm,
            study.mean(arm, window),
            study.mean(arm, "report"),
            study.gain(arm, OWN, "report") if arm != OWN else None,
        )
        for arm in ARMS
    ),
    f"Mean [95 % interval] over {len(study.seeds(OWN))} seeds, of arms that decide nothing over {len(study.seeds(SCHEDULE))};"
    f" {run.asked} problems. Last column: paired within seeds.",
)

# %% [markdown]
# (verdict-c4)=
# ## Verdict

# %% tags=["hide-input"]
run.judge(
    "C4", lambda: {"gate_rate_gain": study.gain(OWN, COMMON, window), "dropout_gain": study.gain(DROPOUT, OWN, window)}
)

# %% tags=["nbval-check-output", "keep_output", "remove-input"]
print(run.verdict_lines())

# %% [markdown]
# ## What holds instead
#
# ### Rate, dropout, opening
#
# {numref}`fig-gates-opening` shows what the rate changes. On average a zero gate stays well below its speed limit, which
# under AdamW means that its gradient does not keep to one side; three times the rate opens it further all the same, and
# ten times the rate further still.
#
# The log's threefold rate goes the right way and not far enough. It gains a few points over the criterion's looks and at
# the last step; the five that were asked are excluded over those looks. Dropout buys nothing there, and by the last step
# it has given back all that the threefold rate gained. The tenfold rate is ahead of the threefold at both.
#
# If it is the opening that helps, then a gate that is open for another reason should do as well, and it does. The schedule,
# which asks no gradient and has its gates wide open after a sixth of the training, and gates that start open both gain on
# the threefold rate, on average more than the tenfold rate does. A gate, then, was slow here because it had to be *learned*.
# And the seeds lie far apart: how much a bridge says after so many steps is decided by the pair of hosts first
# ([another source](another_source.ipynb)) and by the gates long after.
#
# ### What the zero protects
#
# In Flamingo the gates stand inside the frozen language model, between its own layers. At zero the model is the one it
# was, and the new layers come in as far as they are useful {cite}`alayrac2022flamingo`. The log's gates stand inside
# the translator. Behind them is nothing that was ever trained, and a translator with shut gates is not absent: it says
# the same soft tokens to every question, and the target reads them. This can be seen where the target has the question
# in sight and needs no bridge:


# %%
def behind_shut_gates(arms, seeds):
    """What the target answers behind an untrained bridge, question in sight, and how much its tokens differ."""
    readings = {}
    for seed in seeds:
        home = bench.home(seed)
        exam, pair = home.exams["report"], home.pair
        with torch.no_grad():
            soft = bench.untrained(recipe, seed)(exam.states, exam.mask)
        alone, behind = (
            answer(pair.target, pair.target_words, tokens, exam, visible=True).accuracy for tokens in (None, soft)
        )
        spread = (soft - soft[:1]).abs().max().item()
        readings["shut gates", seed] = Outcome({0: {"alone": alone, "behind": behind, "spread": spread}})
    return readings


untold = run.study("shut gates", behind_shut_gates, {"shut gates": recipe})
table(
    "target, question in sight | accuracy (%) | lowest of all pairs of hosts (%)",
    (
        (name, untold.mean("shut gates", reading), untold.values("shut gates", reading).min())
        for name, reading in {"alone": "alone", "behind an untrained bridge, its gates shut": "behind"}.items()
    ),
    f"Mean [95 % interval] over {len(untold.seeds('shut gates'))} pairs. The bridge's tokens differ between questions by at"
    f" most {untold.values('shut gates', 'spread').max():.2g}.",
)

# %% [markdown]
# The tokens of shut gates do not differ between questions at all, and they are not without effect either: most of the
# targets hardly mind them, and some lose most of what they could do. So the zero start pays Flamingo's price, a first step
# without a gradient and small ones after it, for a protection that is not complete here.
#
# ## Tweak it
#
# Set the gates of an untrained bridge by hand, from shut to wide open, and see where the gradient goes. In a live kernel,
# choose the other pair of hosts.


# %% tags=["hide-input"]
def frame(axes, value: float, hosts: int) -> str:
    """Where the gradient arrives with every gate at one value."""
    found = flow(value, hosts)
    norms = {part: found.norm(prefix) for part, prefix in PARTS.items()}
    axes.barh(list(norms), list(norms.values()), color=ORANGE)
    axes.set(xlabel="gradient norm", title=f"gates {100 * math.tanh(value):.2g} % open")
    axes.invert_yaxis()
    told = ", ".join(f"{name} {norm:.2g}" for name, norm in norms.items())
    return f"Gates at {value:g} let {100 * math.tanh(value):.2g} % through. Gradient norms: {told}."


values = {"0": 0.0, "one step at × 3": 3 * FIRST, "0.1": 0.1, "0.5": 0.5, "2": 2.0}
explore("value of every gate", values, frame, hosts=range(run.seeds))

# %% [markdown]
# ## Try it on yours
#
# `gates` finds every parameter of one element whose name holds "gate" and says how far it is open; `gradient_flow`
# takes named parameters and a loss, and lists what gets no gradient. Gates that are shut at the end of a training, or a
# cross-attention that is dead after its first steps, are worth knowing before any accuracy is discussed.

# %%
gates(study.model(OWN, 0))  # yours

# %% [markdown]
# ## Provenance

# %% tags=["remove-input"]
run.measure(**{f"{a} over {b}, last step": study.gain(a, b, "report") for a, b in PAIRS.values()})
run.close()
