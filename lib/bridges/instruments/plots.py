"""The plots of a report's page, as inline SVG: no library, no script, and the page's own colour in light and dark."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 420, 250  # of a plot, in its own units; a page scales it down to its width
LEFT, RIGHT, TOP, BOTTOM = 72, 12, 14, 42
ROW = 20  # height of a named row
NAME = 24  # signs of a row's name, its end
FLAT = 0.2  # of the largest value, that an axis spans at least
DENSE = 40  # values from which a line has no marks


@dataclass(frozen=True)
class Profile:
    """The numbers of one plot: values over numbered places, or over named rows.

    `x` and `y` name both axes, with units. `lines` are what the values are held against, by what they mean. Values over
    rows lie on a logarithmic axis, and are not negative.
    """

    title: str
    x: str
    y: str
    values: tuple[float, ...]
    at: tuple[float, ...] = ()
    rows: tuple[str, ...] = ()
    lines: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.values) != len(self.rows or self.at):
            raise ValueError(f"{self.title}: {len(self.values)} values for {len(self.rows or self.at)} places")

    @property
    def told(self) -> str:
        """The plot in words, with its ends and its extremes."""
        there = [(v, p) for v, p in zip(self.values, self.rows or self.at, strict=True) if math.isfinite(v)]
        if not there:
            return f"{self.title}: no finite value."
        (low, low_at), (high, high_at) = min(there)[:2], max(there)[:2]
        place = "" if self.rows else f"{self.x} "
        ends = "" if self.rows else f"{there[0][0]:.3g} at first, {there[-1][0]:.3g} at last; "
        lines = "".join(f"; {name}: {value:.3g}" for name, value in self.lines.items())
        named = [f"{p:g}" if isinstance(p, float) else str(p) for p in (low_at, high_at)]
        return (
            f"{self.title}. {self.y}: {ends}lowest {low:.3g} ({place}{named[0]}), highest {high:.3g}"
            f" ({place}{named[1]}){lines}."
        )

    def svg(self) -> str:
        """The plot as an `svg` element with its alternative text; empty where there is nothing finite to show."""
        if not any(map(math.isfinite, self.values)):
            return ""
        height = TOP + BOTTOM + ROW * len(self.rows) if self.rows else HEIGHT
        drawn = "\n".join(self._rows(height) if self.rows else self._line(height))
        told = escape(self.told, quote=True)
        return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{told}">\n{drawn}\n</svg>'

    def _line(self, height: int) -> Iterator[str]:
        """Values over places, joined where neighbours are finite; lines are dashed, with their names on them."""
        points = [(x, y) for x, y in zip(self.at, self.values, strict=True) if math.isfinite(y)]
        lines = {name: y for name, y in self.lines.items() if math.isfinite(y)}
        x, y = _Scale([x for x, _ in points]), _Scale([*(y for _, y in points), *lines.values()])

        def to(at: float, value: float) -> tuple[float, float]:
            return LEFT + x(at) * (WIDTH - LEFT - RIGHT), height - BOTTOM - y(value) * (height - TOP - BOTTOM)

        for value in y.ticks:
            level = to(x.low, value)[1]
            yield f'<path class="grid" d="M{LEFT} {level:.1f}H{WIDTH - RIGHT}"/>'
            yield f'<text x="{LEFT - 6}" y="{level + 4:.1f}" text-anchor="end">{value:g}</text>'
        for value in x.ticks:
            left, under = to(value, y.low)[0], height - BOTTOM + 16
            yield f'<text x="{left:.1f}" y="{under}" text-anchor="middle">{value:g}</text>'
        taken: list[float] = []
        for name, value in lines.items():
            level = to(x.low, value)[1]
            places = (level + off for off in (-5, 14, 28, -19, 42))  # names of lines that lie close make room
            free = [at for at in places if at > TOP + 8 and all(abs(at - other) > 13 for other in taken)]
            over = free[0] if free else level - 5
            taken.append(over)
            yield f'<path class="line" d="M{LEFT} {level:.1f}H{WIDTH - RIGHT}"/>'
            yield f'<text class="name" x="{WIDTH - RIGHT}" y="{over:.1f}" text-anchor="end">{escape(name)}</text>'
        path, joined = "", False
        for at, value in zip(self.at, self.values, strict=True):
            if math.isfinite(value):
                left, top = to(at, value)
                path += f"{'L' if joined else 'M'}{left:.1f} {top:.1f}"
            joined = math.isfinite(value)
        yield f'<path class="values" d="{path}"/>'
        if len(points) < DENSE:
            yield from (f'<circle cx="{to(*p)[0]:.1f}" cy="{to(*p)[1]:.1f}" r="3"/>' for p in points)
        yield from _axes(self.x, self.y, height)

    def _rows(self, height: int) -> Iterator[str]:
        """A stem for each row on a logarithmic axis, or the word for nothing."""
        left = 190
        some = [math.log10(v) for v in self.values if math.isfinite(v) and v > 0] or [0.0]
        low, high = math.floor(min(some)), math.floor(max(some)) + 1
        for power in range(low, high + 1, max(1, (high - low) // 4)):
            at = left + (power - low) / (high - low) * (WIDTH - RIGHT - left - 20)
            yield f'<path class="grid" d="M{at:.1f} {TOP}V{height - BOTTOM}"/>'
            yield f'<text x="{at:.1f}" y="{height - BOTTOM + 16:.1f}" text-anchor="middle">1e{power}</text>'
        for i, (name, value) in enumerate(zip(self.rows, self.values, strict=True)):
            level = TOP + ROW * (i + 0.5)
            short = name if len(name) <= NAME else f"…{name[1 - NAME :]}"
            yield f'<text x="{left - 8}" y="{level + 4:.1f}" text-anchor="end">{escape(short)}</text>'
            if not value > 0 or not math.isfinite(value):
                word = "none" if value == 0 else "not finite"
                yield f'<text class="name" x="{left + 4}" y="{level + 4:.1f}">{word}</text>'
                continue
            at = left + (math.log10(value) - low) / (high - low) * (WIDTH - RIGHT - left - 20)
            yield f'<path class="values" d="M{left} {level:.1f}H{at:.1f}"/>'
            yield f'<circle cx="{at:.1f}" cy="{level:.1f}" r="4"/>'
        yield f'<text x="{(left + WIDTH) / 2:.1f}" y="{height - 6:.1f}" text-anchor="middle">{escape(self.y)}</text>'


class _Scale:
    """From values to the unit interval, with some five round ticks."""

    def __init__(self, values: Sequence[float]):
        low, high = min(values), max(values)
        wide = FLAT * max(abs(low), abs(high)) or 1.0
        if high - low < wide:  # what hardly changes shall look so
            low, high = (low + high - wide) / 2, (low + high + wide) / 2
        self.low, self.high = low - 0.04 * (high - low), high + 0.04 * (high - low)
        rough = (self.high - self.low) / 4
        step = min((m * 10 ** math.floor(math.log10(rough)) for m in (1, 2, 5, 10)), key=lambda s: abs(s - rough))
        first = math.ceil(self.low / step)
        self.ticks = [round(float(i * step), 10) for i in range(first, math.floor(self.high / step) + 1)]

    def __call__(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)


def _axes(x: str, y: str, height: int) -> Iterator[str]:
    yield f'<path class="axis" d="M{LEFT} {TOP}V{height - BOTTOM}H{WIDTH - RIGHT}"/>'
    yield f'<text x="{(LEFT + WIDTH) / 2}" y="{height - 6}" text-anchor="middle">{escape(x)}</text>'
    middle = (TOP + height - BOTTOM) / 2
    yield f'<text transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">{escape(y)}</text>'


STYLE = """\
figure { margin: 0 0 1.5rem } figcaption { font-weight: 600 }
.plots { display: grid; gap: 0 2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)) }
svg { display: block; width: 100%; max-width: 34rem; font: 13px system-ui; fill: currentColor; --mark: #0072b2 }
svg path { fill: none; stroke: currentColor } svg .grid { opacity: .18 }
svg .line { stroke-dasharray: 5 4 } svg .name { font-style: italic }
svg .values { stroke: var(--mark); stroke-width: 2 } svg circle { fill: var(--mark) }
@media (prefers-color-scheme: dark) { svg { --mark: #56b4e9 } }
"""


def figures(profiles: Sequence[Profile]) -> str:
    """The plots beside one another, each under its title; empty where there is none."""
    drawn = ((profile.title, profile.svg()) for profile in profiles)
    shown = [f"<figure><figcaption>{escape(title)}</figcaption>\n{svg}</figure>\n" for title, svg in drawn if svg]
    return f'<div class="plots">\n{"".join(shown)}</div>\n' if shown else ""
