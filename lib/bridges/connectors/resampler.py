"""The perceiver resampler: a fixed number of learned latents reads a sequence by cross-attention."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class ResamplerSettings:
    """The shape of a resampler.

    `layer_norm` puts a LayerNorm before each block (on latents, on keys and values, before the feed-forward);
    `input_norm` alone takes the one on keys and values away. `latent_std` is the standard deviation of the latents at
    initialisation; habits of the field run from 0.02 (BLIP-2) to 1 (Flamingo's open versions). With `latents_as_keys`
    the latents read each other beside the inputs, as in Flamingo; the logs' resamplers read the inputs alone.
    """

    width: int
    latents: int
    depth: int
    heads: int
    feed_forward: int = 2  # times the width
    layer_norm: bool = True
    latent_std: float = 0.02
    input_norm: bool = True
    residual: bool = True
    latents_as_keys: bool = False


# As the logs give them.
RESAMPLERS = {
    "resampler-log": ResamplerSettings(width=768, latents=64, depth=2, heads=8),
    "alignment-log": ResamplerSettings(width=1024, latents=64, depth=4, heads=8),
}


class CrossAttention(nn.Module):
    """Latents ask, inputs answer; one learned map each for queries, keys, values and output, without biases."""

    def __init__(self, settings: ResamplerSettings):
        super().__init__()
        width = settings.width
        if width % settings.heads:
            raise ValueError(f"a width of {width} cannot be cut into {settings.heads} heads: choose a divisor")
        self.heads, self.latents_as_keys = settings.heads, settings.latents_as_keys
        self.norm_latents = nn.LayerNorm(width) if settings.layer_norm else nn.Identity()
        self.norm_inputs = nn.LayerNorm(width) if settings.layer_norm and settings.input_norm else nn.Identity()
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(width, width, bias=False)
        self.to_v = nn.Linear(width, width, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)

    def split(self, x: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch heads length head"]:
        """One slice of the width for each head."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, S, h * e) -> (B, h, S, e)

    def weights(
        self, latents: Float[Tensor, "batch latents width"], inputs: Float[Tensor, "batch inputs width"]
    ) -> Float[Tensor, "batch heads latents keys"]:
        """How much of each key every latent takes in; each row sums to 1."""
        asking = self.norm_latents(latents)
        return self._weights(asking, self._keys(asking, inputs))

    def _keys(self, asking: Tensor, inputs: Tensor) -> Tensor:
        normed = self.norm_inputs(inputs)
        return torch.cat([normed, asking], 1) if self.latents_as_keys else normed

    def _weights(self, asking: Tensor, keys: Tensor) -> Tensor:
        q, k = self.split(self.to_q(asking)), self.split(self.to_k(keys))
        return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)

    def forward(
        self, latents: Float[Tensor, "batch latents width"], inputs: Float[Tensor, "batch inputs width"]
    ) -> Float[Tensor, "batch latents width"]:
        asking = self.norm_latents(latents)
        keys = self._keys(asking, inputs)
        read = self._weights(asking, keys) @ self.split(self.to_v(keys))  # (B, h, L, S) @ (B, h, S, e) -> (B, h, L, e)
        return self.to_out(read.transpose(1, 2).flatten(2))


class PerceiverResampler(nn.Module):
    """Latents (L, width), refined by `depth` rounds of cross-attention and feed-forward, each with its residual.

    After Jaegle et al. 2021 and Alayrac et al. 2022, section 3.1.
    """

    def __init__(self, settings: ResamplerSettings):
        super().__init__()
        width, hidden = settings.width, settings.feed_forward * settings.width
        self.residual = settings.residual
        self.latents = nn.Parameter(torch.randn(settings.latents, width) * settings.latent_std)
        self.attentions = nn.ModuleList(CrossAttention(settings) for _ in range(settings.depth))
        self.feed_forwards = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width) if settings.layer_norm else nn.Identity(),
                nn.Linear(width, hidden),
                nn.GELU(),
                nn.Linear(hidden, width),
            )
            for _ in range(settings.depth)
        )

    def forward(self, inputs: Float[Tensor, "batch inputs width"]) -> Float[Tensor, "batch latents width"]:
        latents = self.latents.expand(len(inputs), -1, -1)  # (L, width) -> (B, L, width)
        for attend, feed_forward in zip(self.attentions, self.feed_forwards, strict=True):
            read = attend(latents, inputs)
            latents = latents + read if self.residual else read
            thought = feed_forward(latents)
            latents = latents + thought if self.residual else thought
        return latents


class VectorResampler(nn.Module):
    """One vector in, K tokens out: a linear map, a resampler with the vector as its only input, a linear map.

    The resampler log's connector. With a single key the softmax has nothing to choose: see `CrossAttention.weights`.
    """

    def __init__(self, width: int, settings: ResamplerSettings, token_width: int):
        super().__init__()
        self.into = nn.Linear(width, settings.width)
        self.resampler = PerceiverResampler(settings)
        self.out = nn.Linear(settings.width, token_width)

    def forward(self, vector: Float[Tensor, "batch width"]) -> Float[Tensor, "batch tokens dim"]:
        return self.out(self.resampler(self.into(vector).unsqueeze(1)))
