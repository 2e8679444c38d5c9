"""The first thread whole: vectors and sentences on disk, through a resampler, into an encoder-decoder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase

from bridges.benches.pretrain import small_host
from bridges.connectors import resampler
from bridges.connectors.resampler import ResamplerSettings, VectorResampler
from bridges.connectors.scale import Standardise
from bridges.hosts import seq2seq
from bridges.hosts.seq2seq import ROUTES, VectorToText
from bridges.jobs.job import Job, KeptRun, Training, claim, hold_out, told
from bridges.tasks import instructions
from bridges.tasks.features import Clips, read_clips, write_clips
from bridges.training.parallel import Parallel

THREAD = "vector-to-text"
SMALL_SENTENCES, SMALL_HELD_OUT = 2000, 200


@dataclass(frozen=True)
class Settings(Training):
    """What the resampler log's command line says, and what it leaves to its script.

    The log gives batch, rate, warm-up, epochs, host and the resampler. The rest is this book's: a linear decay, a cut
    of long sentences, a tenth held out where no validation files are given. Batches are drawn with replacement, so that
    an epoch is as many batches as hold the samples once.
    """

    features: str = told("", "folder with <id>.npy for each clip to train on, one vector (width,)", path=True)
    manifest: str = told("", "file with a line id<TAB>sentence for each of them", path=True)
    val_features: str = told("", "the same for validation; else some of the training clips are held out", path=True)
    val_manifest: str = told("", "the same for validation", path=True)
    held_out: float = told(0.1, "share of the clips held out where no validation files are given")
    host: str = told("t5-small", "encoder-decoder with its tokenizer: a folder or a hub name")
    epochs: int = told(30, "passes over the samples")
    route: str = told("inputs_embeds", f"how the host reads the tokens: {', '.join(ROUTES)}")
    standardise: bool = told(False, "bring each feature to mean 0 and deviation 1 first")
    longest: int = told(64, "tokens of a sentence, longer ones are cut")
    connector: ResamplerSettings = resampler.RESAMPLERS["resampler-log"]


NAMED = {
    "resampler-log": Settings(),
    # "Perceiver → T5 encoder → encoder_outputs": the same numbers as inputs_embeds, by hand.
    "encoder-log": Settings(route="encoder_outputs"),
    "small": Settings(
        batch_size=32,
        learning_rate=1e-3,
        warmup_steps=20,
        schedule="cosine",
        epochs=3,
        standardise=True,
        longest=24,
        connector=ResamplerSettings(width=64, latents=16, depth=2, heads=4),
    ),
}


def small(folder: Path, cache: Path, settings: Settings = NAMED["small"]) -> Settings:
    """Write a small set in the thread's format with its host; the settings with their paths, ready for `prepare`.

    `folder` gets `train` and `val` with a vector for each sentence, their manifests, and `host`; what stands there
    already is left as it is. The small host comes from `cache`, or is pretrained and kept there in about a minute.
    """
    folder = folder.resolve()
    host = folder / "host"
    if not (folder / "val.tsv").is_file():
        small_host("t5", "quick", cache).save_pretrained(host)
        instructions.tokenizer().save_pretrained(host)
        corpus = instructions.corpus()
        parts = {"train": corpus.train[:SMALL_SENTENCES], "val": corpus.validation[:SMALL_HELD_OUT]}
        for name, texts in parts.items():
            ids = tuple(f"{i:04}" for i in range(len(texts)))
            write_clips(
                folder / name, folder / f"{name}.tsv", Clips(ids, instructions.sentence_vectors(texts), tuple(texts))
            )
    return replace(
        settings,
        features=str(folder / "train"),
        manifest=str(folder / "train.tsv"),
        val_features=str(folder / "val"),
        val_manifest=str(folder / "val.tsv"),
        host=str(host),
    )


class VectorToTextJob(Job):
    """Clips to train on, clips held out, the host's tokenizer, and the translator between them."""

    thread = THREAD
    settings: Settings
    module: VectorToText

    def __init__(
        self,
        settings: Settings,
        module: VectorToText,
        tokenizer: PreTrainedTokenizerBase,
        clips: Clips,
        held_out: Clips,
        run: KeptRun,
    ):
        steps = -(-len(clips) // settings.batch_size)  # of an epoch
        super().__init__(settings, module, len(clips), settings.fit(settings.epochs * steps, steps), run)
        self.tokenizer, self.clips, self.held_out = tokenizer, clips, held_out
        self.labels = self.encode(clips.sentences)

    def encode(self, sentences: Sequence[str]) -> Int[Tensor, "sentences length"]:
        """Sentences as labels, -100 behind their ends."""
        batch = self.tokenizer(
            list(sentences), padding=True, truncation=True, max_length=self.settings.longest, return_tensors="pt"
        )
        return batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)

    def summed_loss(
        self, vectors: Float[Tensor, "batch width"], labels: Int[Tensor, "batch length"]
    ) -> tuple[Float[Tensor, ""], int]:
        """Cross-entropy in nats over all tokens of a batch, and how many those are."""
        labels = labels[:, : int((labels != -100).sum(1).max())].contiguous()
        count = int((labels != -100).sum())
        device = next(self.module.parameters()).device
        return self.module(vectors.to(device), labels.to(device)) * count, count

    def batch_loss(self, rows: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
        return self.parallel.mean(*self.summed_loss(self.clips.vectors[rows], self.labels[rows]))

    def validation_loss(self) -> float:
        return self.loss(self.held_out.vectors, self.encode(self.held_out.sentences))

    @torch.no_grad()
    def loss(self, vectors: Float[Tensor, "clips width"], labels: Int[Tensor, "clips length"]) -> float:
        """Cross-entropy in nats per token over any number of clips."""
        size = self.settings.batch_size
        parts = [self.summed_loss(v, t) for v, t in zip(vectors.split(size), labels.split(size), strict=True)]
        return sum(float(total) for total, _ in parts) / sum(count for _, count in parts)

    def translate(self, vectors: Float[Tensor, "clips width"]) -> list[str]:
        """What the host says to each vector, by greedy decoding."""
        device = next(self.module.parameters()).device
        said: list[str] = []
        for part in vectors.split(self.settings.batch_size):
            ids = self.module.generate(part.to(device), self.settings.longest)
            said += self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return said

    def sketch(self) -> tuple[nn.Module, Callable[[], Tensor]]:
        own, share = self.settings, self.settings.batch_size // self.parallel.world
        host = AutoModelForSeq2SeqLM.from_config(self.module.host.config)
        module = assemble(own, host, self.clips.vectors.shape[1])
        vectors = torch.zeros(share, self.clips.vectors.shape[1])
        labels = torch.ones(share, self.labels.shape[1], dtype=torch.long)
        return module, lambda: module(vectors, labels)


def assemble(settings: Settings, host: PreTrainedModel, width: int) -> VectorToText:
    """The translator from vectors of `width` into a host; draws from torch's global generator.

    Raises:
        ValueError: for a route that is not one of `ROUTES`.
    """
    if settings.route not in ROUTES:
        raise ValueError(f"route {settings.route!r} is unknown; choose from {', '.join(ROUTES)}")
    connector = VectorResampler(width, settings.connector, host.config.hidden_size)
    return VectorToText(nn.Sequential(Standardise(width), connector), host, settings.route)


def prepare(settings: Settings, out: Path, device: str = "cpu", parallel: Parallel | None = None) -> VectorToTextJob:
    """Read the clips and the host, and take the folder `out` for the run.

    The sentence encoder is frozen: the vectors are what it made beforehand. Connector and host are trained, at one
    rate.

    Raises:
        OSError: in one line, for a host that cannot be loaded.
        ValueError: for settings without data, clips that cannot be read, or a folder of another run.
    """
    paths = settings.features, settings.manifest, settings.val_features, settings.val_manifest
    if not all(paths[:2]) or len({*map(bool, paths[2:])}) > 1:
        raise ValueError("features and manifest belong together, and so do those of validation: give both")
    manifests = [Path(path) for path in (settings.manifest, settings.val_manifest) if path]
    clips = read_clips(Path(settings.features), manifests[0])
    if settings.val_features:
        held_out = read_clips(Path(settings.val_features), manifests[1], clips.vectors.shape[1])
    else:
        rows, held = hold_out(len(clips), round(settings.held_out * len(clips)), settings.seed)
        clips, held_out = (_part(clips, some.tolist()) for some in (rows, held))
    run = claim(out, THREAD, settings, manifests, parallel)
    tokenizer, host = seq2seq.load_tokenizer(settings.host), seq2seq.load(settings.host).float()
    torch.manual_seed(settings.seed)
    module = assemble(settings, host, clips.vectors.shape[1])
    if settings.standardise:
        module.connector[0].fit(clips.vectors)  # type: ignore[index]
    module.to(run.device(device))
    return VectorToTextJob(settings, module.eval(), tokenizer, clips, held_out, run)


def _part(clips: Clips, rows: list[int]) -> Clips:
    ids, sentences = (tuple(column[i] for i in rows) for column in (clips.ids, clips.sentences))
    return Clips(ids, clips.vectors[rows], sentences)
