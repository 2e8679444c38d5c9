"""Why does a contrastive bridge stay at chance? What the loss curve can say, and what the tensors add."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from bridges.instruments.chance import read_loss
from bridges.instruments.probe import linear_probe

FAULTS = ("collapse", "constant text", "constant image", "shuffled pairs", "frozen")
CONSTANT = 1e-6  # deviation from the mean, relative to the rows' own size, below which all rows are one


def spread(rows: Float[Tensor, "samples width"]) -> float:
    """How far unit vectors lie from all being one: 1 minus the squared length of their mean; 0 is constant."""
    mean = normalize(rows.double(), dim=-1).mean(0)
    return max(0.0, 1 - mean.square().sum().item())


def variation(rows: Float[Tensor, "samples width"]) -> float:
    """How far rows lie from their mean, relative to their size: 0 for rows that are all the same, all zero included.

    Raises:
        ValueError: when a value is not finite, naming the row.
    """
    rows = rows.double()
    broken = (~rows.isfinite()).any(1).nonzero()
    if len(broken):
        raise ValueError(f"row {broken[0].item()} holds a value that is not finite: look at what made these inputs")
    size = rows.norm().item()
    return (rows - rows.mean(0)).norm().item() / size if size else 0.0


def trend(losses: Sequence[float]) -> tuple[float, float]:
    """The mean of a loss curve's last quarter minus that of its first, and the standard error of that.

    Raises:
        ValueError: for a single value.
    """
    if len(losses) < 2:
        raise ValueError("one value is no curve: give the loss of at least two steps")
    quarter = max(2, len(losses) // 4)
    first, last = losses[:quarter], losses[-quarter:]
    return fmean(last) - fmean(first), math.hypot(stdev(first), stdev(last)) / math.sqrt(quarter)


@dataclass(frozen=True)
class Diagnosis:
    """The explanations that what was given cannot tell apart, and why each other one was left out."""

    candidates: tuple[str, ...]
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return " or ".join(self.candidates)

    def _repr_markdown_(self) -> str:
        return f"**{self}**\n\n" + "\n".join(f"- {reason}" for reason in self.reasons)


def diagnose(
    losses: Sequence[float],
    batch: int,
    inputs: tuple[Float[Tensor, "pairs ..."], Float[Tensor, "pairs ..."]] | None = None,
    outputs: tuple[Float[Tensor, "pairs width"], Float[Tensor, "pairs width"]] | None = None,
) -> Diagnosis:
    """Name the faults of a contrastive training that fit what is known of it.

    The loss curve alone tells a model that learns from one that does not move and from one at its chance line, but not
    why a model is at that line. The inputs of both sides, as they enter the bridge, tell a broken tower (all inputs
    the same) and broken pairs (a linear probe finds nothing) from a broken bridge.

    Args:
        losses: the training loss of every step in nats, of total weight 1.
        batch: pairs in a batch.
        inputs: image and text features as they enter the bridge, row by row; more than two dimensions are averaged.
        outputs: the embeddings of the same rows, for the reasons only.

    Raises:
        ValueError: as `read_loss` and `linear_probe` do.
    """
    reading = read_loss(losses, batch)
    reasons = [str(reading)]
    if reading.state == "learns":
        return Diagnosis(("healthy",), tuple(reasons))
    if reading.state in ("above chance", "diverged"):
        change, noise = trend(losses)
        reasons.append(f"from the first quarter to the last the loss changed by {change:+.3f} nats, noise {noise:.3f}")
        if reading.state == "diverged" or change > 3 * noise:
            return Diagnosis(("diverged",), tuple(reasons))
        if change >= -3 * noise:
            return Diagnosis(("frozen",), tuple(reasons))
        reasons.append("it is still on its way down to the line: train longer before judging")
        return Diagnosis(("too early to tell",), tuple(reasons))
    suspects = [fault for fault in FAULTS if fault != "frozen"]
    if inputs is not None:
        image, text = (side if side.dim() == 2 else side.flatten(1, -2).mean(1) for side in inputs)
        whole = [side.flatten(1) for side in inputs]
        for name, rows in zip(("constant image", "constant text"), whole, strict=True):
            amount = variation(rows)
            reasons.append(f"{name.split()[1]} inputs vary by {amount:.2g} of their size")
            if amount < CONSTANT:
                suspects = [name]
                break
            suspects.remove(name)
        else:
            probe = linear_probe(image, text)
            reasons.append(f"from image inputs to text inputs, {probe}")
            suspects.remove("collapse" if not probe.found else "shuffled pairs")
    if outputs is not None:
        image, text = outputs
        reasons.append(f"embeddings: spread of images {spread(image):.2g}, of texts {spread(text):.2g}")
    return Diagnosis(tuple(suspects), tuple(reasons))
