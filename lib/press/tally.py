"""How often a check-up was right about cases whose fault is known, from a run or from its record."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bridges.instruments.uncertainty import Estimate, wilson
from bridges.planted.cases import Case

Key = tuple[str, ...]


def percent(right: int, count: int) -> Estimate:
    """A share in percent with its 95 % Wilson interval."""
    found = wilson(right, count)
    return Estimate(100 * found.mean, 100 * found.low, 100 * found.high, count)


@dataclass
class Tally:
    """How many cases there were, and which were judged wrongly.

    Cases are counted by thread, connector and what was planted (nothing in a healthy one), wrong ones also by seed and
    by what was named instead.
    """

    seeds: int
    cases: Counter[Key] = field(default_factory=Counter)
    wrong: Counter[Key] = field(default_factory=Counter)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Tally":
        """What a run has noted by `measured`."""
        found = cls(record["seeds"])
        for name, count in record["measurements"].items():
            part, *key = name.split(" | ")
            if part in ("cases", "wrong"):
                getattr(found, part)[tuple(key)] = int(count)
        return found

    def measured(self) -> dict[str, int]:
        """The counts by one text each, for a record."""
        parts = {"cases": self.cases, "wrong": self.wrong}
        return {" | ".join((part, *key)): n for part, counts in parts.items() for key, n in counts.items()}

    def add(self, case: Case, named: str, fine: str) -> None:
        """Count a case of which the check-up named this; `fine` is what it says of a bridge without a fault."""
        key = case.thread, case.connector, case.planted
        self.cases[key] += 1
        if named not in (case.names or (fine,)):
            self.wrong[*key, str(case.seed), named] += 1

    def counts(
        self, place: Key | None = None, fault: str | None = None, planted: bool | None = None
    ) -> tuple[int, int]:
        """The right ones and all, among the cases of a thread and connector, with a fault, or with any or none."""

        def fits(key: Key) -> bool:
            return place in (None, key[:2]) and fault in (None, key[2]) and planted in (None, bool(key[2]))

        count = sum(n for key, n in self.cases.items() if fits(key))
        return count - sum(n for key, n in self.wrong.items() if fits(key)), count

    def share(self, **which: Any) -> Estimate | None:
        """The share of right ones among those cases, in percent; None where there are none."""
        right, count = self.counts(**which)
        return percent(right, count) if count else None

    def right(self, **which: Any) -> str:
        """`7 of 8`; nothing where there are none."""
        right, count = self.counts(**which)
        return f"{right} of {count}" if count else ""

    def bridges(self) -> Estimate:
        """The share of bridges all of whose cases were right, in percent."""
        count = self.seeds * len({key[:2] for key in self.cases})
        return percent(count - len({(*key[:2], key[3]) for key in self.wrong}), count)

    def instead(self, fault: str) -> str:
        """What was named in the place of a fault, with seeds and connectors; of healthy bridges, what was raised."""
        found: dict[str, list[str]] = {}
        for _, connector, planted, seed, named in self.wrong:
            if planted == fault:
                found.setdefault(f"{named} (seed {seed}", []).append(connector)
        return "; ".join(f"{named}: {', '.join(connectors)})" for named, connectors in found.items())
