"""Fitting in groups, by looks, and from a checkpoint: an interrupted run ends as if it had not been."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bridges.training import fit as fitting
from bridges.training.fit import BEST, LAST, FitSettings, Group, History, fit
from safetensors import safe_open
from torch import Tensor, nn

INPUTS, TARGETS = torch.randn(40, 4), torch.randn(40, 1)
SETTINGS = FitSettings(
    10,
    lr=0.05,
    batch=8,
    warmup=2,
    weight_decay=0.1,
    groups=(Group("encoder.", 0.2, start=5), Group("head.", 2.0)),
    every=3,
)
PLAIN = FitSettings(8, lr=0.01, batch=4, warmup=0, clip=math.inf, weight_decay=0.0, schedule="constant", every=1)


class Tower(nn.Module):
    """Two layers with one weight, a part that counts, dropout and a head."""

    def __init__(self, seed: int = 0, width: int = 4, heads: int = 1):
        super().__init__()
        torch.manual_seed(seed)
        self.encoder = nn.Linear(4, width)
        self.again = nn.Linear(4, width)
        self.again.weight = self.encoder.weight
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, heads)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.dropout(self.norm(self.encoder(x) + self.again(-x).relu()), 0.3, self.training))


class Slope(nn.Module):
    """A loss that falls without end: AdamW moves every weight by its learning rate at each step."""

    def __init__(self):
        super().__init__()
        self.encoder, self.head = (nn.Linear(1, 1, bias=False) for _ in range(2))
        self.seen: list[tuple[float, float]] = []

    def loss(self, _: Tensor) -> Tensor:
        self.seen.append((self.encoder.weight.item(), self.head.weight.item()))
        return self.encoder.weight.sum() + self.head.weight.sum()

    def moves(self) -> list[list[float]]:
        steps = zip(self.seen, self.seen[1:], strict=False)
        return [[before - after for before, after in zip(*pair, strict=True)] for pair in steps]


def train(
    model: Tower, keep: Path | None = None, settings: FitSettings = SETTINGS, stop: Callable[[int], None] | None = None
) -> tuple[History, int]:
    """The history, and how many steps were done for it; `stop` is told each step and look, looks as -1."""
    calls = 0

    def loss(rows: Tensor) -> Tensor:
        nonlocal calls
        if stop:
            stop(calls)
        calls += 1
        return (model(INPUTS[rows]) - TARGETS[rows]).square().mean()

    def validate() -> float:
        if stop:
            stop(-1)
        with torch.no_grad():  # in training mode: it draws dropout masks and moves the means
            return (model(INPUTS) - TARGETS).square().mean().item()

    return fit(model, loss, 40, settings, 3, validate=validate, keep=keep), calls


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_group_has_its_rate_and_is_frozen_until_it_starts() -> None:
    model = Slope()
    groups = (Group("encoder.", 0.2, start=3), Group("", rate=2.0), Group("head.", rate=7.0))
    fit(model, model.loss, 40, replace(PLAIN, groups=groups, every=0), 0)
    encoder, head = zip(*model.moves(), strict=True)
    assert encoder == pytest.approx([0] * 3 + [0.002] * 4, abs=1e-6)
    assert encoder[:3] == (0, 0, 0)
    assert head == pytest.approx([0.02] * 7, abs=1e-6), "the first group that fits is the parameter's"


def test_what_is_frozen_does_not_decay_and_all_is_thawed_in_the_end() -> None:
    model = Slope()
    fit(model, model.loss, 40, replace(PLAIN, weight_decay=5.0, groups=(Group("head.", start=99),), every=0), 0)
    assert {head for _, head in model.seen} == {model.head.weight.item()}
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("validation", "halvings", "waited"),
    [([5, 4, 3], 0, 0), ([3, 3, 3], 1, 2), ([3, 4, 5, 4, 5, 4], 2, 5), ([3, 4, 2, 3, 2, 1, 1], 1, 1)],
)
def test_the_rate_is_halved_after_two_looks_without_improvement(validation: list, halvings: int, waited: int) -> None:
    history = History(validation={10 * i: loss for i, loss in enumerate(validation, 1)})
    assert (history.halvings, history.waited()) == (halvings, waited)
    model, looks = Slope(), iter([5.0, 4.0, 4.0, 4.5, 6.0, 3.0, 4.0, 4.0])
    fit(model, model.loss, 40, replace(PLAIN, schedule="plateau"), 0, validate=lambda: next(looks))
    assert [move[0] for move in model.moves()] == pytest.approx([0.01] * 4 + [0.005] * 3, abs=1e-6)


@pytest.mark.parametrize(("patience", "done"), [(2, 4), (3, 8), (0, 8)])
def test_training_stops_out_of_patience_and_the_best_weights_come_back(
    patience: int, done: int, tmp_path: Path
) -> None:
    for keep in (None, tmp_path):
        model, looks = Slope(), iter([3.0, 2.0, 2.5, 2.0, 1.0, 1.5, 1.0, 1.2])
        settings = replace(PLAIN, patience=patience)
        history = fit(model, model.loss, 40, settings, 0, validate=lambda looks=looks: next(looks), keep=keep)
        assert len(history.losses) == len(history.validation) == done
        assert history.best == (2 if done == 4 else 5), "of equal looks the first is the best"
        assert (model.encoder.weight.item(), model.head.weight.item()) == model.seen[history.best]


PATIENT = replace(SETTINGS, steps=60, lr=0.5, every=2, schedule="plateau", patience=5)


@pytest.mark.parametrize("settings", [SETTINGS, PATIENT], ids=["cosine", "plateau"])
def test_an_interrupted_run_ends_as_if_it_had_not_been(settings: FitSettings, tmp_path: Path) -> None:
    whole = Tower()
    history, steps = train(whole, settings=settings)
    assert len(history.losses) == steps > settings.every
    for at in range(steps):

        def stop(call: int, at: int = at) -> None:
            if call == at:
                raise KeyboardInterrupt

        keep = tmp_path / str(at)
        model = Tower()
        with pytest.raises(KeyboardInterrupt):
            train(model, keep, settings, stop)
        assert all(p.requires_grad for p in model.parameters())
        # Where there is a checkpoint the very values of the model are nothing to the run that goes on.
        kept = at - at % settings.every
        again = (model if at % 2 else Tower(seed=9)) if kept else Tower()
        resumed, anew = train(again, keep, settings)
        assert (resumed, anew) == (history, steps - kept)
        assert same(state(again), state(whole))
        assert {p.name for p in keep.iterdir()} == {BEST, LAST}


@pytest.mark.parametrize("where", ["look", "best", "last"])
def test_a_run_killed_at_a_look_or_while_it_writes_goes_on(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SETTINGS, lr=1e-4)
    whole = Tower()
    history, _ = train(whole, settings=settings)
    looks = 0

    def write(path: Path, *rest: object, real: Callable[..., None] = fitting._write) -> None:
        if looks == 2 and path.stem == where:
            path.with_suffix(".partial").write_bytes(b"half")
            raise KeyboardInterrupt
        real(path, *rest)

    def stop(call: int) -> None:
        nonlocal looks
        looks += call == -1
        if where == "look" and looks == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(fitting, "_write", write)
        with pytest.raises(KeyboardInterrupt):
            train(Tower(), tmp_path, settings, stop)
    again = Tower(seed=9)
    assert train(again, tmp_path, settings) == (history, 7)
    assert same(state(again), state(whole))


@pytest.mark.parametrize("settings", [SETTINGS, PATIENT], ids=["all steps", "out of patience"])
def test_a_finished_run_is_not_trained_again(settings: FitSettings, tmp_path: Path) -> None:
    model, later = Tower(), Tower(seed=9)
    first, _ = train(model, tmp_path, settings)
    assert train(later, tmp_path, settings) == (first, 0)
    assert same(state(later), state(model))
    with safe_open(tmp_path / BEST, "pt") as best:
        names = set(best.keys())
    assert names == {n for n, _ in (*model.named_parameters(), *model.named_buffers())}, "a tied weight is kept once"


class Deeper(Tower):
    def __init__(self):
        super().__init__()
        self.idle = nn.Linear(2, 2)


def half_frozen() -> Tower:
    model = Tower()
    model.norm.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("kept", "asked", "changed", "message"),
    [
        (Tower, Tower, {"lr": 0.06}, "was trained with other settings, seed or data"),
        (Tower, Tower, {"groups": (Group("head."),)}, "was trained with other settings, seed or data"),
        (Tower, lambda: Tower(width=5), {}, "holds another model"),
        (lambda: Tower(width=1), Tower, {}, "holds another model"),  # its tensors could be copied by broadcasting
        (Deeper, Tower, {}, "holds another model"),
        (Tower, Deeper, {}, "holds another model"),
        (Tower, half_frozen, {}, "holds another model"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_and_left(
    kept: Callable[[], Tower], asked: Callable[[], Tower], changed: dict, message: str, tmp_path: Path
) -> None:
    train(kept(), tmp_path)
    files, model = {p: p.read_bytes() for p in tmp_path.iterdir()}, asked()
    before = state(model)
    with pytest.raises(ValueError, match=rf"last\.safetensors {message}: take it away, or give another folder$"):
        train(model, tmp_path, replace(SETTINGS, **changed))
    assert same(state(model), before)
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == files
    for seed, samples in ((4, 40), (3, 39)):
        with pytest.raises(ValueError, match="other settings, seed or data"):
            fit(kept(), lambda rows: pytest.fail("it trains"), samples, SETTINGS, seed, validate=float, keep=tmp_path)


@pytest.mark.parametrize("name", [LAST, BEST])
@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"\xff" * len(b), None])
def test_a_damaged_checkpoint_is_refused_before_any_step(name: str, damage: Callable | None, tmp_path: Path) -> None:
    train(Tower(), tmp_path)
    path = tmp_path / name
    left = damage(path.read_bytes()) if damage else None
    path.unlink() if left is None else path.write_bytes(left)
    if name == LAST and left is None:
        assert train(Tower(), tmp_path)[1] == SETTINGS.steps, "nothing to go on from: from the start"
        return
    with pytest.raises(ValueError, match=rf"{name} cannot be read \(.*\): take .* away to train anew$") as told:
        train(Tower(), tmp_path, stop=lambda _: pytest.fail("it trains"))
    assert "\n" not in str(told.value)
    assert left is None or path.read_bytes() == left


def test_a_lost_loss_leaves_what_was_kept(tmp_path: Path) -> None:
    whole, model, again = Tower(), Tower(), Tower(seed=9)
    history, _ = train(whole)
    bad: list[Tensor] = [torch.tensor(1.0)] * 7 + [torch.tensor(math.nan)]

    def loss(rows: Tensor) -> Tensor:
        return bad.pop(0) * (model(INPUTS[rows]) - TARGETS[rows]).square().mean()

    def validation() -> float:
        with torch.no_grad():
            return (model(INPUTS) - TARGETS).square().mean().item()

    with pytest.raises(FloatingPointError, match="bridge: the loss is nan at step 7; lower"):
        fit(model, loss, 40, SETTINGS, 3, "bridge", validate=validation, keep=tmp_path)
    assert train(again, tmp_path) == (history, 4)
    assert same(state(again), state(whole))
    with pytest.raises(FloatingPointError, match="the validation loss is inf after 3 steps; what was kept stays"):
        fit(again, lambda rows: again(INPUTS).mean(), 40, SETTINGS, 0, validate=lambda: math.inf)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"patience": 2}, "need validation: give `validate` and `every`"),
        ({"schedule": "plateau"}, "need validation: give `validate` and `every`"),
        ({"groups": (Group("haed."),)}, "begins with 'haed.': the names begin with again, encoder, head, norm"),
        ({"groups": (Group("head.", start=1), Group("", start=2))}, "frozen at the first step"),
        ({"every": 0}, "validated and kept every so many steps: give `every`"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(changed: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        fit(Tower(), lambda rows: pytest.fail("it trains"), 40, replace(SETTINGS, **changed), 0, keep=tmp_path)
    with pytest.raises(ValueError, match="everything is frozen"):
        fit(Tower().requires_grad_(False), lambda rows: pytest.fail("it trains"), 40, PLAIN, 0)
