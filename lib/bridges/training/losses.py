"""Losses on embeddings (symmetric InfoNCE, Matryoshka prefixes, the alignment log's sum); KL penalties on logits."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax, normalize

CLIP_WEIGHT, MRL_WEIGHT = 0.25, 1.0  # the alignment log's


def info_nce(
    image: Float[Tensor, "batch width"], text: Float[Tensor, "batch width"], scale: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """CLIP's loss in nats: mean of image-to-text and text-to-image cross-entropy (Radford et al. 2021, figure 3).

    Row i of `image` and of `text`, both of unit norm, belong together; the other rows of the batch are the negatives.
    Where no pair stands out it is ln(batch).
    """
    logits = scale * image @ text.T  # (B, B)
    right = torch.arange(len(logits), device=logits.device)
    return (cross_entropy(logits, right) + cross_entropy(logits.T, right)) / 2


def prefix_loss(
    image: Float[Tensor, "batch width"], text: Float[Tensor, "batch width"], scale: Float[Tensor, ""], width: int
) -> Float[Tensor, ""]:
    """`info_nce` on the first `width` coordinates, brought back to unit norm (Kusupati et al. 2022, section 3).

    Raises:
        ValueError: for a prefix that is wider than the embeddings.
    """
    if width > image.shape[1]:
        raise ValueError(f"a prefix of {width} is wider than the embeddings, which have {image.shape[1]} coordinates")
    return info_nce(normalize(image[:, :width], dim=-1), normalize(text[:, :width], dim=-1), scale)


def matryoshka_loss(
    image: Float[Tensor, "batch width"],
    text: Float[Tensor, "batch width"],
    scale: Float[Tensor, ""],
    widths: Sequence[int],
) -> Float[Tensor, ""]:
    """The sum of the losses on all prefixes, each of weight 1, as the alignment log adds them."""
    return torch.stack([prefix_loss(image, text, scale, width) for width in widths]).sum()


def alignment_loss(
    image: Float[Tensor, "batch width"],
    text: Float[Tensor, "batch width"],
    scale: Float[Tensor, ""],
    widths: Sequence[int],
    sampled: int | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """The alignment log's loss, 0.25 CLIP + 1.0 Matryoshka, and what to write in a log beside it.

    With `sampled` only that prefix is computed, as the log does to save time. Its logger then writes that one prefix's
    loss as `loss_mrl`; the entries here carry the prefix's width in their name, so that none can be taken for the sum.
    """
    clip = info_nce(image, text, scale)
    chosen = widths if sampled is None else (sampled,)
    each = {f"loss_mrl_{width}": prefix_loss(image, text, scale, width) for width in chosen}
    mrl = torch.stack(list(each.values())).sum()
    return CLIP_WEIGHT * clip + MRL_WEIGHT * mrl, {"loss_clip": clip} | each


def log_as_written(entries: dict[str, Float[Tensor, ""]]) -> dict[str, Float[Tensor, ""]]:
    """What the alignment log's logger makes of those entries: the sum of whatever prefixes were computed."""
    return {
        "loss_clip": entries["loss_clip"],
        "loss_mrl": torch.stack([value for name, value in entries.items() if name.startswith("loss_mrl_")]).sum(),
    }


def kl_as_written(
    bridged: Float[Tensor, "batch read vocabulary"], baseline: Float[Tensor, "batch prompt vocabulary"], positions: int
) -> Float[Tensor, ""]:
    """The translation log's penalty: KL to the unbridged target over the first positions of both, in nats per sample.

    The first positions of the bridged target are those of its soft tokens, and of the unbridged one those of its
    prompt or the padding before it. `batchmean` divides by samples alone, so it grows with `positions`.

    Raises:
        ValueError: for more positions than either has.
    """
    if not 0 < positions <= min(bridged.shape[1], baseline.shape[1]):
        raise ValueError(
            f"{positions} positions cannot be compared: the bridged target has {bridged.shape[1]}, the other"
            f" {baseline.shape[1]}"
        )
    ours = log_softmax(bridged[:, :positions].float(), -1)
    return kl_div(ours, baseline[:, :positions].float().softmax(-1), reduction="batchmean")


def kl_aligned(
    bridged: Float[Tensor, "batch answer vocabulary"],
    baseline: Float[Tensor, "batch answer vocabulary"],
    there: Bool[Tensor, "batch answer"],
    positions: int,
) -> Float[Tensor, ""]:
    """The same between logits that foretell the same tokens of the answer: its first ones, in nats per token."""
    ours, theirs = log_softmax(bridged.float(), -1), log_softmax(baseline.float(), -1)
    each = (theirs.exp() * (theirs - ours)).sum(-1)  # (B, A)
    counted = there & (there.cumsum(-1) <= positions)
    return (each * counted).sum() / counted.sum().clamp_min(1)
