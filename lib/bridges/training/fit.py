"""Gradient descent as the logs did it: AdamW, warm-up, cosine decay, clipping."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm


@dataclass(frozen=True)
class FitSettings:
    """How long and how fast: `steps` batches of `batch` samples, learning rate `lr` reached after `warmup` steps.

    `clip` is the largest gradient norm, `math.inf` for none.
    """

    steps: int
    lr: float = 1e-3
    batch: int = 32
    warmup: int = 20
    clip: float = 1.0
    weight_decay: float = 0.01
    schedule: Literal["cosine", "constant"] = "cosine"

    def rate(self, step: int) -> float:
        """The share of `lr` used at `step`: linear warm-up, then constant or half a cosine to zero."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.schedule == "constant":
            return 1.0
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return 0.5 * (1 + math.cos(math.pi * done))


def fit(
    parameters: Iterable[nn.Parameter],
    batch_loss: Callable[[Tensor], Tensor],
    samples: int,
    settings: FitSettings,
    seed: int,
    describe: str = "training",
) -> list[float]:
    """Minimise `batch_loss(indices)` over batches drawn from `range(samples)`; returns the loss of every step.

    Batches come from a generator of their own, dropout from torch's global one, both started from `seed`: two calls
    with the same seed see the same batches and the same dropout masks.

    Raises:
        FloatingPointError: when the loss is not finite, naming the step.
    """
    trained = [p for p in parameters if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, settings.rate)
    batches = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    losses: list[float] = []
    for step in tqdm(range(settings.steps), desc=describe, leave=False):
        loss = batch_loss(torch.randint(samples, (settings.batch,), generator=batches))
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"{describe}: the loss is {loss.item()} at step {step}; lower the learning rate or look for"
                " infinities in the inputs"
            )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, settings.clip)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses
