"""Whether training moves a connector: what its optimiser holds, what it was before, and whether it is as drawn."""

from collections.abc import Iterator, Mapping
from statistics import median

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bridges.instruments.report import Reading
from bridges.instruments.soft_prompt import gates

MOVED = 1e-3  # of a connector's size: less is no training
DRAWN = 256  # weights of a layer from which their largest tells whether it was ever moved
FREE = ("logit_scale", "logit_bias", "temperature")  # beside gates, what decay pulls to a value that means something


def optimiser_readings(optimizer: Optimizer, module: nn.Module, steps: int = 0, idle: bool = True) -> Iterator[Reading]:
    """Whether an optimiser holds a module's parameters, at a rate that can move them in `steps` of Adam's size.

    A schedule brings a rate to zero where it ends, and starts it there: that counts only after a step, and where the
    module is `idle`, which is that nothing shows that it has been trained.
    """
    rates: dict[int, float] = {}
    peaks: dict[int, float] = {}
    decays: dict[int, float] = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            rates[id(p)], decays[id(p)] = float(group["lr"]), float(group.get("weight_decay", 0))
            peaks[id(p)] = max(rates[id(p)], float(group.get("initial_lr", 0)))
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not trained:
        return
    outside = [name for name, p in trained.items() if id(p) not in rates]
    fault = "parameters outside the optimiser" if outside else ""
    found = f"{len(outside)} of {len(trained)}" + (f", first {outside[0]}" if outside else "")
    yield Reading("parameters outside the optimiser", found, "none", fault)
    held = {name: p for name, p in trained.items() if id(p) in rates}
    if not held:
        return
    still = [name for name, p in held.items() if rates[id(p)] == 0]
    ended = [name for name in still if peaks[id(held[name])]]
    counted = len(still) - (0 if idle and optimizer.state else len(ended))
    fault = "a rate of zero" if counted > len(held) / 2 else ""
    line = "> 0" + ("; not counted, its schedule has not begun, or has ended" if ended and not fault else "")
    found = f"{max(rates[id(p)] for p in held.values()):.3g}, zero for {len(still)}"
    yield Reading("rate of its groups", found, line, fault)
    sizes = {name: size for name, p in held.items() if (size := _size(p))}  # a bias may begin at zero
    if steps and sizes and all(peaks[id(p)] for p in held.values()):
        reach = median(steps * peaks[id(held[name])] / size for name, size in sizes.items())
        fault = "parameters that did not move" if reach < MOVED else ""
        mend = "raise the rate: so many steps of it cannot move weights of this size"
        yield Reading(f"what {steps} such steps move", f"{reach:.2g} of the weights", f">= {MOVED:g}", fault, mend)
    free = [name for name, p in held.items() if decays[id(p)] and (_is_gate(name, p) or name.endswith(FREE))]
    fault = "weight decay on gates" if free else ""
    yield Reading("gates and temperatures with weight decay", ", ".join(free[:2]) or "none", "none", fault)


def movement_reading(module: nn.Module, before: Mapping[str, Tensor]) -> Reading:
    """How far a module lies from a state dict of it, or of the model whose part it is, with a slash for a dot in paths.

    Raises:
        ValueError: when no parameter is in there.
    """
    moved, whole, found = 0.0, 0.0, 0
    for name, p in module.named_parameters():
        old = before.get(name.replace("/", "."))
        if old is not None and old.shape == p.shape:
            moved += (p.detach().double().cpu() - old.double().cpu()).square().sum().item()
            whole, found = whole + old.double().square().sum().item(), found + 1
    if not found:
        raise ValueError(f"before holds none of the connector's parameters, such as {next(iter(before), 'nothing')!r}")
    # Some start at zero, as Gemma 3's projector does: what it has moved is all of it then.
    share = (moved / whole) ** 0.5 if whole else float(moved > 0)
    fault = "parameters that did not move" if share < MOVED else ""
    return Reading("moved since before", f"{share:.2g} of the connector's size", f">= {MOVED:g}", fault)


def as_drawn(module: nn.Module) -> bool:
    """Whether every linear layer still looks as PyTorch or transformers draws it, which no step leaves as it is.

    PyTorch draws weights evenly up to 1 / sqrt(inputs): a step takes some of those at the edge beyond it. transformers
    draws a normal distribution and sets biases to zero: a step leaves none at zero.
    """
    layers = [part for part in module.modules() if isinstance(part, nn.Linear) and part.weight.numel() >= DRAWN]
    return bool(layers) and all(_even(layer) or _no_bias(layer) for layer in layers)


def _even(layer: nn.Linear) -> bool:
    weight, edge = layer.weight.detach().float(), layer.in_features**-0.5
    largest = weight.abs().max().item() / edge
    near = 1 - 20 / weight.numel() < largest <= 1 + 1e-6
    return near and abs(weight.std().item() / (edge * 3**-0.5) - 1) < 4 / weight.numel() ** 0.5


def _no_bias(layer: nn.Linear) -> bool:
    return layer.bias is not None and not layer.bias.detach().any()


def _size(p: Tensor) -> float:
    return float(p.detach().float().square().mean().sqrt())


def _is_gate(name: str, p: Tensor) -> bool:
    try:
        return bool(gates([(name, p)]))
    except ValueError:
        return False


@torch.no_grad()
def first_not_finite(module: nn.Module) -> str:
    """The first parameter that holds a value that is not finite, or nothing."""
    return next((name for name, p in module.named_parameters() if not p.isfinite().all()), "")
