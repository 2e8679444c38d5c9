"""Where gradients arrive: their norm at each parameter, and the parameters they never reach."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

DEAD = 1e-6  # share of the model's gradient norm below which a parameter counts as dead


@dataclass(frozen=True)
class GradientFlow:
    """Norms of gradient and of value for each trained parameter, by name."""

    gradient: dict[str, float]
    value: dict[str, float]

    def norm(self, part: str = "") -> float:
        """The norm over all parameters whose name holds `part`."""
        return sum(g**2 for name, g in self.gradient.items() if part in name) ** 0.5

    @property
    def dead(self) -> tuple[str, ...]:
        """The parameters that get no gradient worth the name."""
        return tuple(name for name, g in self.gradient.items() if g <= DEAD * self.norm())

    def _repr_markdown_(self) -> str:
        rows = (
            f"| `{name}` | {g:.3g} | {self.value[name]:.3g} | {'dead' if name in self.dead else ''} |"
            for name, g in self.gradient.items()
        )
        return "| parameter | gradient norm | value norm | |\n|---|--:|--:|---|\n" + "\n".join(rows)


def gradient_flow(named_parameters: Iterable[tuple[str, nn.Parameter]], loss: Callable[[], Tensor]) -> GradientFlow:
    """Run one backward pass of `loss()` and measure what arrives; gradients stored in the model are left alone.

    Raises:
        ValueError: when the loss is not one finite number, or nothing requires a gradient.
    """
    trained = {name: p for name, p in named_parameters if p.requires_grad}
    if not trained:
        raise ValueError("no parameter requires a gradient: everything is frozen")
    value = loss()
    if value.dim() or not torch.isfinite(value):
        raise ValueError(f"the loss must be one finite number, not {value.detach()}")
    if not value.requires_grad:
        raise ValueError("the loss depends on none of these parameters: hand over those of the model that computed it")
    found = torch.autograd.grad(value, list(trained.values()), allow_unused=True)
    norms = (0.0 if g is None else g.norm().item() for g in found)
    return GradientFlow(
        dict(zip(trained, norms, strict=True)), {name: p.detach().norm().item() for name, p in trained.items()}
    )
