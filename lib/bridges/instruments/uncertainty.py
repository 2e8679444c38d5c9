"""Intervals for what was measured over seeds or counted, and what chance alone would have shown."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from statistics import fmean, stdev

import torch
from scipy.special import stdtrit, xlog1py

_confidence: ContextVar[float] = ContextVar("confidence", default=0.95)


@contextmanager
def at_confidence(confidence: float) -> Iterator[None]:
    """Within it `mean_interval`, and all that takes its intervals from there, has this confidence instead of 0.95."""
    token = _confidence.set(confidence)
    try:
        yield
    finally:
        _confidence.reset(token)


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` independent runs or answers with its confidence interval, in the unit of the values.

    `values` are what it is the mean of, where one number for each run was given.
    """

    mean: float
    low: float
    high: float
    n: int
    values: tuple[float, ...] = field(default=(), repr=False, compare=False)

    @property
    def half(self) -> float:
        """Half the interval's width, which is the smallest effect that these runs could have told from none."""
        return (self.high - self.low) / 2

    def __str__(self) -> str:
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"


def mean_interval(values: Sequence[float], confidence: float | None = None) -> Estimate:
    """Mean and Student-t interval of independent values, such as one paired difference for each seed.

    Args:
        values: at least two.
        confidence: 0.95 where nothing is given, or what `at_confidence` says.

    Raises:
        ValueError: for fewer than two values, or values that are not finite.
    """
    _check(values)
    mean, n = fmean(values), len(values)
    half = float(stdtrit(n - 1, (1 + (confidence or _confidence.get())) / 2)) * stdev(values) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n, tuple(map(float, values)))


def bootstrap_interval(
    values: Sequence[float], confidence: float = 0.95, draws: int = 10_000, seed: int = 0
) -> Estimate:
    """Mean and percentile bootstrap interval of independent values (Efron 1979), whatever their distribution.

    Narrower than it should be for a handful of values, where `mean_interval` leans on the normal distribution instead.

    Raises:
        ValueError: for fewer than two values, or values that are not finite.
    """
    _check(values)
    given, n, draw = torch.tensor(values, dtype=torch.double), len(values), torch.Generator().manual_seed(seed)
    means = torch.stack([given[torch.randint(n, (n,), generator=draw)].mean() for _ in range(draws)])
    low, high = means.quantile(torch.tensor([1 - confidence, 1 + confidence], dtype=torch.double) / 2).tolist()
    return Estimate(fmean(values), low, high, n)


def wilson(right: int, asked: int, confidence: float = 0.95) -> Estimate:
    """The share of right answers with its score interval (Wilson 1927), 0 to 1.

    It holds the model fixed: how far another training run would land is a matter of seeds.

    Raises:
        ValueError: when nothing was asked, or `right` is not among 0 to `asked`.
    """
    if not (asked > 0 and 0 <= right <= asked):
        raise ValueError(f"{right} right of {asked} asked: give counts, at least one asked and no more right than that")
    from scipy.stats import binomtest  # a second to import, which most who take an interval need not wait

    interval = binomtest(right, asked).proportion_ci(confidence, method="wilson")
    return Estimate(right / asked, float(interval.low), float(interval.high), asked)


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> float:
    """The two-sided p-value of two models' answers to the same questions, right or wrong: McNemar's test (1947), exact.

    Only questions that one model has right and the other wrong tell the two apart; 1.0 where there are none.

    Raises:
        ValueError: when there are no answers, or not as many of one as of the other.
    """
    if not a or len(a) != len(b):
        raise ValueError(f"{len(a)} answers against {len(b)}: give both models' answers to the same questions")
    from scipy.stats import binomtest

    discordant = [x for x, y in zip(a, b, strict=True) if x != y]
    return float(binomtest(sum(discordant), len(discordant)).pvalue) if discordant else 1.0


def best_of_looks(share: float, asked: int, looks: int, reached: int) -> float:
    """How probable it is that the best of several looks has at least `reached` right answers, with nothing learned.

    1 - (1 - P[X >= reached]) ** looks with X binomial: the looks are independent, each at `asked` answers that are
    right with probability `share`. Looks at the same questions resemble one another, and so do looks at one model at
    successive steps: then it is a bound from above.

    Raises:
        ValueError: for a share outside 0 to 1, or fewer than one look or answer.
    """
    if not (0 <= share <= 1 and asked > 0 and looks > 0):
        raise ValueError(
            f"{looks} looks at {asked} answers, a share of {share} right: give 0 to 1, and at least one each"
        )
    from scipy.stats import binom

    return float(-math.expm1(xlog1py(looks, -binom.sf(reached - 1, asked, share))))


def _check(values: Sequence[float]) -> None:
    if len(values) < 2:
        raise ValueError(f"an interval needs at least two runs, not {len(values)}: raise seeds")
    if not all(math.isfinite(v) for v in values):
        raise ValueError(f"values must be finite to have a mean: {list(values)}")
