"""What the tests of the three threads share: the command line in this process, or in one that is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from bridges.__main__ import main
from bridges.training import pretrain
from bridges.training.fit import FitSettings
from bridges.training.job import LOG


def brief_hosts(patch: pytest.MonkeyPatch) -> None:
    """Small hosts that have learnt next to nothing, in a second."""
    for name in ("RECIPES", "SOLVING"):
        patch.setattr(pretrain, name, {"quick": FitSettings(steps=2, batch=4, warmup=1)})


def log(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / LOG).read_text().splitlines()]


def refused(capsys: pytest.CaptureFixture[str], *command: object) -> str:
    """What the command line says of what it does not do, in one line."""
    capsys.readouterr()
    assert main([str(part) for part in command]) == 1
    told = capsys.readouterr().err.splitlines()
    assert told[-1].startswith("error: ")
    return told[-1]


def killed(out: Path, lines: int, command: list[str]) -> None:
    """Start the command in a process of its own, and kill it once its log has so many lines."""
    env = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen([sys.executable, "-m", "bridges", *command], env=env, stderr=subprocess.DEVNULL)
    path, ends = out / LOG, time.monotonic() + 60
    while process.poll() is None and time.monotonic() < ends:
        if path.is_file() and path.read_bytes().count(b"\n") >= lines:
            break
        time.sleep(0.005)
    assert process.poll() is None, "it ended before it was killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
