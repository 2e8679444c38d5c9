# %% [markdown]
# # Judging a translator
#
# The logs judge a translator twice: early, by stages of BLEU at which to go on or to stop, and at the end, by bands of
# BLEU and of distinct outputs. For the decoder that will not listen one of them has a remedy, a loss on its attention.
# That loss is a constant and has no gradient. The early rule never lets a collapsed run pass, but it stops runs that would
# have worked. At the same look, before there is BLEU to speak of, the conditioning gap and the number of different outputs
# tell the two apart. The chapter closes with the report that a validation script should give.

# %% tags=["parameters"]
profile = "quick"  # quick | full
seeds = 0  # at least 2; 0 takes the profile's number
device = "auto"  # auto | cpu | cuda | mps
out = ""  # where the record goes, a .json file
outputs = ""  # your model's: a text file, one sentence a line
references = ""  # what they should say, a file with as many lines

# %% tags=["hide-input"]
import math
from dataclasses import asdict, replace
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
from bridges.instruments.translation import BLEU_BANDS, DISTINCT_BANDS, bleu_interval, constant_floor, score, validate
from bridges.instruments.uncertainty import Estimate, mean_interval
from bridges.training.fit import FitSettings
from press.book import HOSTS, Markdown, begin, claims, dots, explore, figure, lines, plt, recorded, show_source, table
from press.figures import BLUE, GREY, ORANGE
from press.provenance import refusing
from torch.nn.functional import normalize
from transformers.models.bart.modeling_bart import BartAttention

run = begin(
    "judging",
    globals(),
    #      quick, full
    seeds=(2, 8),
    host=("quick", "full"),  # the size of the pretrained hosts
    steps=(48, 240),
    batch=(16, 64),
    warmup=(4, 16),
    held_out=(100, 300),  # sentences that nothing is trained on
    shape=(ResamplerSettings(64, 16, 2, 4), ResamplerSettings(256, 64, 2, 8)),
    collapsed=((2.5e-5, 5e-5, 1e-4), (1.25e-5, 2.5e-5, 5e-5)),  # rates of either recipe
    working=((1e-4, 1e-3, 1e-2), (1e-4, 3e-4, 1e-3)),
)
with refusing():
    mine = [tuple(Path(p).read_text(encoding="utf-8-sig").splitlines()) for p in (outputs, references) if p]
    if mine and (len(mine) < 2 or len(mine[0]) != len(mine[1]) or len(mine[1]) < 2 or not all(mine[1])):
        raise ValueError("give outputs and references, line by line as many, at least two and no empty reference")

# %% [markdown]
# ## Symptom
#
# What two of the logs expect of a run that goes well, by epochs of thirty. None of it was measured. Below the lower of the
# dashed lines, at the first stage, a run is to be stopped; below the upper one, at the end, it has failed.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The stages of BLEU that the encoder log and the resampler log expect, as ranges. The cross is what both give as seen before at the first of them. Dashed: the line below which to stop there, and the one below which a finished run has failed. Dotted: where the log's collapsed resampler ended.", "name": "fig-judging-expected"}, "image": {"alt": "Vertical bars of expected BLEU at five or six epochs for two logs. They rise from the first stage to the last, flattening on the way, and both logs' bars overlap. A cross lies near zero at the first stage. Two dashed lines and a dotted one lie below most bars; the dotted one just below the lower dashed line."}}
expected, axes = recorded("staged_bleu"), figure()
logs = {"t5-encoder-fix": ("the encoder log", BLUE, -0.25), "perceiver-resampler": ("the resampler log", ORANGE, 0.25)}
for log, (name, colour, shift) in logs.items():
    _, epochs, low, high, _ = zip(*(row for row in expected["rows"] if row[0] == log), strict=True)
    axes.vlines([epoch + shift for epoch in epochs], low, high, color=colour, lw=6, alpha=0.8, label=name)
drawn = expected["lines"]
axes.plot(drawn["epoch of the early look"], drawn["seen before at that epoch (%)"], "xk", label="seen before")
for key in ("stop below (%)", "failed below (%)"):
    axes.axhline(drawn[key], color="black", lw=0.8, ls="--")
    axes.text(32.3, drawn[key], key.removesuffix(" below (%)"), va="center")
ended = next(row[3] for row in recorded("t5_architectures")["rows"] if row[0] == "perceiver")
axes.axhline(ended, color="black", lw=0.8, ls=":")
axes.set(xlabel="epoch", ylabel="BLEU", xlim=(0, 32), ylim=(0, 16))
axes.legend(loc="upper left")
plt.show()

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
# encoder more or less; it always does so fully, and what counts is whether what it finds there differs from input to input.
#
# In training there is an exception. T5 and BART return their weights as dropout left them: some are zero, the others scaled
# up, and a row no longer sums to 1. Then the loss has a gradient, which follows the mask of the moment.
#
# Two supervisions that do have a gradient stand beside it below. One asks for attention that is not flat: the mean entropy
# of its rows. The other asks for what is wanted. The loss with another sentence's vector shall exceed that with the right
# one by a margin, which is the conditioning gap itself as a loss:

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
    f"{len(bench.known.texts):,} sentences to train on, {run.held_out} held out. Floors of BLEU: {bench.floors}. The early"
    f" look comes after {EARLY} of {run.steps} steps; below BLEU {stop_line:.1f} the rule says stop, and below"
    f" {fail_line:.1f} a finished run has failed."
)

# %% [markdown]
# ## Experiment
#
# ### Runs whose end is known
#
# Both recipes are those of [the chapter on collapse](collapse.ipynb), at the log's batch of 16 in the quick profile. The
# collapsed one reads raw unit vectors, without LayerNorm on keys and values, beside latents of unit scale; in the working
# one the vectors are standardised and nothing else differs. Each is run at three rates, the log's $5 \times 10^{-5}$ among
# those of the collapsed recipe, $10^{-3}$ among those of the working one. The criterion stood before the rates, and these
# were settled by how runs with other seeds ended, not by their early looks: a rate belongs to a recipe if all of them
# ended on that recipe's side of the failure line.

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


# %% tags=["hide-input"] mystnb={"figure": {"caption": "Both recipes at their three rates: BLEU, with the floor (dotted), the line at the early look and the failure line at the end (dashed), and the conditioning gap at the same looks, on a scale that is linear around zero. Means over seeds with their 95 % interval, single seeds thin. The early look is marked.", "name": "fig-judging-runs"}, "image": {"alt": "Two panels against training steps, the collapsed recipe in orange, the working one in blue. BLEU: at the early look some blue curves lie among the orange ones, the others above; at the end blue and orange lie far apart, on either side of the failure line. Conditioning gap: the blue means lie above the orange ones at every look; at the first some single blue runs lie among the orange ones."}}
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
    "recipe | BLEU, early look | BLEU, end | early ÷ end | share of seeds in which rule and end agree",
    (
        (arm, *(study.mean(arm, view) for view in (lambda one: one["bleu"].loc[EARLY], "bleu", share)), found.mean())
        for arm, found in runs(agrees).items()
    ),
    f"Mean [95 % interval] over {len(study.seeds(*RUNS))} seeds, each with a host of its own.",
)

# %% [markdown]
# Where the rule errs, it stops runs that would have worked. At the lowest of the working rates they are on their way and
# have not come far; at the highest the first steps have upset the host, which recovers. How well the rule does on the whole
# therefore hangs on which rates one takes. The relation of early to final BLEU that the log expects holds at the middle
# rate, for which it is judged, and is not the same at the lowest.
#
# ### Has the log's supervision a gradient?
#
# Gradient norms over all parameters of connector and host, of the log's term with its weight and of the translation
# loss, on the same batches, before training, in T5 and BART. Then the same with dropout: BART's configuration has none on
# attention unless one sets it, and here it has T5's. And where there is a gradient, has it a direction? The cosine between
# gradients of one loss on one batch under different dropout masks tells.

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

# %% [markdown]
# ### Does supervision rescue anything?
#
# The collapsed recipe at the log's rate and the working one at its standard rate, each as above, with the log's term, with
# the entropy of the attention in its place, and with the conditioning gap as a loss; the next sample of the batch lends
# the wrong vector. All without dropout.


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
    "before training | largest ratio of gradient norms | cosine between masks, translation loss | the log's term",
    (
        (
            arm,
            f"{gradients.values(arm, 'ratio').max():.1e}",
            *(gradients.mean(arm, part) if dropout else None for part in PARTS),
        )
        for arm, (_, dropout) in CASES.items()
    ),
    f"{len(gradients.seeds(*CASES))} seeds of {BATCHES} batches, {MASKS} masks. The term is ln {run.shape.latents} ="
    f" {math.log(run.shape.latents):.3f} without dropout.",
)

# %% [markdown]
# With dropout off the term's gradient is rounding. With dropout it is small beside that of the loss, and points another
# way for every mask.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "What each supervision ends with, on the collapsed recipe at the log's rate (orange) and on the working one (blue): BLEU, distinct outputs and conditioning gap, mean and 95 % interval over seeds. Dotted: the constant floor of BLEU, and the log's line for mode collapse.", "name": "fig-judging-supervised"}, "image": {"alt": "Three panels with a row for each supervision of each recipe. In every panel the rows of the collapsed recipe lie together at the left, whatever the supervision: BLEU near the floor, distinct outputs and gap near zero. Those of the working recipe lie together at the right in BLEU and distinct outputs; in the gap one of them, with the gap as a loss, lies further right than the others."}}
ROWS = sorted(arm for arm in (COLLAPSED, WORKING, *SUPERVISED) if arm in study)
HALF = 100 * DISTINCT_BANDS[1][0]
VIEWS = {"bleu": ("BLEU", bench.floors.constant), "distinct": ("distinct outputs (%)", HALF), "gap": ("gap (nats)", 0)}
shade = {arm: ORANGE if arm.startswith("collapsed") else BLUE for arm in ROWS}
for axes, (reading, (said, line)) in zip(figure(columns=3, height=3.2), VIEWS.items(), strict=True):
    dots(axes, {arm: study.mean(arm, reading) for arm in ROWS}, colour=shade, at=(line,), xlabel=said)
plt.show()

# %% tags=["hide-input"]
table(
    "recipe, supervision | gain in BLEU | gain in the gap (nats per token)",
    (
        (arm, *(study.gain(arm, COLLAPSED if arm.startswith("collapsed") else WORKING, r) for r in ("bleu", "gap")))
        for arm in SUPERVISED
        if arm in study
    ),
    "Over the same recipe without supervision, paired within seeds: mean [95 % interval].",
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
end = runs("bleu")
wrong = ", ".join(arm for arm in RUNS if ((end[arm] < fail_line).mean() > 0.5) != arm.startswith("collapsed"))


def observed() -> dict[str, Estimate]:
    """Both parts of the claim: the rule's agreement with the outcomes, and how far BLEU has come at the early look."""
    agreement = mean_interval(list(runs(agrees).mean(axis=1)))
    return {"stop_rule_agreement": agreement, "early_share": study.mean(WORKING, share)}


run.judge("A15", None if wrong else observed, untestable=wrong and f"recipes that did not end as called: {wrong}")

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
    ((name, *(ranked(reading, step) for step in (EARLY, 2 * EARLY))) for reading, name in SIGNS.items()),
    f"Share of pairs, mean [95 % interval] over {len(end)} seeds.",
)

# %% [markdown]
# A collapse is the absence of one thing, and the gap measures that thing. It shows in the first steps, in nearly all of the
# slow runs too. It promises no more than that: a run that listens may still be too slow to end well, or be given vectors
# with little in them. Distinct outputs tell the two recipes apart as well as the gap does. But they rise for noise too, as
# [the chapter on collapse](collapse.ipynb) has it: an input that can be heard changes what is said, whether or not there is
# anything in it. Patience mends the log's own rule: at twice the stage, BLEU tells nearly all pairs apart.
#
# ### The cause, not the symptom
#
# No supervision ends the collapse. The log's term changes nothing, as its gradient promised. The one that asks for the gap
# in so many words has a gradient, but through a whisper it is a whisper too, and BLEU stays below the best constant
# sentence. And where the decoder does listen, to ask for a wider gap brings a wider gap and translations that are no
# better. What ends the collapse is to make the input audible: the working recipe is the collapsed one with its vectors
# standardised, at a rate that lets it learn.
#
# ### The report
#
# What a validation script should say is one call. It takes two functions of the inputs, what the model says and its loss;
# `report.write(folder)` leaves the two files of the log's script. First the collapsed recipe at the log's rate, then the
# working one:


# %%
def report(arm: str):
    """The validation report of a run of seed 0."""
    model, labels = study.model(arm, 0), bench.unseen.labels
    say = partial(bench.tokenizer.batch_decode, skip_special_tokens=True)
    loss = partial(model, labels=labels)
    return validate(
        lambda x: say(model.generate(x, bench.longest)), loss, bench.unseen.vectors, bench.references, bench.floors
    )


reports = {"collapsed": report(COLLAPSED), "working": report(WORKING)}
reports["collapsed"]

# %%
reports["working"]

# %% [markdown]
# The two reports differ in every line that matters, and in one that hardly does, the lengths: a collapsed model has learnt
# how long a sentence is. The report names the log's band for a BLEU because the log does. A band belongs to the corpus it was
# drawn up for. What the bands call some ways of not translating at all on this one, computed:

# %% tags=["hide-input"]
said = asdict(bench.floors) | {"the collapsed model": reports["collapsed"].scores.bleu}
table(
    "what is said | BLEU | the log's band",
    ((name, bleu, next(word for least, word in BLEU_BANDS if bleu >= least)) for name, bleu in said.items()),
)

# %% [markdown]
# ## Tweak it
#
# Each dot is a run: its BLEU at a look against its BLEU at the end. Right of the upright line the rule lets it go on, above
# the level line it has worked. Move the slider to set the rule's line at another multiple of the floor, and see whether any
# line would do. In a live kernel, look later.


# %% tags=["hide-input"]
def frame(axes, line: float, step: int) -> str:
    """BLEU of all runs at a look against the end, with the rule's line at a multiple of the floor."""
    before, stop = runs(lambda one: one["bleu"].loc[step]), line * bench.floors.constant
    right = int(((before < stop) == (end < fail_line)).to_numpy().sum())
    for arm, mark in zip(RUNS, "sssooo", strict=True):
        said = arm.split(",")[0] if arm in (COLLAPSED, WORKING) else None
        axes.plot(before[arm], end[arm], mark, color=colour[arm], alpha=0.6, label=said)
    axes.axvline(stop, color="black", lw=0.8, ls="--")
    axes.axhline(fail_line, color="black", lw=0.8, ls="--")
    said = f"a stop below {line:g} times the floor agrees with {right} of {end.size} outcomes"
    axes.set(xlabel=f"BLEU after {step} of {run.steps} steps", ylabel="BLEU at the end", title=said)
    axes.legend(loc="lower right")
    return f"Scatter of BLEU after {step} of {run.steps} steps against BLEU at the end: {said}."


explore("line, times the floor", (0.25, 0.5, 0.75, 1, STOP, 1.5, 2, FAIL), frame, height=3.4, step=(EARLY, 2 * EARLY))

# %% [markdown]
# ## Try it on yours
#
# With `-p outputs` and `-p references` the chapter judges two text files of yours, one sentence a line: what a model said,
# and what it should have said. Two floors need no vectors, and come from your references: the best of thirty of them said
# to all the others, and each input answered with another one's reference. Where no file is given these are the working
# run's.

# %%
said, should = mine or (reports["working"].outputs, reports["working"].references)
scores, shuffled = score(said, should), [should[i] for i in derangement(len(should)).tolist()]
constant = max(constant_floor([c], [r for r in should if r != c] or [c]) for c in dict.fromkeys(should[:30]))
table(
    "BLEU | best constant | another's reference | distinct outputs (%) | most common output (%)",
    [
        (
            Estimate(scores.bleu, *bleu_interval(said, should), len(said)),
            constant,
            score(shuffled, should).bleu,
            100 * scores.distinct,
            100 * scores.most_common_share,
        )
    ],
    f"{len(said)} sentences, most commonly *{scores.most_common}*. `{scores.signature}`",
)

# %% [markdown]
# ## Provenance

# %% tags=["remove-input"]
run.measure(
    early_share=study.mean(WORKING, share),
    pairs_told_apart_by_gap=ranked("gap", EARLY),
    pairs_told_apart_by_bleu=ranked("bleu", EARLY),
)
run.given |= {name: Path(path).name for name, path in (("outputs", outputs), ("references", references)) if path}
run.close()
