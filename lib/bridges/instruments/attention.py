"""How attention is spread over its keys."""

import math

from jaxtyping import Float
from torch import Tensor
from torch.special import xlogy


def flatness(weights: Float[Tensor, "... queries keys"]) -> float:
    """Mean entropy of the rows over its maximum, ln(keys): 1 is perfectly flat, 0 looks at one key alone.

    Raises:
        ValueError: for a single key, which every row must look at, or rows that do not sum to 1.
    """
    if weights.shape[-1] < 2:
        raise ValueError("one key leaves nothing to choose: attention over it is always 1")
    weights = weights.double()  # in half precision small weights have no logarithm
    if not ((weights >= 0).all() and (weights.sum(-1) - 1).abs().max() <= 1e-2):
        raise ValueError("rows must be shares that sum to 1: give attention weights after the softmax")
    entropy = -xlogy(weights, weights).sum(-1)
    return (entropy.mean() / math.log(weights.shape[-1])).item()
