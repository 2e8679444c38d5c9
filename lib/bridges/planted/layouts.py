"""Every layout of which the check-up knows where its connector is, tiny, from transformers' own classes and configs.

A sample is three attributes of eight values: a picture or a sound in which each part shows all three, and a caption
that names them and ends. Hosts are as drawn: they are trained together with their connector, from nothing, while the
towers stay as they are. Nothing is downloaded.
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

from bridges.instruments.attached import loss_of, samples, take

PAD, BOS, EOS, FIRST, BOI, EOI, PLACE, WORDS = 0, 1, 2, 4, 58, 59, 60, 64  # ids, and how many there are
KINDS, VALUES = 3, 8  # attributes, and what each can be
HELD = 128  # combinations of attributes that are not taught, one sample of each
TAUGHT = 1024  # samples
NOISE = 0.3  # on a picture, beside 1 for all attributes together
PATCH, SIDE = 8, 32  # pixels
SPARE = 4  # places of padding behind a caption
WIDE = 32
BATCH = 32
CAPTION = KINDS + 1

TRUNK: dict[str, Any] = {"hidden_size": WIDE, "intermediate_size": 64, "num_attention_heads": 4}
TRUNK |= {"initializer_range": 0.1}
EYE = TRUNK | {"num_hidden_layers": 1, "image_size": SIDE, "patch_size": PATCH}
FEW = EYE | {"patch_size": 2 * PATCH}  # four places
WORD: dict[str, Any] = TRUNK | {"num_hidden_layers": 2, "vocab_size": WORDS, "max_position_embeddings": 64}
WORD |= {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "attention_dropout": 0.1}
HOST = WORD | {"num_key_value_heads": 4, "tie_word_embeddings": False}
HERE = {"image_token_id": PLACE, "image_token_index": PLACE}


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
    """What the attributes `which` (N, 3) look or sound like (N, *shape): a pattern for each value, added, and noise."""
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


def _llava() -> nn.Module:
    config = tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(**FEW), text_config=tf.LlamaConfig(**HOST), vision_feature_layer=-1, **HERE
    )
    return tf.LlavaForConditionalGeneration(config)


def _llava_next() -> nn.Module:
    config = tf.LlavaNextConfig(
        vision_config=tf.CLIPVisionConfig(**FEW),
        text_config=tf.LlamaConfig(**HOST),
        vision_feature_layer=-1,
        image_grid_pinpoints=[[SIDE, SIDE]],
        **HERE,
    )
    return tf.LlavaNextForConditionalGeneration(config)


def _tiles(which: Tensor, seen: Tensor) -> dict[str, Any]:
    """The whole picture, and its one tile at full size."""
    return {"pixel_values": torch.stack([seen, seen], 1), "image_sizes": torch.full((len(seen), 2), SIDE)}


def _blip(config: Any, model: Any) -> nn.Module:
    asks = TRUNK | {"num_hidden_layers": 1, "encoder_hidden_size": WIDE, "vocab_size": WORDS}
    asks |= {"cross_attention_frequency": 1}
    text = tf.LlamaConfig(**HOST).to_dict()
    found = model(config(vision_config=EYE, qformer_config=asks, text_config=text, num_query_tokens=4, **HERE))
    nn.init.normal_(found.query_tokens)  # drawn as zeros, whose norm a LayerNorm cannot tell
    return found


def _asked(which: Tensor, seen: Tensor) -> dict[str, Any]:
    ids = torch.full((len(which), 2), BOS)
    return {"qformer_input_ids": ids, "qformer_attention_mask": torch.ones_like(ids)}


def _idefics2() -> nn.Module:
    latents = {"hidden_size": WIDE, "resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 4}
    latents |= {"resampler_head_dim": 8, "num_key_value_heads": 4, "initializer_range": 0.1}
    text = tf.MistralConfig(**HOST)
    return tf.Idefics2ForConditionalGeneration(
        tf.Idefics2Config(vision_config=EYE, perceiver_config=latents, text_config=text, image_token_id=PLACE)
    )


def _idefics3() -> nn.Module:
    return tf.Idefics3ForConditionalGeneration(
        tf.Idefics3Config(
            vision_config=EYE, text_config=tf.LlamaConfig(**HOST), scale_factor=2, image_token_id=PLACE, pad_token_id=PAD
        )
    )


def _paligemma() -> nn.Module:
    text = tf.GemmaConfig(**HOST | {"head_dim": 8, "tie_word_embeddings": True})
    eye = tf.SiglipVisionConfig(**FEW)
    return tf.PaliGemmaForConditionalGeneration(
        tf.PaliGemmaConfig(vision_config=eye, text_config=text, projection_dim=WIDE, **HERE)
    )


def _gemma3() -> nn.Module:
    text = tf.Gemma3TextConfig(**HOST | {"head_dim": 8, "tie_word_embeddings": True, "query_pre_attn_scalar": 8})
    config = tf.Gemma3Config(
        text_config=text,
        vision_config=tf.SiglipVisionConfig(**EYE),
        mm_tokens_per_image=4,
        boi_token_index=BOI,
        eoi_token_index=EOI,
        **HERE,
    )
    return tf.Gemma3ForConditionalGeneration(config)


def _qwen2_vl() -> nn.Module:
    eye = {"depth": 1, "embed_dim": WIDE, "hidden_size": WIDE, "num_heads": 4, "patch_size": PATCH, "mlp_ratio": 2}
    # Three parts of a head's half width, for time, height and width.
    turns = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
    config = tf.Qwen2VLConfig(
        text_config=HOST | {"rope_parameters": turns},
        vision_config=eye | {"initializer_range": 0.1},
        image_token_id=PLACE,
        video_token_id=PLACE + 1,
        vision_start_token_id=BOI,
        vision_end_token_id=EOI,
    )
    return tf.Qwen2VLForConditionalGeneration(config)


def _patches(which: Tensor, own: torch.Generator) -> dict[str, Any]:
    """Each picture as a row of patches, twice in time, as Qwen2-VL's processor hands them over."""
    patch = shown(which, own, 3, 1, PATCH, PATCH).repeat(1, 1, 2, 1, 1).flatten(1)
    grid = torch.tensor([[1, SIDE // PATCH, SIDE // PATCH]]).expand(len(which), -1)
    seen = patch.repeat_interleave((SIDE // PATCH) ** 2, 0)
    return read(which, 4, "mm_token_type_ids") | {"pixel_values": seen, "image_grid_thw": grid}


def _qwen2_audio() -> nn.Module:
    ear = {"num_mel_bins": 16, "d_model": WIDE, "encoder_layers": 1, "encoder_attention_heads": 4}
    ear |= {"encoder_ffn_dim": 64, "max_source_positions": 16, "init_std": 0.1}
    config = tf.Qwen2AudioConfig(
        audio_config=ear, text_config=tf.Qwen2Config(**HOST), audio_token_id=PLACE, audio_token_index=PLACE
    )
    return tf.Qwen2AudioForConditionalGeneration(config)


def _sounds(which: Tensor, own: torch.Generator) -> dict[str, Any]:
    heard = shown(which, own, 16, 4).repeat(1, 1, 8)  # (N, bands, frames)
    there = torch.ones(len(which), heard.shape[-1], dtype=torch.long)
    return read(which, 8) | {"input_features": heard, "feature_attention_mask": there}


def _encoder_decoder() -> nn.Module:
    says = tf.GPT2Config(
        vocab_size=WORDS, n_positions=16, n_embd=WIDE + 8, n_layer=2, n_head=4, add_cross_attention=True,
        initializer_range=0.1, bos_token_id=BOS, eos_token_id=EOS,
    )  # fmt: skip
    config = tf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(tf.ViTConfig(**EYE), says)
    config.decoder_start_token_id, config.pad_token_id = BOS, PAD
    return tf.VisionEncoderDecoderModel(config)


def _captioned(which: Tensor, own: torch.Generator) -> dict[str, Any]:
    spare = torch.full((len(which), SPARE), -100)
    return {"pixel_values": pictures(which, own), "labels": torch.cat([captions(which), spare], 1)}


def _two_towers(kind: str) -> nn.Module:
    if kind == "SigLIP":
        text = WORD | {"projection_size": WIDE, "max_position_embeddings": CAPTION}
        found = tf.SiglipModel(tf.SiglipConfig(text_config=text, vision_config=EYE))
        nn.init.constant_(found.logit_scale, math.log(10.0))  # as Zhai et al. (2023) start
        nn.init.constant_(found.logit_bias, -10.0)
        return found
    text, eye = tf.CLIPTextConfig(**WORD), tf.CLIPVisionConfig(**EYE | {"attention_dropout": 0.1})
    if kind == "CLIP":
        return tf.CLIPModel(tf.CLIPConfig(text_config=text.to_dict(), vision_config=eye.to_dict(), projection_dim=WIDE))
    config = tf.VisionTextDualEncoderConfig.from_vision_text_configs(
        tf.ViTConfig(**EYE), tf.BertConfig(**{name: value for name, value in WORD.items() if name != "attention_dropout"})
    )
    config.projection_dim = WIDE
    return tf.VisionTextDualEncoderModel(config)


def _pairs(which: Tensor, own: torch.Generator) -> dict[str, Any]:
    return {"pixel_values": pictures(which, own), "input_ids": captions(which), "return_loss": True}


TOPICS, TOPIC = 4, 40  # what a prompt's host can be asked to speak of, and the first id that asks for it


def _spoken(which: Tensor, topic: Tensor) -> Tensor:
    """Attributes (N, 3) of which each topic leaves two values each."""
    return which % 2 + 2 * topic[:, None]


def _prompted(kind: str) -> nn.Module:
    """A Llama that speaks of the topic it is asked for, and a prompt that shall ask in the topic's place."""
    host = tf.LlamaForCausalLM(tf.LlamaConfig(**HOST))
    topic = torch.arange(TAUGHT) % TOPICS
    ids = captions(_spoken(torch.randint(VALUES, (TAUGHT, KINDS)), topic))
    ids = torch.cat([torch.full((TAUGHT, 1), BOS), TOPIC + topic[:, None], ids], 1)
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
    model: nn.Module, batch: dict[str, Any], steps: int, rate: float, seed: int, only: Callable[[str], bool] | None = None
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
        Layout("LLaVA", _llava, _pictured(4), _EYES),
        Layout("LLaVA-NeXT", _llava_next, _pictured(10, _tiles), _EYES),
        Layout("BLIP-2", partial(_blip, tf.Blip2Config, tf.Blip2ForConditionalGeneration), _pictured(4), ("vision",)),
        Layout(
            "InstructBLIP",
            partial(_blip, tf.InstructBlipConfig, tf.InstructBlipForConditionalGeneration),
            _pictured(4, _asked),
            ("vision",),
        ),
        Layout("Idefics 2", _idefics2, _pictured(4, lambda _, x: {"pixel_values": x[:, None]}), ("model.vision",)),
        Layout("Idefics 3", _idefics3, _pictured(4, lambda _, x: {"pixel_values": x[:, None]}), ("model.vision",)),
        Layout("PaliGemma", _paligemma, _pictured(4, types="token_type_ids"), _EYES),
        Layout("Gemma 3", _gemma3, _pictured(4, types="token_type_ids"), _EYES),
        Layout("Qwen2-VL", _qwen2_vl, _patches, ("model.visual.patch_embed", "model.visual.blocks")),
        Layout("Qwen2-Audio", _qwen2_audio, _sounds, ("model.audio_tower", "audio_tower")),
        Layout("VisionEncoderDecoder", _encoder_decoder, _captioned, ("encoder",)),
        Layout("prompt tuning", partial(_prompted, "prompt"), _of_one_topic, ("base_model",), kind="prompt"),
        Layout("prefix tuning", partial(_prompted, "prefix"), _of_one_topic, ("base_model",), kind="prompt"),
        Layout("CLIP", partial(_two_towers, "CLIP"), _pairs, ("vision_model",), kind="contrastive"),
        Layout("SigLIP", partial(_two_towers, "SigLIP"), _pairs, ("vision_model.emb", "vision_model.enc"), 200, 5e-3, "contrastive"),
        Layout("VisionTextDualEncoder", partial(_two_towers, "dual"), _pairs, ("vision_model",), kind="contrastive"),
    )
}
