"""A grid over a chapter's parameters: checked, run point by point through the workflow, gathered in one table."""

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

from press import BUILD, ROOT, PressError
from press.cards import measured
from press.chapter import ONE_THREAD, check_parameters, notebook_of, word_of
from press.lock import WORKFLOW, hold

SWEEPS = BUILD / "sweeps"
Cell = tuple[float | str, list[float] | None]  # a value, and its interval where it has one


def grid_of(given: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    """The grid of `-p NAME VALUE...` options.

    Raises:
        PressError: for no parameter, for one without a value, and for one given twice.
    """
    grid: dict[str, list[str]] = {}
    for name, *values in given:
        if not values:
            raise PressError(f"{name} has no value; give one or more, as in -p {name} VALUE VALUE")
        if name in grid:
            raise PressError(f"{name} is given twice; give all its values behind one -p")
        grid[name] = values
    if not grid:
        raise PressError("a sweep needs a grid; give parameters with their values, as in -p seeds 2 3 5")
    return grid


def point_name(parameters: Mapping[str, str]) -> str:
    """A folder's name that tells the parameters, such as `seeds=2,device=cpu`.

    Of a value that no folder can hold, such as a path, its end is kept, and a digest of all of it.
    """

    def plain(value: str) -> str:
        kept = re.sub(r"[^\w.+-]+", "_", value)[-40:]
        return kept if kept == value != "" else f"{kept}-{sha256(value.encode()).hexdigest()[:8]}"

    return ",".join(f"{name}={plain(value)}" for name, value in parameters.items())


def points_of(name: str, grid: Mapping[str, Sequence[str]], *, here: bool) -> dict[str, dict[str, str]]:
    """Each point's parameters by its name, all of them checked; `here` says that they run on this machine.

    Raises:
        PressError: for an unknown chapter or parameter, or an impossible value.
    """
    notebook = notebook_of(name)
    # One value does not bear on another's check: each is looked at once, not at every point.
    for parameter, values in grid.items():
        for value in values:
            check_parameters(notebook, {parameter: value}, here=here)
    points = (dict(zip(grid, values, strict=True)) for values in product(*grid.values()))
    return {point_name(point): point for point in points}


def run(name: str, grid: Mapping[str, Sequence[str]], *, slurm: bool, options: Sequence[str] = ()) -> int:
    """Run a chapter at every point of a grid, what stands excepted; print the table and write it to `table.csv`.

    `options` go to Snakemake as they are. Returns the exit status, 0 when every point has its result.

    Raises:
        PressError: before anything starts, for what `points_of` refuses or when another workflow is at work; and in the
            end for points without a result, naming them.
    """
    points = points_of(name, grid, here=not slurm)
    name = word_of(notebook_of(name).stem)
    folder = SWEEPS / name
    with hold(*WORKFLOW) as lock:
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "grid.json"
        config.write_text(json.dumps({"chapter": name, "points": points}, indent=1) + "\n")
        status = _snakemake(config, "slurm" if slurm else "local", options, lock.fileno())
    records = {point: folder / point / f"{name}.json" for point in points}
    missing = [point for point, record in records.items() if not record.is_file()]
    rows = [
        {parameter: (value, None) for parameter, value in parameters.items()} | _cells(records[point])
        for point, parameters in points.items()
    ]
    _write(rows, folder / "table.csv")
    print(_as_text(rows))
    print(f"the table: {(folder / 'table.csv').relative_to(ROOT)}")
    if missing:
        raise PressError(
            f"{len(missing)} of {len(points)} points have no result: {' '.join(missing)};"
            " what stopped each stands above, or in the log named there; the same command runs these points alone"
        )
    return status


def _snakemake(config: Path, profile: str, options: Sequence[str], lock: int) -> int:
    command = [str(Path(sys.executable).with_name("snakemake")), "--snakefile", "workflow/sweep.smk"]
    command += ["--profile", f"workflow/profiles/{profile}", "--configfile", str(config.relative_to(ROOT)), *options]
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | ONE_THREAD, pass_fds=[lock]) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:  # the terminal told Snakemake too: it ends or cancels its jobs, and then itself
                continue


def _cells(record: Path) -> dict[str, Cell]:
    """What a point's record holds: verdicts with what was observed, measurements, seconds. Empty without a record."""
    if not record.is_file():
        return {}
    content: dict[str, Any] = json.loads(record.read_text())
    cells: dict[str, Cell] = {}
    for verdict in content["verdicts"]:
        cells[verdict["id"]] = (verdict["verdict"], None)
        if verdict["observed"] is not None:
            cells[f"{verdict['id']} observed"] = (verdict["observed"], verdict["interval"])
    for key, value in content["measurements"].items():
        cells[key] = (value["mean"], [value["low"], value["high"]]) if isinstance(value, dict) else (value, None)
    return cells | {"seconds": (content["seconds"], None)}


def _columns(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """The names of all rows' cells, in the order of their coming."""
    return list(dict.fromkeys(column for row in rows for column in row))


def _write(rows: Sequence[Mapping[str, Cell]], path: Path) -> None:
    """One line for each point; an interval's ends stand in columns of their own."""
    flat = []
    for row in rows:
        line: dict[str, float | str] = {}
        for column, (value, interval) in row.items():
            line[column] = value
            if interval:
                line[f"{column} low"], line[f"{column} high"] = interval
        flat.append(line)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, _columns(flat))
        writer.writeheader()
        writer.writerows(flat)


def _as_text(rows: Sequence[Mapping[str, Cell]]) -> str:
    """One column for each point, since there are more quantities than points as a rule."""

    def text(row: Mapping[str, Cell], column: str) -> str:
        value, interval = row.get(column, ("-", None))
        return value if isinstance(value, str) else measured(value, interval)

    columns = _columns(rows)
    shown = [[text(row, column) for column in columns] for row in rows]
    head = max(map(len, columns))
    widths = [max(map(len, column)) for column in shown]
    lines = zip(columns, *shown, strict=True)
    return "\n".join(
        "  ".join([f"{name:{head}}", *(f"{cell:>{w}}" for cell, w in zip(cells, widths, strict=True))])
        for name, *cells in lines
    )
