# %% [markdown]
# # Check up your own bridge
#
# Give this page a Python file that makes a bridge, and it runs the [check-up](the_checkup.ipynb) on it. Without one it
# takes the book's example, trains it as anybody would, and shows what the reports say before, after, and on samples
# that the training has not seen. Below that stand the lines that wire a model as it is, and each of the three kinds of
# bridge.

# %% tags=["parameters"]
profile = "quick"  # quick | full; both are the same here
out = ""  # where the record goes, a .json file
bridge = ""  # your own file, which makes an object called bridge
losses = ""  # its loss log: .csv or .jsonl, with a column or key loss
batch_size = 0  # pairs in a batch of that log, for a contrastive bridge
report = ""  # where the report goes, an .html file

# %% tags=["hide-input"]
import runpy
from dataclasses import replace
from pathlib import Path

import torch
from bridges.hosts.causal import answer_loss, until_end
from bridges.instruments.places import LAYOUTS
from bridges.instruments.checkup import Contrastive, Generative, blaming, checkup, read_bridge
from bridges.instruments.generation import degeneration
from bridges.instruments.leak import leak_check
from bridges.instruments.padding import padding_shift
from bridges.tasks.loss_log import read_losses
from press.book import Markdown, begin, example, refusing, table
from torch import nn
from torch.nn.functional import normalize
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

run = begin("your_bridge", globals() | {"seeds": 1, "device": "cpu"}, least=1, seeds=1, steps=150)
EXAMPLE = example("my_bridge.py")
mine = Path(bridge) if bridge else EXAMPLE
with refusing():
    if report and not (report.endswith(".html") and Path(report).parent.is_dir()):
        raise ValueError(f"report is {report!r}; give a path that ends in .html, in a folder that is there")
    if losses and not bridge:
        raise ValueError(
            "losses belong to a bridge: give bridge too; python -m bridges checkup --loss reads a log alone"
        )
    checked = read_bridge(mine)
    if losses:
        checked = replace(checked, losses=read_losses(Path(losses)))
    if bridge and batch_size and isinstance(checked, Contrastive):
        checked = replace(checked, batch=batch_size)
    with blaming(mine):
        found = checkup(checked)
    if report:
        Path(report).write_text(found.html(), encoding="utf-8")

# %% [markdown]
# ## The report

# %% tags=["remove-input"]
told = "" if bridge else ", the book's example, in which nothing is trained"
Markdown(f"Of `{mine.name}`{told}:")

# %%
found

# %% [markdown]
# For a file of your own, and its report as a page:
#
# ```
# .venv/bin/papermill -k python3 notebooks/25_your_bridge.ipynb mine.ipynb -p bridge my_bridge.py -p report report.html
# ```
#
# `-p losses log.csv` adds a loss log, with `-p batch_size 128` for a contrastive one. Without a notebook:
#
# ```
# .venv/bin/python -m bridges checkup my_bridge.py --html report.html --json report.json
# ```
#
# The file is executed as it is, so it may load what it likes. It ends with `bridge = Generative(...)` or `bridge =
# Contrastive(...)`. A file that fails, or makes no bridge, is refused in one line that names the line of yours.
#
# ## The same bridge, trained
#
# A training as anybody writes it, on the example's own samples:

# %%
with refusing():
    made = runpy.run_path(str(EXAMPLE))
theirs, connector = made["bridge"], made["bridge"].connector
optimizer = torch.optim.AdamW(connector.parameters(), lr=5e-3)
log = []
for _ in range(run.steps):
    rows = torch.randint(len(theirs.inputs), (32,))
    loss = theirs.loss(connector(theirs.inputs[rows]), rows)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    log.append(loss.item())
trained = replace(theirs, losses=log)
seen = checkup(trained)
seen

# %% [markdown]
# The tokens follow the input now, and the host's loss depends on whose tokens it reads. These are the samples of the
# training, though. The example makes a sample's features from a vector for each id, so that new samples can be had from
# the same vectors:

# %%
vectors = torch.zeros(made["config"].vocab_size, theirs.inputs.shape[-1])
vectors[theirs.labels] = theirs.inputs
known = theirs.labels.unique()
fresh_ids = known[torch.randint(len(known), theirs.labels.shape)]


def fresh_loss(tokens: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """As the example's, for the new samples."""
    return made["host"](inputs_embeds=tokens, labels=fresh_ids[rows]).loss


fresh = replace(trained, inputs=vectors[fresh_ids], labels=fresh_ids, loss=fresh_loss)
unseen = checkup(fresh)
unseen

# %% [markdown]
# It has learned its samples, and hardly anything that holds for others. The loss log and the report on what was trained
# on look like those of a bridge that works; only samples held out tell the difference. So **give the check-up samples
# that your training has not seen**, a hundred or more.

# %% tags=["nbval-check-output", "keep_output", "remove-input"]
untrained = checkup(read_bridge(EXAMPLE)).headline
print(f"the example untrained: {untrained}")
print(f"trained, on the samples of its training: {seen.headline}")
print(f"trained, on new samples: {unseen.headline}")

# %% [markdown]
# ## How to wire yours
#
# Each cell below makes a host on the spot, tiny and untrained, so that only the wiring is of interest. Put yours in its
# place: the host in evaluation mode, the samples held out.
#
# ### A model as it is
#
# Where the connector lives inside a model whose call on a batch gives a loss, that model and a batch are all that is
# needed. Hooks take what the connector gives, and put other samples' tokens, scaled ones, or none in its place.

# %%
torch.manual_seed(0)
small = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
IMAGE, END = 63, 2
config = LlavaConfig(
    vision_config=CLIPVisionConfig(**small, num_hidden_layers=2, image_size=32, patch_size=16),
    text_config=LlamaConfig(
        vocab_size=64, **small, num_hidden_layers=2, pad_token_id=0, bos_token_id=1, eos_token_id=END
    ),
    image_token_id=IMAGE,
)
llava = LlavaForConditionalGeneration(config).eval()
words = torch.randint(3, IMAGE, (128, 6))
words[:, -1] = END
places = torch.full((128, 4), IMAGE)  # one for each patch of an image
batch = {
    "input_ids": torch.cat([places, words], 1),
    "labels": torch.cat([torch.full_like(places, -100), words], 1),
    "pixel_values": torch.randn(128, 3, 32, 32),
}
checkup(llava, batch)

# %% [markdown]
# Pictures and words are drawn apart here, and the report says that first. In these classes the connector is found by
# itself; in any other, a third argument names its module: `checkup(model, batch, "vision.projector")`.

# %% tags=["remove-input"]
table(
    "class | connector, in the order of its calls",
    ((name, ", ".join(f"`{path}`".replace("|", "` or `") for path in at)) for name, at in LAYOUTS.items()),
)

# %% [markdown]
# CLIP, SigLIP and whatever else has an image's and a text's features and a `logit_scale` are taken as two sides that
# meet. The optimiser, a state dict from before the training, the log and all that follows below add readings:
# `checkup(model, batch, optimizer=optimizer, before=before, log=losses)`. The report ends in what is missing.
#
# ### Vector to text, into a T5
#
# The loss is a function of the connector's tokens and of the indices of the samples that they belong to: the check-up
# also calls it with tokens of *other* samples. `said` and `wanted` are optional.

# %%
torch.manual_seed(0)
config = T5Config(vocab_size=100, d_model=32, d_kv=8, d_ff=64, num_layers=1)
config.decoder_start_token_id = 0
t5 = T5ForConditionalGeneration(config)
t5.eval().requires_grad_(False)
sentences = torch.randint(2, 100, (128, 6))  # ids to be said
sentences[:, -1] = config.eos_token_id
vectors = torch.randn(100, 24)[sentences].mean(1)
vectors = (vectors - vectors.mean(0)) / vectors.std(0)
into_t5 = nn.Sequential(nn.Linear(24, 4 * 32), nn.Unflatten(1, (4, 32)))


def t5_loss(tokens: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The loss of the right sentences."""
    return t5(inputs_embeds=tokens, labels=sentences[rows]).loss


said = t5.generate(inputs_embeds=into_t5(vectors), max_new_tokens=8, do_sample=False)
# Yours: batch_decode
texts = {name: [str(ids) for ids in told.tolist()] for name, told in {"said": said, "wanted": sentences}.items()}
checkup(Generative(into_t5, vectors, t5_loss, sentences, t5.shared.weight, **texts))

# %% [markdown]
# ### Into a shared space, as CLIP
#
# `embed` takes the inputs of both sides, as they enter what is trained, and returns unit vectors and the factor on
# their cosines. Frozen towers stay outside: the check-up looks at what they put out. `losses` and `batch`, the pairs in
# a batch of the training, add the loss log's chance line.


# %%
class Space(nn.Module):
    """A linear map for each side, and a temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(32, 16), nn.Linear(12, 16)
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def forward(self, patches: torch.Tensor, captions: torch.Tensor):
        image, text = self.image(patches.mean(1)), self.text(captions)
        both = normalize(image, dim=-1), normalize(text, dim=-1)
        return *both, self.log_scale.exp()


config = CLIPVisionConfig(**small, num_hidden_layers=1, image_size=32, patch_size=8)
tower = CLIPVisionModel(config).eval()
captions = torch.randn(128, 12)  # yours: from a frozen text encoder
pixels = (captions @ torch.randn(12, 3 * 32 * 32)).view(128, 3, 32, 32)
with torch.no_grad():
    patches = tower(pixel_values=pixels).last_hidden_state
checkup(Contrastive(Space(), patches, captions))

# %% [markdown]
# ### Soft prompts, into a causal language model
#
# Several inputs go in as a tuple. A second one of the shape (samples, length) counts as the mask of the first. What
# other instruments find is handed over: whether the source has read the answers (`leak_check`), whether padding changes
# what the model says next (`padding_shift`), and whether it comes to an end (`degeneration`).


# %%
class Soft(nn.Module):
    """Four soft tokens from the mean of the source's states."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Sequential(nn.Linear(48, 4 * 32), nn.Unflatten(1, (4, 32)))

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        there = mask.unsqueeze(-1)
        return self.out((states * there).sum(1) / there.sum(1))


PAD, LONGEST = 0, 12
config = LlamaConfig(vocab_size=64, **small, num_hidden_layers=2)
config.pad_token_id, config.bos_token_id, config.eos_token_id = PAD, 1, END
llama = LlamaForCausalLM(config)
llama.eval().requires_grad_(False)
states = torch.randn(128, 10, 48)  # yours: the source's hidden states
mask = torch.arange(10) < torch.randint(5, 11, (128, 1))
answers = torch.randint(3, 64, (128, 5))
answers[:, -1] = END
into_llama, embeddings = Soft(), llama.get_input_embeddings()


def llama_loss(soft: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The loss of the right answers behind the soft tokens."""
    read = torch.cat([soft, embeddings(answers[rows])], dim=1)
    return answer_loss(llama(inputs_embeds=read).logits, answers[rows])


# %% [markdown]
# And what other instruments find of it, with the report of all:


# %%
def next_logits(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """From which the next token is drawn, in the way that is to be tested."""
    return llama(input_ids=ids, attention_mask=mask).logits[:, -1]


prompts = [torch.randint(3, 64, (length,)) for length in (4, 6, 9)]
with torch.no_grad():
    soft = into_llama(states[:16], mask[:16])
new = llama.generate(inputs_embeds=soft, max_new_tokens=LONGEST, do_sample=False)
evidence = {
    "leak": leak_check(["3 + 4 = ?"], ["7"]),  # what it read, what it is to say
    "padding": padding_shift(next_logits, prompts, PAD, "left"),
    "generations": degeneration(until_end(new, END), END, LONGEST),
}
checkup(Generative(into_llama, (states, mask), llama_loss, answers, embeddings.weight, **evidence))

# %% [markdown]
# All are untrained, and their hosts are too; the reports say what that looks like. In the T5's and in the shared space
# the probe finds a relation, since the inputs were made from what is to be said. In the last one states and answers
# have nothing to do with each other, and so the pairs come first.
#
# ## Provenance

# %% tags=["remove-input"]
if bridge:
    first = checked.image if isinstance(checked, Contrastive) else checked.inputs
    run.device = (first[0] if isinstance(first, tuple) else first).device.type
    run.given |= {"bridge": Path(bridge).name}
    run.given |= {"losses": Path(losses).name} if losses else {}
run.measure(faults=len(found.faults), readings=len(found.readings))
run.close()
