"""The second thread whole: images and captions on disk, through frozen towers, into one space with them."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from bridges.benches.alignment import sampled_widths
from bridges.connectors import resampler
from bridges.connectors.resampler import ResamplerSettings
from bridges.hosts import clip, sentence
from bridges.hosts.contrastive import AlignmentSettings, ContrastiveBridge, Embeddings
from bridges.jobs.job import Job, KeptRun, Training, claim, hold_out, told
from bridges.tasks.pairs import CAPTIONS, FEATURES, Features, Pairs, read_features, read_pairs, write_features
from bridges.tasks.scenes import scenes
from bridges.training.losses import CLIP_WEIGHT, MRL_WEIGHT, alignment_loss
from bridges.training.parallel import Parallel

THREAD = "image-text"
SMALL_PAIRS = 1000
KEPT = 16 * 2**30  # bytes of features that are computed once; of more, each batch's are computed as it is drawn
CONNECTORS: tuple[Literal["perceiver", "direct"], ...] = ("perceiver", "direct")
POOLINGS: tuple[Literal["mean", "attention"], ...] = ("mean", "attention")


@dataclass(frozen=True)
class Settings(Training):
    """What the alignment log says of its two models, and what it does not say.

    The log gives towers, connector, pooling, width, rate, batch, epochs, the loss and that one Matryoshka prefix is
    sampled for each batch. It names none of the prefixes: these halve the width. The rest is this book's too: a cosine
    decay without warm-up, and a tenth of the pairs held out.
    """

    pairs: str = told(
        "", f"folder with {CAPTIONS} (a line image<TAB>caption for each) and images, or with {FEATURES}", path=True
    )
    held_out: float = told(0.1, "share of the pairs held out")
    clip: str = told("openai/clip-vit-large-patch14-336", "CLIP that reads the images: a folder or a hub name")
    text: str = told("", "sentence encoder that reads the captions; else CLIP's own text tower")
    epochs: int = told(10, "passes over the pairs")
    connector: str = told("perceiver", "perceiver or direct")
    pooling: str = told("mean", "mean or attention")
    width: int = told(4096, "of the common space")
    prefixes: tuple[int, ...] = (256, 512, 1024, 2048, 4096)
    resampler: ResamplerSettings = resampler.RESAMPLERS["alignment-log"]


PERCEIVER = Settings(batch_size=64, learning_rate=2e-3, warmup_steps=0, schedule="cosine")
NAMED = {
    "alignment-log perceiver": PERCEIVER,
    "alignment-log direct": replace(
        PERCEIVER,
        batch_size=128,
        learning_rate=2e-4,
        text="sentence-transformers/all-mpnet-base-v2",
        connector="direct",
        pooling="attention",
        resampler=replace(PERCEIVER.resampler, layer_norm=False),  # patches enter the linear map as they are
    ),
    "small": replace(
        PERCEIVER,
        batch_size=32,
        warmup_steps=10,
        epochs=12,
        width=32,
        prefixes=(8, 16, 32),
        resampler=ResamplerSettings(width=32, latents=8, depth=2, heads=2),
    ),
}


def small(folder: Path, cache: Path, settings: Settings = NAMED["small"]) -> Settings:
    """Write a small set in the thread's format with its CLIP; the settings with their paths, ready for `prepare`.

    `folder` gets `pairs`, scenes as PNG files with `captions.tsv`, and `clip`; what stands there already is left as it
    is. The CLIP is small and untrained, so that nothing is taken from `cache`.
    """
    pairs = folder.resolve() / "pairs"
    if not (pairs / CAPTIONS).is_file():
        drawn = scenes(SMALL_PAIRS)
        pairs.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        clip.build(drawn.captions()).save(folder / "clip")
        names = [f"{i:04}.png" for i in range(len(drawn))]
        for i, name in enumerate(names):
            Image.fromarray(drawn.draw(i)).save(pairs / name)
        lines = (f"{name}\t{caption}\n" for name, caption in zip(names, drawn.captions(), strict=True))
        (pairs / CAPTIONS).write_text("".join(lines), encoding="utf-8")
    return replace(settings, pairs=str(pairs), clip=str(folder.resolve() / "clip"))


class Seen:
    """The pairs as the towers see them: kept whole, or encoded as they are asked for where they would not fit."""

    def __init__(self, text: Float[Tensor, "pairs width"], patches: Tensor | Callable[[list[int]], Tensor]):
        self.text, self._patches = text, patches

    def __len__(self) -> int:
        return len(self.text)

    def rows(self, rows: Int[Tensor, " batch"]) -> Features:
        """Some of them."""
        own = self._patches
        return Features(own[rows] if isinstance(own, Tensor) else own(rows.tolist()), self.text[rows])


class ImageTextJob(Job):
    """Pairs as frozen towers see them, some held out, and the bridge that brings them into one space."""

    thread = THREAD
    settings: Settings
    module: ContrastiveBridge

    def __init__(self, settings: Settings, bridge: AlignmentSettings, seen: Seen, run: KeptRun):
        self.seen, self.bridge, self.patches = seen, bridge, seen.rows(torch.tensor([0])).patches.shape[1]
        self.known, self.held_out = hold_out(len(seen), round(settings.held_out * len(seen)), settings.seed)
        steps = -(-len(self.known) // settings.batch_size)  # of an epoch
        fit = settings.fit(settings.epochs * steps, steps)
        torch.manual_seed(settings.seed)
        super().__init__(settings, ContrastiveBridge(bridge), len(self.known), fit, run)
        self.sampled = sampled_widths(self.fit.steps, settings.prefixes)

    def embed(self, rows: Int[Tensor, " batch"]) -> Embeddings:
        """The embeddings of some pairs."""
        found, device = self.seen.rows(rows), self.module.log_scale.device
        return self.module(found.patches.to(device), found.text.to(device))

    def batch_loss(self, rows: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
        image, text, scale = self.embed(self.known[rows])
        image, text = self.parallel.gather(image), self.parallel.gather(text)
        return alignment_loss(image, text, scale, self.settings.prefixes, self.sampled[self.step])[0]

    def validation_loss(self) -> float:
        """The mean over batches in their order, and over all prefixes."""
        widths, losses = self.settings.prefixes, []
        for rows in self.held_out.split(self.settings.batch_size):
            entries = alignment_loss(*self.embed(rows), widths)[1]
            clip_loss = entries.pop("loss_clip")
            losses.append(CLIP_WEIGHT * clip_loss + MRL_WEIGHT * torch.stack([*entries.values()]).mean())
        return torch.stack(losses).mean().item()

    @torch.no_grad()
    def embedded(self) -> Embeddings:
        """The embeddings of the pairs held out, on the CPU."""
        parts = [self.embed(rows) for rows in self.held_out.split(self.settings.batch_size)]
        image, text = (torch.cat([part[i] for part in parts]).cpu() for i in range(2))
        return Embeddings(image, text, parts[0].scale.cpu())

    def sketch(self) -> tuple[nn.Module, Callable[[], Tensor]]:
        module, share = ContrastiveBridge(self.bridge), self.settings.batch_size // self.parallel.world
        patches = torch.zeros(share, self.patches, self.bridge.patch_width)
        text = torch.zeros(share, self.bridge.text_width)
        widths, sampled = self.settings.prefixes, self.sampled[0]

        def loss() -> Tensor:
            image, words, scale = module(patches, text)
            return alignment_loss(image, words, scale, widths, sampled)[0]

        return module, loss


def shape(settings: Settings, patch_width: int, text_width: int) -> AlignmentSettings:
    """The bridge between towers of these widths.

    Raises:
        ValueError: for a prefix that is wider than the space, or a connector or pooling that is not known.
    """
    if max(settings.prefixes) > settings.width:
        raise ValueError(f"a prefix of {max(settings.prefixes)} is wider than the common space of {settings.width}")
    if settings.connector not in CONNECTORS:
        raise ValueError(f"connector {settings.connector!r} is unknown; choose from {', '.join(CONNECTORS)}")
    if settings.pooling not in POOLINGS:
        raise ValueError(f"pooling {settings.pooling!r} is unknown; choose from {', '.join(POOLINGS)}")
    return AlignmentSettings(
        patch_width, text_width, settings.width, settings.resampler, settings.connector, settings.pooling
    )


def prepare(settings: Settings, out: Path, device: str = "cpu", parallel: Parallel | None = None) -> ImageTextJob:
    """Read the pairs, encode them by the frozen towers, and take the folder `out` for the run.

    Features are encoded once, and kept in `out/features` in float32, where they fill up to 16 GiB (a CLIP ViT-L/14 at
    336 pixels makes 2.3 MB of an image); of more, text vectors alone are kept.

    Raises:
        OSError: in one line, for towers that cannot be loaded.
        ValueError: for settings without data, pairs that cannot be read, or a folder of another run.
    """
    if not settings.pairs:
        raise ValueError(f"there are no pairs: give a folder with {CAPTIONS} and images, or with {FEATURES}")
    shape(settings, 1, 1)  # refused now, and not after hours of encoding
    folder = Path(settings.pairs)
    pairs = None if (folder / FEATURES).is_file() else read_pairs(folder)
    chance = (CLIP_WEIGHT + MRL_WEIGHT) * math.log(max(settings.batch_size, 1))
    run = claim(out, THREAD, settings, [folder / (CAPTIONS if pairs else FEATURES)], parallel, chance)
    place = run.device(device)
    seen = encoded(settings, pairs, run, place) if pairs else Seen(*_whole(folder))
    first = seen.rows(torch.tensor([0]))
    job = ImageTextJob(settings, shape(settings, first.patches.shape[2], first.text.shape[1]), seen, run)
    job.module.to(place).eval()
    return job


def encoded(settings: Settings, pairs: Pairs, run: KeptRun, place: torch.device) -> Seen:
    """The pairs as the settings' towers see them, kept beside the run where they are small enough."""
    made_of = json.dumps([settings.clip, settings.text, run.asked["data"]])
    kept = run.out / "features" / sha256(made_of.encode()).hexdigest()[:16]
    there = (kept / FEATURES).is_file()
    run.parallel.wait()  # all have looked before one writes
    if there:
        return Seen(*_whole(kept))
    towers = clip.load(settings.clip)
    towers.model.to(place)

    def patches(rows: list[int]) -> Tensor:
        chosen = Pairs(tuple(pairs.images[i] for i in rows), tuple(pairs.captions[i] for i in rows))
        return towers.patches(chosen.pictures())

    fits = len(pairs) * patches([0]).nbytes <= KEPT
    if fits and not run.parallel.main:
        run.parallel.wait()
        return Seen(*_whole(kept))
    if settings.text:
        encoder, tokenizer = sentence.load(settings.text)
        text = encoder.to(place).encode(pairs.captions, tokenizer)
    else:
        text = towers.text(pairs.captions)
    if not fits:
        return Seen(text, patches)
    seen = Seen(text, towers.patches(pairs.pictures()))
    partial = kept.with_suffix(".partial")
    write_features(partial, seen.rows(torch.arange(len(seen))))
    partial.replace(kept)
    run.parallel.wait()
    return seen


def _whole(folder: Path) -> tuple[Tensor, Tensor]:
    found = read_features(folder)
    return found.text, found.patches
