"""Our resampler against the two that people copy: flamingo-pytorch's and Idefics's.

With the latents among the keys, latents of unit scale, a feed-forward without biases and a LayerNorm at the end, ours
computes what they compute. Where they differ, `book/recorded/resampler_designs.yml` says how.
"""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from bridges.connectors.resampler import PerceiverResampler, ResamplerSettings
from flamingo_pytorch import PerceiverResampler as FlamingoResampler
from press.data import recorded
from torch import Tensor, nn
from transformers import IdeficsConfig
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

WIDTH, LATENTS, DEPTH, HEADS = 32, 6, 3, 4
OURS = ResamplerSettings(WIDTH, LATENTS, DEPTH, HEADS, feed_forward=4, latent_std=1.0, latents_as_keys=True)
TIGHT = {"rtol": 1e-5, "atol": 1e-5}

# Their parameters' names, and ours: module 0 is our resampler, module 1 the LayerNorm after it.
FLAMINGO = {
    r"^layers\.(\d+)\.0\.norm_media": r"0.attentions.\1.norm_inputs",
    r"^layers\.(\d+)\.0": r"0.attentions.\1",
    r"^layers\.(\d+)\.1": r"0.feed_forwards.\1",
    r"^norm": "1",
    r"^latents": "0.latents",
}
IDEFICS = {
    r"^blocks\.(\d+)\.0\.context_layer_norm": r"0.attentions.\1.norm_inputs",
    r"^blocks\.(\d+)\.0\.latents_layer_norm": r"0.attentions.\1.norm_latents",
    r"^blocks\.(\d+)\.0\.output_proj": r"0.attentions.\1.to_out",
    r"^blocks\.(\d+)\.0\.([qkv])_proj": r"0.attentions.\1.to_\2",
    r"^blocks\.(\d+)\.1\.ln": r"0.feed_forwards.\1.0",
    r"^blocks\.(\d+)\.1\.fc": r"0.feed_forwards.\1.1",
    r"^blocks\.(\d+)\.1\.c_proj": r"0.feed_forwards.\1.3",
    r"^layer_norm": "1",
    r"^latents": "0.latents",
}


def unlike_the_start(model: nn.Module) -> nn.Module:
    """LayerNorms begin as ones and zeros; drawn at random, a swapped or forgotten one shows."""
    for norm in model.modules():
        if isinstance(norm, nn.LayerNorm):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
    return model


def flamingo() -> nn.Module:
    torch.manual_seed(0)
    model = FlamingoResampler(dim=WIDTH, depth=DEPTH, dim_head=WIDTH // HEADS, heads=HEADS, num_latents=LATENTS)
    return unlike_the_start(model)


def without_positions() -> nn.Module:
    model = flamingo()
    nn.init.zeros_(model.media_pos_emb)
    return model


def idefics() -> nn.Module:
    torch.manual_seed(0)
    config = IdeficsConfig(vision_config={"embed_dim": WIDTH})
    return unlike_the_start(IdeficsPerceiverResampler(config, WIDTH, DEPTH, HEADS, WIDTH // HEADS, LATENTS))


def in_our_names(tensors: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    ours = {}
    for name, tensor in tensors.items():
        for their_name, our_name in names.items():
            name = re.sub(their_name, our_name, name)
        if name.endswith("to_kv.weight"):  # Flamingo keeps keys and values in one map
            ours[name.replace("to_kv", "to_k")], ours[name.replace("to_kv", "to_v")] = tensor.chunk(2)
        elif name != "media_pos_emb":
            ours[name] = tensor
    return ours


def as_theirs(
    theirs: nn.Module, names: dict[str, str], activation: nn.Module, settings: ResamplerSettings = OURS
) -> nn.Sequential:
    """Our resampler with their weights, and what ours lacks or has beyond theirs put right."""
    resampler = PerceiverResampler(settings)
    for feed_forward in resampler.feed_forwards:
        feed_forward[1].bias = feed_forward[3].bias = None
        feed_forward[2] = activation
    ours = nn.Sequential(resampler, nn.LayerNorm(WIDTH))
    ours.load_state_dict(in_our_names(theirs.state_dict(), names))  # strict: every weight of either has its fellow
    return ours


def patches(*shape: int) -> Tensor:
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(1))


both = pytest.mark.parametrize(
    ("make", "names", "activation"),
    [(without_positions, FLAMINGO, nn.GELU()), (idefics, IDEFICS, nn.ReLU())],
    ids=["flamingo-pytorch", "idefics"],
)
Make = Callable[[], nn.Module]


@both
def test_the_whole_resampler_is_theirs(make: Make, names: dict[str, str], activation: nn.Module) -> None:
    theirs = make()
    ours = as_theirs(theirs, names, activation)
    inputs, direction = patches(5, 11), torch.randn(5, LATENTS, WIDTH)
    our_inputs, their_inputs = inputs.clone().requires_grad_(), inputs.clone().requires_grad_()
    our_output, their_output = ours(our_inputs), theirs(their_inputs).view(5, LATENTS, WIDTH)
    torch.testing.assert_close(our_output, their_output, **TIGHT)

    (our_output * direction).sum().backward()
    (their_output * direction).sum().backward()
    torch.testing.assert_close(our_inputs.grad, their_inputs.grad, **TIGHT)
    our_gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    their_gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    torch.testing.assert_close(our_gradients, in_our_names(their_gradients, names), **TIGHT)


def test_the_attention_block_is_flamingos() -> None:
    theirs = flamingo()
    ours = as_theirs(theirs, FLAMINGO, nn.GELU())
    latents, inputs = torch.randn(5, LATENTS, WIDTH), patches(5, 11)
    expected = theirs.layers[1][0](inputs.unsqueeze(1), latents.unsqueeze(1)).squeeze(1)  # one image each
    torch.testing.assert_close(ours[0].attentions[1](latents, inputs), expected, **TIGHT)


def test_the_attention_block_is_that_of_idefics() -> None:
    theirs = idefics()
    ours = as_theirs(theirs, IDEFICS, nn.ReLU())
    latents, inputs = torch.randn(5, LATENTS, WIDTH), patches(5, 11)
    torch.testing.assert_close(ours[0].attentions[1](latents, inputs), theirs.blocks[1][0](inputs, latents), **TIGHT)


def test_flamingo_reads_each_image_alone_with_its_position_added() -> None:
    theirs = flamingo()
    ours = as_theirs(theirs, FLAMINGO, nn.GELU())
    images = patches(2, 3, 11)  # (B, T, S, width)
    placed = images + theirs.media_pos_emb[:3]  # (T, 1, width): every patch of an image has the same
    torch.testing.assert_close(ours(placed.flatten(0, 1)).unflatten(0, (2, 3)), theirs(images), **TIGHT)


def test_latents_of_unit_scale_are_drawn_as_theirs() -> None:
    drawn = [flamingo().latents, idefics().latents]
    torch.manual_seed(0)
    drawn.append(PerceiverResampler(OURS).latents)
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


def test_reading_the_inputs_alone_is_another_function() -> None:
    """The logs' design, with Flamingo's own weights."""
    theirs = without_positions()
    logs = as_theirs(theirs, FLAMINGO, nn.GELU(), replace(OURS, latents_as_keys=False))
    inputs = patches(5, 11)
    assert (logs(inputs) - theirs(inputs).squeeze(1)).abs().mean() > 0.1


@pytest.mark.parametrize("latents_as_keys", [True, False])
def test_latents_hear_of_each_other_only_as_keys(latents_as_keys: bool) -> None:
    """Change one latent: in Flamingo all others answer otherwise, in the logs' design none does, at any depth."""
    theirs = without_positions()
    ours = as_theirs(theirs, FLAMINGO, nn.GELU(), replace(OURS, latents_as_keys=latents_as_keys))
    inputs = patches(5, 11)
    before = ours(inputs)
    with torch.no_grad():
        ours[0].latents[0] += patches(1)[0]
    moved = (ours(inputs) - before).abs().amax(-1)  # (B, L)
    assert (moved[:, 0] > 0.1).all()
    assert ((moved[:, 1:] > 1e-3) if latents_as_keys else (moved[:, 1:] < 1e-5)).all()


def test_idefics_differs_by_its_relu() -> None:
    theirs = idefics()
    inputs = patches(5, 11)
    assert (as_theirs(theirs, IDEFICS, nn.GELU())(inputs) - theirs(inputs)).abs().mean() > 0.01


def test_the_table_of_designs_is_whole() -> None:
    table = recorded("resampler_designs")
    assert table["columns"][0] == "question"
    assert all(
        len(row) == len(table["columns"]) and all(isinstance(cell, str) for cell in row) for row in table["rows"]
    )
