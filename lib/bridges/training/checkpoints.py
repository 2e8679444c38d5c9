"""Checkpoints in safetensors: the last state of a training, from which it goes on, and the best weights it had."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bridges.training.parallel import Parallel

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


def describe(model: nn.Module, settings: Any, seed: int, samples: int, world: int) -> dict[str, str]:
    """What makes a run this run: its settings, the shape of its model with what is trained of it, its processes."""
    parts = {name: (*t.shape, t.requires_grad) for name, t in (*model.named_parameters(), *model.named_buffers())}
    return {
        "asked": json.dumps([asdict(settings), seed, samples]),
        "model": json.dumps(parts),
        "processes": str(world),
    }


def keep_best(folder: Path, model: nn.Module) -> None:
    """Write `best.safetensors`."""
    _write(folder / BEST, weights(model), {})


def read_best(folder: Path) -> dict[str, Tensor]:
    """The weights of `best.safetensors`."""
    return _read(folder / BEST)[0]


def random_states(batches: torch.Generator, parallel: Parallel) -> dict[str, Tensor]:
    """The state of the batches, which all processes share, and of dropout, one row for each; all must call it."""
    own = {"random.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        own["random.cuda"] = torch.cuda.get_rng_state()
    rows = {name: parallel.gather(state[None].to(parallel.device)).cpu() for name, state in own.items()}
    return rows | {"random.batches": batches.get_state()}


def keep_last(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    random: dict[str, Tensor],
    run: dict[str, str],
    losses: list[float],
    validation: dict[int, float],
) -> None:
    """Write `last.safetensors`: all that the next step depends on, and what was seen so far."""
    state = {f"model.{name}": tensor for name, tensor in weights(model).items()}
    for name, parameter in model.named_parameters():
        if optimizer.state.get(parameter):
            state |= {f"{key}.{name}": optimizer.state[parameter][key] for key in MOMENTS}
    _write(folder / LAST, state | random, run | {"history": json.dumps([losses, list(validation.items())])})


def resume(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: torch.Generator,
    run: dict[str, str],
    rank: int,
) -> tuple[list[float], dict[int, float]]:
    """Bring everything to where the kept run stopped, dropout to where process `rank` was; its losses and validation.

    Raises:
        ValueError: for a checkpoint of another run or model, or a damaged one.
    """
    path = folder / LAST
    if not path.is_file():
        return [], {}
    state, notes = _read(path)
    for part, other in (
        ("asked", "was trained with other settings, seed or data"),
        ("model", "holds another model"),
        ("processes", "was trained on another number of processes"),
    ):
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
    # Cloned: torch 2.13 reads the state from the start of the storage, whatever row of it is given.
    torch.set_rng_state(state["random.cpu"][rank].clone())
    if "random.cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["random.cuda"][rank].clone())
    return losses, {int(step): loss for step, loss in validation}


def steps_done(folder: Path) -> int:
    """How many steps the run kept in a folder had done, 0 where there is none.

    Raises:
        ValueError: for a damaged checkpoint.
    """
    path = folder / LAST
    return len(json.loads(_read(path, tensors=False)[1]["history"])[0]) if path.is_file() else 0


def _write(path: Path, tensors: dict[str, Tensor], notes: dict[str, str]) -> None:
    """Write beside the file and rename: a run killed while it writes keeps the checkpoint before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, notes)
    partial.replace(path)


def _read(path: Path, tensors: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as kept:
            names = kept.keys() if tensors else ()
            return {name: kept.get_tensor(name) for name in names}, kept.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}): take its folder away to train anew") from None
