"""What a chapter reads of the book's files: the logs' recorded figures, records, rows of record, examples."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from bridges.benches.study import Study

from press import REFERENCE, ROOT, PressError, evidence

RECORDED = ROOT / "book" / "recorded"
EXAMPLES = ROOT / "book" / "examples"


def recorded(name: str) -> dict[str, Any]:
    """The figures a log recorded, from `book/recorded/NAME.yml`, with its `source` and `columns`.

    Raises:
        PressError: when there is no such file, naming those there are.
    """
    path = RECORDED / f"{name}.yml"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in RECORDED.glob("*.yml")))
        raise PressError(f"no recorded figures named {name!r}; there are {there}")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def reference(chapter: str, profile: str) -> dict[str, Any]:
    """The committed record of an earlier run of a chapter, from `book/reference/CHAPTER.PROFILE.json`.

    Raises:
        PressError: when there is none.
    """
    path = REFERENCE / f"{chapter}.{profile}.json"
    if not path.is_file():
        raise PressError(
            f"{path.relative_to(ROOT)} is not there: run the chapter with -p profile {profile}, keep its record"
        )
    return json.loads(path.read_text(encoding="utf-8"))


def of_record(chapter: str, study: str) -> Study:
    """A study of another chapter, by its rows of record.

    Raises:
        PressError: where there are none.
    """
    path = evidence.path_of(chapter, study)
    if not path.is_file():
        raise PressError(f"{path.relative_to(ROOT)} is not there: run make evidence C={chapter}")
    return Study(pd.DataFrame(columns=evidence.COLUMNS), evidence.read_rows(path))


def example(name: str) -> Path:
    """A file of `book/examples`.

    Raises:
        PressError: when there is no such file, naming those there are.
    """
    path = EXAMPLES / name
    if not path.is_file():
        there = ", ".join(sorted(p.name for p in EXAMPLES.glob("*.py")))
        raise PressError(f"no example named {name!r}; there are {there}")
    return path
