"""How a verdict looks: the card in a chapter, and the numbers in it."""

import math
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from press.ledger import Measured, Part, Verdict

SYMBOLS = {">": "&gt;", ">=": "≥", "<": "&lt;", "<=": "≤", "==": "=", "!=": "≠"}


def number(value: float) -> str:
    """Three significant digits, a true minus sign, and integers and exact zeros as such."""
    if value == 0 or (value == int(value) and abs(value) < 1e7):
        text = f"{int(value):,}"
    elif math.isclose(value, 0, abs_tol=1e-3) or abs(value) >= 1e7:
        text = f"{value:.2e}"
    else:
        text = f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return text.replace("-", "\N{MINUS SIGN}")


def measured(value: float, interval: tuple[float, float] | list[float] | None, unit: str = "") -> str:
    """`0.0431 [0.02, 0.07] nats`, the interval left out where there is none."""
    bounds = f" [{number(interval[0])}, {number(interval[1])}]" if interval else ""
    return f"{number(value)}{bounds}{f' {unit}' if unit else ''}"


def threshold(part: "Part") -> str:
    """The comparison in which the log would be right, as HTML."""
    if isinstance(part.threshold, tuple):
        return f"{number(part.threshold[0])} to {number(part.threshold[1])}"
    return f"{SYMBOLS[part.comparison]}&nbsp;{number(part.threshold)}"


def card(verdict: "Verdict") -> str:
    """The verdict's card: claim, the log's figures, each part's criterion and observation, and the word."""
    claim = verdict.claim
    figures = "; ".join(f"{escape(k)}: {escape(str(v))}" for k, v in claim.figures.items())
    criteria = {part.metric: part for part in claim.parts}
    rows = "".join(_row(criteria[m.metric], m) for m in verdict.parts)
    table = (
        "<table><thead><tr><th>what was measured</th><th>the log is right if</th><th>observed</th><th>n</th>"
        f"<th>so</th></tr></thead><tbody>{rows}</tbody></table>"
    )
    return (
        f'<div class="verdict" data-verdict="{escape(verdict.verdict)}">'
        f'<p class="verdict-word"><strong>{claim.id}: {escape(verdict.verdict)}</strong> ({claim.strength})</p>'
        f"<p>{escape(claim.statement)}</p>"
        + (f'<p class="verdict-log">The log: {figures}.</p>' if figures else "")
        + (f"<p>{escape(verdict.why)}</p>" if verdict.why else table)
        + "</div>"
    )


def _row(part: "Part", seen: "Measured") -> str:
    observed = escape(measured(seen.observed, seen.interval, part.unit))
    return (
        f"<tr><td>{escape(part.reads)}</td><td>{threshold(part)}</td><td>{observed}</td><td>{seen.n}</td>"
        f"<td>{seen.verdict}</td></tr>"
    )
