"""Loss logs in the forms that trainings leave them, and what a curve of them says of a training."""

import gzip
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bridges.__main__ import main
from bridges.instruments.alignment import diagnose, diagnose_generative, trend
from bridges.instruments.chance import other_lines
from bridges.instruments.readings import log_readings
from bridges.tasks.loss_log import read_loss_log

ROOT = Path(__file__).parents[2]
LOSSES = [round(3.25 - 0.125 * i, 3) for i in range(14)]
STEPS = [20 * i for i in range(14)]


def lines(form: str, head: str = "") -> str:
    """One line a loss; `s` is its step, `x` the loss, `c` the loss with a comma, `half` and `more` others."""
    told = (
        form.format(s=s, x=x, c=str(x).replace(".", ","), half=x / 2, more=x + 1)
        for s, x in zip(STEPS, LOSSES, strict=True)
    )
    return head + "\n".join(told) + "\n"


ENTRIES = [{"step": s, "loss": x, "epoch": s / 260} for s, x in zip(STEPS, LOSSES, strict=True)]
STATE = {
    "best_metric": None,
    "log_history": [*ENTRIES, {"step": 260, "eval_loss": 1.5}, {"step": 260, "train_loss": 2.4}],
    "stateful_callbacks": {"TrainerControl": {"args": {}, "attributes": {}}},
}
# The form, the column that is right, and that of the step; an empty one where the lines are counted.
FORMS = {
    "semicolons.csv": (lines("{s};{x};0.5", "step;loss;acc\n"), "loss", "step"),
    "german.csv": (lines("{s};{c};", "Schritt;Trainings-Loss;Prüf-Loss\n"), "Trainings-Loss", ""),
    "excel.csv": (lines("{s};{c}", "sep=;\nStep;Loss\n"), "Loss", "Step"),
    "quoted.csv": (lines('"{s}","{c}"', '"Iteration","LOSS"\n'), "LOSS", "Iteration"),
    "tabs.tsv": (lines("{s}\t{x}\t{more}", "Step\tTraining Loss\tValidation Loss\n"), "Training Loss", "Step"),
    "spaces.txt": (lines("  {s}   {x}  1e-4", "# of a run\nstep   lm_loss  lr\n"), "lm_loss", "step"),
    "page.md": (lines("| {s} | {x} |", "| iter | loss |\n|---:|---:|\n"), "loss", "iter"),
    "keys.csv": (lines("{s},{x},{x}", "globalStep,trainLoss,trainLossAvg\n"), "trainLoss", "globalStep"),
    "metrics.csv": (
        lines(",1e-3,{s},,,\n0,,{s},,{x},", "epoch,lr-Adam,step,train_loss_epoch,train_loss_step,val_loss\n")
        + "0,,260,2.5,,2.4\n",
        "train_loss_step",
        "step",
    ),
    "parts.csv": (lines("{s},{half},{x},{half}", "step,itc_loss,total_loss,min_loss\n"), "total_loss", "step"),
    "wandb.csv": (
        lines(
            '"{s}","{x}","{x}","{x}",""',
            '"Step","val-lr - train/clip_loss","val-lr - train/clip_loss__MIN",'
            '"val-lr - train/clip_loss__MAX","b - train/clip_loss"\n',
        ),
        "val-lr - train/clip_loss",
        "Step",
    ),
    "tensorboard.csv": (lines("1.6e9,{s},{x}", "Wall time,Step,Value\n"), "Value", "Step"),
    "tensorboard.json": (json.dumps([[1.6e9, s, x] for s, x in zip(STEPS, LOSSES, strict=True)]), "Value", "Step"),
    "numbers.txt": (lines("{x}"), "loss", ""),
    "trainer_state.json": (json.dumps(STATE, indent=2), "loss", "step"),
    "history.json": (json.dumps({"loss": LOSSES, "val_loss": LOSSES[:3]}), "loss", ""),
    "deep.jsonl": (
        lines('{{"step": {s}, "train": {{"loss": {x}}}, "eval": {{"loss": 1.0}}}}') + '{"step": 9',
        "train/loss",
        "step",
    ),
    "trainer_log.jsonl": (lines('{{"current_steps": {s}, "total_steps": 260, "loss": {x}}}'), "loss", "current_steps"),
    "log.txt": (lines('{{"train_lr": "0.1", "train_mloss": "{x}", "epoch": {s}}}'), "train_mloss", "epoch"),
    "stdout.log": (
        lines("\r 1%|▏ | {s}/260 [00:10<01:00, 3it/s]\r{{'loss': '{x}', 'grad_norm': '1.2', 'epoch': '{s}'}}")
        + "{'eval_loss': 2.0}\n{'train_loss': 2.5}\n",
        "loss",
        "epoch",
    ),
    "bar.log": (
        "".join(
            2 * f"\rEpoch 0: {i}%|█| {s}/260 [00:10<01:00, 3.1it/s, loss={x}, v=1]"
            for i, (s, x) in enumerate(zip(STEPS, LOSSES, strict=True))
        ),
        "loss",
        "n of all",
    ),
    "open_clip.log": (
        lines(
            "2024-01-01,10:00:00 | INFO | Train Epoch: 0 [{s:>6}/9000 (1%)] Data (t): 1.2 1.7/s LR: 0.1 "
            "Logit Scale: 14.3 Contrastive_loss: {half} (9.9) Loss: {x} (9.9)"
        )
        + "2024-01-01,11:00:00 | INFO | Eval Epoch: 1 clip_val_loss: 1.5\n",
        "Loss",
        "n of all",
    ),
    "meter.log": (
        lines("Epoch: [0]  [{s:>4}/1000]  eta: 0:10:00  lr: 0.1  loss: {x} (9.9)  loss_itc: 0.1 (0.1)  time: 0.3")
        + "Test: [ 10/100]  Loss 9.0 (9.0)  loss: 9.0 (9.0)\n",
        "loss",
        "n of all",
    ),
    "megatron.log": (
        lines(" iteration {s:>8}/ 500 | elapsed time (ms): 12.5 | lm loss: {x:.6E} | loss scale: 65536.0 |"),
        "lm loss",
        "iteration",
    ),
    "words.log": (lines("INFO step {s}: train loss {x}, val loss 9.0, time 23.4ms"), "train loss", "step"),
    "prose.log": (lines("Epoch {s} loss {x}", "Starting training with loss\n"), "loss", "Epoch"),
    "tensor.log": (lines("\x1b[32mstep\x1b[0m={s} loss: tensor({x}, device='cuda:0')"), "loss", "step"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_a_log_is_read_in_the_form_that_it_has(name: str, tmp_path: Path) -> None:
    text, column, step = FORMS[name]
    for path, data in (
        (tmp_path / name, text.encode()),
        (tmp_path / f"{name}.gz", gzip.compress(text.encode())),
        (tmp_path / f"wide-{name}", text.encode("utf-16")),
    ):
        path.write_bytes(data)
        log = read_loss_log(path)
        assert (log.column, log.step_column) == (column, step)
        assert log.losses == pytest.approx(LOSSES)
        assert log.steps == pytest.approx(STEPS if step else range(14))
        assert f"14 values of {column!r}" in str(log)


def test_what_was_passed_over_is_told_and_held_out_losses_are_kept(tmp_path: Path) -> None:
    for name, passed, looks in (
        ("trainer_state.json", ("'train_loss'", "'eval_loss'"), 1),
        ("metrics.csv", ("'train_loss_epoch'", "'val_loss'"), 1),
        ("deep.jsonl", ("'eval/loss'", "line 15, torn"), 14),
        ("open_clip.log", ("'Contrastive_loss'", "'clip_val_loss'"), 0),
    ):
        (tmp_path / name).write_text(FORMS[name][0])
        log = read_loss_log(tmp_path / name)
        assert (log.passed, len(log.validation)) == (passed, looks)
        assert all(told in str(log) for told in passed)


def test_another_column_can_be_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(lines("{s},{x},{more}", "step,loss,total\n"))
    assert read_loss_log(tmp_path / "a.csv", "Total").losses == pytest.approx([x + 1 for x in LOSSES])
    (tmp_path / "b.jsonl").write_text(lines('{{"step": {s}, "loss": {x}, "total": 1}}'))
    with pytest.raises(ValueError, match=r"a column or key of the name lost, .* it has step, loss, total: rename"):
        read_loss_log(tmp_path / "b.jsonl", "lost")


def test_steps_that_go_back_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("step,loss\n" + lines("{s},{x}") + "step,loss\n" + lines("{s},{x}"))
    log = read_loss_log(tmp_path / "a.csv")
    assert log.losses == pytest.approx(2 * LOSSES)
    assert (log.step_column, log.steps[-1]) == ("", 27)


def test_a_folder_gives_its_log(tmp_path: Path) -> None:
    for number in (40, 200):
        (tmp_path / f"checkpoint-{number}").mkdir()
        state = {"log_history": ENTRIES[: number // 20 + 1]}
        (tmp_path / f"checkpoint-{number}" / "trainer_state.json").write_text(json.dumps(state))
    assert len(read_loss_log(tmp_path).losses) == 11
    (tmp_path / "checkpoint-200" / "trainer_state.json").unlink()
    (tmp_path / "checkpoint-200").rmdir()
    assert len(read_loss_log(tmp_path).losses) == 3
    (tmp_path / "trainer_state.json").write_text(json.dumps(STATE))
    assert len(read_loss_log(tmp_path).losses) == 14
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"holds no log.jsonl, trainer_state.json, .*: give the folder of a training"):
        read_loss_log(tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "step,acc\n0,1\n", "looked for .* the name loss.* begins 'step,acc'"),
        ("a.csv", "", "begins with nothing"),
        ("a.txt", "once upon a time", "begins 'once upon a time'"),
        ("a.log", "step 3: lr 0.1\n", "it has step, lr"),
        ("a.json", '{"lr": 1}', "no table, JSON, or text"),
        ("a.json", '{"log_history": [{"loss": 2.0}, {"loss": NaN}]}', r"log_history\[1\]: loss is nan"),
        ("a.csv", "step,loss\n0,1\n1,2,3\n", "line 3: more cells than the header in line 1 has names"),
        ("a.csv", "loss\n0,1\n1,2\n", "more cells than the header in line 1 has names"),
        ("a.csv", 'step,loss\n0,1\n1,"2\n', "breaks off"),
        ("a.csv", "step;loss\n0;1\n1;oops\n", "line 3: loss is 'oops', not a finite number: cut the log"),
        ("a.log", "step 1 loss 2.0\nstep 2 loss nan\n", "line 2: loss is 'nan'"),
        ("a.log", "loss: 2\rloss: inf\r", "line 1, part 2: loss is 'inf'"),
        ("a.jsonl", '{"loss": 1}\n{"loss": \n{"loss": 2}\n', "line 2: no JSON .*: mend the line, or take it out"),
        ("a.bin", "loss\0", "is no text"),
    ],
)
def test_what_is_no_log_is_refused_in_one_line(name: str, text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=said) as refused:
        read_loss_log(tmp_path / name)
    assert "\n" not in str(refused.value)


def test_what_was_cut_off_is_refused_as_well(tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(FORMS["tabs.tsv"][0].encode())[:30])
    with pytest.raises(ValueError, match="is gzipped and damaged"):
        read_loss_log(tmp_path / "a.csv.gz")


def test_null_is_a_blank_where_another_loss_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"loss": 2, "val_loss": null}\n{"loss": null, "val_loss": 1}\n{"loss": 1}\n')
    assert read_loss_log(tmp_path / "a.jsonl").losses == (2, 1)


class TestCommand:
    """What the command line makes of a log."""

    def test_a_log_is_never_executed(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for name in ("trainer_state.json", "log.txt", "log"):
            path, mark = tmp_path / name, tmp_path / "mark"
            path.write_text(f"open({str(mark)!r}, 'w')\nbridge = 3\n")
            for given in ([path], [path, "--loss", path]):
                assert main(["checkup", *map(str, given)]) == 1
                assert len(capsys.readouterr().err.splitlines()) == 1
            assert not mark.exists()

    def test_a_file_that_is_not_python_is_read_as_a_log(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "trainer_state.json").write_text(json.dumps(STATE))
        assert main(["checkup", str(tmp_path / "trainer_state.json")]) == 0
        told = capsys.readouterr().out.splitlines()
        assert told[0] == "healthy"
        assert told[-1].endswith("14 values of 'loss', steps from 'step'; passed over: 'train_loss', 'eval_loss'")
        assert main(["checkup", "--loss", str(tmp_path), "--batch-size", "26", "--column", "LOSS"]) == 0
        assert capsys.readouterr().out.startswith("healthy\n  learns: first 3.125, last 1.75")
        assert main(["checkup", "--loss", str(tmp_path), "--vocabulary", "5"]) == 0
        assert "ln(5) is 1.609 nats" in capsys.readouterr().out

    def test_a_bridge_and_its_log_are_read_together(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        bridge, log = ROOT / "book" / "examples" / "my_bridge.py", tmp_path / "log.csv"
        flat = 4 + 0.05 * np.random.default_rng(1).standard_normal(60)
        log.write_text("step,loss\n" + "\n".join(f"{i},{x}" for i, x in enumerate(flat)))
        assert main(["checkup", str(bridge), "--loss", str(log)]) == 0
        told = capsys.readouterr().out
        assert "training that moves nothing (see chance lines)" in told
        assert told.splitlines()[-1] == f"{log}: 60 values of 'loss', steps from 'step'"
        assert main(["checkup", str(bridge), "--loss", str(log), "--batch-size", "8"]) == 1
        assert "generative one, whose loss compares no pairs" in capsys.readouterr().err
        assert main(["checkup", str(bridge), "--weight", "2"]) == 1
        assert "belong to a log: give it with --loss" in capsys.readouterr().err

    def test_curves_are_drawn_of_logs(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for name in ("metrics.csv", "bar.log"):
            (tmp_path / name).write_text(FORMS[name][0])
        given = [str(tmp_path), str(tmp_path / "bar.log")]
        assert main(["curves", *given, "--output", str(tmp_path / "curves.svg")]) == 0
        told = capsys.readouterr().out
        assert f"{tmp_path}: 14 values of 'train_loss_step'" in told
        assert f"{tmp_path / 'bar.log'}: 14 values of 'loss'" in told
        drawn = (tmp_path / "curves.svg").read_text()
        assert f"<!-- {tmp_path.name}, validation -->" in drawn
        assert "<!-- bar.log, training -->" in drawn


def noise(kind: str, draw: np.random.Generator, count: int) -> np.ndarray:
    """Noise of deviation 1: single batches, batches of which some are far out, or means that run over ten values."""
    if kind == "gauss":
        return draw.standard_normal(count)
    if kind == "heavy":
        return draw.standard_t(3, count) / math.sqrt(3)
    smooth = np.convolve(draw.standard_normal(count + 9), np.full(10, 0.1), "valid")
    return smooth * math.sqrt(10)


def curves(shape: str, kind: str, deviation: float, count: int) -> Counter[str]:
    """The states of 100 simulated logs of as many values."""
    t = np.linspace(0, 1, count)
    level = {
        "flat": 6 + 0 * t,
        "rate decays": 1.5 + 3 * np.exp(-5 * t),
        "falls at once": 1.5 + 3 * np.exp(-40 * t),
        "power law": 4 * (1 + 3 * count * t) ** -0.3,
        "plateau first": np.where(t < 0.5, 4.8, 4.8 - 5 * (t - 0.5)),
        "fine-tuning": 1.1 + 0.5 * np.exp(-12 * t) - 0.1 * t,
        "first value alone": 1.5 + 3 * (t == 0),
        "diverges": 2 + 3 * np.clip(t - 0.4, 0, None),
    }[shape]
    draws = (np.random.default_rng([seed, count]) for seed in range(100))
    return Counter(trend(list(level + deviation * noise(kind, draw, count))).state for draw in draws)


HEALTHY = ["rate decays", "falls at once", "power law", "plateau first", "fine-tuning", "first value alone"]


@pytest.mark.parametrize("count", [8, 12, 20, 40, 100, 400])
def test_healthy_logs_are_not_called_still_however_seldom_they_were_written(count: int) -> None:
    for shape in HEALTHY:
        found = curves(shape, "gauss", 0.05, count)
        assert found["still"] == found["rises"] == 0, shape
        assert found["falls"] >= (80 if count < 12 else 95), shape
    assert curves("diverges", "gauss", 0.05, count)["rises"] >= 99


@pytest.mark.parametrize("count", [8, 12, 20, 40, 100, 400])
def test_flat_logs_are_called_still(count: int) -> None:
    for kind in ("gauss", "heavy"):
        found = curves("flat", kind, 0.1, count)
        assert found["still"] >= 93, kind
        assert found["falls"] <= 7, kind
        assert found["rises"] <= 1, kind
    if count >= 100:  # where values run over ten others, fewer tell nothing of how far the mean strays
        assert curves("flat", "smooth", 0.1, count)["still"] >= 90


def test_a_run_resumed_near_its_end_is_called_still() -> None:
    """Its noise is large for its level, and small in nats."""
    assert Counter(trend(flat(0.12, 0.03, 200, seed)).state for seed in range(50))["still"] >= 47


def test_noise_that_could_hide_a_fall_leaves_it_open() -> None:
    found = curves("flat", "gauss", 1.5, 12)
    assert found["still"] <= 20
    assert found["falls"] <= 5
    assert trend([3.0, 2.0, 1.0]).state == "open"


def test_the_trainings_of_the_book_are_told_apart_where_ten_steps_are_one_value() -> None:
    rows = pd.read_csv(ROOT / "book/evidence/stuck_loss/other_faults.csv", comment="#")
    rows = rows[rows.reading == "training"]
    found = {
        arm: Counter(str(diagnose(list(run.sort_values("look").value), 64)) for _, run in of.groupby("seed"))
        for arm, of in rows[rows.arm.isin(["healthy", "frozen"])].groupby("arm")
    }
    assert set(found["healthy"]) == {"healthy"}
    assert found["frozen"]["frozen"] >= 0.9 * found["frozen"].total()
    assert "healthy" not in found["frozen"]


def test_a_log_of_few_values_is_read_by_its_end() -> None:
    """Ten values of twelve are no end of it."""
    line = math.log(40)
    late = [line] * 6 + [line - 0.3 * i for i in range(1, 7)]
    assert str(diagnose(late, 40)) == "healthy"
    assert str(diagnose([line] * 12, 40)).startswith("collapse")


def flat(level: float, deviation: float = 0.02, count: int = 120, seed: int = 3) -> list[float]:
    return list(level + deviation * np.random.default_rng(seed).standard_normal(count))


def falling(first: float, last: float, count: int = 120) -> list[float]:
    return list(np.linspace(first, last, count) + np.array(flat(0.0, 0.03, count)))


LINE = math.log(96)


@pytest.mark.parametrize(
    ("curve", "name", "reason"),
    [
        (flat(LINE / 6, 0.002), "flat below chance", "ln(96) / 6: chance, if the loss is divided by 6"),
        (flat(math.log(24)), "flat below chance", "ln(24) = ln(96 / 4): chance, if each of 4 processes"),
        (flat(1.0), "flat below chance", ""),
        (flat(math.log(768) + 0.04), "frozen", "ln(768) = ln(8 × 96): chance, if 8 processes or steps"),
        (falling(3.0, -1.0), "below zero", "no cross-entropy lies below 0"),
        (falling(1.0, 2.5), "diverged", ""),
        (falling(4.0, 0.5)[:60] + [0.0] * 60, "zero loss", "nothing is supervised"),
        ([1.5, 1.4, 1.6], "too early to tell", "below chance from the first value on"),
        ([6.0, 5.5, 7.5, 5.0], "too early to tell", "log more values before judging"),
        (flat(8.0, 1.5, 20), "frozen", ""),  # a healthy one would lie below the line
        ([LINE, 3.0, 1.5], "healthy", ""),
        (falling(LINE, 0.5), "healthy", ""),
        (flat(LINE), "collapse or constant text or constant image or shuffled pairs", ""),
    ],
)
def test_a_contrastive_log_is_healthy_only_where_it_fell(curve: list[float], name: str, reason: str) -> None:
    found = diagnose(curve, 96)
    assert str(found) == name
    assert reason in " ".join(found.reasons)


@pytest.mark.parametrize(
    ("curve", "vocabulary", "name", "reason"),
    [
        (flat(3.0), 0, "frozen", "20 words would be equally likely"),
        (flat(800.0, 0.0), 0, "frozen", ""),
        (falling(3.0, 1.2), 5000, "healthy", "whether the input is used, a log cannot say"),
        (flat(math.log(5000)), 5000, "words at chance", "see that its weights are loaded"),
        (falling(12.0, 9.0) + flat(math.log(5000)), 5000, "words at chance", ""),
        (flat(11.0), 5000, "frozen", "ln(5,000) is 8.517"),
        (falling(12.0, 9.5), 5000, "too early to tell", "on its way down to the line"),
        (falling(2.0, 4.0), 0, "diverged", ""),
        (falling(2.0, -1.0), 0, "below zero", ""),
        ([0.0] * 30, 0, "zero loss", ""),
        ([2.0, 1.0, 1.5], 0, "too early to tell", ""),
    ],
)
def test_a_generative_log_is_read_without_a_batch(curve: list[float], vocabulary: int, name: str, reason: str) -> None:
    found = diagnose_generative(curve, vocabulary)
    assert str(found) == name
    assert reason in " ".join(found.reasons)


def test_a_generative_log_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(ValueError, match="nan at step 1"):
        diagnose_generative([1.0, math.nan])
    with pytest.raises(ValueError, match="one value is no curve"):
        diagnose_generative([1.0])
    with pytest.raises(ValueError, match="a vocabulary of 1 leaves nothing to choose"):
        diagnose_generative([1.0, 2.0], 1)


def test_a_level_of_no_meaning_seldom_lies_on_another_line() -> None:
    levels = np.random.default_rng(0).uniform(1, 7, 2000)
    met = sum(bool(other_lines(level, 256)) for level in levels if abs(level - math.log(256)) > 0.1)
    assert 0.1 < met / len(levels) < 0.3


@pytest.mark.parametrize(
    ("losses", "batch", "fault"),
    [
        (falling(4.0, 1.0, 12), 0, ""),
        (falling(4.0, 1.0, 12), 64, ""),
        (flat(1.0), 64, "training that moves nothing"),
        (flat(math.log(64)), 64, ""),  # at chance: the pairs tell more
        (falling(1.0, 3.0), 64, "loss that diverged"),
        (falling(2.0, -2.0), 64, "loss below zero"),
        (falling(2.0, -2.0), 0, "loss below zero"),
        ([2.0] * 9 + [math.nan], 64, "values that are not finite"),
        ([3.0, 2.0, 1.0], 0, ""),
        (flat(8.0, 1.5, 20), 64, "training that moves nothing"),
        (flat(8.0, 1.5, 20), 0, ""),
    ],
)
def test_the_checkup_reads_a_log_alike(losses: list[float], batch: int, fault: str) -> None:
    (reading,) = log_readings(losses, batch)
    assert reading.fault == fault


def test_the_checkup_says_what_it_leaves_out_of_a_log() -> None:
    (short,) = log_readings([3.0, 2.0, 1.0])
    assert short.line == ">= 8; not counted"
    assert list(log_readings([])) == []
    *_, level = log_readings(falling(4.0, 1.0), vocabulary=5000)
    assert level.line == "ln(5,000) = 8.517"
