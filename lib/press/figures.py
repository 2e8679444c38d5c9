"""One figure style: opaque paper that reads in light and dark pages, and colours told apart by everybody."""

from collections.abc import Sequence
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes

from press.ledger import Interval

# Okabe and Ito, "Color universal design" (2008), without the yellow, which is lost on paper.
COLOURS = {
    "blue": "#0072B2",
    "orange": "#D55E00",
    "green": "#009E73",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "amber": "#E69F00",
    "grey": "#6b6b6b",
}
PAPER = "#fcfcfa"


def use_style() -> None:
    """Set the book's figure style for this process. Line styles cycle with the colours: print may be grey."""
    names = ("blue", "orange", "green", "purple")
    matplotlib.rcParams |= {
        "figure.figsize": (7.2, 3.6),
        "figure.dpi": 110,
        "savefig.dpi": 160,
        "figure.facecolor": PAPER,
        "axes.facecolor": PAPER,
        "savefig.facecolor": PAPER,
        "figure.constrained_layout.use": True,
        "font.size": 10.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#dddddd",
        "grid.linewidth": 0.6,
        "axes.axisbelow": True,
        "legend.frameon": False,
        "axes.prop_cycle": cycler(color=[COLOURS[n] for n in names]) + cycler(linestyle=["-", "--", "-.", ":"]),
    }


def draw_intervals(
    axes: Axes, at: Sequence[float], estimates: Sequence[Interval], *, flat: bool = False, **look: Any
) -> None:
    """Means at the x of `at`, or with `flat` at the y, with bars to the ends of their intervals.

    `look` goes on to `Axes.errorbar`.
    """
    means = [e.mean for e in estimates]
    ends = [[e.mean - e.low for e in estimates], [e.high - e.mean for e in estimates]]
    if flat:
        axes.errorbar(means, at, xerr=ends, **look)
    else:
        axes.errorbar(at, means, yerr=ends, **look)
