"""How batches and models of known layouts are broken: their labels, their pairs, their losses and their numbers."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bridges.instruments.batches import samples, take
from bridges.instruments.conditioning import derangement
from bridges.planted.layouts import SPARE
from bridges.planted.tiny import EOS, PAD

Batch = dict[str, Any]
TEXTUAL = ("input_ids", "attention_mask", "labels")
OVER = 2.0**19  # times a host's weights, and divided out again behind: too much for half precision alone


class Unshifted(nn.Module):
    """A loss of one's own that scores each place against the very token that was read there."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, labels: Tensor, **batch: Any) -> dict[str, Tensor]:
        if "input_ids" not in batch:  # a decoder of its own reads the labels as they are
            batch["decoder_input_ids"] = labels.clamp_min(PAD)
        logits = self.inner(**batch).logits[:, -labels.shape[1] :]
        return {"loss": cross_entropy(logits.flatten(0, 1), labels.flatten())}


class Bare(nn.Module):
    """Two sides whose embeddings go into the loss without being brought to unit length."""

    def __init__(self, inner: Any):
        super().__init__()
        self.inner, self.logit_scale = inner, inner.logit_scale

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        found = self.inner.get_image_features(pixel_values=pixel_values)
        return getattr(found, "pooler_output", found)

    def get_text_features(self, input_ids: Tensor) -> Tensor:
        found = self.inner.get_text_features(input_ids=input_ids)
        return getattr(found, "pooler_output", found)

    def forward(self, pixel_values: Tensor, input_ids: Tensor, return_loss: bool = True) -> Any:
        image, text = self.get_image_features(pixel_values), self.get_text_features(input_ids)
        logits, right = self.logit_scale.exp() * image @ text.T, torch.arange(len(image))
        return _Sides((cross_entropy(logits, right) + cross_entropy(logits.T, right)) / 2, image, text)


@dataclass(frozen=True)
class _Sides:
    loss: Tensor
    image_embeds: Tensor
    text_embeds: Tensor


def strangers(batch: Batch, seed: int) -> Batch:
    """Texts with other samples' pictures."""
    text = take(batch, derangement(samples(batch), seed))
    return batch | {name: text[name] for name in TEXTUAL if name in batch}


def one_picture(batch: Batch) -> Batch:
    """The first sample's picture or sound with every text."""
    first = take(batch, torch.zeros(samples(batch), dtype=torch.long))
    return first | {name: batch[name] for name in TEXTUAL if name in batch}


def padding(batch: Batch) -> Batch:
    """Labels that supervise the padding."""
    labels = batch["labels"].clone()
    labels[:, -SPARE:] = PAD
    return batch | {"labels": labels}


def twice(batch: Batch) -> Batch:
    """Labels that are shifted before the model shifts them."""
    labels = batch["labels"].roll(-1, 1)
    labels[:, -1] = -100
    return batch | {"labels": labels}


def without_end(batch: Batch) -> Batch:
    """Labels without the end."""
    return batch | {"labels": batch["labels"].masked_fill(batch["labels"] == EOS, -100)}


@contextmanager
def hooked(model: nn.Module, path: str, factor: float | None = None) -> Iterator[None]:
    """For the time being, what a module gives times a factor; without one, cut off from its gradient."""

    def way(x: Tensor) -> Tensor:
        return x.detach() if factor is None else x * factor

    def hook(module: nn.Module, args: Any, out: Any) -> Any:
        return way(out) if isinstance(out, Tensor) else (way(out[0]), *out[1:])

    handle = model.get_submodule(path).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def overflowing(model: nn.Module) -> nn.Module:
    """A copy in half precision whose host's values go beyond its range, though in single precision nothing differs."""
    model = deepcopy(model)
    named: dict[str, Any] = dict(model.named_modules())
    with torch.no_grad():
        for name, part in named.items():
            if name.endswith("mlp.up_proj"):
                part.weight.mul_(OVER)
                named[name.replace("up_proj", "down_proj")].weight.div_(OVER)
            elif name.endswith(".attn.c_attn"):  # GPT-2's queries, keys and values in one
                wide = part.weight.shape[1] // 3
                part.weight[:, -wide:].mul_(OVER)
                part.bias[-wide:].mul_(OVER)
                named[name.replace("c_attn", "c_proj")].weight.div_(OVER)
    return model.half()


def half(batch: Mapping[str, Any]) -> Batch:
    """The batch in half precision."""
    return {name: x.half() if isinstance(x, Tensor) and x.is_floating_point() else x for name, x in batch.items()}
