"""The committed notebooks: paired, stripped, and with a verdict stored where one is checked.

nbval runs one short chapter of each part again, by its own defaults and without papermill (`testpaths` in
`pyproject.toml`). The other chapters have just been run by `make book`: here their verdicts are compared with the
stored ones. `pytest notebooks` runs them all again.
"""

import nbformat
import pytest
from press import EXECUTED, NOTEBOOKS
from press.chapter import word_of
from press.pairs import CHECKED, differing

CHAPTERS = sorted(NOTEBOOKS.glob("*.ipynb"))


def test_scripts_and_notebooks_agree() -> None:
    assert differing() == []


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_only_checked_cells_keep_an_output_and_none_of_them_is_empty(path) -> None:
    checked = 0
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type != "code":
            continue
        if CHECKED in cell.metadata.get("tags", []):
            # nbval passes a checked cell in silence when nothing is stored to check against.
            text = "".join(output.get("text", "") for output in cell.outputs)
            assert text.strip(), f"{path.stem}: a checked cell has no stored output"
            assert "keep_output" in cell.metadata.tags, f"{path.stem}: nbstripout would strip the checked output"
            assert cell.execution_count, f"{path.stem}: nbval compares only cells with an execution count"
            checked += 1
        else:
            assert not cell.outputs, f"{path.stem}: outputs are not committed; run nbstripout"
    assert checked == 1, f"{path.stem}: one checked cell prints the verdicts, here are {checked}"


def checked_output(path) -> str:
    """What the one checked cell of a notebook printed."""
    cells = [c for c in nbformat.read(path, 4).cells if CHECKED in c.metadata.get("tags", [])]
    return "".join(output.get("text", "") for cell in cells for output in cell.outputs)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_the_book_as_it_was_run_has_the_stored_verdicts(path) -> None:
    executed = EXECUTED / f"{word_of(path.stem)}.ipynb"
    if not executed.is_file():
        pytest.fail("the book is not built: run make book first", pytrace=False)
    assert checked_output(executed) == checked_output(path)
