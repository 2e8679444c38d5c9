"""A CLIP-style head: image patches and a text vector meet in one space, where the right pair should be nearest."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from bridges.connectors.pooling import AttentionPooling, MeanPooling
from bridges.connectors.resampler import PerceiverResampler, ResamplerSettings

FIRST_TEMPERATURE = 0.07  # Radford et al. 2021, section 2.5
LARGEST_SCALE = 100.0  # ibid.: "clipped to prevent scaling the logits by more than 100"


class Embeddings(NamedTuple):
    """Unit vectors for images and texts, and the factor on their cosines in the loss (1 / temperature)."""

    image: Float[Tensor, "batch width"]
    text: Float[Tensor, "batch width"]
    scale: Float[Tensor, ""]


@dataclass(frozen=True)
class AlignmentSettings:
    """One side of the alignment log: `connector` and `pooling` are its two models' choices.

    `resampler.width` is the inner width, also where the connector is the direct projector, which has no inner width;
    `resampler.layer_norm` then stands for a LayerNorm on the patches.
    """

    patch_width: int
    text_width: int
    width: int  # of the shared space
    resampler: ResamplerSettings
    connector: Literal["perceiver", "direct"] = "perceiver"
    pooling: Literal["mean", "attention"] = "mean"


class ContrastiveBridge(nn.Module):
    """Patches → linear → perceiver → linear (or one linear, "direct") → pooling → unit norm; text → linear → unit norm.

    The towers that give patches and text vectors are frozen and stand outside; everything here is trained, the
    temperature too.
    """

    def __init__(self, settings: AlignmentSettings):
        super().__init__()
        inner, norm = settings.resampler.width, settings.resampler.layer_norm
        if settings.connector == "perceiver":
            self.image = nn.Sequential(
                nn.Linear(settings.patch_width, inner),
                PerceiverResampler(settings.resampler),
                nn.Linear(inner, settings.width),
            )
        elif settings.connector == "direct":
            self.image = nn.Sequential(
                nn.LayerNorm(settings.patch_width) if norm else nn.Identity(),
                nn.Linear(settings.patch_width, settings.width),
            )
        else:
            raise ValueError(f"connector {settings.connector!r} is unknown; choose perceiver or direct")
        if settings.pooling not in ("mean", "attention"):
            raise ValueError(f"pooling {settings.pooling!r} is unknown; choose mean or attention")
        self.pooling = AttentionPooling(settings.width) if settings.pooling == "attention" else MeanPooling()
        self.text = nn.Linear(settings.text_width, settings.width)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / FIRST_TEMPERATURE)))

    def forward(
        self, patches: Float[Tensor, "batch patches patch_width"], text: Float[Tensor, "batch text_width"]
    ) -> Embeddings:
        image = self.pooling(self.image(patches))  # (B, P, patch_width) -> (B, L or P, width) -> (B, width)
        scale = self.log_scale.clamp(max=math.log(LARGEST_SCALE)).exp()
        return Embeddings(normalize(image, dim=-1), normalize(self.text(text), dim=-1), scale)
