"""How a verdict looks: the card in a chapter, and the numbers in it."""

import math
import re
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from press.claims import Claim, Part
    from press.ledger import Measured, Verdict

SYMBOLS = {">": ">", ">=": "≥", "<": "<", "<=": "≤", "==": "=", "!=": "≠"}


def number(value: float) -> str:
    """Three significant digits, a true minus sign, and integers and exact zeros as such."""
    if value == 0 or (value == int(value) and abs(value) < 1e7):
        text = f"{int(value):,}"
    elif math.isclose(value, 0, abs_tol=1e-3) or abs(value) >= 1e7:
        text = f"{value:.2e}"
    else:
        text = f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"
    return text.replace("-", "\N{MINUS SIGN}")


def measured(value: float, interval: tuple[float, float] | list[float] | None, unit: str = "") -> str:
    """`0.0431 [0.02, 0.07] nats`, the interval left out where there is none."""
    bounds = f" [{number(interval[0])}, {number(interval[1])}]" if interval else ""
    return f"{number(value)}{bounds}{f' {unit}' if unit else ''}"


def threshold(part: "Part") -> str:
    """The comparison in which the log would be right."""
    if isinstance(part.threshold, tuple):
        return f"{number(part.threshold[0])} to {number(part.threshold[1])}"
    return f"{SYMBOLS[part.comparison]}\N{NO-BREAK SPACE}{number(part.threshold)}"


def card(verdict: "Verdict") -> str:
    """The verdict's card: the word, the claim, and for each part what was measured against which line."""
    claim = verdict.claim
    criteria = {part.metric: part for part in claim.parts}
    parts = "".join(
        f"<li>{prose(criteria[seen.metric].reads)}."
        f" The claim holds if this is {escape(threshold(criteria[seen.metric]))}."
        f" <strong>Observed: {escape(measured(seen.observed, seen.interval, criteria[seen.metric].unit))}</strong>,"
        f" {'99&nbsp;% interval, ' if seen.seeds and seen.interval else ''}n&nbsp;=&nbsp;{seen.n}:"
        f" {escape(seen.finding(criteria[seen.metric]))}.{_live(seen, criteria[seen.metric])}</li>"
        for seen in verdict.parts
    )
    head = f"<strong>{claim.id}: {escape(verdict.verdict)}</strong> ({claim.strength})"
    return _box(verdict.verdict, head, claim, f"<p>{prose(verdict.why)}</p>" if verdict.why else f"<ul>{parts}</ul>")


def _live(seen: "Measured", part: "Part") -> str:
    """What the runs made on the spot gave, where the verdict is from rows of record."""
    if seen.live is None:
        return ""
    value = measured(seen.live.observed, seen.live.interval, part.unit)
    return f" The runs made on this page: {escape(value)}, n&nbsp;=&nbsp;{seen.live.n}."


def claim_card(claim: "Claim") -> str:
    """The claim's card before any run: what is said, the log's figures, and the criterion."""
    parts = "".join(f"<li>{prose(p.reads)}. Line: {escape(threshold(p))} {escape(p.unit)}.</li>" for p in claim.parts)
    criterion = f"<p>The claim holds if each is on its side of the line ({claim.strength}):</p><ul>{parts}</ul>"
    return _box("claim", f"<strong>Claim {claim.id}</strong>", claim, criterion)


def prose(text: str) -> str:
    """Escape a sentence for HTML, with `code` marked as such and a capital to begin with."""
    marked = re.sub("`([^`]+)`", r"<code>\1</code>", escape(text.strip().rstrip(".")))
    return marked[:1].upper() + marked[1:]


def _box(kind: str, head: str, claim: "Claim", body: str) -> str:
    figures = "; ".join(f"{escape(k)}: {escape(str(v))}" for k, v in claim.figures.items())
    log = f"<p>In the log: {figures}.</p>" if figures else ""
    inner = f"<p>{head}</p><p>{prose(claim.statement)}.</p>{log}{body}"
    return f'<div class="verdict" data-verdict="{escape(kind)}">{inner}</div>'
