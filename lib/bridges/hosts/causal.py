"""Causal language models (Llama, Mistral, any that transformers knows) that are read from, or spoken to."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from jaxtyping import Float, Int
from peft import LoraConfig, TaskType
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bridges.hosts.seq2seq import HostSize, check_tokenizer

# The source is the wider of the two, as a stronger model would be.
SIZES = {
    "mistral": {"quick": HostSize(96, 2, 4, 288), "full": HostSize(256, 4, 8, 768)},
    "llama": {"quick": HostSize(64, 2, 4, 192), "full": HostSize(192, 4, 8, 576)},
}


def build(family: str, size: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A freshly initialised Mistral or Llama for the tokenizer `tokenizer`; draws from torch's global generator.

    Raises:
        ValueError: for a family other than `mistral` and `llama`, or a size that `SIZES` does not name.
    """
    if family not in SIZES:
        raise ValueError(f"family {family!r} is unknown; choose from {', '.join(SIZES)}")
    if size not in SIZES[family]:
        raise ValueError(f"size {size!r} is unknown; choose from {', '.join(SIZES[family])}")
    s = SIZES[family][size]
    config, model = {"mistral": (MistralConfig, MistralForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}[family]
    return model(
        config(
            vocab_size=len(tokenizer),
            hidden_size=s.width,
            intermediate_size=s.feed_forward,
            num_hidden_layers=s.layers,
            num_attention_heads=s.heads,
            num_key_value_heads=s.heads // 2,
            max_position_embeddings=256,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def load(
    name: str, device: str = "cpu", tokenizer: PreTrainedTokenizerBase | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Any causal LM and its tokenizer from a local folder or a hub name, frozen, padding on the left.

    The tokenizer is the model's own, unless one is given; one without a padding token pads with its end token, and then
    the mask alone tells one from the other. On a GPU the weights are bfloat16, else as they were saved.

    Raises:
        OSError: in one line, when there is no such model, or it cannot be reached, or it comes without its tokenizer.
    """
    dtype = torch.bfloat16 if device.startswith("cuda") else "auto"
    try:
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise OSError(
            f"no causal language model could be loaded from {name!r}: give a folder with a model and its tokenizer, or"
            " a hub name that this machine can reach and whose licence you have accepted"
        ) from error
    check_tokenizer(tokenizer, name)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return model.eval().requires_grad_(False).to(device), tokenizer


def clean(model: PreTrainedModel) -> PreTrainedModel:
    """The same model without what says that it was once quantised, which `save_pretrained` refuses."""
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    fresh = type(model)(config)
    fresh.load_state_dict(model.state_dict())
    return fresh.to(model.dtype).eval()  # type: ignore[arg-type]


def adapted(
    host: PreTrainedModel, rank: int = 4, layers: Sequence[int] = (0,), dropout: float = 0.1
) -> PreTrainedModel:
    """A copy of the host with LoRA (Hu et al. 2022) on the query and value maps of `layers`, which alone is trained.

    Its scale, alpha, is twice the rank, as in the translation log, section 3.1. It draws from torch's global generator
    and changes nothing before it is trained.

    Raises:
        ValueError: for a host without maps named `q_proj` and `v_proj` in these layers.
    """
    own = deepcopy(host)
    own.add_adapter(
        LoraConfig(
            task_type=TaskType.CAUSAL_LM,
            r=rank,
            lora_alpha=2 * rank,
            lora_dropout=dropout,
            target_modules=["q_proj", "v_proj"],
            layers_to_transform=list(layers),
        )
    )
    return own


@torch.no_grad()
def hidden_states(
    host: PreTrainedModel, ids: Int[Tensor, "texts length"], mask: Int[Tensor, "texts length"], batch: int = 256
) -> Float[Tensor, "layers texts length width"]:
    """What the host makes of the texts: its embeddings, then what each block puts out, the last one normed."""
    found = [
        torch.stack(
            host(
                input_ids=ids[start : start + batch],
                attention_mask=mask[start : start + batch],
                position_ids=positions(mask[start : start + batch]),
                output_hidden_states=True,
            ).hidden_states
        )
        for start in range(0, len(ids), batch)
    ]
    return torch.cat(found, 1)


@torch.no_grad()
def layer_states(
    host: PreTrainedModel, ids: Int[Tensor, "texts length"], mask: Int[Tensor, "texts length"], layer: int
) -> Float[Tensor, "texts length width"]:
    """What one layer of the host makes of the texts, in float32: 0 its embeddings, -1 the last block, normed.

    Raises:
        ValueError: for a layer that the host does not have.
    """
    depth = host.config.num_hidden_layers
    if not -depth - 1 <= layer <= depth:
        raise ValueError(f"there is no layer {layer} in a host of {depth} blocks: give {-depth - 1} to {depth}")
    said = host.base_model(
        input_ids=ids, attention_mask=mask, position_ids=positions(mask), output_hidden_states=True, use_cache=False
    )
    return said.hidden_states[layer].float()


def positions(mask: Int[Tensor, "batch length"]) -> Int[Tensor, "batch length"]:
    """Position ids that count what the mask lets through: `generate` takes the same, plain `forward` does not."""
    return (mask.cumsum(-1) - 1).clamp_min(0)


def spoken_to(
    host: PreTrainedModel,
    soft: Float[Tensor, "batch tokens dim"] | None,
    ids: Int[Tensor, "batch length"],
    mask: Int[Tensor, "batch length"],
) -> dict[str, Tensor]:
    """The keyword arguments by which a host reads soft tokens, then text; without soft tokens, the text alone."""
    embeds = host.get_input_embeddings()(ids)
    if soft is not None:
        embeds = torch.cat([soft.to(embeds.dtype), embeds], 1)
        mask = torch.cat([mask.new_ones(soft.shape[:2]), mask], 1)
    return {"inputs_embeds": embeds, "attention_mask": mask}


def read_logits(
    host: PreTrainedModel,
    soft: Float[Tensor, "batch tokens dim"] | None,
    ids: Int[Tensor, "batch length"],
    mask: Int[Tensor, "batch length"],
) -> Float[Tensor, "batch read vocabulary"]:
    """Logits after each of the soft tokens and the text, with position ids from the mask, and in a form for `vmap`.

    The causal mask is handed over written out, because transformers looks into one that is not. A host with a sliding
    window shorter than the text would not keep to it here.
    """
    given = spoken_to(host, soft, ids, mask)
    there = given["attention_mask"]
    length = there.shape[-1]
    causal = torch.ones(length, length, dtype=torch.bool, device=there.device).tril()
    seen = causal & there.bool()[:, None, None]  # (B, 1, L, L)
    unseen = torch.finfo(given["inputs_embeds"].dtype).min
    written = torch.where(seen, 0.0, unseen).to(given["inputs_embeds"].dtype)
    return host(
        inputs_embeds=given["inputs_embeds"], attention_mask=written, position_ids=positions(there), use_cache=False
    ).logits


def answer_loss(
    logits: Float[Tensor, "batch read vocabulary"], labels: Int[Tensor, "batch answer"]
) -> Float[Tensor, ""]:
    """Cross-entropy in nats per token of answers that end what was read; labels of -100 are left out."""
    told = logits[:, -labels.shape[1] - 1 : -1]  # the logits before a token foretell it
    return cross_entropy(told.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)


@torch.no_grad()
def generate(
    host: Any,
    soft: Float[Tensor, "batch tokens dim"] | None,
    ids: Int[Tensor, "batch length"],
    mask: Int[Tensor, "batch length"],
    max_new_tokens: int,
    **options: Any,
) -> Int[Tensor, "batch new"]:
    """Greedy decoding behind soft tokens and text; the new tokens alone. `options` go to transformers' `generate`."""
    return host.generate(
        **spoken_to(host, soft, ids, mask), max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, **options
    )


def until_end(ids: Int[Tensor, "batch new"], end: int) -> list[list[int]]:
    """Generated ids up to and with the end token; all of them where it never comes."""
    return [row[: row.index(end) + 1] if end in row else row for row in ids.tolist()]
