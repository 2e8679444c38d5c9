"""The log's attention supervision has nothing to say; entropy and the conditioning gap have."""

import math
from collections.abc import Callable

import pytest
import torch
from bridges.benches.supervision import (
    Attending,
    Supervised,
    Supervision,
    attention_entropy,
    conditioning_loss,
    log_mean_attention,
)
from bridges.benches.translation import Recipe, Sentences, untrained
from bridges.connectors.resampler import ResamplerSettings
from bridges.hosts import seq2seq
from bridges.instruments.gradients import gradient_flow
from bridges.tasks import instructions
from bridges.training.ensemble import fit_ensemble
from bridges.training.fit import FitSettings, fit
from torch.nn.functional import margin_ranking_loss
from transformers import PreTrainedModel
from transformers.models.bart.modeling_bart import BartAttention

WORDS = instructions.tokenizer()
TEXTS = instructions.corpus(12, 1).train
torch.manual_seed(0)
HOSTS = {name: seq2seq.build(name, "quick", WORDS).eval() for name in ("t5", "bart")}
SENTENCES = Sentences(TEXTS, instructions.sentence_vectors(TEXTS, 24), instructions.labels(TEXTS, WORDS))
SETTINGS = FitSettings(3, lr=1e-2, batch=6, warmup=1)
KEYS = 5
RECIPE = Recipe(SETTINGS, ResamplerSettings(16, KEYS, 1, 2))


@pytest.fixture(params=["t5", "bart"])
def model(request: pytest.FixtureRequest) -> Attending:
    recipe = Recipe(SETTINGS, RECIPE.resampler, host=request.param)
    return Attending(untrained(recipe, 0, SENTENCES, HOSTS, None))


def norm(model: Attending, loss: Callable) -> float:
    return gradient_flow(model.named_parameters(), lambda: loss(*model(SENTENCES.vectors, SENTENCES.labels))).norm()


def test_a_translator_keeps_its_loss_and_shows_its_attention(model: Attending) -> None:
    loss, attentions = model(SENTENCES.vectors, SENTENCES.labels)
    assert loss == model.translator(SENTENCES.vectors, SENTENCES.labels)
    assert [a.shape for a in attentions] == 2 * [(12, 4, SENTENCES.labels.shape[1], KEYS)]


def test_the_logs_term_is_a_constant_without_a_gradient(model: Attending) -> None:
    _, attentions = model(SENTENCES.vectors, SENTENCES.labels)
    assert log_mean_attention(attentions).item() == pytest.approx(math.log(KEYS), abs=1e-6)
    written = norm(model, lambda _, found: log_mean_attention(found))
    assert written < 1e-6 * norm(model, lambda loss, _: loss)
    assert written < 1e-2 * norm(model, lambda _, found: attention_entropy(found))


def test_after_dropout_the_logs_term_follows_the_noise(model: Attending) -> None:
    for part in model.modules():
        if isinstance(part, BartAttention):
            part.dropout = 0.1
    model.train()
    torch.manual_seed(0)
    _, attentions = model(SENTENCES.vectors, SENTENCES.labels)
    assert (attentions[0].sum(-1) - 1).abs().max() > 0.1
    assert norm(model, lambda loss, found: log_mean_attention(found)) > 1e-4
    assert math.isfinite(norm(model, lambda loss, found: attention_entropy(found)))


def test_entropy_runs_from_one_key_to_all() -> None:
    one = torch.eye(KEYS).expand(2, 3, KEYS, KEYS).clone().requires_grad_()
    assert attention_entropy([one]).item() == 0
    assert attention_entropy([torch.full((2, 3, 4, KEYS), 1 / KEYS)]).item() == pytest.approx(math.log(KEYS))
    attention_entropy([one]).backward()
    assert one.grad is not None
    assert one.grad.isfinite().all()


def test_the_gap_as_a_loss_is_torchs_margin_ranking() -> None:
    right = torch.tensor(1.3)
    for shuffled in (torch.tensor(1.1), torch.tensor(1.5), torch.tensor(4.0)):
        torch.testing.assert_close(
            conditioning_loss(right, shuffled, 0.7),
            margin_ranking_loss(shuffled, right, torch.tensor(1.0), margin=0.7),
        )
    with pytest.raises(ValueError, match="asks for no gap: give a positive one"):
        conditioning_loss(right, right, 0.0)


def batch_loss(model: Callable, rows: torch.Tensor, _: int = 0) -> torch.Tensor:
    return model(SENTENCES.vectors[rows], SENTENCES.labels[rows])


def make(arm: Supervision) -> Supervised:
    return Supervised(untrained(RECIPE, 0, SENTENCES, HOSTS, None), arm)


def side_by_side(arms: list[Supervision]) -> torch.Tensor:
    n = len(arms)
    return fit_ensemble([make(a) for a in arms], batch_loss, len(TEXTS), [SETTINGS] * n, [0] * n).losses


@pytest.mark.parametrize(
    "arms",
    [
        [Supervision(), Supervision(written=0.1), Supervision(entropy=0.5)],
        [Supervision(conditioning=2.0), Supervision(entropy=0.5, conditioning=0.1)],
    ],
)
def test_arms_of_different_weights_train_side_by_side_as_each_would_alone(arms: list[Supervision]) -> None:
    found = side_by_side(arms)
    for index, arm in enumerate(arms):
        alone = make(arm)
        losses = fit(alone, lambda rows, m=alone: batch_loss(m, rows), len(TEXTS), SETTINGS, 0).losses
        torch.testing.assert_close(found[:, index], torch.tensor(losses), rtol=0, atol=1e-4)


def test_supervision_is_added_by_its_weight() -> None:
    rows = torch.arange(len(TEXTS))
    translator = untrained(RECIPE, 0, SENTENCES, HOSTS, None)
    loss, attentions = Attending(translator)(SENTENCES.vectors, SENTENCES.labels)
    gap = translator(SENTENCES.vectors.roll(1, 0), SENTENCES.labels) - loss
    for arm, added in (
        (Supervision(), 0.0),
        (Supervision(written=0.1), 0.1 * math.log(KEYS)),
        (Supervision(entropy=0.5), 0.5 * attention_entropy(attentions)),
        (Supervision(conditioning=2.0), 2 * (1 - gap)),
    ):
        torch.testing.assert_close(batch_loss(make(arm), rows), loss + added)


def test_arms_with_and_without_a_second_pass_do_not_mix() -> None:
    with pytest.raises(ValueError, match="cannot be stacked"):
        side_by_side([Supervision(), Supervision(conditioning=1.0)])


def test_a_host_without_written_out_attention_is_named(model: Attending) -> None:
    host: PreTrainedModel = model.translator.host
    for part in (host, host.encoder, host.decoder) if hasattr(host, "encoder") else (host,):
        part.set_attn_implementation("sdpa")
    said = host(inputs_embeds=torch.randn(2, KEYS, 64), labels=SENTENCES.labels[:2], output_attentions=True)
    for term in (log_mean_attention, attention_entropy):
        with pytest.raises(ValueError, match="set its attention to 'eager'"):
            term(said.cross_attentions)
        with pytest.raises(ValueError, match="set its attention to 'eager'"):
            term(())
