# %% [markdown]
# # Padding, loops and stopping
#
# Two pieces of hygiene stand in the log's list of causes. Prompts padded on the wrong side are blamed for instability, and
# outputs that loop are held to be right answers that cannot stop, to be mended when they are generated. Both can be tested
# with the weights held still. This chapter does that, and finds in both cases that the remedy and its reason part ways.

# %% tags=["parameters"]
profile = "quick"  # quick | full
seeds = 0  # at least 4; 0 takes the profile's number
device = "auto"  # auto | cpu | cuda | mps
out = ""  # where the record goes, a .json file

# %% tags=["hide-input"]
import warnings
from copy import deepcopy
from dataclasses import dataclass, replace

import matplotlib.pyplot as plt
import torch
from bridges.connectors.translator import TranslatorSettings
from bridges.hosts.causal import positions, spoken_to, until_end
from bridges.instruments.generation import Degeneration, degeneration
from bridges.instruments.padding import padding_shift
from bridges.instruments.uncertainty import Estimate, mean_interval, wilson
from bridges.tasks.gsm8k import last_number
from bridges.tasks.word_problems import MARKER, encode, prompt
from bridges.benches.answering import BridgeRecipe
from bridges.benches.small_pairs import HOST_SEEDS, bench, train_arms
from bridges.benches.exams import (
    LONGEST,
    Answers,
    Bench,
    Exam,
    answer,
    read,
    source_alone,
)
from bridges.training.fit import GATE_GROUP, FitSettings
from bridges.benches.pretrain import small_solver
from IPython.display import Markdown
from matplotlib.figure import Figure
from press import HOSTS, ledger
from press.claims import load_claims
from press.data import recorded
from press.explorer import Explorer
from press.figures import COLOURS, draw_intervals, use_style
from press.provenance import begin
from press.source import show_source
from torch.nn.functional import cross_entropy
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LogitsProcessor,
    LogitsProcessorList,
)
from transformers.utils import logging


@dataclass(frozen=True)
class Size:
    """What a profile means in this chapter."""

    seeds: int  # of the bridges that decide a claim
    others: int  # of those that decide none
    host: str  # the size of the pretrained hosts
    steps: int  # training steps of a bridge with the question hidden
    brief: int  # of one that only shows whether an answer ends
    visible: int  # of one with the question visible, which has little to learn
    asked: int  # questions of an exam
    translator: TranslatorSettings


SIZES = {
    "quick": Size(
        seeds=5,
        others=2,
        host="quick",
        steps=140,
        brief=80,
        visible=24,
        asked=150,
        translator=TranslatorSettings(bottleneck=64, tokens=8, depth=2, heads=8),
    ),
    "full": Size(
        seeds=10,
        others=6,
        host="full",
        steps=600,
        brief=600,
        visible=100,
        asked=200,
        translator=TranslatorSettings(bottleneck=128, tokens=16, depth=2, heads=8),
    ),
}
run = begin(
    "padding_and_stopping",
    SIZES,
    profile=profile,
    seeds=seeds,
    device=device,
    out=out,
    least=4,
)
size = run.size
logging.disable_progress_bar()
logging.set_verbosity_error()  # else generate warns of the padding that is under test
warnings.filterwarnings("ignore", message="Passing `repetition_penalty`")
torch.set_num_threads(1)
use_style()

# %% [markdown]
# ## Symptom
#
# What the log's bridged target said where it failed, before the log's fixes and after them:

# %% tags=["remove-input"]
log = recorded("degenerate_outputs")
Markdown(
    "| | | output | of which the log says |\n|---|---|---|---|\n"
    + "\n".join(
        f"| {when} | {pattern} | {f'`{said} …`' if said else 'nothing'} | {judged} |"
        for when, pattern, said, judged in log["rows"]
    )
    + "\n\nAnd what it advised:\n\n| | |\n|---|---|\n"
    + "\n".join(f"| {what} | {how} |" for what, how in log["advised"])
)

# %% [markdown]
# ## Claim

# %% tags=["remove-input"]
claims = load_claims()
claims["C2"]

# %% tags=["remove-input"]
claims["C9"]

# %% [markdown]
# ## Mechanism
#
# ### Which column is read
#
# Prompts of a batch are brought to one length with padding tokens, and a mask tells which columns are text. A decoder-only
# model foretells the next token from the column before it, and `generate` takes the *last* column of the batch. With the
# padding on the right, that column is padding for every row but the longest.
#
# Padding has a second effect. It moves the text to other columns, and a model that counts columns takes the text for one
# that begins later. `generate` derives the position ids from the mask; a plain `forward` counts columns, unless it is
# given them:

# %% tags=["remove-input"]
show_source(positions)

# %% [markdown]
# The table measures both effects apart, on a host that has learnt to answer. Each prompt is run alone and then in a padded
# batch, and the logits of the next token are compared. The second host is an untrained GPT-2, which has a learned vector
# for each position where Llama's rotary embedding knows only how far two tokens are apart.

# %% tags=["hide-input"]
SEEDS = range(run.seeds)
TARGETS = (*HOST_SEEDS, 4, 5)
benches = [
    bench(h, size.host, HOSTS, run.device, asked=size.asked) for h in HOST_SEEDS
]
words = benches[0].pair.target_words
end, marker = words.eos_token_id, words.convert_tokens_to_ids(MARKER)
problems = benches[0].exams["report"].problems
PROMPTS = [prompt(p.question, words) for p in problems]
padded_ids = {
    side: tuple(t.to(run.device) for t in encode(PROMPTS, words, side))
    for side in ("left", "right")
}
short = ~padded_ids["left"][1].bool().all(1).cpu()  # the rows that are padded

host = benches[0].pair.target
torch.manual_seed(0)
learned = GPT2LMHeadModel(
    GPT2Config(
        vocab_size=len(words),
        n_positions=64,
        n_embd=64,
        n_layer=2,
        n_head=4,
        bos_token_id=words.bos_token_id,
        eos_token_id=end,
    )
)
learned = learned.eval().to(run.device)


def next_logits(model, counted: bool, column: str = "last"):
    """The logits of the next token: with position ids from the mask or without, of the last column or the last text."""

    def read_next(ids, mask):
        given = {"position_ids": positions(mask) * mask} if counted else {}
        logits = model(input_ids=ids, attention_mask=mask, **given).logits
        if column == "last":
            return logits[:, -1]
        return logits[torch.arange(len(ids)), mask.cumsum(1).argmax(1)]

    return read_next


few = [
    torch.tensor(words(t, add_special_tokens=False)["input_ids"], device=run.device)
    for t in PROMPTS[:60]
]
WAYS = {
    "forward, column counted": (False, "last", "left"),
    "forward, position ids from the mask": (True, "last", "left"),
    "last column": (True, "last", "right"),
    "last column of text": (True, "text", "right"),
}
shifts = {
    (kind, way): padding_shift(
        next_logits(model, counted, column), few, words.pad_token_id, side
    )
    for kind, model in (("Llama", host), ("GPT-2, untrained", learned))
    for way, (counted, column, side) in WAYS.items()
}
Markdown(
    "| host | padded on the | read | largest change of a logit | another likeliest token (% of padded rows) |\n"
    "|---|---|---|--:|--:|\n"
    + "\n".join(
        f"| {kind} | {found.side} | {way} | {found.logits:.1g} | {100 * found.changed:.0f} |"
        for (kind, way), found in shifts.items()
    )
    + f"\n\n{int(short[: len(few)].sum())} of {len(few)} prompts are padded."
)

# %% [markdown]
# With left padding a rotary host does not mind a missing position id: every token of a row is moved by the same number of
# columns, and all distances stay. The host with learned positions does mind. With right padding the last column tells
# something else in either host. Where the last column *of text* is read instead, right padding changes nothing but
# rounding.
#
# ### When it stops
#
# Greedy decoding stops where the end token has the largest logit. A repetition penalty $\theta$ changes the logits $z_v$ of
# tokens already in the sequence,
#
# $$
# z_v \;\to\; z_v / \theta \quad (z_v > 0), \qquad z_v \;\to\; \theta\, z_v \quad (z_v < 0),
# $$ (eq-stopping-penalty)
#
# and leaves the end token as it was. It can help only where everything above the end token has been said before. So it
# matters how far down the end token lies. Many recipes pad with the end token and leave padding out of the loss, and with
# it every end. The hosts called *endless* were trained in this way: nothing ever rewarded the end token, and at every
# other position it was pushed down with the rest of the vocabulary. Right behind the number of a correct solution it
# stands here:

# %% tags=["hide-input"]
# The exams hold what source and prompts are: hosts of one tokenizer can be exchanged.
endless = [
    replace(
        own,
        pair=replace(
            own.pair,
            target=small_solver("endless", h, size.host, HOSTS, run.device),
        ),
    )
    for own, h in zip(benches, HOST_SEEDS, strict=True)
]


@torch.no_grad()
def answer_states(model, exam: Exam, rows: slice, bridge=None):
    """A host's last states before each token of right solutions, and those tokens; with a bridge, question hidden."""
    (ids, mask), labels = exam.prompts(visible=bridge is None), exam.labels[rows]
    there = labels != -100
    soft = bridge and bridge(exam.states[:, rows], exam.mask[rows])
    given = spoken_to(
        model,
        soft,
        torch.cat([ids[rows], labels.clamp_min(0)], 1),
        torch.cat([mask[rows], there.long()], 1),
    )
    states = model.model(
        **given, position_ids=positions(given["attention_mask"])
    ).last_hidden_state
    return states[:, -labels.shape[1] - 1 : -1][there], labels[there]


rows = []
for kind, group in (("healthy", benches), ("endless", endless)):
    for own, h in zip(group, HOST_SEEDS, strict=True):
        target = own.pair.target
        states, labels = answer_states(target, own.exams["report"], slice(None))
        with torch.no_grad():
            logits = target.lm_head(states[labels == end])
        rank = 1 + (logits > logits[:, end, None]).sum(1).float()
        chance = logits.softmax(-1)[:, end]
        rows.append(
            f"| {kind}, seed {h} | {chance.mean():.2g} | {rank.median():.0f} of {logits.shape[1]} |"
        )
Markdown(
    "| target | mean probability of the end token | its median rank |\n|---|--:|--:|\n"
    + "\n".join(rows)
)

# %% [markdown]
# ## Experiment
#
# ### Left against right
#
# The same questions and the same weights, in batches padded on either side. The target alone gets token ids and their mask.
# The bridged target gets embeddings: eight or more soft tokens (the profile's number), then the prompt with the question
# in sight. Its bridges were trained for a few steps with the padding on the left; a visible question leaves them little to
# learn. Questions have one step or two, so that there are two lengths, and only the shorter rows are padded: their share
# bounds what padding can cost here. In real text nearly every row is padded. The targets of two seeds differed so much in
# scouting that their interval said nothing. Two more were taken beside them, before either was looked at.


# %%
@torch.no_grad()
def by_ids(model, given: tuple[torch.Tensor, torch.Tensor], **options) -> Answers:
    """What a host says to prompts that are handed over as token ids."""
    ids, mask = given
    said = model.generate(
        input_ids=ids,
        attention_mask=mask,
        **{"max_new_tokens": LONGEST, "do_sample": False} | options,
    )
    return read(until_end(said[:, ids.shape[1] :], end), problems, words)


def soft_tokens(bridge, exam: Exam, shuffled: bool = False) -> torch.Tensor:
    """A bridge's soft tokens, from each problem's own source states or from another's."""
    with torch.no_grad():
        if shuffled:
            return bridge(exam.states.roll(1, 1), exam.mask.roll(1, 0))
        return bridge(exam.states, exam.mask)


targets = [small_solver("target", h, size.host, HOSTS, run.device) for h in TARGETS]
alone = {
    (h, side): by_ids(model, given)
    for h, model in zip(TARGETS, targets, strict=True)
    for side, given in padded_ids.items()
}

fit = FitSettings(size.steps, 5e-3, 32, warmup=20, groups=(GATE_GROUP,))
recipe = BridgeRecipe(fit, size.translator)
seeing = replace(recipe, visible=True, fit=replace(fit, steps=size.visible))
in_sight = train_arms({"visible": seeing}, SEEDS, benches)
bridged = {}
for (_, seed), found in in_sight.items():
    own = benches[seed % len(benches)]
    exam, target = own.exams["report"], own.pair.target
    soft = soft_tokens(found.bridge, exam)
    for side, given in padded_ids.items():
        bridged[seed, side] = answer(
            target, words, soft, replace(exam, visible=given), visible=True
        )
    bridged[seed, "shuffled"] = answer(
        target, words, soft_tokens(found.bridge, exam, True), exam, visible=True
    )


def share(right, chosen) -> float:
    """Right answers among the chosen rows, in points."""
    return 100 * torch.tensor(right)[chosen].float().mean().item()


# %% tags=["hide-input"] mystnb={"figure": {"caption": "Accuracy with the padding on the left and on the right, all questions (left panel) and the padded ones alone (right panel). Each line joins one set of weights: a target alone, given token ids, or a bridge with the question visible, given embeddings.", "name": "fig-padding-sides"}, "image": {"alt": "Two panels of lines falling from left padding to right padding. In the left panel all start at or near the top and fall by some twenty points; in the right panel, which holds the padded questions alone, they fall several times as far and fan out. Targets alone and bridges fall alike."}}
figure, panels = plt.subplots(1, 2, figsize=(7.2, 3.2), sharey=True)
for axes, chosen, name in (
    (panels[0], slice(None), "all questions"),
    (panels[1], short, "padded rows"),
):
    for group, keys, colour, dash in (
        ("target alone, ids", [(alone, h) for h in TARGETS], "blue", "-"),
        ("bridged, embeddings", [(bridged, s) for s in SEEDS], "orange", "--"),
    ):
        for i, (said, key) in enumerate(keys):
            axes.plot(
                [0, 1],
                [share(said[key, side].right, chosen) for side in padded_ids],
                "o" + dash,
                color=COLOURS[colour],
                alpha=0.8,
                label=None if i else group,
            )
    axes.set(xlim=(-0.2, 1.2), ylim=(0, 103), title=name)
    axes.set_xticks((0, 1), ("left", "right"))
panels[0].set(ylabel="accuracy (%)", xlabel="padding")
panels[1].set(xlabel="padding")
panels[0].legend(loc="lower left")
plt.show()

# %% tags=["hide-input"]
fed = {
    h: answer(
        model,
        words,
        None,
        replace(benches[0].exams["report"], visible=padded_ids["right"]),
        visible=True,
    )
    for h, model in zip(TARGETS, targets, strict=True)
}
same = sum(fed[h].ids == alone[h, "right"].ids for h in TARGETS)


def side_row(name: str, said, keys) -> str:
    """Accuracies of a group on either side, of all rows and by padding."""
    cells = [
        mean_interval([share(said[k, side].right, chosen) for k in keys])
        for side, chosen in (
            ("left", slice(None)),
            ("right", slice(None)),
            ("right", short),
            ("right", ~short),
        )
    ]
    return f"| {name} | {len(keys)} | " + " | ".join(map(str, cells)) + " |"


sources = [source_alone(own.pair, own.exams["report"]) for own in benches]


def over(values) -> Estimate:
    """Mean with its interval."""
    return mean_interval(list(values))


Markdown(
    "| accuracy (%) | n | left | right | right, padded rows | right, rows without padding |\n|---|--:|---|---|---|---|\n"
    + side_row("target alone, ids", alone, TARGETS)
    + "\n"
    + side_row("bridged, embeddings", bridged, SEEDS)
    + f"\n\nMean [95 % interval] over n hosts or bridges; {int(short.sum())} of {len(short)} rows are padded. The other two"
    f" of the four lines, both padded on the left: source alone {sources[0].accuracy:.3g} and {sources[1].accuracy:.3g} % (the"
    f" hosts of seed {HOST_SEEDS[0]} and {HOST_SEEDS[1]}), shuffled source"
    f" {over(bridged[s, 'shuffled'].accuracy for s in SEEDS)} %: the target reads the question itself. Ids and embeddings"
    f" without soft tokens gave the same right-padded answers, token for token, in {same} of {len(TARGETS)} hosts."
)

# %% [markdown]
# With the question hidden the prompts are equal, and there is nothing to pad:

# %% tags=["hide-input"]
hidden = {
    side: encode([prompt("", words)] * len(problems), words, side)
    for side in padded_ids
}
equal = all(torch.equal(*pair) for pair in zip(*hidden.values(), strict=True))
quiet = padding_shift(
    next_logits(host, True),
    list(hidden["right"][0][:8].to(run.device)),
    words.pad_token_id,
    "right",
)
Markdown(
    f"Ids and masks of both sides are {'equal' if equal else 'different'}: {quiet.padded} of {quiet.rows} prompts of a batch"
    " have padding, the target is handed the same tensors, and its logits cannot differ. A log that hides the question"
    " from its target cannot have been harmed by the side of its target's padding."
)

# %% [markdown]
# ### Answers that cannot stop
#
# Bridges with the question hidden, into endless hosts, and trained on answers whose end token is masked as well: neither
# part has seen an end. Each generation is marked in three ways. *First marker*: the number behind the first `####`. *Last
# number*: the last number of the text, as many a script does it. *Strict*: the number behind the first marker, right, and
# directly behind it the end token. They are decoded greedily up to a limit, and then with what the log advised.
#
# With embeddings as input, `generate` knows the new tokens alone: the penalty counts no token of the prompt. The forced
# length is chosen for each bridge on the other exam. The quick profile was shortened, for time alone, from 200 steps to
# 140, from 40 to 24 with the question visible, and from exams of 200 questions to 150. The verdicts are those of the
# longer version, in which more answers were right.


# %%
def strict(said: Answers, which=slice(None), ends=(end, marker)) -> float:
    """Right numbers behind the first marker, directly followed by the end token, in points."""
    stop, sign = ends
    ended = [
        right and ids[-1] == stop and ids[-3:-2] == [sign] and ids.count(sign) == 1
        for right, ids in zip(said.right, said.ids, strict=True)
    ]
    return share(ended, which)


def at_last(said: Answers) -> float:
    """Right last numbers, in points."""
    each = zip(said.texts, problems, strict=True)
    return share(
        [last_number(text) == str(p.answer) for text, p in each], slice(None)
    )


def cut(said: Answers, length: int, asked) -> Answers:
    """The same generations, ended after so many tokens with the end token."""
    kept = [i if end in i[:length] else [*i[: length - 1], end] for i in said.ids]
    return read(kept, asked, words)


def forced(length: int) -> dict[str, int]:
    """The end token banned before a length, and forced there."""
    return {
        "min_new_tokens": length - 1,
        "max_new_tokens": length,
        "forced_eos_token_id": end,
    }


class EndBehindAnswer(LogitsProcessor):
    """Let nothing but the end token follow the token behind a marker."""

    def __call__(self, ids, scores):
        if ids.shape[1] >= 2:
            done = ids[:, -2] == marker
            scores[done] = -torch.inf
            scores[done, end] = 0.0
        return scores


def without_end(own: Bench) -> Bench:
    """The bench whose training answers have their end token masked."""
    labels = own.taught.labels
    masked = labels.masked_fill(labels == end, -100)
    return replace(own, taught=replace(own.taught, labels=masked))


def say(found, own: Bench, name: str = "report", target=None, **options) -> Answers:
    """What a bench's target says behind a bridge's soft tokens, question hidden."""
    exam = own.exams[name]
    soft = soft_tokens(found.bridge, exam)
    return answer(target or own.pair.target, words, soft, exam, False, **options)


unending = train_arms(
    {"hidden": recipe}, SEEDS, [without_end(own) for own in endless]
)
LENGTHS = range(6, LONGEST + 1)
PLAIN, PENALTY, CONTROL, RULE = (
    "as it comes",
    "penalty 1.2",
    "forced length",
    "end behind the answer",
)
said, lengths = {}, {}
for (_, seed), found in unending.items():
    own = endless[seed % len(endless)]
    other = say(found, own, "select")
    select = own.exams["select"].problems
    lengths[seed] = max(LENGTHS, key=lambda n: strict(cut(other, n, select)))
    said[PLAIN, seed] = say(found, own)
    said[PENALTY, seed] = say(found, own, repetition_penalty=1.2)
    said[CONTROL, seed] = say(found, own, **forced(lengths[seed]))
    rule = LogitsProcessorList([EndBehindAnswer()])
    said[RULE, seed] = say(found, own, logits_processor=rule)

# %% tags=["hide-input"]
MARKS = {
    "first marker": lambda a: a.accuracy,
    "last number": at_last,
    "strict": strict,
}


def shown(a: Answers, limit: int = LONGEST) -> Degeneration:
    """How its generations degenerate."""
    return degeneration(a.ids, end, limit)


def stop_row(name: str, each: list[Answers], ends=(end, marker)) -> str:
    """The three marks and the share without an end, of two runs as they are, of more with their interval."""
    marks = [
        [a.accuracy for a in each],
        [at_last(a) for a in each],
        [strict(a, ends=ends) for a in each],
        [100 - share([a[-1] == ends[0] for a in b.ids], slice(None)) for b in each],
    ]
    cells = [
        str(over(m)) if len(m) > 2 else ", ".join(f"{v:.3g}" for v in m)
        for m in marks
    ]
    return f"| {name} | {len(each)} | " + " | ".join(cells) + " |"


HEAD = (
    "| accuracy (%) | n | first marker | last number | strict | without an end (%) |\n"
    "|---|--:|---|---|---|---|\n"
)
own_words = benches[0].pair.source_words
read_by_source = own_words.eos_token_id, own_words.convert_tokens_to_ids(MARKER)
asked_alone = [
    answer(own.pair.target, words, None, own.exams["report"], visible=True)
    for own in endless
]
shuffled = [
    answer(
        endless[s % 2].pair.target,
        words,
        soft_tokens(
            unending["hidden", s].bridge, endless[s % 2].exams["report"], True
        ),
        endless[s % 2].exams["report"],
        visible=False,
    )
    for s in SEEDS
]
Markdown(
    HEAD
    + "\n".join(
        [
            stop_row("target alone, endless", asked_alone),
            stop_row("source alone", sources, read_by_source),
            stop_row("bridged", [said[PLAIN, s] for s in SEEDS]),
            stop_row("shuffled source", shuffled),
        ]
    )
    + f"\n\nMean [95 % interval] over n bridges, or the two values; {len(problems)} questions, at most {LONGEST} new"
    " tokens. Alone, the target reads the question."
)

# %% [markdown]
# The same generations go on in this way; the right answer is in many of them, and a reader who looks at the end sees
# nonsense. Two such answers of each of two seeds, the first that are right at the first marker:

# %% tags=["hide-input"]
LIMIT = 60
longer = {
    s: say(unending["hidden", s], endless[s % 2], max_new_tokens=LIMIT)
    for s in (0, 1)
}
Markdown(
    "| seed | right answer | bridged, 60 new tokens |\n|--:|--:|---|\n".replace(
        "60", str(LIMIT)
    )
    + "\n".join(
        f"| {s} | {problems[i].answer} | `{longer[s].texts[i]}` |"
        for s in longer
        for i in [j for j, right in enumerate(longer[s].right) if right][:2]
    )
    + "\n\n"
    + " ".join(
        f"Of seed {s}, {100 * shown(longer[s], LIMIT).loops:.0f} % of the generations have run into a loop of one to four"
        f" tokens at {LIMIT} tokens, and {100 * shown(said[PLAIN, s]).loops:.0f} % at {LONGEST}."
        for s in longer
    )
)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The same bridges and weights under four ways of generating, marked in three ways. Small dots are seeds, bars 95 % intervals.", "name": "fig-stopping-ways"}, "image": {"alt": "Four rows of points. As it comes and with the penalty, accuracy at the first marker is a little above one third, at the last number below one fifth, and strict accuracy lies on zero. With a forced length strict accuracy comes about half of the way towards the first marker. With the end placed behind the answer all three marks coincide."}}
figure, axes = plt.subplots(figsize=(7.2, 3.3))
LOOKS = (("blue", "o", -0.2), ("grey", "s", 0.0), ("orange", "D", 0.2))
for (name, mark), (colour, shape, dy) in zip(MARKS.items(), LOOKS, strict=True):
    for y, way in enumerate((PLAIN, PENALTY, CONTROL, RULE)):
        values = [mark(said[way, s]) for s in SEEDS]
        axes.plot(
            values, [y + dy] * len(values), ".", color=COLOURS[colour], alpha=0.5
        )
        mean = over(values)
        draw_intervals(
            axes,
            [y + dy],
            [mean],
            flat=True,
            fmt=shape,
            color=COLOURS[colour],
            capsize=3,
            label=None if y else name,
        )
axes.set_yticks(range(4), (PLAIN, PENALTY, CONTROL, RULE))
axes.invert_yaxis()
axes.set(xlabel="accuracy (%)", xlim=(-3, 103))
figure.legend(
    *axes.get_legend_handles_labels(), loc="outside lower center", ncols=3
)
plt.show()

# %% [markdown]
# (verdict-c2)=
# (verdict-c9)=
# ## Verdict


# %% tags=["hide-input"]
def difference(after, before) -> Estimate:
    """Mean of paired differences."""
    return over(a - b for a, b in zip(after, before, strict=True))


run.note(
    ledger.judge(
        "C2",
        {
            "left_padding_gain_ids": difference(
                [alone[h, "left"].accuracy for h in TARGETS],
                [alone[h, "right"].accuracy for h in TARGETS],
            ),
            "left_padding_gain_embeds": difference(
                [bridged[s, "left"].accuracy for s in SEEDS],
                [bridged[s, "right"].accuracy for s in SEEDS],
            ),
        },
    )
)

# %% tags=["hide-input"]
plain = [said[PLAIN, s] for s in SEEDS]
gains = {
    way: difference([strict(said[way, s]) for s in SEEDS], map(strict, plain))
    for way in (PENALTY, CONTROL, RULE)
}
run.note(
    ledger.judge(
        "C9",
        {
            "right_before_loop": difference(
                [a.accuracy for a in plain], map(at_last, plain)
            ),
            "repetition_penalty_gain": gains[PENALTY],
            "end_token_control_gain": gains[CONTROL],
        },
    )
)

# %% tags=["nbval-check-output", "keep_output", "remove-input"]
print(run.verdict_lines())

# %% [markdown]
# What is confirmed of C2 is the loss of accuracy, not its reason. And with the question visible it is the target's loss,
# since the bridge has nothing to tell.
#
# ## What holds instead
#
# ### Two things taken from the wrong column
#
# The side matters, and not because attention is corrupted. The mask keeps padding out of it on either side. But `generate`
# takes two things from the last column of the prompts: the logits of the first new token, and the position from which it
# counts on. Where that column is padding, the first token is foretold by a padding token, and the new tokens are counted
# from the padding's position, which is 0 in the version of transformers named under *Provenance*. Decoding by hand takes
# either from the last column of *text* instead.


# %% tags=["hide-input"]
@torch.no_grad()
def by_hand(model, ids, mask, read_text: bool, count_text: bool) -> Answers:
    """Greedy decoding behind prompts padded on the right, with `generate`'s two faults or without."""
    begun, told, asked = ids.shape[1], mask.sum(1, keepdim=True), mask
    for step in range(LONGEST):
        place = positions(mask)
        if not count_text:  # padding stands at 0, and what follows it at 1, 2, ...
            place = torch.cat(
                [positions(asked) * asked, place[:, begun:] - told + 1], 1
            )
        logits = model(
            input_ids=ids, attention_mask=mask, position_ids=place
        ).logits
        last = mask.cumsum(1).argmax(1) if step == 0 and read_text else -1
        new = logits[torch.arange(len(ids)), last].argmax(-1, keepdim=True)
        ids = torch.cat([ids, new], 1)
        mask = torch.cat([mask, torch.ones_like(new)], 1)
        if (ids[:, begun:] == end).any(1).all():
            break
    return read(until_end(ids[:, begun:], end), few_problems, words)


places = short.nonzero().flatten().tolist()
few_problems = [problems[i] for i in places]
rows_right = tuple(t[short.to(run.device)] for t in padded_ids["right"])
HANDS = {
    "as `generate` has them": (False, False),
    "first token read from the text": (True, False),
    "positions counted on from the text": (False, True),
    "both": (True, True),
}
by_cause = {
    (name, h): by_hand(model, *rows_right, *faults)
    for name, faults in HANDS.items()
    for h, model in zip(TARGETS, targets, strict=True)
}


def equal_to(side: str, name: str) -> int:
    """Answers that are, token for token, those of `generate`, over all hosts."""
    return sum(
        by_cause[name, h].ids[n] == alone[h, side].ids[i]
        for h in TARGETS
        for n, i in enumerate(places)
    )


cases_of = len(TARGETS) * len(places)
Markdown(
    "| padded rows, padding on the right | accuracy (%) | answers equal to `generate`'s, right padding | left padding |\n"
    "|---|---|--:|--:|\n"
    + "\n".join(
        f"| {name} | {over(by_cause[name, h].accuracy for h in TARGETS)} |"
        f" {equal_to('right', name)} of {cases_of} | {equal_to('left', name)} of {cases_of} |"
        for name in HANDS
    )
    + f"\n\nMean [95 % interval] over {len(TARGETS)} targets alone, {len(places)} padded questions each."
)

# %% [markdown]
# The first row is `generate` itself, faults and all; the last is right padding with the mask alone to keep it out.
# Mending the count alone does not help: the first token has to be right as well. So a pipeline that pads on the right
# can be mended where it reads and where it counts, and padding on the left is the simplest way to have both right.
# Training is another matter. Teacher forcing reads every column of text at its own place, padding behind the answer
# comes after all of them, and the causal mask hides it whether or not a mask is given:

# %% tags=["hide-input"]
WHOLE = [
    f"{text} {p.solution()} {words.eos_token}"
    for text, p in zip(PROMPTS, problems, strict=True)
]


@torch.no_grad()
def teacher_forced(side: str, masked: bool) -> float:
    """Loss of the answers in nats per token, prompts and answers padded as a whole."""
    ids, mask = (t.to(run.device) for t in encode(WHOLE, words, side))
    begins = (ids == words.convert_tokens_to_ids("answer:")).cumsum(1)
    begins = begins.bool() & (ids != words.convert_tokens_to_ids("answer:"))
    labels = ids.masked_fill(~(begins & mask.bool()), -100)
    given = {"attention_mask": mask} if masked else {}
    return host(input_ids=ids, labels=labels, **given).loss.item()


Markdown(
    "| padding | loss with the mask | without it |\n|---|--:|--:|\n"
    + "\n".join(
        f"| {side} | {teacher_forced(side, True):.6f} | {teacher_forced(side, False):.6f} |"
        for side in ("right", "left")
    )
    + f"\n\nNats per token of the answers, {len(problems)} problems, target of seed {HOST_SEEDS[0]}."
)

# %% [markdown]
# ### The host decides whether it stops
#
# As the log says of its own, many of these answers are right before they run on. The penalty does not stop them: it
# never touches the end token. What stronger penalties do, and how rare an end the runs could have seen:

# %% tags=["hide-input"]
PENALTIES = (1.0, 1.2, 2.0, 5.0)
with_penalty = {(1.0, s): said[PLAIN, s] for s in SEEDS} | {
    (1.2, s): said[PENALTY, s] for s in SEEDS
}
for theta in PENALTIES[2:]:
    for s in SEEDS:
        with_penalty[theta, s] = say(
            unending["hidden", s], endless[s % 2], repetition_penalty=theta
        )
prompted = {
    theta: [
        by_ids(own.pair.target, padded_ids["left"], repetition_penalty=theta)
        for own in endless
    ]
    for theta in PENALTIES
}
never = sum(ids[-1] == end for s in SEEDS for ids in said[PENALTY, s].ids)
bound = wilson(never, len(SEEDS) * len(problems))
Markdown(
    "| penalty | bridged, strict | bridged, first marker | target alone, given ids, first marker |\n|--:|---|---|---|\n"
    + "\n".join(
        f"| {theta:g} | {over(strict(with_penalty[theta, s]) for s in SEEDS)} |"
        f" {over(with_penalty[theta, s].accuracy for s in SEEDS)} |"
        f" {', '.join(f'{a.accuracy:.3g}' for a in prompted[theta])} |"
        for theta in PENALTIES
    )
    + f"\n\nAccuracies in %, {len(SEEDS)} bridges, and both hosts alone. With the log's penalty {never} of {bound.n} answers"
    f" end, so that at most {100 * bound.high:.2g} % would (Wilson, 95 %, these weights)."
)

# %% [markdown]
# Stronger penalties bring no strict answer either, and they cost right ones, since a correct solution repeats itself:
# the result of one step begins the next, and the last one stands again behind the marker. Given ids, the penalty
# counts the question's numbers as well; the last column shows what that does to a target which is sure of itself.
#
# Control of the end token does gain, and what it gains is bounded by the solutions' lengths:

# %% tags=["hide-input"]
steps = torch.tensor([len(p.steps) for p in problems])
Markdown(
    "| question | share (%) | first marker, forced length | strict at the forced length | strict, end behind the answer |\n"
    "|---|--:|---|---|---|\n"
    + "\n".join(
        f"| {name} | {100 * chosen.float().mean():.0f} |"
        f" {over(share(said[CONTROL, s].right, chosen) for s in SEEDS)} |"
        f" {over(strict(said[CONTROL, s], chosen) for s in SEEDS)} |"
        f" {over(strict(said[RULE, s], chosen) for s in SEEDS)} |"
        for name, chosen in (("one step", steps == 1), ("two steps", steps == 2))
    )
    + "\n\nForced lengths chosen: "
    + ", ".join(f"{n} (seed {s})" for s, n in sorted(lengths.items()))
    + f". Gain in strict accuracy over all questions: {gains[CONTROL]} at the forced length, {gains[RULE]} with the end"
    " placed behind the answer."
)

# %% [markdown]
# One length fits answers of one length. A rule that looks at the text, *nothing but the end behind the number that follows
# the marker*, needs no length and loses no answer, where every number is one token, as here. It is a few lines of a
# `LogitsProcessor`, and it leaves the cause where it was.
#
# Where is the cause? Either the host or the bridge's training answers may lack their end token. So each is given it alone.
# Two further cases leave the bridges and the endless host as they are, but for one row of the host's output matrix, that
# of the end token: it is fitted to solved problems which the host reads itself, or which it hears through the bridge. In
# the quick profile the runs of the first two cases have fewer steps, as all that is asked of them is whether an answer
# ends.

# %%
OTHERS = range(min(size.others, run.seeds))
brief = replace(recipe, fit=replace(fit, steps=size.brief))
cases = {
    "healthy host, end masked": [without_end(own) for own in benches],
    "endless host, answers with their end": endless,
}
settled = {
    name: [
        say(found, group[seed % 2])
        for (_, seed), found in train_arms({"": brief}, OTHERS, group).items()
    ]
    for name, group in cases.items()
}


def taught_to_end(own: Bench, bridge=None, problems: int = 400, steps: int = 400):
    """A copy of the host whose output row of the end token has been fitted to solved problems, all else as it was."""
    model = deepcopy(own.pair.target)
    states, labels = answer_states(model, own.taught, slice(problems), bridge)
    with torch.no_grad():
        logits = model.lm_head(states)
    row = model.lm_head.weight[end].detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([row], lr=0.05)
    column = torch.arange(logits.shape[1], device=logits.device) == end
    for _ in range(steps):
        told = torch.where(column, (states @ row)[:, None], logits)
        loss = cross_entropy(told, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        model.lm_head.weight[end] = row
    return model


settled["endless host, end masked"] = plain
mended = [taught_to_end(own) for own in endless]
settled["the same, row fitted to what the host reads"] = [
    say(unending["hidden", s], endless[s % 2], target=mended[s % 2]) for s in SEEDS
]
THROUGH = "the same, row fitted through the bridge"
settled[THROUGH] = []
for s in SEEDS:
    own, found = endless[s % 2], unending["hidden", s]
    settled[THROUGH].append(
        say(found, own, target=taught_to_end(own, found.bridge))
    )

# %% tags=["hide-input"]
Markdown(
    HEAD
    + "\n".join(stop_row(name, each) for name, each in settled.items())
    + f"\n\nQuestion hidden; mean [95 % interval] over n bridges. The fitted row has {mended[0].config.hidden_size} numbers."
)

# %% [markdown]
# The healthy host stops by itself behind a bridge that was never shown an end. The endless host does not stop behind
# one that was: soft tokens before the text do not reach a logit that the host has learnt to keep down. So here whether
# an answer ends is decided in the host. A few numbers there do most of it, but they have to be fitted where they are
# used: behind the bridge the host's states are not those of its own reading, and a row fitted to its reading ends
# many answers before the number, and some of the right ones too late.
#
# The log's target was an ordinary pretrained model that answers well alone. On this evidence, from small models, a
# masked end token in the training answers of its bridge would not have kept it from stopping. Its loops call for
# another cause; [the chapter on collapse](peak_and_collapse.ipynb) finds one candidate. Nor do the texts here look
# like the log's at first: they run on with further sums, and loops in the strict sense come later and in part of them.
#
# What can be said of the log's 42 % is what the three marks say here: the number depends on where the answer is read, and
# a log has to say which.
#
# ## Tweak it
#
# Force the end at a length. The bars show strict accuracy for questions of one step, of two, and of both together,
# the dotted line the accuracy at the first marker without any control, and below stands what one bridge then says. In
# a live kernel, choose a repetition penalty as well.


# %% tags=["hide-input"]
def frame(length: int, penalty: float) -> tuple[Figure, str]:
    """Strict accuracy at one forced length, and an example."""
    each = [cut(with_penalty[penalty, s], length, problems) for s in SEEDS]
    ceiling = over(with_penalty[penalty, s].accuracy for s in SEEDS).mean
    figure = Figure(figsize=(7.2, 2.6))
    axes = figure.subplots()
    told = []
    for y, (name, chosen) in enumerate(
        (("one step", steps == 1), ("two steps", steps == 2), ("all", slice(None)))
    ):
        value = over(strict(a, chosen) for a in each).mean
        axes.barh(y, value, color=COLOURS["orange" if y < 2 else "blue"])
        told.append(f"{name} {value:.0f} %")
    axes.axvline(ceiling, color="black", linewidth=0.8, linestyle=":")
    axes.set_yticks((0, 1, 2), ("one step", "two steps", "all"))
    axes.invert_yaxis()
    axes.set(
        xlim=(0, 100),
        xlabel="strict accuracy (%)",
        title=f"end forced at token {length}: {told[2].split(' ', 1)[1]}",
    )
    one, two = (int((steps == n).nonzero()[0]) for n in (1, 2))
    texts = [each[0].texts[i] for i in (one, two)]
    figure.supxlabel(
        "\n".join(f"said: {t}" for t in texts), fontsize=9, x=0.02, ha="left"
    )
    return figure, (
        f"Bars of strict accuracy with the end forced at token {length}: {', '.join(told)}. Accuracy at the first marker"
        f" without control: {ceiling:.0f} %. One bridge says '{texts[0]}' and '{texts[1]}'."
    )


explorer = Explorer(
    "length at which the end is forced (tokens)",
    {str(n): n for n in (6, 8, 10, 12, 14, 16, 18, 20)},
    frame,
    choices={"penalty": list(PENALTIES)},
)
explorer

# %% [markdown]
# ## Try it on yours
#
# `padding_shift` takes a function from ids and mask to the logits of the next token, in the way in which your code
# computes them, and a few prompts of different lengths. A shift of rounding size means that the padding is harmless there.

# %%
mine = benches[0].pair.target  # yours
padding_shift(
    lambda ids, mask: mine(input_ids=ids, attention_mask=mask).logits[:, -1],
    few,
    words.pad_token_id,
    "right",
)

# %% [markdown]
# And `degeneration` counts the generations that do not end, given new token ids up to and with the end token:

# %%
degeneration([ids for s in SEEDS for ids in said[PLAIN, s].ids], end, LONGEST)

# %% [markdown]
# ## Provenance

# %% tags=["remove-input"]
run.measure(
    strict_gain_with_end_behind_answer=gains[RULE],
    right_padded_rows_alone=over(
        share(alone[h, "right"].right, short) for h in TARGETS
    ),
    strict_with_one_row_fitted=over(strict(a) for a in settled[THROUGH]),
    strict_healthy_host_end_masked=over(
        strict(a) for a in settled["healthy host, end masked"]
    ),
    strict_endless_host_end_in_answers=over(
        strict(a) for a in settled["endless host, answers with their end"]
    ),
)
run.close()
