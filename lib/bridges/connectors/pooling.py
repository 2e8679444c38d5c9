"""One vector into many tokens, and many tokens into one vector."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class VectorToTokens(nn.Module):
    """An MLP from one vector to K tokens, the simplest connector that gives each token a value of its own.

    The input is standardised feature by feature with statistics fixed beforehand (see `fit_standardisation`): a
    unit-norm sentence vector of width 256 has features of standard deviation 1/16, too small to move a fresh MLP.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, width: int, tokens: int, token_width: int, hidden: int = 256):
        super().__init__()
        self.tokens = tokens
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, tokens * token_width)
        )

    def fit_standardisation(self, vectors: Float[Tensor, "samples {self.mean.numel()}"]) -> None:
        """Take mean and standard deviation of each feature from training vectors."""
        self.mean.copy_(vectors.mean(0))
        self.std.copy_(vectors.std(0).clamp_min(1e-6))

    def forward(self, vector: Float[Tensor, "batch width"]) -> Float[Tensor, "batch tokens dim"]:
        standardised = (vector - self.mean) / self.std  # (B, width)
        return self.mlp(standardised).unflatten(1, (self.tokens, -1))  # (B, K, dim)
