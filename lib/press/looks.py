"""The rule of `book/criteria.md` for when a part has seeds enough, tried on parts whose truth is known."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from bridges.instruments.uncertainty import Estimate, wilson
from jaxtyping import Float
from numpy import ndarray
from scipy.special import stdtrit

from press.ledger import LOOK, LOOKS, where_all_are_equal

Draw = Callable[[np.random.Generator, tuple[int, int]], Float[ndarray, "parts seeds"]]
# What one seed gives of one arm, and its expectation. Shares are 0 or 1 for each seed, the coarsest they can be.
KINDS: dict[str, tuple[Draw, float]] = {
    "normal": (lambda draw, shape: draw.standard_normal(shape), 0.0),
    "heavy tails (Student, 3 degrees)": (lambda draw, shape: draw.standard_t(3, shape), 0.0),
    "skewed (exponential)": (lambda draw, shape: draw.exponential(size=shape), 1.0),
    "one host in four far off": (
        lambda draw, shape: draw.standard_normal(shape) + 8.0 * (draw.random(shape) < 0.25),
        2.0,
    ),
    "shares, half of the seeds": (lambda draw, shape: 1.0 * (draw.random(shape) < 0.5), 0.5),
    "shares, one seed in ten": (lambda draw, shape: 1.0 * (draw.random(shape) < 0.1), 0.1),
}
EFFECTS = (0.15, 0.25, 0.5, 1.0)  # how far the truth lies from the line, in standard deviations over seeds


@dataclass(frozen=True)
class Rates:
    """How the rule fared, as shares of the parts with their 95 % binomial intervals."""

    wrong: Estimate  # given a word, and the wrong one; where the truth is the line itself, either word
    missed: Estimate  # the truth lay outside the interval of at least one look
    undecided: Estimate  # after the last look
    seeds: float  # at which a part stopped, in the mean


def simulate(
    values: Float[ndarray, "parts seeds"], truth: float, line: float, bottom: float | None = None, level: float = LOOK
) -> Rates:
    """Put the rule to parts that hold if they are above the line.

    Args:
        values: what each seed gives, as many seeds as the last look has.
        truth: their expectation.
        line: the criterion's.
        bottom: the least value of a share, whose interval has a width even where all seeds give the same; -1 for a
            difference.
        level: the confidence of each look.
    """
    parts = len(values)
    word = np.zeros(parts)  # 1 confirmed, -1 refuted
    stopped, missed = np.full(parts, LOOKS[-1]), np.zeros(parts, dtype=bool)
    for look in LOOKS:
        seen = values[:, :look]
        mean, half = seen.mean(1), stdtrit(look - 1, (1 + level) / 2) * seen.std(1, ddof=1) / look**0.5
        low, high = mean - half, mean + half
        if bottom is not None:
            for part in np.flatnonzero(half == 0):
                low[part], high[part] = where_all_are_equal(mean[part], look, bottom < 0)
        missed |= (low > truth) | (high < truth)
        decides = (word == 0) & ((low > line) | (high <= line))
        word[decides] = np.where(low > line, 1, -1)[decides]
        stopped[decides] = look
    right = np.sign(truth - line)
    wrong = (word != 0) & (word != right)
    shares = [wilson(int(which.sum()), parts) for which in (wrong, missed, word == 0)]
    return Rates(shares[0], shares[1], shares[2], float(stopped.mean()))


def of_kinds(parts: int = 4000, seed: int = 0) -> dict[str, tuple[Rates, Rates]]:
    """For each kind the paired difference of two identical arms, line at zero, and one arm, line at the truth."""
    found = {}
    for kind, (draw, truth) in KINDS.items():
        one, other = (draw(np.random.default_rng([seed, arm]), (parts, LOOKS[-1])) for arm in range(2))
        share = kind.startswith("shares")
        found[kind] = (
            simulate(one - other, 0.0, 0.0, -1.0 if share else None),
            simulate(one, truth, truth, 0.0 if share else None),
        )
    return found


def of_effects(parts: int = 4000, seed: int = 0) -> dict[float, Rates]:
    """For each effect of `EFFECTS`: parts whose truth lies so far above the line."""
    values = np.random.default_rng(seed).standard_normal((parts, LOOKS[-1]))
    return {effect: simulate(values + effect, effect, 0.0) for effect in EFFECTS}
