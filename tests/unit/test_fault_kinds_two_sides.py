"""Faults that people report of two sides in one space, of logs and of gates, each beside a healthy twin."""

import math
from dataclasses import replace

import pytest
import torch
from bridges.instruments.alignment import diagnose, diagnose_generative
from bridges.instruments.chance import repeated_floor
from bridges.instruments.checkup import Contrastive, checkup
from bridges.instruments.soft_prompt import gates
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from weather import PLACES, WIDE, WORDS, fit, weather

HELD, TAUGHT = weather(128, 2), weather(2000, 1)


class Pair(nn.Module):
    def __init__(self, kind: str = ""):
        super().__init__()
        self.image = nn.Sequential(nn.Flatten(), nn.Linear(PLACES * WIDE, 48), nn.GELU(), nn.Linear(48, 16))
        self.text, self.kind = nn.Linear(30, 16), kind
        self.logit_scale = nn.Parameter(torch.tensor(0.07 if kind == "temperature" else math.log(10)))

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dim = 0 if self.kind == "wrong dim" else -1
        factor = self.logit_scale if self.kind == "temperature" else self.logit_scale.exp()
        return normalize(self.image(image), dim=dim), normalize(self.text(text), dim=dim), factor


BOOK = torch.randn(WORDS, 30, generator=torch.Generator().manual_seed(8))


def paired(ids: Tensor, kind: str = "") -> tuple[Pair, list[float]]:
    torch.manual_seed(0)
    pair, text = Pair(kind), BOOK[ids].mean(1)

    def loss(rows: Tensor) -> Tensor:
        image, words, factor = pair(TAUGHT.features[rows], text[rows])
        logits, right = factor * image @ words.T, torch.arange(len(rows))
        return (cross_entropy(logits, right) + cross_entropy(logits.T, right)) / 2

    return pair, fit(pair.parameters(), loss, 250)


def test_two_sides_and_texts_that_repeat() -> None:
    for ids, kind, name in (
        (lambda drawn: drawn.reports, "", ""),
        (lambda drawn: drawn.hints[:, 1:2], "", "texts that repeat"),  # six of them
        (lambda drawn: drawn.reports, "temperature", "temperature that hides the pairs"),
        (lambda drawn: drawn.reports, "wrong dim", "embeddings not of unit length"),
    ):
        pair, log = paired(ids(TAUGHT), kind)
        bridge = Contrastive(pair.eval(), HELD.features, BOOK[ids(HELD)].mean(1), losses=log, batch=32)
        report = checkup(bridge)
        assert [fault.name for fault in report.faults] == ([name] if name else []), f"{kind} {report}"
        if name == "texts that repeat":
            found = next(r for r in report.readings if r.what.startswith("R@1")).found
            assert float(found.split(",")[0]) > 90, found  # whichever of the same text is nearest is right
            halved = [0.3 * x for x in log]  # of a loss that counts repeats as right
            assert not checkup(replace(bridge, losses=halved)).faults
            assert "texts that repeat" not in [fault.name for fault in checkup(replace(bridge, batch=0)).faults]


def test_the_floor_of_repeated_texts() -> None:
    assert repeated_floor([1] * 10, 8) == 0
    assert repeated_floor([10] * 10, 8) == pytest.approx(math.log(8))
    halves = sum(math.comb(7, m) / 2**7 * math.log(1 + m) for m in range(8))
    assert repeated_floor([501] * 1001, 8) == pytest.approx(halves)
    with pytest.raises(ValueError, match="two or more of each"):
        repeated_floor([1], 8)


@pytest.mark.parametrize("seed", range(3))
def test_logs_of_runs_that_were_logged_seldom(seed: int) -> None:
    noise = torch.randn(2000, generator=torch.Generator().manual_seed(seed))
    falls = 4.16 * torch.exp(-torch.arange(2000) / 300) + 0.35 + 0.12 * noise
    for every in (10, 50, 100):
        assert str(diagnose(falls[::every].tolist(), 64)) == "healthy"
        assert str(diagnose_generative((falls[::every] + 1.5).tolist(), 32000)) == "healthy"
    flat = 0.01 * noise[:200]
    assert str(diagnose((math.log(256) / 8 + flat).tolist(), 256)) == "flat below chance"
    assert str(diagnose((math.log(2048) + flat).tolist(), 256)) == "frozen"
    assert str(diagnose_generative((math.log(50257) + flat).tolist(), 50257)) == "words at chance"
    assert str(diagnose((3 - torch.arange(200) / 40 + flat).tolist(), 32)) == "below zero"


def test_gates_by_other_names_and_scalars_that_are_none() -> None:
    one, feature, head = torch.zeros(1), torch.zeros(8), torch.zeros(1, 4, 1, 1)
    for name, value in (
        ("xattn_gate", one), ("attn_gating", one), ("gate1", one), ("attnGate", one), ("alpha_xattn", feature),
        ("self_attn.gate", head), ("gate.0", one),
    ):  # fmt: skip
        assert gates([(name, value)]) == {name: 0.0}
    for name, value in (
        ("aggregate_scale", one), ("navigate", one), ("lora_alpha", one), ("act.alpha", feature), ("logit_scale", one),
        ("gate.weight", torch.zeros(1, 8)), ("gate.bias", one), ("gate_proj.weight", torch.zeros(1, 8)),
        ("gamma", feature),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="no parameter has the word"):
            gates([(name, value)])
