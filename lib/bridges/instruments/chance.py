"""Chance lines of contrastive training, and what a log's printed digits say when they lie on one."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

NEAR = 0.05  # nats from a chance line that still count as on it; fixed in the claims before any run


def chance_loss(batch: int) -> float:
    """InfoNCE where no pair stands out among `batch`: ln(batch) nats.

    Exact for constant embeddings at any temperature. Random embeddings lie above it, the more so the lower the
    temperature.
    """
    return math.log(batch)


def mean_chance_loss(pairs: int, batch: int) -> float:
    """`chance_loss` averaged over the batches of an epoch, the last one short: what an evaluation loop prints."""
    full, rest = divmod(pairs, batch)
    sizes = [batch] * full + [rest] * (rest > 0)
    return sum(map(math.log, sizes)) / len(sizes)


def stuck(loss: float, batch: int) -> bool:
    """Whether a held-out loss says that nothing was learned: above ln(batch) - 0.05, or not a number."""
    return not loss <= chance_loss(batch) - NEAR


def chance_recall(k: int, gallery: int) -> float:
    """R@k of random ranking among `gallery` candidates, in percent."""
    return 100 * min(k, gallery) / gallery


@dataclass(frozen=True)
class Printed:
    """A number as a log prints it: it stands for every value that rounds to the same digits."""

    text: str

    @property
    def value(self) -> float:
        return float(self.text)

    @property
    def digit(self) -> float:
        """One unit of the last printed place."""
        return 10.0 ** -len(self.text.partition(".")[2])

    def misfit(self, value: float) -> float:
        """How far `value` lies from what is printed, in units of the last place; up to a half it prints the same."""
        return abs(value - self.value) / self.digit

    def fits(self, value: float) -> bool:
        """Whether `value` would be printed so. A tie at exactly half a unit counts as fitting either neighbour."""
        return self.misfit(value) <= 0.5 + 1e-9


@dataclass(frozen=True)
class DatasetFit:
    """A batch size and a number of pairs that would print the log's digits at chance."""

    batch: int
    pairs: int
    loss: float

    @property
    def last_batch(self) -> int:
        return self.pairs % self.batch or self.batch


def fitting_datasets(
    loss: Printed, recalls: Mapping[int, Printed], batches: Iterable[int], largest: int = 1_000_000
) -> list[DatasetFit]:
    """The batch sizes and numbers of pairs for which chance would print these very digits.

    Args:
        loss: the printed validation loss, of weight 1 and of one term.
        recalls: the printed R@k in percent, by k; at chance k of N pairs are found among the first k.
        batches: the batch sizes to try.
        largest: the largest number of pairs to try.
    """
    low, high = 1, largest
    for k, printed in recalls.items():  # 100 k / N within half a digit bounds N from both sides
        top = printed.value + printed.digit / 2
        bottom = max(printed.value - printed.digit / 2, 1e-9)
        low, high = max(low, math.floor(100 * k / top)), min(high, math.ceil(100 * k / bottom))
    found = []
    for batch in batches:
        for pairs in range(max(low, 1), high + 1):
            if all(r.fits(chance_recall(k, pairs)) for k, r in recalls.items()):
                value = mean_chance_loss(pairs, batch)
                if loss.fits(value):
                    found.append(DatasetFit(batch, pairs, value))
    return found


@dataclass(frozen=True)
class LossReading:
    """A loss curve held against its chance line, all in nats."""

    first: float
    last: float
    lowest: float
    line: float
    state: str
    left_at: int | None  # the first step clearly below the line

    def __str__(self) -> str:
        return f"{self.state}: first {self.first:.3f}, last {self.last:.3f}, chance {self.line:.3f} nats"

    def _repr_markdown_(self) -> str:
        left = "never" if self.left_at is None else f"at step {self.left_at}"
        return (
            f"**{self.state}**\n\n| first | last | lowest | chance line | left the line |\n|--:|--:|--:|--:|---|\n"
            f"| {self.first:.3f} | {self.last:.3f} | {self.lowest:.3f} | {self.line:.3f} | {left} |"
        )


def read_loss(losses: Sequence[float], batch: int, weight: float = 1.0, window: int = 10) -> LossReading:
    """Say whether a contrastive loss curve left its chance line, `weight` times ln(batch), and whether it came back.

    Args:
        losses: the loss of every step or epoch, in nats.
        batch: pairs in a batch, on which the negatives depend; with several processes, what each one compares.
        weight: the sum of the weights of all terms, such as 1.25 for 0.25 CLIP + 1.0 Matryoshka.
        window: steps averaged, so that one lucky batch counts for nothing.

    Raises:
        ValueError: for an empty curve, values that are not finite, or a batch below 2.
    """
    if not losses:
        raise ValueError("the loss curve is empty: give at least one value")
    broken = next((i for i, x in enumerate(losses) if not math.isfinite(x)), None)
    if broken is not None:
        raise ValueError(f"the loss is {losses[broken]} at step {broken}: cut the curve there, the run ended there too")
    if batch < 2:
        raise ValueError(f"a batch of {batch} has no negatives, and its loss is zero: give the pairs in a batch")
    line, window = weight * chance_loss(batch), min(window, len(losses))
    means = [sum(losses[i : i + window]) / window for i in range(len(losses) - window + 1)]
    below = [mean < line - weight * NEAR for mean in means]
    left_at = below.index(True) if any(below) else None
    if left_at is not None:
        state = "learns" if below[-1] else "fell back to chance"
    elif means[-1] > line + weight * NEAR:
        state = "above chance"
    else:
        state = "at chance"
    return LossReading(means[0], means[-1], min(means), line, state, left_at)
