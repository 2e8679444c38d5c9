"""Does padding change what a model says? Each prompt alone against the same prompt in a padded batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

Side = Literal["left", "right"]


@dataclass(frozen=True)
class PaddingShift:
    """What padding on `side` does to the `padded` ones of `rows` prompts.

    `logits` is the largest absolute change of a next-token logit; `changed` the share of padded rows whose likeliest
    next token is another than without padding.
    """

    side: str
    logits: float
    changed: float
    padded: int
    rows: int

    def _repr_markdown_(self) -> str:
        if not self.padded:
            return "all prompts are equally long: padding cannot matter"
        return (
            "| padded on the | prompts with padding | largest change of a logit | another likeliest token |\n"
            "|---|--:|--:|--:|\n"
            f"| {self.side} | {self.padded} of {self.rows} | {self.logits:.3g} | {self.changed:.1%} |"
        )


@torch.no_grad()
def padding_shift(
    next_logits: Callable[[Tensor, Tensor], Tensor], prompts: Sequence[Int[Tensor, " _"]], pad: int, side: Side
) -> PaddingShift:
    """Run each prompt alone, then all together padded with the token `pad`; put the model in evaluation mode.

    Args:
        next_logits: from ids and mask, both (B, T), the logits (B, V) from which the next token is drawn, in the way
            that is to be tested, such as `model(input_ids=ids, attention_mask=mask).logits[:, -1]`.
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
    together = next_logits(ids, mask)
    alone = torch.cat([next_logits(p[None], torch.ones_like(p[None])) for p in prompts])
    padded = (mask == 0).any(1)
    measured = padded if padded.any() else ~padded  # without padding, what batching alone does
    changed = (together.argmax(-1) != alone.argmax(-1)) & padded
    count = int(padded.sum())
    shift = (together - alone)[measured].abs().max().item()
    return PaddingShift(side, shift, int(changed.sum()) / max(count, 1), count, len(prompts))
