"""Fitting, and small hosts that are kept, checked and made again."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bridges.benches import pretrain
from bridges.training.fit import FitSettings, fit


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    settings = FitSettings(steps=100, warmup=10)
    assert settings.rate(0) == pytest.approx(0.1)
    assert settings.rate(9) == settings.rate(10) == 1
    assert settings.rate(55) == pytest.approx(0.5)
    assert settings.rate(100) == pytest.approx(0, abs=1e-12)


def test_fit_names_the_step_at_which_the_loss_is_lost() -> None:
    model = torch.nn.Linear(1, 1)
    with pytest.raises(FloatingPointError, match="the loss is inf at step 0; lower the learning rate"):
        fit(model, lambda rows: model.weight.abs().sum() / 0, 4, FitSettings(steps=2, batch=2), seed=0)


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "RECIPES", {"quick": FitSettings(steps=2, batch=4, warmup=1)})


@pytest.mark.usefixtures("brief")
def test_a_host_is_trained_once_and_made_again_when_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = pretrain.small_host("t5", "quick", tmp_path)
    # Copies: the loaded weights are mapped from the very file that is damaged below.
    first = [p.detach().clone() for p in made.parameters()]
    assert "not in the cache" in capsys.readouterr().out
    again = pretrain.small_host("t5", "quick", tmp_path)
    assert capsys.readouterr().out == ""
    assert not again.training
    assert all(torch.equal(a, b) for a, b in zip(first, again.parameters(), strict=True))

    weights = tmp_path / "t5-0-quick" / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    mended = pretrain.small_host("t5", "quick", tmp_path)
    assert "model.safetensors does not match its checksum" in capsys.readouterr().out
    assert all(torch.equal(a, b) for a, b in zip(first, mended.parameters(), strict=True))

    (tmp_path / "t5-0-quick" / "model.safetensors").unlink()
    pretrain.small_host("t5", "quick", tmp_path)
    assert "model.safetensors is missing" in capsys.readouterr().out

    (tmp_path / "t5-0-quick" / "sha256.json").write_text("{")
    pretrain.small_host("t5", "quick", tmp_path)
    assert "the cached copy is damaged" in capsys.readouterr().out

    corpus = pretrain.instructions.corpus()
    with monkeypatch.context() as patched:
        patched.setattr(pretrain.instructions, "corpus", lambda: replace(corpus, train=corpus.train[:-1]))
        pretrain.small_host("t5", "quick", tmp_path)
    assert "the recipe has changed" in capsys.readouterr().out
    pretrain.small_host("t5", "quick", tmp_path)
    capsys.readouterr()

    monkeypatch.setattr(pretrain, "RECIPES", {"quick": replace(pretrain.RECIPES["quick"], lr=0.1)})
    pretrain.small_host("t5", "quick", tmp_path)
    assert "the recipe has changed" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".lock"] == ["t5-0-quick"]
