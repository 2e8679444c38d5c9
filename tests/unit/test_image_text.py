"""The second thread whole: images and captions on disk through frozen towers into one space."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bridges.__main__ import main
from bridges.hosts import sentence
from bridges.hosts.contrastive import ContrastiveBridge
from bridges.jobs import commands, image_text
from bridges.jobs import validation as reports
from bridges.jobs.image_text import NAMED, ImageTextJob, Settings, prepare, shape, small
from bridges.tasks import instructions
from bridges.tasks.pairs import read_features, write_features
from bridges.tasks.scenes import scenes
from bridges.training.losses import alignment_loss, info_nce
from safetensors.torch import load_file
from training_runs import interrupted, log, refused

TINY = ["--config", "small", "--epochs", "1", "--batch-size", "8", "--every", "3", "--device", "cpu"]
CHANCE = 1.25 * math.log(8)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The small set, smaller still."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_text, "SMALL_PAIRS", 60)
        folder = tmp_path_factory.mktemp("pairs")
        return small(folder / "data", folder / "cache")


def tiny(data: Settings) -> Settings:
    return replace(data, epochs=1, batch_size=8, every=3)


def job(data: Settings, out: Path) -> ImageTextJob:
    return prepare(tiny(data), out)


def test_the_named_configurations_are_the_logs() -> None:
    perceiver, direct = NAMED["alignment-log perceiver"], NAMED["alignment-log direct"]
    for s, batch, rate in ((perceiver, 64, 2e-3), (direct, 128, 2e-4)):
        fit = s.fit(100, 10)
        assert (fit.batch, fit.lr, s.epochs, s.width, s.prefixes[-1]) == (batch, rate, 10, 4096, 4096)
        assert s.clip == "openai/clip-vit-large-patch14-336"
    assert (perceiver.connector, perceiver.pooling, perceiver.text) == ("perceiver", "mean", "")
    r = perceiver.resampler
    assert (r.latents, r.width, r.depth, r.latent_std) == (64, 1024, 4, 0.02)
    assert (direct.connector, direct.pooling) == ("direct", "attention")
    assert direct.text == "sentence-transformers/all-mpnet-base-v2"
    with torch.device("meta"):
        made, other = (ContrastiveBridge(shape(s, 1024, 768)) for s in (perceiver, direct))
    assert made.image[0].weight.shape == (1024, 1024)
    assert sum(p.numel() for p in other.image.parameters()) == 1024 * 4096 + 4096
    command = ["train", "image-text", "--pairs", "mine", "--clip", "some/clip", "--config", "alignment-log direct"]
    asked = commands.settings(commands.parser().parse_args([*command, "--out", "x"]))
    assert asked == replace(direct, pairs=str(Path("mine").resolve()), clip="some/clip")


def test_a_run_by_the_command_line_from_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(image_text, "SMALL_PAIRS", 60)
    out = tmp_path / "run"
    assert main(["train", "image-text", "--out", str(out), *TINY]) == 0
    lines = log(out)
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6, 7]
    assert lines[0]["loss"] == pytest.approx(CHANCE, abs=2)
    assert json.loads((out / "settings.json").read_text())["chance"] == pytest.approx(CHANCE)
    assert main(["validate", "image-text", "--out", str(out), "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    assert "| chance, 6 candidates | 16.67 | 83.33 | 100.00 |" in told
    kept = json.loads((out / "report.json").read_text())
    assert list(kept["recall"])[-1] == "text to image, 32"
    assert kept["chance"] == pytest.approx(1.25 * math.log(6))  # six pairs held out: one short batch
    assert main(["curves", str(out), "--output", str(tmp_path / "curves.svg")]) == 0
    assert "<!-- run, chance in training -->" in (tmp_path / "curves.svg").read_text()


def test_an_interrupted_run_goes_on_to_the_same_losses(
    data: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same prefixes sampled, too."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    command = ["train", "image-text", "--pairs", data.pairs, "--clip", data.clip, *TINY, "--epochs", "2"]
    assert main([*command, "--out", str(whole)]) == 0
    interrupted(monkeypatch, ImageTextJob, 8, [*command, "--out", str(broken)])
    assert max(line["step"] for line in log(broken)) == 8
    assert main([*command, "--out", str(broken)]) == 0
    assert log(broken) == log(whole)
    kept, other = (load_file(folder / "last.safetensors") for folder in (whole, broken))
    assert all(torch.equal(kept[part], other[part]) for part in kept)


def test_three_lines_of_a_notebook(data: Settings, tmp_path: Path) -> None:
    made = job(data, tmp_path)
    made.train()
    assert "| image to text, 8 |" in reports.image_text(made)._repr_markdown_()


def test_features_are_kept_and_made_again_for_other_towers(
    data: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = job(data, tmp_path)
    (kept,) = (tmp_path / "features").iterdir()
    monkeypatch.setattr(image_text.clip, "load", lambda name: pytest.fail("it encodes again"))
    again = job(data, tmp_path)
    rows = torch.arange(10)
    assert torch.equal(first.seen.rows(rows).patches, again.seen.rows(rows).patches)
    assert torch.equal(first.embed(rows).image, again.embed(rows).image)
    monkeypatch.undo()
    other = tmp_path / "clip"
    other.symlink_to(data.clip)
    prepare(replace(tiny(data), clip=str(other)), tmp_path)
    assert len(list((tmp_path / "features").iterdir())) == 2
    assert not list(kept.parent.glob("*.partial"))


def test_pairs_that_are_too_many_are_encoded_as_they_are_drawn(
    data: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = job(data, tmp_path / "kept")
    monkeypatch.setattr(image_text, "KEPT", 1000)
    drawn = job(data, tmp_path / "drawn")
    assert not (tmp_path / "drawn").exists()
    rows = torch.tensor([3, 1, 4])
    for ours, theirs in zip(vars(drawn.seen.rows(rows)).values(), vars(kept.seen.rows(rows)).values(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert drawn.train().losses == pytest.approx(kept.train().losses, abs=1e-4)


def test_a_folder_with_features_needs_no_towers(tmp_path: Path) -> None:
    features = scenes(40).features()
    write_features(tmp_path / "mine", features)
    made = prepare(replace(NAMED["small"], pairs=str(tmp_path / "mine"), clip="none", epochs=1), tmp_path / "run")
    assert torch.equal(made.seen.text, read_features(tmp_path / "mine").text)
    assert (len(made.known), len(made.held_out)) == (36, 4)
    assert len(made.train().losses) == 2


def test_captions_by_a_sentence_encoder(data: Settings, tmp_path: Path) -> None:
    words = instructions.tokenizer()
    torch.manual_seed(0)
    sentence.build("quick", words).save_pretrained(tmp_path / "encoder")
    words.save_pretrained(tmp_path / "encoder")
    made = prepare(replace(tiny(data), text=str(tmp_path / "encoder")), tmp_path / "run")
    assert made.seen.text.shape == (60, 64)
    torch.testing.assert_close(made.seen.text.norm(dim=1), torch.ones(60))


def test_the_loss_is_the_logs(data: Settings, tmp_path: Path) -> None:
    """A quarter of CLIP's and one prefix's, which goes by the step; in validation the mean over all prefixes."""
    made = job(data, tmp_path)
    rows = torch.arange(8)
    image, text, scale = made.embed(made.known[rows])
    seen = set()
    for step in range(made.fit.steps):
        made.step = step
        seen.add(made.sampled[step])
        expected = alignment_loss(image, text, scale, (8, 16, 32), made.sampled[step])[0]
        torch.testing.assert_close(made.batch_loss(rows), expected)
    assert len(seen) > 1
    image, text, scale = made.embed(made.held_out)
    parts = alignment_loss(image, text, scale, (8, 16, 32))[1]
    means = sum(value for name, value in parts.items() if name != "loss_clip") / 3
    assert made.validate() == pytest.approx((0.25 * info_nce(image, text, scale) + means).item(), rel=1e-5)


def test_a_run_is_refused_in_one_line(data: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, nothing = tmp_path / "run", tmp_path / "nothing"
    command = ["train", "image-text", "--pairs", data.pairs, "--clip", data.clip, *TINY, "--out", out]
    assert "no CLIP could be loaded from" in refused(capsys, *command, "--clip", nothing)
    assert "no sentence encoder could be loaded from" in refused(capsys, *command, "--text", nothing)
    assert "is not there: write one line for each image" in refused(capsys, *command, "--pairs", nothing)
    assert "connector 'odd' is unknown" in refused(capsys, *command, "--connector", "odd")
    assert "pooling 'odd' is unknown" in refused(capsys, *command, "--pooling", "odd")
    assert "a prefix of 32 is wider than the common space of 16" in refused(capsys, *command, "--width", "16")
    assert not out.exists()


def test_a_sketch_has_the_shape_of_the_module(data: Settings, tmp_path: Path) -> None:
    made = job(data, tmp_path)
    sketch, loss = made.sketch()
    assert [p.shape for p in sketch.parameters()] == [p.shape for p in made.module.parameters()]
    assert torch.isfinite(loss())
