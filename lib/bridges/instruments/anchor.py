"""Does a penalty, such as the divergence from a frozen model, watch what it should? Where it looks, and how far."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from bridges.instruments.conditioning import derangement


@dataclass(frozen=True)
class AnchorReach:
    """What a penalty depends on.

    `answer_sensitivity` is the largest change that other samples' answers make, as a share of the penalty's own value:
    0 for one that never sees the answers. `gradient` is the norm of its gradient at each soft token, averaged over the
    batch.
    """

    value: float
    answer_sensitivity: float
    gradient: tuple[float, ...]

    @property
    def reached(self) -> int:
        """How many soft tokens the penalty pulls at."""
        return sum(g > 0 for g in self.gradient)

    def _repr_markdown_(self) -> str:
        return (
            "| penalty | change with others' answers | soft tokens with a gradient | least and largest norm |\n"
            "|--:|--:|--:|--:|\n"
            f"| {self.value:.4g} | {self.answer_sensitivity:.2%} | {self.reached} of {len(self.gradient)} |"
            f" {min(self.gradient):.3g}, {max(self.gradient):.3g} |"
        )


def anchor_reach(
    penalty: Callable[[Tensor, Tensor], Tensor],
    soft: Float[Tensor, "batch tokens width"],
    answers: Shaped[Tensor, "batch answer"],
    permutations: int = 5,
    seed: int = 0,
) -> AnchorReach:
    """Measure a penalty, one number from soft tokens and answers, with their own answers and `permutations` times not.

    Put the models behind it in evaluation mode, since dropout would pass for sensitivity. Gradients stored in them are
    left alone. A penalty that depends on no soft token gets gradients of zero.

    Raises:
        ValueError: when the penalty is not one finite number, or there are fewer than two samples.
    """
    leaf = soft.detach().requires_grad_()
    with torch.enable_grad():
        value = penalty(leaf, answers)
        if value.dim() or not torch.isfinite(value):
            raise ValueError(f"the penalty must be one finite number, not {value.detach()}")
        pull = torch.autograd.grad(value, leaf, allow_unused=True)[0] if value.requires_grad else None
    gradient = torch.zeros_like(leaf) if pull is None else pull
    own = value.item()
    with torch.no_grad():
        orders = (derangement(len(answers), seed + i).to(answers.device) for i in range(permutations))
        change = max(abs(penalty(soft, answers[order]).item() - own) for order in orders)
    relative = change / abs(own) if own else (float("inf") if change else 0.0)
    return AnchorReach(own, relative, tuple(gradient.norm(dim=-1).mean(0).tolist()))
