"""Running a chapter: misuse is refused before anything runs, and failure leaves nothing behind."""

import fcntl
import json
from multiprocessing import Process
from pathlib import Path

import jupytext
import nbformat
import pytest
from press import NOTEBOOKS, PressError, chapter, pairs
from press.chapter import check_parameters
from press.imports import lib_files

SCRIPT = """# %% tags=["parameters"]
profile = "quick"  # quick | full | patient
seeds = 0  # at least 2; 0 takes the profile's number
device = "auto"  # auto | cpu | cuda | mps
out = ""
fail = False  # False | True

# %%
from types import SimpleNamespace

from press.provenance import begin

sizes = {p: SimpleNamespace(seeds=n) for p, n in (("quick", 2), ("full", 3), ("patient", 5))}
run = begin("small", sizes, profile=profile, seeds=seeds, device=device, out=out)
assert not fail, "asked to fail"

# %% tags=["nbval-check-output", "keep_output"]
print(run.seeds)

# %%
run.close()
"""


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A book of one small chapter in a folder of its own."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01_small.py").write_text(SCRIPT)
    pairs.bring_together(tmp_path / "notebooks")
    for name, value in {
        "ROOT": tmp_path,
        "NOTEBOOKS": tmp_path / "notebooks",
        "BUILD": tmp_path / "_build",
        "EXECUTED": tmp_path / "_build" / "executed",
        "RECORDS": tmp_path / "_build" / "records",
    }.items():
        monkeypatch.setattr(chapter, name, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def leftovers(book: Path) -> list[str]:
    """What stands in the book's places; locks, and the notes on pairs, stay by design."""
    return [
        p.name for p in (book / "_build").rglob("*") if p.is_file() and p.suffix != ".lock" and p.name != "pairs.json"
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sede": "3"}, r"no parameter 'sede'; it takes profile, seeds, device, out, fail"),
        ({"profile": "huge"}, "profile is 'huge'; choose from quick, full"),
        ({"seeds": "many"}, "seeds is 'many'; it must be of type int"),
        ({"seeds": "-1"}, "cannot be negative"),
        ({"device": "tpu"}, "device is 'tpu'; choose from auto, cpu, cuda, mps"),
        ({"out": "x.json"}, "out is set by this command"),
    ],
)
def test_misuse_is_refused_before_anything_runs(book: Path, given: dict[str, str], message: str) -> None:
    with pytest.raises(PressError, match=message):
        chapter.run("01_small", given, book=True)
    assert leftovers(book) == []


def test_a_device_that_is_not_there_is_refused(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(PressError, match="'cuda' is not on this machine; there is cpu"):
        chapter.run("01_small", {"device": "cuda"}, book=True)
    assert leftovers(book) == []


def test_an_unknown_chapter_is_refused_by_name(book: Path) -> None:
    with pytest.raises(PressError, match="no chapter '09_none'; there are small"):
        chapter.run("09_none", {}, book=True)


def test_a_run_leaves_the_executed_chapter_and_its_record(book: Path) -> None:
    chapter.run("small", {"seeds": "4"}, book=True)
    record = json.loads((book / "_build/records/small.json").read_text())
    assert (record["seeds"], record["profile"]) == (4, "quick")
    assert record["seconds"] > 0
    assert sorted(leftovers(book)) == ["small.ipynb", "small.json"]
    executed = (book / "_build/executed/small.ipynb").read_text()
    assert str(book) not in executed


def test_a_profile_of_a_chapters_own_leaves_a_record(book: Path) -> None:
    chapter.run("01_small", {"profile": "patient"}, book=False)
    assert json.loads((book / "_build/runs/small.json").read_text())["profile"] == "patient"


def test_a_failing_cell_leaves_nothing_and_keeps_what_was_there(book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PressError, match="small failed at its cell 2: AssertionError: asked to fail"):
        chapter.run("01_small", {"fail": "True"}, book=True)
    assert leftovers(book) == []
    assert "assert not fail" in capsys.readouterr().err
    chapter.run("01_small", {}, book=True)
    before = (book / "_build/records/small.json").read_bytes()
    with pytest.raises(PressError):
        chapter.run("01_small", {"fail": "True"}, book=True)
    assert (book / "_build/records/small.json").read_bytes() == before


def test_the_notebook_itself_refuses_an_impossible_number_of_seeds(book: Path) -> None:
    with pytest.raises(PressError, match="give a whole number of at least 2"):
        chapter.run("01_small", {"seeds": "1"}, book=True)
    assert leftovers(book) == []


def test_every_chapter_declares_its_choices() -> None:
    for notebook in sorted(NOTEBOOKS.glob("*.ipynb")):
        with pytest.raises(PressError, match="choose from quick, full"):
            check_parameters(notebook, {"profile": "huge"})


def test_pairs_are_compared_by_content_and_brought_together(book: Path) -> None:
    script, notebook = book / "notebooks/01_small.py", book / "notebooks/01_small.ipynb"
    ids = [cell.id for cell in nbformat.read(notebook, 4).cells]
    assert pairs.differing(book / "notebooks") == []
    script.write_text(SCRIPT.replace("print(run.seeds)", "print(run.seeds + 1)"))
    assert pairs.differing(book / "notebooks") == [("01_small", "cell 2 differs")]
    pairs.bring_together(book / "notebooks")
    assert pairs.differing(book / "notebooks") == []
    assert [cell.id for cell in nbformat.read(notebook, 4).cells][:2] == ids[:2]


def test_the_notebook_leads_when_it_was_edited_last(book: Path) -> None:
    script, notebook = book / "notebooks/01_small.py", book / "notebooks/01_small.ipynb"
    cells = nbformat.read(notebook, 4)
    cells.cells[-1].source = "run.close()  # edited"
    nbformat.write(cells, notebook)
    later = script.stat().st_mtime + 5
    import os

    os.utime(notebook, (later, later))
    pairs.bring_together(book / "notebooks")
    assert "run.close()  # edited" in script.read_text()


def test_two_edits_of_one_pair_are_not_merged_by_chance(book: Path) -> None:
    script, notebook = book / "notebooks/01_small.py", book / "notebooks/01_small.ipynb"
    cells = nbformat.read(notebook, 4)
    cells.cells[-1].source = "run.close()  # edited here"
    nbformat.write(cells, notebook)
    script.write_text(SCRIPT.replace("print(run.seeds)", "print(run.seeds + 1)"))
    with pytest.raises(PressError, match=r"both were edited, 01_small\.py and 01_small\.ipynb \(cell 2 differs\)"):
        pairs.bring_together(book / "notebooks")
    assert "edited here" in notebook.read_text()
    assert "run.seeds + 1" in script.read_text()
    notebook.unlink()
    pairs.bring_together(book / "notebooks")
    assert "run.seeds + 1" in notebook.read_text()
    (book / "_build/pairs.json").write_text("{cut o")
    pairs.bring_together(book / "notebooks")


def test_halves_that_came_changed_together_can_be_edited_afterwards(book: Path) -> None:
    folder, script = book / "notebooks", book / "notebooks/01_small.py"
    (folder / "01_small.ipynb").unlink()
    script.write_text(SCRIPT.replace("print(run.seeds)", "print(run.seeds + 1)"))
    notes = (book / "_build/pairs.json").read_text()
    pairs.bring_together(folder)
    (book / "_build/pairs.json").write_text(notes)  # both halves new beside old notes, as after a pull
    pairs.bring_together(folder)
    script.write_text(SCRIPT.replace("print(run.seeds)", "print(run.seeds + 2)"))
    pairs.bring_together(folder)
    assert pairs.differing(folder) == []


def test_a_run_that_outlived_its_parent_overwrites_nothing(book: Path) -> None:
    (book / "_build/executed").mkdir(parents=True)
    with (book / "_build/executed/small.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("4711")
        lock.flush()
        with pytest.raises(PressError, match=r"small is still running elsewhere \(process 4711\)"):
            chapter.run("01_small", {}, book=True)
    assert leftovers(book) == []


def test_two_chapters_run_side_by_side(book: Path) -> None:
    """With kernels on socket files of one name, each would answer the other."""
    (book / "notebooks/02_other.py").write_text(SCRIPT.replace("small", "other"))
    pairs.bring_together(book / "notebooks")
    children = []
    for name in ("01_small", "02_other"):
        children.append(Process(target=chapter.run, args=(name, {}), kwargs={"book": True}))
        children[-1].start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    for name in ("small", "other"):
        assert json.loads((book / f"_build/records/{name}.json").read_text())["chapter"] == name


def test_a_model_that_does_not_load_is_told_in_one_line(book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = book / "notebooks/01_small.py"
    loads = 'from press.provenance import refusing\nwith refusing():\n    raise OSError("nothing at /nowhere")  #'
    script.write_text(SCRIPT.replace("assert not fail", loads))
    pairs.bring_together(book / "notebooks")
    with pytest.raises(PressError, match=r"^small: nothing at /nowhere$"):
        chapter.run("01_small", {}, book=True)
    assert "Traceback" not in capsys.readouterr().err


def test_checked_outputs_survive_an_edit_elsewhere(book: Path) -> None:
    chapter.run("01_small", {}, book=True)
    folder = book / "notebooks"
    assert pairs.keep_verdicts("01_small", folder, book / "_build/executed") == 1
    (folder / "01_small.py").write_text(SCRIPT.replace("asked to fail", "was asked to fail"))
    pairs.bring_together(folder)
    kept = [c for c in nbformat.read(folder / "01_small.ipynb", 4).cells if c.get("outputs")]
    assert [c.outputs[0].text for c in kept] == ["2\n"]
    # JupyterLab's jupytext would refuse a notebook that is newer than its script.
    assert (folder / "01_small.ipynb").stat().st_mtime_ns <= (folder / "01_small.py").stat().st_mtime_ns
    with pytest.raises(PressError, match="other code than it now holds"):
        pairs.keep_verdicts("01_small", folder, book / "_build/executed")
    chapter.run("01_small", {"seeds": "5"}, book=True)
    with pytest.raises(PressError, match="parameters other than its own"):
        pairs.keep_verdicts("01_small", folder, book / "_build/executed")


def test_a_script_depends_on_the_modules_it_imports_and_theirs(tmp_path: Path) -> None:
    lib = tmp_path / "lib"
    (lib / "pack").mkdir(parents=True)
    (lib / "pack" / "__init__.py").touch()
    (lib / "pack" / "used.py").write_text("from pack import deeper\n")
    (lib / "pack" / "deeper.py").write_text("import json\n")
    (lib / "pack" / "unused.py").touch()
    script = tmp_path / "script.py"
    script.write_text("from pack.used import deeper\nimport numpy\n")
    assert lib_files(script, lib) == ["lib/pack/__init__.py", "lib/pack/deeper.py", "lib/pack/used.py"]
    assert "lib/pack/used.py" in lib_files(lib / "pack" / "used.py", lib), "a script in lib depends on itself"


def test_jupytext_reads_every_script() -> None:
    for script in sorted(NOTEBOOKS.glob("*.py")):
        assert jupytext.read(script).cells
