"""Diagnosers of training behind one signature: the book's check-up, and those of others, called as their READMEs say.

DEFault++ sees the steps, attentions and validations of a training, torch-audit every step of one, torchtest2 a batch,
the loss and the optimiser before it, the check-up held-out samples and the log behind it.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bridges.instruments.checkup import Contrastive, checkup
from bridges.instruments.padding import padding_shift
from bridges.planted.small import BATCH, STEPS, Run, run
from bridges.planted.small_hosts import PAD, PLACES, SEP

EPOCHS = 3  # into which a training is parted for a tool that thinks in epochs
LEVELS = ("none", "note", "warning", "error")


@dataclass(frozen=True)
class Said:
    """What a tool said of a run, the first thing first, and how loudly: a note is no alarm."""

    things: tuple[str, ...]
    level: str = "none"


def tool(package: str, version: str, part: str = "") -> Any:
    """A tool's module, or an error that says how to install it."""
    try:
        metadata.version(package)
        return import_module(package.replace("-", "_") + part)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{package} is not installed: pip install {package}=={version}, or leave it out of --tools"
        ) from error


def check_up(it: Run) -> tuple[Said, float]:
    """The book's own, after the training, on held-out samples."""
    it.model.eval()
    losses = it.train()
    it.optimizer.zero_grad()
    start = time.process_time()
    if it.host == "pair":
        sides = it.held["features"], it.held["input_ids"]
        report = checkup(Contrastive(it.model.embed, *sides, module=it.model, losses=losses, batch=BATCH))
    else:
        given: dict[str, Any] = {"optimizer": it.optimizer, "before": it.before}
        if it.host == "llama":
            given["padding"] = _padding(it)
        report = checkup(it.model, it.held, "projector", log=losses, **given)
    things = tuple(fault.name for fault in report.faults)
    return Said(things, "error" if things else "none"), time.process_time() - start


def _padding(it: Run) -> Any:
    ids, mask = it.held["input_ids"][:32], it.held["attention_mask"][:32]
    picture = it.held["features"][:1]

    def following(ids: Tensor, mask: Tensor) -> Tensor:
        return it.model(picture.expand(len(ids), -1, -1), ids, mask).logits[:, -1]

    right = it.planted.startswith("padding on the right")
    prompts = [row[there.bool()] for row, there in zip(ids, mask, strict=True)]
    return padding_shift(following, prompts, PAD, "right" if right else "left")


def torch_audit(it: Run) -> tuple[Said, float]:
    """Every step of a training, in its zero-touch mode."""
    audit = tool("torch-audit", "0.3.0")
    plain = _bare(it.host, it.hosts)
    start = time.process_time()
    auditor = audit.autopatch(it.model, optimizer=it.optimizer, every_n_steps=1)
    it.train()
    found = auditor.finish().findings
    auditor.unpatch()
    ranks = {"INFO": 1, "WARN": 2, "ERROR": 3, "FATAL": 3}

    def rank(finding: Any) -> int:  # hints on speed are no alarm
        return 1 if finding.rule_id.startswith("TA2") else ranks[finding.severity.value]

    order = sorted(found, key=rank, reverse=True)  # the first of the most severe first
    level = LEVELS[max(map(rank, found), default=0)]
    return Said(
        tuple(dict.fromkeys(f"{f.rule_id} {f.module_path or ''}".strip() for f in order)), level
    ), time.process_time() - start - plain


def torchtest2(it: Run) -> tuple[Said, float]:
    """Its checks before a training, on one batch, by the cross-entropy of what the model says."""
    test = tool("torchtest2", "0.1.0")
    batch = it.batches(1)[0]
    labels = batch.pop("labels", torch.arange(len(batch["features"])))
    asked = {"labels": labels} if it.host != "pair" else {}

    def logits(model: Any, inputs: dict[str, Tensor], _: Any) -> Tensor:
        found = model(**inputs, **asked).logits
        return found if it.host == "pair" else found.transpose(1, 2)

    def outputs(model: Any, inputs: dict[str, Tensor]) -> Any:
        found = model(**inputs, **({"labels": labels[: len(inputs["features"])]} if asked else {}))
        return (found.image_embeds, found.text_embeds) if it.host == "pair" else found.logits

    start = time.process_time()
    report = test.check_model(
        it.model, batch, labels, loss_fn=cross_entropy, optimizer=it.optimizer, forward_fn=logits,
        eval_forward_fn=outputs,
    )  # fmt: skip
    seconds = time.process_time() - start
    things = [*report.failures, *report.warnings]
    level = "error" if report.failures else "warning" if report.warnings else "none"
    alike = [r for r in report.skipped if "identical" in r.message]  # skips a check because the samples are
    return Said(tuple(r.name for r in [*things, *alike]), level), seconds


def default_plus_plus(it: Run) -> tuple[Said, float]:
    """Its features of a training and its own diagnosis of them, with the weights that it comes with."""
    extractor, diagnosis = tool("defaultplusplus", "0.4.1"), tool("defaultplusplus", "0.4.1", ".diagnosis")
    try:
        fx = extractor.FeatureExtractor(it.model)
    except ValueError as error:
        return Said((f"refused: {str(error).split('.')[0]}",)), 0.0
    plain = _bare(it.host, it.hosts)
    start, count = time.process_time(), 0

    def watch(batch: dict[str, Tensor], found: Any) -> None:
        nonlocal count
        fx.step(optimizer=it.optimizer, loss=found.loss, **_whole(it, batch, found))
        count += 1
        if count % (STEPS // EPOCHS) == 0:
            fx.epoch_end()
            value = float(it.model(**it.held).loss)
            fx.record_validation(count * EPOCHS // STEPS - 1, {"loss": value, "perplexity": min(2.718**value, 1e9)})

    with fx:
        it.train(watch)
        features = fx.finalize()
    encoded = tool("defaultplusplus", "0.4.1", ".processing").RuntimeNormalizer.load(fx.arch).encode(features)
    found = _predictor(diagnosis, fx.arch).predict(encoded)
    seconds = time.process_time() - start - plain
    if not found.is_faulty:
        return Said(("not faulty",)), seconds
    return Said((found.category, found.root_cause or ""), "error"), seconds


def _whole(it: Run, batch: dict[str, Tensor], found: Any) -> dict[str, Any]:
    """Ids, mask, labels and outputs of all places that the host reads; the picture's are an id of their own."""
    ids, mask, labels = batch["input_ids"], batch["attention_mask"], batch["labels"]
    between = [ids.new_full((len(ids), PLACES), SEP), ids.new_full((len(ids), 1), SEP)]
    ids = torch.cat([ids, *between, labels.clamp_min(PAD)], 1)
    rest = ids.shape[1] - mask.shape[1]
    mask = torch.cat([mask, mask.new_ones(len(ids), rest)], 1)
    labels = torch.cat([labels.new_full((len(ids), ids.shape[1] - labels.shape[1]), -100), labels], 1)
    with torch.no_grad():
        logits = it.model.host.lm_head(found.hidden_states[-1])
    outputs = SimpleNamespace(
        logits=logits, attentions=found.attentions, hidden_states=found.hidden_states, loss=found.loss
    )
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "outputs": outputs}


def _predictor(diagnosis: Any, arch: str) -> Any:
    """Its diagnoser, whose pickled weights are read as data alone: arrays, and one class of the tool's own."""
    import _codecs

    import numpy as np

    processor = tool("defaultplusplus", "0.4.1", ".processing.feature_processor").FeatureProcessor
    arrays = [import_module("numpy._core.multiarray")._reconstruct, np.ndarray, np.dtype, _codecs.encode]
    kinds = [type(np.dtype(kind)) for kind in ("f8", "f4", "i8")]
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        with torch.serialization.safe_globals([processor, *arrays, *kinds]):
            return diagnosis.load_pretrained(arch)
    finally:
        del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]


@cache
def _bare(host: str, hosts: Path) -> float:
    """Seconds of a training that nobody watches, with the harmless one that is taken for all of a host."""
    it, start = run(host, "", 0, hosts), time.process_time()
    it.train()
    return time.process_time() - start


TOOLS: dict[str, tuple[str, Callable[[Run], tuple[Said, float]]]] = {
    "check-up": ("0.1.0", check_up),
    "defaultplusplus": ("0.4.1", default_plus_plus),
    "torch-audit": ("0.3.0", torch_audit),
    "torchtest2": ("0.1.0", torchtest2),
}
