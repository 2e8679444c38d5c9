"""Measurements that both kinds of check-up take."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bridges.instruments.alignment import CONSTANT, CURVE, SURE, trend, variation
from bridges.instruments.chance import NEAR, read_loss
from bridges.instruments.gradients import GradientFlow, gradient_flow
from bridges.instruments.probe import Probe
from bridges.instruments.report import Reading

ENOUGH = 100  # samples below which a probe that finds nothing says nothing
DEAD_SHARE = 0.5  # of the connector's numbers that no gradient reaches
MODES = 0.5  # of what training mode shows, that evaluation has to keep


@contextmanager
def mode(module: nn.Module | None, training: bool) -> Iterator[None]:
    """Training or evaluation mode for the time being; running statistics and random numbers are put back."""
    parts = list(module.modules()) if module else []
    modes, kept = [part.training for part in parts], {}
    if module:
        kept = {name: buffer.clone() for name, buffer in module.named_buffers()}
        module.train(training)
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode
        with torch.no_grad():
            for name, buffer in module.named_buffers() if module else ():
                buffer.copy_(kept[name])


def inputs_reading(name: str, rows: Tensor, fault: str) -> Reading:
    """Whether inputs are finite, and vary; `fault` is that of inputs that do not."""
    if not rows.isfinite().all():
        return Reading(name, "not finite", "finite", "values that are not finite")
    amount = variation(rows.flatten(1).float())
    return Reading(f"{name}: variation", f"{amount:.2g}", f">= {CONSTANT:g}", fault if amount < CONSTANT else "")


def probe_reading(what: str, probe: Probe, unused: bool, count: int) -> Reading:
    """Whether the inputs tell anything of what should come out; it counts only where the bridge does not use them."""
    found, line, fault = f"R² {probe.r2:.3f}", f"> {max(probe.null):.3f} (shuffled)", ""
    if not probe.found and not unused:
        line += "; not counted, the bridge finds more"
    elif not probe.found and count < ENOUGH:
        line += "; not counted, too few samples"
    elif not probe.found:
        fault = "pairs that do not belong together"
    return Reading(what, found, line, fault)


def flow_readings(
    module: nn.Module | None, loss: Callable[[], Tensor], idle: bool, whole: nn.Module | None = None
) -> Iterator[Reading]:
    """How much of what is trained a gradient reaches, in evaluation mode and in training mode.

    A module of which nothing requires a gradient may have been frozen to be used. That is a fault only where it is
    `idle`: where nothing that it was given shows that it has been trained. In training mode is the `whole` model, where
    there is one.
    """
    if module is None or not any(True for _ in module.parameters()):
        return
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if not named:
        count, fault = sum(p.numel() for p in module.parameters()), "no gradient to the connector" if idle else ""
        line = "some" + ("" if idle else "; not counted, it has been trained")
        yield Reading("parameters that require a gradient", f"0 of {count:,}", line, fault, "unfreeze the connector")
        return
    flow, why = _flow(named, loss, module, whole)
    if flow is None:
        yield Reading("gradient", why, "reaches it", "no gradient to the connector")
        return
    dead = _dead(flow, named)
    fault = "parameters that no gradient reaches" if dead >= DEAD_SHARE else ""
    yield Reading("parameters without gradient", f"{dead:.0%}", f"< {DEAD_SHARE:.0%}", fault)
    with mode(whole or module, training=True):
        trained, why = _flow(named, loss, module, whole)
    if trained is None:
        yield Reading("gradient in training mode", why, "as in evaluation", "no gradient in training mode")
    elif dead < DEAD_SHARE <= (share := _dead(trained, named)):
        found, line = f"none for {share:.0%} of the parameters", f"as in evaluation, {dead:.0%}"
        yield Reading("gradient in training mode", found, line, "no gradient in training mode")


def _dead(flow: GradientFlow, named: Sequence[tuple[str, nn.Parameter]]) -> float:
    """The share of the parameters' numbers that no gradient reaches."""
    size = {name: p.numel() for name, p in named}
    return sum(size[name] for name in flow.dead) / sum(size.values())


def _flow(
    named: list[tuple[str, nn.Parameter]], loss: Callable[[], Tensor], module: nn.Module, whole: nn.Module | None
) -> tuple[GradientFlow | None, str]:
    """The gradient's flow, or why there is none."""
    nothing = "the loss depends on no parameter of the connector"
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # reentrant checkpoints warn of what is told here
            flow = gradient_flow(named, loss)
    except ValueError:  # the loss is one finite number, so that it depends on none of these parameters
        return None, nothing
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        flow = _backward(named, loss, whole or module)
    else:
        if flow.dead and whole is not None:  # what lies within a reentrant checkpoint is reached by `backward` alone
            flow = _backward(named, loss, whole)
    if not flow.norm() and not _depends(named, loss):  # a gradient of zero, as where a softmax is saturated, is one
        return None, nothing
    return flow, ""


def _depends(named: list[tuple[str, nn.Parameter]], loss: Callable[[], Tensor]) -> bool:
    """Whether a loss depends on any of the parameters at all."""
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = torch.autograd.grad(loss(), [p for _, p in named], allow_unused=True)
    return any(gradient is not None for gradient in found)


def _backward(named: list[tuple[str, nn.Parameter]], loss: Callable[[], Tensor], whole: nn.Module) -> GradientFlow:
    """The gradient's flow where a reentrant checkpoint allows nothing but `backward`; stored gradients are put back."""
    stored = [(p, p.grad) for p in whole.parameters()]
    try:
        for p, _ in stored:
            p.grad = None
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loss().backward()
        norms = {name: 0.0 if p.grad is None else p.grad.norm().item() for name, p in named}
    finally:
        for p, grad in stored:
            p.grad = grad
    return GradientFlow(norms, {name: p.detach().norm().item() for name, p in named})


def log_readings(losses: Sequence[float], batch: int = 0, vocabulary: int = 0) -> Iterator[Reading]:
    """Where a loss curve went; it is held against ln(batch) or ln(vocabulary), where one of them is known."""
    values = [float(loss) for loss in losses]
    if not values:
        return
    broken = next((i for i, loss in enumerate(values) if not math.isfinite(loss)), None)
    if broken is not None:
        found, line = f"{values[broken]} at value {broken + 1} of {len(values)}", "finite"
        yield Reading("training loss", found, line, "values that are not finite")
        return
    if min(values) < -NEAR:
        yield Reading("training loss, lowest", f"{min(values):.3f}", ">= 0, a cross-entropy", "loss below zero")
        return
    if len(values) < CURVE:
        yield Reading("training loss, values", f"{len(values)}", f">= {CURVE}; not counted")
        return
    way = trend(values)
    state = read_loss(values, batch).state if batch > 1 else ""
    fault = ""
    if way.state == "rises" and state in ("", "diverged", "above chance", "learns"):
        fault = "loss that diverged"
    elif way.held(state == "above chance") and state in ("", "above chance", "learns"):
        fault = "training that moves nothing"
    found = f"{way.change:+.3f}" + (f", {state}" if state else "")
    told = f"falls by > {SURE * way.noise:.3f}" + (
        "; not counted, too noisy" if way.state == "open" and not fault else ""
    )
    yield Reading("training loss, last quarter against first", found, told, fault)
    if vocabulary > 1:
        yield Reading(
            "training loss, last quarter (nats)", f"{way.level:.3f}", f"ln({vocabulary:,}) = {math.log(vocabulary):.3f}"
        )


def pooled(inputs: tuple[Tensor, ...]) -> Float[Tensor, "samples width"]:
    """One vector for each sample: the mean over all but the first and last dimension, of what a mask lets through."""
    first = inputs[0]
    if first.dim() == 3 and len(inputs) > 1 and inputs[1].shape == first.shape[:2]:
        there = inputs[1].to(first.dtype)[..., None]
        return (first * there).sum(1) / there.sum(1).clamp_min(1)
    return first if first.dim() == 2 else first.flatten(1, -2).mean(1)
