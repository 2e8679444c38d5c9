# %% [markdown]
# # Full scale: a vector into T5
#
# The first thread as a training of its own: a folder of vectors and a manifest of sentences go in, a connector and a
# report come out. Give your own files and a host, and the chapter reads, trains and judges with them. By default it
# writes a small set in the same format and runs on that.

# %% tags=["parameters"]
profile = "quick"  # quick | full
device = "auto"  # auto | cpu | cuda | mps
out = ""  # where the record goes, a .json file
features = ""  # your own vectors: a folder with ID.npy for each clip
manifest = ""  # their sentences: a file of lines ID, tab, sentence
val_features = ""  # the same for validation; else a tenth is held out
val_manifest = ""
host = ""  # an encoder-decoder, a folder or a hub name
config = ""  # named settings; by default the log's for your data, else small
epochs = 0  # 0 takes the settings' own number
run_folder = ""  # where the training is kept; with your own data, give one

# %% tags=["hide-input"]
from pathlib import Path

import numpy as np
import torch
from bridges.benches.pretrain import small_host
from bridges.connectors.scale import embedding_table
from bridges.hosts.seq2seq import route_inputs
from bridges.instruments.checkup import Generative, checkup
from bridges.instruments.conditioning import conditioning_gap
from bridges.jobs import validation
from bridges.jobs.estimate import footprint
from bridges.jobs.vector_to_text import NAMED, THREAD, assemble
from bridges.tasks import instructions
from press.book import BLUE, HOSTS, ORANGE, Markdown, begin, explore, figure, plt
from press.jobs import answered, command, losses, ready, settings_table
from transformers import T5Config, T5ForConditionalGeneration

run = begin("vector_to_text", globals() | {"seeds": 1}, least=1, hosts=("t5-0",), seeds=1, epochs=(2, 12))


def larger(folder: Path) -> None:
    """The full profile's host, with its tokenizer."""
    small_host("t5", "full", HOSTS, run.device).save_pretrained(folder)
    instructions.tokenizer().save_pretrained(folder)


training = ready(THREAD, run, globals(), {"host": larger})
job, settings = training.job, training.job.settings

# %% [markdown]
# ## What goes in
#
# A *clip* is whatever one vector stands for: a video, a sentence, an image. The vectors are made beforehand by a frozen
# encoder, one file `ID.npy` for each clip, with as many numbers in every file. The manifest is UTF-8 text with a line for
# each clip: its id, a tab, its sentence. Validation takes a second folder and manifest; without them a tenth of the clips
# is held out. This run's files:

# %%
for line in Path(settings.manifest).read_text(encoding="utf-8-sig").split("\n")[:4]:
    print(line)
first = np.load(Path(settings.features, f"{job.clips.ids[0]}.npy"))
print(f"\n{job.clips.ids[0]}.npy: {first.dtype}, shape {first.shape}")
print(f"{len(job.clips):,} clips to train on, {len(job.held_out):,} held out")

# %% [markdown]
# Missing or unfit vectors and faulty lines are all named at once, before anything is trained. The host is a folder or a
# name on the Hugging Face hub that holds an encoder-decoder and its tokenizer.
#
# ## The log's settings
#
# `resampler-log` is what the log trained with a frozen sentence encoder. `encoder-log` is its later version, which runs
# T5's encoder by hand; [the encoder bypass](encoder_bypass.ipynb) shows that the two compute the same. Bold is what
# the log gives, the rest is this book's choice where the log says nothing. Without data of your own the profile sets the
# epochs.

# %% tags=["remove-input"]
FROM_LOG = """batch_size learning_rate warmup_steps epochs host route
    connector.width connector.feed_forward connector.latents connector.depth connector.heads"""
settings_table(NAMED, FROM_LOG, "schedule standardise longest held_out", {("host", "small"): "one made here"})

# %% [markdown]
# The log's command line for the frozen encoder:
#
# ```
# python train_sonar_with_t5.py --sonar_checkpoint checkpoints/sonar_encoder_finetuned/best_encoder.pt \
#     --train_features features/train --train_manifest manifests/train.tsv \
#     --val_features features/val --val_manifest manifests/val.tsv \
#     --output_dir checkpoints/sonar_t5_perceiver_frozen --t5_model t5-small --freeze_encoder \
#     --epochs 30 --batch_size 16 --learning_rate 5e-5 --warmup_steps 500 --device cuda
# ```
#
# This book's, which asks for `resampler-log` and nothing else (checked):

# %% tags=["remove-input"]
OURS = """train vector-to-text --out runs/t5 --features features/train
    --manifest manifests/train.tsv --val-features features/val --val-manifest manifests/val.tsv
    --host t5-small --freeze-encoder --epochs 30 --batch-size 16 --learning-rate 5e-5
    --warmup-steps 500 --device cuda"""
command(OURS, NAMED["resampler-log"])

# %% [markdown]
# What is different:
#
# - **The sentence encoder stays outside.** The vectors are made once and read from disk, so it is frozen, whether
#   `--freeze-encoder` is given or not. The log's second run, which trains that encoder too, needs the videos and the
#   encoder in one graph; [Part I](rates.ipynb) does this at a small scale.
# - **A report with floors.** `python -m bridges validate vector-to-text --out runs/t5` stands for the log's
#   `validate_perceiver_model.py` and adds BLEU's floors, its interval and the conditioning gap (below). `python -m bridges
#   curves runs/t5` stands for `plot_training_curves.py`.
#
# Connector and T5 are trained together at one rate, as in the log.
#
# ## Before it starts: memory and time
#
# The estimate, printed before every training, counts tensors from shapes alone and times a few steps. What a driver and
# an allocator take beside tensors is not in it.

# %%
print(job.estimate())

# %% [markdown]
# The log's own size: `t5-small` from its published configuration, vectors of width 1,024, and the longest sentences that
# the settings allow. Nothing is allocated or downloaded.


# %%
def at_log_size() -> tuple:
    """The log's module, and the loss of a batch."""
    named = NAMED["resampler-log"]
    t5_small = T5ForConditionalGeneration(T5Config(decoder_start_token_id=0))
    module = assemble(named, t5_small, 1024)
    vectors = torch.zeros(named.batch_size, 1024)
    labels = torch.ones(named.batch_size, named.longest, dtype=torch.long)
    return module, lambda: module(vectors, labels)


large = footprint(at_log_size)
large

# %% [markdown]
# Time depends on the machine: the log says six to eight hours for its 30 epochs on one T4.
#
# ## Train

# %%
history = job.train()
print(f"{len(history.losses)} steps, best validation after {history.best}")

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Training loss of every step, and validation loss on the held-out clips. Dotted: the validation loss of the kept weights when every clip gets another clip's vector; how far it lies above their own validation loss is the conditioning gap. One bridge (n = 1); the legend gives the number of clips.", "name": "fig-v2t-curve"}, "image": {"alt": "Loss in nats per token against the training step. The training loss falls steeply at first, then slowly. The validation loss, taken without dropout, lies a little below it and well below the dotted line of exchanged vectors."}}
labels = job.encode(job.held_out.sentences)
gap = conditioning_gap(lambda v: job.loss(v, labels), job.held_out.vectors)
without = job.validate() + gap
losses(figure(height=3.6), history, f"{len(job.held_out)} clips", {"vectors exchanged": without})
plt.show()

# %% [markdown]
# `job.train()` leaves the module with the weights of the best validation. The run's folder holds the settings, a log with
# a line for each step, and the last and the best checkpoint.
#
# ## The report

# %%
report = validation.vector_to_text(job)
report

# %% tags=["remove-input"]
floor, (low, high) = report.data["floors"], report.data["interval"]
bleu = report.data["scores"]["bleu"]
nothing, nearest = max(floor["constant"], floor["random"]), floor["retrieval"]
beside = "above" if low > nearest else "below" if high < nearest else "around"
Markdown(
    f"BLEU's interval is a 95 % bootstrap over the {len(job.held_out)} held-out sentences, for the one bridge there is;"
    f" another training would land elsewhere. BLEU lies {'above' if low > nothing else 'not clearly above'} what can be"
    f" had without looking at the vector ({nothing:.1f}), and {beside} what the known clip with the nearest vector gives"
    f" ({nearest:.1f}). The log's bands were made for its own corpus and say nothing about another; the floors do."
)

# %% [markdown]
# The constant floor is the best of a few sentences said to every clip, the random one a known sentence drawn for each,
# retrieval the sentence of the nearest known vector. A translator below retrieval has not yet been worth its training.
# [Judging a translator](judging.ipynb) takes every row apart.
#
# ## Check it up
#
# The same parts, given to [the check-up](the_checkup.ipynb): connector, vectors, and the host's loss as a function of
# the connector's tokens. It looks for faults; how good the bridge is, it does not say.

# %%
some = slice(400)  # a few hundred held-out clips are enough
ids, t5 = labels[some].to(run.device), job.module.host
found = checkup(
    Generative(
        job.module.connector,
        job.held_out.vectors[some].to(run.device),
        lambda tokens, rows: t5(**route_inputs(t5, tokens, settings.route), labels=ids[rows]).loss,
        labels=ids,
        embeddings=embedding_table(t5),
        losses=history.losses,
        said=[pair["translation"] for pair in report.data["translations"][some]],
        wanted=job.held_out.sentences[some],
    )
)
found

# %% [markdown]
# ## Killed, and called again
#
# A training goes on from its last checkpoint when it is called again with the same folder, settings and data; with others
# it is refused in one line. Here one short run goes through, and another is broken off after its first checkpoint and
# called again. With data of your own the cell is passed over.

# %%
brief = {"features": settings.val_features, "manifest": settings.val_manifest}
difference = training.resumed(**brief, epochs=1, every=3)

# %% [markdown]
# ## On more than one machine
#
# The command line runs under `accelerate launch` as it is. The batch is divided among the processes, and the losses are
# those of one process with the whole batch:
#
# ```
# .venv/bin/accelerate launch --num_processes 4 -m bridges train vector-to-text --out runs/t5 \
#     --features features/train --manifest manifests/train.tsv --host t5-small
# ```
#
# [How to read, re-execute and tweak](../book/how_to_read.md) says how to start it within a Slurm job, and on two CPUs.
#
# ## Does it hold?

# %% tags=["nbval-check-output", "keep_output", "remove-input"]
checks = {"BLEU above the floors of saying nothing": low > nothing, "loss lower with a clip's own vector": gap > 0.1}
print(answered(checks, difference, found))

# %% [markdown]
# ## Tweak it
#
# The first held-out clip's vector, mixed with that of the clip whose sentence shares the fewest words with its own: the
# losses of both sentences, and above them what the bridge says. In a live kernel, set `START` to another clip.

# %% tags=["hide-input"]
START, SHARES = 0, range(0, 101, 10)  # the first clip; percent
words = [set(sentence.split()) for sentence in job.held_out.sentences]
pair = [START, min(range(len(words)), key=lambda j: len(words[START] & words[j]))]
one, other = job.held_out.vectors[pair]
mixed = torch.stack([((100 - s) * one + s * other) / 100 for s in SHARES])
along = [[job.loss(v[None], labels[r : r + 1]) for v in mixed] for r in pair]
first, second = (job.held_out.sentences[row] for row in pair)
said = job.translate(mixed)


def frame(axes, position: int) -> str:
    """The losses of both sentences, with one mixture marked."""
    for name, own, style, colour in (("first", along[0], "-", BLUE), ("second", along[1], "--", ORANGE)):
        axes.plot(SHARES, own, style, color=colour, label=f"{name} sentence")
        axes.plot(SHARES[position], own[position], "o", color=colour, ms=8)
    axes.set(xlabel="share of the second clip's vector (%)", ylabel="loss (nats per token)", ylim=(0, None))
    axes.figure.legend(loc="outside lower center", ncols=2)
    spoken = {"first": first, "second": second, "said": said[position]}
    told = [f"{name}: {line[:90]}" for name, line in spoken.items()]
    axes.set_title("\n".join(told), fontsize=9.5)
    return (
        f"Losses of both sentences against the share of the second clip's vector; at {SHARES[position]} %:"
        f" {' and '.join(f'{own[position]:.2f}' for own in along)} nats per token. {'. '.join(told)}."
    )


positions = {str(share): i for i, share in enumerate(SHARES)}
explore("share of the second clip's vector (%)", positions, frame, height=3.8)

# %% [markdown]
# The next chapter does the same for [image–text pairs](image_text.ipynb).
#
# ## Provenance

# %% tags=["remove-input"]
if features:
    run.given |= {"features": Path(features).name, "host": settings.host}
run.measure(bleu=bleu, bleu_low=low, bleu_high=high, **{f"floor_{k}": floor[k] for k in ("constant", "retrieval")})
run.measure(gap=gap, validation=job.validate(), log_peak_bytes=large.peak)
if difference is not None:
    run.measure(resume_difference=difference)
run.close()
