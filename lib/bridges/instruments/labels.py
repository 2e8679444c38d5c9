"""What labels say of a training before any model is run: what is supervised, where, and whether the end is taught."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from bridges.instruments.report import Reading

ENDED = 0.5  # share of rows that end in one id, where the end is taught
LONG = 3  # labels of a row from which they are a sentence, which has to end
ROWS = 32  # rows from which their ends can be told to differ
OUTSIDE = 0.2  # share of the labels that stand where the mask lets nothing through


def label_readings(
    labels: Int[Tensor, "samples length"],
    ids: Int[Tensor, "samples length"] | None = None,
    mask: Shaped[Tensor, "samples length"] | None = None,
) -> Iterator[Reading]:
    """What is supervised: labels are ids, negative where there are none.

    Args:
        labels: as they are handed to the model.
        ids: what the model reads at the same places, where it shifts the labels itself.
        mask: 1 where the model reads, of the same places.
    """
    there = labels >= 0
    share, bare = there.float().mean().item(), (~there.any(1)).float().mean().item()
    fault = "" if there.any() else "no label is supervised"
    yield Reading("labels that are supervised", f"{share:.0%}, none in {bare:.0%} of rows", "some", fault)
    if fault:
        return
    if mask is not None and mask.shape == labels.shape:
        outside = (there & (mask == 0)).sum().item() / there.sum().item()
        fault = "padding is supervised" if outside > OUTSIDE else ""
        yield Reading("labels where the mask lets nothing through", f"{outside:.0%}", f"<= {OUTSIDE:.0%}", fault)
    behind = padding_share(labels)
    fault = "padding is supervised" if behind > OUTSIDE else ""
    yield Reading("labels that repeat the one that ends their row", f"{behind:.0%}", f"<= {OUTSIDE:.0%}", fault)
    if ids is not None and ids.shape == labels.shape:
        same = (labels == ids)[there].float().mean().item()
        following = there[:, :-1]
        ahead = (labels[:, :-1] == ids[:, 1:])[following].float().mean().item() if following.any() else 0.0
        fault = "labels shifted twice" if ahead > max(ENDED, same) else ""
        yield Reading(
            "labels that are their place's id, the next one's", f"{same:.0%}, {ahead:.0%}", "the first", fault
        )
    if len(labels) >= ROWS and there.sum(1).float().mean() >= LONG:
        ended = end_share(labels)
        fault = "generations that do not end" if ended < ENDED else ""
        yield Reading("rows whose last label is the same", f"{ended:.0%}", f">= {ENDED:.0%}, an end", fault)


def padding_share(labels: Int[Tensor, "samples length"]) -> float:
    """The share of labels that repeat the last one of their row up to its end, where most rows end in that one.

    An end is said once; what follows it is padding, whether a mask says so or not.
    """
    rows = labels[(labels >= 0).any(1)]
    if len(rows) < ROWS or end_share(rows) < ENDED:
        return 0.0
    there = rows >= 0
    ends = rows.gather(1, rows.shape[1] - 1 - there.flip(1).int().argmax(1, keepdim=True))
    run = ((rows == ends) | ~there).flip(1).int().cumprod(1).flip(1).bool() & there
    return (run.sum(1) - 1).sum().item() / there.sum().item()


def end_share(labels: Int[Tensor, "samples length"]) -> float:
    """The share of the rows with labels whose last one is the most common last one."""
    there = labels >= 0
    rows = there.any(1)
    last = labels.shape[1] - 1 - there[rows].flip(1).int().argmax(1)
    ends = labels[rows].gather(1, last[:, None])
    return ends.unique(return_counts=True)[1].max().item() / len(ends)


def word_counts(labels: Int[Tensor, "samples length"]) -> Float[Tensor, "samples words"]:
    """How often each id stands in each row, for the ids that tell rows apart; negative ones are none."""
    found, columns = labels.clamp_min(-1).unique(return_inverse=True)
    counts = torch.zeros(len(labels), len(found), device=labels.device)
    counts.scatter_add_(1, columns.view(labels.shape), torch.ones(labels.shape, device=labels.device))
    counts = counts[:, found >= 0]
    return counts[:, counts.std(0) > 0]
