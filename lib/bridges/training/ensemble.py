"""Many small models trained at once: one vectorised graph for every seed and setting.

Small models are bound by the cost of starting each operation, not by arithmetic. `torch.func.vmap` runs the same
operation for all models together (`torch.func.stack_module_state`, `functional_call`), so that a factorial over seeds
costs a fraction of the same runs one by one, and gives the same losses.
"""

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from tqdm import tqdm

from bridges.training.fit import FitSettings, History, check_groups

State = dict[str, Tensor]
BETAS, EPSILON = (0.9, 0.999), 1e-8  # torch.optim.AdamW's own


@dataclass(frozen=True)
class Ensemble:
    """Trained models as stacked tensors (models, ...), and the loss of every step (steps, models) in nats."""

    template: nn.Module
    parameters: State
    buffers: State
    losses: Float[Tensor, "steps models"]

    def __len__(self) -> int:
        return self.losses.shape[1]

    def model(self, index: int) -> nn.Module:
        """One of the models as a module of its own."""
        single = deepcopy(self.template)
        with torch.no_grad():
            for name, value in (*single.named_parameters(), *single.named_buffers()):
                value.copy_((self.parameters | self.buffers)[name][index])
        return single

    def part(self, places: Sequence[int]) -> "Ensemble":
        """Some of the models, in the order of their places."""
        parameters, buffers = (
            {name: value[list(places)] for name, value in state.items()} for state in (self.parameters, self.buffers)
        )
        return Ensemble(self.template, parameters, buffers, self.losses[:, list(places)])

    @torch.no_grad()
    def apply(self, *inputs: Any) -> Any:
        """What every model makes of the same inputs; each tensor gains a leading dimension of models."""

        def call(parameters: State, buffers: State) -> Any:
            return functional_call(self.template, (parameters, buffers), inputs)

        return vmap(call)(self.parameters, self.buffers)


def fit_ensemble(
    models: Sequence[nn.Module],
    batch_loss: Callable[[Callable[..., Any], Int[Tensor, " batch"], int], Tensor],
    samples: int | Sequence[int],
    settings: Sequence[FitSettings],
    seeds: Sequence[int],
    *,
    chunk: int | None = None,
    folded: bool = False,
    look: Callable[[int, Ensemble], Sequence[float] | None] | None = None,
    describe: str = "training",
) -> Ensemble:
    """Train models of one architecture side by side, each as `fit` would train it alone.

    Args:
        models: modules that differ in their values alone; they are copied, not changed.
        batch_loss: `batch_loss(model, indices, step)` of one model, which is called as the module would be.
        samples: how many samples there are to draw batches from, or how many for each model.
        settings: one for each model; steps and batch must agree, rate, warm-up, clipping and decay may differ.
        seeds: one for each model: the order of its batches, the same as `fit`'s for that seed.
        chunk: how many models share the cache at once; all of them where nothing is given.
        folded: `batch_loss(models, indices, step)` is then of all models at once, with indices (models, batch), and
            gives back a loss for each (models,); `models` takes and returns tensors with a leading dimension of models.
            For what all models share, such as a frozen host behind them, which then sees one large batch.
        look: called after each step with the number of steps done and the models as they then are. Where it gives back
            a validation loss for each model, those with the plateau schedule follow it.

    A model whose loss is no longer finite stays so, and leaves the others alone: look at `losses`. Looks that `fit`
    takes by itself (`every`, `patience`) are not taken here. Dropout draws from torch's global generator, started from
    the first seed, for each model its own: it is not `fit`'s.

    Raises:
        ValueError: for lists of different lengths, settings that do not fit together, models of different
            architecture, one with nothing to train, or one that `vmap` does not accept.
    """
    if not len(models) == len(settings) == len(seeds) or not models:
        raise ValueError(f"{len(models)} models, {len(settings)} settings, {len(seeds)} seeds: give one each for each")
    steps, batch = settings[0].steps, settings[0].batch
    if any((s.steps, s.batch) != (steps, batch) for s in settings):
        raise ValueError("settings differ in steps or batch: train such models in ensembles of their own")
    if any(s.every or s.patience or (s.schedule == "plateau" and not look) for s in settings):
        raise ValueError(
            "an ensemble takes no looks of its own: train with fit, or take `every` and `patience` out, and give the"
            " plateau schedule a `look` that returns validation losses"
        )
    if any(
        [(g.prefix, g.start) for g in s.groups] != [(g.prefix, g.start) for g in settings[0].groups] for s in settings
    ):
        raise ValueError(
            "settings differ in what their groups hold or when they start: only the groups' rates may differ"
        )
    if steps < 1 or not any(p.requires_grad for p in models[0].parameters()):
        raise ValueError("there is nothing to train: no steps, or no parameter that requires a gradient")
    check_groups(models[0], settings[0])
    device = next(models[0].parameters()).device
    shapes = [{n: (p.shape, p.requires_grad) for n, p in m.named_parameters()} for m in models]
    if any(s != shapes[0] for s in shapes):
        raise ValueError("the models differ in architecture: train each architecture in an ensemble of its own")
    counts = [samples] * len(models) if isinstance(samples, int) else samples
    first_batch = _order(seeds[0], counts[0], 1, batch)[0]

    def first_loss(model: nn.Module) -> Tensor:
        if not folded:
            return batch_loss(model, first_batch.to(device), 0)
        return batch_loss(_alone(model), first_batch.to(device)[None], 0).sum()

    used = _used(models[0], first_loss)
    try:
        parameters, buffers = stack_module_state(list(models))
    except RuntimeError as error:
        raise ValueError(f"the models cannot be stacked ({error}): make them of one shape and one mode") from None
    parameters = {name: p.detach() for name, p in parameters.items()}
    # What is frozen, or takes no part in the loss, stands among the buffers: no gradient is taken there, and no decay.
    buffers |= {name: parameters.pop(name) for name in list(parameters) if name not in used}
    template = deepcopy(models[0])  # not on the meta device, where tied parameters come apart
    drawn = [_order(seed, count, steps, batch) for seed, count in zip(seeds, counts, strict=True)]
    orders = torch.stack(drawn, 1).to(device)  # (T, M, B)
    rates = torch.tensor([[s.lr * s.rate(step) for s in settings] for step in range(steps)], device=device)
    factors = {n: torch.tensor([s.group(n).rate for s in settings], device=device) for n in parameters}
    starts = {name: settings[0].group(name).start for name in parameters}
    decays = {n: torch.tensor([s.decay(n) for s in settings], device=device) for n in parameters}
    clips = torch.tensor([s.clip for s in settings], device=device)
    first, second = ({name: torch.zeros_like(p) for name, p in parameters.items()} for _ in range(2))
    losses = torch.empty(steps, len(models), device=device)
    histories = [History() for _ in models]
    torch.manual_seed(seeds[0])

    for step in tqdm(range(steps), desc=describe, leave=False):

        def one(parameters: State, buffers: State, rows: Tensor, step: int = step) -> Tensor:
            def model(*inputs: Any) -> Any:
                return functional_call(template, (parameters, buffers), inputs)

            return batch_loss(model, rows, step)

        try:
            if folded:
                gradients, loss = _folded(template, parameters, buffers, lambda m: batch_loss(m, orders[step], step))  # noqa: B023
            else:
                vectorised = vmap(grad_and_value(one), chunk_size=chunk, randomness="different")
                gradients, loss = vectorised(parameters, buffers, orders[step])
        except RuntimeError as error:
            if step:
                raise
            raise ValueError(
                f"this model or loss cannot be vectorised over models ({str(error).splitlines()[0]}): train it with"
                " fit, one by one"
            ) from error
        gradients = {name: g for name, g in gradients.items() if starts[name] <= step}
        _clip(gradients, clips)
        halved = [0.5**h.halvings if s.schedule == "plateau" else 1 for h, s in zip(histories, settings, strict=True)]
        rate = rates[step] * torch.tensor(halved, device=device)
        for name, gradient in gradients.items():
            moments = first[name], second[name]
            # As in torch, a parameter that was frozen counts its own steps from when it thawed.
            _adamw(parameters[name], gradient, moments, rate * factors[name], decays[name], step - starts[name] + 1)
        losses[step] = loss
        validation = look(step + 1, Ensemble(template, parameters, buffers, losses[: step + 1])) if look else None
        for history, seen in zip(histories, validation or (), strict=False):
            history.validation[step + 1] = seen
    return Ensemble(template, parameters, buffers, losses)


def alike(kinds: Sequence[object]) -> list[list[int]]:
    """The places of equal kinds together, such as of runs whose models have one architecture."""
    places: dict[object, list[int]] = {}
    for place, kind in enumerate(kinds):
        places.setdefault(kind, []).append(place)
    return list(places.values())


def _folded(
    template: nn.Module, parameters: State, buffers: State, losses: Callable[[Callable[..., Any]], Tensor]
) -> tuple[State, Float[Tensor, " models"]]:
    """Gradients and losses of all models from one backward pass: the sum's gradient falls apart by model."""
    leaves = {name: p.detach().requires_grad_() for name, p in parameters.items()}

    def models(*inputs: Any) -> Any:
        dims = tuple(0 if isinstance(x, Tensor) else None for x in inputs)
        call = vmap(
            lambda p, b, *x: functional_call(template, (p, b), x), in_dims=(0, 0, *dims), randomness="different"
        )
        return call(leaves, buffers, *inputs)

    each = losses(models)
    found = torch.autograd.grad(each.sum(), list(leaves.values()))
    return dict(zip(leaves, found, strict=True)), each.detach()


def _alone(model: nn.Module) -> Callable[..., Any]:
    """One model called as `models` is."""

    def models(*inputs: Any) -> Any:
        made = model(*(x[0] if isinstance(x, Tensor) else x for x in inputs))
        return tuple(x[None] for x in made) if isinstance(made, tuple) else made[None]

    return models


def _used(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> set[str]:
    """The parameters that the loss depends on; found on a copy, and alone, so that errors of the loss are its own."""
    alone = deepcopy(model)
    trained = {name: p for name, p in alone.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss(alone), list(trained.values()), allow_unused=True)
    return {name for name, gradient in zip(trained, found, strict=True) if gradient is not None}


def _order(seed: int, samples: int, steps: int, batch: int) -> Int[Tensor, "steps batch"]:
    """The batches that `fit` draws with this seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(samples, (batch,), generator=generator) for _ in range(steps)])


def _clip(gradients: State, largest: Float[Tensor, " models"]) -> None:
    """Scale each model's gradients down to norm `largest`, as `nn.utils.clip_grad_norm_` does for one model."""
    if not torch.isfinite(largest).any():
        return
    squares = torch.stack([g.reshape(len(g), -1).square().sum(1) for g in gradients.values()])  # (parameters, M)
    factor = (largest / (squares.sum(0).sqrt() + 1e-6)).clamp(max=1)
    for gradient in gradients.values():
        gradient.mul_(_per_model(factor, gradient))


def _adamw(
    parameter: Tensor,
    gradient: Tensor,
    moments: tuple[Tensor, Tensor],
    rate: Float[Tensor, " models"],
    decay: Float[Tensor, " models"],
    step: int,
) -> None:
    """One step of AdamW (Loshchilov and Hutter 2019, algorithm 2) in place, with a rate and a decay for each model."""
    first, second = moments
    bias_1, bias_2 = 1 - BETAS[0] ** step, 1 - BETAS[1] ** step
    parameter.mul_(_per_model(1 - rate * decay, parameter))
    first.lerp_(gradient, 1 - BETAS[0])
    second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
    denominator = second.sqrt().div_(math.sqrt(bias_2)).add_(EPSILON)
    parameter.sub_((_per_model(rate / bias_1, parameter) * first).div_(denominator))


def _per_model(values: Float[Tensor, " models"], like: Tensor) -> Tensor:
    """Shaped to scale each model's slice of `like`."""
    return values.view(-1, *[1] * (like.dim() - 1))
