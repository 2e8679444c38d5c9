"""The first thread's first connectors: a projection, repeated and told apart by learned tokens."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


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
