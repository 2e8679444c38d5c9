"""When a part has seeds enough: the rule on parts whose truth is known, and on verdicts look by look."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bridges.benches.study import Outcome, Study, only_seeds, rows_of
from bridges.instruments.uncertainty import Estimate, at_confidence, mean_interval
from press.claims import Claim, Part
from press.ledger import (
    LOOK,
    LOOKS,
    SECOND,
    Measured,
    Verdict,
    as_text,
    beside,
    first_decided,
    second_words,
    verdict_of,
    where_all_are_equal,
)
from press.looks import KINDS, of_effects, of_kinds, simulate
from scipy.stats import binom
from test_ledger import ENTRY, write_claims

PARTS = 1000
PART = Part("gain", "accuracy with it minus that without", ">", 5.0, "points", "statistical")
CLAIM = Claim("A1", ("log",), "It helps.", {}, "statistical", (PART,), "first", False)


def as_rare_as(share: float, rate: Estimate) -> bool:
    """Whether so many of `rate.n` happen by chance where each does with this probability."""
    return round(rate.mean * rate.n) <= binom.ppf(0.999, rate.n, share)


def test_identical_arms_are_told_apart_in_one_of_twenty_at_most() -> None:
    for kind, (difference, _) in of_kinds(PARTS).items():
        assert as_rare_as(0.05, difference.wrong), kind


def test_the_truth_lies_in_all_five_intervals_of_even_values() -> None:
    found = of_kinds(PARTS, seed=1)
    for kind in ("normal", "heavy tails (Student, 3 degrees)", "shares, half of the seeds"):
        assert as_rare_as(0.05, found[kind][1].missed), kind


def test_looking_often_without_the_rule_is_found_out() -> None:
    """At 95 % a look, identical arms are told apart far more often than once in twenty."""
    values = np.random.default_rng(0).standard_normal((PARTS, LOOKS[-1]))
    assert not as_rare_as(0.05, simulate(values, 0.0, 0.0, level=0.95).wrong)


def test_shares_that_are_all_equal_need_their_own_interval() -> None:
    draw, truth = KINDS["shares, one seed in ten"]
    values = draw(np.random.default_rng(0), (PARTS, LOOKS[-1]))
    assert not as_rare_as(0.05, simulate(values, truth, truth).missed)
    low, high = where_all_are_equal(0.0, 16, is_difference=False)
    assert low == 0
    assert (1 - high) ** 16 == pytest.approx((1 - LOOK) / 2)
    assert where_all_are_equal(0.0, 16, is_difference=True) == (-high, high)


def test_larger_effects_take_fewer_seeds() -> None:
    rates = list(of_effects(PARTS).values())
    assert [r.seeds for r in rates] == sorted((r.seeds for r in rates), reverse=True)
    assert rates[-1].undecided.mean == 0
    assert rates[-1].seeds < 2 * LOOKS[0]


def at(low: float, high: float, n: int) -> Verdict:
    word = "confirmed" if low > 5 else "refuted" if high <= 5 else "undecided"
    return verdict_of(CLAIM, (Measured("gain", word, (low + high) / 2, (low, high), n),))


def test_a_part_stops_at_the_first_look_that_decides() -> None:
    looks = {16: at(2, 9, 16), 32: at(5.5, 9, 32), 64: at(4, 7, 64)}
    verdict = first_decided(looks)
    assert (verdict.verdict, verdict.parts[0].seeds, verdict.parts[0].n) == ("confirmed", 32, 32)
    held = first_decided({16: at(2, 9, 16), 32: at(3, 8, 32), 64: at(3, 8, 32)})
    assert (held.verdict, held.parts[0].seeds) == ("undecided", 32), "a look that brought no runs is none"


def test_an_undecided_part_says_what_is_excluded_and_what_would_decide() -> None:
    seen = Measured("gain", "undecided", 4.0, (2.0, 6.0), 16, 16)
    assert seen.would_decide(PART) == 64
    assert seen.finding(PART) == (
        "undecided: less than 2 and more than 6 are excluded; at this spread about 64 seeds would decide"
    )
    assert "on its line, between 2 and 6" in replace(seen, seeds=LOOKS[-1]).finding(PART)
    assert replace(seen, observed=5.0).would_decide(PART) == 0


@pytest.mark.parametrize(
    ("low", "high", "none"), [(-4.9, 4.9, True), (-5.1, 4.0, False), (-9.0, -1.0, False), (1.0, 4.0, True)]
)
def test_no_effect_is_an_interval_between_the_line_and_its_mirror_image(low: float, high: float, none: bool) -> None:
    seen = Measured("gain", "refuted", (low + high) / 2, (low, high), 16, 16)
    assert ("no effect worth having" in seen.finding(PART)) == none
    assert not replace(PART, reads="share of runs that are stuck").no_effect(-1, 1), "one arm is no difference"


def test_within_some_seeds_a_study_speaks_of_them_alone() -> None:
    outcomes = {(arm, seed): Outcome({1: {"x": float(seed)}}) for arm in ("a", "b", "c") for seed in range(40)}
    study = Study(rows_of({("a", 0): outcomes["a", 0]}), rows_of(outcomes))
    with only_seeds(range(16)) as asked:
        assert study.mean("a", "x").n == 16
        assert study.gain("a", "b", "x").n == 16
        assert len(study.curve("a", "x").columns) == 16
        assert asked == {"a", "b"}
        assert study.rows["seed"].max() == 15
        assert asked == {"a", "b", "c"}, "who reads the rows may read every arm"
    with only_seeds(SECOND):
        assert study.seeds("a") == list(SECOND)
    assert study.mean("a", "x").n == 40


def test_a_confidence_holds_within_its_block() -> None:
    with at_confidence(0.99):
        wide = mean_interval([0.0, 1.0, 2.0])
        assert mean_interval([0.0, 1.0, 2.0], 0.95) == mean_interval([0.0, 1.0, 2.0], 0.95)
    assert wide.half > mean_interval([0.0, 1.0, 2.0]).half


def test_the_ledger_lists_undecided_parts_and_the_second_set_of_seeds(tmp_path: Path) -> None:
    claims = write_claims(tmp_path, ENTRY)
    part = {"metric": "effect", "verdict": "undecided", "observed": 1.2, "interval": [0.5, 1.9], "n": 16, "seeds": 16}
    row = {"id": "A1", "verdict": "undecided", "strength": "statistical", "chapter": "first", "profile": "quick"}
    row |= {"device": "cpu", "observed": 1.2, "interval": [0.5, 1.9], "n": 16, "parts": [part]}
    assert "1 of 1 parts are undecided" in as_text([row], claims)
    assert not second_words([row], claims)
    decided = part | {"verdict": "confirmed", "interval": [1.1, 1.3]}
    decided["second"] = {"verdict": "undecided", "observed": 1.0, "interval": [0.8, 1.2], "n": 16}
    found = second_words([json.loads(json.dumps(row | {"parts": [decided]}))], claims)
    assert [(first.verdict, second.verdict) for _, _, first, second in found] == [("confirmed", "undecided")]


def test_other_runs_stand_beside_a_verdict() -> None:
    verdict = beside(at(6, 9, 16), at(2, 9, 2), "live")
    assert verdict.parts[0].record()["live"] == {"verdict": "undecided", "observed": 5.5, "interval": [2, 9], "n": 2}
