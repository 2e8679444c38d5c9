"""One figure style: opaque paper that reads in light and dark pages, and colours told apart by everybody."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from scipy.special import stdtrit

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
BLUE, ORANGE, GREEN, PURPLE, GREY = (COLOURS[c] for c in ("blue", "orange", "green", "purple", "grey"))
PAPER = "#fcfcfa"
WIDTH = 7.2  # inches, that of the page


def use_style() -> None:
    """Set the book's figure style for this process. Line styles cycle with the colours: print may be grey."""
    names = ("blue", "orange", "green", "purple")
    matplotlib.rcParams |= {
        "figure.figsize": (WIDTH, 3.6),
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


def figure(columns: int = 1, height: float = 3.2, **options: Any) -> Any:
    """The axes of a new figure of the page's width: one, or as many as there are columns, which share the y axis.

    `options` go to `plt.subplots`.
    """
    shared = {"sharey": True} if columns > 1 else {}
    return plt.subplots(1, columns, figsize=(WIDTH, height), **(shared | options))[1]


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


def dots(
    axes: Axes,
    rows: Mapping[str, Any],
    *,
    points: Mapping[str, Iterable[float]] | None = None,
    colour: str | Mapping[str, str] = ORANGE,
    at: Iterable[float] = (),
    nudge: float = 0.0,
    mark: str = "o",
    legend: str | None = None,
    **labels: Any,
) -> None:
    """A row for each name, the first on top: an interval as its mean with a bar, or plain values as small crosses.

    Args:
        axes: to draw on.
        rows: an interval, or several values, by the row's name.
        points: values to draw beside, such as this page's runs over the intervals of record, small and grey.
        colour: of all rows, or by name.
        at: where dotted lines stand.
        nudge: moves the rows down, in rows, for a second series.
        mark: of the means.
        legend: the series' name.
        labels: for `axes.set`, such as `xlabel`.
    """
    for y, (name, value) in enumerate(rows.items()):
        shade = colour[name] if isinstance(colour, Mapping) else colour
        said = legend if y == 0 else None
        if isinstance(value, Interval):
            draw_intervals(axes, [y + nudge], [value], flat=True, fmt=mark, color=shade, capsize=3, label=said)
        else:
            values = list(value)
            axes.plot(values, [y + nudge] * len(values), "x", color=shade, ms=5, label=said)
        beside = list((points or {}).get(name, ()))
        axes.plot(beside, [y + nudge + 0.18] * len(beside), ".", color=GREY, ms=5)
    for place in at:
        axes.axvline(place, color="black", lw=0.8, ls=":")
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set(**labels)


def lines(
    axes: Axes,
    curves: Mapping[str, pd.DataFrame],
    *,
    colour: Mapping[str, str] | None = None,
    at: Iterable[float] = (),
    thin: bool = True,
    **labels: Any,
) -> None:
    """Means over seeds against steps, one thick line for each name, with the 95 % interval shaded and seeds thin.

    Args:
        axes: to draw on.
        curves: values by look (rows) and seed (columns), as `Study.curve` gives them.
        colour: by name; the book's cycle where nothing is given.
        at: where dotted horizontal lines stand.
        thin: whether single seeds are drawn.
        labels: for `axes.set`.
    """
    for name, values in curves.items():
        mean, n = values.mean(axis=1), values.shape[1]
        shade: dict[str, Any] = {"color": colour[name]} if colour else {}
        (line,) = axes.plot(values.index, mean, lw=2, label=name, marker="o" if len(values) < 3 else None, **shade)
        if n > 2:
            half = stdtrit(n - 1, 0.975) * values.std(axis=1) / n**0.5
            axes.fill_between(values.index, mean - half, mean + half, color=line.get_color(), alpha=0.15, lw=0)
        if thin:
            axes.plot(values.index, values, color=line.get_color(), lw=0.5, alpha=0.35)
    for place in at:
        axes.axhline(place, color="black", lw=0.8, ls=":")
    axes.set(**labels)
