"""A study: what was read of every arm, seed and look, as one tidy table, and what may be said of it."""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from bridges.benches.fingerprint import label
from bridges.instruments.uncertainty import Estimate, mean_interval

COLUMNS = ["arm", "digest", "seed", "look", "reading", "value"]
# One run of an arm: each reading as a series of values by look, in steps done.
Course = Mapping[str, "pd.Series[float]"]
# What is taken of a run: the name of a reading, for its value at the last look, or a function of the run.
View = str | Callable[[Course], float]
PER_HOST = 1000  # seeds s, s + 1000, s + 2000, ... share the hosts of seed s
_live: ContextVar[bool] = ContextVar("live", default=False)
# Only these seeds of record; unless otherwise said one for each host.
_among: ContextVar[range] = ContextVar("among", default=range(PER_HOST))
_asked: ContextVar[set[str]] = ContextVar("asked")


@dataclass(frozen=True)
class Outcome:
    """What one run left: its readings by look, in steps done; and, where it was made here, texts and the model.

    `rebuild` makes the model again where it is kept elsewhere.
    """

    readings: Mapping[int, Mapping[str, float]]
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    model: nn.Module | None = None
    rebuild: Callable[[], nn.Module] | None = None


def rows_of(outcomes: Mapping[tuple[Hashable, int], Outcome], digests: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Outcomes by arm and seed as rows; `digests` by the arm's name.

    Raises:
        ValueError: for a reading that is not finite.
    """
    rows = []
    for (arm, seed), outcome in outcomes.items():
        for look, readings in outcome.readings.items():
            for reading, value in readings.items():
                if not math.isfinite(value):
                    raise ValueError(f"{label(arm)}, seed {seed}, step {look}: {reading} is {value}; it must be finite")
                rows.append((label(arm), (digests or {}).get(label(arm), ""), seed, look, reading, float(value)))
    return pd.DataFrame(rows, columns=COLUMNS)


@contextmanager
def live_only() -> Iterator[None]:
    """Within it every study speaks of the runs made here alone, not of those of record."""
    token = _live.set(True)
    try:
        yield
    finally:
        _live.reset(token)


@contextmanager
def only_seeds(seeds: range) -> Iterator[set[str]]:
    """Within it every study speaks of these seeds of record alone. Gives the arms that are asked for."""
    asked: set[str] = set()
    tokens = _among.set(seeds), _asked.set(asked)
    try:
        yield asked
    finally:
        _among.reset(tokens[0])
        _asked.reset(tokens[1])


@dataclass(frozen=True)
class Study:
    """Readings by arm, seed and look.

    Seeds pair arms: a difference is taken within a seed, on the seeds that both have. Where there are runs of record,
    they are what is spoken of; `live` speaks of the runs made here.
    """

    made: pd.DataFrame  # rows of the runs made here
    record: pd.DataFrame | None = None  # rows of record, for the arms that have them
    outcomes: Mapping[tuple[str, int], Outcome] = field(default_factory=dict)

    @staticmethod
    def of(outcomes: Mapping[tuple[Hashable, int], Outcome]) -> "Study":
        """The study of runs made here."""
        return Study(rows_of(outcomes), None, {(label(arm), seed): o for (arm, seed), o in outcomes.items()})

    def __or__(self, other: "Study") -> "Study":
        record = [part for part in (self.record, other.record) if part is not None]
        return Study(
            _joined([self.made, other.made]), _joined(record) if record else None, {**self.outcomes, **other.outcomes}
        )

    @property
    def rows(self) -> pd.DataFrame:
        """What is spoken of, for each arm its rows of record or else those made here."""
        _note(self._runs)
        return self._rows

    @property
    def _rows(self) -> pd.DataFrame:
        if self._speaks_live:
            return self.made
        rows = self._of_record
        return rows[rows["seed"].isin(_among.get())]

    @property
    def _speaks_live(self) -> bool:
        return self.record is None or _live.get()

    @cached_property
    def _of_record(self) -> pd.DataFrame:
        assert self.record is not None
        unrecorded = ~self.made["arm"].isin(self.record["arm"].unique())
        return _joined([self.record, self.made[unrecorded]])

    # Tables ask for every run many times: each set of rows is taken apart once.
    _live_runs = cached_property(lambda self: _by_run(self.made))
    _runs_of_record = cached_property(lambda self: _by_run(self._of_record))

    @property
    def _runs(self) -> dict[str, dict[int, Course]]:
        if self._speaks_live:
            return self._live_runs
        among = _among.get()
        return {
            arm: {seed: one for seed, one in of.items() if seed in among} for arm, of in self._runs_of_record.items()
        }

    @property
    def live(self) -> "Study":
        """The runs made here alone."""
        return Study(self.made, None, self.outcomes)

    def __contains__(self, arm: Hashable) -> bool:
        return label(arm) in self._runs

    @property
    def arms(self) -> list[str]:
        """Their names, in the order of the rows."""
        return list(self._runs)

    def seeds(self, *arms: Hashable, among: Iterable[int] | None = None) -> list[int]:
        """The seeds that all these arms have.

        Raises:
            ValueError: for an arm that has none.
        """
        runs = self._runs
        for arm in arms:
            if label(arm) not in runs:
                raise ValueError(f"no run of {label(arm)!r} here; there are {', '.join(runs)}")
        _note(arms)
        shared = set.intersection(*(set(runs[label(arm)]) for arm in arms))
        return sorted(shared if among is None else shared & set(among))

    def course(self, arm: Hashable, seed: int) -> Course:
        """One run.

        Raises:
            ValueError: for a run that is not here.
        """
        if seed not in self.seeds(arm):
            raise ValueError(f"no run of {label(arm)!r} with seed {seed} here")
        return self._runs[label(arm)][seed]

    def curve(self, arm: Hashable, reading: str) -> pd.DataFrame:
        """A reading by look (rows) and seed (columns)."""
        _note([arm])
        rows = self._rows
        part = rows[(rows["arm"] == label(arm)) & (rows["reading"] == reading)]
        return part.pivot(index="look", columns="seed", values="value")

    def values(self, arm: Hashable, view: View, among: Iterable[int] | None = None) -> "pd.Series[float]":
        """One number for each seed."""
        seeds, runs = self.seeds(arm, among=among), self._runs[label(arm)]
        return pd.Series([_seen(runs[seed], view) for seed in seeds], index=seeds, dtype=float)

    def mean(self, arm: Hashable, view: View, among: Iterable[int] | None = None) -> Estimate:
        """The mean over seeds with its 95 % interval."""
        return mean_interval(list(self.values(arm, view, among)))

    def gain(
        self,
        after: Hashable,
        before: Hashable,
        view: View,
        among: Iterable[int] | None = None,
        of: Callable[[float, float], float] = float.__sub__,
    ) -> Estimate:
        """The paired difference (or `of` the two) of `after` over `before`, on the seeds that both have."""
        seeds = self.seeds(after, before, among=among)
        pairs = zip(self.values(after, view, seeds), self.values(before, view, seeds), strict=True)
        return mean_interval([of(float(a), float(b)) for a, b in pairs])

    def ratio(self, after: Hashable, before: Hashable, view: View, among: Iterable[int] | None = None) -> Estimate:
        """The paired ratio."""
        return self.gain(after, before, view, among, float.__truediv__)

    def halves(self, *arms: Hashable) -> tuple[list[int], list[int]]:
        """The shared seeds in two halves, every other one: the first chooses, the second measures."""
        seeds = self.seeds(*arms)
        return seeds[::2], seeds[1::2]

    def best(self, arms: Iterable[Hashable], view: View, among: Iterable[int] | None = None) -> Hashable:
        """The arm that is highest on average."""
        return max(arms, key=lambda arm: self.values(arm, view, among).mean())

    def apart(self, arm: Hashable, other: Hashable) -> "pd.Series[float]":
        """By how much two arms that should be equal differ at most, in any reading at any look, for each seed."""
        columns = ["seed", "look", "reading"]
        _note([arm, other])
        rows = self._rows
        one, two = (rows[rows["arm"] == label(a)].set_index(columns)["value"] for a in (arm, other))
        return (one - two).dropna().abs().groupby("seed").max()

    def model(self, arm: Hashable, seed: int) -> Any:
        """The model of a run made here.

        Raises:
            ValueError: where it was not made here, or not kept.
        """
        outcome = self.outcomes.get((label(arm), seed))
        if outcome and outcome.model is not None:
            return outcome.model
        if outcome and outcome.rebuild:
            return outcome.rebuild()
        raise ValueError(f"no model of {label(arm)!r} with seed {seed} was made here")

    def texts(self, arm: Hashable, seed: int, name: str) -> Sequence[str]:
        """What a run made here said."""
        return self.outcomes[label(arm), seed].texts[name]


@dataclass(frozen=True)
class Tuned:
    """Arms at several rates: the rate of each is chosen on one half of the seeds, the arm measured on the other.

    The rows' arms are pairs (arm, rate).
    """

    study: Study
    rates: tuple[float, ...]
    view: View

    def chosen(self, arm: Hashable) -> tuple[Hashable, float]:
        """The arm at its rate."""
        at = [(arm, rate) for rate in self.rates]
        choosing, _ = self.study.halves(*at)
        return self.study.best(at, self.view, choosing)  # type: ignore[return-value]

    def mean(self, arm: Hashable, view: View | None = None) -> Estimate:
        """The arm at its chosen rate, on the other half of the seeds."""
        chosen = self.chosen(arm)
        return self.study.mean(chosen, view or self.view, self.study.halves(chosen)[1])

    def gain(self, after: Hashable, before: Hashable, of: Callable[[float, float], float] = float.__sub__) -> Estimate:
        """The paired difference of two arms, each at its chosen rate, on the other half of the seeds."""
        a, b = self.chosen(after), self.chosen(before)
        return self.study.gain(a, b, self.view, self.study.halves(a, b)[1], of)

    def ratio(self, after: Hashable, before: Hashable) -> Estimate:
        """The same as a ratio."""
        return self.gain(after, before, float.__truediv__)


def _note(arms: Iterable[Hashable]) -> None:
    """Within `only_seeds`, say which arms are asked for."""
    asked = _asked.get(None)
    if asked is not None:
        asked.update(map(label, arms))


def peak(reading: str) -> Callable[[Course], float]:
    """A run's highest look."""
    return lambda run: float(run[reading].max())


def drop(reading: str) -> Callable[[Course], float]:
    """A run's highest look minus its last."""
    return lambda run: float(run[reading].max() - run[reading].iloc[-1])


def over(reading: str, looks: Sequence[int]) -> Callable[[Course], float]:
    """A run's mean over some looks."""
    return lambda run: float(run[reading].loc[list(looks)].mean())


def _seen(course: Course, view: View) -> float:
    if callable(view):
        return float(view(course))
    if view not in course:
        raise ValueError(f"no reading {view!r} here; there are {', '.join(course)}")
    return float(course[view].iloc[-1])


def _by_run(rows: pd.DataFrame) -> dict[str, dict[int, Course]]:
    """Rows by arm and seed, arms in their order, each reading by look."""
    runs: dict[str, dict[int, dict[str, pd.Series[float]]]] = {arm: {} for arm in rows["arm"].unique()}
    rows = rows.sort_values(["arm", "seed", "reading", "look"])
    keys = rows[["arm", "seed", "reading"]].to_numpy()
    starts = [0, *(1 + np.flatnonzero((keys[1:] != keys[:-1]).any(1)))] if len(keys) else []
    looks, values = pd.Index(rows["look"]), rows["value"].to_numpy(float)
    for first, behind in zip(starts, [*starts[1:], len(keys)], strict=True):
        arm, seed, reading = keys[first]
        series = pd.Series(values[first:behind], looks[first:behind], name="value")
        runs[arm].setdefault(int(seed), {})[reading] = series
    return runs  # type: ignore[return-value]


def _joined(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Rows one after another, the last of equals kept."""
    full = [part for part in parts if len(part)]
    if not full:
        return pd.DataFrame(columns=COLUMNS)
    return pd.concat(full, ignore_index=True).drop_duplicates(["arm", "seed", "look", "reading"], keep="last")
