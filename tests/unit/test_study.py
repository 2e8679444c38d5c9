"""A study says what its rows say; settings that train alike have one digest, and others another."""

from dataclasses import dataclass, field, replace
from functools import partial

import pytest
from bridges.benches.fingerprint import digest, fingerprint, syntax
from bridges.benches.study import Outcome, Study, Tuned, drop, live_only, only_seeds, over, peak, rows_of


def study(**arms: dict[int, list[float]]) -> Study:
    """Arms of one reading, `score`, whose looks are at steps 10, 20, ...; values by seed."""
    return Study.of(
        {
            (arm, seed): Outcome({10 * (i + 1): {"score": float(value)} for i, value in enumerate(values)})
            for arm, seeds in arms.items()
            for seed, values in seeds.items()
        }
    )


BOTH = study(a={0: [1, 5, 3], 1: [2, 2, 4], 2: [0, 9, 8]}, b={0: [1, 1, 1], 2: [1, 1, 2], 3: [7, 7, 7]})


def test_a_gain_is_taken_within_the_seeds_that_both_have() -> None:
    gain = BOTH.gain("a", "b", "score")
    assert (gain.mean, gain.n) == (4.0, 2)  # 3 - 1 and 8 - 2
    assert BOTH.ratio("a", "b", "score").mean == pytest.approx((3 + 4) / 2)
    assert BOTH.seeds("a", "b") == [0, 2]


@pytest.mark.parametrize(
    ("view", "value"), [("score", 3), (peak("score"), 5), (drop("score"), 2), (over("score", (10, 20)), 3)]
)
def test_a_view_is_of_one_run(view, value) -> None:
    assert BOTH.values("a", view)[0] == value


def test_one_half_chooses_and_the_other_measures() -> None:
    rated = study(**{f"x | {rate}": {s: [10.0 * (s % 2 == 0) * rate + s] for s in range(4)} for rate in (1.0, 2.0)})
    tuned = Tuned(rated, (1.0, 2.0), "score")
    assert rated.halves(("x", 1.0)) == ([0, 2], [1, 3])
    assert tuned.chosen("x") == ("x", 2.0)
    assert tuned.mean("x").mean == 2.0  # seeds 1 and 3 alone, on which the rate does nothing


def test_rows_of_record_are_what_is_spoken_of_and_live_ones_stand_beside() -> None:
    record = rows_of({("a", s): Outcome({30: {"score": 10.0 + s}}) for s in range(8)})
    both = Study(BOTH.made, record, BOTH.outcomes)
    assert both.mean("a", "score").n == 8
    assert both.mean("b", "score").n == 3  # an arm without rows of record is spoken of by those made here
    assert both.live.mean("a", "score").n == 3
    with live_only():
        assert both.mean("a", "score").n == 3


def test_other_bridges_over_the_same_hosts_are_spoken_of_only_where_they_are_asked_for() -> None:
    record = rows_of({("a", s): Outcome({30: {"score": float(s)}}) for s in (0, 1, 1000, 1001)})
    study = Study(BOTH.made, record, BOTH.outcomes)
    assert study.seeds("a") == [0, 1]
    assert study.curve("a", "score").columns.tolist() == [0, 1]
    assert study.apart("a", "a").index.tolist() == [0, 1]
    with only_seeds(range(1000, 2000)) as asked:
        assert study.mean("a", "score").values == (1000.0, 1001.0)
    assert asked == {"a"}


def test_equal_arms_are_equal_and_others_say_by_how_much() -> None:
    assert BOTH.apart("a", "a").max() == 0
    assert BOTH.apart("a", "b")[2] == 8


def test_an_arm_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(ValueError, match="no run of 'c' here; there are a, b"):
        BOTH.mean("c", "score")
    with pytest.raises(ValueError, match="no reading 'bleu' here; there are score"):
        BOTH.mean("a", "bleu")


def test_a_reading_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="a, seed 0, step 1: loss is nan; it must be finite"):
        Study.of({("a", 0): Outcome({1: {"loss": float("nan")}})})


STEPS = 3


@dataclass(frozen=True)
class Settings:
    rate: float
    added: int = 0
    loss: object = None
    cache: str = field(default="", metadata={"settings": False})


def shifted(labels, step):
    """Moves labels."""
    return labels + STEPS


def moved(labels, step):
    """Moves labels, said otherwise."""
    return labels + STEPS  # and commented on


def other(labels, step):
    return labels - STEPS


def test_a_digest_follows_what_trains_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    base = Settings(0.1, loss=shifted)
    assert digest(base) == digest(replace(base, cache="elsewhere"))
    assert digest(base) != digest(replace(base, rate=0.2))
    assert digest(base) != digest(replace(base, loss=other))
    assert syntax('def f():\n    """Said."""\n    return 1\n') == syntax("def f():\n    return 1  # why\n")
    assert digest(base) != digest(replace(base, loss=partial(shifted, step=1)))
    before = digest(base)
    monkeypatch.setitem(globals(), "STEPS", 4)
    assert digest(base) != before, "a constant that a function names belongs to it"


def test_an_option_that_is_off_changes_no_digest() -> None:
    assert "added" not in fingerprint(Settings(0.1))[1]


def test_a_lambda_is_refused() -> None:
    with pytest.raises(ValueError, match="give the function a name with def"):
        digest(Settings(0.1, loss=lambda x: x))
