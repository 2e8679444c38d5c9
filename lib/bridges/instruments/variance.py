"""Whose the variance is: what runs over one pair of hosts share, and what they do not."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from bridges.instruments.uncertainty import Estimate


def variance_components(runs: Float[Tensor, "hosts runs"]) -> tuple[float, float]:
    """The variance between hosts, and that within them, in the squared unit of the values.

    One-way analysis of variance with as many runs over each host, the hosts drawn at random: with the mean squares
    between, B, and within, W, of k runs each the two are (B - W) / k, or 0 where that is negative, and W (Searle,
    Casella and McCulloch 1992, section 3.5).

    Raises:
        ValueError: for fewer than two hosts or runs of each, or values that are not finite.
    """
    if runs.dim() != 2 or min(runs.shape) < 2 or not torch.isfinite(runs).all():
        raise ValueError(
            f"values of shape {tuple(runs.shape)}: give a row for each of two hosts or more, two finite runs or more in"
            " each, as many in every row"
        )
    between, within = _components(runs.double())
    return between.item(), within.item()


def host_share(
    runs: Sequence[Sequence[float]], confidence: float = 0.95, draws: int = 10_000, seed: int = 0
) -> Estimate:
    """The share, 0 to 1, of the variance between runs that is their hosts': a row of runs for each host.

    It is the intraclass correlation of Shrout and Fleiss 1979, case 1: how far two runs over one host agree, beside two
    runs over any. The interval is a percentile bootstrap that draws hosts, with all their runs.

    Raises:
        ValueError: as `variance_components` does, for rows of different lengths, and for values that are all equal.
    """
    if len({len(row) for row in runs}) > 1:
        raise ValueError("hosts have different numbers of runs: give as many of each")
    values = torch.tensor([list(row) for row in runs], dtype=torch.double)
    between, within = variance_components(values)
    if not between + within > 0:
        raise ValueError("the values do not vary: there is nothing to take a share of")
    draw = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(values), (draws, len(values)), generator=draw)
    b, w = _components(values[chosen])
    shares = b / (b + w).clamp_min(1e-300)  # a draw of one host alone may not vary
    ends = torch.tensor([1 - confidence, 1 + confidence], dtype=torch.double) / 2
    low, high = shares.quantile(ends).tolist()
    return Estimate(between / (between + within), low, high, len(values))


def _components(runs: Float[Tensor, "*draws hosts runs"]) -> tuple[Tensor, Tensor]:
    within = runs.var(-1).mean(-1)
    return (runs.mean(-1).var(-1) - within / runs.shape[-1]).clamp_min(0), within
