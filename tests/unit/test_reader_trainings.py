"""What the chapters of a reader's own trainings share, and the count of the check-up's hits."""

from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from bridges.instruments.checkup import Generative
from bridges.jobs.vector_to_text import NAMED
from bridges.planted.cases import Case
from bridges.training.fit import History
from press import PressError, jobs
from press.data import example
from press.tally import Tally
from torch import nn


def test_a_settings_table_has_what_the_log_gives_in_bold() -> None:
    shown = jobs.settings_table(NAMED, "epochs host", "schedule", {("host", "small"): "one made here"})
    rows = {row[0]: dict(zip(shown.head[1:], row[1:], strict=True)) for row in shown.rows}
    assert rows["epochs"]["resampler-log"] == "**30**"
    assert rows["epochs"]["small"] == str(NAMED["small"].epochs)
    assert rows["host"] == {"resampler-log": "**t5-small**", "encoder-log": "**t5-small**", "small": "one made here"}
    assert "*" not in "".join(rows["schedule"].values())


def test_a_command_line_that_asks_for_other_settings_is_refused() -> None:
    line = "train vector-to-text --out runs/t5 --features f --manifest m --host t5-small"
    assert f"python -m bridges {line}" in jobs.command(line, NAMED["resampler-log"]).data
    with pytest.raises(PressError, match="asks for"):
        jobs.command(f"{line} --epochs 29", NAMED["resampler-log"])


def test_losses_are_drawn_with_their_named_lines() -> None:
    axes = plt.figure().subplots()
    jobs.losses(axes, History([3.0, 2.0], {2: 2.5}), "7 clips", {"exchanged": 4.0})
    assert [line.get_label() for line in axes.lines[:2]] == ["training", "validation, 7 clips"]
    assert [text.get_text() for text in axes.texts] == ["exchanged"]
    plt.close("all")


def test_a_tally_comes_back_from_its_record() -> None:
    tally = Tally(1)
    bridge = Generative(nn.Identity(), torch.zeros(4, 2), lambda tokens, rows: tokens.mean())
    for planted, names, named in (
        ("", (), "nothing raised"),
        ("gates shut", ("gates that are shut",), "gates that are shut"),
        ("pairs shuffled", ("pairs that do not belong together",), "input that is not used"),
    ):
        tally.add(Case("thread", "connector", 0, planted, names, bridge), named, "nothing raised")
    again = Tally.of({"seeds": 1, "measurements": tally.measured() | {"ratio | thread | connector": 2.0}})
    assert again == tally
    assert again.right(planted=True) == "1 of 2"
    assert again.right(place=("thread", "connector"), planted=False) == "1 of 1"
    assert again.share(fault="unheard of") is None
    assert again.bridges().mean == 0
    assert again.instead("pairs shuffled") == "input that is not used (seed 0: connector)"


def test_an_example_that_is_not_there_is_named() -> None:
    assert example("my_bridge.py").is_file()
    with pytest.raises(PressError, match=r"my_bridge\.py"):
        example(str(Path("no.py")))
