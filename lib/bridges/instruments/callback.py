"""The check-up during a training by transformers' `Trainer`: readings beside the loss, and a warning for each fault.

Trainer(model, arguments, train_dataset=..., callbacks=[BridgeCheckup(batch, every=100)])
"""

import random
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from transformers import Trainer, TrainerCallback

from bridges.instruments.attached import attach
from bridges.instruments.checkup import checkup
from bridges.instruments.contrastive import Contrastive
from bridges.instruments.readings import mode
from bridges.instruments.report import Report

# What is logged, and the words with which its reading begins.
LOGGED = {
    "checkup_gap": "conditioning gap",
    "checkup_rms_ratio": "tokens' RMS over the host's",
    "checkup_gradient_share": "parameters without gradient",
    "checkup_recall": "R@1,",
}


class BridgeCheckup(TrainerCallback):
    """Checks a bridge up on held-out samples every so many steps, and at the end.

    The log gets, at its next line of the loss, `checkup_gap` (nats), `checkup_rms_ratio` (of the tokens to the host's
    embeddings), `checkup_gradient_share` (of the connector's numbers), of two sides `checkup_recall` (R@1, percent),
    and `checkup_faults` (how many). A fault is warned of once, when it first appears, with what to try. The training
    goes on as it would without: random numbers, modes, gradients and buffers are put back. The main process alone
    checks up, on the whole model: one that is sharded over processes cannot be.

    Args:
        batch: held-out samples by name, as `checkup` takes them; it is put on the model's device.
        connector: the connector's path, where it is not known.
        every: steps of the optimiser between two check-ups.
        trainer: the Trainer, where what it reports to besides its own log and screen (wandb, TensorBoard) is to hold
            the readings too, in a line of their own.
        given: what else `checkup` takes, such as `chunk`.

    Raises:
        ValueError: when the training begins, if the connector is not found or samples do not fit. A check-up that
            fails later on does not stop the training, but is warned of, and is the last one.
    """

    def __init__(
        self,
        batch: Mapping[str, Any],
        connector: str | Sequence[str] = "",
        *,
        every: int = 500,
        trainer: Trainer | None = None,
        **given: Any,
    ):
        if every < 1:
            raise ValueError(f"every {every} steps: give a positive number of steps between two check-ups")
        self.batch, self.connector, self.every, self.trainer, self.given = batch, connector, every, trainer, given
        self.report: Report | None = None  # the last one
        self.warned: set[str] = set()
        self._pending: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        device = next(model.parameters()).device
        self.batch = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in self.batch.items()}
        self._off = not state.is_world_process_zero
        self._rates: list[float] = []
        with _put_back(model):
            bridge = attach(model, self.batch, self.connector)
        parts = bridge.module.named_parameters() if bridge.module is not None else ()
        self._before = {name.replace("/", "."): p.detach().to("cpu", copy=True) for name, p in parts}

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # The rates that moved something: a schedule may begin at zero, and ends there after the last step.
        rates = [float(group["lr"]) for group in kwargs["optimizer"].param_groups]
        known = self._rates if len(self._rates) == len(rates) else rates  # a group may have come to them
        self._rates = [max(pair) for pair in zip(rates, known, strict=True)]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._off or (state.global_step % self.every and state.global_step < state.max_steps):
            return
        own: dict[str, Any] = {"losses": [float(line["loss"]) for line in state.log_history if "loss" in line]}
        warm = state.global_step <= args.get_warmup_steps(state.max_steps)  # till then nothing need have moved
        own |= {"optimizer": self._optimizer(kwargs["optimizer"], warm)} | ({} if warm else {"before": self._before})
        try:
            with _put_back(kwargs["model"]):
                bridge = attach(kwargs["model"], self.batch, self.connector)
                if isinstance(bridge, Contrastive):
                    own["batch"] = args.train_batch_size
                own = {field.name: own[field.name] for field in fields(bridge) if field.name in own}
                self.report = checkup(replace(bridge, **own), plots=False, **self.given)
        except Exception as error:
            self._off = True
            warnings.warn(f"no check-up from step {state.global_step} on: {error}", stacklevel=2)
            return
        self._pending = readings_of(self.report)
        if self.trainer is not None:
            self.trainer.log(self._pending)
            self._pending = {}
        for fault in self.report.faults:
            if fault.name not in self.warned:
                self.warned.add(fault.name)
                warnings.warn(f"step {state.global_step}: {fault.name}. To try: {fault.mend}", stacklevel=2)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and ("loss" in logs or "train_loss" in logs) and self._pending:
            logs.update(self._pending)
            state.log_history[-1].update(self._pending)  # the Trainer has put a copy there
            self._pending = {}

    def _optimizer(self, optimizer: Optimizer, warm: bool) -> Optimizer:
        """What the Trainer's optimiser holds, at the highest rates up to now, or those to which they warm up."""
        groups = []
        for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
            rate = max(rate, float(group.get("initial_lr", rate))) if warm else rate
            groups.append({"params": group["params"], "lr": rate, "weight_decay": group.get("weight_decay", 0.0)})
        return SGD(groups, lr=0.0)


def readings_of(report: Report) -> dict[str, float]:
    """The numbers of a report that are worth a curve, by the names of `LOGGED`, and how many faults it raises."""
    found: dict[str, float] = {}
    for reading in report.readings:
        for name, words in LOGGED.items():
            number = re.match(r"[-+]?[\d.]+(?:e[-+]?\d+)?", reading.found)
            if number and reading.what.startswith(words):
                found[name] = 1 - float(number[0]) / 100 if name == "checkup_gradient_share" else float(number[0])
    return found | {"checkup_faults": len(report.faults)}


@contextmanager
def _put_back(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the time being; Python's and NumPy's random numbers are put back too."""
    python, rows = random.getstate(), np.random.get_state()
    try:
        with mode(model, training=False):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(rows)
