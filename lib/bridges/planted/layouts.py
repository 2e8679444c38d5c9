"""Every layout of which the check-up knows where its connector is, tiny, from transformers' own classes and configs.

A sample is three attributes of eight values: a picture or a sound in which each part shows all three, and a caption
that names them and ends. Hosts are as drawn: they are trained together with their connector, from nothing, while the
towers stay as they are.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import transformers as tf
from peft import PrefixTuningConfig, PromptTuningConfig, TaskType, get_peft_model
from torch import Tensor, nn

from bridges.instruments.batches import loss_of, samples, take
from bridges.planted import tiny
from bridges.planted.tiny import BOS, EOS, FIRST, HOST, PAD, PATCH, PLACE, SIDE

KINDS, VALUES = 3, 8  # attributes, and what each can be
HELD = 128  # combinations of attributes that are not taught, one sample of each
TAUGHT = 1024  # samples
NOISE = 0.3  # on a picture, beside 1 for all attributes together
SPARE = 4  # places of padding behind a caption
BATCH = 32


@dataclass(frozen=True)
class Layout:
    """A class of models: how one is built, and how its batches are made of attributes.

    Attributes:
        name: as in the tables.
        build: draws a model.
        batch: from attributes (N, 3) and a generator to the arguments of the model's call by name.
        tower: what stays as drawn, by the beginning of its parameters' names.
        steps, rate: of a training that makes it healthy.
        kind: "generative", "prompt" or "contrastive".
    """

    name: str
    build: Callable[[], nn.Module]
    batch: Callable[[Tensor, torch.Generator], dict[str, Any]]
    tower: tuple[str, ...] = ()
    steps: int = 150
    rate: float = 1e-2
    kind: str = "generative"


def attributes(seed: int) -> tuple[Tensor, Tensor]:
    """Attributes of the samples that are taught (1024, 3), and held out (128, 3): no combination is in both."""
    own = torch.Generator().manual_seed(seed)
    order = torch.randperm(VALUES**KINDS, generator=own)
    every = torch.cartesian_prod(*[torch.arange(VALUES)] * KINDS)[order]
    known = every[HELD:]
    return known[torch.randint(len(known), (TAUGHT,), generator=own)], every[:HELD]


def shown(which: Tensor, own: torch.Generator, *shape: int) -> Tensor:
    """What the attributes `which` (N, 3) look or sound like (N, ...): a pattern for each value, added, and noise."""
    bank = torch.randn(KINDS, VALUES, *shape, generator=torch.Generator().manual_seed(0))  # the world's, not the run's
    found = sum(bank[kind, which[:, kind]] for kind in range(KINDS)) / math.sqrt(KINDS)
    return found + NOISE * torch.randn(len(which), *shape, generator=own)


def pictures(which: Tensor, own: torch.Generator) -> Tensor:
    """Pictures (N, 3, 32, 32), each patch the same."""
    return shown(which, own, 3, PATCH, PATCH).repeat(1, 1, SIDE // PATCH, SIDE // PATCH)


def captions(which: Tensor) -> Tensor:
    """Their ids (N, 4): a word for each attribute, of words that it alone has, and the end."""
    named = which + FIRST + VALUES * torch.arange(KINDS)
    return torch.cat([named, torch.full((len(which), 1), EOS)], 1)


def read(which: Tensor, places: int, types: str = "") -> dict[str, Tensor]:
    """The text's part of a batch: a beginning, places for the picture, the caption, and padding behind it.

    `types` names an argument that tells pictures' places from text.
    """
    count = len(which)
    head = torch.cat([torch.full((count, 1), BOS), torch.full((count, places), PLACE)], 1)
    ids = torch.cat([head, captions(which), torch.full((count, SPARE), PAD)], 1)
    labels = ids.clone()
    labels[:, : 1 + places] = -100
    labels[:, -SPARE:] = -100
    mask = (ids != PAD).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": labels} | (
        {types: (ids == PLACE).long()} if types else {}
    )


def _pictured(places: int, more: Callable[[Tensor, Tensor], dict[str, Any]] | None = None, types: str = "") -> Any:
    def batch(which: Tensor, own: torch.Generator) -> dict[str, Any]:
        seen = pictures(which, own)
        found = read(which, places, types) | {"pixel_values": seen}
        return found | (more(which, seen) if more else {})

    return batch


def _tiles(which: Tensor, seen: Tensor) -> dict[str, Any]:
    """The whole picture, and its one tile at full size."""
    return {"pixel_values": torch.stack([seen, seen], 1), "image_sizes": torch.full((len(seen), 2), SIDE)}


def _asked(which: Tensor, seen: Tensor) -> dict[str, Any]:
    ids = torch.full((len(which), 2), BOS)
    return {"qformer_input_ids": ids, "qformer_attention_mask": torch.ones_like(ids)}


def _patches(which: Tensor, own: torch.Generator) -> dict[str, Any]:
    """Each picture as a row of patches, twice in time, as Qwen2-VL's processor hands them over."""
    patch = shown(which, own, 3, 1, PATCH, PATCH).repeat(1, 1, 2, 1, 1).flatten(1)
    grid = torch.tensor([[1, SIDE // PATCH, SIDE // PATCH]]).expand(len(which), -1)
    seen = patch.repeat_interleave((SIDE // PATCH) ** 2, 0)
    return read(which, 4, "mm_token_type_ids") | {"pixel_values": seen, "image_grid_thw": grid}


def _sounds(which: Tensor, own: torch.Generator) -> dict[str, Any]:
    heard = shown(which, own, 16, 4).repeat(1, 1, 8)  # (N, bands, frames)
    there = torch.ones(len(which), heard.shape[-1], dtype=torch.long)
    return read(which, 8) | {"input_features": heard, "feature_attention_mask": there}


def _captioned(which: Tensor, own: torch.Generator) -> dict[str, Any]:
    spare = torch.full((len(which), SPARE), -100)
    return {"pixel_values": pictures(which, own), "labels": torch.cat([captions(which), spare], 1)}


def _pairs(which: Tensor, own: torch.Generator) -> dict[str, Any]:
    return {"pixel_values": pictures(which, own), "input_ids": captions(which), "return_loss": True}


TOPICS, TOPIC = 4, 40  # what a prompt's host can be asked to speak of, and the first id that asks for it


def _spoken(which: Tensor, topic: Tensor) -> Tensor:
    """Attributes (N, 3) of which each topic leaves two values each."""
    return which % 2 + 2 * topic[:, None]


def _prompted(kind: str) -> nn.Module:
    """A Llama that speaks of the topic it is asked for, else of anything; and a prompt to ask in the topic's place."""
    host = tf.LlamaForCausalLM(tf.LlamaConfig(**HOST))
    topic, anything = torch.arange(TAUGHT) % TOPICS, torch.randint(VALUES, (TAUGHT, KINDS))
    asked = torch.arange(TAUGHT)[:, None] < TAUGHT // 2
    ids = captions(torch.where(asked, _spoken(anything, topic), anything))
    ids = torch.cat([torch.full((TAUGHT, 1), BOS), torch.where(asked, TOPIC + topic[:, None], BOS), ids], 1)
    labels = ids.clone()
    labels[:, :2] = -100
    train(host, {"input_ids": ids, "labels": labels}, 100, 1e-2, 0)
    host.zero_grad()
    made = {"prompt": PromptTuningConfig, "prefix": PrefixTuningConfig}[kind]
    return get_peft_model(host, made(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=4))


def _of_one_topic(which: Tensor, own: torch.Generator) -> dict[str, Any]:
    found = read(_spoken(which, torch.full((len(which),), TOPICS - 1)), 0)
    return {name: value[:, 1:] for name, value in found.items()}  # the prompt is its beginning


def train(
    model: nn.Module,
    batch: dict[str, Any],
    steps: int,
    rate: float,
    seed: int,
    only: Callable[[str], bool] | None = None,
) -> tuple[list[float], torch.optim.Optimizer]:
    """AdamW down to a rate of zero, as schedules end; the loss of every step, and the optimiser.

    Args:
        model: put into training mode, and into evaluation mode in the end.
        batch: what it is taught.
        steps, rate, seed: of the training, and of the order of samples.
        only: which parameters the optimiser holds, by name; without it, all that require a gradient.
    """
    held = [p for name, p in model.named_parameters() if p.requires_grad and (only is None or only(name))]
    optimizer = torch.optim.AdamW(held, lr=rate, weight_decay=0.0)
    down = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    own, losses = torch.Generator().manual_seed(seed), []
    torch.manual_seed(seed)  # of dropout
    model.train()
    for _ in range(steps):
        loss = loss_of(model(**take(batch, torch.randint(samples(batch), (BATCH,), generator=own))))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(held, 1.0)
        optimizer.step()
        down.step()
        losses.append(loss.item())
    model.eval()
    return losses, optimizer


def drawn(layout: Layout, seed: int) -> nn.Module:
    """A model as drawn, its tower frozen."""
    torch.manual_seed(seed)
    model = layout.build()
    for name, p in model.named_parameters():
        if name.startswith(layout.tower):
            p.requires_grad_(False)
    return model.eval()


_EYES = ("model.vision_tower",)
LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("LLaVA", tiny.llava, _pictured(4), _EYES),
        Layout("LLaVA-NeXT", tiny.llava_next, _pictured(10, _tiles), _EYES),
        Layout(
            "BLIP-2", partial(tiny.blip, tf.Blip2Config, tf.Blip2ForConditionalGeneration), _pictured(4), ("vision",)
        ),
        Layout(
            "InstructBLIP",
            partial(tiny.blip, tf.InstructBlipConfig, tf.InstructBlipForConditionalGeneration),
            _pictured(4, _asked),
            ("vision",),
        ),
        Layout("Idefics 2", tiny.idefics2, _pictured(4, lambda _, x: {"pixel_values": x[:, None]}), ("model.vision",)),
        Layout("Idefics 3", tiny.idefics3, _pictured(4, lambda _, x: {"pixel_values": x[:, None]}), ("model.vision",)),
        Layout("PaliGemma", tiny.paligemma, _pictured(4, types="token_type_ids"), _EYES),
        Layout("Gemma 3", tiny.gemma3, _pictured(4, types="token_type_ids"), _EYES),
        Layout("Qwen2-VL", tiny.qwen2_vl, _patches, ("model.visual.patch_embed", "model.visual.blocks")),
        Layout("Qwen2-Audio", tiny.qwen2_audio, _sounds, ("model.audio_tower", "audio_tower")),
        Layout("VisionEncoderDecoder", tiny.encoder_decoder, _captioned, ("encoder",)),
        Layout("prompt tuning", partial(_prompted, "prompt"), _of_one_topic, ("base_model",), 300, 2e-2, "prompt"),
        Layout("prefix tuning", partial(_prompted, "prefix"), _of_one_topic, ("base_model",), 300, 2e-2, "prompt"),
        Layout("CLIP", partial(tiny.two_towers, "CLIP"), _pairs, ("vision_model",), kind="contrastive"),
        Layout(
            "SigLIP",
            partial(tiny.two_towers, "SigLIP"),
            _pairs,
            ("vision_model.emb", "vision_model.enc"),
            200,
            5e-3,
            "contrastive",
        ),
        Layout(
            "VisionTextDualEncoder", partial(tiny.two_towers, "dual"), _pairs, ("vision_model",), kind="contrastive"
        ),
    )
}
