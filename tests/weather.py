"""A small world of weather reports, and hosts that learn in seconds to put hints into words: for tests of faults."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    OPTConfig,
    OPTForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

PAD, BEGIN, END, TELL, IN, IT_IS, AND = range(7)
KINDS, EACH, FIRST = 3, 6, 8  # place, sky and wind; words 8 to 25
WORDS, DIM, PLACES, WIDE = 28, 48, 5, 24
IDS: dict[str, Any] = {"pad_token_id": PAD, "bos_token_id": BEGIN, "eos_token_id": END}


class Drawn(NamedTuple):
    """Hints (N, 3), reports `in PLACE it is SKY and WIND .` (N, 7), and features (N, 5, 24), two places noise."""

    hints: Tensor
    reports: Tensor
    features: Tensor

    @property
    def vectors(self) -> Tensor:
        """One vector for each report (N, 24), of mean 0 and deviation near 1."""
        return self.features.mean(1) * 3


def weather(count: int, seed: int) -> Drawn:
    fixed, draw = torch.Generator().manual_seed(5), torch.Generator().manual_seed(seed)
    books = torch.randn(KINDS, EACH, WIDE, generator=fixed)
    said = torch.randint(EACH, (count, KINDS), generator=draw)
    hints = said + FIRST + EACH * torch.arange(KINDS)
    features = 0.2 * torch.randn(count, PLACES, WIDE, generator=draw)
    for kind in range(KINDS):
        features[:, kind] += books[kind, said[:, kind]]
    fill = {i: torch.full((count,), i) for i in (IN, IT_IS, AND, END)}
    place, sky, wind = hints.T
    return Drawn(hints, torch.stack([fill[IN], place, fill[IT_IS], sky, fill[AND], wind, fill[END]], 1), features)


def fit(parameters: Iterable[Tensor], loss: Callable[[Tensor], Tensor], steps: int, rate: float = 3e-3) -> list[float]:
    """Losses of training on rows of 2,000, 32 a step, by Adam."""
    trained = [p for p in parameters if p.requires_grad]
    optimizer, draw, losses = torch.optim.Adam(trained, rate), torch.Generator().manual_seed(0), []
    for _ in range(steps):
        value = loss(torch.randint(2000, (32,), generator=draw))
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(value.item())
    return losses


def causal(kind: str) -> Any:
    """GPT-2 or OPT, taught to put hints in any order into a report."""
    torch.manual_seed(0)
    if kind == "gpt2":
        host: Any = GPT2LMHeadModel(
            GPT2Config(vocab_size=WORDS, n_positions=64, n_embd=DIM, n_layer=2, n_head=4, **IDS)
        )
    else:
        own = {"hidden_size": DIM, "word_embed_proj_dim": DIM, "num_hidden_layers": 2, "ffn_dim": 96}
        host = OPTForCausalLM(
            OPTConfig(vocab_size=WORDS, num_attention_heads=4, max_position_embeddings=64, **own, **IDS)
        )
    taught = weather(2000, 1)

    def loss(rows: Tensor) -> Tensor:
        hints = taught.hints[rows][:, torch.randperm(KINDS)]
        return told(host, host.get_input_embeddings()(hints), taught.reports[rows])

    fit(host.train().parameters(), loss, 300)
    return host.eval().requires_grad_(False)


def told(host: Any, tokens: Tensor, reports: Tensor, labels: Tensor | None = None) -> Tensor:
    """A causal host's loss behind `<s> tokens tell`."""
    logits = host(inputs_embeds=spoken(host, tokens, reports)).logits[:, -reports.shape[1] - 1 : -1]
    return cross_entropy(logits.flatten(0, 1).float(), (reports if labels is None else labels).flatten())


def spoken(host: Any, tokens: Tensor, reports: Tensor) -> Tensor:
    table = host.get_input_embeddings()
    begin, tell = (table(torch.full((len(tokens), 1), i)) for i in (BEGIN, TELL))
    return torch.cat([begin, tokens.to(begin.dtype), tell, table(reports)], 1)


def says(host: Any, tokens: Tensor, limit: int = 9) -> list[str]:
    """What a causal host says behind `<s> tokens tell`, as ids up to the end."""
    read = spoken(host, tokens, torch.empty(len(tokens), 0, dtype=torch.long))
    mask = torch.ones(read.shape[:2], dtype=torch.long)
    with torch.no_grad():
        ids = host.generate(inputs_embeds=read, attention_mask=mask, max_new_tokens=limit, do_sample=False)
    return texts(ids)


def texts(ids: Tensor) -> list[str]:
    return [" ".join(map(str, row[: row.index(END)] if END in row else row)) for row in ids.tolist()]


def seq2seq(kind: str) -> Any:
    """T5, or BART with embeddings that are scaled, taught to put hints into a report."""
    torch.manual_seed(0)
    ids = {"pad_token_id": PAD, "eos_token_id": END, "decoder_start_token_id": PAD}
    if kind == "t5":
        own = {"d_model": DIM, "d_kv": 12, "d_ff": 96, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
        host: Any = T5ForConditionalGeneration(T5Config(vocab_size=WORDS, **own, **ids))
    else:
        sizes = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in SIZES.items()}
        own = {"d_model": DIM, "max_position_embeddings": 32, "scale_embedding": True, "bos_token_id": BEGIN}
        host = BartForConditionalGeneration(
            BartConfig(vocab_size=WORDS, forced_eos_token_id=None, **own, **sizes, **ids)
        )
    taught = weather(2000, 1)

    def loss(rows: Tensor) -> Tensor:
        return host(input_ids=taught.hints[rows], labels=taught.reports[rows]).loss

    fit(host.train().parameters(), loss, 300)
    return host.eval().requires_grad_(False)


SIZES = {"layers": 2, "attention_heads": 4, "ffn_dim": 96}


class Captioner(nn.Module):
    """`<s> connector's tokens` in front of ids: as people wrap a causal host; `text` is a factor on its words."""

    def __init__(self, host: Any, connector: nn.Module, text: float = 1.0):
        super().__init__()
        self.host, self.connector, self.text = host, connector, text

    def forward(self, features: Tensor, input_ids: Tensor, labels: Tensor) -> Any:
        table, soft = self.host.get_input_embeddings(), self.connector(features)
        begin = table(torch.full((len(soft), 1), BEGIN))
        read = torch.cat([begin, soft, table(input_ids) * self.text], 1)
        bare = labels.new_full((len(soft), 1 + soft.shape[1]), -100)
        return self.host(inputs_embeds=read, labels=torch.cat([bare, labels], 1))


def batch_of(drawn: Drawn) -> dict[str, Tensor]:
    """A batch for a `Captioner`: `tell report`, of which the report is supervised."""
    ids = torch.cat([torch.full((len(drawn.reports), 1), TELL), drawn.reports], 1)
    return {"features": drawn.features, "input_ids": ids, "labels": ids.masked_fill(ids == TELL, -100)}
