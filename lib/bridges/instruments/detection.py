"""What a detector of failures is worth: what it rejects among cases known to be bad, and among as many known good."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Detection:
    """Shares, 0 to 1, that a detector rejects of `matched` bad cases (hits) and of as many good (false alarms)."""

    hits: float
    false_alarms: float
    matched: int

    @property
    def score(self) -> float:
        """Hits minus false alarms, from -1 to 1 (Youden 1950); 0 says nothing, however much is rejected."""
        return self.hits - self.false_alarms

    def _repr_markdown_(self) -> str:
        return (
            "| bad cases, and as many good | hits | false alarms | hits minus false alarms |\n|--:|--:|--:|--:|\n"
            f"| {self.matched} | {self.hits:.0%} | {self.false_alarms:.0%} | {self.score:.2g} |"
        )


def detection(bad: Sequence[bool], good: Sequence[bool]) -> Detection:
    """Score a detector by whether it rejects each case known to be bad, and each known to be good.

    Of the more numerous only the first are counted, so that as many of the one stand against as many of the other.

    Raises:
        ValueError: where there are none of either: one side alone says nothing of the other.
    """
    matched = min(len(bad), len(good))
    if not matched:
        raise ValueError(
            f"{len(bad)} bad cases and {len(good)} good ones: a detector is scored on both, give at least one of each"
        )
    hits, false_alarms = (sum(map(bool, cases[:matched])) / matched for cases in (bad, good))
    return Detection(hits, false_alarms, matched)
