"""A sweep's grid is checked before anything starts, its points are named, and its table holds all that records say."""

import csv
import json
from pathlib import Path

import pytest
from press import PressError, sweep

CHAPTER = "encoder_bypass"


def test_a_grid_is_every_combination_named_readably() -> None:
    grid = sweep.grid_of([["seeds", "2", "3"], ["device", "cpu"]])
    assert sweep.points_of(CHAPTER, grid, here=True) == {
        "seeds=2,device=cpu": {"seeds": "2", "device": "cpu"},
        "seeds=3,device=cpu": {"seeds": "3", "device": "cpu"},
    }


def test_what_no_folder_can_hold_is_told_apart_by_a_digest() -> None:
    first, second = (sweep.point_name({"yours": f"/{'x' * 300}/a {name}, b"}) for name in "mn")
    assert first != second
    assert len(first) < 60
    assert not {*first} & {*"/ ,"}
    assert sweep.point_name({"yours": ""}) != "yours="


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "a sweep needs a grid"),
        ([["seeds"]], "seeds has no value"),
        ([["seeds", "2"], ["seeds", "3"]], "seeds is given twice"),
        ([["sede", "3"]], "no parameter 'sede'; it takes profile, seeds, device, out, yours"),
        ([["seeds", "2", "many"]], "seeds is 'many'; it must be of type int"),
        ([["profile", "quick", "huge"]], "profile is 'huge'; choose from quick, full"),
        ([["out", "x.json"]], "out is set by this command"),
    ],
)
def test_misuse_is_refused_before_anything_starts(
    given: list[list[str]], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "SWEEPS", tmp_path)
    with pytest.raises(PressError, match=message):
        sweep.run(CHAPTER, sweep.grid_of(given), slurm=True)
    assert not any(tmp_path.iterdir())


def test_a_device_is_looked_for_where_the_points_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(PressError, match="'cuda' is not on this machine"):
        sweep.points_of(CHAPTER, {"device": ["cuda"]}, here=True)
    assert sweep.points_of(CHAPTER, {"device": ["cuda"]}, here=False) == {"device=cuda": {"device": "cuda"}}


def test_the_table_holds_verdicts_measurements_and_seconds(tmp_path: Path) -> None:
    record = {
        "verdicts": [{"id": "A1", "verdict": "refuted", "observed": 0.5, "interval": [0.25, 0.75]}],
        "measurements": {"loss": {"mean": 2.0, "low": 1.0, "high": 3.0, "n": 4}, "steps": 7.0},
        "seconds": 1.5,
    }
    (tmp_path / "record.json").write_text(json.dumps(record))
    rows = [
        {"seeds": ("2", None)} | sweep._cells(tmp_path / "record.json"),
        {"seeds": ("3", None)} | sweep._cells(tmp_path / "none.json"),
    ]
    sweep._write(rows, tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="") as file:
        done, missing = csv.DictReader(file)
    assert done == {
        "seeds": "2",
        "A1": "refuted",
        "A1 observed": "0.5",
        "A1 observed low": "0.25",
        "A1 observed high": "0.75",
        "loss": "2.0",
        "loss low": "1.0",
        "loss high": "3.0",
        "steps": "7.0",
        "seconds": "1.5",
    }
    assert {name for name, value in missing.items() if value} == {"seeds"}
    shown = [line.split("  ") for line in sweep._as_text(rows).split("\n")]
    assert [[cell.strip() for cell in line if cell] for line in shown][:3] == [
        ["seeds", "2", "3"],
        ["A1", "refuted", "-"],
        ["A1 observed", "0.5 [0.25, 0.75]", "-"],
    ]
