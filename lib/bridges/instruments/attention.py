"""How attention is spread over its keys."""

import math

from jaxtyping import Float
from torch import Tensor


def flatness(weights: Float[Tensor, "... queries keys"]) -> float:
    """Mean entropy of the rows over its maximum, ln(keys): 1 is perfectly flat, 0 looks at one key alone.

    Raises:
        ValueError: for a single key, which every row must look at, or rows that do not sum to 1.
    """
    if weights.shape[-1] < 2:
        raise ValueError("one key leaves nothing to choose: attention over it is always 1")
    if (weights.sum(-1) - 1).abs().max() > 1e-3:
        raise ValueError("rows must sum to 1: give attention weights after the softmax")
    entropy = -(weights * weights.clamp_min(1e-30).log()).sum(-1)
    return (entropy.mean() / math.log(weights.shape[-1])).item()
