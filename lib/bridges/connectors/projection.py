"""The first thread's first connectors: a projection, the same repeated, and repeated tokens under one attention."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bridges.connectors.resampler import CrossAttention, ResamplerSettings


class Projection(nn.Module):
    """Two linear maps, one token: the resampler log's "Linear 1024→768→512"."""

    def __init__(self, width: int, hidden: int, token_width: int):
        super().__init__()
        self.maps = nn.Sequential(nn.Linear(width, hidden), nn.Linear(hidden, token_width))

    def forward(self, vector: Float[Tensor, "batch width"]) -> Float[Tensor, "batch 1 dim"]:
        return self.maps(vector).unsqueeze(1)


class Expander(nn.Module):
    """Project the vector once and add it to K learned tokens of unit scale.

    The resampler log's old design, "repeat + add expander", without its attention bridge. All tokens carry the same
    message; how loud it is beside the learned tokens depends on the scale of the input.
    """

    def __init__(self, width: int, tokens: int, token_width: int):
        super().__init__()
        self.projection = nn.Linear(width, token_width)
        self.learned = nn.Parameter(torch.randn(tokens, token_width))

    def forward(self, vector: Float[Tensor, "batch width"]) -> Float[Tensor, "batch tokens dim"]:
        return self.projection(vector).unsqueeze(1) + self.learned  # (B, 1, dim) + (K, dim)


class AttentionBridge(nn.Module):
    """A projection added to K learned tokens of unit scale, then one attention layer without residual or norm.

    The resampler log's old connector. It calls the layer cross-attention and draws it after the tokens were repeated
    and added; it is built as drawn, so that the tokens read each other.
    """

    def __init__(self, width: int, hidden: int, tokens: int, token_width: int, heads: int):
        super().__init__()
        self.projection = Projection(width, hidden, token_width)
        self.learned = nn.Parameter(torch.randn(tokens, token_width))
        self.attention = CrossAttention(ResamplerSettings(token_width, tokens, 1, heads, layer_norm=False))

    def forward(self, vector: Float[Tensor, "batch width"]) -> Float[Tensor, "batch tokens dim"]:
        tokens = self.projection(vector) + self.learned  # (B, 1, dim) + (K, dim)
        return self.attention(tokens, tokens)
