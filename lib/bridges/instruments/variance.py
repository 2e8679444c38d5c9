"""Whose the variance is: what runs over one pair of hosts share, and what they do not."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bridges.instruments.uncertainty import Estimate, mean_interval


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


@dataclass(frozen=True)
class NestedVariance:
    """Whose the variance of one run's value is: shares, 0 to 1, each with its interval, that add up to 1.

    `sd` is one run's standard deviation, in the unit of the values. Where no other exam was asked, `exam` is None and
    its share is with the bridges'; else `shift` is how far the other exam moves the mean over all runs, which is no
    part of what runs on one exam differ by.
    """

    sd: float
    hosts: Estimate
    bridges: Estimate
    exam: Estimate | None
    shift: Estimate | None


def nested_variance(
    first: Sequence[float],
    again: Sequence[float],
    other_exam: Sequence[float] | None = None,
    confidence: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> NestedVariance:
    """The parts of hosts, bridges and exam in the variance of a run's value.

    With a, b, c the three values over one host, the exam's part is half the mean of (b - c)², the bridge's that of
    (a - c)² less the exam's, and the hosts' the covariance of a and c, which share nothing else. Parts below zero count
    as 0. The intervals are a percentile bootstrap that draws hosts, with all their values.

    Args:
        first: the value of one bridge over each host.
        again: of another bridge over the same host, by the same exam.
        other_exam: of that other bridge by another exam.
        confidence: of the intervals.
        draws: of the bootstrap.
        seed: of its generator.

    Raises:
        ValueError: for fewer than three hosts, values of different numbers or not finite, or such as do not vary.
    """
    runs = [first, again, again if other_exam is None else other_exam]
    if len({len(values) for values in runs}) > 1 or len(first) < 3:
        raise ValueError(f"{', '.join(str(len(v)) for v in runs)} values: give one for each of three hosts or more")
    values = torch.tensor([list(v) for v in runs], dtype=torch.double).T
    if not torch.isfinite(values).all() or not values.var(0).sum() > 0:
        raise ValueError("the values are not finite or do not vary: there is nothing to take a share of")
    draw = torch.Generator().manual_seed(seed)
    parts, drawn = _nested(values), _nested(values[torch.randint(len(values), (draws, len(values)), generator=draw)])
    ends = torch.tensor([1 - confidence, 1 + confidence], dtype=torch.double) / 2

    def share(place: int) -> Estimate:
        low, high = (drawn[place] / drawn.sum(0).clamp_min(1e-300)).quantile(ends).tolist()
        return Estimate((parts[place] / parts.sum()).item(), low, high, len(values))

    told = other_exam is not None and list(other_exam) != list(again)
    shift = mean_interval((values[:, 2] - values[:, 1]).tolist(), confidence) if told else None
    return NestedVariance(parts.sum().sqrt().item(), share(0), share(1), share(2) if told else None, shift)


def _nested(values: Float[Tensor, "*draws hosts 3"]) -> Float[Tensor, "3 *draws"]:
    a, b, c = values.unbind(-1)
    exam = ((b - c) ** 2).mean(-1) / 2
    bridges = (((a - c) ** 2).mean(-1) / 2 - exam).clamp_min(0)
    hosts = ((a - a.mean(-1, keepdim=True)) * (c - c.mean(-1, keepdim=True))).sum(-1) / (a.shape[-1] - 1)
    return torch.stack([hosts.clamp_min(0), bridges, exam])


def _components(runs: Float[Tensor, "*draws hosts runs"]) -> tuple[Tensor, Tensor]:
    within = runs.var(-1).mean(-1)
    return (runs.mean(-1).var(-1) - within / runs.shape[-1]).clamp_min(0), within
