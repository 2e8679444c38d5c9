"""Scale of what enters a connector and of what leaves it."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Standardise(nn.Module):
    """Shift and scale each feature with statistics fixed beforehand; the identity until `fit` is called.

    A unit-norm sentence vector of width d has features of standard deviation near 1 / sqrt(d), too small to be heard
    beside learned tokens of unit scale.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def fit(self, vectors: Float[Tensor, "samples width"]) -> "Standardise":
        """Take mean and standard deviation of each feature from training vectors; returns itself."""
        self.mean.copy_(vectors.mean(0))
        self.std.copy_(vectors.std(0).clamp_min(1e-6))
        return self

    def forward(self, vector: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
        return (vector - self.mean) / self.std
