"""GSM8K (Cobbe et al. 2021): its JSON lines, and the two ways of the field to find the answer in a solution."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

NUMBER = re.compile(r"-?\$?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)")
MARKED = re.compile(rf"####\s*\$?\s*({NUMBER.pattern})")


@dataclass(frozen=True)
class Question:
    """A problem of the set with its worked solution."""

    question: str
    solution: str
    answer: str  # as `marked_answer` writes it


def marked_answer(text: str) -> str | None:
    """The number behind the first `####` that has one ("strict match"), in `plain` spelling; None where none has."""
    found = MARKED.search(text)
    return plain(found[1]) if found else None


def last_number(text: str) -> str | None:
    """The last number of a text, whatever stands before it ("flexible extract"); None where there is none.

    Commas within and a minus sign before are its own: "3,4,5" ends in 345 and "16-3" in -3.
    """
    found = NUMBER.findall(text)
    return plain(found[-1]) if found else None


def plain(number: str) -> str:
    """A number in one spelling: no commas or $, no zeros that say nothing, so that $1,000.50 and 1000.5 are equal."""
    whole, _, decimals = number.replace(",", "").replace("$", "").partition(".")
    sign, digits = ("-", whole[1:]) if whole.startswith("-") else ("", whole)
    digits, decimals = digits.lstrip("0") or "0", decimals.rstrip("0")
    found = digits + (f".{decimals}" if decimals else "")
    return found if found == "0" else sign + found


def read_gsm8k(path: Path) -> list[Question]:
    """All problems of a file of JSON lines with the keys `question` and `answer`.

    Raises:
        ValueError: naming the file and the line, for what is not such a line or a solution without a marked answer.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not there: give GSM8K's train.jsonl or test.jsonl")
    found = []
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8 text") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # the latter for brackets without end
            raise ValueError(f"{where}: not JSON ({getattr(error, 'msg', error)}): each line is one object") from None
        texts = [row.get(key) for key in ("question", "answer")] if isinstance(row, dict) else [None]
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError(f"{where}: needs the keys question and answer, both with a text")
        answer = marked_answer(row["answer"])
        if answer is None:
            raise ValueError(f"{where}: the answer has no '#### number' at its end")
        found.append(Question(row["question"], row["answer"], answer))
    if not found:
        raise ValueError(f"{path} is empty: give GSM8K's train.jsonl or test.jsonl")
    return found


def write_gsm8k(path: Path, rows: Sequence[tuple[str, str]]) -> None:
    """Write (question, solution) pairs as such a file, escaped as GSM8K's own: what was read is written alike."""
    lines = (json.dumps({"question": q, "answer": a}) for q, a in rows)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
