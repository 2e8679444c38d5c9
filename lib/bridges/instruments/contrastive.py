"""The check-up of a bridge under which right pairs should be nearest."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid, normalize
from torch.optim import Optimizer

from bridges.instruments.alignment import CONSTANT, CURVE, spread, trend, variation
from bridges.instruments.chance import NEAR, beats_chance, chance_loss, repeated_floor
from bridges.instruments.labels import word_counts
from bridges.instruments.movement import first_not_finite, movement_reading, optimiser_readings
from bridges.instruments.probe import linear_probe
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
from bridges.instruments.retrieval import recall

ALIKE = 0.02  # spread of unit vectors
HOT = 101.0  # factor on the cosines: CLIP clips it at 100
USUAL = 120.0  # factor on the cosines: released models of SigLIP have up to 118
WORSE = 2.0  # times the loss of a constant guess: the bias may be one for larger batches
UNIT = 0.01  # off a length of 1
FLOOR = 0.1  # share of ln(batch) that repeated texts leave in the loss


@dataclass(frozen=True)
class Contrastive:
    """A bridge under which right pairs should be nearest.

    Args:
        embed: from image and text inputs to embeddings of unit length (N, width), as they enter the loss; a third
            thing that it returns is taken for the factor on the cosines.
        image, text: inputs of both sides, row by row, of pairs that were held out.
        scale: the factor on the cosines, 1 / temperature, where `embed` does not return it.
        module: what is trained, where `embed` is no module.
        losses: the training loss of every step, in nats, of total weight 1.
        batch: pairs in a training batch.
        optimizer, before: the optimiser of the training, and a state dict from before it, or from an earlier time.
    """

    embed: Callable[..., Any]
    image: Shaped[Tensor, "pairs ..."]
    text: Shaped[Tensor, "pairs ..."]
    scale: float = 1 / 0.07
    module: nn.Module | None = None
    losses: Sequence[float] = ()
    batch: int = 0
    optimizer: Optimizer | None = None
    before: Mapping[str, Tensor] | None = None


class Space:
    """The check-up of a contrastive bridge."""

    def __init__(self, bridge: Contrastive):
        self.bridge = bridge
        self.k = max(1, min(10, len(bridge.image) // 8))
        self.alike = tuple(_alike(rows) for rows in (bridge.image, bridge.text))
        self.right = self.alike[0] | self.alike[1]
        self.module = bridge.module or (bridge.embed if isinstance(bridge.embed, nn.Module) else None)

    def embeddings(self, count: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        found = self.bridge.embed(self.bridge.image[:count], self.bridge.text[:count])
        if not isinstance(found, tuple | list) or len(found) < 2:
            raise ValueError(
                f"embed returns a {type(found).__name__}: give embeddings of images and of texts, (N, width) each"
            )
        image, text = found[0], found[1]
        scale = found[2] if len(found) > 2 else self.bridge.scale
        return image.float(), text.float(), torch.as_tensor(scale, device=image.device)

    def loss(self, count: int) -> Tensor:
        image, text, scale = self.embeddings(count)
        logits, right = scale * image @ text.T, torch.arange(count, device=image.device)
        return (cross_entropy(logits, right) + cross_entropy(logits.T, right)) / 2

    @torch.no_grad()
    def found(self) -> dict[int, float]:
        image, text, _ = self.embeddings()
        if int(self.right.sum()) == len(image):
            return recall(image, text, (1, self.k)).at
        cosines = image @ text.T  # (N, N); of several that are right, the nearest counts
        best = cosines.masked_fill(~self.right, -math.inf).amax(1, keepdim=True)
        others = cosines.masked_fill(self.right, -math.inf)
        before = (others > best).sum(1) + (others == best).sum(1) / 2
        return {k: 100 * (before + 1 <= k).float().mean().item() for k in (1, self.k)}

    def _beats(self, recalls: dict[int, float]) -> bool:
        """Whether pairs are found more often than by chance, which finds those that repeat more often."""
        count, right = len(self.right), self.right.sum(1).double()
        missed = torch.ones_like(right)
        for drawn in range(self.k):
            missed *= ((count - right - drawn) / (count - drawn)).clamp_min(0)
        return beats_chance(recalls[self.k], self.k, count, 100 * (1 - missed.mean().item()))

    def readings(self) -> Iterator[Reading]:
        bridge, count = self.bridge, len(self.bridge.image)
        yield Reading("held-out pairs", f"{count}", f">= {ENOUGH}")
        yield self._repeated()
        for name, rows in (("image", bridge.image), ("text", bridge.text)):
            yield inputs_reading(f"{name} inputs", rows, f"constant {name} inputs")
        with torch.no_grad():
            image, text, scale = self.embeddings()
        weights = first_not_finite(self.module) if self.module is not None else ""
        sound = {
            "parameters": not weights,
            "embeddings": bool(image.isfinite().all() and text.isfinite().all()),
            "factor on the cosines": bool(scale.isfinite().all()),
        }
        for name, finite in sound.items():
            found = "finite" if finite else f"not finite{', first ' + weights if name == 'parameters' else ''}"
            yield Reading(name, found, "finite", "" if finite else "values that are not finite")
        if not all(sound.values()):
            return
        recalls = self.found()
        lost = not self._beats(recalls)
        if min(variation(x.flatten(1).float()) for x in (bridge.image, bridge.text)) >= CONSTANT:
            probe = linear_probe(_features(bridge.image), _features(bridge.text))
            yield probe_reading("linear probe, image to text", probe, lost, count)
        flat = len(bridge.losses) >= CURVE and trend(bridge.losses).state != "falls"
        idle = flat if len(bridge.losses) >= CURVE else lost
        yield from flow_readings(self.module, lambda: self.loss(min(count, 128)), lost or flat)
        if self.module is not None:
            with mode(self.module, training=True):
                trained = self.found()
            shown = self._beats(trained)
            fault = "another model in evaluation" if shown and recalls[self.k] < MODES * trained[self.k] else ""
            yield Reading(
                f"R@{self.k} in training mode (%)", f"{trained[self.k]:.1f}", f"<= {1 / MODES:g} x in evaluation", fault
            )
        yield from log_readings(bridge.losses, bridge.batch)
        if self.module is not None and bridge.optimizer is not None:
            yield from optimiser_readings(bridge.optimizer, self.module, len(bridge.losses), idle)
        if self.module is not None and bridge.before is not None:
            yield movement_reading(self.module, bridge.before)
        for name, rows in (("image", image), ("text", text)):
            length = (rows.norm(dim=-1) - 1).abs().max().item()
            fault = "embeddings not of unit length" if length > UNIT else ""
            yield Reading(f"{name} embeddings: off unit length", f"{length:.2g}", f"<= {UNIT:g}", fault)
            wide = spread(rows)
            fault = f"{name} embeddings all alike" if lost and wide < ALIKE else ""
            yield Reading(f"{name} embeddings: spread", f"{wide:.2g}", f">= {ALIKE:g}", fault)
        yield self._temperature(scale.item(), lost)
        fault = "held-out pairs at chance" if lost else ""
        yield Reading(
            f"R@1, R@{self.k} of {count} (%)", f"{recalls[1]:.1f}, {recalls[self.k]:.1f}", "above chance", fault
        )

    def _repeated(self) -> Reading:
        """How many rows have a twin, and what that leaves in the loss of a training batch."""
        bridge, shares = self.bridge, [f"{(same.sum(1) > 1).float().mean():.0%}" for same in self.alike]
        found, line, fault = f"{shares[0]}, {shares[1]}", "what it costs is told with the training batch", ""
        if bridge.batch > 1:
            floor = repeated_floor(self.right.sum(1).tolist(), bridge.batch)
            found += f"; {floor:.2f} nats in a batch of {bridge.batch}"
            line = f"< {FLOOR:g} of ln({bridge.batch}) = {FLOOR * chance_loss(bridge.batch):.2f}"
            # A loss that counts repeats as right, or batches without them, come below it.
            below = len(bridge.losses) >= CURVE and trend(bridge.losses).level < floor - NEAR
            line += "; not counted, the log lies below it" if below else ""
            constant = any(bool(same.all()) for same in self.alike)
            fault = (
                "texts that repeat" if floor >= FLOOR * chance_loss(bridge.batch) and not (below or constant) else ""
            )
        return Reading("images, texts that repeat, and the loss's floor", found, line, fault)

    def _temperature(self, scale: float, lost: bool) -> Reading:
        """Whether the factor lets the loss see the pairs. With a bias beside it the loss is SigLIP's."""
        named = dict(self.module.named_parameters()) if self.module is not None else {}
        own = {name.rpartition(".")[2]: p for name, p in named.items()}
        if "logit_bias" in own:
            return self._sigmoid(scale, own["logit_bias"], lost)
        count = min(len(self.bridge.image), 128)
        with torch.no_grad():
            value, line = float(self.loss(count)), chance_loss(count)
        bare = "logit_scale" in own and own["logit_scale"].numel() == 1 and 0 < own["logit_scale"].item() == scale < 10
        hidden = scale > HOT or (not lost and value > line - NEAR) or bare
        told = f"< {line - NEAR:.3f}, where pairs are found; factor <= {HOT:g}"
        found = f"{value:.3f}" + (", logit_scale as it is" if bare else "")
        mend = "take the factor as logit_scale.exp()" if bare else ""
        fault = "temperature that hides the pairs" if hidden else ""
        return Reading(f"loss at a factor of {scale:.3g} (nats)", found, told, fault, mend)

    @torch.no_grad()
    def _sigmoid(self, scale: float, bias: Tensor, lost: bool) -> Reading:
        """SigLIP's loss, a sum over texts for each image, beside that of a constant guess of one in so many."""
        count = min(len(self.bridge.image), 128)
        image, text = (normalize(side, dim=-1) for side in self.embeddings(count)[:2])  # their length is told apart
        signs = 2 * torch.eye(count, device=image.device) - 1
        value = -logsigmoid(signs * (scale * image @ text.T + bias.float())).sum(1).mean().item()
        line = WORSE * -(math.log(1 / count) + (count - 1) * math.log(1 - 1 / count))
        hides = value > line and not lost and not 1 <= scale <= USUAL
        fault = "temperature that hides the pairs" if hides else ""
        what = f"sigmoid loss at a factor of {scale:.3g} and its bias (nats)"
        mend = "start at a factor of 10 and a bias of -10, and let both be trained"
        told = f"<= {line:.3f}, where pairs are found, or a factor of 1 to {USUAL:g}"
        return Reading(what, f"{value:.3f}", told, fault, mend)

    def missing(self) -> tuple[str, ...]:
        """What was not measured, and what to give for it."""
        b = self.bridge
        needs = {
            "gradient and both modes (module)": self.module is not None,
            f"where the training went (losses, {CURVE} or more, with batch)": len(b.losses) >= CURVE and b.batch > 1,
            "what the optimiser holds (optimizer)": b.optimizer is not None,
            "what has moved (before)": b.before is not None,
        }
        return tuple(what for what, there in needs.items() if not there)


def _alike(rows: Shaped[Tensor, "pairs ..."]) -> Bool[Tensor, "pairs pairs"]:
    """Which rows are one, but for rounding."""
    whole = rows.flatten(1)
    if whole.is_floating_point():
        draw = torch.randn(whole.shape[1], 4, generator=torch.Generator().manual_seed(0)).to(whole.device)
        whole = whole.float() @ draw  # rows of pixels are long to compare
        whole = (whole / whole.nan_to_num(0, 0, 0).abs().amax().clamp_min(1e-12) * 1e5).round()
    place = whole.unique(dim=0, return_inverse=True)[1]
    return place[:, None] == place


def _features(rows: Tensor) -> Float[Tensor, "pairs width"]:
    """What a linear map can read: ids as counts of words, anything else as it is."""
    return pooled((rows,)).float() if rows.is_floating_point() else word_counts(rows.flatten(1).long())
