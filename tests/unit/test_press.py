"""Explorer, cards, sources, recorded figures."""

import re

import pytest
from bridges.hosts.seq2seq import route_inputs
from matplotlib.figure import Figure
from press import PressError
from press.cards import measured, number
from press.data import recorded
from press.explorer import Explorer
from press.source import show_source


def test_an_explorer_draws_each_position_once_and_anew_when_a_choice_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def frame(value: float, word: str) -> tuple[Figure, str]:
        drawn.append((value, word))
        return Figure(figsize=(1, 1)), f'"{word}" at {value}'

    explorer = Explorer("x", {"0": 0.0, "1": 1.0}, frame, choices={"word": ["a", "b"]})
    assert drawn == [(0.0, "a"), (1.0, "a")]
    assert 'alt="&quot;a&quot; at 0.0"' in explorer.stack.children[0].value
    explorer.menus["word"].value = "b"
    assert drawn[2:] == [(0.0, "b"), (1.0, "b")]
    assert "&quot;b&quot; at 1.0" in explorer.stack.children[1].value
    shown: list[object] = []
    monkeypatch.setattr("press.explorer.display", shown.append)
    explorer._ipython_display_()
    still, widget = shown
    assert "explorer-still" in still.data
    assert "explorer" in widget._dom_classes


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (-0.0781, "−0.0781"),
        (1234.5, "1,234"),
        (999.7, "1,000"),
        (3.0, "3"),
        (5e-5, "5.00e−05"),
        (12345678.0, "1.23e+07"),
    ],
)
def test_numbers_are_short_and_keep_their_sign(value: float, text: str) -> None:
    assert number(value) == text


def test_a_measurement_carries_interval_and_unit() -> None:
    assert measured(0.5, (0.25, 0.75), "nats") == "0.5 [0.25, 0.75] nats"
    assert measured(0, None) == "0"


def test_source_is_shown_from_a_line_and_refused_when_that_line_is_gone() -> None:
    shown = show_source(route_inputs, start='if route == "bypass"', lines=2)
    assert re.match(r'if route == "bypass":.*\n    return', shown.data)
    with pytest.raises(PressError, match="no line of route_inputs holds 'goto'"):
        show_source(route_inputs, start="goto")


def test_recorded_figures_name_their_source() -> None:
    table = recorded("t5_architectures")
    assert "t5-encoder-fix.md" in table["source"]
    assert all(len(row) == len(table["columns"]) for row in table["rows"])
    with pytest.raises(
        PressError,
        match="there are alignment_log, bridge_analysis, degenerate_outputs, earlier_runs, earlier_sources,"
        " encoder_training, gate_groups, next_steps, public_reports, resampler_designs, rms_matching, staged_bleu,"
        " staying_at_the_peak, t5_architectures, translation_sweep",
    ):
        recorded("t6")
