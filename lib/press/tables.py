"""Tables of a page, from rows of whatever values: intervals, numbers, words."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from press.ledger import Interval


def cell(value: Any) -> str:
    """A cell's text: an interval as its mean and ends, a number by three digits, several by commas, None as nothing."""
    if value is None:
        return ""
    if isinstance(value, Interval):
        return f"{value.mean:.3g} [{value.low:.3g}, {value.high:.3g}]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"
    if isinstance(value, list | tuple):
        return ", ".join(map(cell, value))
    return str(value).replace("|", "\\|")


@dataclass(frozen=True)
class Table:
    """Rows under a head, with a note below."""

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""

    def _repr_markdown_(self) -> str:
        # A column of numbers stands on the right, of words and intervals on the left.
        right = [all(isinstance(row[i], int | float | None) for row in self.rows) for i in range(len(self.head))]
        rule = "|" + "|".join("--:" if r else "---" for r in right) + "|"
        lines = [f"| {' | '.join(map(cell, row))} |" for row in (self.head, *self.rows)]
        return "\n".join([lines[0], rule, *lines[1:]]) + (f"\n\n{self.note}" if self.note else "")


def table(head: str, rows: Iterable[Sequence[Any]], note: str = "") -> Table:
    """A table; `head` has its columns between bars.

    Raises:
        ValueError: for a row with another number of cells than the head.
    """
    columns = [part.strip() for part in head.split("|")]
    body = [tuple(row) for row in rows]
    for row in body:
        if len(row) != len(columns):
            raise ValueError(f"{len(columns)} columns ({head}), but a row of {len(row)}: {row}")
    return Table(columns, body, note)
