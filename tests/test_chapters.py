"""The chapters in figures: how long they are, how much of it is code, how long they took. Aims for judgement."""

import ast
import json
import re
from statistics import median

import pandas as pd
import pytest
from press import NOTEBOOKS, RECORDS
from press.chapter import word_of

SCRIPTS = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.py"))
AIMS = {"lines": 320, "code": 200, "words a code line": 5, "longest cell": 40, "functions": 3, "seconds": 35}


def figures() -> pd.DataFrame:
    """A row for each chapter."""
    rows = {}
    for script in SCRIPTS:
        text = script.read_text(encoding="utf-8")
        cells = re.split(r"(?m)^# %%", text)[1:]
        prose = [c for c in cells if c.startswith(" [markdown]")]
        code = [[line for line in c.split("\n")[1:] if line.strip()] for c in cells if c not in prose]
        words = sum(len(line.lstrip("# ").split()) for c in prose for line in c.split("\n")[1:])
        record = RECORDS / f"{word_of(script.stem)}.json"
        functions = [n.name for n in ast.parse(text).body if isinstance(n, ast.FunctionDef) and n.name != "frame"]
        count = sum(map(len, code))
        rows[script.stem] = {
            "lines": text.count("\n"),
            "code": count,
            "words a code line": round(words / count, 1),
            "longest cell": max(map(len, code)),
            "functions": len(functions),
            "seconds": json.loads(record.read_text())["seconds"] if record.is_file() else None,
        }
    return pd.DataFrame(rows).T


def test_the_chapters_in_figures(capsys: pytest.CaptureFixture[str]) -> None:
    table = figures()
    middle = table.apply(lambda column: median(column.dropna()) if column.notna().any() else None)
    with capsys.disabled():
        print(f"\n{table.to_string()}\n\nmedian\n{middle.to_string()}\n\naims\n{pd.Series(AIMS).to_string()}")
    assert table["lines"].max() <= 600, "a chapter is read in ten minutes: look for what can leave it"
    assert table["longest cell"].max() <= 80, "one idea a cell"
