"""Intervals for what was measured over seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.special import stdtrit


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` independent runs with its confidence interval, in the unit of the values."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Mean and Student-t interval of independent values, such as one paired difference for each seed.

    Raises:
        ValueError: for fewer than two values, or values that are not finite.
    """
    if len(values) < 2:
        raise ValueError(f"an interval needs at least two runs, not {len(values)}: raise seeds")
    if not all(math.isfinite(v) for v in values):
        raise ValueError(f"values must be finite to have a mean: {list(values)}")
    mean, n = fmean(values), len(values)
    half = float(stdtrit(n - 1, (1 + confidence) / 2)) * stdev(values) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n)
