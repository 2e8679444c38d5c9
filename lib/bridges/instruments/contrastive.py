"""The check-up of a bridge under which right pairs should be nearest."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bridges.instruments.alignment import CONSTANT, spread, variation
from bridges.instruments.chance import NEAR, beats_chance, chance_loss
from bridges.instruments.probe import linear_probe
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
from bridges.instruments.retrieval import recall

ALIKE = 0.02  # spread of unit vectors
HOT = 101.0  # factor on the cosines: CLIP clips it at 100
UNIT = 0.01  # off a length of 1


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
    """

    embed: Callable[..., Any]
    image: Float[Tensor, "pairs ..."]
    text: Float[Tensor, "pairs ..."]
    scale: float = 1 / 0.07
    module: nn.Module | None = None
    losses: Sequence[float] = ()
    batch: int = 0


class Space:
    """The check-up of a contrastive bridge."""

    def __init__(self, bridge: Contrastive):
        self.bridge = bridge
        self.k = max(1, min(10, len(bridge.image) // 8))
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
        return recall(image, text, (1, self.k)).at

    def readings(self) -> Iterator[Reading]:
        bridge, count = self.bridge, len(self.bridge.image)
        yield Reading("held-out pairs", f"{count}", f">= {ENOUGH}")
        for name, rows in (("image", bridge.image), ("text", bridge.text)):
            yield inputs_reading(f"{name} inputs", rows, f"constant {name} inputs")
        with torch.no_grad():
            image, text, scale = self.embeddings()
        sound = bool(image.isfinite().all() and text.isfinite().all())
        yield Reading(
            "embeddings", "finite" if sound else "not finite", "finite", "" if sound else "values that are not finite"
        )
        if not sound:
            return
        recalls = self.found()
        lost = not beats_chance(recalls[self.k], self.k, count)
        if min(variation(x.flatten(1).float()) for x in (bridge.image, bridge.text)) >= CONSTANT:
            probe = linear_probe(pooled((bridge.image,)).float(), pooled((bridge.text,)).float())
            yield probe_reading("linear probe, image to text", probe, lost, count)
        flow = flow_reading(self.module, lambda: self.loss(min(count, 128)))
        if flow:
            yield flow
        if self.module is not None:
            with mode(self.module, training=True):
                trained = self.found()
            shown = beats_chance(trained[self.k], self.k, count)
            fault = "another model in evaluation" if shown and recalls[self.k] < MODES * trained[self.k] else ""
            yield Reading(
                f"R@{self.k} in training mode (%)", f"{trained[self.k]:.1f}", f"<= {1 / MODES:g} x in evaluation", fault
            )
        yield from log_readings(bridge.losses, bridge.batch)
        for name, rows in (("image", image), ("text", text)):
            length = (rows.norm(dim=-1) - 1).abs().max().item()
            fault = "embeddings not of unit length" if length > UNIT else ""
            yield Reading(f"{name} embeddings: off unit length", f"{length:.2g}", f"<= {UNIT:g}", fault)
            wide = spread(rows)
            fault = f"{name} embeddings all alike" if lost and wide < ALIKE else ""
            yield Reading(f"{name} embeddings: spread", f"{wide:.2g}", f">= {ALIKE:g}", fault)
        with torch.no_grad():
            value, line = float(self.loss(min(count, 128))), chance_loss(min(count, 128))
        hidden = scale.item() > HOT or (not lost and value > line - NEAR)
        told = f"< {line - NEAR:.3f}, where pairs are found; factor <= {HOT:g}"
        fault = "temperature that hides the pairs" if hidden else ""
        yield Reading(f"loss at a factor of {scale.item():.3g} (nats)", f"{value:.3f}", told, fault)
        fault = "held-out pairs at chance" if lost else ""
        yield Reading(
            f"R@1, R@{self.k} of {count} (%)", f"{recalls[1]:.1f}, {recalls[self.k]:.1f}", "above chance", fault
        )
