# %% [markdown]
# # Judging a translator
#
# The logs judge a translator twice: early, by stages of BLEU at which to go on or to stop, and at the end, by bands of
# BLEU and of distinct outputs. For the decoder that will not listen one of them has a remedy, a loss on its attention.
# That loss is a constant and has no gradient. The early rule never lets a collapsed run pass, but it stops runs that
# would have worked, and no other line for BLEU would do. At the same look the number of different outputs tells them all
# apart, and the conditioning gap nearly all. The chapter closes with the report that a validation script should give.

# %% tags=["parameters"]
profile = "quick"  # quick | full
seeds = 0  # at least 2; 0 takes the profile's number
device = "auto"  # auto | cpu | cuda | mps
out = ""  # where the record goes, a .json file
outputs = ""  # your model's: a text file, one sentence a line
references = ""  # what they should say, a file with as many lines

# %% tags=["hide-input"]
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from bridges.benches import translation
from bridges.benches.study import Outcome
from bridges.benches.supervision import LOG_WEIGHT, Attending, attention_entropy, conditioning_loss, log_mean_attention
from bridges.benches.translation import Recipe
from bridges.connectors.resampler import ResamplerSettings
from bridges.instruments.conditioning import derangement
from bridges.instruments.translation import bleu_interval, constant_floor, score, validate
from bridges.instruments.uncertainty import Estimate, mean_interval
from bridges.training.fit import FitSettings
from press.book import (
    BLUE, GREY, HOSTS, ORANGE, Markdown, begin, claims, explore, figure, lines, plt, recorded, refusing, show_source, table,
)  # fmt: skip
from torch.nn.functional import normalize
from transformers.models.bart.modeling_bart import BartAttention

# Pairs: quick, full profile.
run = begin("judging", globals(), seeds=(2, 8),  # quick, full
    host=("quick", "full"),  # the size of the pretrained hosts
    steps=(48, 240), batch=(16, 64), warmup=(4, 16), held_out=(100, 300),  # sentences that nothing is trained on
    shape=(ResamplerSettings(64, 16, 2, 4), ResamplerSettings(256, 64, 2, 8)),
    collapsed=((2.5e-5, 5e-5, 1e-4), (1.25e-5, 2.5e-5, 5e-5)),  # rates of either recipe
    working=((1e-4, 1e-3, 1e-2), (1e-4, 3e-4, 1e-3)))  # fmt: skip
with refusing():
    texts = [Path(path).read_text(encoding="utf-8-sig").splitlines() for path in (outputs, references) if path]
    if texts and (len(texts) < 2 or len(texts[0]) != len(texts[1]) or len(texts[1]) < 2):
        raise ValueError("give outputs and references, line by line as many, at least two")

# %% [markdown]
# ## Symptom
#
# What two of the logs expect of a run that goes well, by epochs of thirty. None of it was measured. What was seen before
# lies far below, and the log's collapsed resampler ended a little below the line for stopping.

# %% tags=["remove-input"]
expected = recorded("staged_bleu")
stages = {(log, epoch): f"{low:g} to {high:g}" for log, epoch, low, high, _ in expected["rows"]}
table(
    "epoch | BLEU (%), the encoder log | the resampler log",
    ((n, stages[log, n], stages.get(("perceiver-resampler", n))) for log, n in stages if log == "t5-encoder-fix"),
    "; ".join(f"{name}: {value:g}" for name, value in expected["lines"].items()) + ".",
)

# %% [markdown]
# ## Claim

# %% tags=["remove-input"]
claims("A14", "A15")

# %% [markdown]
# ## Mechanism
#
# ### A loss on attention
#
# The log's remedy takes the mean of the decoder's cross-attention over everything and asks for more of it:

# %% tags=["remove-input"]
show_source(log_mean_attention, start="return -")

# %% [markdown]
# There is no more of it to be had. Let $a_{qk}$ be the weight of query $q$ on key $k$, for $Q$ queries (over sentences,
# heads, layers and positions) and $K$ keys. Each row comes from a softmax and sums to 1, so
#
# $$
# \frac1{QK} \sum_q \sum_k a_{qk} = \frac1{QK} \sum_q 1 = \frac1K
# $$ (eq-judging-mean)
#
# whatever the weights are. The loss is the constant $\ln K$ and its gradient is zero. A decoder cannot attend to its
# encoder more or less; it always does so fully, and what counts is whether what it finds there differs from input to
# input.
#
# In training there is an exception. T5 and BART return their weights as dropout left them: some are zero, the others
# scaled up, and a row no longer sums to 1. Then the loss has a gradient, which follows the mask of the moment.
#
# Two supervisions that do have a gradient stand beside it below. One asks for attention that is not flat: the mean
# entropy of its rows. The other asks for what is wanted. The loss with another sentence's vector shall exceed that with
# the right one by a margin, which is the conditioning gap itself as a loss:

# %% tags=["remove-input"]
show_source(conditioning_loss, start="return")

# %% [markdown]
# ### A line for BLEU at an early look
#
# The log's lines belong to its corpus. What a constant sentence earns differs from corpus to corpus, so the criterion
# takes them in units of it: the log's 2 and 5 against the 1.73 at which its collapsed model ended.

# %%
STOP, FAIL = 1.16, 2.9  # times the floor, from the criterion
EARLY = max(round(run.steps / 15), run.warmup)  # the same
bench = translation.bench(
    HOSTS, run.device, hosts=("t5", "bart"), size=run.host, held_out=run.held_out, longest=18, width=1024
)
stop_line, fail_line = STOP * bench.floors.constant, FAIL * bench.floors.constant
Markdown(
    f"Floors of BLEU: {bench.floors}. After {EARLY} of {run.steps} steps the rule says stop below BLEU {stop_line:.1f}; below"
    f" {fail_line:.1f} a finished run has failed."
)

# %% [markdown]
# ## Experiment
#
# ### Runs whose end is known
#
# Both recipes are those of [the chapter on collapse](collapse.ipynb), in the quick profile at the log's batch of 16. The
# collapsed one reads raw unit vectors, without LayerNorm on keys and values, beside latents of unit scale; in the working
# one the vectors are standardised and nothing else differs. Each is run at three rates, the log's $5 \times 10^{-5}$
# among those of the collapsed recipe, $10^{-3}$ among those of the working one. The criterion stood before the rates, and
# these were settled by how runs with other seeds ended, not by their early looks: a rate belongs to a recipe if all of
# them ended on that recipe's side of the failure line.

# %%
LOG_RATE, STANDARD = 5e-5, 1e-3
suspect = replace(run.shape, input_norm=False, latent_std=1.0)


def at_rate(kind: str, rate: float, **changes) -> Recipe:
    """The collapsed or the working recipe at a rate, with changes."""
    fit = FitSettings(run.steps, rate, run.batch, run.warmup)
    return replace(Recipe(fit, suspect, logged_scale=kind == "collapsed"), **changes)


RUNS = {f"{kind}, rate {r:g}": at_rate(kind, r) for kind in ("collapsed", "working") for r in getattr(run, kind)}
COLLAPSED, WORKING = f"collapsed, rate {LOG_RATE:g}", f"working, rate {STANDARD:g}"
study = run.study("runs", bench.train, RUNS, looks=(EARLY, 2 * EARLY))


def runs(view) -> pd.DataFrame:
    """One number of every run, by seed (rows) and recipe (columns): the collapsed ones first."""
    return pd.DataFrame({arm: study.values(arm, view) for arm in RUNS})


def share(one) -> float:
    """BLEU at the early look over BLEU at the end; 0 for a run that says nothing in the end."""
    return one["bleu"].loc[EARLY] / one["bleu"].iloc[-1] if one["bleu"].iloc[-1] else 0.0


def agrees(one) -> bool:
    """Whether the rule at the early look says what the end does."""
    return (one["bleu"].loc[EARLY] < stop_line) == (one["bleu"].iloc[-1] < fail_line)


# %% tags=["hide-input"] mystnb={"figure": {"caption": "Both recipes at their three rates: BLEU, with the floor (dotted), the line at the early look and the failure line at the end (dashed), and the conditioning gap at the same looks, on a scale that is linear around zero. Means over seeds with their 95 % interval, single seeds thin. The early look is marked.", "name": "fig-judging-runs"}, "image": {"alt": "Two panels against training steps, the collapsed recipe in orange, the working one in blue. BLEU: at the early look some blue curves lie among the orange ones, the others above; at the end blue and orange lie far apart, on either side of the failure line but for a few thin blue curves below it. Conditioning gap: the blue means lie above the orange ones at every look; at the first a few thin blue curves start among the orange ones or below them."}}
panels, looks = figure(columns=2, height=3.5, sharey=False), (EARLY, 2 * EARLY, run.steps)
colour = {arm: ORANGE if arm.startswith("collapsed") else BLUE for arm in RUNS}
for axes, reading, said in zip(panels, ("bleu", "gap"), ("BLEU", "conditioning gap (nats per token)"), strict=True):
    curves = {arm: study.curve(arm, reading) for arm in RUNS}
    lines(axes, curves, colour=colour, xscale="log", xlabel="training steps", ylabel=said)
    axes.axvline(EARLY, color=GREY, lw=0.8)
    axes.set_xticks(looks, looks)
    axes.minorticks_off()
for line, style in ((bench.floors.constant, ":"), (stop_line, "--"), (fail_line, "--")):
    panels[0].axhline(line, color="black", lw=0.8, ls=style)
panels[1].set_yscale("symlog", linthresh=0.01)
panels[0].figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
plt.show()

# %% tags=["hide-input"]
table(
    "recipe | BLEU, end | BLEU, early ÷ end | share of seeds in which rule and end agree",
    ((arm, study.mean(arm, "bleu"), study.mean(arm, share), found.mean()) for arm, found in runs(agrees).items()),
    f"Mean [95 % interval] over {len(study.seeds(*RUNS))} seeds, each with a host of its own.",
)

# %% [markdown]
# Where the rule errs, it stops runs that would have worked, at every working rate. At the lowest they are on their way
# and have not come far: it stops nearly all of them, and rightly only the few that end below the failure line. At the
# highest the first steps have upset the host, which recovers. How well the rule does on the whole therefore hangs on
# which rates one takes. The relation of early to final BLEU that the log expects holds at the middle rate, for which it
# is judged, and at the highest; at the lowest it is at the edge of what the log gives.
#
# ### Has the log's supervision a gradient?
#
# Gradient norms over all parameters of connector and host, of the log's term with its weight and of the translation loss,
# on the same batches, before training, in T5 and BART. Then the same with dropout: BART's configuration has none on
# attention unless one sets it, and here it has T5's. And where there is a gradient, has it a direction? The cosine
# between gradients of one loss on one batch under different dropout masks tells.

# %%
BATCHES, MASKS = 2, 6
PARTS = {"the translation loss": 0, "the log's term": 1}
CASES = {
    f"{host}{said}": (at_rate("collapsed", LOG_RATE, host=host), dropout)
    for (said, dropout), host in product({"": 0.0, ", dropout on attention": 0.1}.items(), bench.hosts)
}


def gradient(model, rows: torch.Tensor, part: int, mask: int = 0) -> torch.Tensor:
    """The gradient of the translation loss, or of the log's term, under one dropout mask."""
    torch.manual_seed(mask)
    vectors = bench.known.vectors[rows].to(model.host.dtype)
    loss, attentions = Attending(model)(vectors, bench.known.labels[rows])
    value = (loss, LOG_WEIGHT * log_mean_attention(attentions))[part]
    found = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
    return torch.cat([g.flatten() for g in found if g is not None])


def supervising(arms, seeds):
    """Both gradients in translators before their first step: the ratio of norms, and how masks agree on directions."""
    found = {}
    for (arm, (recipe, dropout)), seed in product(arms.items(), seeds):
        model = bench.untrained(recipe, seed).train(dropout > 0)
        for part in model.modules():
            if isinstance(part, BartAttention):
                part.dropout = dropout
        batches = torch.arange(BATCHES * recipe.fit.batch).split(recipe.fit.batch)
        ratios = [gradient(model, rows, 1).norm() / gradient(model, rows, 0).norm() for rows in batches]
        seen = {"ratio": float(max(ratios))}
        for name, part in PARTS.items() if dropout else ():
            flat = normalize(torch.stack([gradient(model, batches[0], part, mask) for mask in range(MASKS)]))
            seen[name] = float(((flat @ flat.T).sum() - MASKS) / (MASKS * (MASKS - 1)))
        found[arm, seed] = Outcome({0: seen})
    return found


gradients = run.study("gradients", supervising, CASES)

# %% tags=["hide-input"]
table(
    "before training | largest ratio of gradient norms | cosine between masks, translation loss | the log's term",
    (
        (
            arm,
            f"{gradients.values(arm, 'ratio').max():.1e}",
            *(gradients.mean(arm, part) if dropout else None for part in PARTS),
        )
        for arm, (_, dropout) in CASES.items()
    ),
    f"{len(gradients.seeds(*CASES))} seeds of {BATCHES} batches, {MASKS} masks.",
)

# %% [markdown]
# With dropout off the term's gradient is rounding. With dropout it is small beside that of the loss, and points another
# way for every mask.
#
# ### Does supervision rescue anything?
#
# The collapsed recipe at the log's rate and the working one at its standard rate, each as above, with the log's term,
# with the entropy of the attention in its place, and with the conditioning gap as a loss; the next sample of the batch
# lends the wrong vector. All without dropout.


# %%
def attended(term, translator, vectors, labels) -> torch.Tensor:
    """The translation loss and a weighted term of the cross-attention."""
    loss, attentions = Attending(translator)(vectors, labels)
    return loss + LOG_WEIGHT * term(attentions)


def wider_gap(translator, vectors, labels) -> torch.Tensor:
    """The translation loss and what the conditioning gap lacks of one nat."""
    right, shuffled = translator(vectors, labels), translator(vectors.roll(1, 0), labels)
    return right + conditioning_loss(right, shuffled)


LOSSES = {
    "as written": partial(attended, log_mean_attention),
    "entropy": partial(attended, attention_entropy),
    "conditioning gap": wider_gap,
}
SUPERVISED = {
    f"{kind}, {name}": at_rate(kind, rate, loss=loss)
    for (kind, rate), (name, loss) in product((("collapsed", LOG_RATE), ("working", STANDARD)), LOSSES.items())
}
study |= run.study("supervised", bench.train, SUPERVISED, seeds=())

# %% tags=["hide-input"]
table(
    "recipe, supervision | BLEU | gain in BLEU | gain in the gap (nats per token)",
    (
        (arm, study.mean(arm, "bleu"), study.gain(arm, plain, "bleu"), study.gain(arm, plain, "gap"))
        for arm, plain in zip(SUPERVISED, [COLLAPSED] * 3 + [WORKING] * 3, strict=True)
        if arm in study  # of record alone, which a run on files of your own leaves aside
    ),
    "Gains over the same recipe without supervision, paired within seeds: mean [95 % interval].",
)

# %% [markdown]
# (verdict-a14)=
# (verdict-a15)=
# ## Verdict

# %% tags=["hide-input"]
run.judge(
    "A14",
    lambda: {"supervision_gradient_ratio": max(gradients.values(host, "ratio").max() for host in bench.hosts)},
    n=len(bench.hosts) * BATCHES * len(gradients.seeds(*CASES)),
)

# %% tags=["hide-input"]
run.judge(
    "A15",
    lambda: {
        "stop_rule_agreement": mean_interval(list(runs(agrees).mean(axis=1))),
        "early_share": study.mean(WORKING, share),
    },
)

# %% tags=["nbval-check-output", "keep_output", "remove-input"]
print(run.verdict_lines())

# %% [markdown]
# ## What holds instead
#
# ### An earlier sign
#
# At the same look the runs differ in more than BLEU. A rule needs a line, and a line can be badly set; whether a reading
# could tell at all is seen without one. Take a working and a collapsed run of one seed: how often does the reading stand
# higher in the one that works (or the loss lower)? Half of the time it says nothing.


# %% tags=["hide-input"]
def ranked(reading: str, step: int) -> Estimate:
    """How often a reading tells a working run from a collapsed one, over all pairs of a seed."""
    seen = runs(lambda one: one[reading].loc[step]).to_numpy() * (-1 if reading == "loss" else 1)
    failing, works = seen[:, : len(RUNS) // 2, None], seen[:, None, len(RUNS) // 2 :]
    return mean_interval(list((works > failing).mean((1, 2))))


SIGNS = {"bleu": "BLEU", "distinct": "distinct outputs", "loss": "held-out loss", "gap": "conditioning gap"}
table(
    f"reading | pairs told apart after {EARLY} steps | after {2 * EARLY}",
    ((name, ranked(reading, EARLY), ranked(reading, 2 * EARLY)) for reading, name in SIGNS.items()),
)

# %% [markdown]
# A collapse is the absence of one thing, and the gap measures that thing. It shows in the first steps, in most of the
# slow runs too. It promises no more than that: a run that listens may still be too slow to end well, or be given vectors
# with little in them. Distinct outputs do even better, and leave out no pair. But they rise for noise too, as [the
# chapter on collapse](collapse.ipynb) has it: an input that can be heard changes what is said, whether or not there is
# anything in it. The held-out loss, which every script prints, tells least of the four: a slow run that listens and a
# faster one that learns which words are common lower it alike. Patience mends BLEU as a sign, since at twice the stage it
# tells nearly all pairs apart; it does not mend the log's line, which still stops most of the slowest.
#
# ### The cause, not the symptom
#
# No supervision ends the collapse. The log's term changes nothing, as its gradient promised. The one that asks for the
# gap in so many words has a gradient, but through a whisper it is a whisper too: what it gains is clear over the seeds of
# record and far too little, and BLEU stays below the best constant sentence. Where the decoder does listen, to ask for a
# wider gap brings a wider gap and translations that are a little worse. To ask there for attention that is not flat makes
# the gap slightly narrower and moves BLEU by less than a point, if at all.
#
# What ends the collapse is to make the input audible: the working recipe is the collapsed one with its vectors
# standardised, at a rate that lets it learn.
#
# ### The report
#
# What a validation script should say is one call. It takes two functions of the inputs, what the model says and its loss;
# `report.write(folder)` leaves the two files of the log's script. This is the collapsed recipe at the log's rate:

# %%
collapsed, unseen = study.model(COLLAPSED, 0), bench.unseen
report = validate(
    lambda x: bench.tokenizer.batch_decode(collapsed.generate(x, bench.longest), skip_special_tokens=True),
    lambda x: collapsed(x, unseen.labels),
    unseen.vectors,
    bench.references,
    bench.floors,
)
report

# %% [markdown]
# The report of [a mended translator](collapse.ipynb) differs from it in every line that matters, and hardly in the
# lengths: a collapsed model has learnt how long a sentence is. The report names the log's band for a BLEU because the log
# does. A band belongs to the corpus it was drawn up for: on this one it calls a model moderate that earns less than the
# best constant sentence.
#
# ## Tweak it
#
# Each mark is a run, an orange square of the collapsed recipe or a blue circle of the working one: its BLEU at a look
# against its BLEU at the end. Right of the upright line the rule lets it go on, above the level line it has worked. Move
# the slider to set the rule's line at another multiple of the floor, and see whether any line would do. In a live kernel,
# look later.


# %% tags=["hide-input"]
def frame(axes, line: float, step: int) -> str:
    """BLEU of all runs at a look against the end, with the rule's line at a multiple of the floor."""
    before, end, stop = runs(lambda one: one["bleu"].loc[step]), runs("bleu"), line * bench.floors.constant
    right = int(((before < stop) == (end < fail_line)).to_numpy().sum())
    for arm, mark in zip(RUNS, "sssooo", strict=True):
        axes.plot(before[arm], end[arm], mark, color=colour[arm], alpha=0.6)
    axes.axvline(stop, color="black", lw=0.8, ls="--")
    axes.axhline(fail_line, color="black", lw=0.8, ls="--")
    said = f"a stop below {line:g} times the floor agrees with {right} of {end.size} outcomes"
    axes.set(xlabel=f"BLEU after {step} of {run.steps} steps", ylabel="BLEU at the end", title=said)
    return f"Scatter of BLEU after {step} of {run.steps} steps against BLEU at the end: {said}."


explore("line, times the floor", (0.5, 0.8, STOP, 1.5, FAIL), frame, height=3.4, step=(EARLY, 2 * EARLY))

# %% [markdown]
# ## Try it on yours
#
# With `-p outputs` and `-p references` the chapter judges two text files of yours, one sentence a line: what a model
# said, and what it should have said; else those of the collapsed run. Two floors come from the references alone: the best
# of thirty of them said to every other one, and each input answered with another one's reference.

# %%
said, should = texts or (report.outputs, report.references)
scores, another = score(said, should), [should[i] for i in derangement(len(should)).tolist()]
table(
    "what is said | BLEU",
    (
        ("the outputs", Estimate(scores.bleu, *bleu_interval(said, should, resamples=200), len(said))),
        ("the best constant", constant_floor(should[:60:2], should[1::2])),
        ("another's reference", score(another, should).bleu),
    ),
    f"{len(said)} sentences, {100 * scores.distinct:.0f} % of the outputs distinct, {100 * scores.most_common_share:.0f} %"
    f" *{scores.most_common}*. `{scores.signature}`",
)

# %% [markdown]
# ## Provenance

# %% tags=["remove-input"]
run.measure(**{f"pairs_told_apart_by_{reading}": ranked(reading, EARLY) for reading in SIGNS})
run.given |= {name: Path(path).name for name, path in (("outputs", outputs), ("references", references)) if path}
run.close()
