"""Models of transformers' classes from their own configs, tiny, as drawn: nothing is downloaded."""

import math
from typing import Any

import transformers as tf
from torch import nn

PAD, BOS, EOS, FIRST, BOI, EOI, PLACE, WORDS = 0, 1, 2, 4, 58, 59, 60, 64  # ids, and how many there are
PATCH, SIDE = 8, 32  # pixels
WIDE = 32

TRUNK: dict[str, Any] = {"hidden_size": WIDE, "intermediate_size": 64, "num_attention_heads": 4}
TRUNK |= {"initializer_range": 0.1}
EYE = TRUNK | {"num_hidden_layers": 1, "image_size": SIDE, "patch_size": PATCH}
FEW = EYE | {"patch_size": 2 * PATCH}  # four places
WORD: dict[str, Any] = TRUNK | {"num_hidden_layers": 2, "vocab_size": WORDS, "max_position_embeddings": 64}
WORD |= {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "attention_dropout": 0.1}
HOST = WORD | {"num_key_value_heads": 4, "tie_word_embeddings": False}
HERE: dict[str, Any] = {"image_token_id": PLACE, "image_token_index": PLACE}


def llava() -> nn.Module:
    """LLaVA: one linear layer after another, from CLIP into a Llama."""
    config = tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(**FEW), text_config=tf.LlamaConfig(**HOST), vision_feature_layer=-1, **HERE
    )
    return tf.LlavaForConditionalGeneration(config)


def llava_next() -> nn.Module:
    """LLaVA-NeXT: the same for a picture and its tiles."""
    config = tf.LlavaNextConfig(
        vision_config=tf.CLIPVisionConfig(**FEW),
        text_config=tf.LlamaConfig(**HOST),
        vision_feature_layer=-1,
        image_grid_pinpoints=[[SIDE, SIDE]],
        **HERE,
    )
    return tf.LlavaNextForConditionalGeneration(config)


def blip(config: Any, model: Any) -> nn.Module:
    """BLIP-2 or InstructBLIP: queries through a Q-Former."""
    asks = TRUNK | {"num_hidden_layers": 1, "encoder_hidden_size": WIDE, "vocab_size": WORDS}
    asks |= {"cross_attention_frequency": 1}
    text = tf.LlamaConfig(**HOST).to_dict()
    found = model(config(vision_config=EYE, qformer_config=asks, text_config=text, num_query_tokens=4, **HERE))
    nn.init.normal_(found.query_tokens)  # drawn as zeros, whose norm a LayerNorm cannot tell
    return found


def idefics2() -> nn.Module:
    """Idefics 2: a resampler into a Mistral."""
    latents: dict[str, Any] = {
        "hidden_size": WIDE,
        "resampler_n_latents": 4,
        "resampler_depth": 1,
        "resampler_n_heads": 4,
    }
    latents |= {"resampler_head_dim": 8, "num_key_value_heads": 4, "initializer_range": 0.1}
    text = tf.MistralConfig(**HOST)
    return tf.Idefics2ForConditionalGeneration(
        tf.Idefics2Config(vision_config=EYE, perceiver_config=latents, text_config=text, image_token_id=PLACE)
    )


def idefics3() -> nn.Module:
    """Idefics 3: neighbours joined, and a linear layer."""
    config: Any = tf.Idefics3Config
    text = tf.LlamaConfig(**HOST)
    return tf.Idefics3ForConditionalGeneration(
        config(vision_config=EYE, text_config=text, scale_factor=2, image_token_id=PLACE, pad_token_id=PAD)
    )


def paligemma() -> nn.Module:
    """PaliGemma: one linear layer from SigLIP into a Gemma."""
    text = tf.GemmaConfig(**HOST | {"head_dim": 8, "tie_word_embeddings": True})
    eye = tf.SiglipVisionConfig(**FEW)
    return tf.PaliGemmaForConditionalGeneration(
        tf.PaliGemmaConfig(vision_config=eye, text_config=text, projection_dim=WIDE, **HERE)
    )


def gemma3() -> nn.Module:
    """Gemma 3: places pooled, normed and mapped."""
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


def qwen2_vl() -> nn.Module:
    """Qwen2-VL: a merger at the end of the tower."""
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


def qwen2_audio() -> nn.Module:
    """Qwen2-Audio: one linear layer from Whisper's tower."""
    ear: dict[str, Any] = {"num_mel_bins": 16, "d_model": WIDE, "encoder_layers": 1, "encoder_attention_heads": 4}
    ear |= {"encoder_ffn_dim": 64, "max_source_positions": 16, "init_std": 0.1}
    config = tf.Qwen2AudioConfig(audio_config=ear, text_config=tf.Qwen2Config(**HOST), audio_token_index=PLACE)
    return tf.Qwen2AudioForConditionalGeneration(config)


def encoder_decoder() -> nn.Module:
    """A ViT whose states a GPT-2 attends to, through a linear layer as their widths differ."""
    says = tf.GPT2Config(
        vocab_size=WORDS, n_positions=16, n_embd=WIDE + 8, n_layer=2, n_head=4, add_cross_attention=True,
        initializer_range=0.1, bos_token_id=BOS, eos_token_id=EOS,
    )  # fmt: skip
    config = tf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(tf.ViTConfig(**EYE), says)
    config.decoder_start_token_id, config.pad_token_id = BOS, PAD
    return tf.VisionEncoderDecoderModel(config)


def two_towers(kind: str) -> nn.Module:
    """CLIP, SigLIP or a dual encoder of a ViT and a BERT."""
    if kind == "SigLIP":
        short = WORD | {"projection_size": WIDE, "max_position_embeddings": 4}
        found = tf.SiglipModel(tf.SiglipConfig(text_config=short, vision_config=EYE))
        nn.init.constant_(found.logit_scale, math.log(10.0))  # as Zhai et al. (2023) start
        nn.init.constant_(found.logit_bias, -10.0)
        return found
    text, eye = tf.CLIPTextConfig(**WORD), tf.CLIPVisionConfig(**EYE | {"attention_dropout": 0.1})
    if kind == "CLIP":
        return tf.CLIPModel(tf.CLIPConfig(text_config=text.to_dict(), vision_config=eye.to_dict(), projection_dim=WIDE))
    config = tf.VisionTextDualEncoderConfig.from_vision_text_configs(
        tf.ViTConfig(**EYE),
        tf.BertConfig(**{name: x for name, x in WORD.items() if name != "attention_dropout"}),
    )
    config.projection_dim = WIDE
    return tf.VisionTextDualEncoderModel(config)
