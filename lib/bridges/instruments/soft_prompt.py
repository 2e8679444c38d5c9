"""What a frozen language model makes of soft tokens: the translation log's `analyze_bridge_quality`, whole.

The log's list of what it returns ends in the attention mass on the soft tokens, which its code leaves out.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.special import entr
from transformers import PreTrainedModel, PreTrainedTokenizerBase

LIKELIEST = 5  # first tokens told, as in the log
RMS_WITHIN, ENTROPY_WITHIN = 0.1, 0.2  # of the model's own: the log's "Success Criteria"


@dataclass(frozen=True)
class BridgeQuality:
    """Soft tokens beside the model's own embeddings, and its first generated token with them and without.

    Entropies are in nats. `attention_mass` holds, for each layer, the share of attention that the last position of the
    prompt, from which the first token is foretold, gives to all soft tokens together.
    """

    soft_rms: float
    soft_rms_max: float
    embedding_rms: float
    entropy_bridged: float
    entropy_baseline: float
    top_bridged: tuple[tuple[str, float], ...]
    top_baseline: tuple[tuple[str, float], ...]
    attention_mass: tuple[float, ...]

    @property
    def rms_ratio(self) -> float:
        """RMS of the soft tokens over that of the model's embeddings."""
        return self.soft_rms / self.embedding_rms

    def _repr_markdown_(self) -> str:
        rms = abs(self.rms_ratio - 1) <= RMS_WITHIN
        entropy = abs(self.entropy_bridged - self.entropy_baseline) <= ENTROPY_WITHIN * self.entropy_baseline
        soft = f"{self.soft_rms:.4g}, at most {self.soft_rms_max:.4g}"
        mass = ", ".join(f"{share:.1%}" for share in self.attention_mass)
        return (
            "| | bridged | baseline | the log's criterion |\n|---|---|---|---|\n"
            f"| RMS | {soft} | {self.embedding_rms:.4g} | within {RMS_WITHIN:.0%}: {'yes' if rms else 'no'} |\n"
            f"| entropy of the first token (nats) | {self.entropy_bridged:.3f} | {self.entropy_baseline:.3f} |"
            f" within {ENTROPY_WITHIN:.0%}: {'yes' if entropy else 'no'} |\n"
            f"| likeliest first tokens | {_told(self.top_bridged)} | {_told(self.top_baseline)} | |\n"
            f"| attention on the soft tokens, by layer | {mass} | | |"
        )


def _told(top: tuple[tuple[str, float], ...]) -> str:
    return ", ".join(f"`` {word!r} `` {share:.1%}" for word, share in top).replace("|", r"\|")  # else the cell ends


@torch.no_grad()
def bridge_quality(
    soft: Float[Tensor, "batch tokens width"],
    model: PreTrainedModel,
    ids: Int[Tensor, "batch length"],
    mask: Int[Tensor, "batch length"],
    tokenizer: PreTrainedTokenizerBase,
    baseline: tuple[Int[Tensor, "texts size"], Int[Tensor, "texts size"]] | None = None,
) -> BridgeQuality:
    """Diagnose soft tokens before a prompt, `ids` and `mask`, padded on the left; put the model in evaluation mode.

    The baseline is the same prompt without soft tokens, unless another is given: where the question is hidden from the
    bridged model, the prompt with the question in sight. The RMS of a soft token or of an embedding is over its
    features; they are averaged over tokens and over the vocabulary. Entropies are averaged over the batch, and so are
    the probabilities of which the five highest are told (the log's code tells those of the first sample). The model's
    attention is written out for the time being, since fused attention gives no weights.

    Raises:
        ValueError: for soft tokens of another width than the model's embeddings, or a prompt padded on the right.
    """
    table: nn.Module = model.get_input_embeddings()
    words = torch.arange(len(table.get_parameter("weight")), device=model.device)
    own: Tensor = table(words)  # not the weight: Gemma's module, for one, multiplies it
    if soft.shape[-1] != own.shape[-1]:
        raise ValueError(
            f"soft tokens of width {soft.shape[-1]} before embeddings of width {own.shape[-1]}: give those of a bridge"
            " to this model"
        )
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        bridged, mass = _first_token(model, table(ids), mask, soft.to(own.dtype))
        seen, there = baseline or (ids, mask)
        alone, _ = _first_token(model, table(seen), there, own.new_empty(len(seen), 0, own.shape[-1]))
    finally:
        model.set_attn_implementation(before)

    def top(shares: Tensor) -> tuple[tuple[str, float], ...]:
        found = shares.mean(0).topk(min(LIKELIEST, shares.shape[1]))
        pairs = zip(found.indices.tolist(), found.values.tolist(), strict=True)
        return tuple((str(tokenizer.decode([i])), share) for i, share in pairs)

    soft_rms, own_rms = (x.float().square().mean(-1).sqrt() for x in (soft, own))
    return BridgeQuality(
        soft_rms.mean().item(),
        soft_rms.max().item(),
        own_rms.mean().item(),
        entr(bridged).sum(-1).mean().item(),
        entr(alone).sum(-1).mean().item(),
        top(bridged),
        top(alone),
        mass,
    )


def _first_token(
    model: PreTrainedModel, embeds: Tensor, mask: Tensor, soft: Tensor
) -> tuple[Float[Tensor, "batch vocabulary"], tuple[float, ...]]:
    if not mask[:, -1].all():
        raise ValueError("a prompt ends in padding, and what follows padding foretells nothing: pad on the left")
    mask = torch.cat([mask.new_ones(soft.shape[:2]), mask], 1)
    found = model(
        inputs_embeds=torch.cat([soft, embeds], 1),
        attention_mask=mask,
        position_ids=(mask.cumsum(-1) - 1).clamp_min(0),  # plain forward counts the padding too
        output_attentions=True,
        use_cache=False,
    )
    heard = (weights[:, :, -1, : soft.shape[1]].float() for weights in found.attentions)  # (B, h, K) for each layer
    return found.logits[:, -1].float().softmax(-1), tuple(x.sum(-1).mean().item() for x in heard)


def gates(module: nn.Module | Iterable[tuple[str, Tensor]]) -> dict[str, float]:
    """How far each gate of a module, or among named parameters, is open: tanh of its value, -1 to 1, 0 being shut.

    A gate is a parameter with the word "gate", "gates", "gating" or "alpha" (Idefics) in its own name or in that of its
    part, and no weight or bias of a layer; of one element, or a vector over features or heads, whose mean size then
    counts. The alpha of an activation or of a LoRA is none.

    Raises:
        ValueError: when there is none.
    """
    named = module.named_parameters() if isinstance(module, nn.Module) else module
    found = {name: _opened(p.detach().float()) for name, p in named if _is_gate(name, p)}
    if not found:
        raise ValueError(
            "no parameter has the word 'gate' or 'alpha' in its name, with one element or one a feature: give the"
            " module that holds the gates"
        )
    return found


def _is_gate(name: str, value: Tensor) -> bool:
    *before, last = name.split(".")
    words, part = _words(last), _words(before[-1]) if before else set()
    if words & {"weight", "bias"}:
        return False
    if "alpha" in words and ("lora" in words or part & {"act", "activation", "snake", "prelu", "elu"}):
        return False  # the slope of an activation, or the factor of a LoRA
    # One element, one a feature, or one a head (LLaMA-Adapter).
    return bool((words | part) & {"gate", "gates", "gating", "alpha"}) and value.numel() == max(value.shape, default=1)


def _words(name: str) -> set[str]:
    """The words of a name in snake or camel case, digits left out."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)}


def _opened(value: Tensor) -> float:
    return (value if value.numel() == 1 else value.abs().mean()).tanh().item()
