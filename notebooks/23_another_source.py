# %% [markdown]
# # Another source
#
# Every log speaks from one pair of models. Would another source have been heard? Here the recipes stay and the source
# changes: one that learnt the same task from another seed, and solves it as well. In the steps of one recipe some sources
# are heard whole and others by less than half, and how loudly their states say a number tells which, before any training.
# Whitening the states evens that out, and so does time. The logs' fixes do not: with faint sources none of them gains five
# points. Of what varies between plain bridges the draw of their hosts decides about four fifths. The predictions are the
# book's own.

# %% tags=["parameters"]
profile = "quick"  # quick | full
seeds = 0  # sources, each pretrained with a seed of its own; at least 2; 0 takes the profile's number
device = "auto"  # auto | cpu | cuda | mps
out = ""  # where the record goes, a .json file

# %% tags=["hide-input"]
from dataclasses import replace
from functools import lru_cache
from itertools import product

import numpy as np
from bridges.benches import answering
from bridges.benches.answering import BridgeRecipe
from bridges.benches.exams import whitened
from bridges.benches.study import PER_HOST, Outcome, over
from bridges.connectors.scale import Whitening
from bridges.connectors.translator import TranslatorSettings
from bridges.hosts import causal
from bridges.instruments.probe import linear_probe, variance_share
from bridges.instruments.uncertainty import Estimate, at_confidence, mean_interval
from bridges.instruments.variance import host_share, variance_components
from bridges.tasks.word_problems import encode, numbers, prompt
from bridges.training.fit import GATE_GROUP, FitSettings, Group
from press.book import (
    BLUE, HOSTS, ORANGE, Markdown, begin, dots, explore, figure, of_record, plt, recorded, show_source, table,
)  # fmt: skip
from scipy.stats import permutation_test, rankdata, ttest_ind, zscore
from torch import tensor
from torch.nn.functional import layer_norm, one_hot

# Pairs: quick, full profile.
run = begin("another_source", globals(), hosts=("source", "target-0"), seeds=(2, 8),
    rest=((), None),  # of the arms that a quick page does not train itself; None for all
    host=("quick", "full"),  # the size of the pretrained hosts
    asked=200,  # questions of the exam
    batch=(16, 32), rate=(6e-3, 3e-3), width=(64, 128),  # of the translator's bottleneck
    steps=(192, 600), whole=(240, 1200),  # of the whole recipe
)  # fmt: skip

# %% [markdown]
# ## Symptom
#
# No log names a second source, so none can tell what of its result belongs to the one it had. This book has its own part
# in that. Its experiments with language models once stood on two pairs of hosts, chosen because bridges from them learn in
# the steps there are; from a third source they had learnt next to nothing, though it solved nearly every problem of its
# exam. A choice of hosts is a choice of results, and so each seed of this part now draws a pair of its own. This chapter
# asks what the draw decides.
#
# ## Claim
#
# Three predictions, written before the hosts of seeds 10 to 17 were made. All speak of bridges that read a source after
# its first block, as this part does throughout, and of the *share* of these states' variance, at the places of the
# question's numbers, that lies between numbers: how loudly a state says which number it stands for.
#
# 1. Accuracy rises with the share: its rank correlation over the sources is positive, p < 0.05.
# 2. What whitening the states gains falls with the share: a negative rank correlation, p < 0.05.
# 3. Read whitened, the worst of the sources is at least ten points better than the worst of them read plainly.
#
# ## Mechanism
#
# A connector's map is simple at first, and what it picks up first is likely to be what its input varies in most. [What was
# never varied](layers_and_tokens.ipynb) looks at a source's layers in this way. The suspicion here is that sources differ
# in it at their first block: all hold the numbers, some say them loudly. The share is, with $\bar h$ the mean of the
# states $h_i$ and $\bar h_v$ that of the $n_v$ which stand for the number $v$,
#
# $$
# \eta^2 = \frac{\sum_v n_v\, \lVert \bar h_v - \bar h \rVert^2}{\sum_i \lVert h_i - \bar h \rVert^2} .
# $$ (eq-source-share)

# %% tags=["remove-input"]
show_source(variance_share, start="    centre =", lines=4)

# %% [markdown]
# If loudness is the cause, it can be evened out. Whitening centres the states and brings their directions to one variance
# {cite}`kessy2018optimal`, by a map that can be undone, so that it adds nothing; sentence embeddings have been
# mended by it {cite}`su2021whitening`. Mean and covariance come from the problems that bridges are trained on:

# %% tags=["remove-input"]
show_source(Whitening, start="        scale =", lines=3)

# %% [markdown]
# ## Experiment
#
# One target, that of seed 0, for every seed another source, and the question hidden. The same recipe reads the first
# block's states as they are, whitened, and centred alone. It follows the recipe at the end of [staying at the
# peak](staying_at_the_peak.ipynb), and comes in two lengths. The *short* one has half the batch, half the soft tokens and
# four fifths of the steps, so that its bridges end while they still rise; the *whole* recipe is also given twice its
# steps, for the states as they are.

# %%
LAYER, LAST = 1, causal.SIZES["mistral"][run.host].layers
WHITE, CENTRE = LAST + 1, LAST + 2  # two more layers to read


@lru_cache(maxsize=8)
def widened(bench, seed):
    """The hosts of a seed with the first block's states whitened, and centred alone, as two more layers to read."""
    home = answering.Answering.home(bench, seed)
    for strength in (1.0, 0.0):
        exams = {name: whitened(exam, home.taught, LAYER, strength) for name, exam in home.exams.items()}
        home = replace(home, taught=whitened(home.taught, home.taught, LAYER, strength), exams=exams)
    return home


class Bench(answering.Answering):
    """Word problems with those layers."""

    @property
    def depends(self):
        return [*super().depends, widened.__wrapped__]

    def home(self, seed):
        return widened(self, seed % PER_HOST)


def recipe(layer, steps, size):
    """The recipe that stays at the peak, in the short one's sizes or multiples of them."""
    fit = FitSettings(steps, run.rate, size * run.batch, 20, groups=(Group(GATE_GROUP.prefix, rate=10.0),))
    shape = TranslatorSettings(bottleneck=run.width, tokens=8 * size, depth=2, heads=8)
    return BridgeRecipe(fit, shape, scale=None, layer=layer)


# %%
PLAIN, WHITENED, CENTRED = "plain", "whitened", "centred"
WHOLE, WHOLE_LONGER, WHOLE_WHITENED = "whole, plain", "whole, plain, twice the steps", "whole, whitened"
bench = Bench(HOSTS, run.device, run.host, asked=run.asked, same_target=True)
short = {PLAIN: recipe(LAYER, run.steps, 1), WHITENED: recipe(WHITE, run.steps, 1)}
whole = {
    WHOLE: recipe(LAYER, run.whole, 2),
    WHOLE_LONGER: recipe(LAYER, 2 * run.whole, 2),
    WHOLE_WHITENED: recipe(WHITE, run.whole, 2),
}
study = run.study("sources", bench.train, short)
study |= run.study("centred", bench.train, {CENTRED: recipe(CENTRE, run.steps, 1)}, seeds=run.rest)
study |= run.study("whole recipe", bench.train, whole, seeds=run.rest)

# %% [markdown]
# Now the states, before any training, normed position by position as the translator norms them: the same share for another
# label too, whether a number is the first of its question or a later one, and both once more for states that are whitened
# part of the way.

# %%
PROBED = 400  # problems
AS_IS, *STRENGTHS = (-1, 0, 25, 50, 75, 100)  # per cent of the way; at 0 states are centred alone


def at_numbers(home, layer):
    """A layer's states, where among them the questions' numbers stand, which they are, and whether they are later ones."""
    words, taught = home.pair.source_words, home.taught
    ids, _ = encode([prompt(p.question, words) for p in taught.problems], words)
    return taught.states[layer].cpu(), taught.mask.bool().cpu(), *numbers(ids[:PROBED], words)


def loudness(arms, seeds):
    """What the states of a layer hold of the numbers, as they are and by how far they are whitened."""
    found = {(arm, seed): {} for arm in arms for seed in seeds}
    for (arm, seed), strength in product(found, (AS_IS, *STRENGTHS)):
        states, mask, there, value, later = at_numbers(bench.home(seed), arms[arm])
        if strength >= 0:
            states = Whitening(states.shape[-1]).fit(states[mask], strength / 100)(states)
        read = layer_norm(states[:PROBED][there], states.shape[-1:])
        shares = {"between numbers": variance_share(read, value), "first or later": variance_share(read, later)}
        found[arm, seed][strength] = {"probe": linear_probe(read, one_hot(value)).r2} | shares
    return {key: Outcome(readings) for key, readings in found.items()}


loud = run.study("states", loudness, {"first block": LAYER})
share = loud.curve("first block", "between numbers")

# %% [markdown]
# And the same question of the part's ordinary recipe, which reads the first block with matched RMS: here each seed draws
# target and source, and over each pair two bridges are trained that differ in their first values and batches alone.


# %%
def twice(arms, seeds):
    """Two bridges over the hosts of each seed."""
    found = pairs.train(arms, [*seeds, *(seed + PER_HOST for seed in seeds)])
    ends = {arm: found.values(arm, "report") for arm in arms}
    return {
        (arm, seed): Outcome({0: {"first": ends[arm][seed], "again": ends[arm][seed + PER_HOST]}})
        for arm, seed in product(arms, seeds)
    }


pairs = Bench(HOSTS, run.device, run.host, asked=run.asked)
ordinary = BridgeRecipe(
    FitSettings(run.whole, 5e-3, run.batch, 20, groups=(GATE_GROUP,)),
    TranslatorSettings(bottleneck=run.width, tokens=8, depth=2, heads=8),
    layer=LAYER,
)
drawn = run.study("pairs", twice, {PLAIN: ordinary, WHITENED: replace(ordinary, layer=WHITE)}, seeds=run.rest)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Sources that speak to one target, by the share of variance that lies between numbers in the states that are read: a dot for each in the short recipe, a triangle in the whole one. Left, accuracy of the bridges that read the states as they are; right, what whitening them gains or costs, with the source's seed. Dotted: no change.", "name": "fig-source-share"}, "image": {"alt": "Two panels over the share. Left, accuracy rises with the share in both recipes, from a fifth to three quarters of the questions in the short one. In the whole one seven sources with a share below a fifth end below half of the questions, the nine others at about four fifths or more, five of them at nearly all. Right, sources with a small share gain by whitening, most by tens of points in the whole recipe, while most of those with a large share lose some."}}
loudly = share.loc[AS_IS]
ended = {arm: study.values(arm, "report") for arm in (*short, CENTRED, *whole)}
left, right = figure(columns=2, height=3.4, sharey=False)
for name, mark, before, after in (("short", "o", PLAIN, WHITENED), ("whole recipe", "^", WHOLE, WHOLE_WHITENED)):
    left.plot(loudly, ended[before], mark, color=BLUE, label=name)
    right.plot(loudly, ended[after] - ended[before], mark, color=ORANGE, label=name)
    for source, gained in (ended[after] - ended[before]).items():
        right.annotate(str(source), (loudly[source], gained), (4, 3), textcoords="offset points", fontsize=7)
right.axhline(0, color="black", lw=0.8, ls=":")
left.set(xlabel="share of variance between numbers", ylabel="bridged accuracy (%)", ylim=(0, 105), title="as they are")
right.set(xlabel="share of variance between numbers", ylabel="whitened minus plain (points)", title="whitened")
left.legend(fontsize=8)
plt.show()

# %% tags=["hide-input"]
alone, probe = study.values(PLAIN, "source alone"), loud.curve("first block", "probe").loc[AS_IS].min()
table(
    "one target | accuracy (%) | lowest | highest | reach 95 % of their source | shuffled source (%)",
    (
        (a, study.mean(a, "report"), v.min(), v.max(), int((v >= 0.95 * alone).sum()), study.mean(a, "shuffled source"))
        for a, v in ended.items()
    ),
    f"n = {len(alone)} sources, {run.asked} problems. By themselves the sources answer {study.mean(PLAIN, 'source alone')} %. The"
    f" share goes from {loudly.min():.2f} to {loudly.max():.2f}, whitened from {share.loc[100].min():.2f} to"
    f" {share.loc[100].max():.2f}; a probe finds the number in every source, with a held-out R² of {probe:.2f} or more.",
)

# %% [markdown]
# ## Verdict
#
# The predictions were made for eight sources that nobody had looked at, with seeds 10 to 17, and tested on them once, with
# another target; what those runs gave is kept. The sources of this page, by seeds from 0 on, are another sample and no
# second test: the first ten had been seen before the predictions were written, and those from 10 on are among the eight.
# With few sources the correlation of ranks is tested on the side that was predicted: its p is the share of all ways to pair
# the shares with the other values, or of 50,000 of them, in which it would be as far on that side.


# %%
def rank_correlation(one, other, side: str) -> tuple[float, float]:
    """Spearman's, and its one-sided p."""
    x, y = zscore(rankdata(one)), zscore(rankdata(other))
    ways = {"permutation_type": "pairings", "alternative": side, "n_resamples": 50_000, "batch": 5_000, "rng": 0}
    found = permutation_test((x,), lambda x, axis: (x * y).mean(axis), vectorized=True, **ways)
    return float(found.statistic), float(found.pvalue)


then = recorded("earlier_sources")
before = {name: np.array(column) for name, *column in zip(then["columns"], *then["rows"], strict=True)}
SAMPLES = {
    "seeds 10 to 17, short": (before["share"], before["short, plain"], before["short, whitened"]),
    "seeds 10 to 17, whole recipe": (before["share"], before["whole, plain"], before["whole, whitened"]),
    "these sources, short": (loudly, ended[PLAIN], ended[WHITENED]),
    "these sources, whole recipe": (loudly, ended[WHOLE], ended[WHOLE_WHITENED]),
}
rows = {
    name: (rank_correlation(at, p, "greater"), rank_correlation(at, w - p, "less"), float(w.min() - p.min()))
    for name, (at, p, w) in SAMPLES.items()
}
held = {name: (up[1] < 0.05, down[1] < 0.05, worst >= 10) for name, (up, down, worst) in rows.items()}

# %% tags=["nbval-check-output", "keep_output", "remove-input"]
for name, parts in held.items():
    print(f"{name}: {', '.join(f'{i + 1} held' if part else f'{i + 1} did not' for i, part in enumerate(parts))}")

# %% tags=["hide-input"]
table(
    "sample | n | 1: share and accuracy (p) | 2: share and gain (p) | 3: worst source, whitened over plain (points)",
    (
        (name, len(SAMPLES[name][0]), f"{up[0]:.2f} ({up[1]:.2g})", f"{down[0]:.2f} ({down[1]:.2g})", worst)
        for name, (up, down, worst) in rows.items()
    ),
    "Rank correlations, each with its one-sided p. Of the eight, the short runs had one bridge a source, the whole recipe two.",
)

# %% [markdown]
# A figure that can be read off the states before any training tells the sources that are heard in time from those that are
# not. In the whole recipe it does so like a switch: below a share of about a fifth every source ends under half of the
# questions, above it all end far over. Of the predictions one failed once, in the short runs of the eight sources: among
# the faint ones the gain rose with the share. Nor is loudness the whole of it. Whitened, all sources say their numbers about
# as loudly as the loudest did before, and most of the loud ones lose a little by it; perhaps what they do not need is then
# as loud as the rest.
#
# ## What holds instead
#
# ### Late, and not never
#
# What is faint is heard late. In the steps of the whole recipe the loudest sources are heard whole, the faintest by less
# than half; with twice as many steps, the schedule stretched with them, most of the rest is there. Whitened, most of it is
# there in the recipe's own steps. Centring alone does nothing of the kind. Whitening is no cure for all: of the eight earlier
# sources, speaking to another target, each came to 95 % of what it answers by itself; speaking to this one, half stay below.
#
# For a log that has one source and a fixed number of steps this is bad news. With nearly half of these sources its recipe
# could have ended far below what the source knows, and each of the fixes would have been tried on a bridge that perhaps
# only needed time. A bridge that learns little may be broken, or it may be listening to something else first.
#
# ### Whose the variance is
#
# Now both hosts are drawn, in the part's ordinary recipe. With two bridges over each of $H$ pairs of hosts, the mean
# squares between hosts, $B$, and within, $W$, tell how much of what varies is decided before a bridge draws its first value:
#
# $$
# \hat\sigma^2_{\text{hosts}} = \frac{B - W}{2}, \qquad
# \text{share} = \frac{\hat\sigma^2_{\text{hosts}}}{\hat\sigma^2_{\text{hosts}} + W} .
# $$ (eq-source-hosts)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Two bridges over the same hosts, by the accuracy of each after the ordinary recipe, question hidden: one dot for each pair of hosts. On the dotted line the two are equal.", "name": "fig-source-hosts"}, "image": {"alt": "Two panels with a dot for each pair of hosts. Read plainly, pairs from which one bridge learns little tend to give another that learns little, though some lie far off the line. Read whitened, the dots lie around the line in no such order."}}
both = {arm: np.stack([drawn.values(arm, which) for which in ("first", "again")], 1) for arm in (PLAIN, WHITENED)}
for axes, (arm, pair) in zip(figure(columns=2, height=3.4), both.items(), strict=True):
    axes.plot(*pair.T, "o", color=BLUE if arm == PLAIN else ORANGE)
    axes.plot((0, 100), (0, 100), ":", color="black", lw=0.8)
    axes.set(xlabel="one bridge (%)", ylabel="the other (%)", title=arm, xlim=(0, 103), ylim=(0, 103))
plt.show()

# %%
both["whitened minus plain"] = both[WHITENED] - both[PLAIN]
shares = {name: host_share(pair.tolist()) for name, pair in both.items()}
spread = {name: [v**0.5 for v in variance_components(tensor(pair))] for name, pair in both.items()}
follows = rank_correlation(loudly, both[PLAIN].mean(1), "greater")
table(
    "two bridges a pair | mean (%, points) | SD over one pair of hosts (points) | SD between hosts (points) | the hosts' share",
    ((name, pair.mean(), *spread[name][::-1], shares[name]) for name, pair in both.items()),
    f"n = {len(both[PLAIN])} pairs of hosts; the share with its 95 % interval, a bootstrap over hosts. The mean of two plain"
    f" bridges follows the loudness of their source: rank correlation {follows[0]:.2f} (p = {follows[1]:.2g}).",
)

# %% [markdown]
# By these pairs about four fifths of what varies between plain bridges are their hosts', and less than a quarter once the
# source is whitened, though either interval is wide. Seeds that share their hosts would have shown the first of the two
# spreads and hidden the second, however many they were. Where two arms are compared within a seed, the hosts' part of the
# level falls out of the difference, and that of the *effect* does not: some seven tenths of what varies in it are theirs too. So
# each seed of this part draws its own pair, and its intervals are wider for it.
#
# ### The logs' fixes, where the source is faint
#
# The fixes of this part were tried on hosts as they were drawn. If a bridge that learns little is only listening to
# something else, a fix that helps it listen should show with the faint sources first. [The criteria](../book/criteria.md)
# say beforehand what counts as faint, a share below a fifth, and which gains are looked at. No bridge is trained for it:
# the rows that decide those claims are split by what their sources' states say before any training.

# %%
FAINT = 0.2


def how_loud(arms, seeds):
    """The share between numbers alone, of any number of sources."""
    found = {}
    for arm, seed in product(arms, seeds):
        states, _, there, value, _ = at_numbers(bench.home(seed), arms[arm])
        read = layer_norm(states[:PROBED][there], states.shape[-1:])
        found[arm, seed] = Outcome({0: {"between numbers": variance_share(read, value)}})
    return found


sources = run.study("all sources", how_loud, {"first block": LAYER}, seeds=(), least=64)
every = sources.values("first block", "between numbers")
scales, gated = of_record("rms_matching", "scales"), of_record("gate_schedules", "gates")
anchored = of_record("kl_anchor", "question hidden") | of_record("kl_anchor", "aligned")
FIXES = {  # rows, with the fix, without, and the reading of the claim's criterion
    "matched RMS": (scales, "matched RMS (recipe)", "no norm", "report"),
    "gates at × 3": (gated, "own group, × 3", "common group", over("report", (120, 140, 160))),
    "dropout": (gated, "× 3 and dropout", "own group, × 3", over("report", (120, 140, 160))),
    "KL as written": (anchored, "as written", "without", "report"),
    "KL aligned": (anchored, "aligned", "without", "report"),
}
gains = {
    name: rows.values(fixed, read) - rows.values(without, read) for name, (rows, fixed, without, read) in FIXES.items()
}

# %% tags=["hide-input"] mystnb={"figure": {"caption": "What each of the logs' fixes gains, paired by seed, with faint sources (orange) and with the others (blue): means with 99 % intervals over seeds. Dotted: zero, and the claims' line of 5 points.", "name": "fig-source-fixes"}, "image": {"alt": "Two intervals for each of five fixes. With faint sources all five end below five points, and all but that of matched RMS lie close around zero. With the others they are wider; that of the gates at three times the rate lies above zero and reaches beyond five, all others end below five."}}
GROUPS = {"faint": every.index[every < FAINT], "other": every.index[every >= FAINT]}
split = {g: {name: gain[gain.index.intersection(among)] for name, gain in gains.items()} for g, among in GROUPS.items()}
with at_confidence(0.99):
    seen = {group: {name: mean_interval(list(gain)) for name, gain in of.items()} for group, of in split.items()}
axes = figure(height=3.2)
for nudge, (group, colour) in zip((-0.15, 0.15), (("faint", ORANGE), ("other", BLUE)), strict=True):
    dots(axes, seen[group], colour=colour, at=(0, 5) if nudge > 0 else (), nudge=nudge, legend=f"{group} sources")
axes.set(xlabel="what the fix gains (points)")
axes.legend(fontsize=8, loc="lower right")
plt.show()


# %% tags=["hide-input"]
def apart(name: str) -> Estimate:
    """How much more a fix gains with faint sources than with others, by Welch."""
    faint, other = split["faint"][name], split["other"][name]
    ends = ttest_ind(faint, other, equal_var=False).confidence_interval(0.99)
    return Estimate(faint.mean() - other.mean(), ends.low, ends.high, len(faint) + len(other))


table(
    "fix | gain, faint sources (points) | n | gain, others (points) | n | faint minus others (points)",
    (
        (name, seen["faint"][name], seen["faint"][name].n, seen["other"][name], seen["other"][name].n, apart(name))
        for name in FIXES
    ),
    f"Mean [99 % interval]. Of {len(every)} sources {len(GROUPS['faint'])} are faint; their shares go from {every.min():.2f} to"
    f" {every.max():.2f}. Line of each claim: 5 points.",
)

# %% [markdown]
# Half of the sources are faint, and with these no fix is worth five points: all five intervals end below. So that a log's
# source may have been one that is heard late is no excuse for its fixes. What does help there is known from above:
# whitening what is read, or time. With the others the threefold rate of the gates gains something, and whether five points
# is open in this half of the seeds; the claim's own rows exclude them. For no fix do the two groups differ by more than
# chance would make them.
#
# ## Tweak it
#
# Whitening can be done by halves. The slider sets how far it goes, from states that are centred and no more to all
# variances equal. Each pair of bars is a source: how much of its variance lies between numbers, and how much between first
# and later ones.


# %% tags=["hide-input"]
def frame(axes, strength: int) -> str:
    """The two shares of every source at one strength."""
    for nudge, colour, name in ((-0.2, BLUE, "between numbers"), (0.2, ORANGE, "first or later")):
        values = loud.curve("first block", name).loc[strength]
        axes.bar(values.index + nudge, values, width=0.38, label=name, color=colour)
    axes.set(xlabel="source", ylabel="share of variance", ylim=(0, 1), xticks=values.index)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=9)
    at = share.loc[strength]
    return f"Whitened {strength} % of the way, {at.min():.2f} to {at.max():.2f} of the sources' variance lies between numbers."


explore("strength of whitening (%)", STRENGTHS, frame)

# %% [markdown]
# ## Try it on yours
#
# Before the first step: the states that your connector will read, and a label at each position that it should pass on.
# A good probe beside a low share says that the source holds it and says it quietly. Then whiten, with statistics of the
# training texts, padding left out, and keep the map with the bridge: it is a module, and its values go into the
# checkpoint.

# %%
hidden, mask, there, label, _ = at_numbers(bench.home(0), LAYER)  # yours: states, and what is to be passed on where
whitening = Whitening(hidden.shape[-1]).fit(hidden[mask])
# This book's translator norms what it reads; leave that out if yours does not.
heard = [layer_norm(x[:PROBED][there], x.shape[-1:]) for x in (hidden, whitening(hidden))]
Markdown(
    f"A probe finds R² {linear_probe(heard[0], one_hot(label)).r2:.2f}; the label's share of the variance is"
    f" {variance_share(heard[0], label):.2f} before and {variance_share(heard[1], label):.2f} after whitening."
)

# %% [markdown]
# ## Provenance

# %% tags=["remove-input"]
run.measure(
    **{f"accuracy: {arm}": study.mean(arm, "report") for arm in ended},
    **{f"share and accuracy: {name}": row[0][0] for name, row in rows.items()},
    **{f"share and gain: {name}": row[1][0] for name, row in rows.items()},
    **{f"worst, whitened over plain: {name}": row[2] for name, row in rows.items()},
    **{f"the hosts' share: {name}": found for name, found in shares.items()},
)
run.close()
