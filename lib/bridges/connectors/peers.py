"""Connectors that other people have written, behind the signature of ours: inputs and their mask in, tokens out.

Each is built from its own library's class and configuration, at a small size, freshly initialised.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel, CLIPVisionConfig, CLIPVisionModel, IdeficsConfig
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler
from transformers.models.idefics2.configuration_idefics2 import Idefics2PerceiverConfig
from transformers.models.idefics2.modeling_idefics2 import Idefics2PerceiverResampler

DEPTH, HEADS = 2, 4
Core = Callable[[Tensor, Tensor], Tensor]


class Peer(nn.Module):
    """A linear map into the peer's width, the peer, and a linear map out of it.

    A peer that takes no mask is given zeros where the mask is 0.
    """

    def __init__(self, width: int, inner: int, token_width: int, model: nn.Module, read: Callable[..., Any]):
        super().__init__()
        self.into, self.model, self.out = nn.Linear(width, inner), model, nn.Linear(inner, token_width)
        self.read = read

    def forward(
        self, inputs: Float[Tensor, "batch length width"], mask: Int[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        mask = torch.ones_like(inputs[..., 0]).long() if mask is None else mask
        return self.out(self.read(self.model, self.into(inputs) * mask[..., None], mask))


def flamingo(width: int, inner: int, tokens: int, token_width: int) -> Peer:
    """flamingo-pytorch's PerceiverResampler."""
    from flamingo_pytorch import PerceiverResampler

    model = PerceiverResampler(dim=inner, depth=DEPTH, dim_head=inner // HEADS, heads=HEADS, num_latents=tokens)
    return Peer(width, inner, token_width, model, lambda own, x, _: own(x).squeeze(1))


def perceiver_io(width: int, inner: int, tokens: int, token_width: int) -> Peer:
    """perceiver-pytorch's PerceiverIO; what it puts out are its latents."""
    from perceiver_pytorch import PerceiverIO

    own = {"latent_dim": inner, "cross_dim_head": inner // HEADS, "latent_dim_head": inner // HEADS}
    model = PerceiverIO(depth=DEPTH, dim=inner, queries_dim=inner, num_latents=tokens, latent_heads=HEADS, **own)
    return Peer(width, inner, token_width, model, lambda own, x, mask: own(x, mask=mask.bool()))


def idefics(width: int, inner: int, tokens: int, token_width: int) -> Peer:
    """The resampler of Idefics, as transformers has it."""
    config = IdeficsConfig(vision_config={"embed_dim": inner})
    model = IdeficsPerceiverResampler(config, inner, DEPTH, HEADS, inner // HEADS, tokens)
    return Peer(width, inner, token_width, model, lambda own, x, _: own(x))


def idefics2(width: int, inner: int, tokens: int, token_width: int) -> Peer:
    """The resampler of Idefics2, as transformers has it."""
    model = Idefics2PerceiverResampler(
        Idefics2PerceiverConfig(
            hidden_size=inner,
            resampler_n_latents=tokens,
            resampler_depth=DEPTH,
            resampler_n_heads=HEADS,
            resampler_head_dim=inner // HEADS,
            num_key_value_heads=HEADS,
        )
    )
    return Peer(width, inner, token_width, model, lambda own, x, mask: own(x, mask))


class QFormer(nn.Module):
    """Learned queries, and BLIP-2's Q-Former that lets them read."""

    def __init__(self, inner: int, tokens: int):
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(1, tokens, inner).normal_(std=0.02))
        self.model = Blip2QFormerModel(
            Blip2QFormerConfig(
                hidden_size=inner,
                num_hidden_layers=DEPTH,
                num_attention_heads=HEADS,
                intermediate_size=2 * inner,
                encoder_hidden_size=inner,
                cross_attention_frequency=1,
                vocab_size=2,
            )
        )

    def forward(
        self, x: Float[Tensor, "batch length width"], mask: Int[Tensor, "batch length"]
    ) -> Float[Tensor, "batch tokens width"]:
        queries = self.queries.expand(len(x), -1, -1)
        return self.model(query_embeds=queries, encoder_hidden_states=x, encoder_attention_mask=mask).last_hidden_state


def q_former(width: int, inner: int, tokens: int, token_width: int) -> Peer:
    """The Q-Former of BLIP-2, as transformers has it, with its learned queries."""
    return Peer(width, inner, token_width, QFormer(inner, tokens), lambda own, x, mask: own(x, mask))


PEERS = {
    "flamingo-pytorch": flamingo,
    "perceiver-pytorch": perceiver_io,
    "Idefics": idefics,
    "Idefics2": idefics2,
    "BLIP-2 Q-Former": q_former,
}


class ClipVision(nn.Module):
    """CLIP's vision tower on images of 32 pixels, then a linear map: its tokens, the class token first."""

    def __init__(self, inner: int, token_width: int):
        super().__init__()
        config = CLIPVisionConfig(
            hidden_size=inner,
            intermediate_size=2 * inner,
            num_hidden_layers=DEPTH,
            num_attention_heads=HEADS,
            image_size=32,
            patch_size=8,
        )
        self.model, self.out = CLIPVisionModel(config), nn.Linear(inner, token_width)

    def forward(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch tokens dim"]:
        return self.out(self.model(pixel_values=pixels).last_hidden_state)
