"""A loss log from a file, as its training left it: what is left of a run when nothing else is."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from bridges.tasks.log_forms import (
    HELD_OUT,
    OF_ALL,
    TENSORBOARD,
    beginning,
    blank,
    number,
    ordered_words,
    read_rows,
    words,
)

# Where a training that is given as a folder keeps its log, the surest first.
FOLDER = ("log.jsonl", "trainer_state.json", "trainer_log.jsonl", "metrics.csv", "log.txt", "out.log")
DEEPER = ("checkpoint-*/trainer_state.json", "version_*/metrics.csv", "lightning_logs/version_*/metrics.csv")
PLAIN = {"train", "training", "loss", "losses", "step", "global", "batch", "iter"}
WHOLE, SMOOTH = {"total", "sum", "overall", "full"}, {"avg", "average", "mean", "running", "smoothed", "ema", "epoch"}
# A name with one of these says something about a loss, and is none.
OTHER = {"scale", "scaler", "weight", "coef", "ratio", "min", "max", "best", "std", "var", "time", "count", "num", "lr"}
STEPS = (
    *("global step", "trainer global step", "train global step", "step", "steps", "current steps", "num updates"),
    *("iteration", "iterations", "iter", "iters", "it", "batch", OF_ALL, "epoch"),
)
OWN = "validation"  # the key of held-out losses in a log of the book's own trainings
FEW = 8  # values below which a column gives way to another that has as many
TOLD = 8  # names that a line lists


@dataclass(frozen=True)
class LossLog:
    """The losses of a log in the order of the file, and what they were taken from.

    `steps` has as many values: of the column or key `step_column`, or counted from 0 where that is empty. `validation`
    holds the held-out losses with their steps, where those are told. `passed` names the other columns of losses, and a
    line that was torn.
    """

    losses: tuple[float, ...]
    steps: tuple[float, ...]
    column: str
    step_column: str = ""
    passed: tuple[str, ...] = ()
    validation: tuple[tuple[float, float], ...] = ()

    def __str__(self) -> str:
        steps = f"steps from {self.step_column!r}" if self.step_column else "steps counted"
        passed = f"; passed over: {_listed(self.passed)}" if self.passed else ""
        return f"{len(self.losses)} values of {self.column!r}, {steps}{passed}"


def read_losses(path: Path) -> list[float]:
    """The losses of `read_loss_log`, alone."""
    return list(read_loss_log(path).losses)


def read_loss_log(path: Path, column: str = "") -> LossLog:
    """Find the training loss and the step in a log, in the form that it has; nothing is executed.

    Tables (CSV with any usual separator and decimal mark, exports of wandb and TensorBoard, Lightning's metrics.csv
    with its blank cells), JSON (a Trainer's trainer_state.json, lists of entries, lists by name), JSON lines, and text
    that tells names with numbers (printed dictionaries, progress bars, what open_clip, timm or fairseq log); any of
    them gzipped; or the folder of a training that holds one.

    A loss has a word that ends in `loss` in its name. One of training comes before a held-out one, one with eight
    values before one with fewer, `loss` or `train_loss` before a total, a total before a part, and a mean last.

    Args:
        path: the file or folder.
        column: the name of the loss, where it is another than the one that is found.

    Raises:
        ValueError: in one line, for a file that is missing, empty or of no known form, for a column that is not there,
            and for a loss that is not a finite number, naming the line.
    """
    path = _file(path)
    rows, torn = read_rows(path, lambda name: name.lower() == column.lower() if column else _is_loss(name))
    seen = Counter(name for _, row in rows for name, value in row.items() if not blank(value))
    names = sorted((name for name in seen if _is_loss(name)), key=lambda name: _rank(name, seen))
    if not names and set(TENSORBOARD) <= seen.keys():
        names = ["Value"]
    if column:
        asked = [name for name in seen if name.lower() == column.lower()][:1]
        names = asked + [name for name in names if name not in asked] if asked else []
    if not names:
        known = "no table, JSON, or text of names with numbers"
        found = f"it has {_listed(list(seen))}" if seen else f"it is {known}, and begins {beginning(path)}"
        looked_for = column or "loss, such as train_loss"
        raise ValueError(
            f"{path} holds no losses: looked for a column or key of the name {looked_for}, with a number in each line;"
            f" {found}: rename the column, or name it by --column"
        )
    chosen, others = names[0], names[1:]
    taken = [(place, row) for place, row in rows if not blank(row.get(chosen)) or _lost(row, chosen, others)]
    losses = [number(row[chosen]) for _, row in taken]
    for (place, row), loss in zip(taken, losses, strict=True):
        if not math.isfinite(loss):
            told = repr(row[chosen])[:60]
            raise ValueError(
                f"{path}, {place}: {chosen} is {told}, not a finite number: cut the log there, where the run broke, or"
                " leave blank what was not logged"
            )
    step, steps = _steps([row for _, row in taken])
    looked = [name for name in (*others, OWN) if name in seen and (words(name) & HELD_OUT)]
    looks = [(number(row.get(step)), number(row.get(looked[0]))) for _, row in rows] if step and looked else []
    looks = [(at, loss) for at, loss in looks if math.isfinite(at) and math.isfinite(loss)]
    return LossLog(tuple(losses), tuple(steps), chosen, step, (*map(repr, others), *torn), tuple(looks))


def _file(path: Path) -> Path:
    """The log itself, where a folder is given."""
    if path.is_dir() or not (path.suffix or path.exists()):  # what is not there and has no ending is meant as a folder
        found = [path / name for name in FOLDER if (path / name).is_file()]
        for pattern in DEEPER:  # the last of them, by the number in its folder's name
            found += sorted(path.glob(pattern), key=lambda file: int(re.sub(r"\D", "", file.parent.name) or 0))[-1:]
        if not found:
            raise ValueError(f"{path} holds no {', '.join(FOLDER)}: give the folder of a training, or its log")
        return found[0]
    if not path.is_file():
        raise ValueError(
            f"{path} is not there: give a log with a column or key loss, such as CSV, JSON, JSONL or printed text"
        )
    return path


def _is_loss(name: str) -> bool:
    own = words(name)
    return any(word.endswith(("loss", "losses")) for word in own) and not own & OTHER


def _rank(name: str, seen: Counter[str]) -> tuple[bool, bool, int, int]:
    """Which of several losses is the training's: the lowest comes first."""
    own = words(name)
    special = own - PLAIN
    kind = 3 if special & SMOOTH else 0 if not special else 1 if special & WHOLE else 2
    few = seen[name] < FEW <= max(count for other, count in seen.items() if _is_loss(other))
    return few, bool(own & HELD_OUT), kind, -seen[name]


def _lost(row: dict[str, Any], name: str, others: Sequence[str]) -> bool:
    """Whether JSON's null stands for a loss that is no number: no other loss is told beside it."""
    return name in row and row[name] is None and all(blank(row.get(other)) for other in others)


def _steps(rows: list[dict[str, Any]]) -> tuple[str, list[float]]:
    """The first column by the name of a step whose values never go back and seldom stay; else a count."""
    by_name = {" ".join(ordered_words(name)): name for name in rows[0]}
    for wanted in STEPS:
        values = [number(row.get(by_name.get(wanted, ""))) for row in rows]
        forward = all(b >= a for a, b in pairwise(values))  # never, where one is no number
        if math.isfinite(values[0]) and forward and 2 * len(set(values)) >= len(values):
            return by_name[wanted], values
    return "", [float(place) for place in range(len(rows))]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:TOLD]) + (f" and {len(names) - TOLD} more" if len(names) > TOLD else "")
