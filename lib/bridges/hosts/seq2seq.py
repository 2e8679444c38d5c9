"""Encoder-decoder hosts (T5, BART) that read a connector's tokens, and the three routes into them."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int, Shaped
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.modeling_outputs import BaseModelOutput

Route = Literal["inputs_embeds", "encoder_outputs", "bypass"]
ROUTES: tuple[Route, ...] = get_args(Route)


@dataclass(frozen=True)
class HostSize:
    """The size of a host built from a configuration: `layers` in the encoder and as many in the decoder."""

    width: int
    layers: int
    heads: int
    feed_forward: int


SIZES = {
    "quick": HostSize(64, 2, 4, 256),
    "medium": HostSize(128, 2, 4, 512),
    "full": HostSize(256, 4, 8, 1024),
}


def build(family: str, size: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A freshly initialised T5 or BART for the tokenizer `tokenizer`; draws from torch's global generator.

    Raises:
        ValueError: for a family other than `t5` and `bart`, or a size that `SIZES` does not name.
    """
    if size not in SIZES:
        raise ValueError(f"size {size!r} is unknown; choose from {', '.join(SIZES)}")
    s, vocabulary = SIZES[size], len(tokenizer)
    special: dict[str, Any] = {
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "decoder_start_token_id": tokenizer.pad_token_id,
    }
    if family == "t5":
        return T5ForConditionalGeneration(
            T5Config(
                vocab_size=vocabulary,
                d_model=s.width,
                d_kv=s.width // s.heads,
                d_ff=s.feed_forward,
                num_layers=s.layers,
                num_heads=s.heads,
                **special,
            )
        )
    if family == "bart":
        return BartForConditionalGeneration(
            BartConfig(
                vocab_size=vocabulary,
                d_model=s.width,
                encoder_layers=s.layers,
                decoder_layers=s.layers,
                encoder_attention_heads=s.heads,
                decoder_attention_heads=s.heads,
                encoder_ffn_dim=s.feed_forward,
                decoder_ffn_dim=s.feed_forward,
                max_position_embeddings=128,
                bos_token_id=tokenizer.pad_token_id,
                forced_eos_token_id=None,
                **special,
            )
        )
    raise ValueError(f"family {family!r} is unknown; choose from t5, bart")


def load(name: str) -> PreTrainedModel:
    """Any encoder-decoder that transformers knows, from a local folder or a hub name.

    Raises:
        OSError: in one line, when the folder or name holds no such model or cannot be reached.
    """
    try:
        return AutoModelForSeq2SeqLM.from_pretrained(name)
    except (OSError, ValueError, SafetensorError) as error:
        raise OSError(
            f"no encoder-decoder could be loaded from {name!r}: give a folder made by save_pretrained, or a hub name"
            " that this machine can reach and whose licence you have accepted"
        ) from error


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a local folder or a hub name.

    Raises:
        OSError: in one line, when there is none, or one that knows no word.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise OSError(
            f"no tokenizer could be loaded from {name!r}: give a folder with a model and its tokenizer, or a hub name"
            " that this machine can reach and whose licence you have accepted"
        ) from error
    check_tokenizer(tokenizer, name)
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse a tokenizer that knows no word, by an OSError: transformers makes one where its files are missing."""
    if len(tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens)) < 2:  # T5's still knows the blank
        raise OSError(f"{name!r} holds no tokenizer that knows a word: save the model's own beside it")


def route_inputs(host: PreTrainedModel, tokens: Float[Tensor, "batch tokens dim"], route: Route) -> dict[str, Any]:
    """Keyword arguments that hand a connector's tokens to the host: what the log changed, and what it meant."""
    if route == "inputs_embeds":  # the log's first version, said to bypass the encoder
        return {"inputs_embeds": tokens}
    if route == "encoder_outputs":  # the log's fix: run the encoder by hand
        return {"encoder_outputs": host.get_encoder()(inputs_embeds=tokens, return_dict=True)}
    if route == "bypass":  # what a bypass really is: the decoder attends to the tokens themselves
        return {"encoder_outputs": BaseModelOutput(last_hidden_state=tokens)}
    raise ValueError(f"route {route!r} is unknown; choose from {', '.join(ROUTES)}")


def route_logits(
    host: PreTrainedModel,
    tokens: Float[Tensor, "batch tokens dim"],
    labels: Int[Tensor, "batch length"],
) -> dict[str, Callable[[], Tensor]]:
    """For each route a function that runs the host and returns logits `(batch, length, vocabulary)`."""

    def logits(route: Route) -> Callable[[], Tensor]:
        return lambda: host(**route_inputs(host, tokens, route), labels=labels).logits

    return {route: logits(route) for route in ROUTES}


def still(host: PreTrainedModel) -> PreTrainedModel:
    """A copy without dropout and with attention written out, as `fit_ensemble` needs it to train many side by side."""
    copy = deepcopy(host).eval()
    for part in copy.modules():  # encoder and decoder too: transformers 5.17 does not hand it down to T5's
        if isinstance(part, PreTrainedModel):
            part.set_attn_implementation("eager")
    return copy


class VectorToText(nn.Module):
    """A connector from one vector to tokens, and a host that reads the tokens by one of the three routes.

    With an `encoder` of sentences in front the inputs are what that reads, token ids; without one they are vectors.
    """

    host: Any  # a PreTrainedModel that generates, which its class does not say

    def __init__(self, connector: nn.Module, host: PreTrainedModel, route: Route, encoder: nn.Module | None = None):
        super().__init__()
        self.encoder, self.connector, self.host, self.route = encoder, connector, host, route

    def forward(self, inputs: Shaped[Tensor, "batch width"], labels: Int[Tensor, "batch length"]) -> Float[Tensor, ""]:
        """Cross-entropy of the labels in nats per token, positions labelled -100 left out."""
        return self.host(**self.host_inputs(inputs), labels=labels).loss

    @torch.no_grad()
    def generate(self, inputs: Shaped[Tensor, "batch width"], max_new_tokens: int = 24) -> Int[Tensor, "batch length"]:
        """Greedy decoding."""
        return self.host.generate(
            **self.host_inputs(inputs), max_new_tokens=max_new_tokens, do_sample=False, num_beams=1
        )

    def host_inputs(self, inputs: Shaped[Tensor, "batch width"]) -> dict[str, Any]:
        """The keyword arguments by which the host reads these inputs."""
        vectors = self.encoder(inputs) if self.encoder else inputs
        return route_inputs(self.host, self.connector(vectors), self.route)
