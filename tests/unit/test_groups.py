"""Fitting in groups and by looks: rates, thawing, halvings, and when to stop."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bridges.training.fit import FitSettings, Group, History, fit
from torch import Tensor, nn

PLAIN = FitSettings(8, lr=0.01, batch=4, warmup=0, clip=math.inf, weight_decay=0.0, schedule="constant", every=1)


class Slope(nn.Module):
    """A loss that falls without end: AdamW moves every weight by its learning rate at each step."""

    def __init__(self):
        super().__init__()
        self.encoder, self.head = (nn.Linear(1, 1, bias=False) for _ in range(2))
        self.seen: list[tuple[float, ...]] = []

    def loss(self, _: Tensor) -> Tensor:
        self.seen.append(tuple(p.item() for p in self.parameters()))
        return self.encoder.weight.sum() + self.head.weight.sum()

    def moves(self) -> tuple[list[float], list[float]]:
        encoder, head = (torch.tensor(seen).diff().neg().tolist() for seen in zip(*self.seen, strict=True))
        return encoder, head


def test_a_group_has_its_rate_and_is_frozen_until_it_starts() -> None:
    model, groups = Slope(), (Group("encoder.", 0.2, start=3), Group("", rate=2.0), Group("head.", rate=7.0))
    fit(model, model.loss, 40, replace(PLAIN, groups=groups, every=0), 0)
    encoder, head = model.moves()
    assert encoder[:3] == [0, 0, 0]
    assert encoder[3:] == pytest.approx([0.002] * 4, abs=1e-6)
    assert head == pytest.approx([0.02] * 7, abs=1e-6), "the first group that fits is the parameter's"
    decaying, late = Slope(), (Group("head.", start=99),)
    fit(decaying, decaying.loss, 40, replace(PLAIN, weight_decay=5.0, groups=late, every=0), 0)
    assert decaying.moves()[1] == [0] * 7, "what is frozen does not decay"
    assert all(p.requires_grad for p in decaying.parameters())


def test_the_rate_is_halved_after_two_looks_without_improvement() -> None:
    model, looks = Slope(), iter([5.0, 4.0, 4.0, 4.5, 6.0, 3.0, 4.0, 4.0])
    history = fit(model, model.loss, 40, replace(PLAIN, schedule="plateau"), 0, validate=lambda: next(looks))
    assert model.moves()[0] == pytest.approx([0.01] * 4 + [0.005] * 3, abs=1e-6)
    assert (history.halvings, history.waited()) == (2, 2)
    assert History(validation=dict(enumerate([3.0, 4.0, 2.0, 3.0, 1.0, 1.0]))).halvings == 0
    assert History(validation=dict(enumerate([3.0] * 6))).halvings == 2


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
        assert tuple(p.item() for p in model.parameters()) == model.seen[history.best]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patience": 2}, "need validation: give `validate` and `every`"),
        ({"schedule": "plateau"}, "need validation: give `validate` and `every`"),
        ({"groups": (Group("haed."),)}, "begins with 'haed.': the names begin with encoder, head"),
        ({"groups": (Group("head.", start=1), Group("", start=2))}, "frozen at the first step"),
        ({"every": 0}, "validated and kept every so many steps: give `every`"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(change: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        fit(Slope(), lambda rows: pytest.fail("it trains"), 40, replace(PLAIN, **change), 0, keep=tmp_path)
    with pytest.raises(ValueError, match="everything is frozen"):
        fit(Slope().requires_grad_(False), lambda rows: pytest.fail("it trains"), 40, PLAIN, 0)
