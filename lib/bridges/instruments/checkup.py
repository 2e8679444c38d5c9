"""A check-up for a bridge of one's own: all that its parts allow to be measured, each against its line.

    report = checkup(model, batch)                           # LLaVA, BLIP-2, CLIP and their like
    report = checkup(model, batch, "vision.projector")       # any model whose call gives a loss, and its connector
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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from bridges.instruments.attached import TWO_SIDES, attach
from bridges.instruments.contrastive import Contrastive, Space
from bridges.instruments.generative import CHUNK, Generative, Speech
from bridges.instruments.places import LAYOUTS
from bridges.instruments.profiles import profiles
from bridges.instruments.readings import mode
from bridges.instruments.report import Report

__all__ = ["Contrastive", "Generative", "checkup", "read_bridge", "with_losses"]
LEAST = 3  # samples in a call: those of one call trade their inputs
SOON = 2  # seconds, before which no bar is shown


def checkup(
    bridge: Generative | Contrastive | nn.Module,
    batch: Mapping[str, Any] | None = None,
    connector: str | Sequence[str] = (),
    *,
    log: Sequence[float] = (),
    chunk: int = CHUNK,
    progress: bool = False,
    plots: bool = True,
    **given: Any,
) -> Report:
    """Measure all that a bridge allows, and name what lies beyond its line, causes first.

    Args:
        bridge: a model whose call on the batch gives a loss, as `attach` reads it; or a bridge in its parts.
        batch, connector: of the model, held-out samples and the connector's path, where it is not known.
        log: the training loss of every step, in nats.
        chunk: samples in a call of a generative bridge, at most.
        progress: whether a check-up that lasts shows its readings as they come, on a terminal.
        plots: whether the report's page has plots, whose numbers take some more calls.
        given: other fields of `Generative` or `Contrastive`, such as `optimizer` and `before`.

    Raises:
        ValueError: for fewer than four samples, sides of different length, or a whole model in the place of a part.
    """
    if chunk < LEAST:
        raise ValueError(f"{chunk} samples in a call cannot trade their inputs: give a chunk of {LEAST} or more")
    if len(log):
        given["losses"] = log
    if isinstance(bridge, nn.Module):
        if batch is None:
            raise ValueError("a model alone cannot be measured: give a batch of held-out samples too, by name")
        bridge = attach(bridge, batch, connector, chunk=chunk, **given)
    elif batch is not None or connector:
        raise ValueError(f"a {type(bridge).__name__} has its samples in it: give a batch with a model alone")
    elif given:
        bridge = replace(bridge, **given)
    _no_whole_model(bridge.connector if isinstance(bridge, Generative) else bridge.embed)
    if isinstance(bridge, Generative):
        bridge = _of_tensors(bridge)
        inputs = bridge.inputs if isinstance(bridge.inputs, tuple) else (bridge.inputs,)
        named: dict[str, Any] = {f"input {i}": x for i, x in enumerate(inputs, 1)}
        named |= {"labels": bridge.labels, "told": bridge.told, "embeddings": bridge.embeddings}
    else:
        named = {"image": bridge.image, "text": bridge.text}
    for name, x in named.items():
        if x is not None and not isinstance(x, Tensor):
            raise ValueError(f"{name} is a {type(x).__name__}: give a tensor, one row for each sample")
    counts = [len(x) for name, x in named.items() if x is not None and name != "embeddings"]
    if min(counts) < 4 or len(set(counts)) > 1:
        raise ValueError(f"samples: {', '.join(map(str, counts))}; give at least four, and as many of each, row by row")
    # A gradient may be asked for though the caller has switched them off.
    with torch.inference_mode(False):
        own = Speech(bridge, chunk) if isinstance(bridge, Generative) else Space(bridge)
        with mode(own.module, training=False):
            # A bar that is quiet where it cannot be seen, or where all is over soon.
            taken = tqdm(
                own.readings(), "check-up", unit=" readings", leave=False, delay=SOON, disable=not progress or None
            )
            readings = tuple(taken)
            return Report(readings, own.missing(), tuple(profiles(own, readings)) if plots else ())


def _no_whole_model(part: object) -> None:
    """A connector or `embed` that is a model with both sides in it, as beginners hand it over, is refused."""
    whole = next((kind.__name__ for kind in type(part).__mro__ if kind.__name__ in LAYOUTS), "")
    if whole == "PeftModel" and not hasattr(part, "prompt_encoder"):  # a connector may well be tuned by PEFT
        return
    if whole or all(hasattr(part, name) for name in TWO_SIDES):
        raise ValueError(
            f"a {type(part).__name__} is a whole model, not its connector: call checkup(model, batch), where batch is"
            " what the model is called with, by name, labels among it"
        )


def _of_tensors(bridge: Generative) -> Generative:
    """The bridge with what comes as lists or by name, as processors give it, made tensors; the rest as it is."""
    inputs, labels = bridge.inputs, bridge.labels
    if isinstance(inputs, Mapping):
        inputs = tuple(inputs.values())
    if (
        isinstance(inputs, list)
        and len({getattr(x, "shape", None) for x in inputs}) == 1
        and torch.is_tensor(inputs[0])
    ):
        inputs = torch.stack(inputs)
    if isinstance(labels, list) and all(map(torch.is_tensor, labels)):
        labels = pad_sequence(labels, batch_first=True, padding_value=-100)
    return (
        bridge if inputs is bridge.inputs and labels is bridge.labels else replace(bridge, inputs=inputs, labels=labels)
    )


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


def read_bridge(path: Path, chunk: int = CHUNK) -> Generative | Contrastive:
    """The bridge that a Python file of one's own makes; the file is executed.

    It makes an object `bridge`; or a `model` and a `batch` of held-out samples, with the path of its connector as
    `connector` where that is not known. These are read as `checkup` reads them, in calls of `chunk` samples.

    Raises:
        ValueError: when the file is missing, fails, or makes no such object, saying what to write.
    """
    what = "bridge, or model and batch"
    if path.suffix != ".py":  # a log is data: whatever stands in it, it is not run
        raise ValueError(f"{path} is no Python file (.py), and is not run: a loss log may be, so give it with --loss")
    if not path.is_file():
        raise ValueError(f"{path} is no file: give a Python file that makes objects called {what}")
    sys.path.insert(0, str(path.parent))  # as Python does for a script: the file may import what lies beside it
    try:
        with blaming(path):
            made = runpy.run_path(str(path))
    finally:
        sys.path.remove(str(path.parent))
    bridge, model, batch = made.get("bridge"), made.get("model"), made.get("batch")
    if isinstance(bridge, Generative | Contrastive):
        return bridge
    if isinstance(model, nn.Module) and isinstance(batch, Mapping):
        paths = made.get("connector", ())
        if not isinstance(paths, str | list | tuple):
            raise ValueError(f"{path}: connector is a {type(paths).__name__}: give its path in the model, as text")
        with blaming(path):
            return attach(model, batch, paths, chunk=chunk)
    if isinstance(model, nn.Module):
        had = f"whose batch is a {type(batch).__name__}" if "batch" in made else "and no batch"
        raise ValueError(f"{path} makes a model {had}: give batch = {{...}}, what the model is called with, by name")
    raise ValueError(
        f"{path} makes no bridge: end it with bridge = Generative(...) or bridge = Contrastive(...), or with a model"
        " and the batch that it is called with"
    )
