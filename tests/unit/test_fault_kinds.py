"""Faults that people report of bridges into hosts that speak, on models of our own, each beside a healthy twin."""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from bridges.connectors import peers
from bridges.connectors.pooling import VectorToTokens
from bridges.connectors.resampler import PerceiverResampler, ResamplerSettings
from bridges.instruments.checkup import Generative, checkup
from bridges.instruments.padding import padding_shift
from bridges.instruments.report import Report
from bridges.instruments.text_scale import text_scale
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import BartConfig, BartForConditionalGeneration
from weather import (
    BEGIN,
    DIM,
    END,
    PAD,
    PLACES,
    TELL,
    WIDE,
    WORDS,
    Captioner,
    batch_of,
    causal,
    fit,
    says,
    seq2seq,
    texts,
    told,
    weather,
)  # fmt: skip

HELD, TAUGHT = weather(128, 2), weather(2000, 1)


def faults(report: Report) -> list[str]:
    return [fault.name for fault in report.faults]


def resampler() -> nn.Module:
    shape = ResamplerSettings(32, 4, 1, 4, latent_std=1.0)
    return nn.Sequential(nn.Linear(WIDE, 32), PerceiverResampler(shape), nn.Linear(32, DIM))


class Spoken(NamedTuple):
    model: Captioner
    log: list[float]
    said: list[str]

    def report(self, batch: dict[str, Tensor] | None = None, **given: Any) -> Report:
        known: dict[str, Any] = {"log": self.log, "said": self.said, "wanted": texts(HELD.reports)}
        return checkup(self.model, batch or batch_of(HELD), "connector", **(known | given))


def captioner(host: Any, loss: Callable[[Captioner, dict[str, Tensor]], Tensor], steps: int = 200) -> Spoken:
    torch.manual_seed(0)
    model, batch = Captioner(host, resampler()), batch_of(TAUGHT)
    log = fit(model.connector.parameters(), lambda rows: loss(model, {k: x[rows] for k, x in batch.items()}), steps)
    with torch.no_grad():
        return Spoken(model.eval(), log, says(host, model.connector(HELD.features)))


@pytest.fixture(scope="module")
def gpt2() -> Any:
    return causal("gpt2")


@pytest.fixture(scope="module")
def healthy(gpt2: Any) -> Spoken:
    return captioner(gpt2, lambda model, batch: model(**batch).loss)


@pytest.fixture(scope="module")
def t5() -> Any:
    return seq2seq("t5")


@pytest.fixture(scope="module")
def read_by_t5(t5: Any) -> Generative:
    torch.manual_seed(0)
    connector = peers.q_former(WIDE, 32, 4, DIM)

    def loss(rows: Tensor) -> Tensor:
        return t5(inputs_embeds=connector(TAUGHT.features[rows]), labels=TAUGHT.reports[rows]).loss

    log = fit(connector.train().parameters(), loss, 200)
    return into(t5, connector.eval(), log)


def into(host: Any, connector: Any, log: list[float], features: Tensor = HELD.features) -> Generative:
    def loss(tokens: Tensor, rows: Tensor) -> Tensor:
        return host(inputs_embeds=tokens, labels=HELD.reports[rows]).loss

    return Generative(connector, features, loss, HELD.reports, host.get_input_embeddings().weight, losses=log)


def test_healthy_twins_stay_silent(healthy: Spoken, read_by_t5: Generative) -> None:
    for report in (healthy.report(), healthy.report(said=(), wanted=(), log=()), checkup(read_by_t5)):
        assert not report.faults, str(report)


# 1. Loss against what is said.


def test_labels_moved_masked_or_cut_short(healthy: Spoken) -> None:
    batch = batch_of(HELD)
    early = batch["labels"].roll(-1, 1)
    early[:, -1] = -100
    for labels, name in (
        (early, "labels shifted twice"),
        (torch.full_like(early, -100), "no label is supervised"),
        (batch["labels"].masked_fill(batch["labels"] == END, -100), "generations that do not end"),
    ):
        assert healthy.report(batch | {"labels": labels}).headline == name


def test_a_low_loss_of_the_first_word_alone_does_not_tell_what_is_said(gpt2: Any) -> None:
    def first(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        only = torch.full_like(batch["labels"], -100)
        only[:, 2] = batch["labels"][:, 2]
        return batch | {"labels": only}

    found = captioner(gpt2, lambda model, batch: model(**first(batch)).loss, 150)
    assert found.report(first(batch_of(HELD))).headline == "loss that does not tell what is said"


def test_a_loss_of_the_token_just_read(gpt2: Any) -> None:
    """Labels that nobody shifts, with a host that cannot copy: the loss falls, and what is said is wrong."""

    def loss(tokens: Tensor, reports: Tensor) -> Tensor:
        table = gpt2.get_input_embeddings()
        begin, tell = (table(torch.full((len(tokens), 1), i)) for i in (BEGIN, TELL))
        logits = gpt2(inputs_embeds=torch.cat([begin, tokens, tell, table(reports)], 1)).logits
        return cross_entropy(logits[:, -reports.shape[1] :].flatten(0, 1), reports.flatten())

    found = captioner(gpt2, lambda model, batch: loss(model.connector(batch["features"]), batch["input_ids"][:, 1:]))
    connector = found.model.connector
    bridge = Generative(connector, HELD.features, lambda tokens, rows: loss(tokens, HELD.reports[rows]), HELD.reports)
    report = checkup(bridge, log=found.log, said=found.said, wanted=texts(HELD.reports))
    assert "loss that does not tell what is said" in faults(report), str(report)


def test_outputs_are_held_against_the_loss_only_where_it_promises_them(healthy: Spoken) -> None:
    other = [*healthy.said[1:], healthy.said[0]]
    assert faults(healthy.report(said=other)) == ["loss that does not tell what is said"]
    louder = [text.replace(" ", "  ").upper() + "\n" for text in healthy.said]
    assert not healthy.report(said=louder).faults
    few = {"said": other[:4], "wanted": texts(HELD.reports)[:4]}
    assert not healthy.report(**few).faults
    fresh = Spoken(Captioner(healthy.model.host, resampler().eval()), [], other)
    assert "loss that does not tell what is said" not in faults(fresh.report())


# 2. Training against serving.


def test_a_served_bridge_beside_its_log(t5: Any) -> None:
    torch.manual_seed(0)
    connector = VectorToTokens(WIDE, 4, DIM, 64)
    taught, held = TAUGHT.vectors, HELD.vectors

    def loss(rows: Tensor) -> Tensor:
        return t5(inputs_embeds=connector(taught[rows]), labels=TAUGHT.reports[rows]).loss

    log = fit(connector.parameters(), loss, 250)
    connector.eval()
    fresh = VectorToTokens(WIDE, 4, DIM, 64).eval()
    far = "held-out loss far above the log's end"
    assert not checkup(into(t5, connector, log, held)).faults
    for module, inputs, name in (
        (fresh, held, "connector is not the trained one"),
        (connector, held * 0.05, "inputs too quiet"),
        (connector, held.roll(1, 1), far),
        (connector, HELD.features.max(1).values * 3, far),
    ):
        assert name in faults(checkup(into(t5, module, log, inputs)))


def test_a_host_in_training_mode(healthy: Spoken) -> None:
    def loss(tokens: Tensor, rows: Tensor) -> Tensor:
        return told(host, tokens, HELD.reports[rows])

    host = deepcopy(healthy.model.host)  # GPT-2 has dropout
    bridge = Generative(healthy.model.connector, HELD.features, loss, HELD.reports, losses=healthy.log)
    assert not checkup(bridge).faults
    host.train()
    assert checkup(bridge).headline == "host in training mode"


# 3. Seen in training mode only.


class InTraining(nn.Module):
    def __init__(self, inner: Any, way: Callable[[Any, Tensor], Tensor]):
        super().__init__()
        self.inner, self.way = inner, way

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self.inner, x) if self.training else self.inner(x)


def last_alone(inner: Any, x: Tensor) -> Tensor:
    mask = torch.ones_like(x[..., 0]).long()
    return inner.out(inner.read(inner.model, inner.into(x), mask).detach())


@pytest.mark.parametrize(
    ("way", "harms"),
    [
        (lambda inner, x: checkpoint(inner, x, use_reentrant=True), True),
        (lambda inner, x: inner(x).detach(), True),
        (lambda inner, x: inner(x) * 0, True),
        (last_alone, True),
        (lambda inner, x: checkpoint(inner, x, use_reentrant=False), False),
        (lambda inner, x: torch.cat([inner(x)[:, :2], inner(x)[:, 2:].detach()], 1), False),
    ],
)
def test_a_gradient_that_training_mode_alone_loses(way: Any, harms: bool, read_by_t5: Generative) -> None:
    report = checkup(replace(read_by_t5, connector=InTraining(read_by_t5.connector, way).eval()))
    assert faults(report) == (["no gradient in training mode"] if harms else []), str(report)


# 4. Held or moved by nobody.


def test_optimisers_that_hold_or_move_nothing(read_by_t5: Generative) -> None:
    connector: Any = read_by_t5.connector
    every = list(connector.parameters())
    stopped = torch.optim.AdamW(every, 3e-3)
    stopped.param_groups[0]["lr"] = 0.0
    for optimizer, name in (
        (torch.optim.SGD(every, 0.1, momentum=0.9), ""),
        (torch.optim.RMSprop(every, 1e-3), ""),
        (torch.optim.Adam(deepcopy(connector).parameters(), 1e-3), "parameters outside the optimiser"),
        (torch.optim.Adam(connector.out.parameters(), 1e-3), "parameters outside the optimiser"),
        (stopped, "a rate of zero"),
        (torch.optim.Adagrad(every, 1e-9), "parameters that did not move"),
    ):
        report = checkup(replace(read_by_t5, optimizer=optimizer))
        assert faults(report) == ([name] if name else []), str(report)


def test_bfloat16_weights_that_a_small_rate_cannot_change(t5: Any) -> None:
    torch.manual_seed(0)
    connector, features = VectorToTokens(WIDE, 4, DIM, 64), TAUGHT.vectors.bfloat16()
    optimizer = torch.optim.Adam(connector.parameters(), 1e-6)
    connector.to(torch.bfloat16)  # in place: the optimiser still holds them
    before, log = {name: x.clone() for name, x in connector.state_dict().items()}, []
    for step in range(30):
        rows = torch.arange(32) + 32 * step
        value = t5(inputs_embeds=connector(features[rows]).float(), labels=TAUGHT.reports[rows]).loss
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        log.append(value.item())
    bridge = into(t5, lambda x: connector(x).float(), log, HELD.vectors.bfloat16())
    report = checkup(replace(bridge, module=connector, optimizer=optimizer, before=before))
    assert report.headline == "parameters that did not move", str(report)
    assert "parameters outside the optimiser" not in faults(report)


def test_a_connector_frozen_to_be_used_is_no_fault(read_by_t5: Generative) -> None:
    assert not checkup(replace(read_by_t5, connector=deepcopy(read_by_t5.connector).requires_grad_(False))).faults


# 5. Where it stops being finite.


def test_values_that_are_not_finite_are_placed(t5: Any, read_by_t5: Generative) -> None:
    whole: Any = read_by_t5.connector
    broken = HELD.features.clone()
    broken[7, 2, 3] = torch.inf
    weight, host = deepcopy(whole), deepcopy(t5)
    with torch.no_grad():
        weight.out.bias[0] = torch.nan
        host.decoder.block[1].layer[0].SelfAttention.q.weight[0, 0] = torch.inf
    mask = torch.ones(128, PLACES)
    mask[9] = 0

    def attended(x: Tensor, there: Tensor) -> Tensor:  # no number where a row has no place at all
        shares = x.mean(-1).masked_fill(there == 0, -torch.inf).softmax(-1)
        return whole(x + 0 * shares[..., None])

    for bridge, place in (
        (replace(read_by_t5, inputs=broken), "inputs"),
        (replace(read_by_t5, connector=weight), "connector's parameters"),
        (replace(read_by_t5, connector=attended, inputs=(HELD.features, mask), module=whole), "tokens"),
        (replace(read_by_t5, connector=lambda x: (whole(x) * 1e6).half().float(), module=whole), "tokens"),
        (into(host, whole, []), "host's loss (nats)"),
    ):
        report = checkup(bridge)
        assert report.headline == "values that are not finite"
        assert next(reading.what for reading in report.readings if reading.fault) == place


# 7. Scale as the host sees it.


def test_text_that_is_scaled_again_beside_the_tokens(healthy: Spoken, gpt2: Any) -> None:
    for factor, harms in ((1.0, False), (1.4, False), (DIM**0.5, True), (DIM**-0.5, True)):
        served = Spoken(Captioner(gpt2, healthy.model.connector, factor).eval(), healthy.log, [])
        assert ("scale far from the host's" in faults(served.report(said=(), wanted=()))) == harms, factor

    def loss(tokens: Tensor, rows: Tensor) -> Tensor:  # as a closure, which hides the host
        batch = {name: x[rows] for name, x in batch_of(HELD).items()}
        return Captioner(gpt2, lambda x: tokens, DIM**0.5)(**batch).loss  # type: ignore[arg-type]

    report = checkup(Generative(healthy.model.connector, HELD.features, loss, HELD.reports))
    assert report.headline == "scale far from the host's", str(report)
    assert report.faults[0].mend == "hand over text as the host's table gives it, once"


def test_the_scale_of_text_in_a_host_whose_table_scales() -> None:
    sides = {f"{side}_{name}": 1 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    host = BartForConditionalGeneration(BartConfig(vocab_size=WORDS, d_model=16, scale_embedding=True, **sides)).eval()
    table: Any = host.get_input_embeddings()
    ids = HELD.reports[:4]
    for embeds, ratio in ((table(ids), 1), (4 * table(ids), 4), (table.weight[ids], 1 / 4)):
        found = text_scale(lambda embeds=embeds: host(inputs_embeds=embeds, labels=ids).loss)
        assert found is not None
        assert found.ratio == pytest.approx(ratio)
    assert text_scale(lambda: host(inputs_embeds=torch.randn(4, 3, 16), labels=ids).loss) is None
    assert text_scale(lambda: torch.zeros(())) is None


# 8. Padding.


def test_padding_is_judged_by_side_and_cause(gpt2: Any, healthy: Spoken) -> None:
    picture = 27
    front = torch.tensor([BEGIN, *[picture] * 4, TELL])
    prompts = [torch.cat([front, HELD.reports[i, :k]]) for i, k in enumerate((1, 3, 5, 2, 6, 4))]
    with torch.no_grad():
        soft = healthy.model.connector(HELD.features)

    def logits(ids: Tensor, rows: Tensor, **given: Tensor) -> Tensor:
        embeds = gpt2.get_input_embeddings()(ids).clone()
        embeds[ids == picture] = soft[rows].flatten(0, 1)
        return gpt2(inputs_embeds=embeds, **given).logits[:, -1]

    def places(mask: Tensor) -> Tensor:
        return (mask.cumsum(-1) - 1).clamp_min(0)

    def strangers(rows: Tensor) -> Tensor:
        return rows.flip(0) if len(rows) > 1 else rows

    for way, side, mend in (
        (lambda ids, mask, rows: logits(ids, rows, attention_mask=mask, position_ids=places(mask)), "left", ""),
        (lambda ids, mask, rows: logits(ids, rows, attention_mask=mask), "left", "hand over positions"),
        (lambda ids, mask, rows: logits(ids, rows), "left", "what stands in the padding is read"),
        (lambda ids, mask, rows: logits(ids, rows, attention_mask=mask.flip(1)), "left", "what stands in the padding"),
        (lambda ids, mask, rows: logits(ids, rows, attention_mask=mask), "right", "pad on the left"),
        (lambda ids, mask, rows: logits(ids, strangers(rows), attention_mask=mask), "left", "prompts without padding"),
        (lambda ids, mask: logits(ids, 0 * ids[:, 0], attention_mask=mask, position_ids=places(mask)), "left", ""),
    ):
        shift = padding_shift(way, prompts, PAD, side)
        report = healthy.report(padding=shift)
        assert faults(report) == (["padding that changes the answers"] if mend else []), f"{shift} {report}"
        assert not mend or report.faults[0].mend.startswith(mend), shift


def test_positions_that_a_host_counts_by_its_mask_need_no_help() -> None:
    host = causal("opt")
    prompts = [torch.cat([torch.tensor([BEGIN, TELL]), HELD.reports[i, : i + 1]]) for i in range(6)]
    good = padding_shift(lambda ids, mask: host(input_ids=ids, attention_mask=mask).logits[:, -1], prompts, PAD, "left")
    assert (good.changed, good.cause) == (0.0, "")

    def swapped(ids: Tensor, mask: Tensor) -> Tensor:  # a prompt alone has nothing to swap
        mask = 1 - mask if (mask == 0).any() else mask
        return host(input_ids=ids, attention_mask=mask).logits[:, -1]

    assert padding_shift(swapped, prompts, PAD, "left").cause == "mask"
    broken = padding_shift(
        lambda ids, mask: torch.where((mask == 0).any(1), torch.nan, 1.0)[:, None].expand(-1, 3), prompts, PAD, "left"
    )
    assert math.isinf(broken.logits)
