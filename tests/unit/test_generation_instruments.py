"""Loops and silences in what a model generates, and how sure a count of right answers is."""

import math
from collections.abc import Callable

import pytest
import torch
from bridges.instruments.generation import Degeneration, degeneration, ends_in_loop
from bridges.instruments.uncertainty import (
    Estimate,
    best_of_looks,
    bootstrap_interval,
    mcnemar,
    mean_interval,
    wilson,
)

END = 2


@pytest.mark.parametrize(
    "ids",
    [
        [7, 7, 7],
        [5, 9, 1, 8, 1, 8, 1, 8],
        [1, 8, 1, 8, 1, 8, 1],  # cut within the unit
        [3, 4, 5, 6] * 3,
        [9, *[3, 4, 5] * 4],
    ],
)
def test_a_loop_at_the_end_is_seen(ids: list[int]) -> None:
    assert ends_in_loop(ids)
    assert not ends_in_loop([*ids, 99]), "the loop is over"


@pytest.mark.parametrize(
    "ids",
    [
        [],
        [7],
        [7, 7],
        [1, 8, 1, 8, 8, 1],
        [3, 4, 5, 6] * 2,
        [3, 4, 5, 6, 7] * 3,
        [7, 7, 7, 5, 6],
        [4, 5, 9, 4, 5, 4, 5],
    ],
)
def test_what_is_no_loop_is_left_in_peace(ids: list[int]) -> None:
    assert not ends_in_loop(ids)


def test_the_unit_and_the_repeats_are_the_callers() -> None:
    assert ends_in_loop([3, 4, 5, 6, 7] * 3, longest_unit=5)
    assert ends_in_loop([7, 7], repeats=2)
    assert not ends_in_loop([7, 7, 7], repeats=4)
    assert not ends_in_loop([1, 8] * 3, longest_unit=1)


def test_planted_degeneration_is_counted_by_kind() -> None:
    found = degeneration(
        [
            [5, 6, 7, END],
            [5, 6, 7, 7, 7, END],  # ends in a loop, and stops by itself at the limit
            [5, 7, 7, 7],  # cut short by something else than the limit: no loop of ours
            [5, 6, 7, 8, 9, 4],  # unstopped, and yet it does not repeat itself
            [5, 1, 8, 1, 8, 1],  # the unit comes two and a half times
            [1, 8, 1, 8, 1, 8],
            [4, 5, 9, 7, 7, 7],
            [END],
            [],
            [0, 0, 0, 0, 0, 0],
        ],
        END,
        limit=6,
    )
    assert found == Degeneration(loops=0.3, empty=0.2, unstopped=0.5, total=10)
    assert found.degenerate == pytest.approx(0.5)
    assert "| 10 | 50.0% | 30.0% | 20.0% | 50.0% |" in found._repr_markdown_()


def test_healthy_generations_are_called_so() -> None:
    healthy = degeneration([[4, 5, END], [7, 7, 7, END]], END, limit=6)
    assert (healthy.degenerate, healthy.unstopped) == (0, 0)


@pytest.mark.parametrize(
    ("generations", "limit", "message"),
    [
        ([], 4, "no generations"),
        ([[5, END, END]], 4, "goes on behind its end token 2: cut each one there"),
        ([[5, 6, 7], [5, 6, 7, 8, 9]], 4, "longer than the limit of 4"),
    ],
)
def test_generations_that_cannot_be_judged_are_refused(generations: list[list[int]], limit: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        degeneration(generations, END, limit)


@pytest.mark.parametrize(("right", "low", "high"), [(163, 0.755, 0.863), (146, 0.665, 0.787)])
def test_wilson_gives_the_published_intervals_of_200(right: int, low: float, high: float) -> None:
    found = wilson(right, 200)
    assert (found.mean, found.n) == (right / 200, 200)
    assert (round(found.low, 3), round(found.high, 3)) == (low, high)
    assert found.half == pytest.approx((high - low) / 2, abs=1e-3)


def test_wilson_stays_within_0_and_1_and_narrows() -> None:
    none, all_of_them = wilson(0, 20), wilson(20, 20)
    # At 0 of n the upper end is z² / (n + z²).
    assert (none.low, none.high) == pytest.approx((0, 1.959964**2 / (20 + 1.959964**2)))
    assert (all_of_them.low, all_of_them.high) == pytest.approx((1 - none.high, 1))
    assert wilson(100, 200).half < wilson(10, 20).half < wilson(10, 20, confidence=0.99).half
    for right, asked in ((1, 0), (-1, 5), (6, 5)):
        with pytest.raises(ValueError, match=f"{right} right of {asked} asked"):
            wilson(right, asked)


def test_half_is_the_smallest_effect_that_could_be_told() -> None:
    assert Estimate(2.0, 1.5, 3.5, 4).half == 1
    told = mean_interval([1.0, 2.0, 3.0])
    assert told.half == pytest.approx(told.high - told.mean)


def test_mcnemar_counts_discordant_pairs_alone() -> None:
    def answers(both: int, first: int, second: int, neither: int) -> tuple[list[bool], list[bool]]:
        a = [True] * both + [True] * first + [False] * second + [False] * neither
        b = [True] * both + [False] * first + [True] * second + [False] * neither
        return a, b

    assert mcnemar(*answers(0, 6, 0, 0)) == pytest.approx(2 / 2**6)
    # Of ten coins, two heads or fewer, on either side: 2 (1 + 10 + 45) / 1024.
    assert mcnemar(*answers(3, 8, 2, 5)) == pytest.approx(112 / 1024)
    assert mcnemar(*answers(300, 8, 2, 500)) == mcnemar(*answers(0, 2, 8, 0)) == mcnemar(*answers(3, 8, 2, 5))
    assert mcnemar(*answers(40, 3, 3, 40)) == 1
    assert mcnemar(*answers(9, 0, 0, 9)) == 1
    with pytest.raises(ValueError, match="1 answers against 2"):
        mcnemar([True], [True, False])
    with pytest.raises(ValueError, match="0 answers against 0"):
        mcnemar([], [])


def test_the_bootstrap_agrees_with_theory_where_there_is_one() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.double).tolist()
    found, students = bootstrap_interval(values), mean_interval(values)
    assert (found.mean, found.n) == (students.mean, 400)
    assert (found.low, found.high) == pytest.approx((students.low, students.high), abs=0.01)
    assert bootstrap_interval(values, confidence=0.8).half < 0.7 * found.half
    # The means of samples of {0, 1} are 0, 1/2, 1 with 1/4, 1/2, 1/4.
    assert (bootstrap_interval([0.0, 1.0]).low, bootstrap_interval([0.0, 1.0]).high) == (0, 1)
    assert bootstrap_interval([0.0, 1.0], confidence=0.4).half == 0


def test_the_bootstrap_is_drawn_by_its_seed_and_leans_with_the_values() -> None:
    skewed = [math.exp(i / 10) for i in range(40)]
    found = bootstrap_interval(skewed, seed=3)
    assert found == bootstrap_interval(skewed, seed=3)
    assert found != bootstrap_interval(skewed, seed=4)
    assert found.high - found.mean > 1.05 * (found.mean - found.low)
    assert bootstrap_interval([2.0] * 5) == Estimate(2.0, 2.0, 2.0, 5)


@pytest.mark.parametrize("interval", [mean_interval, bootstrap_interval])
def test_values_without_an_interval_are_refused(interval: Callable[[list[float]], Estimate]) -> None:
    with pytest.raises(ValueError, match="at least two runs, not 1: raise seeds"):
        interval([1.0])
    with pytest.raises(ValueError, match="must be finite"):
        interval([1.0, math.inf])


def test_the_best_of_many_looks_is_that_of_a_simulation() -> None:
    draws = torch.rand(4000, 8, 50, generator=torch.Generator().manual_seed(0)) < 0.3
    best = draws.sum(2).amax(1)  # (4000,)
    for reached in (15, 19, 21):
        simulated = (best >= reached).double().mean().item()
        noise = 4 * math.sqrt(simulated * (1 - simulated) / 4000)
        assert best_of_looks(0.3, 50, 8, reached) == pytest.approx(simulated, abs=noise + 1e-3)


def test_the_best_of_looks_by_hand_and_at_its_ends() -> None:
    assert best_of_looks(0.5, 2, 1, 2) == pytest.approx(0.25)
    assert best_of_looks(0.5, 2, 3, 2) == pytest.approx(1 - 0.75**3)
    assert best_of_looks(0.2, 10, 5, 0) == 1
    assert best_of_looks(1.0, 10, 5, 10) == 1
    assert best_of_looks(0.0, 10, 5, 1) == 0
    # Far below what 1 - (1 - p) ** looks can hold: a plain difference gives 0.
    assert best_of_looks(0.01, 10, 12, 10) == pytest.approx(12e-20, rel=1e-6, abs=0)
    for share, asked, looks in ((1.1, 5, 1), (0.5, 0, 1), (0.5, 5, 0)):
        with pytest.raises(ValueError, match=f"{looks} looks at {asked} answers"):
            best_of_looks(share, asked, looks, 1)
