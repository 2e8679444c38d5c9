"""The first thread whole: clips on disk into an encoder-decoder, by the command line and by three lines."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bridges.__main__ import main
from bridges.connectors.resampler import RESAMPLERS, ResamplerSettings, VectorResampler
from bridges.hosts.seq2seq import ROUTES
from bridges.jobs import commands, vector_to_text
from bridges.jobs import validation as reports
from bridges.jobs.vector_to_text import NAMED, Settings, VectorToTextJob, prepare, small
from safetensors.torch import load_file
from torch import nn
from training_runs import brief_hosts, killed, log, refused

LOG_LINE = """--features features/train --manifest manifests/train.tsv --val-features features/val
--val-manifest manifests/val.tsv --host t5-small --freeze-encoder --epochs 30 --batch-size 16 --learning-rate 5e-5
--warmup-steps 500"""
TINY = ["--config", "small", "--epochs", "1", "--batch-size", "8", "--every", "4", "--device", "cpu"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The small set, smaller still."""
    with pytest.MonkeyPatch.context() as patch:
        brief_hosts(patch)
        patch.setattr(vector_to_text, "SMALL_SENTENCES", 160)
        patch.setattr(vector_to_text, "SMALL_HELD_OUT", 12)
        folder = tmp_path_factory.mktemp("clips")
        return small(folder / "data", folder / "cache")


def files(data: Settings) -> list[str]:
    names = ("features", "manifest", "val_features", "val_manifest", "host")
    return [part for name in names for part in (f"--{name.replace('_', '-')}", getattr(data, name))]


def tiny(data: Settings) -> Settings:
    return replace(data, epochs=1, batch_size=8, every=4)


def job(data: Settings, out: Path) -> VectorToTextJob:
    return prepare(tiny(data), out)


def test_the_logs_command_line_is_the_named_configuration() -> None:
    asked = commands.settings(
        commands.parser().parse_args(["train", "vector-to-text", "--out", "x", *LOG_LINE.split()])
    )
    paths = {name: getattr(asked, name) for name in ("features", "manifest", "val_features", "val_manifest")}
    assert asked == replace(NAMED["resampler-log"], **paths)
    assert paths["val_manifest"] == str(Path("manifests/val.tsv").resolve())
    fit = asked.fit(1000, 1000)
    assert (fit.batch, fit.lr, fit.warmup, asked.epochs, asked.host) == (16, 5e-5, 500, 30, "t5-small")
    assert asked.connector == RESAMPLERS["resampler-log"] == ResamplerSettings(768, 64, 2, 8)
    with torch.device("meta"):
        made = VectorResampler(1024, asked.connector, 512)
    assert round(sum(p.numel() for p in made.parameters()) / 1e6, 3) == 10.681
    assert NAMED["encoder-log"] == replace(NAMED["resampler-log"], route=ROUTES[1])


def test_a_run_by_the_command_line_from_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    brief_hosts(monkeypatch)
    monkeypatch.setattr(vector_to_text, "SMALL_SENTENCES", 40)
    monkeypatch.setattr(vector_to_text, "SMALL_HELD_OUT", 10)
    out = tmp_path / "run"
    command = ["train", "vector-to-text", "--out", str(out), "--cache", str(tmp_path / "cache"), *TINY]
    assert main(command) == 0
    assert "5 steps, last loss" in capsys.readouterr().out
    lines = log(out)
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5]
    assert [line["step"] for line in lines if "validation" in line] == [4, 5]
    assert lines[0]["rate"] == pytest.approx(1e-3 / 20)
    assert {path.name for path in out.iterdir()} == {
        "data", "settings.json", "log.jsonl", "last.safetensors", "best.safetensors"
    }  # fmt: skip
    assert main(command) == 0, "called again it has nothing to do"
    assert log(out) == lines

    assert main(["validate", "vector-to-text", "--out", str(out), "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    assert "| BLEU |" in told
    assert "conditioning gap" in told
    assert (out / "report.md").read_text().strip() in told
    kept = json.loads((out / "report.json").read_text())
    assert len(kept["translations"]) == 10
    assert kept["loss"] == pytest.approx(min(line["validation"] for line in lines if "validation" in line), abs=1e-5)
    other = ["--features", str(out / "data/train"), "--manifest", str(out / "data/train.tsv")]
    assert main(["validate", "vector-to-text", "--out", str(out), *other, "--device", "cpu"]) == 0
    assert len(json.loads((out / "report.json").read_text())["translations"]) == 40

    figure = tmp_path / "curves.png"
    assert main(["curves", str(out), str(out), "--output", str(figure)]) == 0
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_a_killed_run_goes_on_to_the_same_losses(data: Settings, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    command = ["train", "vector-to-text", *files(data), *TINY, "--epochs", "2"]
    assert main([*command, "--out", str(whole)]) == 0
    killed(broken, 10, [*command, "--out", str(broken)])
    before = log(broken)
    assert len(before) < len(log(whole)) == 50  # 40 steps and 10 validations
    with (broken / "log.jsonl").open("a") as file:
        file.write('{"step": 1')  # torn in the middle
    assert main([*command, "--out", str(broken)]) == 0
    assert log(broken) == log(whole)
    for name in ("last", "best"):
        kept, other = (load_file(folder / f"{name}.safetensors") for folder in (whole, broken))
        assert all(torch.equal(kept[part], other[part]) for part in kept.keys() | other.keys())


def test_three_lines_of_a_notebook(data: Settings, tmp_path: Path) -> None:
    made = prepare(tiny(data), tmp_path)
    history = made.train()
    report = reports.vector_to_text(made)
    assert len(history.losses) == 20
    assert report._repr_markdown_().startswith("| | |\n|---|---|\n| BLEU |")
    assert not made.module.training
    assert made.validate() == pytest.approx(history.validation[history.best], abs=1e-6)


def test_the_loss_counts_tokens_and_not_padding(data: Settings, tmp_path: Path) -> None:
    made = job(data, tmp_path)
    rows = torch.arange(16)
    each = [made.summed_loss(made.clips.vectors[i : i + 1], made.labels[i : i + 1]) for i in range(16)]
    words = [len(sentence.split()) + 1 for sentence in made.clips.sentences[:16]]
    assert [count for _, count in each] == words
    assert len(set(words)) > 2
    expected = sum(total.item() for total, _ in each) / sum(words)
    assert made.batch_loss(rows).item() == pytest.approx(expected, rel=1e-5)


def test_without_validation_files_a_tenth_is_held_out(data: Settings, tmp_path: Path) -> None:
    made = prepare(replace(tiny(data), val_features="", val_manifest=""), tmp_path)
    assert (len(made.clips), len(made.held_out)) == (144, 16)
    assert not set(made.clips.ids) & set(made.held_out.ids)
    assert made.fit.steps == 144 // 8


def test_vectors_are_standardised_only_where_asked(data: Settings, tmp_path: Path) -> None:
    for asked in (True, False):
        made = prepare(replace(tiny(data), standardise=asked), tmp_path / str(asked))
        out = made.module.connector[0](made.clips.vectors)
        assert torch.equal(out, made.clips.vectors) != asked
        assert (out.std(0).mean().item() == pytest.approx(1, abs=1e-4)) == asked


def test_a_run_is_refused_in_one_line(data: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    command = ["train", "vector-to-text", *files(data), *TINY, "--out", str(out)]
    given = tmp_path / "manifest.tsv"
    given.write_text(Path(data.manifest).read_text())
    command[command.index("--manifest") + 1] = str(given)

    nothing = tmp_path / "nothing"
    assert "no tokenizer could be loaded from" in refused(capsys, *command, "--host", nothing)
    host = shutil.copytree(data.host, tmp_path / "host")
    (host / "model.safetensors").unlink()
    assert "no encoder-decoder could be loaded from" in refused(capsys, *command, "--host", host)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (host / name).unlink()
    assert "holds no tokenizer that knows a word" in refused(capsys, *command, "--host", host)
    assert "route 'around' is unknown" in refused(capsys, *command, "--route", "around")
    assert "schedule 'odd' is unknown" in refused(capsys, *command, "--schedule", "odd")
    assert "learning_rate is 0.0: give a positive number" in refused(capsys, *command, "--learning-rate", "0")
    assert "batch_size is 0: give at least 1" in refused(capsys, *command, "--batch-size", "0")
    assert "every is -1: give at least 0" in refused(capsys, *command, "--every", "-1")
    assert "is a file: give a folder" in refused(capsys, *command[:-1], str(given))
    assert "is not there" in refused(capsys, *command, "--manifest", nothing)
    half = ["--features", data.features, "--out", tmp_path / "half"]
    assert "belong together" in refused(capsys, "train", "vector-to-text", *half)
    assert not out.exists(), "a slip of the pen claims no folder"

    assert main(command) == 0
    assert "with learning_rate 0.001 and not 0.5" in refused(capsys, *command, "--learning-rate", "0.5")
    assert "holds a run of the thread vector-to-text" in refused(capsys, "validate", "llm-to-llm", "--out", out)
    given.write_text(given.read_text().replace("cake", "pie"))
    assert "give another folder" in refused(capsys, *command)
    assert "holds no run" in refused(capsys, "validate", "vector-to-text", "--out", nothing)
    assert "holds no log.jsonl" in refused(capsys, "curves", nothing)
    (out / "settings.json").write_text("{")
    assert "settings.json is damaged" in refused(capsys, *command)
    (out / "settings.json").unlink()
    assert "holds a checkpoint without settings.json" in refused(capsys, *command)


def test_a_loss_that_is_lost_names_the_step(data: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = ["train", "vector-to-text", *files(data), *TINY, "--out", tmp_path, "--learning-rate", "1e30"]
    assert "the loss is" in refused(capsys, *made, "--warmup-steps", "0")


def test_clips_of_another_width_are_refused(data: Settings, tmp_path: Path) -> None:
    made = job(data, tmp_path / "run")
    made.train()
    other = tmp_path / "other"
    other.mkdir()
    np.save(other / "a.npy", np.ones(3, np.float32))
    (tmp_path / "other.tsv").write_text("a\tone\n")
    with pytest.raises(ValueError, match="width 3, not the 256"):
        prepare(replace(tiny(data), val_features=str(other), val_manifest=str(tmp_path / "other.tsv")), tmp_path / "b")


def test_a_sketch_has_the_shape_of_the_module(data: Settings, tmp_path: Path) -> None:
    made = job(data, tmp_path)
    sketch, loss = made.sketch()
    assert [p.shape for p in sketch.parameters()] == [p.shape for p in made.module.parameters()]
    assert isinstance(sketch, nn.Module)
    assert torch.isfinite(loss())
