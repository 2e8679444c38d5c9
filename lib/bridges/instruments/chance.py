"""Chance lines of contrastive training, and what a log's printed digits say when they lie on one."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

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
    return (full * math.log(batch) + (math.log(rest) if rest else 0.0)) / (full + (rest > 0))


def other_lines(level: float, batch: int) -> list[str]:
    """Which chance lines other than ln(batch) a flat contrastive log may lie on, and what would put it there.

    That is the line of a power of two times as many pairs, or of one as many times fewer, where processes or steps of
    accumulation pool their pairs or keep them apart; and the line of a loss that was divided before it was logged. What
    is untrained may lie somewhat above a line, and less below it. A level of no meaning meets some such line once in
    five, the divided one the more often the lower it lies: they are suggestions.

    Args:
        level: where the log lies, in nats.
        batch: pairs in a batch, as they are known.
    """
    line, found = chance_loss(batch), []
    for factor in (2**i for i in range(1, 13)):
        if -NEAR <= level - chance_loss(batch * factor) <= 2 * NEAR:
            found.append(
                f"{chance_loss(batch * factor):.3f} is ln({batch * factor:,}) = ln({factor} × {batch:,}): chance, if"
                f" {factor} processes or steps compare their pairs together"
            )
        fewer, rest = divmod(batch, factor)
        if not rest and fewer > 1 and -NEAR <= level - chance_loss(fewer) <= 2 * NEAR:
            found.append(
                f"{chance_loss(fewer):.3f} is ln({fewer:,}) = ln({batch:,} / {factor}): chance, if each of {factor}"
                " processes compares its own pairs"
            )
    factor = round(line / level) if level > 0 else 0
    if 1 < factor <= 1024 and abs(factor * level - line) <= NEAR:
        found.append(
            f"{line / factor:.3f} is ln({batch:,}) / {factor}: chance, if the loss is divided by {factor}, as by steps"
            f" of accumulation; a weight of 1/{factor} reads it so"
        )
    return found


def stuck(loss: float, batch: int) -> bool:
    """Whether a held-out loss says that nothing was learned: above ln(batch) - 0.05, or not a number."""
    return not loss <= chance_loss(batch) - NEAR


def chance_recall(k: int, gallery: int) -> float:
    """R@k of random ranking among `gallery` candidates, in percent."""
    return 100 * min(k, gallery) / gallery


def beats_chance(recall: float, k: int, gallery: int, chance: float = 0.0) -> bool:
    """Whether an R@k in percent, of as many queries as candidates, is more than random ranking gives once in 1,000.

    `chance` is what that ranking gives, in percent, where several candidates are right.
    """
    hits = round(recall * gallery / 100)
    from scipy.stats import binom  # a second to import, which most need not wait

    return bool(binom.sf(hits - 1, gallery, (chance or chance_recall(k, gallery)) / 100) < 1e-3)


def repeated_floor(right: Sequence[int], batch: int) -> float:
    """The loss in nats that a contrastive model cannot fall below where pairs repeat, at best.

    Among m pairs of one text, whichever candidate is the row's own cannot be told from the others: ln(m) nats, in both
    directions. m is one and as many of the other rows of a batch as are drawn with that text.

    Args:
        right: for each row of a sample of the pairs, how many rows are right for it, itself included.
        batch: pairs in a batch, drawn at random.

    Raises:
        ValueError: for fewer than two rows, or a batch below 2.
    """
    if len(right) < 2 or batch < 2:
        raise ValueError(f"{len(right)} rows in batches of {batch}: give two or more of each")
    from scipy.stats import binom

    others, found = range(batch), 0.0
    for count in set(right):
        shares = binom.pmf(others, batch - 1, min((count - 1) / (len(right) - 1), 1.0))
        found += list(right).count(count) * sum(p * math.log(1 + m) for m, p in zip(others, shares, strict=True))
    return float(found / len(right))


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

    Raises:
        ValueError: when the recalls leave more than 100,000 numbers of pairs open.
    """
    low, high = 1, largest
    for k, printed in recalls.items():  # 100 k / N within half a digit bounds N from both sides
        if printed.fits(100.0):  # any gallery of at most k
            continue
        top = printed.value + printed.digit / 2
        bottom = max(printed.value - printed.digit / 2, 1e-9)
        low, high = max(low, math.floor(100 * k / top)), min(high, math.ceil(100 * k / bottom))
    if high - low > 100_000:
        raise ValueError(
            f"these recalls allow from {low:,} to {high:,} pairs: give one that is not zero, or a smaller largest"
        )
    sizes = [n for n in range(max(low, 1), high + 1) if all(r.fits(chance_recall(k, n)) for k, r in recalls.items())]
    return [
        DatasetFit(batch, pairs, value)
        for batch in batches
        for pairs in sizes
        if loss.fits(value := mean_chance_loss(pairs, batch))
    ]


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
        window: steps of which the median counts, so that one lucky batch does not; a quarter of a shorter curve, and
            three at least.

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
    line, window = weight * chance_loss(batch), min(window, max(3, len(losses) // 4), len(losses))
    middles = [median(losses[i : i + window]) for i in range(len(losses) - window + 1)]
    below = [i for i, middle in enumerate(middles) if middle < line - weight * NEAR]
    left_at = None
    if below:
        left_at = next(i for i in range(below[0], len(losses)) if losses[i] < line - weight * NEAR)
    if middles[-1] < line - weight * NEAR:
        state = "learns"
    elif middles[-1] > line + weight * NEAR:
        state = "diverged" if below else "above chance"
    else:
        state = "fell back to chance" if below else "at chance"
    return LossReading(middles[0], middles[-1], min(middles), line, state, left_at)
