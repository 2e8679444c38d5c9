"""What the tests of the three threads share: the command line in this process, in one that is killed, and in two.

Launched by Accelerate, this file runs the command lines that it is given as JSON.
"""

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
from bridges.benches import pretrain
from bridges.jobs.job import LOSSES, Job
from bridges.training.fit import FitSettings
from torch import Tensor


def brief_hosts(patch: pytest.MonkeyPatch) -> None:
    """Small hosts that have learnt next to nothing, in a second."""
    for name in ("RECIPES", "SOLVING"):
        patch.setattr(pretrain, name, {"quick": FitSettings(steps=2, batch=4, warmup=1)})


def log(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / LOSSES).read_text().splitlines()]


def refused(capsys: pytest.CaptureFixture[str], *command: object) -> str:
    """What the command line says of what it does not do, in one line."""
    capsys.readouterr()
    assert main([str(part) for part in command]) == 1
    told = capsys.readouterr().err.splitlines()
    assert told[-1].startswith("error: ")
    return told[-1]


def interrupted(patch: pytest.MonkeyPatch, kind: type[Job], step: int, command: list[str]) -> None:
    """Run the command in this process until its training is interrupted in a step."""
    loss = kind.batch_loss

    def stops(job: Job, rows: Tensor) -> Tensor:
        if job.step == step and job.module.training and (job.out / LOSSES).is_file():  # not while the time is taken
            raise KeyboardInterrupt
        return loss(job, rows)

    patch.setattr(kind, "batch_loss", stops)
    assert main(command) == 130
    patch.setattr(kind, "batch_loss", loss)


def killed(out: Path, lines: int, command: list[str]) -> None:
    """Start the command in a process of its own, and kill it once its log has so many lines."""
    env = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen([sys.executable, "-m", "bridges", *command], env=env, stderr=subprocess.DEVNULL)
    path, ends = out / LOSSES, time.monotonic() + 60
    while process.poll() is None and time.monotonic() < ends:
        if path.is_file() and path.read_bytes().count(b"\n") >= lines:
            break
        time.sleep(0.005)
    assert process.poll() is None, "it ended before it was killed"
    process.send_signal(signal.SIGKILL)
    process.wait()


if __name__ == "__main__":
    sys.exit(max(main(command) for command in json.loads(sys.argv[1])))
