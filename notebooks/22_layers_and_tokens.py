# %% [markdown]
# # What was never varied
#
# A bridge between two language models has two settings that no run of the log changes by themselves: which layer of the
# source it reads, and how many soft tokens it puts before the question. Both matter. From the source's last layer a bridge
# learns less in the same steps than from its first block; whitened, that layer is the best on average. Soft tokens that say
# nothing take attention from a question in sight: behind 48 of them targets that solve every problem alone fail at more
# than a third. The layer matters more than the largest of three of the log's fixes, on average by over five points.

# %% tags=["parameters"]
profile = "quick"  # quick | full
seeds = 0  # at least 2; 0 takes the profile's number
device = "auto"  # auto | cpu | cuda | mps
out = ""  # where the record goes, a .json file

# %% tags=["hide-input"]
import math
from dataclasses import replace
from functools import lru_cache
from itertools import product

import torch
from bridges.benches import answering
from bridges.benches.answering import BridgeRecipe
from bridges.benches.exams import answer, whitened
from bridges.benches.study import Outcome
from bridges.connectors.translator import LOG, Bridge, TranslatorSettings
from bridges.hosts import causal
from bridges.instruments.probe import linear_probe, variance_share
from bridges.instruments.soft_prompt import bridge_quality
from bridges.instruments.uncertainty import mean_interval
from bridges.tasks.word_problems import encode, numbers, prompt
from bridges.training.fit import GATE_GROUP, FitSettings
from bridges.training.losses import kl_as_written
from press.book import (
    BLUE, GREEN, HOSTS, ORANGE, Markdown, begin, claims, dots, explore, figure, lines, plt, show_source, table,
)  # fmt: skip
from torch.nn.functional import layer_norm, one_hot

# Pairs: quick, full profile.
run = begin("layers_and_tokens", globals(), hosts=("source", "target"), seeds=(2, 12),
    rest=((), None),  # of the arms that a quick page does not train itself; None for all
    host=("quick", "full"),  # the size of the pretrained hosts
    asked=(100, 200),  # questions of an exam
    batch=(16, 64), rate=(5e-3, 3e-3), width=(64, 128),  # of the translator's bottleneck
    depth=(2, 4), steps=(240, 400))  # fmt: skip

# %% [markdown]
# ## Symptom
#
# What the log's four configurations set:

# %% tags=["remove-input"]
table(
    "configuration | soft tokens | bottleneck | layers | heads | source layer read",
    ((name, s.tokens, s.bottleneck, s.depth, s.heads, "not said") for name, s in LOG.items()),
)

# %% [markdown]
# The number of soft tokens changes only together with other settings, and never below a few dozen. The source's states
# appear in the log's code as `src_hiddens`, and nothing says from which of its layers they come.
#
# ## Claim

# %% tags=["remove-input"]
claims("C15")

# %% [markdown]
# ## Mechanism
#
# ### The layer
#
# A source of $L$ blocks offers $L + 1$ sets of states: its embeddings $h_0$, what each block puts out, and behind the
# last block a norm. The bridge takes one of them:

# %% tags=["remove-input"]
show_source(Bridge, start="own = states.index_select", lines=1)

# %% [markdown]
# The last has a duty that no other has: from it, position by position, the head predicts the next token. A connector does
# not want the next token. It wants to know what was said where, and the last layer was never asked to keep it. Whether it
# does can be measured.
#
# ### The tokens
#
# The last position of the prompt, from which the answer sets out, reads all positions by one softmax. With $s_k$ its
# scores for the $K$ soft tokens and $s_t$ for the words, the share of attention that the tokens take is
#
# $$
# m_K = \frac{\sum_k e^{s_k}}{\sum_k e^{s_k} + \sum_t e^{s_t}} ,
# \qquad \frac{m_K}{1 - m_K} \approx K\, c ,
# $$ (eq-layers-mass)
#
# with $c$ the odds of a single token. A softmax cannot look away: tokens that mean nothing have scores too, and their
# shares add up. Twice as many take twice the odds from the question, whatever they say.
#
# ## Experiment
#
# ### Which layer is read
#
# A Mistral reads word problems of one and two steps, a Llama answers them; both are frozen, each seed has a pair of its own,
# and the question is hidden: all that the target knows of it comes over the bridge. The arms share everything but the
# layer. Beside them stand three of the log's fixes, each put in or taken out alone: the ordinary recipe has matched
# RMS and no penalty, so one arm leaves the matching out, one adds the KL penalty as the log writes it (on the first
# three of eight soft-token positions, about the share that the log takes), one adds dropout. One more layer is
# offered to the bridge, the last one *whitened*, of which more below.

# %%
LAST = causal.SIZES["mistral"][run.host].layers
AFTER_FIRST, AT_END, EMBEDDED, WHITE = "after the first block", "last layer", "embeddings", "last layer, whitened"
PENALISED, WARMUP = 3, 20  # positions, and steps without a penalty


def widened(home):
    """The hosts with one more layer to read, behind the source's own: the last, whitened by what is taught."""
    exams = {name: whitened(exam, home.taught, LAST) for name, exam in home.exams.items()}
    return replace(home, taught=whitened(home.taught, home.taught, LAST), exams=exams)


class Bench(answering.Answering):
    """Word problems with that layer."""

    @property
    def depends(self):
        return [*super().depends, widened]

    @lru_cache(maxsize=12)  # noqa: B019
    def home(self, seed):
        return widened(super().home(seed))


def penalty(batch):
    """The log's KL penalty, to the target that reads the question."""
    baseline = batch.bench.prompt_logits[batch.rows, :PENALISED]
    return 0.03 * kl_as_written(batch.logits, baseline, PENALISED) if batch.step >= WARMUP else 0.0


bench = Bench(HOSTS, run.device, run.host, asked=run.asked)
fit = FitSettings(run.steps, run.rate, run.batch, WARMUP, groups=(GATE_GROUP,))
recipe = BridgeRecipe(fit, TranslatorSettings(bottleneck=run.width, tokens=8, depth=run.depth, heads=8), layer=1)

# %%
layers = {AFTER_FIRST: recipe, AT_END: replace(recipe, layer=LAST)}
others = {EMBEDDED: replace(recipe, layer=0), WHITE: replace(recipe, layer=LAST + 1)}
fixes = {
    "RMS matching left out": replace(recipe, scale=None),
    "KL as written": replace(recipe, penalty=penalty),
    "dropout": replace(recipe, translator=replace(recipe.translator, dropout=0.1)),
}
looks = tuple(run.steps * quarter // 4 for quarter in (1, 2, 3))
study = run.study("layers", bench.train, layers, looks=looks)
study |= run.study("other layers", bench.train, others, seeds=run.rest, looks=looks)
# Of the fixes, the quick profile trains one; the others are of record alone.
study |= run.study("fixes", bench.train, fixes, here=("KL as written",) if run.profile == "quick" else None)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Left: bridged accuracy, question hidden, by the layer that is read: means over all seeds that an arm has, with their 95 % interval. Right: what each change to the recipe does to its accuracy at the last step, paired by seed, with 95 % intervals; small dots are the seeds trained on this page. Dotted: zero, and the criterion's 5 points.", "name": "fig-layers-arms"}, "image": {"alt": "Left, accuracy rises with training for every layer: lowest for the last layer, highest where that layer is whitened, the embeddings and the first block between them. Right, one row for each change to the recipe: the interval of the last layer lies far below zero, that of the last layer whitened above. The embeddings' reaches widely to both sides. That of RMS matching lies close around zero, those of the KL penalty and dropout a few points below it."}}
left, right = figure(columns=2, height=3.6, sharey=False)
curves = {arm: study.curve(arm, "report") for arm in (*layers, *others)}
lines(left, curves, xlabel="training steps", ylabel="bridged accuracy (%)", ylim=(0, 103), thin=False)
left.legend(fontsize=8, loc="upper left")
ended = {arm: study.values(arm, "report") for arm in (*layers, *others, *fixes)}
changes = {arm: study.gain(arm, AFTER_FIRST, "report") for arm in ended if arm != AFTER_FIRST}
here = {arm: study.live.values(arm, "report") for arm in ended if arm in study.live}
points = {arm: values - here[AFTER_FIRST] for arm, values in here.items()}
dots(right, changes, points=points, at=(0, -5), xlabel="change in accuracy (points)")
plt.show()

# %% [markdown]
# Read from the last layer, a bridge answers about half as much. Two of the fixes do harm: the KL penalty and dropout cost
# a few points each. Leaving out RMS matching changes less than five points, if anything. From a shuffled source, which
# speaks of another problem, no arm answers one question in ten; source and target, each by itself with the question,
# answer all.
#
# ### How many tokens are put before the question
#
# Now the question is visible, and nothing is trained. A fresh bridge for each number of soft tokens, its gates shut as in
# every start of a training, stands before a target that solves the problem alone. What its tokens say is the same for
# every question and nothing about any; how much the target keeps is the question.
#
# Beside the answers two things are measured that are wanted further down: the share of attention that the tokens take in
# each block, and what becomes of the target when their odds are taken away and the tokens left. Subtract $\ln(K/8)$ from the
# scores of all $K$ of them, in every block, and together they weigh about as much as eight. The measure is then the share
# of solutions of which the target foretells every token, with the right ones before it.

# %%
COUNTS = (1, 2, 4, 8, 16, 32, 48)
FEWER, MORE = 8, 48
LISTENED = 25  # questions at which the attention is read
AS_IS, QUIETER = "as they are", "with the weight of eight"


def foretold(soft, home, quieter):
    """Solutions foretold whole behind soft tokens whose odds are divided by `quieter` (%)."""
    exam, target, count = home.exams["report"], home.pair.target, soft.shape[1]
    (ids, mask), there = exam.visible, exam.labels != -100
    ids, mask = torch.cat([ids, exam.labels.clamp_min(0)], 1), torch.cat([mask, there.long()], 1)
    embeds, mask = causal.spoken_to(target, soft, ids, mask).values()
    earlier = mask.new_ones(mask.shape[1], mask.shape[1]).tril().bool()
    scores = torch.where(earlier & mask.bool()[:, None, None], 0.0, torch.finfo(embeds.dtype).min)
    scores[:, :, count:, :count] -= math.log(quieter)
    given = {"attention_mask": scores.to(embeds.dtype), "position_ids": causal.positions(mask), "use_cache": False}
    told = target(inputs_embeds=embeds, **given).logits[:, -exam.labels.shape[1] - 1 : -1].argmax(-1)
    return 100 * ((told == exam.labels) | ~there).all(1).double().mean().item()


def behind(arms, seeds):
    """What each target does behind so many tokens of an untrained bridge, by their number."""
    found = {(arm, seed): {} for arm in arms for seed in seeds}
    for (arm, seed), count in product(found, COUNTS):
        home, shape = bench.home(seed), replace(arms[arm].translator, tokens=count)
        exam, target, words = home.exams["report"], home.pair.target, home.pair.target_words
        soft = bench.untrained(replace(arms[arm], translator=shape), seed)(exam.states, exam.mask).detach()
        heard = bridge_quality(soft[:LISTENED], target, *(part[:LISTENED] for part in exam.visible), words)
        found[arm, seed][count] = {f"block {i + 1}": 100 * mass for i, mass in enumerate(heard.attention_mass)} | {
            "accuracy": answer(target, words, soft, exam, visible=True).accuracy,
            AS_IS: foretold(soft, home, 1.0),
            QUIETER: foretold(soft, home, max(1.0, count / FEWER)),
        }
    return {key: Outcome(readings) for key, readings in found.items()}


tokens = run.study("tokens", behind, {"soft tokens": recipe})
accuracy = tokens.curve("soft tokens", "accuracy")
table(
    " | ".join(("accuracy behind so many (%)", *map(str, COUNTS))),
    [("mean over targets", *accuracy.mean(axis=1)), ("lowest of them", *accuracy.min(axis=1))],
)

# %% [markdown]
# The mean falls with every step, and targets differ: some answer nearly everything behind 48 tokens that say nothing, and
# a few give most of their answers up behind eight.
#
# (verdict-c15)=
# ## Verdict
#
# The largest of the three fixes is chosen on half of the seeds, by the size of its mean effect. The second part takes the
# size of that fix's effect, whatever its sign, from the layer's within each of the other seeds. Noise then counts for the
# fix: the harder reading for the claim.


# %% tags=["hide-input"]
def observed():
    """The criterion's parts."""
    behind_it = {arm: study.values(AFTER_FIRST, "report") - study.values(arm, "report") for arm in (AT_END, *fixes)}
    choosing, measuring = study.halves(*behind_it)
    largest = max(fixes, key=lambda fix: abs(behind_it[fix][choosing].mean()))
    run.given.setdefault(f"largest fix, {len(choosing)} seeds choosing", largest)
    return {
        "source_layer_gain": study.gain(AFTER_FIRST, AT_END, "report"),
        "source_layer_against_fixes": mean_interval(list((behind_it[AT_END] - behind_it[largest].abs())[measuring])),
        "soft_token_cost": tokens.mean("soft tokens", lambda one: one["accuracy"][FEWER] - one["accuracy"][MORE]),
    }


run.judge("C15", observed)

# %% tags=["nbval-check-output", "keep_output", "remove-input"]
print(run.verdict_lines())

# %% [markdown]
# All three parts are confirmed: the layer is worth more than five points, so is its lead over the fix that the choosing
# seeds name as the largest, and so are the forty tokens fewer. The lead takes the most seeds to tell, since the layer's
# effect is uneven: in one seed of five the first block is hardly ahead of the last layer or behind it, in others ahead by
# tens of points.
#
# ## What holds instead
#
# ### The last layer holds the numbers, beside something louder
#
# The last layer may have given up what was said for what comes next. A linear probe can tell: it is given the states
# where the questions' numbers stand, normed as the translator norms them, and is to name the number. Beside it stands
# the share of the states' variance that lies between numbers: what would be left of it if each state were replaced by
# the mean of its number's states. The same share is taken for another label, whether a number is the first of its
# question or a later one. On that depends the next word: behind the first come the things that are counted, behind a
# later one a full stop.

# %%
PROBED = 400  # problems


def at_numbers(home):
    """Each layer's states where the questions' numbers stand, normed; which number; whether it is a later one."""
    words = home.pair.source_words
    ids, _ = encode([prompt(p.question, words) for p in home.taught.problems], words)
    there, value, later = numbers(ids[:PROBED], words)
    states = home.taught.states[:, :PROBED].cpu()[:, there]
    return layer_norm(states, states.shape[-1:]), value, later


def held(arms, seeds):
    """What the source's states hold of the numbers, by layer."""
    found = {}
    for arm, seed in product(arms, seeds):
        read, value, later = at_numbers(bench.home(seed))
        found[arm, seed] = Outcome(
            {
                layer: {
                    "probe": linear_probe(states, one_hot(value)).r2,
                    "which number": variance_share(states, value),
                    "first or later": variance_share(states, later),
                }
                for layer, states in enumerate(read)
            }
        )
    return found


numbered = run.study("states", held, {"source": None})

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The source's states where a question's numbers stand, by layer: means over sources with 95 % intervals, single sources thin. Left: how well a linear probe tells which number it is, held out. Right: the shares of the states' variance that lie between numbers, and between the first number of a question and later ones. The last mark on each axis: the last layer whitened.", "name": "fig-layers-faint"}, "image": {"alt": "Left, held-out R squared stays near one in all layers and falls a little in the last. Right, the share of variance between numbers is one at the embeddings, about a quarter behind the first block, where single sources differ most, and a fifth in the last layer, while the share between first and later numbers grows from near zero over about half to nearly all. Whitened, that order is turned round: about a third lies between numbers, little between first and later ones."}}
left, right = figure(columns=2, height=3.0)
for axes, name, colour in ((left, "probe", GREEN), (right, "which number", BLUE), (right, "first or later", ORANGE)):
    curve = numbered.curve("source", name)
    for label, part in ((name, curve.loc[:LAST]), ("_", curve.loc[LAST + 1 :])):
        lines(axes, {label: part}, colour={label: colour}, xlabel="source layer", ylim=(0, 1.05))
    axes.set_xticks(range(LAST + 2), ["emb.", *map(str, range(1, LAST)), "last", "last,\nwhitened"])
left.set(ylabel="held-out R²", title="a probe for the number")
right.set(title="share of variance")
right.legend(fontsize=8)
plt.show()

# %% [markdown]
# The last layer has not given the number up: the probe, which brings every feature to unit variance before it looks,
# finds it nearly as well as after the first block. But almost all that its states vary in is whether the number is the
# first of its question, which is what the next word needs. A connector that is trained by gradient descent may hear first
# what is loud. If that is what the last layer costs, a linear map should mend it. *Whitening* brings every direction of
# the states to one variance, with mean $\mu$, axes $V$ and variances $\Lambda$ taken from the training problems
# beforehand and a small $\varepsilon$,
#
# $$
# \tilde h = V\, (\Lambda + \varepsilon)^{-1/2}\, V^\top (h - \mu) .
# $$ (eq-layers-whitening)
#
# It adds nothing, since it can be undone. Bridges that read the last layer whitened were trained with the others above:
# they answer more than twice as much as those that read it plainly, and pass those that read the first block. That agrees
# with the suspicion and does not prove it, since whitening may ease a training whatever is read. The embeddings, which
# hold nothing but the word itself, do better than the last layer as well.
#
# The suspicion also says why the layer matters so unevenly. In the last layer all sources say a number about as faintly;
# behind the first block some say it twice or three times as loudly as others:

# %% tags=["hide-input"]
loud = numbered.curve("source", "which number").loc[1]
gained = (ended[AFTER_FIRST] - ended[AT_END])[loud.index]
Markdown(
    f"Behind the first block the share that lies between numbers goes from {loud.min():.2f} to {loud.max():.2f}. Its rank"
    f" correlation with what that block gains over the last layer, {gained.min():.0f} to {gained.max():.0f} points, is"
    f" {loud.corr(gained, method='spearman'):.2f} over {len(gained)} sources."
)

# %% [markdown]
# A loud first block is worth tens of points over the last layer, a faint one next to nothing. This was seen after the fact;
# [another source](another_source.ipynb) foretells it for sources not yet made, and whitens the first block too. In hosts of
# two blocks the first is also the middle; in a deep model the layers between are candidates.
#
# ### Attention adds up
#
# Why should tokens that say nothing cost anything? They do not move the question: Llama's attention knows distances only,
# and those within the prompt stay as they were. {eq}`eq-layers-mass` offers a reason, and it can be tested.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Left: solutions foretold whole with the question visible, against the number of soft tokens before it, as they are and with the weight of eight: means over seeds with 95 % intervals, single seeds thin. Right: the share of attention that the last position of the prompt gives to the soft tokens, in each block, the same way; dotted, what the odds at eight tokens foretell.", "name": "fig-layers-tokens"}, "image": {"alt": "Left, nearly all solutions are foretold behind one or two soft tokens, about nine in ten behind eight, little more than half behind forty-eight, and intervals widen; with the weight of eight, more tokens than eight cost nothing on average. Some single seeds fall to a third or lower, a few of them on both lines. Right, the share of attention rises with the number of tokens, in the second block to more than two thirds, along the dotted line; in the first block it stays far lower, and below the line at the end."}}
BLOCKS = [name for name in tokens.course("soft tokens", 0) if name.startswith("block")]
left, right = figure(columns=2, height=3.6, sharey=False)
curves = {name: tokens.curve("soft tokens", name) for name in (AS_IS, QUIETER, *BLOCKS)}
lines(left, {name: curves[name] for name in (AS_IS, QUIETER)}, ylabel="solutions foretold whole (%)", ylim=(0, 105))
lines(right, {name: curves[name] for name in BLOCKS}, ylabel="attention on them (%)", ylim=(0, 100))
for name in BLOCKS:
    share = curves[name].loc[FEWER] / 100
    odds = [share / (1 - share) * count / FEWER for count in COUNTS]
    right.plot(COUNTS, [100 * (o / (1 + o)).mean() for o in odds], ":", color="black")
for axes in (left, right):
    axes.set_xscale("log", base=2)
    axes.set_xticks(COUNTS, COUNTS)
    axes.set_xlabel("soft tokens")
    axes.legend(fontsize=8)
plt.show()

# %% [markdown]
# In the last block the shares rise as the odds at eight tokens foretell, to most of the attention. With the weight of
# eight, 48 tokens do on average no more harm than eight do: what they cost is the attention, and not their presence. It
# suggests two mends that were not trained here, fewer tokens, and a mask that starts with $-\ln K$ on them. The share
# is not all of it: in the last block it is much the same in every target, and yet some fail behind eight tokens and
# others bear 48. What tokens happen to say counts as well. What a training makes of 48 tokens is another matter, since
# it can teach them to be quiet, or worth hearing. The log's target has read long texts and may be better at looking
# away than a small host that has read nothing longer than a problem and its solution.
#
# ## Tweak it
#
# The slider sets the number of soft tokens of untrained bridges. Each dot is a target: how much of its attention the tokens
# take in its last block, and what it still answers with the question in sight. In a live kernel, choose the first block.


# %% tags=["hide-input"]
def frame(axes, count: int, block: str) -> str:
    """What so many soft tokens take of each target, and leave."""
    taken, kept = (tokens.curve("soft tokens", name).loc[count] for name in (block, "accuracy"))
    axes.plot(taken, kept, "o", color=ORANGE, alpha=0.7)
    axes.set(xlabel=f"attention on them in {block} (%)", ylabel="accuracy (%)", xlim=(0, 100), ylim=(0, 105))
    return f"{count} soft tokens take {taken.mean():.0f} % of attention; {kept.min():.0f} to {kept.max():.0f} % is answered."


explore("soft tokens before the question", (1, 4, 8, 16, 48), frame, block=BLOCKS[::-1])

# %% [markdown]
# ## Try it on yours
#
# Take your source's states at the positions that matter, from each layer, and a label for each position that the connector
# should pass on. The probe says whether the layer holds it, the share how loud it is there. A low share beside a good probe
# is a reason to try another layer, or whitened states, before anything else. `bridge_quality(...).attention_mass` says
# before the first step what the tokens take.

# %%
read, label, _ = at_numbers(bench.home(0))  # yours: (layers, positions, width), and what is to be passed on
table(
    "layer | a probe finds (R²) | share of variance",
    ((at, linear_probe(x, one_hot(label)).r2, variance_share(x, label)) for at, x in enumerate(read[: LAST + 1])),
)

# %% [markdown]
# ## Provenance

# %% tags=["remove-input"]
restored = {f"over {n}": mean_interval(list(curves[QUIETER].loc[MORE] - curves[AS_IS].loc[n])) for n in (MORE, FEWER)}
run.measure(
    **{f"accuracy: {arm}": study.mean(arm, "report") for arm in ended},
    **{f"shuffled source: {arm}": study.mean(arm, "shuffled source") for arm in ended},
    **{f"effect: {arm}": change for arm, change in changes.items()},
    **{f"last layer, whitened, over {AT_END}": study.gain(WHITE, AT_END, "report")},
    **{f"foretold whole, {MORE} weighing as {FEWER}, {name}": gain for name, gain in restored.items()},
)
run.close()
