"""Checkpoints in safetensors: the last state of a training, from which it goes on, and the best weights it had."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

LAST, BEST = "last.safetensors", "best.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # what torch's AdamW remembers of a parameter


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of parameters and buffers, each once, though a host may tie several names to one."""
    return {name: t.detach().clone() for name, t in (*model.named_parameters(), *model.named_buffers())}


@torch.no_grad()
def put_back(model: nn.Module, kept: dict[str, Tensor]) -> None:
    """Give a model the weights that were taken from it."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        tensor.copy_(kept[name])


def describe(model: nn.Module, settings: Any, seed: int, samples: int) -> dict[str, str]:
    """What makes a run this run: its settings, and the shape of its model with what is trained of it."""
    parts = {name: (*t.shape, t.requires_grad) for name, t in (*model.named_parameters(), *model.named_buffers())}
    return {"asked": json.dumps([asdict(settings), seed, samples]), "model": json.dumps(parts)}


def keep_best(folder: Path, model: nn.Module) -> None:
    """Write `best.safetensors`."""
    _write(folder / BEST, weights(model), {})


def read_best(folder: Path) -> dict[str, Tensor]:
    """The weights of `best.safetensors`."""
    return _read(folder / BEST)[0]


def keep_last(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: torch.Generator,
    run: dict[str, str],
    losses: list[float],
    validation: dict[int, float],
) -> None:
    """Write `last.safetensors`: all that the next step depends on, and what was seen so far."""
    state = {f"model.{name}": tensor for name, tensor in weights(model).items()}
    for name, parameter in model.named_parameters():
        if optimizer.state.get(parameter):
            state |= {f"{key}.{name}": optimizer.state[parameter][key] for key in MOMENTS}
    state["random.batches"], state["random.cpu"] = batches.get_state(), torch.get_rng_state()
    if torch.cuda.is_available():
        state["random.cuda"] = torch.cuda.get_rng_state()
    _write(folder / LAST, state, run | {"history": json.dumps([losses, list(validation.items())])})


def resume(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, batches: torch.Generator, run: dict[str, str]
) -> tuple[list[float], dict[int, float]]:
    """Bring everything to where the kept run stopped; its losses, and its validation losses by step.

    Raises:
        ValueError: for a checkpoint of another run or model, or a damaged one.
    """
    path = folder / LAST
    if not path.is_file():
        return [], {}
    state, notes = _read(path)
    for part, other in (("asked", "was trained with other settings, seed or data"), ("model", "holds another model")):
        if notes.get(part) != run[part]:
            raise ValueError(f"{path} {other}: take it away, or give another folder")
    losses, validation = json.loads(notes["history"])
    if validation:
        read_best(folder)  # now, and not when training is over
    put_back(model, {name.removeprefix("model."): t for name, t in state.items() if name.startswith("model.")})
    for name, parameter in model.named_parameters():
        if f"step.{name}" in state:
            # To the parameter's device, the step too: fused AdamW keeps it there.
            optimizer.state[parameter] = {key: state[f"{key}.{name}"].to(parameter.device) for key in MOMENTS}
    batches.set_state(state["random.batches"])
    torch.set_rng_state(state["random.cpu"])
    if "random.cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["random.cuda"])
    return losses, {int(step): loss for step, loss in validation}


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
