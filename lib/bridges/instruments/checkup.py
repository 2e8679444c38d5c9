"""A check-up for a bridge of one's own: all that its parts allow to be measured, each against its line.

    report = checkup(Generative(connector, inputs, loss))    # a connector into any model that speaks
    report = checkup(Contrastive(embed, image, text))        # two sides that meet in one space

Everything is a plain callable or tensor, so any PyTorch connector and host fits. Put the host in evaluation mode
before; the connector is put there for the time being. A few hundred held-out samples are enough, and a hundred the
least that all lines need. They were set on seeds and sizes other than those that the book's table of hits and false
alarms is made of.
"""

import runpy
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from bridges.instruments.contrastive import Contrastive, Space
from bridges.instruments.generative import Generative, Speech
from bridges.instruments.readings import mode
from bridges.instruments.report import Report

__all__ = ["Contrastive", "Generative", "checkup", "read_bridge", "with_losses"]


def checkup(bridge: Generative | Contrastive) -> Report:
    """Measure all that the bridge allows, and name what lies beyond its line, causes first.

    Raises:
        ValueError: for fewer than eight samples, or sides of different length.
    """
    named: dict[str, Any] = {}
    if isinstance(bridge, Generative):
        inputs = bridge.inputs if isinstance(bridge.inputs, tuple) else (bridge.inputs,)
        named = {f"input {i}": x for i, x in enumerate(inputs, 1)}
        named |= {"labels": bridge.labels, "told": bridge.told, "embeddings": bridge.embeddings}
    else:
        named = {"image": bridge.image, "text": bridge.text}
    for name, x in named.items():
        if x is not None and not isinstance(x, Tensor):
            raise ValueError(f"{name} is a {type(x).__name__}: give a tensor, one row for each sample")
    counts = [len(x) for name, x in named.items() if x is not None and name != "embeddings"]
    if min(counts) < 8 or len(set(counts)) > 1:
        raise ValueError(
            f"samples: {', '.join(map(str, counts))}; give at least eight, and as many of each, row by row"
        )
    own = Speech(bridge) if isinstance(bridge, Generative) else Space(bridge)
    with mode(own.module, training=False):
        return Report(tuple(own.readings()))


def with_losses(bridge: Generative | Contrastive, losses: Sequence[float], batch: int = 0) -> Generative | Contrastive:
    """The bridge with the losses of its training, in nats and of total weight 1; `batch` is a contrastive one's alone.

    Raises:
        ValueError: for a batch where nothing is compared.
    """
    if isinstance(bridge, Contrastive):
        return replace(bridge, losses=losses, batch=batch or bridge.batch)
    if batch:
        raise ValueError("the bridge is a generative one, whose loss compares no pairs: leave --batch-size out")
    return replace(bridge, losses=losses)


@contextmanager
def blaming(path: Path) -> Iterator[None]:
    """Around what runs a user's file: what fails in there is told in one line, with the line of that file.

    Raises:
        ValueError: in the place of any other error.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        place = f", line {lines[-1]}" if lines else ""
        raise ValueError(f"{path}{place}: {type(error).__name__}: {error}") from error


def read_bridge(path: Path) -> Generative | Contrastive:
    """The object `bridge` that a Python file of one's own makes; the file is executed.

    Raises:
        ValueError: when the file is missing, fails, or makes no such object, saying what to write.
    """
    if path.suffix != ".py":  # a log is data: whatever stands in it, it is not run
        raise ValueError(f"{path} is no Python file (.py), and is not run: a loss log may be, so give it with --loss")
    if not path.is_file():
        raise ValueError(f"{path} is no file: give a Python file that makes an object called bridge")
    sys.path.insert(0, str(path.parent))  # as Python does for a script: the file may import what lies beside it
    try:
        with blaming(path):
            made = runpy.run_path(str(path)).get("bridge")
    finally:
        sys.path.remove(str(path.parent))
    if not isinstance(made, Generative | Contrastive):
        raise ValueError(f"{path} makes no bridge: end it with bridge = Generative(...) or bridge = Contrastive(...)")
    return made
