"""Run one chapter with papermill, so that what it leaves behind is whole or not there."""

import ast
import json
import logging
import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jupyter_client.manager import AsyncKernelManager
from traitlets.config import Config

from press import BUILD, EXECUTED, NOTEBOOKS, RECORDS, ROOT, PressError, warm
from press.claims import check_schema
from press.lock import hold
from press.provenance import find_device

SILENT_SECONDS = 5.0
# Kernels and helpers share the cores: one BLAS thread each, as many processes as cores.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


# The chapter that explains a fault of the check-up, by the fault's topic.
TOPICS = {
    "chance lines": "stuck_loss",
    "leaks": "beyond_the_target",
    "retrieval": "direct_model",
    "gates": "gate_schedules",
    "initial values": "initialisation",
    "collapse": "collapse",
    "loudness": "another_source",
    "scale": "rms_matching",
    "gradients": "latents",
    "padding and stopping": "padding_and_stopping",
    "penalties": "kl_anchor",
}


class Progress:
    """Passes a kernel's progress bars on to the terminal, one line every few seconds, named by the chapter."""

    def __init__(self, name: str):
        self.name, self.last = name, 0.0

    def write(self, text: str) -> int:
        line = re.split(r"[\r\n]", text.strip())[-1].strip()
        now = time.monotonic()
        if line and now - self.last > SILENT_SECONDS:
            self.last = now
            print(f"{self.name}: {line}", flush=True)
        return len(text)

    def flush(self) -> None:
        pass


def word_of(name: str) -> str:
    """A chapter's word: its file's name without number and ending. The number stands in the file's name alone."""
    return re.sub(r"^\d\d_", "", name)


def chapters() -> list[str]:
    """The chapters' words, in reading order."""
    return [word_of(p.stem) for p in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.py"))]


def script_of(name: str) -> Path:
    """The script of a chapter, by its word or its file's name.

    Raises:
        PressError: for an unknown chapter, naming those there are.
    """
    found = list(NOTEBOOKS.glob(f"[0-9][0-9]_{word_of(name)}.py"))
    if len(found) != 1:
        raise PressError(f"there is no chapter {name!r}; there are {', '.join(chapters())}")
    return found[0]


def notebook_of(name: str) -> Path:
    """The notebook of a chapter.

    Raises:
        PressError: for an unknown chapter, naming those there are.
    """
    return script_of(name).with_suffix(".ipynb")


def link_to(topic: str) -> str:
    """A link to the chapter that explains a topic, by its title.

    Raises:
        PressError: for a topic that no chapter explains.
    """
    if topic not in TOPICS:
        raise PressError(f"no chapter explains {topic!r}; there are {', '.join(TOPICS)}")
    title = re.search(r"^# # (.+)$", script_of(TOPICS[topic]).read_text(encoding="utf-8"), re.MULTILINE)
    return f"[{title[1] if title else topic}]({TOPICS[topic]}.ipynb)"


def parameters_of(script: Path) -> dict[str, Any]:
    """A chapter's parameters and their defaults, from the cell tagged so."""
    cell = re.search(r'^# %%.*tags=\["parameters"\]\n(.*?)(?=^# %%)', script.read_text(), re.DOTALL | re.MULTILINE)
    if not cell:
        raise PressError(f'{script.name} has no cell tagged "parameters"')
    tree = ast.parse(cell[1])
    return {n.targets[0].id: ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign)}  # type: ignore[attr-defined]


def check_parameters(notebook: Path, given: Mapping[str, str], *, here: bool = True) -> dict[str, Any]:
    """Turn `-p name value` texts into values, refusing what the chapter does not take.

    The notebook's parameters cell is the single source: a value must be of its default's type, and where the comment
    behind a parameter lists words between bars (`# quick | full`), it must be one of them. With `here` the chapter is
    to run on this machine, and a device must be there.

    Raises:
        PressError: for an unknown name or an impossible value, naming what is allowed.
    """
    import papermill

    if "out" in given:
        raise PressError("out is set by this command; run papermill itself to write the record elsewhere")
    chapter, known = word_of(notebook.stem), papermill.inspect_notebook(str(notebook))
    values: dict[str, Any] = {}
    for name, text in given.items():
        if name not in known:
            raise PressError(f"{chapter} has no parameter {name!r}; it takes {', '.join(known)}")
        default = ast.literal_eval(known[name]["default"])
        choices = known[name]["help"].split(";")[0].split(" | ")
        try:
            value = text if isinstance(default, str) else ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        if type(value) is not type(default) and not (isinstance(default, float) and type(value) is int):
            raise PressError(f"{name} is {text!r}; it must be of type {type(default).__name__}, such as {default!r}")
        if len(choices) > 1 and str(value) not in [c.strip() for c in choices]:
            raise PressError(f"{name} is {text!r}; choose from {', '.join(c.strip() for c in choices)}")
        if isinstance(value, int | float) and value < 0:
            raise PressError(f"{name} is {text!r}; it cannot be negative")
        values[name] = value
    if here and "device" in values:
        find_device(values["device"])
    return values


def run(name: str, given: Mapping[str, str], *, book: bool, folder: Path | None = None) -> Path:
    """Execute a chapter; returns the executed notebook.

    With `book` the result takes its place in the book (`_build/executed`, `_build/records`), else it is kept apart
    in `folder` (`_build/runs` unless given), where a reader's experiment cannot pass for the book's.

    Raises:
        PressError: for an unknown chapter or parameter, a failing cell, or a record that does not come or is no record.
            Whatever a failed run had begun to write is removed; what an earlier run left stays. (Snakemake clears the
            place of a chapter in the book before it calls this.)
    """
    notebook = notebook_of(name)
    name = word_of(notebook.stem)
    parameters = check_parameters(notebook, given)
    apart = ROOT / folder if folder else BUILD / "runs"
    if not apart.resolve().is_relative_to(ROOT):
        raise PressError(f"{folder} lies outside the book; name a folder in {ROOT}")
    executed = (EXECUTED if book else apart) / f"{name}.ipynb"
    record = (RECORDS if book else apart) / f"{name}.json"
    # Relative to the root: papermill writes both names into the notebook, and the notebook is published. The process
    # id keeps apart a run that was started anew and one that outlived its parent.
    partial = executed.with_suffix(f".{os.getpid()}.partial.ipynb").relative_to(ROOT)
    partial_record = record.with_suffix(f".{os.getpid()}.partial.json").relative_to(ROOT)
    os.chdir(ROOT)
    record.parent.mkdir(parents=True, exist_ok=True)
    # A run which outlived its parent must overwrite no newer one.
    lock = hold(executed.with_suffix(".lock"), f"{name} is still running elsewhere")
    started = time.monotonic()
    try:
        _execute(name, notebook, partial, parameters | {"out": str(partial_record)})
        if not partial_record.is_file():
            raise PressError(f"{name} wrote no record: its last cell must be run.close()")
        content = json.loads(partial_record.read_text()) | {"seconds": round(time.monotonic() - started, 1)}
        check_schema(content, "record", record)
        partial_record.write_text(json.dumps(content, indent=1) + "\n")
        partial_record.replace(record)
        partial.replace(executed)
    finally:
        partial.unlink(missing_ok=True)
        partial_record.unlink(missing_ok=True)
        lock.close()
    print(f"{name}: done in {content['seconds']:.0f} s, {executed.relative_to(ROOT)}", flush=True)
    return executed


class WarmKernelManager(AsyncKernelManager):
    """Starts its kernel warm where there is a server for that."""

    def format_kernel_cmd(self, extra_arguments: list[str] | None = None) -> list[str]:
        command = super().format_kernel_cmd(extra_arguments)
        return [sys.executable, "-SP", warm.__file__, *command[command.index("-m") + 1 :]]


def _config(folder: Path) -> Config:
    """Kernel and runner share a machine: socket files serve them, and are open to no other user as ports would be.

    Each run has a folder of its own for them: by default all would be called `kernel-ipc` and lie where the run
    started, so that two runs would talk into each other.
    """
    return Config(
        {
            "KernelManager": {"transport": "ipc", "ip": str(folder / "kernel")},
            "NotebookClient": {"kernel_manager_class": WarmKernelManager},
        }
    )


def _execute(name: str, notebook: Path, target: Path, parameters: dict[str, Any]) -> None:
    import papermill

    os.environ |= ONE_THREAD
    os.environ["MPLBACKEND"] = warm.INLINE
    # A GPU matrix product is bit-identical from run to run only with this set before CUDA starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    logging.getLogger("papermill").setLevel(logging.WARNING)
    print(f"{name}: starts", flush=True)
    try:
        with TemporaryDirectory(prefix="kernel-") as sockets:
            papermill.execute_notebook(
                str(notebook.relative_to(ROOT)),
                str(target),
                parameters,
                kernel_name="python3",
                progress_bar=False,
                config=_config(Path(sockets)),
                stderr_file=Progress(name),
            )
    except papermill.PapermillExecutionError as error:
        if error.ename == PressError.__name__:  # the chapter's own refusal: its one line is enough
            raise PressError(f"{name}: {error.evalue}") from None
        text = "\n".join(error.traceback)
        print(text if sys.stderr.isatty() else re.sub(r"\x1b\[[0-9;]*m", "", text), file=sys.stderr)
        raise PressError(f"{name} failed at its cell {error.cell_index}: {error.ename}: {error.evalue}") from None
