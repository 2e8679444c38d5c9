# %% [markdown]
# # Full scale: one language model to another
#
# The third thread as a training of its own: GSM8K's files go in, one language model reads the problems, and a translator
# learns to tell them to another in soft tokens. Give your own files and the names of two models, and the chapter trains
# between them. By default it writes a small set in the same form, with two small models, and runs on that.

# %% tags=["parameters"]
profile = "quick"  # quick | full
device = "auto"  # auto | cpu | cuda | mps
out = ""  # where the record goes, a .json file
train = ""  # your own problems: GSM8K's train.jsonl, or a file like it
test = ""  # and its test.jsonl
source = ""  # the causal language model that reads, a folder or a hub name
target = ""  # the one that answers
config = ""  # named settings; by default the log's first for your data, else small
steps = 0  # 0 takes the settings' own number
run_folder = ""  # where the training is kept; with your own data, give one

# %% tags=["hide-input"]
import tempfile
from argparse import Namespace
from contextlib import suppress
from dataclasses import replace
from functools import partial
from operator import attrgetter
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from bridges.jobs import commands
from bridges.jobs import validation as reports
from bridges.hosts.causal import answer_loss, layer_states, read_logits
from bridges.instruments.checkup import Generative, checkup
from bridges.instruments.uncertainty import wilson
from bridges.tasks import word_problems
from bridges.tasks.gsm8k import last_number
from bridges.jobs.estimate import footprint, size
from bridges.jobs.llm_to_llm import (
    LINES,
    NAMED,
    SMALL_SEED,
    Settings,
    assemble,
    prepare,
    prompt,
    small,
)
from bridges.benches.pretrain import small_solver
from IPython.display import Markdown
from matplotlib.figure import Figure
from press import HOSTS
from press.explorer import Explorer
from press.figures import COLOURS, draw_intervals, use_style
from press.provenance import begin, refusing
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

SIZES = {
    "quick": Namespace(steps=240, every=60, seeds=1),
    "full": Namespace(steps=800, every=100, seeds=1),
}
asked = {"profile": profile, "seeds": 1, "device": device, "out": out}
run = begin("llm_to_llm", SIZES, **asked, least=1)
torch.set_num_threads(1)
disable_progress_bar()
set_verbosity_error()
use_style()
scratch = tempfile.TemporaryDirectory()  # removed with the kernel
here = Path(scratch.name)
with refusing():
    if config not in ("", *NAMED):
        raise ValueError(f"no config {config!r}; choose from {', '.join(NAMED)}")
    if train and not run_folder:
        raise ValueError("a training of yours is to stay: give run_folder")
    files = {"train": train, "test": test}
    given = {name: str(Path(f).resolve()) for name, f in files.items() if f}
    hosts = {"source": source, "target": target}
    given |= {role: name for role, name in hosts.items() if name}
    given |= {"steps": steps} if steps else {}
    typed = Namespace(thread="llm-to-llm", config=config or None, **given)
    settings = commands.settings(typed)
    if not train:  # the small set
        for role in hosts if run.profile == "full" else ():
            if role not in given:
                given[role] = str(here / role)
                larger = small_solver(role, SMALL_SEED, "full", HOSTS, run.device)
                larger.save_pretrained(given[role])
                word_problems.tokenizer(role).save_pretrained(given[role])
        own = replace(settings, steps=run.size.steps, every=run.size.every)
        settings = replace(small(here / "data", HOSTS, own), **given)
    folder = Path(run_folder).resolve() if run_folder else here / "run"
    job = prepare(settings, folder, run.device)

# %% [markdown]
# ## What goes in
#
# GSM8K's own form {cite}`cobbe2021gsm8k`: JSON lines with the keys `question` and `answer`, and in every answer a worked
# solution that ends in `####` and a number. The first lines of this run's files, and its models:

# %%
for line in Path(settings.train).read_text(encoding="utf-8-sig").split("\n")[:2]:
    print(line)
print(
    f"\n{len(job.known):,} problems to train on, {len(job.held_out)} held out,"
    f" {len(job.test)} of the test file for the report"
)
for role in ("source", "target"):
    model = getattr(job.pair, role)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{role}: {model.config.model_type}, {parameters:,} parameters")

# %% [markdown]
# A faulty line is named with its number. A model is a folder or a name on the Hugging Face hub with its tokenizer; Llama's
# licence has to be accepted there first, and the hub's token be at hand. On a GPU both are read in bfloat16, and both have
# to fit on it: no model is divided among GPUs here.
#
# ## The log's settings
#
# The four settings of the log's sweep after its fixes, and `small`. Bold is what the log gives, the rest is this book's
# choice where the log says nothing. Without data of your own the profile sets the steps.

# %% tags=["remove-input"]
FROM_LOG = "learning_rate warmup_steps steps every gate_rate scale kl_weight"
FROM_LOG += " kl_positions translator.bottleneck translator.tokens translator.depth"
FROM_LOG += " translator.heads translator.dropout schedule"
OTHERS = "batch_size source_layer visible longest held_out asked"
rows = []
for name in FROM_LOG.split() + OTHERS.split():
    cells = {n: f"{attrgetter(name)(named)}" for n, named in NAMED.items()}
    bold = "**" if name in FROM_LOG.split() else ""
    own = [v if n == "small" else f"{bold}{v}{bold}" for n, v in cells.items()]
    rows.append(f"| {name.replace('_', ' ')} | {' | '.join(own)} |")
head = f"| setting | {' | '.join(NAMED)} |\n|---|{'---|' * len(NAMED)}\n"
Markdown(head + "\n".join(rows))

# %% [markdown]
# The log shows no command line. This book's, which asks for the log's *efficient* settings and nothing else (checked):

# %% tags=["remove-input"]
OURS = """train llm-to-llm --out runs/efficient --train train.jsonl --test test.jsonl
    --source mistralai/Mistral-7B-v0.3 --target meta-llama/Llama-3.1-8B --config efficient"""
asked = commands.settings(commands.parser().parse_args(OURS.split()))
assert replace(asked, train="", test="") == NAMED["efficient"]
told = OURS.replace("\n", " \\\n")
Markdown(f"```\n.venv/bin/python -m bridges {told}\n```")

# %% [markdown]
# What is different:
#
# - **The models' releases** are a guess: the log says *Mistral-7B* and *Llama-3.1-8B*.
# - **AdamW's betas** are torch's 0.9 and 0.999, where the log has 0.9 and 0.98.
# - **The KL penalty** is the log's, which compares positions that foretell different things;
#   [its chapter](kl_anchor.ipynb) shows what that means. `--kl-weight 0` leaves it out.
# - **The question** is visible to the target behind the soft tokens, as in the log's code. The small set hides it, so that
#   nothing but the bridge can tell it; `--no-visible` does this for any data.
# - **Two lines more in the report**, which `python -m bridges validate llm-to-llm --out runs/efficient` writes: the source
#   alone, and the bridge handed another problem's states.
#
# ## Before it starts: memory and time
#
# The estimate counts tensors from shapes alone, for the batch of the longest texts there are, and times a few steps. What a
# driver and an allocator take is not in it.

# %%
print(job.estimate())

# %% [markdown]
# The log's own size, from the two models' published configurations in bfloat16: the smallest and the largest of its
# translators, in batches of 16 with questions of 128 tokens and solutions of 256, without the KL penalty. Nothing is
# allocated or downloaded.

# %%
MISTRAL = MistralConfig()  # its defaults are the 7B's
LLAMA = LlamaConfig(  # 32 layers of width 4,096 with 32 heads by default
    vocab_size=128256, intermediate_size=14336, num_key_value_heads=8
)
ASKED, ANSWERED = 128, 256  # tokens


def at_log_size(named: Settings) -> tuple:
    """The log's models and translator, and the loss of a batch."""
    made = partial(AutoModelForCausalLM.from_config, dtype=torch.bfloat16)
    reads, says = (made(own).requires_grad_(False) for own in (MISTRAL, LLAMA))
    bridge = assemble(named, reads, says, rms=1.0)
    read = torch.ones(named.batch_size, ASKED + ANSWERED, dtype=torch.long)
    asked, answers = read[:, :ASKED].clone(), read[:, ASKED:].clone()

    def loss() -> torch.Tensor:
        states = layer_states(reads, asked, asked, named.source_layer)
        soft = bridge(states[None], asked)
        return answer_loss(read_logits(says, soft, read, read), answers)

    return torch.nn.ModuleList([bridge, reads, says]), loss


ENDS = "efficient", "high capacity"
large = {name: footprint(partial(at_log_size, NAMED[name])) for name in ENDS}
Markdown(
    "| | trained parameters | frozen weights | trained, with gradients and optimizer |"
    " activations | peak |\n|---|--:|--:|--:|--:|--:|\n"
    + "\n".join(
        f"| {name} | {f.trained_parameters:,} | {size(f.frozen)} |"
        f" {size(f.trained + f.gradients + f.optimizer)} | {size(f.activations)} | {size(f.peak)} |"
        for name, f in large.items()
    )
)

# %% [markdown]
# The activations grow with the batch and with the texts, the rest does not: a smaller `--batch-size` fits a smaller GPU.
# Time depends on the machine: the log says about three hours for its four settings.
#
# ## Train

# %%
history = job.train()
print(f"{len(history.losses)} steps, best validation after {history.best}")

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Training loss of every step, with the penalty where there is one, and validation loss on the held-out problems without it. Dotted: the validation loss of the kept weights when every problem is told by another problem's states. One bridge (n = 1); the legend gives the number of problems.", "name": "fig-llm-curve"}, "image": {"alt": "Loss in nats per token against the training step. The training loss falls from above two towards zero, and the validation loss runs along with it. The dotted line of exchanged states lies far above the end of both."}}
# Each problem, and the one whose states tell it instead
others = dict(zip(job.held_out, [*job.held_out[1:], job.held_out[0]], strict=True))
told = job.soft
job.soft = lambda questions: told([others[q] for q in questions])
without = job.validate()
job.soft = told
gap = without - job.validate()
figure, axes = plt.subplots()
done = range(1, len(history.losses) + 1)
axes.plot(done, history.losses, "-", color=COLOURS["sky"], lw=0.9, label="training")
name = f"validation, {len(job.held_out)} problems"
looks = list(history.validation), list(history.validation.values())
axes.plot(*looks, "o-", color=COLOURS["orange"], label=name)
axes.axhline(without, color="black", linewidth=0.9, linestyle=":")
axes.text(done[-1], 1.02 * without, "states exchanged", ha="right", va="bottom")
axes.set(xlabel="training step", ylabel="loss (nats per token)", ylim=(0, None))
axes.legend()
plt.show()

# %% [markdown]
# `job.train()` leaves the translator with the weights of the best validation *loss*. The log's accuracy peaks and falls;
# [staying at the peak](staying_at_the_peak.ipynb) is about choosing a checkpoint otherwise.
#
# ## The report

# %%
report = reports.llm_to_llm(job)
report

# %% tags=["remove-input"]
lines = {line: report.data["lines"][line]["last"] for line in LINES}
bridged, other = lines["bridged"], lines["shuffled source"]
Markdown(
    f"Percent right with 95 % Wilson intervals over {bridged['n']} questions, for the one bridge there is; another training"
    " would land elsewhere. *Shuffled source* hands the bridge another problem's states: what is right there is not"
    f" owed to the problem's own states. By the last number the bridge is {'above' if bridged['low'] > other['high'] else 'not clearly above'}"
    f" it, and {'below' if bridged['high'] < lines['target alone']['low'] else 'not clearly below'} the target that reads the"
    " problem itself."
)

# %% [markdown]
# *Marked* takes the number behind the first `####`, *last number* whatever number comes last; they part where answers do
# not end ([padding, loops and stopping](padding_and_stopping.ipynb)).
#
# ## Check it up
#
# The same parts, given to [the check-up](the_checkup.ipynb): the source's states with their mask, the translator, and
# the target's loss as a function of the soft tokens.

# %%
some = job.held_out[:128]
words = job.pair.source_words
asked = word_problems.encode([prompt(q.question, words) for q in some], words)
ids, there = (part.to(run.device) for part in asked)
states = layer_states(job.pair.source, ids, there, settings.source_layer)
read, mask, answers = job.read(some)
found = checkup(
    Generative(
        lambda states, mask: job.module(states[None], mask),
        (states, there),
        lambda soft, rows: answer_loss(
            read_logits(job.pair.target, soft, read[rows], mask[rows]),
            answers[rows],
        ),
        labels=answers,
        embeddings=job.pair.target.get_input_embeddings().weight,
        module=job.module,
        losses=history.losses,
        said=report.data["lines"]["bridged"]["answers"],
        wanted=[q.solution for q in job.test],
    )
)
found

# %% [markdown]
# ## Killed, and called again
#
# A training goes on from its last checkpoint when it is called again with the same folder, settings and data. Here one run
# of six steps goes through, and another is broken off after its first checkpoint and called again. With data of your own
# the cell is passed over: it would load the models three times.

# %%
brief = replace(settings, steps=6, every=3)
difference = None
if not train:
    through = prepare(brief, here / "through", run.device).train()
    broken = prepare(brief, here / "broken", run.device)
    whole = broken.batch_loss

    def ended(rows: torch.Tensor) -> torch.Tensor:
        """The loss, until the process is ended."""
        if broken.step == 4:
            raise KeyboardInterrupt
        return whole(rows)

    broken.batch_loss = ended
    with suppress(KeyboardInterrupt):
        broken.train()
    print(f"broken off in step {broken.step + 1} of {broken.fit.steps}")
    again = prepare(brief, here / "broken", run.device).train()
    both = zip(through.losses, again.losses, strict=True)
    difference = max(abs(a - b) for a, b in both)
    print(f"largest difference of {len(again.losses)} losses: {difference:.3g}")

# %% [markdown]
# ## On more than one machine
#
# With `.venv/bin/accelerate launch --num_processes 4 -m bridges` in place of `.venv/bin/python -m bridges`, the command above
# runs in four processes. Each holds both models and takes its share of every batch: the losses are those of one process
# with the whole batch.
# [How to read, re-execute and tweak](../book/how_to_read.md) has the lines for a Slurm job and for two CPUs.
#
# ## Does it hold?

# %% tags=["nbval-check-output", "keep_output", "remove-input"]
apart = bridged["low"] > other["high"]
print(f"bridged above another problem's states: {'yes' if apart else 'no'}")
print(f"loss lower with a problem's own states: {'yes' if gap > 0.1 else 'no'}")
if difference is not None:
    print(f"resumed to the same losses: {'yes' if difference < 1e-5 else 'no'}")
print(f"check-up: {found.headline}")

# %% [markdown]
# ## Tweak it
#
# How many questions does a comparison take? Move the slider to ask more of them; beside each line stands what it says to
# the last of those asked. Answers are read by their last number.

# %% tags=["hide-input"]
COUNTS = sorted({max(1, round(len(job.test) * part / 10)) for part in range(1, 11)})


def frame(count: int) -> tuple[Figure, str]:
    """The four lines over the first questions, and what is said to the last of these."""
    figure = Figure(figsize=(7.2, 3.2))
    axes = figure.subplots()
    question, heard = job.test[count - 1], []
    for y, line in enumerate(LINES):
        said = report.data["lines"][line]["answers"][:count]
        known = zip(said, job.test[:count], strict=True)
        right = [last_number(text) == q.answer for text, q in known]
        share = wilson(sum(right), count)
        look = {"color": COLOURS["orange" if line == "bridged" else "blue"]}
        draw_intervals(axes, [y], [share], flat=True, fmt="o", capsize=3, **look)
        last = " ".join(said[-1].split())[-48:]
        verdict = f"{last}\n({'right' if right[-1] else 'wrong'})"
        axes.text(1.04, y, verdict, va="center", fontsize=8.5)
        heard.append(f"{line} {share}, says '{last}'")
    axes.set_yticks(range(len(LINES)), LINES)
    axes.set_xticks((0, 0.25, 0.5, 0.75, 1))
    axes.set(ylim=(len(LINES) - 0.5, -0.5), xlim=(0, 1.75))
    axes.set_xlabel(f"share right (of 1), {count} questions")
    axes.set_title(" ".join(question.question.split())[:100], fontsize=9.5)
    return figure, (
        f"Shares right (of 1) of {count} questions with 95 % Wilson intervals. {'; '.join(heard)}."
        f" The last question: '{question.question.strip()}'. Right: {question.answer}."
    )


Explorer("questions asked", {str(count): count for count in COUNTS}, frame)

# %% [markdown]
# ## Provenance

# %% tags=["remove-input"]
if train:
    run.given |= {"train": Path(train).name, "source": settings.source}
    run.given |= {"target": settings.target}
run.measure(
    **{f"right {line}": lines[line]["mean"] for line in LINES},
    questions=bridged["n"],
    gap=gap,
    validation=job.validate(),
    **{f"log_peak_bytes {name}": f.peak for name, f in large.items()},
)
if difference is not None:
    run.measure(resume_difference=difference)
run.close()
