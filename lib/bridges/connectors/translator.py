"""The bottlenecked gated translator: learned queries read one model and become soft tokens of another."""

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from bridges.connectors.scale import ScaleMatch


@dataclass(frozen=True)
class TranslatorSettings:
    """The shape of a translator.

    Every layer works at width `bottleneck` and reads the source at its own width. `gate` is what each gate starts at;
    what passes is tanh of it, so that 0 is shut, as in Flamingo (Alayrac et al. 2022, section 3.1.2) and in the log.
    `dropout` is on what a gate lets through and on the feed-forward.
    """

    bottleneck: int = 1024
    tokens: int = 48
    depth: int = 6
    heads: int = 16
    feed_forward: int = 4  # times the bottleneck
    dropout: float = 0.0
    gate: float = 0.0


# The translation log's sweep. Heads of the first three are its usual 16; all have dropout 0.1.
LOG = {
    "conservative": TranslatorSettings(1024, 48, 6, 16, dropout=0.1),
    "aggressive": TranslatorSettings(1024, 48, 6, 16, dropout=0.1),
    "high capacity": TranslatorSettings(1024, 64, 8, 16, dropout=0.1),
    "efficient": TranslatorSettings(768, 32, 4, 12, dropout=0.1),
}
SHARP = 2.0  # gain of the queries', keys' and values' first values


class Attention(nn.Module):
    """Multi-head attention written out, so that it can be vectorised over models; keys may have a width of their own.

    Queries and keys are one sequence where `key_width` is None; their three maps are then one, as in torch's
    `nn.MultiheadAttention`.
    """

    def __init__(self, width: int, heads: int, key_width: int | None = None):
        super().__init__()
        if width % heads:
            raise ValueError(f"a bottleneck of {width} cannot be cut into {heads} heads: choose a divisor")
        self.heads = heads
        if key_width is None:
            self.into = nn.Linear(width, 3 * width)
        else:
            self.to_q = nn.Linear(width, width)
            self.to_k = nn.Linear(key_width, width)
            self.to_v = nn.Linear(key_width, width)
        self.out = nn.Linear(width, width)
        for part in self.children():  # torch's default starts with attention so flat that reading takes long to begin
            nn.init.xavier_uniform_(cast(nn.Linear, part).weight, gain=1.0 if part is self.out else SHARP)

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        keys: Float[Tensor, "batch length source"] | None = None,
        there: Bool[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        if keys is None:
            q, k, v = self.into(x).chunk(3, -1)
        else:
            q, k, v = self.to_q(x), self.to_k(keys), self.to_v(keys)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))  # (B, h, S, e)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if there is not None:
            scores = scores.masked_fill(~there[:, None, None], torch.finfo(scores.dtype).min)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class TranslatorLayer(nn.Module):
    """Cross-attention behind a gate, self-attention, feed-forward: each normed before and added after."""

    def __init__(self, settings: TranslatorSettings, source_width: int):
        super().__init__()
        width, hidden = settings.bottleneck, settings.feed_forward * settings.bottleneck
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.read = Attention(width, settings.heads, source_width)
        self.dropout = nn.Dropout(settings.dropout)
        self.mix = Attention(width, settings.heads)
        self.think = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Dropout(settings.dropout), nn.Linear(hidden, width)
        )

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        states: Float[Tensor, "batch length source"],
        there: Bool[Tensor, "batch length"],
        open_share: Float[Tensor, "1"],
    ) -> Float[Tensor, "batch tokens width"]:
        x = x + open_share * self.dropout(self.read(self.norms[0](x), states, there))
        x = x + self.mix(self.norms[1](x))
        return x + self.think(self.norms[2](x))


class GatedTranslator(nn.Module):
    """Hidden states (B, S, source_width) in, soft tokens (B, K, target_width) out.

    Rebuilt from what the translation log tells of it. With its six-layer settings between two models of width 4,096 it
    has 142.78 million parameters (the log: about 143), in 50 matrices that decay, 87 vectors that do not and 6 gates
    (the log's optimiser groups: 50, 87, 6).
    """

    def __init__(self, source_width: int, settings: TranslatorSettings, target_width: int):
        super().__init__()
        width = settings.bottleneck
        self.norm = nn.LayerNorm(source_width)
        self.queries = nn.Parameter(torch.randn(settings.tokens, width))
        # Apart from the layers, so that an optimiser group finds them by the prefix of their name.
        self.gates = nn.ParameterList(torch.full((1,), settings.gate) for _ in range(settings.depth))
        self.layers = nn.ModuleList(TranslatorLayer(settings, source_width) for _ in range(settings.depth))
        self.out = nn.Linear(width, target_width)

    def forward(
        self,
        states: Float[Tensor, "batch length source"],
        mask: Int[Tensor, "batch length"],
        opened: float | None = None,
    ) -> Float[Tensor, "batch tokens target"]:
        """Read the states where `mask` is 1; `opened`, 0 to 1, stands in for every gate, as a schedule sets it."""
        x = self.queries.expand(len(states), -1, -1)  # (K, width) -> (B, K, width)
        states, there = self.norm(states), mask.bool()
        for gate, layer in zip(self.gates, self.layers, strict=True):
            open_share = gate.tanh() if opened is None else torch.full_like(gate, opened)
            x = layer(x, states, there, open_share)
        return self.out(x)


class Bridge(nn.Module):
    """A translator that reads one layer of the source, and the scale of its soft tokens."""

    layer: Tensor

    def __init__(self, translator: GatedTranslator, scale: ScaleMatch, layer: int):
        super().__init__()
        self.translator, self.scale = translator, scale
        self.register_buffer("layer", torch.tensor(layer))

    def forward(
        self,
        states: Float[Tensor, "layers batch length width"],
        mask: Int[Tensor, "batch length"],
        opened: float | None = None,
    ) -> Float[Tensor, "batch tokens target"]:
        own = states.index_select(0, self.layer.view(1)).squeeze(0)  # under vmap each model reads a layer of its own
        return self.scale(self.translator(own, mask, opened))
