"""What runs again after which change. A copy of the built book is changed and asked, in a dry run, what it would do."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from press import BUILD, ROOT
from press.__main__ import main

SNAKEMAKE = Path(sys.executable).with_name("snakemake")
CHAPTER = "encoder_bypass"
SCRIPT = f"notebooks/02_{CHAPTER}.py"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The built book, with the times of its files and Snakemake's notes on how they were made."""
    if not (BUILD / "html" / "index.html").is_file():
        pytest.fail("the book is not built: run make book first", pytrace=False)
    for name in ("book", "lib", "notebooks", "workflow", ".snakemake", "_build"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("vendor", "log"))
    shutil.copytree(ROOT / "book/_static/vendor", tmp_path / "book/_static/vendor")
    for name in ("constraints.txt", "_config.yml", "_toc.yml"):
        shutil.copy2(ROOT / name, tmp_path / name)
    return tmp_path


def snakemake(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """A dry run."""
    return subprocess.run(
        [SNAKEMAKE, "--snakefile", "workflow/Snakefile", "--cores", "1", "--nolock", "--dry-run", *options],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder / "lib")},
        capture_output=True,
        text=True,
        check=False,
    )


def planned(folder: Path, *options: str) -> set[str]:
    """The rules that Snakemake would run there."""
    run = snakemake(folder, *options)
    assert run.returncode == 0, run.stderr
    return set(re.findall(r"^rule (\w+):", run.stdout + run.stderr, re.MULTILINE)) - {"book"}


def edit(path: Path, change: Callable[[str], str]) -> None:
    before = path.read_text()
    path.write_text(change(before))
    assert path.read_text() != before


PROFILE = ("--config", "profile=quick")


def test_nothing_changed_nothing_runs(copy: Path) -> None:
    assert planned(copy, *PROFILE) == set()


def test_a_chapters_prose_runs_that_chapter_and_what_is_made_of_it(copy: Path) -> None:
    edit(copy / SCRIPT, lambda text: text.replace("# ## Symptom", "# ## Symptom\n#\n# More."))
    assert planned(copy, *PROFILE) == {"chapter", "ledger", "site"}


def test_a_module_no_chapter_imports_runs_no_chapter(copy: Path) -> None:
    (copy / "lib/bridges/instruments/unused.py").write_text('"""Nobody imports this."""\n')
    assert planned(copy, *PROFILE) == {"site"}


def test_a_module_of_the_chapter_runs_it(copy: Path) -> None:
    edit(copy / "lib/bridges/instruments/routes.py", lambda text: text + "\nCHANGED = 1\n")
    assert planned(copy, *PROFILE) == {"chapter", "ledger", "site"}


def test_a_comment_or_a_docstring_in_a_module_runs_no_chapter(copy: Path) -> None:
    edit(
        copy / "lib/bridges/instruments/routes.py",
        lambda text: '"""Said otherwise."""\n' + text[text.index("\n\n") :] + "\n# changed\n",
    )
    assert planned(copy, *PROFILE) == {"site"}


def test_rows_of_record_run_their_chapter(copy: Path) -> None:
    rows = next((copy / "book/evidence").rglob("*.csv"))
    edit(rows, lambda text: text + "\n")
    assert planned(copy, *PROFILE) == {"chapter", "ledger", "site"}


def test_a_change_in_how_hosts_are_made_makes_them_anew(copy: Path) -> None:
    edit(copy / "lib/bridges/benches/pretrain.py", lambda text: text.replace("MASKED = 0.3", "MASKED = 0.4"))
    assert planned(copy, *PROFILE) == {"host", "chapter", "ledger", "site"}


def test_a_chapter_edited_while_it_ran_runs_again(copy: Path) -> None:
    """Snakemake notes an input's checksum when the job ends: here the notes say that the edit has been run."""
    script = copy / SCRIPT
    before = sha256(script.read_bytes()).hexdigest()
    edit(script, lambda text: text.replace("# ## Symptom", "# ## Symptom\n#\n# More."))
    after = sha256(script.read_bytes()).hexdigest()
    noted = 0
    for note in (copy / ".snakemake/metadata").iterdir():
        text = note.read_text()
        noted += before in text
        note.write_text(text.replace(before, after))
    assert noted, "Snakemake keeps its notes elsewhere now"
    assert planned(copy, *PROFILE) == {"chapter", "ledger", "site"}


def test_an_unknown_profile_is_refused(copy: Path) -> None:
    run = snakemake(copy, "--config", "profile=huge")
    assert run.returncode == 1
    assert "profile 'huge' is unknown; choose from quick, full" in run.stdout
    assert "Traceback" not in run.stdout


def test_a_page_of_prose_runs_the_site_alone(copy: Path) -> None:
    edit(copy / "book/glossary.md", lambda text: text + "\nMore.\n")
    assert planned(copy, *PROFILE) == {"site"}


def test_a_criterion_does_not_run_its_chapter_and_fails_the_ledger(copy: Path) -> None:
    edit(copy / "book/claims.yml", lambda text: text.replace("threshold: 0\n", "threshold: 1\n", 1))
    assert planned(copy, *PROFILE) == {"ledger", "site"}
    run = subprocess.run(
        [sys.executable, "-m", "press", "ledger", "--collect"],
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(copy / "lib")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert "A1: its criterion in claims.yml has changed" in run.stderr


def test_a_record_taken_away_is_made_again(copy: Path) -> None:
    (copy / "_build/records" / f"{CHAPTER}.json").unlink()
    assert planned(copy, *PROFILE) == {"chapter", "ledger", "site"}


def test_other_parameters_run_the_chapter(copy: Path) -> None:
    assert planned(copy, "--config", "profile=full") == {"host", "chapter", "ledger", "site"}


def test_the_command_line_says_what_is_wrong_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["press", "chapter", CHAPTER, "-p", "sede", "3"])
    assert main() == 1
    assert capsys.readouterr().err.strip().split("\n") == [
        f"error: {CHAPTER} has no parameter 'sede'; it takes profile, seeds, device, out, yours"
    ]
