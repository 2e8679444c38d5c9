"""The three routes into an encoder-decoder, and the instrument that tells them apart."""

from pathlib import Path

import pytest
import torch
from bridges.connectors.pooling import VectorToTokens
from bridges.connectors.projection import Expander
from bridges.connectors.scale import Standardise
from bridges.hosts import seq2seq
from bridges.hosts.seq2seq import ROUTES, VectorToText, route_inputs, route_logits
from bridges.instruments.routes import compare_routes
from bridges.tasks import instructions
from bridges.training.fit import FitSettings, fit
from transformers import PreTrainedModel

WORDS = instructions.tokenizer()


@pytest.fixture(params=["t5", "bart"])
def host(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    return seq2seq.build(request.param, "quick", WORDS).eval()


def test_inputs_embeds_goes_through_the_encoder_and_a_bypass_does_not(host: PreTrainedModel) -> None:
    tokens, labels = torch.randn(3, 5, 64), torch.randint(4, 100, (3, 7))
    found = compare_routes(route_logits(host, tokens, labels), host.get_encoder())
    assert found.encoder_calls == {"inputs_embeds": 1, "encoder_outputs": 1, "bypass": 0}
    assert found.logit_difference["encoder_outputs"] == 0.0
    assert found.logit_difference["bypass"] > 1e-3
    assert "| `bypass` | 0 |" in found._repr_markdown_()


def test_generation_is_the_same_by_both_routes(host: PreTrainedModel) -> None:
    vectors = torch.randn(4, 256)
    connector = VectorToTokens(256, 5, 64)
    embeds, outputs, _ = (VectorToText(connector, host, route).generate(vectors, 9) for route in ROUTES)
    assert torch.equal(embeds, outputs)


def test_training_in_one_route_is_training_in_the_other(host: PreTrainedModel) -> None:
    state = {name: value.clone() for name, value in host.state_dict().items()}
    vectors, labels = torch.randn(20, 256), torch.randint(4, 100, (20, 6))
    curves = {}
    for route in ROUTES:
        host.load_state_dict(state)
        torch.manual_seed(1)
        model = VectorToText(VectorToTokens(256, 4, 64), host, route).train()
        curves[route] = fit(
            model,
            lambda rows, model=model: model(vectors[rows], labels[rows]),
            len(vectors),
            FitSettings(steps=4, batch=8, warmup=1),
            seed=0,
        ).losses
    assert curves["inputs_embeds"] == curves["encoder_outputs"]
    assert curves["inputs_embeds"] != curves["bypass"]


def test_comparing_needs_evaluation_mode_and_two_routes(host: PreTrainedModel) -> None:
    routes = route_logits(host, torch.randn(1, 3, 64), torch.ones(1, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="at least two routes, not 1"):
        compare_routes({"inputs_embeds": routes["inputs_embeds"]}, host.get_encoder())
    with pytest.raises(ValueError, match=r"training mode.*call \.eval\(\)"):
        compare_routes(routes, host.train().get_encoder())


def test_unknown_names_are_refused_with_those_there_are(host: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="choose from inputs_embeds, encoder_outputs, bypass"):
        route_inputs.__wrapped__(host, torch.randn(1, 3, 64), "straight")
    with pytest.raises(ValueError, match="choose from t5, bart"):
        seq2seq.build("gpt", "quick", WORDS)
    with pytest.raises(ValueError, match="choose from quick, medium, full"):
        seq2seq.build("t5", "huge", WORDS)


def test_a_saved_host_loads_back_and_a_missing_one_says_what_to_give(host: PreTrainedModel, tmp_path: Path) -> None:
    host.save_pretrained(tmp_path / "host")
    again = seq2seq.load(str(tmp_path / "host")).eval()
    tokens, labels = torch.randn(2, 3, 64), torch.randint(4, 100, (2, 4))
    first = host(inputs_embeds=tokens, labels=labels).logits
    assert torch.equal(first, again(inputs_embeds=tokens, labels=labels).logits)
    with pytest.raises(OSError, match="give a folder made by save_pretrained, or a hub name"):
        seq2seq.load(str(tmp_path / "nothing"))


def test_connectors_make_tokens_of_a_vector() -> None:
    vectors = torch.randn(6, 10) * 3 + 1
    standardised = Standardise(10).fit(vectors)(vectors)
    assert torch.allclose(standardised.mean(0), torch.zeros(10), atol=1e-6)
    assert torch.allclose(standardised.std(0), torch.ones(10), atol=1e-6)
    assert VectorToTokens(10, 3, 4)(vectors).shape == (6, 3, 4)
    expander = Expander(10, 3, 4)
    tokens = expander(vectors)
    message = tokens - expander.learned
    assert torch.allclose(message[:, 0], message[:, 2], atol=1e-6), "all tokens carry the same message"
