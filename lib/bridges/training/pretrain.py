"""Small hosts trained on the spot, kept as safetensors with their checksums, and made again when damaged."""

import hashlib
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bridges.hosts import seq2seq
from bridges.tasks import instructions
from bridges.training.fit import FitSettings, fit

MASKED = 0.3  # share of words hidden from the encoder
RECIPES = {
    "quick": FitSettings(steps=1000, lr=3e-3, batch=32, warmup=50),
    "full": FitSettings(steps=3000, lr=1e-3, batch=128, warmup=200),
}
SUMS = "sha256.json"


def denoise(host: PreTrainedModel, settings: FitSettings, device: str, describe: str) -> None:
    """Teach a seq2seq host to restore sentences of which 30 % of the words are masked."""
    words = instructions.tokenizer()
    target = instructions.labels(instructions.corpus().train, words).to(device)
    source = target.masked_fill(target == -100, words.pad_token_id)
    maskable = source > words.eos_token_id
    attention = (target != -100).long()

    def batch_loss(indices: Tensor) -> Tensor:
        rows = indices.to(device)
        ids = source[rows]
        hidden = maskable[rows] & (torch.rand(ids.shape, device=device) < MASKED)
        return host(
            input_ids=ids.masked_fill(hidden, words.mask_token_id),
            attention_mask=attention[rows],
            labels=target[rows],
        ).loss

    host.to(device)  # type: ignore[arg-type]
    fit(host.train().parameters(), batch_loss, len(target), settings, seed=0, describe=describe)
    host.eval()


def small_host(family: str, size: str, cache: Path, device: str = "cpu") -> PreTrainedModel:
    """The pretrained host `family` (t5, bart) of `size` (quick, full), from `cache` or else trained and put there.

    A folder whose files do not match their checksums, or whose recipe is not today's, is made again and says so.
    """
    folder = cache / f"{family}-{size}"
    recipe = {"family": family, "masked": MASKED, "read": _what_is_read()}
    recipe |= asdict(seq2seq.SIZES[size]) | asdict(RECIPES[size])
    fault = _fault(folder, recipe)
    if fault:
        print(f"pretraining {folder.name} ({fault})", flush=True)
        torch.manual_seed(0)
        host = seq2seq.build(family, size, instructions.tokenizer())
        denoise(host, RECIPES[size], device, f"pretraining {folder.name}")
        _save(host, folder, recipe)
    host = seq2seq.load(str(folder)).eval()
    return host.to(device)


def _what_is_read() -> str:
    """SHA-256 of the corpus and of its vocabulary: a host that read other sentences is another host."""
    read = [instructions.corpus().train, sorted(instructions.tokenizer().get_vocab().items())]
    return hashlib.sha256(json.dumps(read).encode()).hexdigest()


def _save(host: PreTrainedModel, folder: Path, recipe: dict[str, object]) -> None:
    """Write beside the folder and rename, so that an interruption leaves nothing half made under its name."""
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    host.save_pretrained(partial)
    sums = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(partial.iterdir())}
    (partial / SUMS).write_text(json.dumps({"recipe": recipe, "files": sums}, indent=1))
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)


def _fault(folder: Path, recipe: dict[str, object]) -> str:
    """Why the cached folder cannot be used, or an empty string."""
    if not (folder / SUMS).is_file():
        return "not in the cache"
    try:
        kept = json.loads((folder / SUMS).read_text())
        if kept["recipe"] != recipe:
            return "the recipe has changed"
        for name, digest in kept["files"].items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
                return f"{name} does not match its checksum"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "the cached copy is damaged"
    return ""
