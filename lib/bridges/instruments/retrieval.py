"""Retrieval between two sets of embeddings, with the rank of a tie said aloud."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor, arange, cat

from bridges.instruments.chance import chance_recall

Ties = Literal["middle", "first", "index"]
ROWS = 128  # queries compared at once: more leave the cache


@dataclass(frozen=True)
class Recall:
    """R@k in percent by k, and the line that random ranking would reach."""

    at: dict[int, float]
    chance: dict[int, float]
    gallery: int

    def _repr_markdown_(self) -> str:
        head = "| | " + " | ".join(f"R@{k}" for k in self.at) + " |\n|---|" + "--:|" * len(self.at)
        rows = [("observed (%)", self.at), (f"chance, {self.gallery} candidates (%)", self.chance)]
        return "\n".join([head, *(f"| {n} | " + " | ".join(f"{v:.2f}" for v in r.values()) + " |" for n, r in rows)])


def ranks(
    queries: Float[Tensor, "queries width"], gallery: Float[Tensor, "candidates width"], ties: Ties = "middle"
) -> Float[Tensor, " queries"]:
    """How many candidates stand before the right one, for each query; 0 is the best.

    Where candidates are equal to the last bit, the right one ranks in their middle (`middle`), before all others
    (`first`, which lets constant embeddings score 100 %), or by its place in the gallery (`index`, as a plain top-k on
    sorted data does, which lets them score exactly k of N). A query whose cosines are not all finite ranks last.

    Raises:
        ValueError: for a number of queries other than that of the gallery, or an unknown way with ties.
    """
    if len(queries) != len(gallery):
        raise ValueError(f"{len(queries)} queries against {len(gallery)} candidates: row i must belong to row i")
    if ties not in get_args(Ties):
        raise ValueError(f"ties {ties!r} is unknown; choose from {', '.join(get_args(Ties))}")
    found, place = [], arange(len(gallery), device=gallery.device)
    # Blocks of one size: beside a narrow last one, equal rows can differ in the last bit of their products.
    for own in place.tensor_split(math.ceil(len(gallery) / ROWS)):
        cosines = queries[own] @ gallery.T  # (rows, N)
        right = cosines.gather(1, own[:, None])
        before, equal = (cosines > right).sum(1).float(), cosines == right
        if ties == "middle":
            before += (equal.sum(1) - 1) / 2
        if ties == "index":
            before += (equal & (place < own[:, None])).sum(1)
        # Every comparison with what is not a number is false: without this a lost model would rank first.
        found.append(before.masked_fill(~cosines.isfinite().all(1), len(gallery)))
    return cat(found)


def recall(
    queries: Float[Tensor, "queries width"],
    gallery: Float[Tensor, "candidates width"],
    ks: Sequence[int] = (1, 5, 10),
    ties: Ties = "middle",
) -> Recall:
    """R@k: the share of queries whose right candidate is among the first k, in percent. Embeddings are of unit norm.

    A rank between two places, as the middle of two equal candidates, is not among the first of them.
    """
    found, n = ranks(queries, gallery, ties), len(gallery)
    at = {k: 100 * (found + 1 <= k).float().mean().item() for k in ks}
    return Recall(at, {k: chance_recall(k, n) for k in ks}, n)
