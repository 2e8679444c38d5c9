"""What was found, in one picture: every difference that a criterion asks for, measured by its line."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from bridges.instruments.uncertainty import Estimate
from matplotlib.figure import Figure

from press.claims import load_claims
from press.figures import BLUE, GREEN, ORANGE, WIDTH, dots, use_style
from press.ledger import UNDECIDED, Measured

COLOUR = {"confirmed": GREEN, "refuted": ORANGE, UNDECIDED: BLUE}
ENDS = -3.0, 5.0  # of the axis, in lines; what lies beyond is drawn at its end
PROPER = {"bleu": "BLEU", "r1": "R@1", "layernorm": "LayerNorm", "kl": "KL", "lora": "LoRA", "rms": "RMS"}
ALT = (
    "Three panels, one for each thread, with a row for each difference that a criterion asks for: its mean and interval"
    " in units of the criterion's line. Dotted lines at zero and at one. Green intervals lie right of one, orange ones"
    " left of it, most of them about zero; blue ones lie across it."
)


def picture(rows: Iterable[Mapping[str, Any]]) -> Figure:
    """A row for each part that is a difference and holds above its line, from the ledger's rows."""
    known, threads = load_claims(), {thread: dict[str, tuple[Estimate, str]]() for thread in "ABC"}
    for row in rows:
        claim = known[row["id"]]
        for part, seen in zip(claim.parts, map(Measured.of, row["parts"]), strict=True):
            above = part.comparison in (">", ">=") and not isinstance(part.threshold, tuple) and part.threshold > 0
            if above and part.is_difference:
                ends = seen.interval or (seen.observed, seen.observed)
                low, mean, high = (
                    min(max(value / float(part.threshold), ENDS[0]), ENDS[1])  # type: ignore[arg-type]
                    for value in (ends[0], seen.observed, ends[1])
                )
                name = " ".join([claim.id, *(PROPER.get(word, word) for word in part.metric.split("_"))])
                threads[claim.id[0]][name] = Estimate(mean, low, high, seen.n), COLOUR[seen.verdict]
    use_style()
    counts = [max(1, len(of)) for of in threads.values()]
    drawn, panels = plt.subplots(
        3, 1, figsize=(WIDTH, 1.2 + 0.21 * sum(counts)), height_ratios=counts, sharex=True, squeeze=True
    )
    for axes, of in zip(panels, threads.values(), strict=True):
        dots(
            axes,
            {name: estimate for name, (estimate, _) in of.items()},
            colour={name: colour for name, (_, colour) in of.items()},
            at=(0, 1),
            xlim=(ENDS[0] - 0.1, ENDS[1] + 0.1),
        )
        axes.tick_params(axis="y", labelsize=8.5)
    panels[-1].set_xlabel("measured difference, in units of the criterion's line")
    for word, colour in COLOUR.items():
        panels[0].plot([], [], "o-", color=colour, label=word)
    drawn.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return drawn


def draw(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write the picture as a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = picture(rows)
    drawn.savefig(path)
    plt.close(drawn)
