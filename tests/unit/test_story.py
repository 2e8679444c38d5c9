"""The picture of all verdicts says what the ledger says."""

from matplotlib.colors import to_hex
from press.claims import load_claims
from press.figures import GREEN, ORANGE
from press.story import ENDS, picture


def test_each_difference_has_a_row_in_its_verdicts_colour() -> None:
    claim = load_claims()["A2"]
    seen = {"bleu_gain": (3.0, [2.5, 3.5], "confirmed"), "conditioning_gap_gain": (0.0, [-0.01, 0.01], "refuted")}
    parts = []
    for part in claim.parts:
        mean, interval, word = seen.get(part.metric, (0.9, [0.8, 1.0], "confirmed"))
        parts.append({"metric": part.metric, "verdict": word, "observed": mean, "interval": interval, "n": 16})
    drawn = picture([{"id": "A2", "parts": parts}])
    axes = drawn.axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["A2 BLEU gain", "A2 conditioning gap gain"]
    marks = [c.lines[0] for c in axes.containers]
    assert [to_hex(mark.get_color()).upper() for mark in marks] == [GREEN, ORANGE]
    assert [float(mark.get_xdata()[0]) for mark in marks] == [1.5, 0.0], "in units of their lines, 2 and 0.05"
    assert axes.get_xlim()[0] < ENDS[0]
