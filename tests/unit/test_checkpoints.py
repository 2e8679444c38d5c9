"""Checkpoints: an interrupted run ends as if it had not been."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bridges.training import checkpoints
from bridges.training.checkpoints import BEST, LAST
from bridges.training.fit import FitSettings, Group, History, fit
from safetensors import safe_open
from torch import Tensor, nn

INPUTS, TARGETS = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)).split([4, 1], 1)
GROUPS = (Group("encoder.", 0.2, start=5), Group("head.", 2.0))
SETTINGS = FitSettings(10, lr=0.05, batch=8, warmup=2, weight_decay=0.1, groups=GROUPS, every=3)
PATIENT = replace(SETTINGS, steps=60, lr=0.5, every=2, schedule="plateau", patience=3)


class Tower(nn.Module):
    """Two layers that share a weight, a norm that counts, dropout and a head."""

    def __init__(self, seed: int = 0, width: int = 4):
        super().__init__()
        torch.manual_seed(seed)
        self.encoder, self.again = nn.Linear(4, width), nn.Linear(4, width)
        self.again.weight = self.encoder.weight
        self.norm, self.head = nn.BatchNorm1d(width), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.dropout(self.norm(self.encoder(x) + self.again(-x).relu()), 0.3, self.training))


def train(
    model: Tower, keep: Path | None = None, settings: FitSettings = SETTINGS, event: Callable[[], None] = lambda: None
) -> tuple[History, int]:
    """The history, and how many steps were done for it; `event` is called at each step and look."""
    calls = 0

    def loss(rows: Tensor) -> Tensor:
        nonlocal calls
        event()
        calls += 1
        return (model(INPUTS[rows]) - TARGETS[rows]).square().mean()

    @torch.no_grad()
    def validate() -> float:
        event()  # in training mode: it draws dropout masks and moves the norm's means
        return (model(INPUTS) - TARGETS).square().mean().item()

    return fit(model, loss, 40, settings, 3, validate=validate, keep=keep), calls


def never() -> None:
    pytest.fail("it trains")


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize(("settings", "apart"), [(SETTINGS, 1), (PATIENT, 7)], ids=["all steps", "out of patience"])
def test_a_run_interrupted_anywhere_ends_as_if_it_had_not_been(
    settings: FitSettings, apart: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Tower()
    history, steps = train(whole, settings=settings)
    assert 3 * settings.every < len(history.losses) == steps < 60
    events = kept = limit = 0

    def event() -> None:
        nonlocal events
        events += 1
        if events == limit:
            raise KeyboardInterrupt

    def write(path: Path, *rest: object, real: Callable[..., None] = checkpoints._write) -> None:
        nonlocal kept
        path.parent.mkdir(exist_ok=True)
        path.with_suffix(".partial").write_bytes(b"half")
        event()
        real(path, *rest)
        kept += path.name == LAST

    monkeypatch.setattr(checkpoints, "_write", write)
    for limit in range(1, 1000, apart):  # at this step, look or writing of a file
        events, kept, keep, model = 0, 0, tmp_path / str(limit), Tower()
        try:
            train(model, keep, settings, event)
            break
        except KeyboardInterrupt:
            done = min(kept * settings.every, steps)
        assert all(p.requires_grad for p in model.parameters())
        # Where there is a checkpoint the values of the model are nothing to the run that goes on.
        again = (model if limit % 2 else Tower(seed=9)) if done else Tower()
        assert train(again, keep, settings) == (history, steps - done)
        assert same(again, whole)
    assert limit > steps + 2 * len(history.validation)
    later = Tower(seed=9)
    assert train(later, keep, settings, never) == (history, 0), "a finished run is not trained again"
    assert same(later, whole)
    assert {file.name for file in keep.iterdir()} == {BEST, LAST}
    with safe_open(keep / BEST, "pt") as best:
        assert "again.weight" not in set(best.keys()), "a tied weight is kept once"


def changed(change: Callable[[Tower], object]) -> Callable[[], Tower]:
    def make() -> Tower:
        model = Tower()
        change(model)
        return model

    return make


DEEPER = changed(lambda model: model.add_module("idle", nn.Linear(2, 2)))
STILLER = changed(lambda model: model.norm.requires_grad_(False))


@pytest.mark.parametrize(
    ("kept", "asked", "lr", "message"),
    [
        (Tower, Tower, 0.06, "was trained with other settings, seed or data"),
        (Tower, lambda: Tower(width=5), 0.05, "holds another model"),
        (lambda: Tower(width=1), Tower, 0.05, "holds another model"),  # broadcasting would copy its tensors
        (DEEPER, Tower, 0.05, "holds another model"),
        (Tower, DEEPER, 0.05, "holds another model"),
        (Tower, STILLER, 0.05, "holds another model"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_and_left(
    kept: Callable[[], Tower], asked: Callable[[], Tower], lr: float, message: str, tmp_path: Path
) -> None:
    train(kept(), tmp_path)
    files, model = {p: p.read_bytes() for p in tmp_path.iterdir()}, asked()
    with pytest.raises(ValueError, match=rf"last\.safetensors {message}: take it away, or give another folder$"):
        train(model, tmp_path, replace(SETTINGS, lr=lr), never)
    assert same(model, asked())
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == files
    for seed, samples in ((4, 40), (3, 39)):
        with pytest.raises(ValueError, match="other settings, seed or data"):
            fit(kept(), lambda rows: never(), samples, SETTINGS, seed, validate=float, keep=tmp_path)


@pytest.mark.parametrize("name", [LAST, BEST])
@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"\xff" * len(b)])
def test_a_damaged_checkpoint_is_refused_before_any_step(name: str, damage: Callable, tmp_path: Path) -> None:
    events = iter(range(8))  # six steps and a look: there is more to do
    with pytest.raises(StopIteration):
        train(Tower(), tmp_path, event=lambda: next(events))
    left = damage((tmp_path / name).read_bytes())
    (tmp_path / name).write_bytes(left)
    with pytest.raises(ValueError, match=rf"^\S*{name} cannot be read \([^\n]*\): take its folder away to train anew$"):
        train(Tower(), tmp_path, event=never)
    assert (tmp_path / name).read_bytes() == left
    (tmp_path / LAST).unlink()
    assert train(Tower(), tmp_path)[1] == SETTINGS.steps, "nothing to go on from: from the start"


def test_a_lost_loss_leaves_what_was_kept(tmp_path: Path) -> None:
    whole, model, again = Tower(), Tower(), Tower(seed=9)
    history, _ = train(whole)
    steps = 0

    def lost() -> None:
        nonlocal steps
        steps += 1
        if steps == 10:  # seven steps and two looks before it
            model.head.weight.data.fill_(math.nan)

    with pytest.raises(FloatingPointError, match="training: the loss is nan at step 7; lower the learning rate"):
        train(model, tmp_path, event=lost)
    assert train(again, tmp_path) == (history, 4)
    assert same(again, whole)
    with pytest.raises(FloatingPointError, match="bridge: the validation loss is inf after 3 steps; what was kept"):
        fit(again, lambda rows: again(INPUTS).mean(), 40, SETTINGS, 0, "bridge", validate=lambda: math.inf)
