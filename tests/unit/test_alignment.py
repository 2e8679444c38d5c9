"""The contrastive bridge, its losses, and many of them trained at once."""

import math
from dataclasses import replace

import pytest
import torch
from bridges.benches.alignment import AlignmentRun, held_out_loss, sampled_widths, train_bridges
from bridges.connectors.pooling import AttentionPooling, MeanPooling
from bridges.connectors.resampler import CrossAttention, PerceiverResampler, ResamplerSettings
from bridges.hosts.contrastive import AlignmentSettings, ContrastiveBridge
from bridges.tasks.scenes import WIDTH, scenes
from bridges.training.ensemble import fit_ensemble
from bridges.training.fit import FitSettings, fit
from bridges.training.losses import alignment_loss, info_nce, log_as_written, matryoshka_loss, prefix_loss
from torch import nn

SMALL = AlignmentSettings(WIDTH, WIDTH, 32, ResamplerSettings(16, 4, 2, 2))
WIDTHS = (8, 16, 32)


@pytest.mark.parametrize("connector", ["perceiver", "direct"])
@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_a_bridge_gives_unit_vectors_and_bounds_its_scale(connector: str, pooling: str) -> None:
    bridge = ContrastiveBridge(replace(SMALL, connector=connector, pooling=pooling))
    image, text, scale = bridge(torch.randn(5, 16, WIDTH), torch.randn(5, WIDTH))
    for side in (image, text):
        torch.testing.assert_close(side.norm(dim=-1), torch.ones(5))
    assert scale.item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        bridge.log_scale.fill_(10.0)
    assert bridge(torch.randn(2, 16, WIDTH), torch.randn(2, WIDTH)).scale.item() == pytest.approx(100)


def test_the_order_of_patches_is_nothing_to_a_resampler() -> None:
    torch.manual_seed(0)
    resampler = PerceiverResampler(SMALL.resampler)
    inputs = torch.randn(3, 7, 16)
    torch.testing.assert_close(resampler(inputs), resampler(inputs[:, torch.randperm(7)]))


def test_with_one_key_every_latent_reads_the_same_and_queries_are_dead() -> None:
    attention = CrossAttention(SMALL.resampler)
    latents, key = torch.randn(2, 4, 16), torch.randn(2, 1, 16)
    assert (attention.weights(latents, key) == 1).all()
    attention(latents, key).square().sum().backward()
    assert attention.to_q.weight.grad.abs().max() == 0
    assert attention.to_v.weight.grad.abs().max() > 0


def test_attention_pooling_starts_near_the_mean_and_can_pick_one_token() -> None:
    tokens = torch.randn(3, 6, 8)
    pooling = AttentionPooling(8)
    nn.init.zeros_(pooling.score.weight)
    torch.testing.assert_close(pooling(tokens), MeanPooling()(tokens))
    tokens[..., 0] = torch.tensor([0.0, 0, 0, 100, 0, 0])
    with torch.no_grad():
        pooling.score.weight[0, 0] = 1.0
    torch.testing.assert_close(pooling(tokens), tokens[:, 3])


@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0])
def test_constant_embeddings_cost_the_logarithm_of_the_batch(temperature: float) -> None:
    one = torch.nn.functional.normalize(torch.randn(1, 8), dim=-1).expand(20, -1)
    other = torch.nn.functional.normalize(torch.randn(1, 8), dim=-1).expand(20, -1)
    assert info_nce(one, other, torch.tensor(1 / temperature)).item() == pytest.approx(math.log(20), abs=1e-4)


def test_the_log_writes_one_width_as_if_it_were_all() -> None:
    torch.manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(9, 32), dim=-1) for _ in range(2))
    scale = torch.tensor(10.0)
    total, entries = alignment_loss(image, text, scale, WIDTHS, sampled=16)
    assert set(entries) == {"loss_clip", "loss_mrl_16"}
    assert total.item() == pytest.approx(0.25 * entries["loss_clip"].item() + entries["loss_mrl_16"].item())
    assert log_as_written(entries)["loss_mrl"] == prefix_loss(image, text, scale, 16)
    _, every = alignment_loss(image, text, scale, WIDTHS)
    full = matryoshka_loss(image, text, scale, WIDTHS)
    assert log_as_written(every)["loss_mrl"].item() == pytest.approx(full.item())
    # The estimator is unbiased for the mean over widths, so the log's entry is a third of the sum.
    sampled = [log_as_written(alignment_loss(image, text, scale, WIDTHS, w)[1])["loss_mrl"].item() for w in WIDTHS]
    assert sum(sampled) == pytest.approx(full.item())


def test_runs_of_several_architectures_come_back_in_their_order() -> None:
    pairs = scenes(64).features()
    settings = FitSettings(6, batch=16, warmup=0)
    runs = [
        AlignmentRun(replace(SMALL, pooling=pooling), replace(settings, lr=lr), seed)
        for pooling in ("mean", "attention")
        for lr in (1e-3, 1e-2)
        for seed in (0, 1)
    ]
    seen: list[tuple[int, int]] = []
    found = train_bridges(runs, pairs, WIDTHS, look=lambda step, bridges: seen.append((step, len(bridges.runs))))
    assert seen == [(step, 4) for _ in range(2) for step in range(1, 7)]
    loss = found.measure(pairs, lambda e: held_out_loss(e, 16))
    for index, run in enumerate(runs):
        alone = train_bridges([run], pairs, WIDTHS)
        torch.testing.assert_close(found.curve(index), alone.curve(0))
        bridge = found.model(index)
        with torch.no_grad():
            assert held_out_loss(bridge(pairs.patches, pairs.text), 16) == pytest.approx(loss[index].item(), abs=1e-5)


def test_sampled_widths_of_a_shorter_run_are_the_first_of_a_longer() -> None:
    assert sampled_widths(50, WIDTHS)[:20] == sampled_widths(20, WIDTHS)


def net(seed: int, layer_norm: bool = True) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8) if layer_norm else nn.Identity(), nn.GELU(), nn.Linear(8, 1))


INPUTS, TARGETS = torch.randn(60, 5), torch.randn(60, 1)
MIXED = [
    FitSettings(20, lr=1e-2, batch=8, warmup=0, clip=math.inf, schedule="constant"),
    FitSettings(20, lr=3e-2, batch=8, warmup=5, clip=0.5, weight_decay=0.2),
    FitSettings(20, lr=1e-3, batch=8, warmup=10, clip=math.inf),
]


def squared(model, rows, step):
    return (model(INPUTS[rows]) - TARGETS[rows]).square().mean()


@pytest.mark.parametrize("chunk", [None, 2])
def test_an_ensemble_equals_adamw_one_by_one(chunk: int | None) -> None:
    found = fit_ensemble([net(s) for s in range(3)], squared, 60, MIXED, range(3), chunk=chunk)
    for index, settings in enumerate(MIXED):
        model = net(index)
        losses = fit(model, lambda rows, m=model: squared(m, rows, 0), 60, settings, index).losses
        torch.testing.assert_close(found.losses[:, index], torch.tensor(losses), rtol=0, atol=1e-6)
        for name, value in found.model(index).named_parameters():
            torch.testing.assert_close(value, dict(model.named_parameters())[name], rtol=0, atol=1e-5)


def test_a_frozen_parameter_stays_and_a_lost_model_leaves_the_others_alone() -> None:
    models = [net(s) for s in range(2)]
    for model in models:
        model[0].weight.requires_grad_(False)
    before = models[0][0].weight.clone()
    settings = [MIXED[0], replace(MIXED[0], lr=1e38)]
    found = fit_ensemble(models, squared, 60, settings, [0, 1])
    assert torch.equal(found.model(0)[0].weight, before)
    assert torch.isfinite(found.losses[:, 0]).all()
    assert not torch.isfinite(found.losses[-1, 1])


class Tied(nn.Module):
    """Two names for one parameter, one parameter that nothing uses, and a buffer that is not saved."""

    def __init__(self, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.idle = nn.Linear(5, 5), nn.Linear(5, 5)
        self.second = nn.Linear(5, 5)
        self.second.weight = self.first.weight
        self.register_buffer("scale", torch.tensor(0.5 + seed), persistent=False)

    def forward(self, x):
        return self.scale * self.second(self.first(x).relu()).sum(1, keepdim=True)


def test_tied_idle_and_unsaved_parts_are_as_fit_leaves_them() -> None:
    found = fit_ensemble(
        [Tied(s) for s in range(3)], squared, 60, [replace(s, weight_decay=0.5) for s in MIXED], range(3)
    )
    for index, settings in enumerate(MIXED):
        model = Tied(index)
        settings = replace(settings, weight_decay=0.5)
        fit(model, lambda rows, m=model: squared(m, rows, 0), 60, settings, index)
        single = found.model(index)
        for name, value in single.named_parameters():
            torch.testing.assert_close(value, dict(model.named_parameters())[name], rtol=0, atol=1e-5)
        torch.testing.assert_close(single(INPUTS), model(INPUTS), rtol=0, atol=1e-4)


def test_an_error_of_the_loss_is_told_as_it_is() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"):
        fit_ensemble([net(0), net(1)], lambda m, rows, step: m(INPUTS[rows, :3]).mean(), 60, MIXED[:2], range(2))
    with pytest.raises(ValueError, match="nothing to train"):
        fit_ensemble([net(0).requires_grad_(False)], squared, 60, MIXED[:1], [0])


def test_settings_that_cannot_be_built_are_named() -> None:
    with pytest.raises(ValueError, match="cannot be cut into 3 heads"):
        ContrastiveBridge(replace(SMALL, resampler=replace(SMALL.resampler, heads=3)))
    image = torch.randn(4, 8)
    with pytest.raises(ValueError, match="a prefix of 16 is wider than the embeddings, which have 8"):
        prefix_loss(image, image, torch.tensor(1.0), 16)


class Untraceable(nn.Module):
    """Chooses its path by the values it sees, which no vectorised graph can."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5, 1))

    def forward(self, x):
        return x @ self.weight if self.weight.sum() > 0 else x @ -self.weight


@pytest.mark.parametrize(
    ("models", "settings", "message"),
    [
        ([net(0), net(1)], MIXED[:1], "2 models, 1 settings, 2 seeds"),
        ([net(0), net(1)], [MIXED[0], replace(MIXED[0], steps=5)], "differ in steps or batch"),
        ([net(0), net(1, layer_norm=False)], MIXED[:2], "differ in architecture"),
        (
            [Untraceable(), Untraceable()],
            MIXED[:2],
            "cannot be vectorised over models .*: train it with fit, one by one",
        ),
    ],
)
def test_what_cannot_be_trained_together_is_refused(models: list, settings: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_ensemble(models, squared, 60, settings, range(len(models)))
