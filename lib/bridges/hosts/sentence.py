"""Sentence encoders: a transformers encoder, mean-pooled to one vector of unit norm."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, PreTrainedModel, PreTrainedTokenizerBase

from bridges.hosts.seq2seq import SIZES, check_tokenizer, still


class SentenceEncoder(nn.Module):
    """The mean of an encoder's last hidden states over the words, scaled to norm 1 (Reimers and Gurevych 2019, 3)."""

    model: Any  # a PreTrainedModel

    def __init__(self, model: PreTrainedModel, padding: int):
        super().__init__()
        self.model, self.padding, self.unseen = model, padding, False

    def forward(self, ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch width"]:
        there = ids != self.padding
        mask = there.long()
        if self.unseen:  # added to the attention's logits as it is, (B, 1, 1, S)
            mask = there.logical_not()[:, None, None] * torch.finfo(self.model.dtype).min
        states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        mean = (states * there[..., None]).sum(1) / there.sum(1, keepdim=True).clamp_min(1)
        return normalize(mean, dim=-1)

    def still(self) -> "SentenceEncoder":
        """A copy as `fit_ensemble` needs it: see `seq2seq.still`, and a mask that transformers does not look into."""
        copy = SentenceEncoder(still(self.model), self.padding)
        copy.unseen = True
        return copy.eval()

    @torch.no_grad()
    def encode(
        self, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, batch: int = 64
    ) -> Float[Tensor, "texts width"]:
        """The vectors of sentences, on the CPU; sentences are cut at the length the encoder was made for."""
        return torch.cat([self(ids).cpu() for ids in self._read(texts, tokenizer, batch)])

    @torch.no_grad()
    def token_states(
        self, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, batch: int = 64
    ) -> tuple[Float[Tensor, "texts length width"], Int[Tensor, "texts length"]]:
        """The last hidden state of every token, special ones too, and a mask, on the CPU; 0 where a text has ended."""
        states, masks = [], []
        for ids in self._read(texts, tokenizer, batch):
            mask = (ids != self.padding).long()
            found = self.model(input_ids=ids, attention_mask=mask).last_hidden_state * mask[..., None]
            states += list(found.cpu())
            masks += list(mask.cpu())
        return pad_sequence(states, batch_first=True), pad_sequence(masks, batch_first=True)

    def _read(
        self, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, batch: int
    ) -> Iterator[Int[Tensor, "batch length"]]:
        """Token ids of one batch after another, on the encoder's device."""
        device = next(self.parameters()).device
        longest = min(tokenizer.model_max_length, self.model.config.max_position_embeddings)
        for start in tqdm(range(0, len(texts), batch), desc="sentence vectors", leave=False):
            some = list(texts[start : start + batch])
            ids = tokenizer(some, padding=True, truncation=True, max_length=longest, return_tensors="pt")["input_ids"]
            yield ids.to(device)


def build(size: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A freshly initialised BERT for the tokenizer `tokenizer`; draws from torch's global generator."""
    s = SIZES[size]
    return BertModel(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=s.width,
            num_hidden_layers=s.layers,
            num_attention_heads=s.heads,
            intermediate_size=s.feed_forward,
            max_position_embeddings=128,
            pad_token_id=tokenizer.pad_token_id,
        ),
        add_pooling_layer=False,
    )


def load(name: str) -> tuple[SentenceEncoder, PreTrainedTokenizerBase]:
    """Any encoder that `AutoModel` knows and its tokenizer, from a local folder or a hub name.

    Raises:
        OSError: in one line, when the folder or name holds no such model or cannot be reached.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model, told = AutoModel.from_pretrained(name, output_loading_info=True)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise OSError(
            f"no sentence encoder could be loaded from {name!r}: give a folder with a model and its tokenizer, or a hub"
            " name that this machine can reach"
        ) from error
    check_tokenizer(tokenizer, name)
    random = [key for key in told["missing_keys"] if "pooler" not in key]  # the pooler is not used here
    if random:
        raise OSError(f"{name!r} has no weights for {len(random)} parts, such as {random[0]}: it holds another model's")
    c = model.config
    if tokenizer.pad_token_id is None or c.is_encoder_decoder or not hasattr(c, "max_position_embeddings"):
        raise OSError(
            f"{name!r} is no sentence encoder of BERT's kind: its tokenizer or model knows no padding, or it has a"
            " decoder"
        )
    return SentenceEncoder(model, tokenizer.pad_token_id).eval(), tokenizer
