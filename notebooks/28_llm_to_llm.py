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
from functools import partial
from pathlib import Path

import torch
from bridges.benches.pretrain import small_solver
from bridges.connectors.scale import embedding_table
from bridges.hosts.causal import answer_loss, layer_states, read_logits
from bridges.instruments.checkup import Generative, checkup
from bridges.instruments.uncertainty import wilson
from bridges.jobs import validation
from bridges.jobs.estimate import footprint, size
from bridges.jobs.llm_to_llm import LINES, NAMED, SMALL_SEED, THREAD, Settings, assemble, prompt
from bridges.tasks import word_problems
from bridges.tasks.gsm8k import last_number
from press.book import BLUE, HOSTS, ORANGE, Markdown, begin, dots, explore, figure, plt, table
from press.jobs import answered, command, losses, ready, settings_table
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig

sizes = {"steps": (240, 800), "every": (60, 100)}
run = begin("llm_to_llm", globals() | {"seeds": 1}, least=1, hosts=("source-2", "target-2"), seeds=1, **sizes)


def larger(role: str, folder: Path) -> None:
    """One of the full profile's models, with its tokenizer."""
    small_solver(role, SMALL_SEED, "full", HOSTS, run.device).save_pretrained(folder)
    word_problems.tokenizer(role).save_pretrained(folder)


training = ready(THREAD, run, globals(), {role: partial(larger, role) for role in ("source", "target")})
job, settings = training.job, training.job.settings

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
for role, model in (("source", job.pair.source), ("target", job.pair.target)):
    print(f"{role}: {model.config.model_type}, {sum(p.numel() for p in model.parameters()):,} parameters")

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
FROM_LOG = """learning_rate warmup_steps steps every gate_rate scale kl_weight kl_positions translator.bottleneck
    translator.tokens translator.depth translator.heads translator.dropout schedule"""
settings_table(NAMED, FROM_LOG, "batch_size source_layer visible longest held_out asked")

# %% [markdown]
# The log shows no command line. This book's, which asks for the log's *efficient* settings and nothing else (checked):

# %% tags=["remove-input"]
OURS = """train llm-to-llm --out runs/efficient --train train.jsonl --test test.jsonl
    --source mistralai/Mistral-7B-v0.3 --target meta-llama/Llama-3.1-8B --config efficient"""
command(OURS, NAMED["efficient"])

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
MISTRAL = MistralConfig()  # its defaults are the 7B's; Llama's are 32 layers of width 4,096 with 32 heads
LLAMA = LlamaConfig(vocab_size=128256, intermediate_size=14336, num_key_value_heads=8)
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
taken = [(f.frozen, f.trained + f.gradients + f.optimizer, f.activations, f.peak) for f in large.values()]
table(
    " | trained parameters | frozen weights | trained, with gradients and optimizer | activations | peak",
    ((name, large[name].trained_parameters, *map(size, row)) for name, row in zip(ENDS, taken, strict=True)),
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
losses(figure(height=3.6), history, f"{len(job.held_out)} problems", {"states exchanged": without})
plt.show()

# %% [markdown]
# `job.train()` leaves the translator with the weights of the best validation *loss*. The log's accuracy peaks and falls;
# [staying at the peak](staying_at_the_peak.ipynb) is about choosing a checkpoint otherwise.
#
# ## The report

# %%
report = validation.llm_to_llm(job)
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
        lambda soft, rows: answer_loss(read_logits(job.pair.target, soft, read[rows], mask[rows]), answers[rows]),
        labels=answers,
        embeddings=embedding_table(job.pair.target),
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
difference = training.resumed(steps=6, every=3)

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
checks = {
    "bridged above another problem's states": bridged["low"] > other["high"],
    "loss lower with a problem's own states": gap > 0.1,
}
print(answered(checks, difference, found))

# %% [markdown]
# ## Tweak it
#
# How many questions does a comparison take? Move the slider to ask more of them; beside each line stands what it says to
# the last of those asked. Answers are read by their last number.

# %% tags=["hide-input"]
COUNTS = sorted({max(1, round(len(job.test) * part / 10)) for part in range(1, 11)})


def frame(axes, count: int) -> str:
    """The four lines over the first questions, and what is said to the last of these."""
    question, shares, heard = job.test[count - 1], {}, []
    for y, line in enumerate(LINES):
        said = report.data["lines"][line]["answers"][:count]
        right = [last_number(text) == q.answer for text, q in zip(said, job.test[:count], strict=True)]
        shares[line] = wilson(sum(right), count)
        last = " ".join(said[-1].split())[-48:]
        axes.text(1.04, y, f"{last}\n({'right' if right[-1] else 'wrong'})", va="center", fontsize=8.5)
        heard.append(f"{line} {shares[line]}, says '{last}'")
    dots(axes, shares, colour=dict.fromkeys(LINES, BLUE) | {"bridged": ORANGE}, xlim=(0, 1.75))
    axes.set_xticks((0, 0.25, 0.5, 0.75, 1))
    axes.set_xlabel(f"share right (of 1), {count} questions")
    axes.set_title(" ".join(question.question.split())[:100], fontsize=9.5)
    return (
        f"Shares right (of 1) of {count} questions with 95 % Wilson intervals. {'; '.join(heard)}."
        f" The last question: '{question.question.strip()}'. Right: {question.answer}."
    )


explore("questions asked", {str(count): count for count in COUNTS}, frame, height=3.2)

# %% [markdown]
# ## Provenance

# %% tags=["remove-input"]
if train:
    run.given |= {"train": Path(train).name, "source": settings.source, "target": settings.target}
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
