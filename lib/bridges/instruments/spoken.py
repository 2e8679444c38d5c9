"""Readings of what a model says: what padding does to it, whether it ends, and whether it is what the loss promises."""

import math
from collections.abc import Iterator, Sequence
from statistics import fmean

from bridges.instruments.generation import Degeneration
from bridges.instruments.padding import PaddingShift
from bridges.instruments.report import Reading

DISTINCT = 0.25  # distinct outputs over distinct references
UNENDING = 0.1  # share of generations
PADDED = 0.02  # share of prompts whose next token padding changes
SHIFTED = 0.5  # of a next-token logit, by padding: more than rounding does
SPOKEN = 16  # outputs from which their share that is as wanted counts
TELLS = 0.1  # share of the sentences that a loss promises, from which it is held against what is said
MENDS = {  # of padding that is heard, by its side or what it comes from
    "batch": "prompts without padding change in the batch too: see that each keeps its own image",
    "right": "pad on the left, or take the logits of each prompt's last token",
    "mask": "what stands in the padding is read: see that the mask reaches the host, and lies on the padding's side",
    "positions": "hand over positions that are counted by the mask: (mask.cumsum(-1) - 1).clamp_min(0)",
}


def padding_reading(padding: PaddingShift) -> Reading:
    """Whether padding changes what is said, and by what."""
    shifts = padding.changed > PADDED or padding.logits > SHIFTED
    fault = "padding that changes the answers" if shifts else ""
    found = f"{padding.changed:.0%} of {padding.padded}, logits by {padding.logits:.2g}"
    mend = MENDS.get("right" if padding.side == "right" and padding.cause != "batch" else padding.cause, "")
    line = f"<= {PADDED:.0%}, <= {SHIFTED:g}"
    return Reading(f"padded on the {padding.side}: another next token", found, line, fault, mend)


def ends_reading(generations: Degeneration) -> Reading:
    """Whether generations end."""
    share = max(generations.unstopped, generations.empty)
    fault = "generations that do not end" if share > UNENDING else ""
    return Reading("generations empty or without an end", f"{share:.0%}", f"<= {UNENDING:.0%}", fault)


def said_readings(said: Sequence[str], wanted: Sequence[str], loss: float, tokens: float | None) -> Iterator[Reading]:
    """Whether what is said differs from row to row, and is as right as the loss has it.

    A model that gives each token of a sentence of n the loss v speaks it with a probability of exp(-n v) where it draws
    its words, and about as often by its likeliest ones. For the mean over sentences that is a lower bound, by Jensen's
    inequality.

    Args:
        said, wanted: outputs and references as text.
        loss: in nats per token, of the references.
        tokens: mean number of tokens of a reference; without it a reference has one a letter, the most there can be.

    Raises:
        ValueError: for not as many outputs as references.
    """
    if len(said) != len(wanted):
        raise ValueError(f"{len(said)} outputs against {len(wanted)} references: give one for each")
    share = len(set(said)) / len(set(wanted))
    fault = "one sentence for all inputs" if share < DISTINCT else ""
    yield Reading("distinct outputs over distinct references", f"{share:.2f}", f">= {DISTINCT:g}", fault)
    one, other = ([" ".join(text.lower().split()) for text in texts] for texts in (said, wanted))
    right = fmean(a == b for a, b in zip(one, other, strict=True))
    tokens = fmean(len(text) + 1 for text in other) if tokens is None else tokens
    promised = math.exp(-tokens * max(loss, 0))
    counted = len(said) >= SPOKEN and promised >= TELLS
    fault = "loss that does not tell what is said" if counted and right < promised / 2 else ""
    line = f">= {promised / 2:.0%}, half of what the loss promises" + (
        "" if counted else "; not counted, too few are said or promised"
    )
    yield Reading("outputs that are as wanted", f"{right:.0%}", line, fault)
