"""The rows of record: whole, made again to the last digit, and what the runs of the site are held to."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from press import RECORDS, ROOT
from press.chapter import chapters
from press.evidence import EVIDENCE, KEY, processor, read_batches, read_rows
from press.ledger import LOOKS
from scipy.stats import binom

FILES = sorted(EVIDENCE.rglob("*.csv"))
AGAIN = "initialisation"  # a chapter whose batches are short and need no host
LIKE = 10  # readings of one run that go together, more or less


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_rows_are_whole_and_say_where_they_come_from(path: Path) -> None:
    assert path.parent.name in chapters()
    for batch in read_batches(path):
        assert batch.made["commit"] != "unknown"
        assert not batch.made["commit"].endswith("+"), "made from files that no commit holds"
        assert {"seeds", "device", "processor", "versions", "seconds", "finished"} <= set(batch.made)


def test_the_rows_are_text_of_bounded_size() -> None:
    assert sum(path.stat().st_size for path in FILES) < 20e6


def test_the_sites_runs_agree_with_the_rows_as_often_as_chance_allows() -> None:
    """Each value of a run made elsewhere is farther off than two runs are once in twenty; ten go together or not."""
    held = {}
    for path in RECORDS.glob("*.json"):
        record = json.loads(path.read_text())
        if isinstance(record, dict) and "agreement" in record:
            held[path.stem] = record["agreement"]
    assert held, "the book is not built, or nothing in it is held to rows of record"
    far, other = (sum(sum(one[k] for k in keys) for one in held.values()) for keys in (("far",), ("near", "far")))
    allowed = LIKE * binom.ppf(0.999, math.ceil(other / LIKE), 0.05)
    assert far <= allowed, f"{far} of {other} values that differ are far off, {allowed:.0f} may be: {held}"


def test_a_batch_made_again_gives_the_same_rows(tmp_path: Path) -> None:
    """Taken out of a copy and trained anew: to the last digit where processor and versions are the same."""
    for name in ("lib", "book", "notebooks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "vendor"))
    taken = {}
    for path in sorted((tmp_path / "book" / "evidence" / AGAIN).glob("*.csv")):
        text = path.read_text()
        blocks = re.split(r"(?m)^(?=# )", text)
        out = [b for b in blocks[1:] if json.loads(b.splitlines()[0][2:])["seeds"] == [2, 3]]
        if out:
            path.write_text("".join(b for b in blocks if b not in out))
            taken[path] = json.loads(out[0].splitlines()[0][2:])
    assert taken, f"{AGAIN} has no batch of seeds 2 and 3"
    done = subprocess.run(
        [sys.executable, "-m", "press.longruns", AGAIN, "quick"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "lib"), "BRIDGES_EVIDENCE": str(LOOKS[0]), "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for path, made in taken.items():
        again, record = read_rows(path), read_rows(EVIDENCE / AGAIN / path.name)
        both = record.merge(again, on=KEY, suffixes=("", "_again"))
        both = both[both["seed"].isin([2, 3])]
        assert len(both) == record["seed"].isin([2, 3]).sum()
        here = read_batches(path)[-1].made
        if (made["processor"], made["versions"]) == (processor(), here["versions"]):
            pd.testing.assert_series_equal(both["value"], both["value_again"], check_names=False, check_exact=True)
        else:
            pd.testing.assert_series_equal(both["value"], both["value_again"], check_names=False, rtol=0.2, atol=10.0)
