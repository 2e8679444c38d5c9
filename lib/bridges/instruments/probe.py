"""Is there anything to learn, and how loud is it? A linear probe beside chance, and shares of variance."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

SHUFFLES = 40
RIDGE = 1e-2  # share of the inputs' whole variance, each feature at unit variance


@dataclass(frozen=True)
class Probe:
    """Share of the targets' variance that a linear map explains on held-out rows (R²), and the same with rows shuffled.

    `null` holds the R² of each shuffle: what a probe of this size finds where there is nothing.
    """

    r2: float
    null: tuple[float, ...]

    @property
    def found(self) -> bool:
        """Whether the inputs tell more of the targets than in any shuffle, so that p < 1 / (shuffles + 1)."""
        return self.r2 > max(self.null)

    def __str__(self) -> str:
        word = "a relation" if self.found else "no relation"
        return f"{word}: held-out R² {self.r2:.3f}, at most {max(self.null):.3f} in {len(self.null)} shuffles"


def linear_probe(
    inputs: Float[Tensor, "samples width"], targets: Float[Tensor, "samples target_width"], seed: int = 0
) -> Probe:
    """Fit ridge regression on one half of the rows, judge it on the other, and repeat with the pairing shuffled.

    Every feature is brought to unit variance first, so a relation is found however faint its signal is beside the rest:
    that a vector holds something does not mean that a connector hears it.

    Raises:
        ValueError: for fewer than eight rows, not as many of one as of the other, or values that are not finite.
    """
    if len(inputs) != len(targets) or len(inputs) < 8:
        raise ValueError(f"{len(inputs)} inputs and {len(targets)} targets: give at least eight of each, row by row")
    if not (torch.isfinite(inputs).all() and torch.isfinite(targets).all()):
        raise ValueError("inputs or targets hold values that are not finite: leave those rows out")
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(inputs), generator=draw)
    x, y = inputs.double().cpu()[order], targets.double().cpu()[order]
    half = len(x) // 2
    x = (x - x[:half].mean(0)) / x[:half].std(0).clamp_min(1e-12)  # else one loud feature sets the penalty for all
    gram = x[:half] @ x[:half].T  # (half, half): cheap for wide inputs too
    penalty = RIDGE * gram.diagonal().mean() + 1e-12
    solve = torch.linalg.cholesky(gram + penalty * torch.eye(half, dtype=gram.dtype))
    reach = x[half:] @ x[:half].T  # (rest, half)

    def r2(y: Tensor) -> float:
        centre = y[:half].mean(0)
        predicted = centre + reach @ torch.cholesky_solve(y[:half] - centre, solve)
        error = (y[half:] - predicted).square().sum()
        total = (y[half:] - centre).square().sum()
        return float(1 - error / total) if total > 0 else 0.0

    shuffled = tuple(r2(y[torch.randperm(len(y), generator=draw)]) for _ in range(SHUFFLES))
    return Probe(r2(y), shuffled)


def variance_share(states: Float[Tensor, "positions width"], labels: Int[Tensor, " labels"]) -> float:
    """The share of the states' variance, 0 to 1, that lies between labels: how loud the label is among all else.

    It is what would be left of the variance if each state were replaced by the mean of its label's (eta squared). A
    faint label may still be found by `linear_probe`, which brings its features to one variance first.

    Raises:
        ValueError: for not as many labels as states, or states that do not vary.
    """
    if len(states) != len(labels):
        raise ValueError(f"{len(states)} states and {len(labels)} labels: give one label to each")
    centre = states.mean(0)
    groups = [states[labels == label] for label in labels.unique()]
    between = sum(len(g) * (g.mean(0) - centre).square().sum() for g in groups)
    whole = (states - centre).square().sum()
    if not whole > 0:
        raise ValueError("the states do not vary: there is nothing to take a share of")
    return float(between / whole)
