# %% [markdown]
# # Full scale: images and captions in one space
#
# The second thread as a training of its own: images and captions go in, frozen towers read them, and a bridge brings both
# into one space of which every Matryoshka prefix serves on its own. Give your own folder and a CLIP, and the chapter trains
# on them. By default it writes a small set in the same format, with a small CLIP, and runs on that.

# %% tags=["parameters"]
profile = "quick"  # quick | full
device = "auto"  # auto | cpu | cuda | mps
out = ""  # where the record goes, a .json file
pairs = ""  # your own: a folder with captions.tsv and images, or with features
clip = ""  # the CLIP that reads the images, a folder or a hub name
text = ""  # a sentence encoder for the captions; else CLIP's own text tower
config = ""  # named settings; by default the log's perceiver for your data, else small
epochs = 0  # 0 takes the settings' own number
run_folder = ""  # where the training is kept; with your own data, give one

# %% tags=["hide-input"]
from functools import partial
from pathlib import Path

import torch
from bridges.hosts.contrastive import ContrastiveBridge
from bridges.instruments.chance import mean_chance_loss
from bridges.instruments.checkup import Contrastive, checkup
from bridges.instruments.retrieval import recall
from bridges.instruments.uncertainty import Estimate, wilson
from bridges.jobs import validation
from bridges.jobs.estimate import footprint, size
from bridges.jobs.image_text import NAMED, THREAD, Settings, shape
from bridges.tasks.pairs import CAPTIONS
from bridges.training.losses import CLIP_WEIGHT, MRL_WEIGHT, alignment_loss
from press.book import BLUE, GREEN, ORANGE, Markdown, begin, explore, figure, plt, table
from press.figures import draw_intervals
from press.jobs import answered, command, losses, ready, settings_table
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPModel

run = begin("image_text", globals() | {"seeds": 1}, least=1, seeds=1, epochs=(12, 40))
training = ready(THREAD, run, globals())
job, settings = training.job, training.job.settings

# %% [markdown]
# ## What goes in
#
# A folder with images and `captions.tsv`, UTF-8 text with a line for each image: its file name, a tab, its caption. Or a
# folder with `features.safetensors`, which holds the tensors `patches` (pairs, patches, width) and `text` (pairs, width) as
# other towers made them; then no CLIP is loaded. The first of this run's:

# %%
first = job.seen.rows(torch.tensor([0]))
print(f"patches of an image: {tuple(first.patches.shape[1:])}")
print(f"text vector of a caption: {tuple(first.text.shape[1:])}")
print(f"{len(job.known):,} pairs to train on, {len(job.held_out):,} held out")
captions = Path(settings.pairs, CAPTIONS)
if captions.is_file():
    for line in captions.read_text(encoding="utf-8-sig").split("\n")[:3]:
        print(line)

# %% [markdown]
# Files that cannot be read and faulty lines are named with their numbers. The small set's images hold three coloured
# shapes each; its CLIP is built from a configuration and untrained, so its features are fixed random functions of image
# and caption.
#
# ## The log's settings
#
# Its two models, the one that was stuck and the one that worked, and `small`. Bold is what the log gives, the rest is this
# book's choice where the log says nothing. Without data of your own the profile sets the epochs.

# %% tags=["remove-input"]
FROM_LOG = """batch_size learning_rate epochs clip text connector pooling width
    resampler.width resampler.latents resampler.depth resampler.latent_std"""
OTHERS = "prefixes warmup_steps schedule held_out resampler.heads"
resampler = [name for name in f"{FROM_LOG} {OTHERS}".split() if name.startswith("resampler.")]
plain = {(name, "alignment-log direct"): "–" for name in resampler}  # the direct projector has none
plain["clip", "small"] = "one made here"
settings_table(NAMED, FROM_LOG, OTHERS, plain, empty="CLIP's own tower")

# %% [markdown]
# The log shows no command line. This book's, which asks for the log's working model and nothing else (checked):

# %% tags=["remove-input"]
OURS = """train image-text --out runs/direct --pairs pairs --config 'alignment-log direct'
    --clip openai/clip-vit-large-patch14-336 --text sentence-transformers/all-mpnet-base-v2"""
command(OURS, NAMED["alignment-log direct"])

# %% [markdown]
# What is different:
#
# - **The towers stand outside.** Each image goes through CLIP once, before the first step, and its features are kept in the
#   run's folder. Where all of them take more than 16 GiB, each batch's images are encoded as it is drawn.
# - **Matryoshka prefixes** are the halves of the width, down to 256: the log says that it samples one in each batch, and not
#   from which.
# - **The loss is the log's**, a quarter of the CLIP loss and one prefix's; logged is their sum.
# - **Recall by every prefix, beside chance:** `python -m bridges validate image-text --out runs/direct`.
#
# ## Before it starts: memory and time
#
# The estimate counts tensors from shapes alone, without what a driver and an allocator take, and times a few steps.

# %%
print(job.estimate())

# %% [markdown]
# The log's own size: CLIP ViT-L/14 at 336 pixels from its published configuration, with its features on disk or with
# CLIP on the GPU beside the step. Nothing is allocated or downloaded.

# %%
TOWER = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
TOWER |= {"image_size": 336, "patch_size": 14}
SAYS = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
LARGE_CLIP = CLIPConfig(text_config=SAYS, vision_config=TOWER, projection_dim=768)
PATCHES, PATCH_WIDTH, TEXT_WIDTH = 577, 1024, 768


def at_log_size(named: Settings, towers: bool) -> tuple:
    """The log's bridge, with CLIP or without, and the loss of a batch."""
    bridge = ContrastiveBridge(shape(named, PATCH_WIDTH, TEXT_WIDTH))
    patches = torch.zeros(named.batch_size, PATCHES, PATCH_WIDTH)
    text = torch.zeros(named.batch_size, TEXT_WIDTH)
    held = [CLIPModel(LARGE_CLIP).requires_grad_(False)] if towers else []

    def loss() -> torch.Tensor:
        for reads in held:
            with torch.no_grad():  # 32 images at once, as the training does it
                pixels = torch.zeros(32, 3, 336, 336)
                reads.vision_model(pixel_values=pixels)
        return alignment_loss(*bridge(patches, text), named.prefixes, named.prefixes[-1])[0]

    return torch.nn.ModuleList([bridge, *held]), loss


sizes = {
    name: [footprint(partial(at_log_size, NAMED[name], towers)) for towers in (False, True)]
    for name in ("alignment-log perceiver", "alignment-log direct")
}
table(
    " | batch | trained parameters | peak, features on disk | peak, with CLIP",
    (
        (name, NAMED[name].batch_size, own.trained_parameters, size(own.peak), size(beside.peak))
        for name, (own, beside) in sizes.items()
    ),
    f"The features of an image take {size(4 * PATCHES * PATCH_WIDTH)} of disk and memory.",
)

# %% [markdown]
# ## Train

# %%
history = job.train()
print(f"{len(history.losses)} steps, best validation after {history.best}")

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Training loss of every step, with one prefix sampled in each, and validation loss on the held-out pairs, the mean over all prefixes. Dotted: the loss of a bridge that tells no pair from another: 1.25 ln(batch) for training, and its mean over the batches of the held-out pairs, of which the last may be short. One bridge (n = 1); the legend gives the number of pairs.", "name": "fig-pairs-curve"}, "image": {"alt": "Loss in nats against the training step. The training loss starts above its dotted chance line, the validation loss just below its own. Both fall and flatten; the training loss is noisy, and the validation loss runs along its lower edge."}}
weight = CLIP_WEIGHT + MRL_WEIGHT
chance = weight * mean_chance_loss(len(job.held_out), settings.batch_size)
at = {"chance, training": job.run.asked["chance"], "chance, validation": chance}
axes = figure(height=3.6)
losses(axes, history, f"{len(job.held_out)} pairs", at, ylabel="loss (nats)")
axes.legend(loc="center right")
plt.show()

# %% [markdown]
# `job.train()` leaves the bridge with the weights of the best validation. What a loss on its chance line says is the subject
# of [reading a stuck loss](stuck_loss.ipynb).
#
# ## The report

# %%
report = validation.image_text(job)
report

# %% tags=["remove-input"]
count = len(job.held_out)


def share(percent: float) -> Estimate:
    """A recall with its Wilson interval over the held-out pairs, in percent."""
    own = wilson(round(percent * count / 100), count)
    return Estimate(100 * own.mean, 100 * own.low, 100 * own.high, own.n)


found_first = {name: share(r["at"][1]) for name, r in report.data["recall"].items()}
Markdown(
    f"95 % Wilson intervals over {count} held-out pairs, for the one bridge there is; another training would land"
    f" elsewhere. Recall falls with the number of candidates, here {count}, so compare only equal numbers."
)

# %% [markdown]
# ## Check it up
#
# The same parts, given to [the check-up](the_checkup.ipynb): the bridge, and what goes into both of its sides.

# %%
some = job.seen.rows(job.held_out[:256])  # a few hundred pairs are enough
found = checkup(
    Contrastive(
        job.module,
        some.patches.to(run.device),
        some.text.to(run.device),
        losses=[loss / weight for loss in history.losses],
        batch=settings.batch_size,
    )
)
found

# %% [markdown]
# ## Killed, and called again
#
# A training goes on from its last checkpoint when it is called again with the same folder, settings and data. Here one run
# of an epoch goes through, and another is broken off after its first checkpoint and called again. With data of your own
# the cell is passed over: it would encode them twice more.

# %%
difference = training.resumed(epochs=1, every=10)

# %% [markdown]
# ## On more than one machine
#
# With `.venv/bin/accelerate launch --num_processes 4 -m bridges` in place of `.venv/bin/python -m bridges`, the command above
# runs in four processes. They divide each batch, and each compares its pairs with those of all: the losses are those of one
# process with the whole batch.
# [How to read, re-execute and tweak](../book/how_to_read.md) has the lines for a Slurm job and for two CPUs.
#
# ## Does it hold?

# %% tags=["nbval-check-output", "keep_output", "remove-input"]
checks = {
    "R@1 above chance by every prefix": all(own.low > 100 / count for own in found_first.values()),
    "held-out loss below its chance line": job.validate() < chance,
}
print(answered(checks, difference, found))

# %% [markdown]
# ## Tweak it
#
# How short may an embedding be? Move the slider along the prefix that is kept of each, trained or not. In a live kernel,
# set `DIRECTION` to the other.

# %% tags=["hide-input"]
halves = [settings.width >> i for i in range(settings.width.bit_length() - 1)]
PREFIXES = sorted({*(width * 3 // 4 for width in halves[:3]), *halves[:8], *settings.prefixes})
DIRECTION = "image to text"  # or "text to image"
image, caption, _ = job.embedded()
found_by = {}
for width in PREFIXES:
    sides = [normalize(side[:, :width], dim=-1) for side in (image, caption)]
    at = recall(*(sides if DIRECTION == "image to text" else sides[::-1])).at
    found_by[width] = {k: share(percent) for k, percent in at.items()}


def frame(axes, width: int) -> str:
    """Recall against the prefix, with one prefix marked."""
    for k, colour, style in ((1, BLUE, "-"), (5, ORANGE, "--"), (10, GREEN, "-.")):
        values = [found_by[w][k] for w in PREFIXES]
        draw_intervals(axes, PREFIXES, values, fmt=style, capsize=2, color=colour, label=f"R@{k}")
        axes.plot(width, found_by[width][k].mean, "o", color=colour, ms=9)
        axes.axhline(100 * k / count, color=colour, lw=0.9, ls=":")
    axes.set_xscale("log", base=2)
    axes.set_xticks(settings.prefixes, settings.prefixes)
    axes.set(xlabel="coordinates kept (labelled: trained prefixes)", ylim=(0, 102))
    axes.set(ylabel=f"{DIRECTION}, R@k (%)", title=f"{width} coordinates")
    axes.figure.legend(loc="outside right upper")
    heard = "; ".join(f"R@{k} {own} %" for k, own in found_by[width].items())
    return (
        f"Recall {DIRECTION} against the coordinates kept, marked at {width}: {heard};"
        f" 95 % Wilson intervals over {count} pairs. Dotted: chance."
    )


explore("coordinates kept", {str(width): width for width in PREFIXES}, frame, height=3.8)

# %% [markdown]
# The next chapter does the same from [one language model to another](llm_to_llm.ipynb).
#
# ## Provenance

# %% tags=["remove-input"]
if pairs:
    run.given |= {"pairs": Path(pairs).name, "clip": settings.clip}
run.measure(
    **{f"R@1 {name}": own for name, own in found_first.items()},
    chance=chance,
    validation=job.validate(),
    **{f"log_peak_bytes {name}": own.peak for name, (own, _) in sizes.items()},
    **{f"log_peak_bytes {n}, towers": own.peak for n, (_, own) in sizes.items()},
)
if difference is not None:
    run.measure(resume_difference=difference)
run.close()
