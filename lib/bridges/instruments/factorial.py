"""Main effects and interactions of a two-level factorial over seeds, with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from jaxtyping import Float
from torch import Tensor, tensor

from bridges.instruments.uncertainty import Estimate, mean_interval


@dataclass(frozen=True)
class Effects:
    """Effects by the names of the factors they belong to, in the unit of the response."""

    of: dict[tuple[str, ...], Estimate]

    def __getitem__(self, names: tuple[str, ...]) -> Estimate:
        return self.of[names]

    def _repr_markdown_(self) -> str:
        rows = (f"| {' × '.join(names)} | {e} |" for names, e in self.of.items())
        return "| effect | mean [95 % interval] |\n|---|---|\n" + "\n".join(rows)


def effects(response: Float[Tensor, "..."], factors: Sequence[str], order: int = 2) -> Effects:
    """What each factor, and each combination of up to `order` factors, does to the response.

    The effect of a factor is the mean at its second level minus that at its first, over all other factors. An
    interaction of two is half of what the second level of the one adds to the effect of the other, and so on for more:
    the contrasts of Box, Hunter and Hunter 2005, chapter 5. Each is computed within every seed; intervals are
    Student-t over seeds.

    Args:
        response: one axis of length 2 for each factor, and the seeds last.
        factors: the factors' names, in the order of the axes.
        order: the largest number of factors in an interaction.

    Raises:
        ValueError: when the axes do not fit the factors, or two factors share a name.
    """
    if tuple(response.shape[:-1]) != (2,) * len(factors):
        raise ValueError(
            f"{len(factors)} factors need a response of shape {(2,) * len(factors)} and the seeds, not"
            f" {tuple(response.shape)}: give one axis of length 2 for each factor, seeds last"
        )
    if len(set(factors)) < len(factors):
        raise ValueError(f"factors must have different names, not {', '.join(factors)}")
    response = response.double()  # a share of eighths must not look uncertain in its seventh digit
    found = {}
    sign = tensor([-1.0, 1.0], dtype=response.dtype, device=response.device)
    for size in range(1, order + 1):
        for chosen in combinations(range(len(factors)), size):
            contrast = response
            for axis in chosen:
                shape = [2 if i == axis else 1 for i in range(response.dim())]
                contrast = contrast * sign.view(shape)
            each = 2 * contrast.flatten(0, -2).mean(0)  # one value for each seed
            found[tuple(factors[axis] for axis in chosen)] = mean_interval(each.tolist())
    return Effects(found)
