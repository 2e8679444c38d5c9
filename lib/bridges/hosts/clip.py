"""Frozen CLIP towers: what turns a reader's images and captions into patch features and text vectors."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

BATCH = 32


@dataclass(frozen=True)
class Towers:
    """A frozen CLIP with what prepares its inputs."""

    model: CLIPModel
    processor: Any
    tokenizer: Any

    @torch.no_grad()
    def patches(self, images: Iterable[Image.Image]) -> Float[Tensor, "images patches width"]:
        """The vision tower's last layer, class token first: (N, 577, 1024) for ViT-L/14 at 336 pixels."""
        images, found = iter(images), []
        with tqdm(desc="encoding images", unit=" images", leave=False) as bar:
            while batch := list(islice(images, BATCH)):
                pixels = self.processor(images=batch, return_tensors="pt")["pixel_values"].to(self.model.device)
                found.append(self.model.vision_model(pixel_values=pixels).last_hidden_state.float().cpu())
                bar.update(len(batch))
        return torch.cat(found)

    @torch.no_grad()
    def text(self, captions: Sequence[str]) -> Float[Tensor, "captions width"]:
        """CLIP's projected text vectors, not normalised."""
        found = []
        for start in tqdm(range(0, len(captions), BATCH), desc="encoding captions", leave=False):
            batch = list(captions[start : start + BATCH])
            ids = self.tokenizer(batch, padding=True, truncation=True, return_tensors="pt").to(self.model.device)
            pooled = self.model.text_model(**ids).pooler_output
            found.append(self.model.text_projection(pooled).float().cpu())
        return torch.cat(found)


def load(name: str) -> Towers:
    """A CLIP from a local folder or a hub name, frozen, in evaluation mode.

    Raises:
        OSError: in one line, when the folder or name holds no such model or cannot be reached.
    """
    try:
        model = CLIPModel.from_pretrained(name).eval().requires_grad_(False)
        return Towers(model, AutoImageProcessor.from_pretrained(name), AutoTokenizer.from_pretrained(name))
    except (OSError, ValueError) as error:
        raise OSError(
            f"no CLIP could be loaded from {name!r}: give a folder that holds the model, its image processor and its"
            " tokenizer, or a hub name that this machine can reach and whose licence you have accepted"
        ) from error
