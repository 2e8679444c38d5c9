"""Degenerate generations, which say nothing or repeat themselves, and marks that ask an answer to stop."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

NUMBER = r"-?\$?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)"


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


@dataclass(frozen=True)
class StrictMarks:
    """Shares of `total` answers, 0 to 1: right by each of three marks, and `ended` of itself."""

    first: float  # the number behind the first marker is right
    last: float  # the text's last number is
    strict: float  # the first marker is followed by the right number, and that by the end
    ended: float
    total: int

    def _repr_markdown_(self) -> str:
        return (
            "| answers | right at the first marker | at the last number | strictly | ended |\n"
            "|--:|--:|--:|--:|--:|\n"
            f"| {self.total} | {self.first:.1%} | {self.last:.1%} | {self.strict:.1%} | {self.ended:.1%} |"
        )


def strict_marks(
    texts: Sequence[str], ended: Sequence[bool], answers: Sequence[str | int | float], marker: str = "####"
) -> StrictMarks:
    """Mark generations by where their number is read, and by whether they stop behind it.

    A right answer that runs on is right at the first marker, seldom at the last number, and never strictly.

    Args:
        texts: what was generated, without special tokens.
        ended: whether each has ended of itself, with its end token.
        answers: the right numbers.
        marker: what the final number stands behind, GSM8K's where nothing else is given.

    Raises:
        ValueError: when there are no texts, or not as many of one as of the others.
    """
    if not texts or not len(texts) == len(ended) == len(answers):
        raise ValueError(
            f"{len(texts)} texts, {len(ended)} ends, {len(answers)} answers: give as many of each, and one"
        )
    behind = re.compile(rf"{re.escape(marker)}\s*\$?\s*({NUMBER})")
    first = last = strict = 0
    for text, stops, answer in zip(texts, ended, answers, strict=True):
        right, marked, numbers = _value(answer), behind.search(text), re.findall(NUMBER, text)
        rest = text.partition(marker)[2].strip()
        first += marked is not None and _value(marked[1]) == right
        last += bool(numbers) and _value(numbers[-1]) == right
        strict += bool(stops and re.fullmatch(NUMBER, rest)) and _value(rest) == right
    n = len(texts)
    return StrictMarks(first / n, last / n, strict / n, sum(map(bool, ended)) / n, n)


def _value(number: str | int | float) -> float:
    return float(str(number).replace(",", "").replace("$", ""))
