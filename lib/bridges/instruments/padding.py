"""Does padding change what a model says? Each prompt alone against the same prompt in a padded batch."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

Side = Literal["left", "right"]
HEARD = 1e-3  # change of a logit beyond rounding


@dataclass(frozen=True)
class PaddingShift:
    """What padding on `side` does to the `padded` ones of `rows` prompts.

    `logits` is the largest absolute change of a next-token logit, infinite where one is no number; `changed` the share
    of padded rows whose likeliest next token is another than without padding. `cause` is what the change comes from:
    "mask" where what stands in the padding is read; where it is not, "batch" where rows without padding change too, and
    "positions" where they do not; nothing where nothing changed.
    """

    side: str
    logits: float
    changed: float
    padded: int
    rows: int
    cause: str = ""

    def _repr_markdown_(self) -> str:
        if not self.padded:
            return "all prompts are equally long: padding cannot matter"
        return (
            "| padded on the | prompts with padding | largest change of a logit | another likeliest token | by |\n"
            "|---|--:|--:|--:|---|\n"
            f"| {self.side} | {self.padded} of {self.rows} | {self.logits:.3g} | {self.changed:.1%} | {self.cause} |"
        )


@torch.no_grad()
def padding_shift(
    next_logits: Callable[..., Tensor], prompts: Sequence[Int[Tensor, " _"]], pad: int, side: Side
) -> PaddingShift:
    """Run each prompt alone, then all together padded with the token `pad`; put the model in evaluation mode.

    Args:
        next_logits: from ids and mask, both (B, T), the logits (B, V) from which the next token is drawn, in the way
            that is to be tested, such as `model(input_ids=ids, attention_mask=mask).logits[:, -1]`. Where it takes a
            third argument, that is the prompts' indices (B,), so that each can be given its own image.
        prompts: token ids, each prompt as long as it is.
        pad: the padding token.
        side: where it goes.

    Raises:
        ValueError: when there are no prompts, one of them is empty, or the side is unknown.
    """
    if side not in get_args(Side):
        raise ValueError(f"side {side!r} is unknown; choose from {', '.join(get_args(Side))}")
    if not prompts or not all(len(p) for p in prompts):
        raise ValueError("no prompts, or one without a token: give at least the token that begins a text")
    ids = pad_sequence(list(prompts), batch_first=True, padding_value=pad, padding_side=side)
    mask = pad_sequence([torch.ones_like(p) for p in prompts], batch_first=True, padding_side=side)
    logits = _by_rows(next_logits)
    rows = torch.arange(len(prompts))
    together = logits(ids, mask, rows)
    alone = torch.cat([logits(p[None], torch.ones_like(p[None]), rows[i : i + 1]) for i, p in enumerate(prompts)])
    padded = (mask == 0).any(1)
    measured = padded if padded.any() else ~padded  # without padding, what batching alone does
    count, shift = int(padded.sum()), _largest(together - alone, measured)
    # A logit that is no number is one that padding has changed.
    changed = ((together.argmax(-1) != alone.argmax(-1)) | ~together.isfinite().all(-1)) & padded
    cause = ""
    if count and shift > HEARD:
        # Something else in the padding: only where it is read does it make a difference.
        other = ids.masked_fill(mask == 0, next((i for i in ids.unique().tolist() if i != pad), pad))
        if _largest(logits(other, mask, rows) - together, padded) > HEARD:
            cause = "mask"
        else:
            whole = not padded.all() and _largest(together - alone, ~padded) > HEARD
            cause = "batch" if whole else "positions"
    return PaddingShift(side, shift, int(changed.sum()) / max(count, 1), count, len(prompts), cause)


def _by_rows(next_logits: Callable[..., Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A function of ids, mask and rows, of one that may take the first two alone."""
    asked = [p for p in inspect.signature(next_logits).parameters.values() if p.default is p.empty]
    if sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in asked) < 3:
        return lambda ids, mask, rows: next_logits(ids, mask)
    return next_logits


def _largest(change: Tensor, rows: Tensor) -> float:
    found = change[rows].abs().max().item()
    return found if math.isfinite(found) else math.inf
