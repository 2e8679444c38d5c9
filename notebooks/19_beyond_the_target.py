# %% [markdown]
# # Beyond the target
#
# At two of its looks the log's bridged target answers more questions than the target by itself, and the log takes the
# higher for proof that the bridge adds information. Three things can lift a number so: chance, when the best of many looks is
# quoted; soft tokens that tune the target whatever the source has read; and information. This chapter sets up one
# comparison for each, lets a fourth in by intention, a source that has read the solutions, and then examines the
# instrument that the log wrote for the other end of the curve, where generation degenerates.

# %% tags=["parameters"]
profile = "quick"  # quick | full
seeds = 0  # at least 4; 0 takes the profile's number
device = "auto"  # auto | cpu | cuda | mps
out = ""  # where the record goes, a .json file

# %% tags=["hide-input"]
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from statistics import fmean
from typing import Any

import matplotlib.pyplot as plt
import torch
from bridges.connectors.translator import Bridge, TranslatorSettings
from bridges.instruments.generation import degeneration
from bridges.instruments.leak import leak_check
from bridges.instruments.soft_prompt import BridgeQuality, bridge_quality
from bridges.instruments.uncertainty import (
    Estimate,
    best_of_looks,
    mcnemar,
    mean_interval,
    wilson,
)
from bridges.tasks.word_problems import prompt
from bridges.benches.answering import BridgeRecipe, Trained, untrained
from bridges.benches.small_pairs import HOST_SEEDS, bench, train_arms
from bridges.benches.exams import LONGEST, Answers, Bench, Exam, answer, examine
from bridges.training.fit import GATE_GROUP, FitSettings, Group
from IPython.display import Markdown
from matplotlib.figure import Figure
from press import HOSTS, ledger
from press.claims import load_claims
from press.data import recorded
from press.explorer import Explorer
from press.figures import COLOURS, draw_intervals, use_style
from press.provenance import begin
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar


@dataclass(frozen=True)
class Size:
    """What a profile means in this chapter."""

    seeds: int
    constant: int  # seeds, at most, of the bridges from one and the same states
    others: int  # seeds, at most, of the leak and of the broken bridges
    host: str  # the size of the pretrained hosts
    steps: int
    looks: int
    broken: int  # steps of the bridges with labels shifted twice
    batch: int
    lr: float
    translator: TranslatorSettings
    asked: int = 200  # questions of an exam, as in the log
    warmup: int = 20


SIZES = {
    "quick": Size(
        seeds=5,
        constant=3,
        others=2,
        host="quick",
        steps=160,
        looks=4,
        broken=32,
        batch=16,
        lr=2.5e-3,
        translator=TranslatorSettings(bottleneck=64, tokens=8, depth=2, heads=8),
    ),
    "full": Size(
        seeds=12,
        constant=6,
        others=4,
        host="full",
        steps=600,
        looks=12,
        broken=400,
        batch=64,
        lr=2e-3,
        translator=TranslatorSettings(bottleneck=128, tokens=8, depth=4, heads=8),
    ),
}
run = begin(
    "beyond_the_target",
    SIZES,
    profile=profile,
    seeds=seeds,
    device=device,
    out=out,
    least=4,
)
size = run.size
disable_progress_bar()
torch.set_num_threads(1)
use_style()

# %% [markdown]
# ## Symptom
#
# After its fixes the log trains four configurations and looks at each every 250 steps. Its accuracies move in steps of half
# a point, hence 200 questions a look, for the target alone as for the bridge:

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Every look of the log's sweep after its fixes, 200 questions each. The highest has its 95 % Wilson interval; the line and its band are the target alone and its interval.", "name": "fig-beyond-log"}, "image": {"alt": "Scatter of accuracy against training step for four configurations. Nearly all looks lie below the band of the target alone. Two looks of the high-capacity configuration reach above its line, at step 1000 and the next; the interval of the highest overlaps the upper part of the band. The same configuration falls far below it afterwards."}}
log = recorded("translation_sweep")
asked, alone = log["questions"], log["target alone (%)"] / 100
sweep = log["after the fixes"]
looks = [v / 100 for values in sweep.values() for v in values]
peak = max(looks)


def share_of(share: float) -> Estimate:
    """A share of the log's questions with its interval."""
    return wilson(round(share * asked), asked)


def points(e: Estimate) -> Estimate:
    """The same in points."""
    return Estimate(100 * e.mean, 100 * e.low, 100 * e.high, e.n)


itself, best = share_of(alone), share_of(peak)
figure, axes = plt.subplots(figsize=(7.2, 3.4))
axes.axhspan(
    100 * itself.low, 100 * itself.high, color=COLOURS["grey"], alpha=0.2, lw=0
)
axes.axhline(100 * alone, color="black", linewidth=0.8, linestyle=":")
shown = zip(("blue", "orange", "green", "purple"), "osD^", strict=True)
for (name, values), (colour, mark) in zip(sweep.items(), shown, strict=True):
    steps = [log["between looks (steps)"] * (i + 1) for i in range(len(values))]
    axes.plot(
        steps, values, mark, color=COLOURS[colour], label=name, alpha=0.8, ms=5
    )
    if max(values) == 100 * peak:
        at = steps[values.index(max(values))]
        draw_intervals(axes, [at], [points(best)], color=COLOURS[colour], capsize=4)
axes.set(xlabel="training step", ylabel="bridged accuracy (%)", ylim=(0, 100))
figure.legend(loc="outside lower center", ncols=4, fontsize=9)
plt.show()

# %% tags=["hide-input"]
near = [share for share in looks if share_of(share).high >= alone]
in_points, in_per_cent = recorded("bridge_analysis")["peak"][
    "points over the target, as the log counts them"
]
Markdown(
    f"The highest of {len(looks)} looks is {100 * peak:g} % [{100 * best.low:.1f}, {100 * best.high:.1f}], the target alone"
    f" {100 * alone:g} % [{100 * itself.low:.1f}, {100 * itself.high:.1f}]. The log counts the difference as {in_points} % in"
    f" one place and as {in_per_cent} % in another; in points it is {100 * (peak - alone):.1f}. Of all looks"
    f" {len(near)} have an interval that reaches the target's accuracy."
)

# %% [markdown]
# "This proves the translator CAN learn extremely good representations", says the log of it. For the other end of such
# runs it writes a function, `analyze_bridge_quality`, to see why generations degenerate; what the function found on any
# bridge it does not record.
#
# ## Claim

# %% tags=["remove-input"]
claims = load_claims()
claims["C8"]

# %% tags=["remove-input"]
claims["C6"]

# %% [markdown]
# ## Mechanism
#
# ### The best of many looks
#
# Let every look have the same true share $p$ of right answers. One look at $n$ questions has at least $r$ of them right
# with probability $P(X \ge r)$, $X$ binomial. The best of $k$ independent looks reaches $r$ with probability
#
# $$
# P_k(r) = 1 - \bigl(1 - P(X \ge r)\bigr)^k .
# $$ (eq-beyond-looks)

# %%
reached = round(peak * asked)
by_chance = best_of_looks(alone, asked, len(looks), reached)
longest = max(sweep, key=lambda name: max(sweep[name]))  # the run of the peak
COUNTS = {
    "one look": 1,
    f"looks that reach the target's accuracy, {len(near)}": len(near),
    f"looks of that run, {len(sweep[longest])}": len(sweep[longest]),
    f"all looks, {len(looks)}": len(looks),
}

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Probability that the best of so many independent looks at 200 questions reaches the log's peak, against the true share of every look. Vertical line and band: the target's own accuracy with its 95 % interval; dotted across: 0.05.", "name": "fig-beyond-chance"}, "image": {"alt": "Four rising curves, one for each number of looks. For all looks the curve climbs from nearly zero at a share of two thirds to nearly one below the upper end of the band, and is above the dotted line at the target's own accuracy. The fewer looks, the further to the right the curve lies."}}
grid = [0.65 + 0.0025 * i for i in range(57)]
figure, axes = plt.subplots(figsize=(7.2, 3.4))
axes.axvspan(
    100 * itself.low, 100 * itself.high, color=COLOURS["grey"], alpha=0.2, lw=0
)
axes.axvline(100 * alone, color="black", linewidth=0.8)
axes.axhline(0.05, color="black", linewidth=0.8, linestyle=":")
for name, k in COUNTS.items():
    axes.plot(
        [100 * s for s in grid],
        [best_of_looks(s, asked, k, reached) for s in grid],
        label=name,
    )
axes.set(xlabel="true share of right answers (%)", ylabel="probability of the peak")
figure.legend(loc="outside lower center", ncols=2, fontsize=9)
plt.show()

# %% tags=["hide-input"]
Markdown(
    f"| probability of {reached} of {asked} | "
    + " | ".join(
        f"true share {100 * s:.1f} %" for s in (itself.low, alone, itself.high)
    )
    + " |\n|---|--:|--:|--:|\n"
    + "\n".join(
        f"| {name} | "
        + " | ".join(
            f"{best_of_looks(s, asked, k, reached):.2g}"
            for s in (itself.low, alone, itself.high)
        )
        + " |"
        for name, k in COUNTS.items()
    )
)

# %% [markdown]
# The criterion reads the last row at the target's own accuracy. The looks are not independent: those of one run ask one
# model at successive steps, and all ask the same questions if the log kept its exam. Where looks rise and fall together
# the number is a *bound from above*, and a single look the bound from below. Nor were all looks at the target's level, as
# {numref}`fig-beyond-log` shows; counting only those that could have been, a choice made with the outcome in view, chance
# is a weaker explanation. And the target's own accuracy was counted on 200 questions too: the outer columns differ far
# more than the rows. So chance is neither excluded nor shown. Asking the same questions of both and pairing the answers,
# at a checkpoint chosen on other questions, needs no such choice of looks.
#
# ### What the log's function returns
#
# Its description promises four quantities: RMS (root mean square) of soft tokens and of embeddings, first-token entropy,
# the five likeliest tokens, and the attention mass on soft tokens, the share of the target's attention that they get. The
# function below does what the log's code does, in the order of its steps, and returns the same names.


# %%
@torch.no_grad()
def first_token(model: PreTrainedModel, embeds: Tensor, mask: Tensor) -> Tensor:
    """The distribution of the first token behind what is read."""
    found = model(inputs_embeds=embeds, attention_mask=mask)
    return found.logits[:, -1].softmax(-1)


def as_logged(
    soft: Tensor,
    model: PreTrainedModel,
    ids: Tensor,
    mask: Tensor,
    words: PreTrainedTokenizerBase,
) -> dict[str, Any]:
    """What `analyze_bridge_quality` returns."""
    table = model.get_input_embeddings()
    longer = torch.cat([mask.new_ones(soft.shape[:2]), mask], 1)
    shares = {
        "baseline": first_token(model, table(ids), mask),
        "bridged": first_token(model, torch.cat([soft, table(ids)], 1), longer),
    }
    size_of = {
        "soft": soft.square().mean(-1).sqrt(),
        "tgt_embed": table.weight.detach().square().mean(-1).sqrt(),
    }
    found: dict[str, Any] = {f"{k}_rms_mean": v.mean() for k, v in size_of.items()}
    found["soft_rms_max"] = size_of["soft"].max()
    for name, p in shares.items():
        found[f"entropy_{name}"] = torch.special.entr(p).sum(-1).mean()
        top = p[0].topk(5)  # the first sample's
        found[f"top5_{name}"] = list(
            zip(words.batch_decode(top.indices[:, None]), top.values, strict=True)
        )
    return found


# %% [markdown]
# ## Experiment
#
# ### A target with room above it
#
# The book's ordinary target answers nearly everything by itself. This one was trained on less and answers about as much
# as the log's. Its source, as before, solves nearly all. The question is *visible*: the target reads the soft tokens,
# then the question. Every bridge is looked at several times with the exam *select*, the best look's bridge is kept (the
# earliest where two are equal), and only this one answers the exam *report*, whose questions are others. The learning
# rate was chosen in scouting from 1e-3, 2.5e-3 and 5e-3, on two seeds that are not among these, but with the questions
# of *report* in view; it mattered little. And the chapter ran once on these seeds with 2,000 problems to train on,
# before it ran with 4,000; the verdicts were the same. The quick profile was then shortened, for time alone, from 200
# steps to 160 and from five looks to four, and for the broken bridges below from 48 steps to 32; the verdicts were the same
# again.
#
# Beside the bridge stand
#
# - an *untrained bridge*, its gates shut: soft tokens that hold nothing of the source, but stand before the question;
# - a *constant source*: a bridge trained, chosen and examined on the hidden states of one and the same problem. Whatever
#   is asked, it says the same. It can do what prompt tuning {cite}`lester2021prompt` does, which trains vectors in front
#   of a frozen model's input, and tell nothing;
# - a *leak*: a source that has read the worked solution behind the question, in training and in the exams; its bridge is
#   the one at the end of training.

# %%
settings = FitSettings(
    size.steps, size.lr, size.batch, size.warmup, groups=(GATE_GROUP,)
)
recipe = BridgeRecipe(settings, size.translator, visible=True)
benches = [
    bench(h, size.host, HOSTS, run.device, target="weak", asked=size.asked)
    for h in HOST_SEEDS
]
LOOKS = [size.steps * (i + 1) // size.looks for i in range(size.looks)]


def home(seed: int, of: Sequence[Bench] = benches) -> Bench:
    """The hosts of a seed."""
    return of[seed % len(of)]


def each_exam(own: Bench, change) -> Bench:
    """A bench whose source has read something else, in training and in both exams."""
    exams = {name: change(own, exam) for name, exam in own.exams.items()}
    return replace(own, taught=change(own, own.taught), exams=exams)


def one_for_all(own: Bench, exam: Exam) -> Exam:
    """The source's states of the first problem taught in the place of each one's own."""
    states, mask = own.taught.states[:, :1], own.taught.mask[:1]
    n = len(exam.problems)
    return replace(
        exam, states=states.expand(-1, n, -1, -1), mask=mask.expand(n, -1)
    )


def with_solutions(own: Bench, exam: Exam) -> Exam:
    """The source's states of question and solution."""
    return examine(exam.problems, own.pair, with_answers=True)


def trained_on(
    of: Sequence[Bench], seeds: int, name: str, looks: Sequence[int] = LOOKS
) -> list[Trained]:
    """One bridge a seed, looked at with the exam `select` and kept at every look."""
    selecting = [replace(b, exams={"select": b.exams["select"]}) for b in of]
    found = train_arms(
        {name: recipe},
        range(seeds),
        selecting,
        looks=looks,
        watch=lambda _, bridge: bridge,
        describe=name,
    )
    return [found[name, s] for s in range(seeds)]


constant = [each_exam(b, one_for_all) for b in benches]
leaky = [each_exam(b, with_solutions) for b in benches]
ARMS = {
    "bridged": trained_on(benches, run.seeds, "question"),
    "constant source": trained_on(
        constant, min(run.seeds, size.constant), "constant source"
    ),
    "leak": trained_on(
        leaky, min(run.seeds, size.others), "question and solution", LOOKS[-1:]
    ),
}


# %%
def chosen(one: Trained) -> tuple[int, Bridge]:
    """The step with the highest accuracy on `select`, and its bridge."""
    found = one.accuracies("select")
    step = max(found, key=found.__getitem__)
    return step, one.watched[step]


def says(bridge: Bridge, own: Bench) -> Answers:
    """What the target answers in the exam `report` behind the bridge's tokens."""
    exam, pair = own.exams["report"], own.pair
    with torch.no_grad():
        soft = bridge(exam.states, exam.mask)
    return answer(pair.target, pair.target_words, soft, exam, visible=True)


lines = [
    home(s).four_lines(chosen(one)[1], "report", visible=True)
    for s, one in enumerate(ARMS["bridged"])
]
said: dict[str, list[Answers]] = {
    name: [found[name] for found in lines] for name in lines[0]
}
said["untrained bridge"] = [
    says(untrained(recipe, s, home(s).pair), home(s)) for s in range(run.seeds)
]
said["constant source"] = [
    says(chosen(one)[1], home(s, constant))
    for s, one in enumerate(ARMS["constant source"])
]
leak_lines = [
    home(s, leaky).four_lines(chosen(one)[1], "report", visible=True)
    for s, one in enumerate(ARMS["leak"])
]
said["leak"] = [found["bridged"] for found in leak_lines]


def differences(after: str, before: str) -> list[float]:
    """Accuracy of one line minus another's on the same questions, for every seed of both."""
    both = zip(said[after], said[before], strict=False)
    return [a.accuracy - b.accuracy for a, b in both]


def gain(after: str, before: str) -> Estimate:
    """Their mean."""
    return mean_interval(differences(after, before))


# %% tags=["hide-input"] mystnb={"figure": {"caption": "Accuracy over the target alone, on the same 200 questions of the exam report. One small dot a seed, round for the first pair of hosts and square for the second; the bar is the mean with its 95 % interval over seeds, left out for fewer than three. Dotted: the criterion's 5 points.", "name": "fig-beyond-gains"}, "image": {"alt": "Rows of dots on an axis of points over the target alone. The dots of the untrained bridge spread from near zero far to the left. Those of the constant and of the shuffled source lie close to zero, with intervals across it. The bridged dots lie apart by pair of hosts, near zero for one and at or beyond the dotted line for the other; their interval reaches from just left of zero past that line. Of the two dots of the leak, without interval, one lies furthest to the right of all, the other just left of the dotted line."}}
ROWS = {
    "untrained bridge": "grey",
    "constant source": "purple",
    "shuffled source": "blue",
    "bridged": "orange",
    "leak": "green",
}
figure, axes = plt.subplots(figsize=(7.2, 3.2))
for y, (name, colour) in enumerate(ROWS.items()):
    values = differences(name, "target alone")
    for s, value in enumerate(values):
        mark = "os"[s % len(benches)]
        axes.plot([value], [y - 0.2], mark, color=COLOURS[colour], alpha=0.6, ms=4)
    if len(values) > 2:
        draw_intervals(
            axes,
            [y],
            [mean_interval(values)],
            flat=True,
            fmt="o",
            color=COLOURS[colour],
            capsize=4,
        )
axes.axvline(0, color="black", linewidth=0.8)
axes.axvline(5, color="black", linewidth=0.8, linestyle=":")
axes.set_yticks(range(len(ROWS)), ROWS)
axes.set(
    ylim=(len(ROWS) - 0.5, -0.6), xlabel="accuracy over the target alone (points)"
)
plt.show()


# %% tags=["hide-input"]
def p_value(after: str, before: str, seed: int) -> str:
    """McNemar's, of two lines of one seed."""
    return f"{mcnemar(said[after][seed].right, said[before][seed].right):.2g}"


COLUMNS = (
    "target alone",
    "source alone",
    "bridged",
    "shuffled source",
    "constant source",
    "leak",
)
Markdown(
    "| seed | hosts | step chosen (bridged) | "
    + " | ".join(COLUMNS)
    + " | p over target | p over shuffled |\n|--:|--:|--:|"
    + "--:|" * (len(COLUMNS) + 2)
    + "\n"
    + "\n".join(
        f"| {s} | {HOST_SEEDS[s % len(benches)]} | {chosen(one)[0]} | "
        + " | ".join(
            f"{said[c][s].accuracy:.1f}" if s < len(said[c]) else ""
            for c in COLUMNS
        )
        + f" | {p_value('bridged', 'target alone', s)} | {p_value('bridged', 'shuffled source', s)} |"
        for s, one in enumerate(ARMS["bridged"])
    )
    + f"\n\nAccuracies in % of {size.asked} questions (*report*); p is McNemar's, exact: how likely so uneven a split"
    " is by chance among the questions that only one of the two lines has right. A *shuffled source* speaks of another"
    " question than the one asked. *Constant source* and *leak* are bridges of their own, with fewer seeds. The look chosen"
    f" is the last one in {sum(chosen(one)[0] == max(one.looks) for one in ARMS['bridged'])} of {run.seeds} seeds; where it"
    " is, longer training might have given more."
)

# %% tags=["hide-input"]
MEASURED = {
    "bridged over target alone": ("bridged", "target alone"),
    "bridged over shuffled source": ("bridged", "shuffled source"),
    "shuffled source over target alone": ("shuffled source", "target alone"),
    "constant source over target alone (prompt)": (
        "constant source",
        "target alone",
    ),
    "bridged over constant source (information)": ("bridged", "constant source"),
}


def by_host(after: str, before: str) -> list[float]:
    """The mean difference for each pair of hosts."""
    n = len(benches)
    return [fmean(differences(after, before)[h::n]) for h in range(n)]


Markdown(
    "| paired by question and seed | n | points |\n|---|--:|---|\n"
    + "\n".join(
        f"| {name} | {gain(*pair).n} | {gain(*pair)} |"
        for name, pair in MEASURED.items()
    )
    + "\n\nMean [95 % interval] over n seeds. By pair of hosts, bridged over target alone and over shuffled source: "
    + ", ".join(
        f"{over:+.1f} and {shuffled:+.1f} (hosts {h})"
        for h, over, shuffled in zip(
            HOST_SEEDS,
            by_host("bridged", "target alone"),
            by_host("bridged", "shuffled source"),
            strict=True,
        )
    )
    + ". The seeds share these hosts and one exam, so the interval speaks for them alone."
)

# %% [markdown]
# ### Which of the promised quantities are there
#
# The function above is run, and its names are held against the log's own. A promised quantity is there when what it
# consists of is among them.

# %%
TRIAL = chosen(ARMS["bridged"][0])[1]
exam, pair = benches[0].exams["report"], benches[0].pair
with torch.no_grad():
    trial = TRIAL(exam.states, exam.mask)
given = (trial, pair.target, *exam.visible, pair.target_words)
found = as_logged(*given)

promise = recorded("bridge_analysis")
PARTS = (
    ("soft_rms", "embed_rms"),
    ("entropy_bridged", "entropy_baseline"),
    ("top5_bridged", "top5_baseline"),
    ("attention",),
)


def returned(*parts: str) -> list[str]:
    """The names that tell of a quantity; none when one of its parts is absent."""
    keys = [[name for name in found if part in name] for part in parts]
    return list(chain(*keys)) if all(keys) else []


there = {
    name: returned(*parts)
    for name, parts in zip(promise["promised"], PARTS, strict=True)
}
missing = sum(not names for names in there.values())

# %% tags=["hide-input"]
same = set(found) == set(promise["returned"])
Markdown(
    "| promised | returned as |\n|---|---|\n"
    + "\n".join(
        f"| {name} | {', '.join(f'`{n}`' for n in names) or 'absent'} |"
        for name, names in there.items()
    )
    + f"\n\nThe names returned here {'are' if same else 'are not'} the log's; {missing} of {len(there)} promised"
    " quantities absent."
)

# %% [markdown]
# (verdict-c6)=
# (verdict-c8)=
# ## Verdict

# %% tags=["hide-input"]
run.note(ledger.judge("C6", float(missing)))

# %% tags=["hide-input"]
run.note(
    ledger.judge(
        "C8",
        {
            "gain_over_target": gain("bridged", "target alone"),
            "gain_over_shuffled_source": gain("bridged", "shuffled source"),
            # Arithmetic: no interval but the one that the target's own share has.
            "probability_of_peak_by_chance": Estimate(
                by_chance, by_chance, by_chance, len(looks)
            ),
        },
    )
)

# %% tags=["nbval-check-output", "keep_output", "remove-input"]
print(run.verdict_lines())

# %% [markdown]
# ## What holds instead
#
# ### Prompt and information
#
# Over all seeds, neither a gain of 5 points nor none at all is excluded, over the target alone as over the shuffled source.
# The difference to the target alone has two parts, and the constant source is there to separate them:

# %% tags=["hide-input"]
over, shuffle = (
    gain("bridged", "target alone"),
    gain("bridged", "shuffled source"),
)
by_prompt = gain("constant source", "target alone")
information = gain("bridged", "constant source")
harm = gain("shuffled source", "target alone")
Markdown(
    f"Soft tokens that say the same to every question change the target's accuracy by {by_prompt} points, and what the"
    f" source has read of the question adds {information} (n = {information.n}). The smallest differences that these runs"
    f" could have told from none are {by_prompt.half:.1f} and {information.half:.1f} points; for the gain over the target"
    f" itself (n = {over.n}) it was {over.half:.1f}. The two parts add up to {by_prompt.mean + information.mean:.1f}, the"
    " gain over the target in these seeds; the intervals of"
    f" {sum(e.low <= 0 <= e.high for e in (by_prompt, information))} of the two hold zero. Soft tokens of an"
    f" untrained bridge change the accuracy by {gain('untrained bridge', 'target alone')} points (n = {run.seeds})."
)

# %% [markdown]
# Too few seeds, then, to say which part is there. Only what a bridge has over a constant source can be put down to what was
# read; the log has no such line. Nor is the shuffled source a measure of what is gained: its difference is the sum of two,
#
# $$
# \text{bridged} - \text{shuffled} = (\text{bridged} - \text{alone}) + (\text{alone} - \text{shuffled}) ,
# $$ (eq-beyond-sum)
#
# and the second grows when the target believes a bridge that speaks of another problem. A difference to the shuffled source
# shows that the target *listens*; whether it profits, only the target alone can say. Here the sum reads

# %% tags=["hide-input"]
apart = by_host("bridged", "target alone")
Markdown(
    f"{shuffle.mean:.1f} = {over.mean:.1f} + ({-harm.mean:.1f}) points. Paired by question, McNemar's p of bridged against"
    f" target alone is below 0.05 in {sum(float(p_value('bridged', 'target alone', s)) < 0.05 for s in range(run.seeds))} of"
    f" {run.seeds} seeds. One bridge and {size.asked} questions suffice for a p, and it speaks for that one bridge; the"
    " interval over seeds asks whether another training would do it again. The gain"
    f" differs by {abs(apart[0] - apart[1]):.1f} points between the pairs of hosts."
)

# %% [markdown]
# The seeds fall apart by pair of hosts, which was seen in the results and is no test: on one pair the bridges stay at the
# target's level, and a shuffled source changes little; on the other they pass it, and a shuffled source takes the gain
# away. The one constant source on that pair, which tells nothing, has half of its seed's gain. So a bridge that
# passes its target is possible here, and nothing is odd about it: the source alone answers more than either, and a
# bridge from a stronger model may well pass on what it has worked out. The log does not give that line, and so
# whether 81.5 % was much or little for what Mistral had to say cannot be told from it.
#
# ### A leak looks like success
#
# The bridges of the leaking source have the four lines that a strong honest bridge would have: above the target, below it
# with shuffled states, and below the source alone, which is asked the question only. What catches them is a look at what
# the source was given:


# %%
def texts(own: Bench, leaked: bool) -> list[str]:
    """What the source reads of each problem of the exam, as `examine` puts it together."""
    words = own.pair.source_words
    return [
        prompt(p.question, words) + (f" {p.solution()}" if leaked else "")
        for p in own.exams["report"].problems
    ]


solutions = [p.solution() for p in benches[0].exams["report"].problems]
held = {
    leaked: leak_check(texts(benches[0], leaked), solutions) for leaked in (0, 1)
}

# %% tags=["hide-input"]
leak_gain = differences("leak", "target alone")
leak_over = differences("leak", "bridged")


def told(values: list[float]) -> str:
    """Each value with its sign."""
    return ", ".join(f"{v:+.1f}" for v in values)


Markdown(
    "| leak, accuracy (%) | "
    + " | ".join(f"seed {s}" for s in range(len(leak_lines)))
    + " |\n|---|"
    + "--:|" * len(leak_lines)
    + "\n"
    + "\n".join(
        f"| {line} | "
        + " | ".join(f"{of[line].accuracy:.1f}" for of in leak_lines)
        + " |"
        for line in leak_lines[0]
    )
    + "\n\n| source reads | solutions found in its texts | over target alone, by seed (points) |\n|---|--:|---|\n"
    f"| the question | {held[0]:.0%} | {told(differences('bridged', 'target alone')[: len(leak_gain)])} |\n"
    f"| question and solution | {held[1]:.0%} | {told(leak_gain)} |\n\n"
    f"The leak is ahead of the honest bridge of its seed by {told(leak_over)} points, too few seeds for an interval."
)

# %% [markdown]
# `leak_check` needs texts, and texts are what the log does not give: it says that the translator takes Mistral's hidden
# states, not of which words. Whether its source had read the answers cannot be known from it.
#
# ### The instrument, whole
#
# `bridge_quality` returns what the log promised, the attention mass by layer included. Does it show "where and why"? The
# same instrument, on sound bridges and on bridges that are broken in a known way: their labels were [shifted
# twice](peak_and_collapse.ipynb), so that they were asked for the token after the next. Each with and without LayerNorm
# and matched RMS (*norm*), since the broken recipe of that chapter has neither. The sound bridges with the norm are those
# chosen above, trained for longer and at another rate; without it, sound and broken differ in the labels alone.

# %%
COMMON = (Group("translator.gates.", rate=1.0),)
bare = replace(
    recipe,
    fit=FitSettings(
        size.broken,
        1e-3,
        size.batch,
        size.warmup,
        schedule="constant",
        groups=COMMON,
    ),
    scale=None,
)
SOUND, TWIN, BROKEN, NORMED = (
    "sound, norm",
    "sound, no norm",
    "shifted twice, no norm",
    "shifted twice, norm",
)
few = range(min(run.seeds, size.others))
others = train_arms(
    {
        TWIN: bare,
        BROKEN: replace(bare, shift=1),
        NORMED: replace(bare, shift=1, scale=1.0),
    },
    few,
    benches,
    describe="broken",
)
BRIDGES = {(SOUND, s): chosen(ARMS["bridged"][s])[1] for s in few} | {
    key: one.bridge for key, one in others.items()
}


def quality(bridge: Bridge, own: Bench) -> BridgeQuality:
    """The instrument on the exam's questions, in sight of the target."""
    exam, pair = own.exams["report"], own.pair
    with torch.no_grad():
        soft = bridge(exam.states, exam.mask)
    return bridge_quality(soft, pair.target, *exam.visible, pair.target_words)


seen = {key: quality(bridge, home(key[1])) for key, bridge in BRIDGES.items()}
heard = {(SOUND, s): said["bridged"][s] for s in few} | {
    key: says(one.bridge, home(key[1])) for key, one in others.items()
}

# %% tags=["hide-input"]


def row(name: str, seed: int) -> str:
    """One bridge: what it does, and what the instrument says."""
    q, a = seen[name, seed], heard[name, seed]
    end = home(seed).pair.target_words.eos_token_id
    cells = [
        name,
        str(seed),
        f"{a.accuracy:.0f}",
        f"{100 * degeneration(a.ids, end, LONGEST).degenerate:.0f}",
        f"{q.rms_ratio:.3g}",
        f"{q.entropy_bridged:.2f} / {q.entropy_baseline:.2f}",
        f"`{q.top_bridged[0][0]}` / `{q.top_baseline[0][0]}`",
        ", ".join(f"{100 * m:.0f}" for m in q.attention_mass),
    ]
    return f"| {' | '.join(cells)} |"


ratios = {key: q.entropy_bridged / q.entropy_baseline for key, q in seen.items()}
tops = {k: (q.top_bridged[0][0], q.top_baseline[0][0]) for k, q in seen.items()}
faulty = [key for key in seen if key[0] in (BROKEN, NORMED)]
fine = [key for key in seen if key not in faulty]


def count(keys: list, holds) -> str:
    """How many of these bridges have it."""
    return f"{sum(holds(key) for key in keys)} of {len(keys)}"


def masses(keys: list) -> str:
    """The attention mass of the last layer, least and most."""
    last = [100 * seen[key].attention_mass[-1] for key in keys]
    return f"{min(last):.0f} to {max(last):.0f} %"


SIGNS = {
    "RMS more than 10 % off (the log's)": lambda k: (
        abs(seen[k].rms_ratio - 1) > 0.1
    ),
    "entropy more than 20 % lower (the log's)": lambda k: ratios[k] < 0.8,
    "entropy more than 20 % higher": lambda k: ratios[k] > 1.2,
    "another likeliest first token": lambda k: tops[k][0] != tops[k][1],
}

Markdown(
    "| bridge | seed | accuracy (%) | loops, empty (%) | RMS ratio | entropy, bridged / alone (nats) | likeliest first"
    " token, bridged / alone | attention mass by layer (%) |\n|---|--:|--:|--:|--:|--:|---|---|\n"
    + "\n".join(row(*key) for key in BRIDGES)
    + "\n\n| sign | broken bridges that show it | sound bridges that show it |\n|---|--:|--:|\n"
    + "\n".join(
        f"| {sign} | {count(faulty, holds)} | {count(fine, holds)} |"
        for sign, holds in SIGNS.items()
    )
    + f"\n\nAttention on the soft tokens in the last layer: {masses(faulty)} in the broken bridges, {masses(fine)} in the"
    " sound ones."
)

# %% [markdown]
# No criterion was set for these signs, and the bridges are few, with two seeds of each in the quick profile. The RMS
# tells here which recipe has the norm. A collapse is to show, says the log, as an entropy far *below* the baseline's;
# these broken bridges have it above, which the log's criterion of 20 % to either side would notice and its reading of
# the sign would not. With the likeliest first token this parts broken from sound here: a lead, from one kind of fault.
# The attention on the soft tokens is nearly the same in the last layer, and lower in the first in the broken ones. All
# of this concerns the first token; where an answer breaks can be seen by comparing it, token by token, with the
# solution:


# %% tags=["hide-input"] mystnb={"figure": {"caption": "Share of answers that agree with the solution up to a token of it, one line a seed (the first two seeds in the quick profile). Dotted: the target alone.", "name": "fig-beyond-where"}, "image": {"alt": "Lines that start near the top at the first token. The sound bridges follow the target alone downward in gentle steps. The broken bridges begin somewhat lower, fall steeply at the second token, and few of their answers are still right at the fifth."}}
def so_far(a: Answers, exam: Exam) -> list[float]:
    """For each place in the solutions, the share (%) of answers still equal to the solution there."""
    told = exam.labels.tolist()
    there = [[i for i in row if i != -100] for row in told]
    width = min(map(len, there))  # places that every solution has
    kept = [
        [own[: n + 1] == row[: n + 1] for n in range(width)]
        for own, row in zip(a.ids, there, strict=True)
    ]
    return [100 * fmean(column) for column in zip(*kept, strict=True)]


LOOK = {
    SOUND: ("orange", "-"),
    TWIN: ("green", "-"),
    BROKEN: ("blue", "--"),
    NORMED: ("purple", "--"),
}
paths = {key: so_far(a, home(key[1]).exams["report"]) for key, a in heard.items()}
figure, axes = plt.subplots(figsize=(7.2, 3.2))
for own in range(len(benches)):
    kept = so_far(said["target alone"][own], benches[own].exams["report"])
    axes.plot(
        range(1, len(kept) + 1),
        kept,
        ":",
        color="black",
        lw=1,
        label=None if own else "target alone",
    )
for (name, s), path in paths.items():
    colour, style = LOOK[name]
    axes.plot(
        range(1, len(path) + 1),
        path,
        style,
        color=COLOURS[colour],
        label=None if s else name,
    )
axes.set(xlabel="token of the solution", ylabel="right so far (%)", ylim=(0, 103))
figure.legend(loc="outside lower center", ncols=3, fontsize=9)
plt.show()

# %% tags=["hide-input"]


def at(keys: list, token: int) -> str:
    """Mean share that is right up to a token."""
    return f"{fmean(paths[key][token - 1] for key in keys):.0f} %"


ends = len(paths[SOUND, 0])
Markdown(
    f"Of the broken bridges' answers {at(faulty, 1)} have the first token of the solution, {at(faulty, 3)} the first three"
    f" and {at(faulty, ends)} the first {ends}; of the sound ones' {at(fine, 1)}, {at(fine, 3)} and {at(fine, ends)}."
)

# %% [markdown]
# This says *where*. *Why* stands in no output: it takes the training loss of the host's own answers, as the
# [chapter on the collapse](peak_and_collapse.ipynb) has it.
#
# Two more things in the log's function can mislead. It reads the five likeliest tokens off the first sample only, and it
# averages the entropies, in which a few looping answers would vanish. On the first pair of hosts and its chosen
# bridge, where no answer loops:

# %% tags=["hide-input"]
(ids, mask), table = exam.visible, pair.target.get_input_embeddings()
shares = first_token(
    pair.target,
    torch.cat([trial, table(ids)], 1),
    torch.cat([mask.new_ones(trial.shape[:2]), mask], 1),
)
first, spread = shares.argmax(-1), torch.special.entr(shares).sum(-1)
Markdown(
    f"The first sample's likeliest token is also the likeliest of {(first == first[0]).float().mean().item():.0%} of the"
    f" questions. Behind the mean entropy of {spread.mean():.2f} nats stand {spread.min():.2f} to {spread.max():.2f}."
)

# %% [markdown]
# ## Tweak it
#
# How many looks does it take for the best of them to reach 81.5 % by chance? Move the true share that every look has; the
# curve is {eq}`eq-beyond-looks`. In a live kernel choose the number of questions, up to the whole test set of GSM8K.


# %% tags=["hide-input"]
def frame(share: float, questions: int) -> tuple[Figure, str]:
    """The probability of the peak by the number of looks."""
    enough = math.ceil(peak * questions - 1e-9)
    tried = range(1, 201)
    curve = [best_of_looks(share, questions, k, enough) for k in tried]
    here = curve[len(looks) - 1]
    figure = Figure(figsize=(7.2, 3.2))
    axes = figure.subplots()
    axes.plot(tried, curve, "-", color=COLOURS["orange"])
    axes.plot([len(looks)], [here], "o", color=COLOURS["orange"])
    axes.axhline(0.05, color="black", linewidth=0.8, linestyle=":")
    axes.set(
        xscale="log",
        xlabel="looks",
        ylabel="probability",
        ylim=(-0.02, 1.02),
        title=f"{100 * share:.3g} % true, {questions} questions: {here:.2g} with {len(looks)} looks",
    )
    return figure, (
        f"When every look has a true share of {100 * share:.3g} %, the best of {len(looks)} independent looks at {questions}"
        f" questions reaches {enough} right with probability {here:.2g}, a single look with {curve[0]:.2g}."
    )


explorer = Explorer(
    "true share of every look (%)",
    {f"{s}": s / 100 for s in (65, 67, 69, 71, 73, 75, 77, 79, 81)},
    frame,
    choices={"questions": [asked, 50, 500, 1319]},
)
explorer

# %% [markdown]
# ## Try it on yours
#
# Keep right and wrong of every question, for the target alone and for the bridge: `mcnemar` needs them, two accuracies do
# not suffice. Say how many looks there were, and what the source had read.

# %%
bridged = said["bridged"][0].right  # yours, a bool for each question
without = said["target alone"][0].right
looked = size.looks
print(f"McNemar's p {mcnemar(bridged, without):.2g}")
n, r = len(bridged), sum(bridged)
print(
    f"by chance {best_of_looks(sum(without) / n, n, looked, r):.2g}, at most, had the best of {looked} looks been quoted"
)
print(
    f"solutions in the source's texts: {leak_check(texts(benches[0], False), solutions):.0%}"
)
quality(TRIAL, benches[0])

# %% [markdown]
# ## Provenance

# %% tags=["remove-input"]
run.measure(
    **{name: gain(*pair) for name, pair in MEASURED.items()},
    **{f"gain, hosts {h}": mean for h, mean in zip(HOST_SEEDS, apart, strict=True)},
    leak_over_target=fmean(leak_gain),
    leak_check_question=held[0],
    leak_check_leaked=held[1],
    **{
        f"probability of the peak: {name}": best_of_looks(alone, asked, k, reached)
        for name, k in COUNTS.items()
    },
)
run.close()
