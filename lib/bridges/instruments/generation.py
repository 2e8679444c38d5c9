"""Degenerate generations: those that say nothing, and those that repeat themselves until they are stopped."""

from collections.abc import Sequence
from dataclasses import dataclass


def ends_in_loop(ids: Sequence[int], longest_unit: int = 4, repeats: int = 3) -> bool:
    """Whether the ids end in a unit of one to `longest_unit` tokens, `repeats` times or more without a break.

    An answer such as 1000 does so too where each digit is a token: `degeneration` asks for more.
    """
    ids = list(ids)
    return any(
        len(ids) >= unit * repeats and ids[-unit * repeats :] == ids[-unit:] * repeats
        for unit in range(1, longest_unit + 1)
    )


@dataclass(frozen=True)
class Degeneration:
    """Shares of `total` generations; those that loop are among the unstopped."""

    loops: float
    empty: float
    unstopped: float
    total: int

    @property
    def degenerate(self) -> float:
        """The share that ends in a loop or is empty."""
        return self.loops + self.empty

    def _repr_markdown_(self) -> str:
        return (
            "| generations | degenerate | in a loop | empty | without an end |\n"
            "|--:|--:|--:|--:|--:|\n"
            f"| {self.total} | {self.degenerate:.1%} | {self.loops:.1%} | {self.empty:.1%} | {self.unstopped:.1%} |"
        )


def degeneration(generations: Sequence[Sequence[int]], end: int, limit: int) -> Degeneration:
    """Count the degenerate among generations, each given as its new token ids up to and with the token `end`.

    Unstopped is what ran to `limit` tokens without the end token; a loop is an unstopped generation that ends in one;
    empty is one with nothing before its end.

    Raises:
        ValueError: when there are no generations, one goes on behind its end token, or one is longer than `limit`.
    """
    if not generations:
        raise ValueError("no generations, and so no shares of them: give at least one")
    if any(end in ids[:-1] for ids in generations):
        raise ValueError(f"a generation goes on behind its end token {end}: cut each one there, padding is not said")
    if any(len(ids) > limit for ids in generations):
        raise ValueError(
            f"a generation is longer than the limit of {limit}: give new tokens alone, and their true limit"
        )
    empty = sum(list(ids) in ([], [end]) for ids in generations)
    unstopped = [ids for ids in generations if len(ids) == limit and end not in ids]
    n = len(generations)
    return Degeneration(sum(map(ends_in_loop, unstopped)) / n, empty / n, len(unstopped) / n, n)
