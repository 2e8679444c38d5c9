"""A sweep, killed and started again: on a Slurm of one node started for it, and on this machine's own cores."""

import contextlib
import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import slurm
from press import ROOT, pairs
from press.chapter import script_of
from press.imports import asked_hosts

NAME = "small"
FILE = f"01_{NAME}"
REAL = "latents"  # a chapter that reads a host
# Points of more than two seeds wait until they are let go; one of one seed fails. The record is written by hand:
# `press.provenance` would import PyTorch at every point.
SCRIPT = """# %% tags=["parameters"]
profile = "quick"  # quick | full
seeds = 2
out = ""

# %%
import json
import os
import time
from pathlib import Path

assert seeds > 1, "one seed is too few"
while seeds > 2 and not Path("go").exists():
    time.sleep(0.1)
record = {"chapter": "small", "profile": profile, "device": "cpu", "seeds": seeds, "seconds": 0, "commit": "unknown"}
record |= {"finished": "2026-01-01T00:00:00+00:00", "versions": {}, "verdicts": []}
record["measurements"] = {"tripled": 3 * seeds, "job": int(os.environ.get("SLURM_JOB_ID", 0))}
Path(out).write_text(json.dumps(record))
"""
CHECKS = ["--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "7"]
SMALL = ["--set-resources", "point:mem_mb=500", "point:cpus_per_task=1"]


@pytest.fixture(scope="module")
def one_node() -> Iterator[None]:
    try:
        with slurm.cluster():
            yield
    except slurm.NoSlurm as error:
        pytest.skip(str(error))


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """The workflow with a book of one small chapter."""
    for name in ("lib", "workflow", "book/recorded"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("book/claims.yml", "constraints.txt"):
        shutil.copy2(ROOT / name, tmp_path / name)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / f"{FILE}.py").write_text(SCRIPT)
    pairs.bring_together(tmp_path / "notebooks")
    return tmp_path


def press(book: Path, *arguments: str) -> subprocess.Popen[str]:
    """A command in a process group of its own, with Snakemake and what that runs on this machine."""
    return subprocess.Popen(
        [sys.executable, "-m", "press", *arguments],
        cwd=book,
        env=os.environ | {"PYTHONPATH": str(book / "lib")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def wait_for(what: Callable[[], object], process: subprocess.Popen[str], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        if process.poll() is not None or time.monotonic() > deadline:
            kill(process)
            pytest.fail(f"it did not come about: {process.communicate()[0]}", pytrace=False)
        time.sleep(0.1)


def kill_when_one_is_done(book: Path, process: subprocess.Popen[str], seeds: list[str]) -> None:
    """Kill the sweep once Snakemake has taken note of its first point, while the others run."""
    folder = book / "_build/sweeps" / NAME
    notes = book / ".snakemake"
    running = [folder / f"seeds={s},profile=quick" / f"{NAME}.lock" for s in seeds[1:]]
    wait_for(lambda: all(lock.is_file() for lock in running), process)
    wait_for(lambda: (notes / "metadata").is_dir() and any((notes / "metadata").iterdir()), process)
    # An output's mark goes away when Snakemake knows it whole: two outputs for each of the points that still run.
    wait_for(lambda: len(list((notes / "incomplete").iterdir())) == 2 * len(running), process)
    kill(process)
    process.communicate()


def rows(book: Path) -> list[dict[str, str]]:
    with (book / "_build/sweeps" / NAME / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.iterdir()}


def test_a_sweep_killed_on_slurm_goes_on_where_it_was(one_node: None, book: Path) -> None:
    grid = [
        "sweep",
        NAME,
        "-p",
        "seeds",
        "2",
        "3",
        "4",
        "-p",
        "profile",
        "quick",
        "--slurm",
        "--snakemake",
        *CHECKS,
        *SMALL,
    ]
    kill_when_one_is_done(book, press(book, *grid), ["2", "3", "4"])
    slurm.cancel_all()
    first = book / "_build/sweeps" / NAME / "seeds=2,profile=quick"
    before = state(first)
    (book / "go").touch()
    again = press(book, *grid)
    output = again.communicate(timeout=90)[0]
    assert again.returncode == 0, output
    assert state(first) == before
    table = rows(book)
    assert [(row["seeds"], row["profile"], row["tripled"]) for row in table] == [
        ("2", "quick", "6"),
        ("3", "quick", "9"),
        ("4", "quick", "12"),
    ]
    # Each ran as a job of its own, the last two as later ones than those that were cancelled.
    numbers = [int(row["job"]) for row in table]
    assert numbers[0] > 0
    assert len({*numbers}) == 3
    assert min(numbers[1:]) > 3


def test_a_sweep_killed_on_this_machine_goes_on_where_it_was(book: Path) -> None:
    grid = ["sweep", NAME, "-p", "seeds", "2", "3", "1", "-p", "profile", "quick"]
    options = ["--snakemake", "--cores", "2"]
    kill_when_one_is_done(book, press(book, *grid, *options), ["2", "3"])
    first = book / "_build/sweeps" / NAME / "seeds=2,profile=quick"
    before = state(first)
    (book / "go").touch()
    again = press(book, *grid, *options)
    output = again.communicate(timeout=90)[0]
    # The point that the chapter refuses held up no other, and is named.
    assert again.returncode == 1
    assert "error: 1 of 3 points have no result: seeds=1,profile=quick;" in output
    assert "one seed is too few" in output
    assert state(first) == before
    assert [(row["seeds"], row["tripled"], row["job"]) for row in rows(book)] == [
        ("2", "6", "0"),
        ("3", "9", "0"),
        ("1", "", ""),
    ]


def test_hosts_are_made_first_and_gpus_are_asked_for(book: Path) -> None:
    """A dry run, which submits nothing: the cuda device is asked for on a machine that may have none."""
    for ending in (".py", ".ipynb"):
        shutil.copy2(script_of(REAL).with_suffix(ending), book / "notebooks")
    grid = ["sweep", REAL, "-p", "profile", "quick", "full", "-p", "device", "cpu", "auto", "cuda"]
    output = press(book, *grid, "--slurm", "--snakemake", "--dry-run", "--quiet", "host").communicate()[0]
    made = re.findall(r"^rule host:.*?output: (\S+)", output, re.MULTILINE | re.DOTALL)
    hosts = [f"{host}-{size}" for size in ("quick", "full") for host in asked_hosts(script_of(REAL), size)]
    assert "t5-0-quick" in hosts
    assert sorted(made) == sorted(f"_build/hosts/{host}/model.safetensors" for host in hosts)
    asked = re.findall(r"wildcards: of_profile=(\w+), of_device=(\w+)\n.* gpu=(\d)", output)
    assert {(profile, device) for profile, device, gpus in asked if gpus == "1"} == {
        ("quick", "cuda"),
        ("full", "cuda"),
        ("full", "auto"),
    }
    assert len(asked) == 6


def test_one_workflow_at_a_time(book: Path) -> None:
    """The lock passes to the command that runs under it, here a second sweep."""
    second = press(book, "locked", sys.executable, "-m", "press", "sweep", NAME, "-p", "seeds", "2")
    refused = second.communicate()[0].strip()
    assert second.returncode == 1
    assert re.fullmatch(
        rf"error: another make book or sweep is at work in this folder \(process {second.pid} on .+\): .+", refused
    )
