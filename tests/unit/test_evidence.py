"""Rows of record: made once, kept whole, never edited, and named when their settings have changed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from bridges.benches.study import Outcome, rows_of
from bridges.instruments.variance import nested_variance
from press import ROOT, PressError, evidence
from press.book import _reread
from press.evidence import add, agreement, prune, read_rows, stale

DIGESTS = {"a": "1" * 12, "b": "2" * 12}


def rows(*seeds: int, value: float = 0.1) -> pd.DataFrame:
    return rows_of({(arm, s): Outcome({5: {"x": value + s, "y": 1 / 3}}) for arm in "ab" for s in seeds}, DIGESTS)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(evidence, "BUILD", tmp_path / "_build")
    return tmp_path / "word" / "study.csv"


def test_rows_come_back_to_the_last_digit_and_pandas_reads_them_in_a_line(path: Path) -> None:
    add(path, rows(0, 1), "cpu", 2.0)
    add(path, rows(2, 3), "cpu", 2.0)
    kept = read_rows(path)
    assert (kept["value"].to_numpy() == pd.concat([rows(0, 1), rows(2, 3)])["value"].to_numpy()).all()
    assert len(pd.read_csv(path, comment="#")) == len(kept) == 16
    made = [json.loads(line[2:]) for line in path.read_text().splitlines() if line.startswith("# ")]
    assert [m["seeds"] for m in made] == [[0, 1], [2, 3]]
    assert all(m["device"].startswith("cpu") and m["versions"]["torch"] and m["commit"] and m["seconds"] for m in made)


def test_a_forged_row_is_refused(path: Path) -> None:
    add(path, rows(0, 1), "cpu", 2.0)
    path.write_text(path.read_text().replace("0.1\n", "0.9\n", 1))
    with pytest.raises(
        PressError, match=r"study\.csv: the rows of seeds \[0, 1\] of .* are not those that were measured"
    ):
        read_rows(path)


def test_a_row_that_was_added_or_taken_away_by_hand_is_refused(path: Path) -> None:
    add(path, rows(0, 1), "cpu", 2.0)
    whole = path.read_text()
    path.write_text(whole + f"a,{DIGESTS['a']},9,5,x,1.0\n")
    with pytest.raises(PressError, match="not those that were measured"):
        read_rows(path)
    path.write_text("\n".join(whole.splitlines()[:-1]) + "\n")
    with pytest.raises(PressError, match="not those that were measured"):
        read_rows(path)
    path.write_text(whole.replace("arm,digest", "arm,hash"))
    with pytest.raises(PressError, match="its first line is not"):
        read_rows(path)


def test_stale_rows_are_named_and_can_be_taken_away(path: Path) -> None:
    add(path, rows(0, 1), "cpu", 2.0)
    today = DIGESTS | {"b": "3" * 12}
    assert stale(read_rows(path), DIGESTS) == []
    assert stale(read_rows(path), today) == ["b"]
    assert stale(read_rows(path), {"a": DIGESTS["a"]}) == ["b"], "an arm that is no more is stale too"
    prune(path, today)
    assert set(read_rows(path)["arm"]) == {"a"}


def test_runs_are_held_to_the_record() -> None:
    record = rows(*range(8))
    assert agreement(record[record["seed"] < 2], record) == {"equal": 8, "near": 0, "far": 0}
    off = rows(0, 1, value=0.1 + 1e-9)
    assert agreement(off, record) == {"equal": 4, "near": 4, "far": 0}
    wrong = rows(0, 1, value=100.0)
    assert agreement(wrong, record) == {"equal": 4, "near": 0, "far": 4}


CHAPTER = '''# %% tags=["parameters"]
profile = "quick"  # quick | full
seeds = 0  # at least 2; 0 takes the profile's number
device = "auto"  # auto | cpu | cuda | mps
out = ""
yours = 0  # a reader's own number

# %%
import os
import time

from bridges.benches.study import Outcome
from press.book import begin

run = begin("small", globals(), seeds=(2, 4))
POWER = 2


def measure(arms, seeds):
    """A number for each arm and seed."""
    if max(seeds) > 3 and os.environ.get("SLOW"):
        print("slow now", flush=True)
        time.sleep(600)
    return {(arm, s): Outcome({1: {"x": by * (s + 1.0) ** POWER}}) for arm, by in arms.items() for s in seeds}


study = run.study("numbers", measure, {"once": 1, "twice": 2})

# %%
run.measure(n=study.gain("twice", "once", "x").n, x=study.mean("once", "x").mean, live=study.live.mean("once", "x").n)
run.close()
'''


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """A book of one small chapter, beside the library."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01_small.py").write_text(CHAPTER)
    (tmp_path / "lib").symlink_to(ROOT / "lib")
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "claims.yml").write_bytes((ROOT / "book" / "claims.yml").read_bytes())
    return tmp_path


def python(book: Path, code: str, **environment: str) -> subprocess.Popen[str]:
    """Python code with the press of that book."""
    places = "import press; from pathlib import Path; root = Path.cwd(); press.ROOT = root;"
    places += "press.NOTEBOOKS = root / 'notebooks';"
    places += "press.BUILD = root / '_build'; press.CLAIMS = root / 'book/claims.yml';"
    return subprocess.Popen(
        [sys.executable, "-c", places + code],
        cwd=book,
        env=os.environ | {"MPLBACKEND": "agg", "PYTHONUNBUFFERED": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


EXECUTE = "from press.longruns import execute; execute('small', 'quick')"


def run(book: Path, code: str, **environment: str) -> str:
    with python(book, code, **environment) as process:
        return process.communicate(timeout=300)[0]


def measured(book: Path, text: str = "") -> dict[str, float]:
    """What the chapter, or another text of it, reads when it is run as a page."""
    text = text or (book / "notebooks/01_small.py").read_text()
    (book / "page.py").write_text(text.replace('out = ""', 'out = "record.json"'))
    said = run(book, "import runpy; runpy.run_path('page.py', run_name='__main__')")
    path = book / "record.json"
    if not path.is_file():
        raise AssertionError(said)
    found = json.loads(path.read_text())
    path.unlink()
    return found["measurements"] | {"agreement": found.get("agreement")}


def test_evidence_grows_goes_on_and_survives_a_kill(book: Path) -> None:
    assert measured(book) == {"n": 2, "x": 2.5, "live": 2, "agreement": None}, "without rows a page speaks for itself"
    rows = book / "book/evidence/small/numbers.csv"
    with python(book, EXECUTE, BRIDGES_EVIDENCE="8", SLOW="1") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "slow now" in line:
                process.send_signal(signal.SIGKILL)
                break
    assert set(read_rows(rows)["seed"]) == {0, 1, 2, 3}, "the batch in hand is lost, those before it are kept"
    before = rows.read_text()
    begun = time.monotonic()
    assert "seeds [4, 5]" in run(book, EXECUTE, BRIDGES_EVIDENCE="8")
    assert time.monotonic() - begun < 300
    assert rows.read_text().startswith(before), "what was there stays as it was"
    assert set(read_rows(rows)["seed"]) == set(range(8))
    assert "seeds [" not in run(book, EXECUTE, BRIDGES_EVIDENCE="8"), "a third call has nothing to do"
    found = measured(book)
    assert (found["n"], found["live"]) == (8, 2)
    assert found["agreement"] == {"equal": 4, "near": 0, "far": 0}


def test_changed_settings_stop_the_page_until_rows_are_made_again(book: Path) -> None:
    run(book, EXECUTE, BRIDGES_EVIDENCE="4")
    script = book / "notebooks/01_small.py"
    script.write_text(CHAPTER.replace("POWER = 2", "POWER = 3"))
    with pytest.raises(AssertionError, match="rows of once, twice were made with other settings or hosts than today's"):
        measured(book)
    run(book, EXECUTE, BRIDGES_EVIDENCE="4")
    assert measured(book)["n"] == 4
    script.write_text(
        script.read_text().replace('"""A number for each arm and seed."""', '"""Said otherwise."""  # why')
    )
    assert measured(book)["n"] == 4, "a docstring and a comment change no settings"


def test_a_readers_own_parameter_is_judged_by_itself(book: Path) -> None:
    run(book, EXECUTE, BRIDGES_EVIDENCE="4")
    script = book / "notebooks/01_small.py"
    # What papermill does: a cell behind the parameters, which sets the reader's own.
    found = measured(book, script.read_text().replace("# %%\nimport os", "# %%\nyours = 1\n\n# %%\nimport os"))
    assert (found["n"], found["agreement"]) == (2, None)


def test_an_arm_may_be_of_record_alone(book: Path) -> None:
    script = book / "notebooks/01_small.py"
    apart = CHAPTER.replace('"twice": 2})', '"twice": 2}, here=["once"])').replace(
        'study.gain("twice", "once", "x").n', "0"
    )
    script.write_text(apart)
    assert measured(book)["live"] == 2
    run(book, EXECUTE, BRIDGES_EVIDENCE="4")
    assert set(read_rows(book / "book/evidence/small/numbers.csv")["arm"]) == {"once", "twice"}
    script.write_text(apart.replace("n=0", 'n=study.gain("twice", "once", "x").n'))
    found = measured(book)
    assert (found["n"], found["live"], found["agreement"]) == (4, 2, {"equal": 2, "near": 0, "far": 0})


CLAIMS = """
sources: {log: {title: A log, thread: A}}
claims:
  - id: A1
    sources: [log]
    statement: Twice is far more than once.
    figures: {}
    criterion:
      strength: statistical
      parts: [{metric: gain, reads: twice minus once, comparison: ">", threshold: 17.0, unit: points}]
    chapter: small
"""


def test_only_what_an_undecided_claim_asks_for_goes_on(book: Path) -> None:
    """Looks at 16, 32 and on, until the claim is decided; an arm that it does not ask for stays at the first look."""
    (book / "book/claims.yml").write_text(CLAIMS)
    script = book / "notebooks/01_small.py"
    judged = 'run.judge("A1", lambda: {"gain": study.gain("twice", "once", "x")})\nrun.measure('
    text = CHAPTER.replace("(s + 1.0) ** POWER", "(s % 8) ** POWER").replace('"twice": 2}', '"twice": 2, "idle": 0}')
    script.write_text(text.replace("run.measure(", judged))
    file, looked = book / "book/evidence/small/numbers.csv", book / "_build/looked/small.quick.json"
    assert "takes one look after another" in run(book, EXECUTE, BRIDGES_EVIDENCE="32")
    for look in ("16", "32", "64"):
        said = run(book, EXECUTE, BRIDGES_EVIDENCE=look)
        assert json.loads(looked.read_text()) == {"asked": ["once", "twice"], "undecided": ["once", "twice"]}, said
    assert read_rows(file).groupby("arm")["seed"].nunique().to_dict() == {"once": 64, "twice": 64, "idle": 16}
    (book / "book/claims.yml").write_text(CLAIMS.replace("17.0", "1.0"))
    before = file.read_text()
    run(book, EXECUTE, BRIDGES_EVIDENCE="16")
    assert json.loads(looked.read_text()) == {"asked": ["once", "twice"], "undecided": []}
    run(book, EXECUTE, BRIDGES_EVIDENCE="128")
    assert file.read_text() == before
    run(book, EXECUTE, BRIDGES_EVIDENCE="32", BRIDGES_EVIDENCE_EVERY="1")
    assert read_rows(file).groupby("arm")["seed"].nunique()["idle"] == 32


def test_arms_that_claims_ask_for_are_trained_again_over_their_hosts(book: Path) -> None:
    """In a file of their own, spoken of by nothing but the parts' variance, which stands in the record."""
    (book / "book/claims.yml").write_text(CLAIMS)
    judged = 'run.judge("A1", lambda: {"gain": study.gain("twice", "once", "x")})\nrun.measure('
    text = CHAPTER.replace("(s + 1.0) ** POWER", "(s % 8 + 0.1 * (s // 1000)) ** POWER")
    text = text.replace('"twice": 2}', '"twice": 2, "idle": 0}').replace("run.measure(", judged)
    script = book / "notebooks/01_small.py"
    script.write_text(text)
    run(book, EXECUTE, BRIDGES_EVIDENCE="16")
    before = measured(book)
    said = run(book, EXECUTE, BRIDGES_EVIDENCE="16", BRIDGES_EVIDENCE_AGAIN="16")
    rows = read_rows(book / "book/evidence/small/numbers.again.csv")
    assert set(rows["arm"]) == {"once", "twice"}, said
    assert set(rows["seed"]) == set(range(1000, 1016))
    assert measured(book) == before, "rows of other bridges change no reading"
    (book / "page.py").write_text(text.replace('out = ""', 'out = "record.json"'))
    run(book, "import runpy; runpy.run_path('page.py', run_name='__main__')")
    (part,) = json.loads((book / "record.json").read_text())["verdicts"][0]["parts"]
    first, again = ([(s % 8 + 0.1 * k) ** 2 for s in range(16)] for k in (0, 1))
    found = nested_variance(first, again)
    assert part["variance"]["n"] == 16
    assert part["variance"]["sd"] == pytest.approx(found.sd)
    assert part["variance"]["hosts"] == pytest.approx([found.hosts.mean, found.hosts.low, found.hosts.high])
    assert "exam" not in part["variance"], "the chapter's own function asks no other exam"


def test_readings_of_the_first_exam_do_not_pass_for_the_others() -> None:
    """Of an arm that another exam was asked of, only what it read anew is told of that exam."""
    told = {("a", s): Outcome({5: {"report": s % 7.0, "alone": 3.0}}) for s in (1000, 1001, 2000, 2001)}
    found = _reread(rows_of(told | {("untrained", s): Outcome({0: {"x": float(s)}}) for s in (1000, 1001)}))
    assert set(found.loc[found["seed"] < 2000, "reading"]) == {"report", "alone", "x"}
    other = found[found["seed"] >= 2000]
    assert set(other.loc[other["arm"] == "a", "reading"]) == {"report"}
    assert other.loc[other["arm"] == "untrained", "value"].tolist() == [1000.0, 1001.0]
