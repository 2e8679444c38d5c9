"""Gradient descent as the logs did it: AdamW, warm-up, cosine or plateau, clipping, groups, checkpoints."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

LAST, BEST = "last.safetensors", "best.safetensors"
PATIENT = 2  # looks without improvement after which the plateau schedule halves the rate
MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # what torch's AdamW remembers of a parameter


@dataclass(frozen=True)
class Group:
    """Parameters whose names begin with `prefix`: `rate` times the common learning rate, and frozen before `start`."""

    prefix: str
    rate: float = 1.0
    start: int = 0  # training step


# The resampler log's differential rates: its sentence encoder learns at a fifth of the rate of all else.
LOG_GROUPS = (Group("encoder.", rate=0.2),)


@dataclass(frozen=True)
class FitSettings:
    """How long and how fast: `steps` batches of `batch` samples, learning rate `lr` reached after `warmup` steps.

    `clip` is the largest gradient norm, `math.inf` for none. A parameter belongs to the first of `groups` whose prefix
    its name has. Every `every` steps the model is validated and kept, where `fit` was told how and where; after
    `patience` such looks without improvement training stops (0: never).
    """

    steps: int
    lr: float = 1e-3
    batch: int = 32
    warmup: int = 20
    clip: float = 1.0
    weight_decay: float = 0.01
    schedule: Literal["cosine", "constant", "plateau"] = "cosine"
    groups: tuple[Group, ...] = ()
    every: int = 0
    patience: int = 0

    def rate(self, step: int) -> float:
        """The share of `lr` used at `step`: linear warm-up, then constant or half a cosine to zero."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.schedule != "cosine":
            return 1.0
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return 0.5 * (1 + math.cos(math.pi * done))

    def group(self, name: str) -> Group:
        """The group of a parameter."""
        return next((group for group in self.groups if name.startswith(group.prefix)), Group(""))


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
        """How often the plateau schedule has halved the rate: once for every `PATIENT` looks without improvement."""
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
) -> History:
    """Minimise `batch_loss(indices)` over the parameters of `model`, batches drawn from `range(samples)`.

    Batches come from a generator of their own, dropout from torch's global one, both started from `seed`: two calls
    with the same seed see the same batches and the same dropout masks.

    Args:
        model: its parameters that require a gradient are trained, in place.
        batch_loss: the loss of a batch of sample indices.
        samples: how many samples there are.
        settings: how long and how fast.
        seed: of the batches and of dropout.
        describe: what the progress bar says.
        validate: the validation loss of the model as it is; with it, the best weights are put back in the end.
        keep: a folder for `last.safetensors`, from which an interrupted run goes on as if it had not been, and
            `best.safetensors`, the best weights looked at.

    Raises:
        FloatingPointError: when the loss is not finite, naming the step; what was kept stays.
        ValueError: for settings that cannot be followed, or a checkpoint of another run, or a damaged one.
    """
    check_groups(model, settings)
    if (settings.patience or settings.schedule == "plateau") and not (validate and settings.every):
        raise ValueError("patience and the plateau schedule need validation: give `validate` and `every`")
    if (validate or keep) and not settings.every:
        raise ValueError("the model is validated and kept every so many steps: give `every`")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups = [{"params": [p], "factor": settings.group(name).rate} for name, p in trained.items()]
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    batches = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    run = _run(model, settings, seed, samples)
    history = _resume(keep, model, trained, optimizer, batches, run) if keep else History()
    best = _weights(model) if validate and not keep else {}
    todo = range(len(history.losses), settings.steps)
    try:
        for step in tqdm(todo, desc=describe, initial=todo.start, total=settings.steps, leave=False):
            if settings.patience and history.validation and history.waited() >= settings.patience:
                break
            for name, parameter in trained.items():
                parameter.requires_grad_(step >= settings.group(name).start)
            loss = batch_loss(torch.randint(samples, (settings.batch,), generator=batches))
            if not torch.isfinite(loss):
                raise FloatingPointError(
                    f"{describe}: the loss is {loss.item()} at step {step}; lower the learning rate or look for"
                    " infinities in the inputs"
                )
            halved = 0.5**history.halvings if settings.schedule == "plateau" else 1.0
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * settings.rate(step) * group["factor"] * halved
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(list(trained.values()), settings.clip)
            optimizer.step()
            history.losses.append(loss.item())
            done = step + 1
            if settings.every and (done % settings.every == 0 or done == settings.steps):
                if validate:
                    history.validation[done] = _validated(validate, describe, done)
                    if history.best == done:
                        best = {} if keep else _weights(model)
                        if keep:
                            _write(keep / BEST, _weights(model), {})
                if keep:
                    told = json.dumps([history.losses, list(history.validation.items())])
                    _write(keep / LAST, _state(model, trained, optimizer, batches), run | {"history": told})
    finally:  # else a run that is called again after an interruption would leave out what was frozen
        for parameter in trained.values():
            parameter.requires_grad_(True)
    if history.validation:
        _put_back(model, _read(keep / BEST)[0] if keep else best)
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


def _validated(validate: Callable[[], float], describe: str, done: int) -> float:
    loss = validate()
    if not math.isfinite(loss):
        raise FloatingPointError(f"{describe}: the validation loss is {loss} after {done} steps; what was kept stays")
    return loss


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of parameters and buffers, each once, though a host may tie several names to one."""
    return {name: t.detach().clone() for name, t in (*model.named_parameters(), *model.named_buffers())}


@torch.no_grad()
def _put_back(model: nn.Module, weights: dict[str, Tensor]) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        tensor.copy_(weights[name])


def _state(
    model: nn.Module, trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, batches: torch.Generator
) -> dict[str, Tensor]:
    """All that the next step depends on."""
    state = {f"model.{name}": tensor for name, tensor in _weights(model).items()}
    for name, parameter in trained.items():
        state |= {f"{key}.{name}": optimizer.state[parameter][key] for key in MOMENTS if optimizer.state[parameter]}
    state["random.batches"], state["random.cpu"] = batches.get_state(), torch.get_rng_state()
    if torch.cuda.is_available():
        state["random.cuda"] = torch.cuda.get_rng_state()
    return state


def _run(model: nn.Module, settings: FitSettings, seed: int, samples: int) -> dict[str, str]:
    """What makes a run this run: its settings, and the shape of its model with what is trained of it."""
    parts = {name: (*t.shape, t.requires_grad) for name, t in (*model.named_parameters(), *model.named_buffers())}
    return {"asked": json.dumps([asdict(settings), seed, samples]), "model": json.dumps(parts)}


def _resume(
    keep: Path,
    model: nn.Module,
    trained: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    batches: torch.Generator,
    run: dict[str, str],
) -> History:
    """Bring everything to where the kept run stopped; an empty history where there is none."""
    path = keep / LAST
    if not path.is_file():
        return History()
    state, notes = _read(path)
    for part, other in (("asked", "was trained with other settings, seed or data"), ("model", "holds another model")):
        if notes.get(part) != run[part]:
            raise ValueError(f"{path} {other}: take it away, or give another folder")
    losses, validation = json.loads(notes["history"])
    if validation:
        _read(keep / BEST)  # now, and not when training is over
    _put_back(model, {name.removeprefix("model."): t for name, t in state.items() if name.startswith("model.")})
    for name, parameter in trained.items():
        if f"step.{name}" in state:
            # To the parameter's device but for the step, which fused AdamW keeps there too.
            optimizer.state[parameter] = {key: state[f"{key}.{name}"].to(parameter.device) for key in MOMENTS}
    batches.set_state(state["random.batches"])
    torch.set_rng_state(state["random.cpu"])
    if "random.cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["random.cuda"])
    return History(losses, {int(step): loss for step, loss in validation})


def _write(path: Path, tensors: dict[str, Tensor], notes: dict[str, str]) -> None:
    """Write beside the file and rename: a run killed while it writes keeps the checkpoint before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, notes)
    partial.replace(path)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as kept:
            return {name: kept.get_tensor(name) for name in kept.keys()}, kept.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}): take its folder away to train anew") from None
