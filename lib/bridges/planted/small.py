"""Small connectors into small frozen hosts, with one fault planted in each training: runs that any diagnoser can watch.

A sentence of four words is drawn, and a picture of it in five patches; a projector puts the patches into a frozen Llama
or T5 that has learnt to say words it is shown in order, or into the space of a frozen encoder of the sentences. A run
takes seconds. Faults are in the code, the data or the optimiser from the first step on, as they are in life.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.optim import AdamW, Optimizer
from transformers.modeling_outputs import CausalLMOutput

from bridges.planted.small_hosts import DIM, EOS, HOSTS, PAD, PLACES, SEP, SPEAKERS, WIDE, WORDS, small_host, world

TAUGHT, HELD, BATCH, STEPS = 1500, 128, 32, 75
RATE = 1e-2

# What is planted, and in what it can be.
PLANTED: dict[str, tuple[str, ...]] = {
    "": ("llama", "t5", "pair"),
    "constant inputs": ("llama", "t5", "pair"),
    "pairs shuffled": ("llama", "t5", "pair"),
    "all labels masked": SPEAKERS,
    "answers read before they are scored": SPEAKERS,
    "connector not in the optimiser": ("llama", "t5", "pair"),
    "connector detached": ("llama", "t5", "pair"),
    "rate of zero": ("llama", "t5", "pair"),
    "rate far too high": ("llama", "t5", "pair"),
    "a weight that is no number": ("llama", "t5", "pair"),
    "host in training mode": SPEAKERS,
    "padding on the right, mask not handed over": ("llama",),
    "tokens a 32nd as loud": SPEAKERS,
    "gates shut": SPEAKERS,
    "end token masked": SPEAKERS,
    "embeddings not normalised": ("pair",),
    "factor of 1000 on the cosines": ("pair",),
}
# What the others are made for, and a check-up of connectors is not.
THEIRS: dict[str, tuple[str, ...]] = {
    "a layer that is never called": ("llama", "pair"),
    "samples mixed within the batch": ("llama", "pair"),
    "host reads ahead: causal mask left out": ("llama",),
    "host's queries all zero": ("llama",),
}


class Speaker(nn.Module):
    """A projector of patches to tokens, behind a prompt, before a frozen host; called as models of transformers are."""

    def __init__(self, host: Any, planted: str = ""):
        super().__init__()
        self.projector = Projector(DIM, planted)
        self.mark = nn.Parameter(0.02 * torch.randn(1, 1, DIM))  # a token that begins the picture, trained too
        self.host, self.planted, self.config = host, planted, host.config

    @property
    def model(self) -> nn.Module:
        """The host's layers, where those who look for them would look."""
        return cast(nn.Module, self.host.model if hasattr(self.host, "model") else self.host)

    def get_input_embeddings(self) -> nn.Module:
        return cast(nn.Module, self.host.get_input_embeddings())

    def forward(
        self,
        features: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor | None = None,
        **more: Any,
    ) -> CausalLMOutput:
        if self.planted == "host in training mode":
            self.host.train()
        table = self.get_input_embeddings()
        soft = self.projector(features)
        read = torch.cat([table(input_ids), self.mark.expand(len(soft), 1, DIM), soft], 1)
        mask = torch.cat([attention_mask, attention_mask.new_ones(len(soft), PLACES)], 1)
        if self.config.is_encoder_decoder:
            found = self.host(inputs_embeds=read, attention_mask=mask, labels=labels, **more)
            return CausalLMOutput(found.loss, found.logits)
        said = input_ids.new_empty(len(soft), 0) if labels is None else labels.clamp_min(PAD)
        tail = torch.cat([said.new_full((len(soft), 1), SEP), said], 1)
        read, mask = torch.cat([read, table(tail)], 1), torch.cat([mask, torch.ones_like(tail)], 1)
        places: Tensor | None = (mask.cumsum(1) - 1).clamp_min(0)
        handed: Tensor | None = mask
        if self.planted.startswith("padding on the right"):
            handed = places = None
        elif self.planted.startswith("host reads ahead"):
            handed = torch.zeros(len(soft), 1, read.shape[1], read.shape[1])
        found = self.host(inputs_embeds=read, attention_mask=handed, position_ids=places, use_cache=False, **more)
        logits = found.logits[:, -tail.shape[1] :]
        loss = None if labels is None else cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten())
        return CausalLMOutput(
            loss, logits[:, :-1] if loss is not None else logits, found.hidden_states, found.attentions
        )


class Projector(nn.Module):
    """Two layers with a gate behind them, and whatever is planted in a connector."""

    def __init__(self, dim: int, planted: str):
        super().__init__()
        self.into, self.out, self.planted = nn.Linear(WIDE, 64), nn.Linear(64, dim), planted
        self.gate = nn.Parameter(torch.tensor(1.0), requires_grad=planted != "gates shut")
        if planted == "gates shut":
            self.gate.data.zero_()
        if planted == "a layer that is never called":
            self.norm = nn.LayerNorm(dim)
        if planted == "a weight that is no number":
            self.into.weight.data[3, 5] = torch.nan

    def forward(self, features: Tensor) -> Tensor:
        tokens = self.gate.tanh() * self.out(nn.functional.gelu(self.into(features)))
        if self.planted == "samples mixed within the batch":
            tokens = tokens.softmax(0)
        if self.planted == "tokens a 32nd as loud":
            tokens = tokens / 32
        return tokens.detach() if self.planted == "connector detached" else tokens


@dataclass
class Pairs(CausalLMOutput):
    """What a model of pairs gives: its loss, cosines times the factor, and embeddings of both sides."""

    image_embeds: Any = None
    text_embeds: Any = None


class Pair(nn.Module):
    """A projector of patches into the space of a frozen encoder of sentences, with a factor that is trained."""

    def __init__(self, planted: str = ""):
        super().__init__()
        own = torch.Generator().manual_seed(78)
        self.projector, self.planted = Projector(DIM, planted), planted
        self.words = nn.Embedding(WORDS, DIM, _weight=torch.randn(WORDS, DIM, generator=own)).requires_grad_(False)
        hot = planted.startswith("factor")
        self.logit_scale = nn.Parameter(torch.tensor(1000.0 if hot else 1 / 0.07).log(), requires_grad=not hot)

    def embed(self, features: Tensor, input_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        image, text = self.projector(features).mean(1), self.words(input_ids).mean(1)
        image = image if self.planted == "embeddings not normalised" else normalize(image, dim=-1)
        return image, normalize(text - self.words.weight.mean(0), dim=-1), self.logit_scale.exp()

    def forward(self, features: Tensor, input_ids: Tensor, **_: Any) -> Pairs:
        image, text, scale = self.embed(features, input_ids)
        logits, right = scale * image @ text.T, torch.arange(len(image))
        loss = (cross_entropy(logits, right) + cross_entropy(logits.T, right)) / 2
        return Pairs(loss, logits, image_embeds=image, text_embeds=text)


@dataclass
class Run:
    """A model with what is planted in it, before its training; `held` and `clean` are held-out, the latter faultless.

    `taught`, `held` and `clean` are arguments of the model's call by name.
    """

    host: str
    planted: str
    seed: int
    model: Any
    optimizer: Optimizer
    taught: dict[str, Tensor]
    held: dict[str, Tensor]
    clean: dict[str, Tensor]
    before: dict[str, Tensor]
    hosts: Path

    def batches(self, steps: int = STEPS) -> list[dict[str, Tensor]]:
        draw = torch.Generator().manual_seed(self.seed)
        rows = [torch.randint(TAUGHT, (BATCH,), generator=draw) for _ in range(steps)]
        return [{name: x[i] for name, x in self.taught.items()} for i in rows]

    def train(self, watch: Callable[[dict[str, Tensor], Any], None] | None = None, steps: int = STEPS) -> list[float]:
        """The loss of every step; `watch` is handed each batch and what the model gave, behind the step."""
        losses = []
        for batch in self.batches(steps):
            self.optimizer.zero_grad()
            more = {"output_attentions": True, "output_hidden_states": True} if watch and self.host == "llama" else {}
            found = self.model(**batch, **more)
            found.loss.backward()
            self.optimizer.step()
            losses.append(found.loss.item())
            if watch:
                watch(batch, found)
        return losses

    @torch.no_grad()
    def loss(self) -> float:
        """The loss on faultless held-out samples, by which the harm of a fault is told."""
        return float(self.model(**self.clean).loss)


def run(host: str, planted: str, seed: int, hosts: Path) -> Run:
    """A run that is ready to be trained.

    Raises:
        ValueError: for a fault that is not known, or cannot be in that host.
    """
    places = (PLANTED | THEIRS).get(planted, ())
    if host not in places:
        raise ValueError(f"{planted!r} cannot be planted in {host!r}; it can in {', '.join(places) or 'nothing'}")
    side = "right" if planted.startswith("padding") else "left"
    drawn = world(TAUGHT + HELD, 100 + seed, side)
    frozen = None if host == "pair" else deepcopy(small_host(host, seed % HOSTS, hosts))
    torch.manual_seed(1000 + seed)
    model: Any = Pair(planted) if host == "pair" else Speaker(frozen, planted)
    if planted == "host's queries all zero":
        for layer in model.host.model.layers:
            layer.self_attn.q_proj.weight.data.zero_()
    clean = {"features": drawn.features, "input_ids": drawn.sentences}
    if host != "pair":
        clean |= {"input_ids": drawn.prompts, "attention_mask": drawn.mask, "labels": drawn.sentences}
    data = _broken(planted, clean, "input_ids" if host == "pair" else "labels", seed)
    parts = [slice(None, TAUGHT), slice(TAUGHT, None)]
    taught, held = ({name: x[part] for name, x in data.items()} for part in parts)
    rate = {"rate of zero": 0.0, "rate far too high": 3.0}.get(planted, RATE)
    trained = [p for p in model.parameters() if p.requires_grad]
    if planted == "connector not in the optimiser":
        own = {id(p) for p in model.projector.parameters()}
        trained = [p for p in trained if id(p) not in own]
    optimizer = AdamW(trained, lr=rate, weight_decay=0.0)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    sound = {name: x[TAUGHT:] for name, x in clean.items()}
    return Run(host, planted, seed, model, optimizer, taught, held, sound, before, hosts)


def _broken(planted: str, clean: dict[str, Tensor], said: str, seed: int) -> dict[str, Tensor]:
    """The data with what is planted in it; `said` is the name of the sentences."""
    features, told = clean["features"], clean[said]
    if planted == "constant inputs":
        return clean | {"features": features[:1].expand_as(features).clone()}
    if planted == "pairs shuffled":
        return clean | {said: told[torch.randperm(len(told), generator=torch.Generator().manual_seed(seed))]}
    if planted == "all labels masked":
        return clean | {said: torch.full_like(told, -100)}
    if planted == "end token masked":
        return clean | {said: told.masked_fill(told == EOS, -100)}
    if planted.startswith("answers read"):
        ids = torch.cat([clean["input_ids"], told[:, [1, 2, 4, 5]]], 1)
        return clean | {
            "input_ids": ids,
            "attention_mask": torch.cat([clean["attention_mask"], told[:, :4] * 0 + 1], 1),
        }
    return dict(clean)
