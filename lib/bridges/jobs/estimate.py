"""What a training takes before it starts: memory from shapes alone, time from a few steps."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median
from time import perf_counter
from typing import Any
from weakref import finalize

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

MIB, GIB = 2**20, 2**30


@dataclass(frozen=True)
class Footprint:
    """What a training step holds, in bytes; weights count their buffers.

    `peak` is the most that tensors take at once on the device of the weights, inputs among them. `activations` is what
    weights, gradients and optimizer state leave of it: all that the backward pass waits for, and passing values. Not in
    it are the driver's context, kernels' scratch space and what an allocator keeps without need.
    """

    frozen: int
    trained: int
    gradients: int
    optimizer: int
    activations: int
    peak: int
    frozen_parameters: int
    trained_parameters: int

    def __str__(self) -> str:
        return (
            f"peak {size(self.peak)}: frozen weights {size(self.frozen)}, trained weights {size(self.trained)},"
            f" gradients {size(self.gradients)}, optimizer state {size(self.optimizer)}, activations"
            f" {size(self.activations)}; {self.trained_parameters:,} parameters trained, {self.frozen_parameters:,}"
            " frozen"
        )

    def _repr_markdown_(self) -> str:
        names = {"optimizer": "optimizer state", "frozen": "frozen weights", "trained": "trained weights"}
        sizes = {name: value for name, value in asdict(self).items() if not name.endswith("_parameters")}
        of = {"frozen": f"{self.frozen_parameters:,}", "trained": f"{self.trained_parameters:,}"}
        rows = [f"| {names.get(name, name)} | {of.get(name, '')} | {size(value)} |" for name, value in sizes.items()]
        return "\n".join(["| a training step holds | parameters | memory |", "|---|---:|---:|", *rows])


def footprint(make: Callable[[], tuple[nn.Module, Callable[[], Tensor]]]) -> Footprint:
    """The memory of a training step of `fit`, from shapes alone: nothing is allocated, so that any size fits anywhere.

    `make` is called where tensors have shapes and no values (torch's FakeTensorMode). One step is then run as the
    second of a training would be: the optimizer has its state, and the last step's gradients stand until the backward
    pass.

    Args:
        make: builds everything anew, on the device that will train: a module that holds all weights, frozen ones too,
            and a function that gives the loss of one batch.

    Raises:
        ValueError: for a loss that looks at the values of tensors, or a module that trains nothing.
    """
    try:
        with torch.random.fork_rng(devices=[]), FakeTensorMode(), _Live() as live:
            with _moving():
                module, loss = make()
            weights = [*module.parameters(), *module.buffers()]
            trained = [p for p in module.parameters() if p.requires_grad]
            if not trained:
                raise ValueError("no parameter requires a gradient: everything is frozen")
            optimizer = torch.optim.AdamW(trained, fused=True)
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
            live.peak.clear()
            here = loss()
            optimizer.zero_grad()
            here.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            del here
            peak = live.peak[trained[0].device]
            parts = {
                "frozen": held(w for w in weights if not w.requires_grad),
                "trained": held(trained),
                "gradients": held(p.grad for p in trained if p.grad is not None),
                "optimizer": held(s for state in optimizer.state.values() for s in state.values()),
            }
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise ValueError(
            f"the loss looks at values, by {error.func}, and an estimate has shapes alone: leave such steps out of it"
        ) from None
    return Footprint(
        **parts,
        activations=peak - sum(parts.values()),
        peak=peak,
        frozen_parameters=sum(p.numel() for p in module.parameters() if not p.requires_grad),
        trained_parameters=sum(p.numel() for p in trained),
    )


def step_time(loss: Callable[[], Tensor], module: nn.Module, steps: int = 3) -> float:
    """Seconds that a training step takes, forward and backward: the median of `steps` after one that is not counted.

    Weights are not updated, and gradients, buffers and the random state are given back as they were.

    Args:
        loss: the loss of one batch.
        module: what is trained.
        steps: how many are measured.
    """
    device = next(module.parameters()).device
    grads = [(p, p.grad) for p in module.parameters()]
    buffers = [(b, b.clone()) for b in module.buffers()]
    seconds = []
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            for _ in range(steps + 1):
                module.zero_grad()
                start = perf_counter()
                loss().backward()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                seconds.append(perf_counter() - start)
    finally:
        for parameter, grad in grads:
            parameter.grad = grad
        for buffer, kept in buffers:
            buffer.copy_(kept)
    return median(seconds[1:])


def duration(seconds_per_step: float, steps: int) -> str:
    """How long so many steps take, such as "1 h 20 min".

    Raises:
        ValueError: for a time that cannot be.
    """
    total = seconds_per_step * steps
    if not 0 <= total < math.inf:
        raise ValueError(f"{steps} steps of {seconds_per_step} s are no time: give numbers that are not negative")
    if total < 60:
        return f"{total:.0f} s" if total >= 10 else f"{total:.1f} s"
    minutes = round(total / 60)
    days, hours, minutes = minutes // 1440, minutes // 60 % 24, minutes % 60
    if days:
        return f"{days} d {hours} h" if hours else f"{days} d"
    if hours:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{minutes} min"


def size(count: int) -> str:
    """Bytes in GiB, or in MiB below one."""
    return f"{count / GIB:.2f} GiB" if count >= GIB else f"{count / MIB:.1f} MiB"


def held(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind tensors, each once, though weights may be tied."""
    storages = WeakIdKeyDictionary()
    for tensor in tensors:
        storages[tensor.untyped_storage()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


class _Live(TorchDispatchMode):
    """Counts the storages that are alive on each device, as operations return them.

    torch's own `MemTracker` does this too, with hooks on every module that cannot be set inside a frozen host.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live: Counter[torch.device] = Counter()
        self.peak: Counter[torch.device] = Counter()
        self.known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and (storage := leaf.untyped_storage()) not in self.known:
                self.known[storage] = True
                self.live[leaf.device] += storage.nbytes()
                finalize(storage, self._freed, leaf.device, storage.nbytes())
        for device, held_now in self.live.items():
            self.peak[device] = max(self.peak[device], held_now)
        return out

    def _freed(self, device: torch.device, count: int) -> None:
        self.live[device] -= count


@contextmanager
def _moving() -> Iterator[None]:
    """Let `module.to` work without values, where torch up to 2.13 fails to swap the tensors; tied weights stay tied."""
    moved: dict[nn.Parameter, nn.Parameter] = {}

    def apply(module: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        for child in module.children() if recurse else ():
            child._apply(fn)
        for name, own in module.named_parameters(recurse=False, remove_duplicate=False):
            if own not in moved:
                moved[own] = nn.Parameter(fn(own.detach()), own.requires_grad)
            module._parameters[name] = moved[own]
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
            module._buffers[name] = fn(buffer)
        return module

    kept = nn.Module._apply
    nn.Module._apply = apply  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module._apply = kept  # type: ignore[method-assign]
