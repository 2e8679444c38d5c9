"""A loss log from a file: what a training run leaves when nothing else is left of it."""

import csv
import json
import math
from pathlib import Path


def read_losses(path: Path) -> list[float]:
    """The column `loss` of a CSV file with a header, or the key `loss` of each line of a JSONL file.

    Raises:
        ValueError: for a file that is missing or empty, has no `loss`, or a line whose loss is not a finite number,
            naming the line.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not there: give a CSV file with a column loss, or JSONL with a key loss")
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        rows = []
        for number, line in enumerate(text.splitlines(), 1):
            try:
                rows.append((number, json.loads(line)))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: no JSON ({error.msg})") from None
    else:
        rows = list(enumerate(csv.DictReader(text.splitlines()), 2))
    losses = []
    for number, row in rows:
        if not isinstance(row, dict) or "loss" not in row:
            raise ValueError(f"{path}, line {number}: no loss; the file needs a column or key of that name")
        try:
            losses.append(float(row["loss"]))
        except (TypeError, ValueError):
            losses.append(math.nan)
        if not math.isfinite(losses[-1]):
            raise ValueError(f"{path}, line {number}: loss is {row['loss']!r}, not a finite number: cut the log there")
    if not losses:
        raise ValueError(f"{path} holds no losses: it needs a header step,loss and a line for each step")
    return losses
