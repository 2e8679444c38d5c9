"""Each chapter stands twice, as percent script and as notebook. Compare the two by content, and bring them together."""

import fcntl
import hashlib
import json
import os
from pathlib import Path

import jupytext
import jupytext.combine
import nbformat

from press import BUILD, EXECUTED, NOTEBOOKS, PressError
from press.chapter import word_of

KEPT_METADATA = ("tags", "mystnb")
CHECKED = "nbval-check-output"


def content(path: Path) -> list[tuple[str, str, str]]:
    """Type, source and the metadata that matters of each cell: what a pair must agree on."""
    cells = jupytext.read(path).cells
    return [(c.cell_type, c.source.strip(), repr([c.metadata.get(key) for key in KEPT_METADATA])) for c in cells]


def differing(folder: Path = NOTEBOOKS) -> list[tuple[str, str]]:
    """The chapters whose two halves differ, each with where they first do."""
    found = []
    for script in sorted(folder.glob("*.py")):
        notebook = script.with_suffix(".ipynb")
        if not notebook.is_file():
            found.append((script.stem, "there is no notebook"))
            continue
        left, right = content(script), content(notebook)
        if left != right:
            first = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), None)
            where = f"cell {first} differs" if first is not None else f"{len(left)} cells against {len(right)}"
            found.append((script.stem, where))
    for notebook in sorted(folder.glob("*.ipynb")):
        if not notebook.with_suffix(".py").is_file():
            found.append((notebook.stem, "there is no script"))
    return found


def bring_together(folder: Path = NOTEBOOKS) -> None:
    """Update the older half of each differing pair from the one edited last; stored outputs and cell ids stay.

    Raises:
        PressError: when both halves have changed since they last agreed: one edit would be lost. Without a note of when
            that was, as in a fresh clone, the half edited last leads.
    """
    notes = folder.parent / BUILD.name / "pairs.json"  # what each pair held when its halves last agreed
    notes.parent.mkdir(parents=True, exist_ok=True)
    with notes.with_suffix(".lock").open("a") as lock:  # two at once would undo each other's notes
        fcntl.flock(lock, fcntl.LOCK_EX)
        _bring_together(folder, notes)


def _bring_together(folder: Path, notes: Path) -> None:
    agreed, torn = _notes(notes), {}
    for name, where in differing(folder):
        script, notebook = folder / f"{name}.py", folder / f"{name}.ipynb"
        halves = _digest(script), _digest(notebook)
        if all(halves) and name in agreed and agreed[name] not in halves:
            torn[name] = f"{script.name} and {notebook.name} ({where})"
            continue
        from_script = not notebook.is_file() or (
            script.is_file() and script.stat().st_mtime >= notebook.stat().st_mtime
        )
        source, target = (script, notebook) if from_script else (notebook, script)
        cells = jupytext.read(source)
        if from_script:
            cells.metadata.setdefault(
                "kernelspec", {"display_name": "Python 3", "language": "python", "name": "python3"}
            )
            if notebook.is_file():
                cells = jupytext.combine.combine_inputs_with_outputs(cells, nbformat.read(notebook, 4), "py:percent")
            nbformat.write(cells, target)
        else:
            jupytext.write(cells, target, fmt="py:percent")
        # JupyterLab refuses a notebook newer than its script where the two merely order a cell's metadata differently.
        os.utime(target, ns=(source.stat().st_atime_ns, source.stat().st_mtime_ns))
        print(f"{target.relative_to(folder.parent)} brought up to {source.name} ({where})")
    agreed |= {script.stem: _digest(script) for script in folder.glob("*.py") if script.stem not in torn}
    notes.write_text(json.dumps(agreed))
    if torn:
        raise PressError(
            f"both were edited, {', '.join(torn.values())}: carry the one edit over, then delete the half you do not"
            " want"
        )


def _notes(path: Path) -> dict[str, str]:
    """What each pair held when its halves last agreed, as far as it is known."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def _digest(half: Path) -> str:
    """SHA-256 of what a pair must agree on; nothing for a half that is gone."""
    return hashlib.sha256(repr(content(half)).encode()).hexdigest() if half.is_file() else ""


def keep_verdicts(name: str, folder: Path = NOTEBOOKS, executed: Path = EXECUTED) -> int:
    """Store the checked outputs of a chapter's executed copy in its notebook; returns how many there are.

    Raises:
        PressError: when the chapter has not been executed, its code has changed since, or it ran with other parameters.
    """
    name = word_of(name)
    source = executed / f"{name}.ipynb"
    target = next(folder.glob(f"[0-9][0-9]_{name}.ipynb"), None)
    if not (target and source.is_file()):
        raise PressError(f"{name} has no executed copy: run make book")
    notebook, ran = nbformat.read(target, 4), nbformat.read(source, 4)
    other = set(ran.metadata.papermill.parameters) - {"profile", "out"}
    if other or ran.metadata.papermill.parameters.get("profile", "quick") != "quick":
        raise PressError(f"{name} was executed with parameters other than its own: run make book")
    cells = {cell.id: cell for cell in ran.cells}
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if any(cell.id not in cells or cells[cell.id].source != cell.source for cell in code):
        raise PressError(f"{name} was executed with other code than it now holds: run make book")
    kept = 0
    for cell in code:
        if CHECKED in cell.metadata.get("tags", []):
            cell.outputs, cell.execution_count = cells[cell.id].outputs, cells[cell.id].execution_count
            kept += 1
    written = target.stat()
    nbformat.write(notebook, target)
    os.utime(target, ns=(written.st_atime_ns, written.st_mtime_ns))
    return kept
