"""Connectors of the first thread, and translators trained side by side as `fit` would train each alone."""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bridges.benches.translation import Recipe, Sentences, Translation, train_translators, untrained
from bridges.connectors.projection import AttentionBridge, Projection
from bridges.connectors.resampler import RESAMPLERS, ResamplerSettings, VectorResampler
from bridges.hosts import sentence, seq2seq
from bridges.hosts.sentence import SentenceEncoder
from bridges.hosts.seq2seq import VectorToText
from bridges.tasks import instructions
from bridges.training.ensemble import fit_ensemble
from bridges.training.fit import LOG_GROUPS, FitSettings, Group, fit
from torch import nn
from transformers import PreTrainedModel

WORDS = instructions.tokenizer()
TEXTS = instructions.corpus(40, 1).train
torch.manual_seed(0)
HOSTS = {name: seq2seq.build(name, "quick", WORDS).train() for name in ("t5", "bart")}
ENCODER = SentenceEncoder(sentence.build("quick", WORDS), WORDS.pad_token_id).eval()
SENTENCES = Sentences(
    TEXTS,
    ENCODER.encode(TEXTS, WORDS),
    instructions.labels(TEXTS, WORDS),
    WORDS(list(TEXTS), padding=True, return_tensors="pt")["input_ids"],
)
SETTINGS = FitSettings(3, lr=1e-2, batch=8, warmup=1, clip=0.5)
RECIPE = Recipe(SETTINGS, ResamplerSettings(16, 3, 2, 2))
UNFROZEN = replace(RECIPE, unfrozen=True, fit=replace(SETTINGS, groups=LOG_GROUPS))


def one_by_one(recipe: Recipe, seed: int) -> tuple[VectorToText, list[float]]:
    model, inputs = untrained(recipe, seed, SENTENCES, HOSTS, ENCODER), SENTENCES.inputs(recipe)
    return model, fit(model, lambda r: model(inputs[r], SENTENCES.labels[r]), len(TEXTS), recipe.fit, seed).losses


def count(make: Callable[[], nn.Module]) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in make().parameters())


def test_connectors_have_the_logs_sizes() -> None:
    log = RESAMPLERS["resampler-log"]
    assert count(lambda: Projection(1024, 768, 512)) == 1_180_928
    assert count(lambda: VectorResampler(1024, log, 512)) == 10_681_088
    # The projection, 64 tokens and an attention of four maps without biases.
    assert count(lambda: AttentionBridge(1024, 768, 64, 512, 8)) == 1_180_928 + 64 * 512 + 4 * 512**2


@pytest.mark.parametrize(("connector", "tokens"), [("projection", 1), ("bridge", 3), ("perceiver", 3), ("mlp", 3)])
def test_every_connector_makes_its_tokens_of_each_vector_alone(connector: str, tokens: int) -> None:
    made, vectors = replace(RECIPE, connector=connector).build(10, 8), torch.randn(5, 10)
    out = made(vectors)
    assert out.shape == (5, tokens, 8)
    torch.testing.assert_close(made(vectors[[3]]), out[[3]])
    assert (out[0] - out[1]).abs().max() > 1e-4


def test_tokens_of_a_bridge_follow_their_learned_tokens() -> None:
    bridge, vectors, order = AttentionBridge(6, 5, 4, 8, 2), torch.randn(2, 6), torch.tensor([2, 0, 3, 1])
    out = bridge(vectors)
    with torch.no_grad():
        bridge.learned.copy_(bridge.learned[order])
    torch.testing.assert_close(bridge(vectors), out[:, order])


@pytest.mark.parametrize("residual", [True, False])
def test_without_residual_one_key_makes_all_tokens_equal_and_the_first_layer_dead(residual: bool) -> None:
    connector = VectorResampler(10, replace(RECIPE.resampler, residual=residual, latent_std=1.0), 8)
    inside, vectors = connector.resampler, torch.randn(5, 10)
    last, out = inside.attentions[1], connector(vectors)
    read = last.to_out(last.to_v(last.norm_inputs(connector.into(vectors))))
    tokens = connector.out(inside.feed_forwards[1](read))[:, None].expand_as(out)
    assert torch.allclose(out, tokens, atol=1e-6) != residual
    assert torch.allclose(out, out[:, :1].expand_as(out), atol=1e-6) != residual
    out.square().sum().backward()
    first = [inside.latents, *inside.attentions[0].parameters(), *inside.feed_forwards[0].parameters()]
    assert any(p.grad is not None and p.grad.abs().max() > 1e-6 for p in first) == residual
    assert last.to_v.weight.grad.abs().max() > 1e-6


@pytest.mark.parametrize("host", ["t5", "bart"])
@pytest.mark.parametrize("connector", ["bridge", "perceiver", "mlp"])
def test_translators_side_by_side_are_those_trained_alone(host: str, connector: str) -> None:
    recipe = replace(RECIPE, host=host, connector=connector)
    loud = replace(recipe, logged_scale=True, fit=replace(SETTINGS, lr=3e-2, clip=math.inf, weight_decay=0.3))
    runs = [(recipe, 0), (replace(recipe, connector="projection", route="bypass"), 1), (loud, 1)]
    for (asked, seed), found in zip(runs, train_translators(runs, SENTENCES, HOSTS), strict=True):
        assert (found.recipe, found.seed) == (asked, seed)
        model, losses = one_by_one(asked, seed)
        assert found.losses == pytest.approx(losses, abs=1e-5)
        with torch.no_grad():
            inputs = SENTENCES.vectors, SENTENCES.labels
            torch.testing.assert_close(found.model(*inputs), model(*inputs), rtol=0, atol=1e-4)


def test_two_routes_are_one_and_nothing_given_is_changed() -> None:
    before = {name: {k: v.clone() for k, v in host.state_dict().items()} for name, host in HOSTS.items()}
    recipes = [replace(RECIPE, route=route) for route in ("inputs_embeds", "encoder_outputs", "bypass")]
    embeds, outputs, bypass = train_translators([(r, 0) for r in recipes], SENTENCES, HOSTS)
    assert embeds.losses == outputs.losses
    assert embeds.losses != bypass.losses
    assert all(torch.equal(v, before[name][k]) for name, host in HOSTS.items() for k, v in host.state_dict().items())
    assert all(host.training for host in HOSTS.values()), "a copy is made still, not the host"


@pytest.mark.parametrize("host", ["t5", "bart"])
def test_an_unfrozen_encoder_learns_at_its_own_rate_from_its_own_start(host: str) -> None:
    late = [replace(SETTINGS, groups=(Group("encoder.", rate, start=1),)) for rate in (1.0, 0.2)]
    runs = [(replace(UNFROZEN, host=host, fit=settings), 0) for settings in (*late, UNFROZEN.fit)]
    assert len({recipe.architecture for recipe, _ in runs}) == 2

    def away(_: Recipe, model: VectorToText) -> float:
        pairs = zip(model.encoder.parameters(), ENCODER.parameters(), strict=True)
        return math.sqrt(sum((a - b).detach().square().sum().item() for a, b in pairs))

    found = train_translators(runs, SENTENCES, HOSTS, ENCODER, looks=(1, 2), look=away)
    full, fifth, log = (trained.looks for trained in found)
    assert [full[1], fifth[1]] == [0, 0]
    assert fifth[2] == pytest.approx(0.2 * full[2], rel=1e-2)
    assert log[1] > 0
    for (recipe, seed), trained in zip(runs, found, strict=True):
        assert trained.losses == pytest.approx(one_by_one(recipe, seed)[1], abs=1e-5)


def test_looks_are_taken_where_asked_of_the_models_as_they_are() -> None:
    seen: list[float] = []

    def look(recipe: Recipe, model: VectorToText) -> dict[str, torch.Tensor]:
        seen.append(recipe.fit.lr)
        return model.state_dict()

    runs = [(replace(RECIPE, fit=replace(SETTINGS, lr=lr, schedule="constant")), 0) for lr in (1e-2, 2e-2)]
    found = train_translators(runs, SENTENCES, HOSTS, looks=(3, 2, 9), look=look)
    assert seen == [1e-2, 2e-2, 1e-2, 2e-2]
    shorter = [(replace(recipe, fit=replace(recipe.fit, steps=2)), seed) for recipe, seed in runs]
    for long, short in zip(found, train_translators(shorter, SENTENCES, HOSTS), strict=True):
        assert list(long.looks) == [2, 3]
        assert short.looks == {}
        for step, model in ((2, short.model), (3, long.model)):
            torch.testing.assert_close(long.looks[step], model.state_dict())


def test_recipes_of_one_seed_start_alike_and_only_values_share_a_graph() -> None:
    loud = replace(RECIPE, logged_scale=True, route="bypass")
    first, second = (untrained(recipe, 3, SENTENCES, HOSTS, None).connector for recipe in (RECIPE, loud))
    for a, b in zip(first[1].parameters(), second[1].parameters(), strict=True):
        assert torch.equal(a, b)
    torch.testing.assert_close(first[0](SENTENCES.vectors).std(0), torch.ones(64))
    assert torch.equal(second[0](SENTENCES.vectors), SENTENCES.vectors)
    alike = replace(RECIPE.resampler, latent_std=1.0)
    same = replace(RECIPE, logged_scale=True, resampler=alike, fit=replace(SETTINGS, lr=1.0, schedule="constant"))
    assert same.architecture == RECIPE.architecture
    for other in ({"host": "bart"}, {"route": "bypass"}, {"connector": "mlp"}, {"unfrozen": True}):
        assert replace(RECIPE, **other).architecture != RECIPE.architecture


def doubled(translator: VectorToText, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """A loss of a recipe's own."""
    return 2 * translator(inputs, labels) + translator.connector(inputs).square().mean()


def test_a_recipes_own_loss_is_what_is_minimised() -> None:
    recipe = replace(RECIPE, loss=doubled)
    (found,) = train_translators([(recipe, 3)], SENTENCES, HOSTS, looks=[2], look=lambda _, model: type(model))
    alone, inputs = untrained(recipe, 3, SENTENCES, HOSTS, None), SENTENCES.inputs(recipe)

    def batch_loss(rows: torch.Tensor) -> torch.Tensor:
        return doubled(alone, inputs[rows], SENTENCES.labels[rows])

    told = fit(alone, batch_loss, len(TEXTS), recipe.fit, 3)
    assert found.losses == pytest.approx(told.losses, abs=1e-5)
    assert found.looks == {2: VectorToText}
    assert type(found.model) is VectorToText
    translated = alone(inputs, SENTENCES.labels).item()
    assert found.model(inputs, SENTENCES.labels).item() == pytest.approx(translated, abs=1e-4)


def test_what_a_recipe_lacks_is_named() -> None:
    with pytest.raises(ValueError, match="trains the sentence encoder: give `encoder`"):
        train_translators([(UNFROZEN, 0)], SENTENCES, HOSTS)
    with pytest.raises(ValueError, match="reads ids: give `ids` with the sentences"):
        train_translators([(UNFROZEN, 0)], replace(SENTENCES, ids=None), HOSTS, ENCODER)
    with pytest.raises(ValueError, match=r"begins with 'encoder\.': the names begin with connector, host"):
        train_translators([(replace(UNFROZEN, unfrozen=False), 0)], SENTENCES, HOSTS)
    odd = replace(RECIPE)
    object.__setattr__(odd, "connector", "perciever")
    with pytest.raises(ValueError, match="'perciever' is unknown; choose from projection, bridge, perceiver, mlp"):
        odd.build(10, 8)


def two_parts(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    parts = {"encoder": nn.Linear(64, 8), "norm": nn.LayerNorm(8), "head": nn.Linear(8, 1)}
    return nn.Sequential(OrderedDict(parts))


def squared(model: Callable, rows: torch.Tensor, step: int) -> torch.Tensor:
    return (model(SENTENCES.vectors[rows]) - SENTENCES.vectors[rows, :1]).square().mean()


def test_an_ensemble_has_the_groups_of_fit() -> None:
    def groups(encoder: float, head: float) -> tuple[Group, ...]:
        return Group("encoder.weight", encoder, start=3), Group("head.", head, start=7), Group("encoder.", 3.0)

    base = FitSettings(12, lr=1e-2, batch=8, warmup=5, weight_decay=0.3)
    settings = [
        replace(base, groups=groups(0.2, 1.0), clip=math.inf),
        replace(base, groups=groups(1.0, 5.0), clip=0.1, lr=3e-2),
        replace(base, groups=groups(0.0, 0.5), schedule="constant"),
    ]
    found = fit_ensemble([two_parts(s) for s in range(3)], squared, len(TEXTS), settings, range(3))
    for index, asked in enumerate(settings):
        model = two_parts(index)
        losses = fit(model, lambda rows, m=model: squared(m, rows, 0), len(TEXTS), asked, index).losses
        torch.testing.assert_close(found.losses[:, index], torch.tensor(losses), rtol=0, atol=1e-6)
        for name, value in found.model(index).named_parameters():
            torch.testing.assert_close(value, model.get_parameter(name), rtol=0, atol=1e-5)
    assert torch.equal(found.model(2).encoder.weight, two_parts(2).encoder.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": (Group("head.", start=1),)}, "only the groups' rates may differ"),
        ({"every": 2}, "an ensemble takes no looks of its own"),
        ({"patience": 2}, "an ensemble takes no looks of its own"),
        ({"schedule": "plateau"}, "an ensemble takes no looks of its own"),
    ],
)
def test_an_ensemble_refuses_what_only_fit_can_follow(change: dict, message: str) -> None:
    one = replace(SETTINGS, groups=(Group("head."),))
    settings = [one, replace(one, **change)]
    with pytest.raises(ValueError, match=message):
        fit_ensemble([two_parts(0), two_parts(1)], squared, len(TEXTS), settings, [0, 1])
    for groups, told in ((Group("haed."),), "begins with 'haed.'"), ((Group("", start=1),), "frozen at the first step"):
        with pytest.raises(ValueError, match=told):
            fit_ensemble([two_parts(0)], squared, len(TEXTS), [replace(SETTINGS, groups=groups)], [0])


def test_a_translator_told_by_another_exam_is_the_same_translator(tmp_path: Path) -> None:
    class Small(Translation):
        def host(self, family: str, seed: int) -> PreTrainedModel:
            return HOSTS[family]

    bench = Small(tmp_path, held_out=6)
    used = {*bench.corpus.train, *bench.corpus.validation}
    assert len(bench.other.texts) == 6
    assert not used & {*bench.other.texts}
    once, twice = (bench.train({"a": RECIPE}, (1003,), looks=(2,), other_exam=other) for other in (False, True))
    first, other = (twice.course("a", seed) for seed in (1003, 2003))
    assert all(first[name].equals(course) for name, course in once.course("a", 1003).items())
    model, exam = twice.model("a", 2003), bench.other
    with torch.no_grad():
        assert other["loss"].iloc[-1] == float(model(exam.inputs(RECIPE), exam.labels))
    assert first["loss"].iloc[-1] != other["loss"].iloc[-1]
