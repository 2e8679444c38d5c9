"""Does the output depend on the input at all? The loss with the right inputs against that with shuffled ones."""

from collections.abc import Callable

import torch
from jaxtyping import Int, Shaped
from torch import Tensor


def derangement(count: int, seed: int = 0) -> Int[Tensor, " count"]:
    """An order in which no sample keeps its place: one random cycle through all of them (Sattolo 1986).

    Raises:
        ValueError: for fewer than two samples.
    """
    if count < 2:
        raise ValueError(f"{count} samples cannot trade places: give at least two")
    cycle = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    order = torch.empty_like(cycle)
    order[cycle] = cycle.roll(1)
    return order


@torch.no_grad()
def conditioning_gap(
    loss: Callable[[Tensor], Tensor | float], inputs: Shaped[Tensor, "samples ..."], seed: int = 0
) -> float:
    """The loss when every sample gets another's input, minus the loss with its own, in the unit of the loss.

    Near zero a model says what it says whatever it is given: a collapse, though BLEU and loss may look respectable. It
    does not tell why; `linear_probe` on the inputs tells whether there was anything to use.
    """
    order = derangement(len(inputs), seed).to(inputs.device)
    return float(loss(inputs[order])) - float(loss(inputs))
