"""A figure with a slider: it moves in the static page, and is drawn anew when a kernel is there."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import ipywidgets as widgets
from IPython.display import HTML, display
from matplotlib.figure import Figure

# A frame: what is drawn at one position of the slider, and the same in words.
Frame = tuple[Figure, str]


class Explorer:
    """Frames along one slider, drawn once, with choices that a live kernel may change.

    The slider is linked to the frames in the page itself, so it moves without a kernel. Print and readers without
    JavaScript see the middle frame instead.

    Args:
        name: what the slider moves, with its unit.
        positions: label and value of each position.
        frame: draws one position from its value and the chosen options.
        choices: options by name, the first of each drawn first; the page hides these, a kernel shows them.
    """

    def __init__(
        self,
        name: str,
        positions: Mapping[str, Any],
        frame: Callable[..., Frame],
        choices: Mapping[str, Sequence[Any]] | None = None,
    ):
        self.name, self.positions, self.frame = name, positions, frame
        self.menus = {k: widgets.Dropdown(options=v, description=k) for k, v in (choices or {}).items()}
        self.slider = widgets.SelectionSlider(
            options=list(positions),
            description=name,
            tooltip=name,  # without one the label's title reads "null"
            layout=widgets.Layout(width="100%"),
            style={"description_width": "initial"},
        )
        self.stack = widgets.Stack([widgets.HTML() for _ in positions], selected_index=0)
        widgets.jslink((self.slider, "index"), (self.stack, "selected_index"))
        for menu in self.menus.values():
            menu.add_class("needs-kernel")
            menu.observe(lambda _: self.draw(), names="value")
        self.draw()

    def draw(self) -> None:
        """Draw every frame with the options now chosen."""
        options = {name: menu.value for name, menu in self.menus.items()}
        for child, value in zip(self.stack.children, self.positions.values(), strict=True):
            child.value = image(*self.frame(value, **options))

    def _ipython_display_(self) -> None:
        still = self.stack.children[len(self.stack.children) // 2].value
        # Hidden in its own markup, so that JupyterLab shows the widget alone; the book's style sheet shows it in print.
        display(HTML(f'<div class="explorer-still" style="display: none">{still}</div>'))
        box = widgets.VBox([*self.menus.values(), self.slider, self.stack])
        box.add_class("explorer")
        display(box)


def explore(
    name: str,
    positions: Mapping[str, Any] | Sequence[float],
    frame: Callable[..., str],
    *,
    height: float = 2.9,
    columns: int = 1,
    ratios: Sequence[float] | None = None,
    **choices: Sequence[Any],
) -> Explorer:
    """An explorer whose frames are drawn on given axes: `frame(axes, value, **choices)` draws, and says it in words.

    Args:
        name: what the slider moves, with its unit.
        positions: values, by their labels where they are not to stand as they are.
        frame: draws one position; `axes` is a list where there are several columns.
        height: of the figure, in inches.
        columns: how many axes it has.
        ratios: their widths.
        choices: options by name, the first of each drawn first; a live kernel shows them.
    """

    def drawn(value: Any, **options: Any) -> Frame:
        figure = Figure(figsize=(7.2, height), layout="constrained")
        axes = figure.subplots(1, columns, width_ratios=ratios)
        return figure, frame(axes, value, **options)

    named = positions if isinstance(positions, Mapping) else {f"{p:g}": p for p in positions}
    return Explorer(name, named, drawn, choices)


def image(figure: Figure, alternative: str) -> str:
    """A figure as an `img` element that carries its pixels and its alternative text."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    pixels = base64.b64encode(buffer.getvalue()).decode()
    # With its size known beforehand the page does not jump from frame to frame.
    width, height = (round(100 * inches) for inches in figure.get_size_inches())
    return (
        f'<img alt="{escape(alternative, quote=True)}" width="{width}" height="{height}"'
        f' src="data:image/png;base64,{pixels}">'
    )
