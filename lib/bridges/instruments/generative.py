"""The check-up of a connector whose tokens a frozen model reads: vector to text, or one language model to another."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim import Optimizer

from bridges.instruments.alignment import CONSTANT, CURVE, trend, variation
from bridges.instruments.anchor import AnchorReach
from bridges.instruments.chance import NEAR
from bridges.instruments.conditioning import derangement
from bridges.instruments.generation import Degeneration
from bridges.instruments.labels import label_readings, word_counts
from bridges.instruments.movement import as_drawn, first_not_finite, movement_reading, optimiser_readings
from bridges.instruments.padding import PaddingShift
from bridges.instruments.probe import linear_probe, variance_share
from bridges.instruments.readings import (
    ENOUGH,
    MODES,
    flow_readings,
    inputs_reading,
    log_readings,
    mode,
    pooled,
    probe_reading,
)
from bridges.instruments.report import Reading
from bridges.instruments.soft_prompt import gates
from bridges.instruments.spoken import ends_reading, padding_reading, said_readings
from bridges.instruments.text_scale import text_scale
from bridges.instruments.uncertainty import Estimate, mean_interval

FOLLOWS = 0.1  # variation of the tokens over inputs, relative to their size
USED = 0.1  # share of the loss with others' inputs that their own take away
QUIET, LOUD = 0.2, 5.0  # typical standard deviation of an input feature
FAINT = 0.2  # share of the inputs' variance that lies between what they should pass on
SHUT = 0.01  # of a gate that could be 1
LEAKED = 0.5  # share of samples whose answer the source has read
ELSEWHERE = 0.5  # of the loss, that labels moved by one place would have to leave
ALIKE = 1e-3  # share of the loss by which two calls on the same samples may differ
LOST = 0.5  # of what the input took off the loss at the log's end
OVERFITTED = "compare inputs, connector and host with the training's; where they are the same, it has overfitted"
OTHER = (1 / 32, 1 / 8, 8.0, 32.0)  # factors on the tokens that are tried beside the host's own scale
TWICE = 2.0  # between text and table, from which it is tried whether the table's size is better
FEW = 4  # samples that this is tried on
PARTS = 8  # of the samples, over which the gap's interval is taken
CHUNK = 64  # samples in a call, at most


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
        optimizer, before: the optimiser of the training, and a state dict from before it, or from an earlier time.
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
    optimizer: Optimizer | None = None
    before: Mapping[str, Tensor] | None = None

    def tokens(self, rows: Tensor, factor: float = 1.0) -> Any:
        """The connector's tokens for the samples `rows`, its first input times a factor."""
        inputs = self.inputs if isinstance(self.inputs, tuple) else (self.inputs,)
        first, *others = (x[rows] for x in inputs)
        return self.connector(first if factor == 1 else first * factor, *others)

    def read(self) -> tuple[Tensor | None, Tensor | None]:
        """Ids and mask of what the host reads at the labels' places, where it shifts these itself."""
        return None, None

    def direct(self, rows: Tensor) -> Tensor | None:
        """The loss of the samples `rows` by a call of the whole model, where there is one."""
        return None

    def answered(self, tokens: Tensor, rows: Tensor, labels: Tensor, read: bool = False) -> Tensor | None:
        """The loss of these samples with other labels, which the host may `read` too, where that can be had."""
        return None

    def whole(self) -> nn.Module | None:
        """The model that holds connector and host, where there is one."""
        return None

    def words(self) -> int:
        """How many words the host chooses among, 0 where that is not known."""
        return 0 if self.embeddings is None else len(self.embeddings)


class Speech:
    """The check-up of a generative bridge, in calls of `chunk` samples at most."""

    def __init__(self, bridge: Generative, chunk: int = CHUNK):
        self.bridge = bridge
        self.inputs = bridge.inputs if isinstance(bridge.inputs, tuple) else (bridge.inputs,)
        self.count = len(self.inputs[0])
        self.module = bridge.module or (bridge.connector if isinstance(bridge.connector, nn.Module) else None)
        device = self.inputs[0].device
        parts = max(min(PARTS, max(2, self.count // 4)), math.ceil(self.count / chunk))
        self.chunks = torch.arange(self.count, device=device).tensor_split(parts)
        # A prompt of its own has no input, or the same places for all.
        floating = self.inputs[0].is_floating_point()
        self.prompt = not floating and bool((self.inputs[0] == self.inputs[0][:1]).all())
        self.given = floating and variation(self.inputs[0].nan_to_num(0, 0, 0).flatten(1).float()) >= CONSTANT

    def tokens(self, rows: Tensor, factor: float = 1.0) -> Tensor:
        found = self.bridge.tokens(rows, factor)
        if not isinstance(found, Tensor):
            found = _one_tensor(found, len(rows))
        if not isinstance(found, Tensor) or found.dim() not in (2, 3):
            like = f"the shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise ValueError(f"the connector returns {like}: give tokens as one tensor (N, K, dim) or (N, dim)")
        return found

    @torch.no_grad()
    def gap(self, scale: float = 1.0, factor: float = 1.0) -> tuple[Estimate, float]:
        """The conditioning gap over parts of the samples, which trade inputs among themselves; and the line for it.

        The tokens are taken times `scale`, and made of the first input times a `factor`.
        """
        own, others = [], []
        for rows in self.chunks:
            tokens = self.tokens(rows, factor) * scale
            order = derangement(len(rows)).to(rows.device)
            own.append(float(self.host_loss(tokens, rows)))
            others.append(float(self.host_loss(tokens[order], rows)))
        line = max(NEAR, USED * fmean(others))
        return mean_interval([b - a for a, b in zip(own, others, strict=True)]), line

    @torch.no_grad()
    def loss(self, scale: float = 1.0, factor: float = 1.0) -> float:
        """The host's loss with the tokens times `scale`, made of the first input times a `factor`."""
        return fmean(float(self.host_loss(self.tokens(rows, factor) * scale, rows)) for rows in self.chunks)

    def host_loss(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """What `loss` gives, seen to be one number, or one a sample."""
        found = torch.as_tensor(self.bridge.loss(tokens, rows))
        if found.shape == (len(rows),):
            found = found.mean()
        if found.numel() != 1:
            raise ValueError(f"the loss has the shape {tuple(found.shape)}: return its mean, one number")
        return found.reshape(())

    def own_loss(self, rows: Tensor) -> Tensor:
        """The loss as it is trained with, in one call where there is one."""
        found = self.bridge.direct(rows)
        return self.host_loss(self.tokens(rows), rows) if found is None else found

    def heard(self, as_is: float, scale: float = 1.0, factor: float = 1.0) -> float:
        """The loss at another scale, where inputs are heard there and it is clearly lower; else infinity."""
        found = self.loss(scale, factor)
        if not found < min((1 - USED) * as_is, as_is - NEAR):
            return math.inf
        if self.prompt:  # heard by what it lowers: there are no inputs to trade
            return found
        gap, line = self.gap(scale, factor)
        return found if gap.mean >= line and gap.low > 0 else math.inf

    def behind(self, value: float) -> bool:
        """Whether a held-out loss lies nearer to the beginning of a log that falls than to its end."""
        losses = self.bridge.losses
        if len(losses) < CURVE or not all(map(math.isfinite, losses)) or (way := trend(losses)).state != "falls":
            return False
        return value > (max(losses[0], way.level - way.change) + way.level) / 2

    def readings(self) -> Iterator[Reading]:
        bridge = self.bridge
        yield Reading("held-out samples", f"{self.count}", f">= {ENOUGH}")
        if self.prompt:
            yield Reading("inputs", "the same places for all", "not counted: a prompt of its own has none")
            constant = False
        else:
            first = inputs_reading("inputs", self.inputs[0], "constant inputs")
            yield first
            constant = bool(first.fault)
        if bridge.labels is not None:
            labels = [*label_readings(bridge.labels, *self.bridge.read())]
            yield from labels
            if any(reading.fault == "no label is supervised" for reading in labels):
                return
        with torch.no_grad():
            tokens = torch.cat([self.tokens(rows) for rows in self.chunks])
        value = self.loss()
        broken = [*self._not_finite(tokens, value)]
        yield from broken
        if any(reading.fault for reading in broken):
            return
        yield from self._alike(value)
        gap, line = self.gap()
        unused = not self.prompt and (gap.mean < line or gap.low <= 0)
        yield from self._relation(unused, constant)
        yield from self._parts(gap, unused)
        yield from self._training(value, gap, unused)
        yield from self._tokens(tokens.float(), unused, value)
        yield from self._text(tokens)
        if not self.prompt:
            fault = "input that is not used" if unused else ""
            yield Reading("conditioning gap (nats)", _interval(gap), f">= {line:.2g}, above 0", fault)
        yield from self._evidence(value)

    def _not_finite(self, tokens: Tensor, value: float) -> Iterator[Reading]:
        """Where values stop being finite: weights, tokens, or what the host makes of finite tokens."""
        fault = "values that are not finite"
        if self.module is not None and (name := first_not_finite(self.module)):
            mend = "train it in float32: Adam's epsilon is zero in half precision"
            yield Reading("connector's parameters", f"not finite, first {name}", "finite", fault, mend)
        sound = bool(tokens.isfinite().all())
        edge = f", largest {tokens.abs().max():.2g} of at most {torch.finfo(tokens.dtype).max:.2g}" if sound else ""
        yield Reading("tokens", f"{'finite' if sound else 'not finite'}{edge}", "finite", "" if sound else fault)
        there = math.isfinite(value)
        where = ", made by the host from finite tokens" if sound and not there else ""
        mend = "compute the host in bfloat16 or float32: its range may be too small" if where else ""
        yield Reading("host's loss (nats)", f"{value:.3f}{where}", "finite", "" if there else fault, mend)

    def _alike(self, value: float) -> Iterator[Reading]:
        """Whether two calls give one loss; and whether there is one, be the input what it may."""
        rows = self.chunks[0]
        with torch.no_grad():
            tokens = self.tokens(rows)
            one, two = float(self.host_loss(tokens, rows)), float(self.host_loss(tokens, rows))
            others = float(self.host_loss(tokens[derangement(len(rows)).to(rows.device)], rows))
        off = abs(one - two) / max(abs(one), NEAR)
        fault = "host in training mode" if off > ALIKE else ""
        yield Reading("two calls on the same tokens: losses apart", f"{off:.2g}", f"<= {ALIKE:g} of the loss", fault)
        yield from self._places(tokens, rows, one)
        known = self.bridge.labels is not None and bool((self.bridge.labels == self.bridge.labels[:1]).all())
        whose = "tokens"
        if self.prompt and value < NEAR and not known and (labels := self.bridge.labels) is not None:
            swapped = labels[derangement(len(labels)).to(labels.device)]
            found, whose = self.bridge.answered(tokens, rows, swapped, read=True), "answers"
            others = math.inf if found is None else float(found)
        if max(value, others) < NEAR and not known:
            fault = "the answers are read before they are scored"
            yield Reading(f"loss with others' {whose} (nats)", f"{others:.3f}", f">= {NEAR:g}", fault)

    def _places(self, tokens: Tensor, rows: Tensor, as_is: float) -> Iterator[Reading]:
        """Whether the loss would be far lower if labels stood one place earlier or later."""
        if self.bridge.labels is None or self.bridge.labels.shape[1] < 2:
            return
        losses, none = {}, torch.full_like(self.bridge.labels[:, :1], -100)
        for step, labels in (
            (-1, torch.cat([self.bridge.labels[:, 1:], none], 1)),
            (1, torch.cat([none, self.bridge.labels[:, :-1]], 1)),
        ):
            if (labels[rows] >= 0).any() and (found := self.bridge.answered(tokens, rows, labels)) is not None:
                losses[step] = float(found)
        if not losses:
            return
        best = min(losses, key=lambda step: losses[step])
        fault = ""
        if losses[best] < as_is * ELSEWHERE and as_is - losses[best] > NEAR:
            fault = "labels shifted twice" if best > 0 else "the answers are read before they are scored"
        both = ", ".join(f"{losses[step]:.3f}" for step in losses)
        line = f">= {ELSEWHERE:g} x {as_is:.3f}"
        yield Reading("loss with labels a place earlier, later (nats)", both, line, fault)

    def _relation(self, unused: bool, constant: bool) -> Iterator[Reading]:
        if self.bridge.labels is not None and self.given and not constant and self.count >= 8:
            probe = linear_probe(pooled(self.inputs).float(), word_counts(self.bridge.labels))
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

    def _parts(self, gap: Estimate, unused: bool) -> Iterator[Reading]:
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
        losses = self.bridge.losses
        flat = len(losses) >= CURVE and trend(losses).state != "falls"
        yield from flow_readings(self.module, lambda: self.own_loss(rows), unused or flat, self.bridge.whole())
        if self.prompt:
            return
        with mode(self.module, training=True), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # reentrant checkpoints warn where no gradient is asked for
            trained, line = self.gap()
        fault = "another model in evaluation" if trained.low > line and gap.mean < MODES * trained.mean else ""
        yield Reading("gap in training mode (nats)", _interval(trained), f"<= {1 / MODES:g} x in evaluation", fault)

    def _training(self, value: float, gap: Estimate, unused: bool) -> Iterator[Reading]:
        """What the log, the optimiser and the weights say of the training."""
        bridge, losses = self.bridge, self.bridge.losses
        yield from log_readings(losses, vocabulary=bridge.words())
        if self.module is not None and bridge.optimizer is not None:
            idle = trend(losses).state != "falls" if len(losses) >= CURVE else unused
            yield from optimiser_readings(bridge.optimizer, self.module, len(losses), idle)
        if self.module is not None and bridge.before is not None:
            yield movement_reading(self.module, bridge.before)
        if len(losses) < CURVE or not all(map(math.isfinite, losses)):
            return
        way = trend(losses)
        if way.state != "falls":
            return
        behind = self.behind(value)
        if self.module is not None:
            drawn = as_drawn(self.module)
            fault = "connector is not the trained one" if unused or behind else "parameters that did not move"
            found = "as they are drawn" if drawn else "moved"
            yield Reading("linear layers of the connector", found, "moved, as the log falls", fault if drawn else "")
        over, mend = value - way.level, ""
        far = over > max(USED * value, NEAR) and over > 2 * abs(gap.mean)
        if self.prompt:
            far = behind
        elif not unused:  # what the input gave at the log's end, and what of it is lost
            far, mend = over > max(LOST * (value + gap.mean - way.level), NEAR), OVERFITTED
        fault = "held-out loss far above the log's end" if far else ""
        yield Reading("held-out loss (nats)", f"{value:.3f}", f"near {way.level:.3f}, the log's end", fault, mend)

    def _tokens(self, tokens: Tensor, unused: bool, as_is: float) -> Iterator[Reading]:
        follows = variation(tokens.flatten(1))
        if self.given:
            yield self._loud_inputs(follows, as_is)
        if not self.prompt:
            fault = "tokens that do not follow the input" if unused and follows < FOLLOWS else ""
            yield Reading("tokens: variation over inputs", f"{follows:.2g}", f">= {FOLLOWS:g}", fault)
        scales: list[float] = []
        if self.bridge.embeddings is not None:
            own = self.bridge.embeddings.detach().float().square().mean(-1).sqrt().mean()
            ratio = (tokens.square().mean(-1).sqrt().mean() / own).item()
            yield Reading("tokens' RMS over the host's", f"{ratio:.3g}", "for its effect see the next line")
            scales = [1 / ratio] if ratio > 0 else []
        # Louder tokens may raise a host's confidence alone, and a prompt may be trained on. Where there is no scale of
        # the host's own, or no input to be heard, one counts only where it brings back what a log tells of.
        better = self.prompt or self.bridge.embeddings is None
        low, best = math.inf, 1.0
        if tokens.any() and (not better or self.behind(as_is)):
            tried = {scale: self.heard(as_is, scale) for scale in scales}
            if all(map(math.isinf, tried.values())):
                tried |= {scale: self.heard(as_is, scale) for scale in OTHER}
            best = min(tried, key=lambda scale: tried[scale])
            low = math.inf if better and self.behind(tried[best]) else tried[best]
        found = "nowhere lower" if math.isinf(low) else f"{low:.3f} at {best:.3g} times"
        fault = "scale far from the host's" if low < as_is else ""
        line = f"not below {as_is:.3f}" + ("; counted only beside a log" if better else "")
        yield Reading("host's loss at other scales of the tokens (nats)", found, line, fault)

    def _text(self, tokens: Tensor) -> Iterator[Reading]:
        """Whether the host reads text beside the tokens as loud as its table has it, where it is seen to read any."""
        rows = self.chunks[0][:FEW]
        found = text_scale(lambda: self.host_loss(tokens[: len(rows)], rows), TWICE)
        if found is None:
            return
        harms = found.restored < min((1 - USED) * found.loss, found.loss - NEAR)
        told = f"{found.ratio:.3g}" + ("" if found.restored == found.loss else f", the loss {found.loss:.3f}")
        line = f"{1 / TWICE:g} to {TWICE:g}" + (f", {found.restored:.3f} within" if "loss" in told else "")
        fault, mend = "scale far from the host's" if harms else "", "hand over text as the host's table gives it, once"
        yield Reading("text's RMS over the host's table", told, line, fault, mend)

    def _loud_inputs(self, follows: float, as_is: float) -> Reading:
        """Whether the inputs are of another size than the connector can use, or was trained on."""
        deviation = self.inputs[0].float().flatten(0, -2).std(0).median().item()
        fault, line = "", f"{QUIET:g} to {LOUD:g}, where it matters"
        if 0 < deviation < QUIET and (follows < FOLLOWS or math.isfinite(self.heard(as_is, factor=1 / deviation))):
            fault = "inputs too quiet"
        elif deviation > LOUD and math.isfinite(self.heard(as_is, factor=1 / deviation)):
            fault = "inputs too loud"
        return Reading("typical deviation of an input feature", f"{deviation:.2g}", line, fault)

    def _evidence(self, value: float) -> Iterator[Reading]:
        """What other instruments have measured."""
        b = self.bridge
        if b.padding is not None:
            yield padding_reading(b.padding)
        if b.generations is not None:
            yield ends_reading(b.generations)
        if b.said:
            tokens = None if b.labels is None else (b.labels >= 0).sum(1).float().mean().item()
            yield from said_readings(b.said, b.wanted, value, tokens)
        if b.penalty is not None:
            blind = b.penalty.answer_sensitivity == 0
            fault = "penalty that cannot see the answers" if blind else ""
            found = f"{b.penalty.answer_sensitivity:.2%}"
            yield Reading("penalty: change with others' answers", found, "> 0", fault)

    def missing(self) -> tuple[str, ...]:
        """What was not measured, and what to give for it."""
        b = self.bridge
        needs = {
            "what is supervised, and whether the inputs tell of it (labels)": b.labels is not None,
            "gates, gradient and both modes (module)": self.module is not None,
            "scale beside the host's (embeddings)": b.embeddings is not None,
            f"where the training went (losses, {CURVE} or more)": len(b.losses) >= CURVE,
            "what the optimiser holds (optimizer)": b.optimizer is not None,
            "what has moved (before)": b.before is not None,
            "what is said (said, wanted)": bool(b.said),
            "padding (padding)": b.padding is not None,
            "ends of generations (generations)": b.generations is not None,
            "answers in what the source reads (leak)": b.leak is not None,
        }
        return tuple(what for what, there in needs.items() if not there)


def _one_tensor(found: object, count: int) -> object:
    """The tokens in what transformers' modules return beside a tensor, where they are told apart; else as it is."""
    for name in ("pooler_output", "last_hidden_state"):
        if isinstance(value := getattr(found, name, None), Tensor | tuple | list):
            found = value
            break
    if isinstance(found, tuple | list) and len(found) == count and len({getattr(x, "shape", None) for x in found}) == 1:
        return torch.stack(list(found)) if isinstance(found[0], Tensor) else found
    return found


def _interval(found: Estimate) -> str:
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"
