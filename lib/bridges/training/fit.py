"""Gradient descent as the logs did it: AdamW, warm-up, cosine, linear or plateau, clipping, groups, checkpoints."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from bridges.training import checkpoints
from bridges.training.parallel import Parallel

PATIENT = 2  # looks without improvement after which the plateau schedule halves the rate


@dataclass(frozen=True)
class Group:
    """Parameters whose names begin with `prefix`: `rate` times the common learning rate, and frozen before `start`."""

    prefix: str
    rate: float = 1.0
    start: int = 0  # training step
    weight_decay: float | None = None  # the common one where it is None


# The resampler log's differential rates: its sentence encoder learns at a fifth of the rate of all else.
LOG_GROUPS = (Group("encoder.", rate=0.2),)
# The translation log's gates: three times the rate, no decay.
GATE_GROUP = Group("translator.gates.", rate=3.0, weight_decay=0.0)


@dataclass(frozen=True)
class FitSettings:
    """How long and how fast: `steps` batches of `batch` samples, learning rate `lr` reached after `warmup` steps.

    `batch` is global: where several processes train together, each takes its share of it.
    `clip` is the largest gradient norm, `math.inf` for none. A parameter belongs to the first of `groups` whose prefix
    its name has. The schedule ends with the last step, or at `horizon` where training is to stop before that. Every
    `every` steps the model is validated and kept, where `fit` was told how and where; after `patience` such looks
    without improvement training stops (0: never).
    """

    steps: int
    lr: float = 1e-3
    batch: int = 32
    warmup: int = 20
    clip: float = 1.0
    weight_decay: float = 0.01
    schedule: Literal["cosine", "linear", "constant", "plateau"] = "cosine"
    groups: tuple[Group, ...] = ()
    horizon: int = 0
    every: int = 0
    patience: int = 0

    def rate(self, step: int) -> float:
        """The share of `lr` used at `step`: linear warm-up, then constant, or a line or half a cosine to zero."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, (self.horizon or self.steps) - self.warmup)
        match self.schedule:
            case "cosine":
                return 0.5 * (1 + math.cos(math.pi * done))
            case "linear":
                return 1 - done
            case "constant" | "plateau":
                return 1.0
        raise ValueError(f"schedule {self.schedule!r} is unknown; choose from cosine, linear, constant, plateau")

    def group(self, name: str) -> Group:
        """The group of a parameter."""
        return next((group for group in self.groups if name.startswith(group.prefix)), Group(""))

    def decay(self, name: str) -> float:
        """The weight decay of a parameter."""
        own = self.group(name).weight_decay
        return self.weight_decay if own is None else own


@dataclass(frozen=True)
class History:
    """The loss of every step, and the validation loss by the number of steps done when it was taken."""

    losses: list[float] = field(default_factory=list)
    validation: dict[int, float] = field(default_factory=dict)

    @property
    def best(self) -> int:
        """The look with the lowest validation loss, in steps done."""
        return min(self.validation, key=self.validation.__getitem__)

    @property
    def halvings(self) -> int:
        """How often the plateau schedule has halved the rate, once for every `PATIENT` looks without improvement."""
        lowest, waited, halved = math.inf, 0, 0
        for loss in self.validation.values():
            waited = 0 if loss < lowest else waited + 1
            lowest = min(lowest, loss)
            if waited == PATIENT:
                waited, halved = 0, halved + 1
        return halved

    def waited(self) -> int:
        """Looks since the best one."""
        best = self.best
        return sum(step > best for step in self.validation)


def fit(
    model: nn.Module,
    batch_loss: Callable[[Tensor], Tensor],
    samples: int,
    settings: FitSettings,
    seed: int,
    describe: str = "training",
    *,
    validate: Callable[[], float] | None = None,
    keep: Path | None = None,
    tell: Callable[[dict[str, int | float]], None] | None = None,
    parallel: Parallel | None = None,
) -> History:
    """Minimise `batch_loss(indices)` over the parameters of `model`, batches drawn from `range(samples)`.

    Batches come from a generator of their own, dropout from torch's global one, both started from `seed`: two calls
    with the same seed see the same batches and the same dropout masks. Processes that train together draw the same
    batches, and masks of their own; buffers that training moves, such as a batch norm's means, stay each one's own, and
    a checkpoint holds the main process's.

    Args:
        model: its parameters that require a gradient are trained, in place.
        batch_loss: the loss of a batch of sample indices, or of this process's share of it.
        samples: how many samples there are.
        settings: how long and how fast.
        seed: of the batches and of dropout.
        describe: what the progress bar says.
        validate: the validation loss of the model as it is, averaged over the processes; with it, the best weights are
            put back in the end.
        keep: a folder for `last.safetensors`, from which an interrupted run goes on as if it had not been, and
            `best.safetensors`, the best weights looked at. The main process writes it, and all read it.
        tell: is called with `step` (how many are done), `loss` and `rate` after every step, and with `step` and
            `validation` after every validation, before the model is kept.
        parallel: the processes that train together, as `Parallel.launched()` gives them; None trains alone.

    Raises:
        FloatingPointError: when the loss is not finite, naming the step; what was kept stays.
        ValueError: for settings that cannot be followed, or a checkpoint of another run, or a damaged one.
    """
    parallel = parallel or Parallel()
    parallel.check_batch(settings.batch)
    check_groups(model, settings)
    if (settings.patience or settings.schedule == "plateau") and not (validate and settings.every):
        raise ValueError("patience and the plateau schedule need validation: give `validate` and `every`")
    if (validate or keep) and not settings.every:
        raise ValueError("the model is validated and kept every so many steps: give `every`")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    parallel.agree(trained.values())
    groups = [
        {"params": [p], "factor": settings.group(name).rate, "weight_decay": settings.decay(name)}
        for name, p in trained.items()
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, fused=True)
    batches = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed + parallel.rank)
    run = checkpoints.describe(model, settings, seed, samples, parallel.world)
    history = History(*checkpoints.resume(keep, model, optimizer, batches, run, parallel.rank)) if keep else History()
    best = checkpoints.weights(model) if validate and not keep else {}
    todo = range(len(history.losses), settings.steps)
    try:
        for step in tqdm(
            todo, desc=describe, initial=todo.start, total=settings.steps, leave=False, disable=not parallel.main
        ):
            if settings.patience and history.validation and history.waited() >= settings.patience:
                break
            for name, parameter in trained.items():
                parameter.requires_grad_(step >= settings.group(name).start)
            loss = batch_loss(parallel.share(torch.randint(samples, (settings.batch,), generator=batches)))
            mean = parallel.average(loss)
            if not torch.isfinite(mean):
                raise FloatingPointError(
                    f"{describe}: the loss is {mean.item()} at step {step}; lower the learning rate or look for"
                    " infinities in the inputs"
                )
            halved = 0.5**history.halvings if settings.schedule == "plateau" else 1.0
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * settings.rate(step) * group["factor"] * halved
            optimizer.zero_grad()
            loss.backward()
            parallel.average_gradients(trained.values())
            nn.utils.clip_grad_norm_(list(trained.values()), settings.clip)
            optimizer.step()
            history.losses.append(mean.item())
            done = step + 1
            if tell:
                tell({"step": done, "loss": history.losses[-1], "rate": settings.lr * settings.rate(step) * halved})
            if settings.every and (done % settings.every == 0 or done == settings.steps):
                if validate:
                    history.validation[done] = _validated(validate, describe, done, parallel)
                    if tell:
                        tell({"step": done, "validation": history.validation[done]})
                    if history.best == done:
                        best = {} if keep else checkpoints.weights(model)
                        if keep and parallel.main:
                            checkpoints.keep_best(keep, model)
                if keep:
                    random = checkpoints.random_states(batches, parallel)
                    if parallel.main:
                        checkpoints.keep_last(keep, model, optimizer, random, run, history.losses, history.validation)
                    parallel.wait()
    finally:  # else a run that is called again after an interruption would leave out what was frozen
        for parameter in trained.values():
            parameter.requires_grad_(True)
    if history.validation:
        checkpoints.put_back(model, checkpoints.read_best(keep) if keep else best)
    return history


def check_groups(model: nn.Module, settings: FitSettings) -> None:
    """Refuse to train nothing: a ValueError for no parameter, a group that holds none, or none at the first step."""
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    if not names:
        raise ValueError("no parameter requires a gradient: everything is frozen")
    for group in settings.groups:
        if not any(name.startswith(group.prefix) for name in names):
            raise ValueError(
                f"no trained parameter's name begins with {group.prefix!r}: the names begin with"
                f" {', '.join(sorted({name.split('.')[0] for name in names}))}"
            )
    if all(settings.group(name).start > 0 for name in names):
        raise ValueError("every parameter is frozen at the first step: let one group start at 0")


def _validated(validate: Callable[[], float], describe: str, done: int, parallel: Parallel) -> float:
    loss = parallel.average(torch.tensor(validate(), dtype=torch.float64, device=parallel.device)).item()
    if not math.isfinite(loss):
        raise FloatingPointError(f"{describe}: the validation loss is {loss} after {done} steps; what was kept stays")
    return loss
