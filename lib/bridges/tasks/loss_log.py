"""A loss log from a file: what a training run leaves when nothing else is left of it."""

import csv
import json
import math
from pathlib import Path
from typing import Any


def read_losses(path: Path) -> list[float]:
    """The column `loss` of a CSV file with a header, or the key `loss` of each line of a JSONL file.

    Raises:
        ValueError: for a file that is missing or empty, has no `loss`, or a line whose loss is not a finite number,
            naming the line.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not there: give a CSV file with a column loss, or JSONL with a key loss")
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = _json_lines(path, text) if path.suffix.lower() in (".jsonl", ".ndjson") else _table(text)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read ({error}): save it as UTF-8 text") from None
    if not any("loss" in row for _, row in rows):
        raise ValueError(f"{path} holds no losses: it needs a column or key of the name loss, and a line for each step")
    losses = []
    for number, row in rows:
        if "loss" not in row:  # a line of the same log about something else
            continue
        try:
            losses.append(float(row["loss"]))
        except (TypeError, ValueError, OverflowError):
            losses.append(math.nan)
        if not math.isfinite(losses[-1]):
            raise ValueError(f"{path}, line {number}: loss is {row['loss']!r}, not a finite number: cut the log there")
    return losses


def _json_lines(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: no JSON ({error.msg})") from None
            rows.append((number, row if isinstance(row, dict) else {}))
    return rows


def _table(text: str) -> list[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(text.split("\n"), skipinitialspace=True)
    return [(reader.line_num, row) for row in reader]
