"""Estimates of memory and time against what is measured, by a profiler that knows nothing of the estimator."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bridges.connectors.projection import Projection
from bridges.connectors.resampler import ResamplerSettings, VectorResampler
from bridges.connectors.translator import LOG, GatedTranslator, TranslatorSettings
from bridges.hosts.contrastive import AlignmentSettings, ContrastiveBridge
from bridges.hosts.seq2seq import VectorToText
from bridges.jobs.estimate import duration, footprint, step_time
from bridges.training.fit import FitSettings, fit
from bridges.training.losses import matryoshka_loss
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import (
    CLIPConfig,
    CLIPModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

Made = tuple[nn.Module, Callable[[], Tensor]]
BF16 = torch.bfloat16
SHAPE = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 2000}
LLAMA = {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
LLAMA |= {"num_attention_heads": 32, "num_key_value_heads": 8}


def frozen(host: PreTrainedModel) -> PreTrainedModel:
    return host.eval().requires_grad_(False)


def vector_to_t5(batch: int, attention: str, device: str = "cpu") -> Made:
    config = T5Config(
        vocab_size=2000, d_model=128, d_kv=32, d_ff=512, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    host = frozen(T5ForConditionalGeneration._from_config(config, attn_implementation=attention, dtype=BF16))

    class Halved(VectorResampler):  # what is trained is in float32, and the host reads bfloat16
        def forward(self, vector: Tensor) -> Tensor:
            return super().forward(vector).to(BF16)

    model = VectorToText(Halved(256, ResamplerSettings(128, 32, 2, 4), 128), host, "inputs_embeds").to(device)
    vectors, labels = torch.randn(batch, 256, device=device), torch.ones(batch, 24, dtype=torch.long, device=device)
    return model, lambda: model(vectors, labels)


def mlp(batch: int, attention: str, device: str = "cpu") -> Made:
    model = nn.Sequential(nn.Linear(512, 1024), nn.GELU(), Projection(1024, 768, 512)).to(device)
    inputs = torch.randn(batch, 512, device=device)
    return model, lambda: model(inputs).square().mean()


def contrastive(batch: int, attention: str, device: str = "cpu") -> Made:
    bridge = ContrastiveBridge(AlignmentSettings(96, 64, 512, ResamplerSettings(128, 16, 2, 4), pooling="attention"))
    patches, text = torch.randn(batch, 65, 96, device=device), torch.randn(batch, 64, device=device)
    bridge = bridge.to(device)
    return bridge, lambda: matryoshka_loss(*bridge(patches, text), [64, 512])


def clip(
    batch: int,
    attention: str,
    device: str = "cpu",
    width: int = 64,
    layers: int = 2,
    image: int = 56,
    hidden: int = 128,
) -> Made:
    tower = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    config = CLIPConfig(
        text_config=tower | {"num_attention_heads": 4, "vocab_size": 500},
        vision_config=tower | {"num_attention_heads": width // 16, "image_size": image, "patch_size": 14},
    )
    towers = frozen(CLIPModel._from_config(config, attn_implementation=attention, dtype=BF16)).to(device)
    settings = AlignmentSettings(width, width, 4 * hidden, ResamplerSettings(hidden, 64, 4, 8))
    bridge = ContrastiveBridge(settings).to(device)
    pixels = torch.randn(batch, 3, image, image, dtype=BF16, device=device)
    ids = torch.ones(batch, 20, dtype=torch.long, device=device)

    def loss() -> Tensor:
        with torch.no_grad():
            patches = towers.vision_model(pixel_values=pixels).last_hidden_state.float()
            text = towers.text_model(input_ids=ids).pooler_output.float()
        return matryoshka_loss(*bridge(patches, text), [hidden, 4 * hidden])

    return nn.ModuleList([towers, bridge]), loss


def translator(
    batch: int,
    attention: str,
    device: str = "cpu",
    source: MistralConfig | None = None,
    target: LlamaConfig | None = None,
    settings: TranslatorSettings | None = None,
    lengths: tuple[int, int] = (24, 40),
) -> Made:
    source = source or MistralConfig(hidden_size=128, intermediate_size=384, head_dim=32, **SHAPE)
    target = target or LlamaConfig(hidden_size=96, intermediate_size=288, **SHAPE)
    reads = frozen(MistralForCausalLM._from_config(source, attn_implementation=attention, dtype=BF16)).to(device)
    says = frozen(LlamaForCausalLM._from_config(target, attn_implementation=attention, dtype=BF16)).to(device)
    settings = settings or TranslatorSettings(128, 16, 2, 4, dropout=0.1)
    bridge = GatedTranslator(source.hidden_size, settings, target.hidden_size).to(device)
    asked, answered = (torch.ones(batch, n, dtype=torch.long, device=device) for n in lengths)

    def loss() -> Tensor:
        with torch.no_grad():
            states = reads.model(input_ids=asked, attention_mask=torch.ones_like(asked)).last_hidden_state.float()
        soft = bridge(states, torch.ones_like(asked)).to(BF16)
        embedded = torch.cat([soft, says.get_input_embeddings()(answered)], 1)
        there = torch.ones(embedded.shape[:2], dtype=torch.long, device=device)
        logits = says(inputs_embeds=embedded, attention_mask=there, use_cache=False).logits
        return cross_entropy(logits[:, soft.shape[1] - 1 : -1].float().flatten(0, 1), answered.flatten())

    return nn.ModuleList([reads, says, bridge]), loss


def trained(make: Callable[[], Made]) -> None:
    module, loss = make()
    with record_function("training"):
        fit(module, lambda rows: loss(), 4, FitSettings(2, batch=2), 0)


def measured(make: Callable[[], Made], device: str, folder: Path) -> int:
    """The most bytes that a real training of two steps holds, weights included."""
    if device == "cuda":
        trained(lambda: mlp(8, "", device))  # cuBLAS takes its workspace once
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        trained(make)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        trained(make)
    seen.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    (window,) = (e for e in events if e["name"] == "training")
    held = peak = 0
    for event in sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"]):
        held += event["args"]["Bytes"]
        if window["ts"] <= event["ts"] <= window["ts"] + window["dur"]:
            peak = max(peak, held)
    return peak


CASES = [
    (vector_to_t5, 8, "eager"),
    (mlp, 16, ""),
    (mlp, 1024, ""),
    (contrastive, 96, ""),
    (clip, 24, "sdpa"),
    (translator, 4, "eager"),
    (translator, 24, "sdpa"),
]
GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize(("make", "batch", "attention"), CASES)
def test_the_estimated_memory_is_what_a_training_takes(
    make: Callable[..., Made], batch: int, attention: str, device: str, tmp_path: Path
) -> None:
    found = footprint(lambda: make(batch, attention, device))
    real = measured(lambda: make(batch, attention, device), device, tmp_path)
    print(f"{make.__name__} {batch} {attention}: estimated {found.peak / 2**20:.2f} MiB, measured {real / 2**20:.2f}")
    assert found.peak == pytest.approx(real, rel=0.05 if device == "cpu" else 0.15)
    assert found.trained == 4 * found.trained_parameters == found.gradients > 0
    assert found.optimizer == pytest.approx(2 * found.trained, rel=0.01)


def test_the_logs_sizes_come_out_without_memory() -> None:
    """Weights by arithmetic: 7.24e9 + 8.03e9 parameters in bfloat16, and four float32 numbers for each trained one."""
    settings, llama = LOG["high capacity"], LlamaConfig(**LLAMA)
    large = footprint(lambda: translator(8, "sdpa", "cpu", MistralConfig(), llama, settings, (96, 160)))
    assert large.frozen_parameters == 7_241_732_096 + 8_030_261_248
    assert large.frozen == pytest.approx(2 * large.frozen_parameters, rel=1e-3)
    assert large.peak > 2 * large.frozen_parameters + 16 * large.trained_parameters
    assert large.activations > 2**30
    vision = footprint(lambda: clip(8, "eager", "cpu", 1024, 24, 336, 1024))
    assert vision.frozen_parameters > 3e8
    print(large, vision, sep="\n")
    assert str(large).startswith("peak 4")
    assert " GiB" in str(large)
    assert large._repr_markdown_().count("\n") == 7


def test_a_loss_that_looks_at_values_is_refused_in_one_line() -> None:
    def make() -> Made:
        layer = nn.Linear(3, 3)
        return layer, lambda: layer(torch.ones(2, 3)).sum() * (1 if torch.ones(3).sum() > 2 else 0)

    with pytest.raises(ValueError, match=r"^the loss looks at values, by [^\n]*: leave such steps out of it$"):
        footprint(make)
    with pytest.raises(ValueError, match=r"^no parameter requires a gradient: everything is frozen$"):
        footprint(lambda: (nn.Linear(3, 3).requires_grad_(False), lambda: torch.ones(())))


def test_timing_steps_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(), nn.Linear(16, 1))
    inputs, calls = torch.randn(32, 8), 0

    def loss() -> Tensor:
        nonlocal calls
        calls += 1
        return model(inputs).square().mean()

    loss().backward()
    grads, state = [p.grad for p in model.parameters()], {k: v.clone() for k, v in model.state_dict().items()}
    copies, random = [g.clone() for g in grads], torch.get_rng_state()
    seconds = step_time(loss, model, steps=2)
    assert calls == 4
    assert 0 < seconds < 5
    assert all(p.grad is g and g.equal(c) for p, g, c in zip(model.parameters(), grads, copies, strict=True))
    assert all(v.equal(state[k]) for k, v in model.state_dict().items())
    assert torch.get_rng_state().equal(random)


@pytest.mark.parametrize(
    ("seconds", "steps", "text"),
    [(0.5, 3, "1.5 s"), (0.5, 84, "42 s"), (6.0, 10, "1 min"), (48.0, 100, "1 h 20 min"), (3.6, 2000, "2 h"),
     (1.0, 86400 * 2 + 3600 * 3, "2 d 3 h"), (59.9999, 60, "1 h"), (0.0, 5, "0.0 s")],
)  # fmt: skip
def test_durations_as_one_says_them(seconds: float, steps: int, text: str) -> None:
    assert duration(seconds, steps) == text
    with pytest.raises(ValueError, match="are no time"):
        duration(-1.0, 5)
