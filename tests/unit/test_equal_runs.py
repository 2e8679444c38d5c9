"""By how much two runs must differ, and what the bootstrap over sentences says of two systems."""

import math

import numpy as np
import pytest
from bridges.instruments.translation import bootstrap_difference, least_difference, score
from sacrebleu.metrics import BLEU
from sacrebleu.significance import PairedTest

REFERENCES = [f"the {a} {b} of the {c} is {a}" for a in "abcde" for b in "fghij" for c in "klmno"]
RIGHT = list(REFERENCES)
HALF = [r if i % 2 else "the z z of the z is z" for i, r in enumerate(REFERENCES)]
ALIKE = [r if (i // 2) % 2 else "the z z of the z is z" for i, r in enumerate(REFERENCES)]


def test_the_bootstrap_tells_better_from_worse_and_not_like_from_like() -> None:
    found = bootstrap_difference(HALF, RIGHT, REFERENCES)
    assert found.mean == pytest.approx(score(RIGHT, REFERENCES).bleu - score(HALF, REFERENCES).bleu)
    assert found.low < found.mean < found.high
    assert (found.clear, found.n) == (True, len(REFERENCES))
    assert found.p < 0.01
    level = bootstrap_difference(HALF, ALIKE, REFERENCES)
    assert not level.clear
    assert level.p > 0.5
    same = bootstrap_difference(HALF, HALF, REFERENCES)
    assert (same.mean, same.low, same.high, same.p) == (0, 0, 0, 1)
    narrow, wide = (bootstrap_difference(HALF, ALIKE, REFERENCES, sentences=n) for n in (1000, 20))
    assert narrow.high - narrow.low < (wide.high - wide.low) / 4
    with pytest.raises(ValueError, match="124 and 125 outputs, 125 references"):
        bootstrap_difference(HALF[1:], RIGHT, REFERENCES)


def test_the_bootstrap_draws_as_sacrebleu_does() -> None:
    """Its own test of the same two systems: the better one's interval, taken as a difference to a perfect score."""
    named = [("right", RIGHT), ("half", HALF)]
    _, theirs = PairedTest(named, {"BLEU": BLEU(force=True)}, [REFERENCES], test_type="bs", n_samples=1000)()
    ours = bootstrap_difference(HALF, RIGHT, REFERENCES)
    assert (ours.high - ours.low) / 2 == pytest.approx(theirs["BLEU"][1].ci, rel=0.15)
    assert theirs["BLEU"][1].p_value < 0.01


def test_two_runs_differ_by_less_than_the_least_difference_in_ninety_five_of_a_hundred_cases() -> None:
    draw = np.random.default_rng(0)
    runs = draw.normal(40, 2, size=(4000, 6))  # four to measure the spread with, two that are compared
    less = [abs(r[5] - r[4]) < least_difference(r[:4]) for r in runs.tolist()]
    assert np.mean(less) == pytest.approx(0.95, abs=0.01)
    # Pooled: what tells the groups apart does not count.
    grouped = [abs(r[5] - r[4]) < least_difference(r[:2], [r[2] + 50, r[3] + 50]) for r in runs.tolist()]
    assert np.mean(grouped) == pytest.approx(0.95, abs=0.01)
    assert least_difference([1.0, 3.0]) == pytest.approx(12.706 * math.sqrt(2) * math.sqrt(2), rel=1e-3)
    with pytest.raises(ValueError, match="at least two runs in each group"):
        least_difference([1.0, 2.0], [3.0])
    with pytest.raises(ValueError, match="must be finite"):
        least_difference([1.0, math.nan])
