"""The check-up of a connector whose tokens a frozen model reads: vector to text, or one language model to another."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bridges.instruments.alignment import variation
from bridges.instruments.anchor import AnchorReach
from bridges.instruments.chance import NEAR
from bridges.instruments.conditioning import derangement
from bridges.instruments.generation import Degeneration
from bridges.instruments.padding import PaddingShift
from bridges.instruments.probe import linear_probe, variance_share
from bridges.instruments.readings import (
    ENOUGH,
    MODES,
    flow_reading,
    inputs_reading,
    log_readings,
    mode,
    pooled,
    probe_reading,
)
from bridges.instruments.report import Reading
from bridges.instruments.soft_prompt import gates
from bridges.instruments.uncertainty import Estimate, mean_interval

FOLLOWS = 0.1  # variation of the tokens over inputs, relative to their size
USED = 0.1  # share of the loss with others' inputs that their own take away
QUIET = 0.2  # typical standard deviation of an input feature
FAINT = 0.2  # share of the inputs' variance that lies between what they should pass on
SHUT = 0.01  # of a gate that could be 1
DISTINCT = 0.25  # distinct outputs over distinct references
UNENDING = 0.1  # share of generations
PADDED = 0.02  # share of prompts whose next token padding changes
LEAKED = 0.5  # share of samples whose answer the source has read
CHUNKS = 8  # parts of the samples, over which the gap's interval is taken


@dataclass(frozen=True)
class Generative:
    """A connector whose tokens a frozen model reads: vector to text, or one language model to another.

    Args:
        connector: from inputs to tokens (N, K, dim) or (N, dim) of the host.
        inputs: one row a sample; several tensors are handed over side by side. A second one of the shape (N, S) behind
            a first (N, S, width) counts as its mask.
        loss: from tokens and the indices of the samples that they are for to the host's loss in nats per token.
        labels: ids that the host should say (N, L), negative where there are none; they tell whether there is anything
            in the inputs to be said.
        embeddings: the host's table (V, dim), whose scale the tokens are held against.
        module: what is trained, where `connector` is no module.
        losses: the training loss of every step.
        said, wanted: outputs and references as text.
        leak, padding, generations, penalty: what `leak_check`, `padding_shift`, `degeneration` and `anchor_reach` gave.
        told: what the first input should pass on at each place (N, S), negative where nothing: how loudly it says that
            is measured, which is worth knowing before any training.
    """

    connector: Callable[..., Tensor]
    inputs: Tensor | tuple[Tensor, ...]
    loss: Callable[[Tensor, Tensor], Tensor]
    labels: Int[Tensor, "samples length"] | None = None
    embeddings: Float[Tensor, "vocabulary dim"] | None = None
    module: nn.Module | None = None
    losses: Sequence[float] = ()
    said: Sequence[str] = ()
    wanted: Sequence[str] = ()
    leak: float | None = None
    padding: PaddingShift | None = None
    generations: Degeneration | None = None
    penalty: AnchorReach | None = None
    told: Int[Tensor, "samples places"] | None = None


class Speech:
    """The check-up of a generative bridge."""

    def __init__(self, bridge: Generative):
        self.bridge = bridge
        self.inputs = bridge.inputs if isinstance(bridge.inputs, tuple) else (bridge.inputs,)
        self.count = len(self.inputs[0])
        self.module = bridge.module or (bridge.connector if isinstance(bridge.connector, nn.Module) else None)
        device = self.inputs[0].device
        self.chunks = torch.arange(self.count, device=device).tensor_split(min(CHUNKS, self.count // 4))

    def tokens(self, rows: Tensor) -> Tensor:
        found = self.bridge.connector(*(x[rows] for x in self.inputs))
        if not isinstance(found, Tensor) or found.dim() not in (2, 3):
            like = f"the shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise ValueError(f"the connector returns {like}: give tokens as one tensor (N, K, dim) or (N, dim)")
        return found

    @torch.no_grad()
    def gap(self) -> tuple[Estimate, float]:
        """The conditioning gap over parts of the samples, which trade inputs among themselves; and the line for it."""
        own, others = [], []
        for rows in self.chunks:
            tokens = self.tokens(rows)
            order = derangement(len(rows)).to(rows.device)
            own.append(float(self.host_loss(tokens, rows)))
            others.append(float(self.host_loss(tokens[order], rows)))
        line = max(NEAR, USED * fmean(others))
        return mean_interval([b - a for a, b in zip(own, others, strict=True)]), line

    @torch.no_grad()
    def loss(self, factor: float) -> float:
        """The host's loss with the tokens times a factor."""
        return fmean(float(self.host_loss(self.tokens(rows) * factor, rows)) for rows in self.chunks)

    def host_loss(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """What `loss` gives, seen to be one number."""
        found = torch.as_tensor(self.bridge.loss(tokens, rows))
        if found.numel() != 1:
            raise ValueError(f"the loss has the shape {tuple(found.shape)}: return its mean, one number")
        return found.reshape(())

    def readings(self) -> Iterator[Reading]:
        bridge = self.bridge
        yield Reading("held-out samples", f"{self.count}", f">= {ENOUGH}")
        first = inputs_reading("inputs", self.inputs[0], "constant inputs")
        yield first
        with torch.no_grad():
            tokens = torch.cat([self.tokens(rows) for rows in self.chunks]).float()
        value = self.loss(1.0)
        sound = bool(tokens.isfinite().all()) and torch.isfinite(torch.tensor(value)).item()
        yield Reading("host's loss (nats)", f"{value:.3f}", "finite", "" if sound else "values that are not finite")
        if not sound:
            return
        gap, line = self.gap()
        unused = gap.mean < line or gap.low <= 0
        yield from self._relation(unused, bool(first.fault))
        yield from self._parts(gap)
        words = 0 if bridge.embeddings is None else len(bridge.embeddings)
        yield from log_readings(bridge.losses, vocabulary=words)
        yield from self._tokens(tokens, unused, value)
        fault = "input that is not used" if unused else ""
        yield Reading("conditioning gap (nats)", _interval(gap), f">= {line:.2g}, above 0", fault)
        yield from self._evidence()

    def _relation(self, unused: bool, constant: bool) -> Iterator[Reading]:
        if self.bridge.labels is not None and self.inputs[0].is_floating_point() and not constant:
            probe = linear_probe(pooled(self.inputs).float(), _words(self.bridge.labels))
            yield probe_reading("linear probe, inputs to words", probe, unused, self.count)
        if self.bridge.told is not None and not constant:
            yield self._loudness(self.bridge.told, unused)
        if self.bridge.leak is not None:
            fault = "the source reads the answers" if self.bridge.leak >= LEAKED else ""
            yield Reading("answers in what the source reads", f"{self.bridge.leak:.0%}", f"< {LEAKED:.0%}", fault)

    def _loudness(self, told: Tensor, unused: bool) -> Reading:
        """How loud is what should be passed on, among all else that the inputs vary in."""
        states = self.inputs[0]
        if told.shape != states.shape[:2] or states.dim() != 3:
            raise ValueError(
                f"told has the shape {tuple(told.shape)}, the first input {tuple(states.shape)}: give a label for each"
                " sample and place (N, S) of an input (N, S, width)"
            )
        labels = told[told >= 0]
        found = variance_share(states[told >= 0].float(), labels)
        # Labels that have nothing to do with the states would take this share by chance (epsilon squared, Kelley 1935).
        chance = (len(labels.unique()) - 1) / max(1, len(labels) - 1)
        share = (found - chance) / max(1 - chance, 1e-9)
        fault = "what is to be said is faint" if share < FAINT and unused else ""
        line = f">= {FAINT:g}" + ("" if unused else "; not counted, the bridge uses its input")
        return Reading("share of the inputs' variance between what is told", f"{share:.2f}", line, fault)

    def _parts(self, gap: Estimate) -> Iterator[Reading]:
        """What holds of the connector as a module: gates, gradient, and the two modes."""
        if self.module is None:
            return
        try:
            opened = gates(self.module)
        except ValueError:
            opened = {}
        if opened:
            widest = max(map(abs, opened.values()))
            fault = "gates that are shut" if widest < SHUT else ""
            yield Reading(f"widest of {len(opened)} gates", f"{widest:.3f}", f">= {SHUT:g}", fault)
        rows = self.chunks[0]
        flow = flow_reading(self.module, lambda: self.host_loss(self.tokens(rows), rows))
        if flow:
            yield flow
        with mode(self.module, training=True):
            trained, line = self.gap()
        fault = "another model in evaluation" if trained.low > line and gap.mean < MODES * trained.mean else ""
        yield Reading("gap in training mode (nats)", _interval(trained), f"<= {1 / MODES:g} x in evaluation", fault)

    def _tokens(self, tokens: Tensor, unused: bool, as_is: float) -> Iterator[Reading]:
        deviation = self.inputs[0].float().flatten(0, -2).std(0).median().item()
        follows = variation(tokens.flatten(1))
        quiet = follows < FOLLOWS and 0 < deviation < QUIET and self.inputs[0].is_floating_point()
        fault = "inputs too quiet" if quiet else ""
        if self.inputs[0].is_floating_point():
            told = f">= {QUIET:g}, where tokens vary by < {FOLLOWS:g}"
            yield Reading("typical deviation of an input feature", f"{deviation:.2g}", told, fault)
        fault = "tokens that do not follow the input" if unused and follows < FOLLOWS else ""
        yield Reading("tokens: variation over inputs", f"{follows:.2g}", f">= {FOLLOWS:g}", fault)
        if self.bridge.embeddings is not None:
            own = self.bridge.embeddings.detach().float().square().mean(-1).sqrt().mean()
            ratio = (tokens.square().mean(-1).sqrt().mean() / own).item()
            yield Reading("tokens' RMS over the host's", f"{ratio:.3g}", "for its effect see the next line")
            if ratio > 0:
                matched = self.loss(1 / ratio)
                line = min((1 - USED) * as_is, as_is - NEAR)
                fault = "scale far from the host's" if matched < line else ""
                yield Reading("host's loss at the host's RMS (nats)", f"{matched:.3f}", f">= {line:.3f}", fault)

    def _evidence(self) -> Iterator[Reading]:
        """What other instruments have measured."""
        b = self.bridge
        if b.padding is not None:
            fault = "padding that changes the answers" if b.padding.changed > PADDED else ""
            found = f"{b.padding.changed:.0%} of {b.padding.padded}"
            yield Reading(f"padded on the {b.padding.side}: another next token", found, f"<= {PADDED:.0%}", fault)
        if b.generations is not None:
            share = max(b.generations.unstopped, b.generations.empty)
            fault = "generations that do not end" if share > UNENDING else ""
            yield Reading("generations empty or without an end", f"{share:.0%}", f"<= {UNENDING:.0%}", fault)
        if b.said:
            if len(b.said) != len(b.wanted):
                raise ValueError(f"{len(b.said)} outputs against {len(b.wanted)} references: give one for each")
            share = len(set(b.said)) / len(set(b.wanted))
            fault = "one sentence for all inputs" if share < DISTINCT else ""
            yield Reading("distinct outputs over distinct references", f"{share:.2f}", f">= {DISTINCT:g}", fault)
        if b.penalty is not None:
            blind = b.penalty.answer_sensitivity == 0
            fault = "penalty that cannot see the answers" if blind else ""
            found = f"{b.penalty.answer_sensitivity:.2%}"
            yield Reading("penalty: change with others' answers", found, "> 0", fault)


def _interval(found: Estimate) -> str:
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _words(labels: Int[Tensor, "samples length"]) -> Float[Tensor, "samples words"]:
    """How often each id stands in each row, for the ids that tell rows apart."""
    found, columns = labels.clamp_min(-1).unique(return_inverse=True)
    counts = torch.zeros(len(labels), len(found), device=labels.device)
    counts.scatter_add_(1, columns.view(labels.shape), torch.ones(labels.shape, device=labels.device))
    counts = counts[:, found >= 0]
    return counts[:, counts.std(0) > 0]
