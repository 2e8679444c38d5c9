"""Healthy bridges and planted faults, on our connectors and on other people's: what a check-up has to tell apart.

Each bridge is trained, and then broken in one way at a time; faults of training are trained in. Whatever names a fault
stands beside it, and was written down before the check-up saw the case.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bridges.instruments.checkup import Contrastive, Generative
from bridges.instruments.conditioning import derangement
from bridges.training.fit import FitSettings, fit

FAINT = 0.001  # times the loudness of tokens
BATCH = 32
FEW = 40  # steps that show a rate of zero, or far too high
TAUGHT = 2000  # samples to train on
UNTRAINED = ("input that is not used", "tokens that do not follow the input", "gates that are shut")


@dataclass(frozen=True)
class Size:
    """Held-out `samples` that a check-up sees, the connectors' inner `width` and `tokens`, and `steps` of training."""

    samples: int
    width: int
    tokens: int
    steps: int


@dataclass(frozen=True)
class Case:
    """A bridge with what was planted in it (nothing: it is healthy), and the faults any of which names that."""

    thread: str
    connector: str
    seed: int
    planted: str
    names: tuple[str, ...]
    bridge: Generative | Contrastive


def chosen(builders: dict[str, Callable[[], nn.Module]], only: Sequence[str]) -> dict[str, Callable[[], nn.Module]]:
    """The connectors by the names in `only`, or all of them.

    Raises:
        ValueError: for a name that is not there.
    """
    if unknown := set(only) - builders.keys():
        raise ValueError(f"connector {unknown.pop()!r} is unknown; choose from {', '.join(builders)}")
    return {name: builders[name] for name in only or builders}


class Altered(nn.Module):
    """A module whose output is changed: detached, scaled, or in evaluation the same for all rows."""

    def __init__(self, inner: nn.Module, way: Callable[[Tensor, bool], Tensor]):
        super().__init__()
        self.inner, self.way = inner, way

    def forward(self, *inputs: Tensor) -> Any:
        found = self.inner(*inputs)
        if isinstance(found, tuple):  # embeddings of image and text, and their factor: the image's
            return (self.way(found[0], self.training), *found[1:])
        return self.way(found, self.training)


def in_training_alone(x: Tensor, training: bool) -> Tensor:
    """A way to alter: in evaluation all rows are the first."""
    return x if training else x[:1].expand_as(x)


@dataclass(frozen=True)
class Samples:
    """Inputs of a connector, what the host should say, and its loss from tokens and the rows that they are for."""

    inputs: tuple[Tensor, ...]
    labels: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]

    def scaled(self, factor: float) -> tuple[Tensor, ...]:
        return (self.inputs[0] * factor, *self.inputs[1:])


@dataclass(frozen=True)
class Speech:
    """A connector into a host that speaks, to be trained on some samples and looked at with others."""

    build: Callable[[], nn.Module]
    taught: Samples
    held: Samples
    embeddings: Tensor
    settings: FitSettings
    seed: int

    def trained(self, settings: FitSettings, factor: float = 1.0) -> tuple[nn.Module, list[float]]:
        """The connector and the loss of every step; `factor` is on the inputs."""
        torch.manual_seed(self.seed)
        connector, inputs = self.build(), self.taught.scaled(factor)

        def batch_loss(rows: Tensor) -> Tensor:
            return self.taught.loss(connector(*(x[rows] for x in inputs)), rows)

        history = fit(connector.train(), batch_loss, len(self.taught.labels), settings, self.seed)
        return connector.eval(), history.losses

    def seen(self, connector: nn.Module, losses: list[float], factor: float = 1.0) -> Generative:
        """What the check-up is given."""
        held = self.held
        return Generative(connector, held.scaled(factor), held.loss, held.labels, self.embeddings, losses=losses)

    def cases(self) -> Iterator[tuple[str, tuple[str, ...], Generative]]:
        """A healthy bridge first, and then what is planted in it."""
        connector, losses = self.trained(self.settings)
        healthy = self.seen(connector, losses)
        first, *others = self.held.inputs
        yield "", (), healthy
        same = first[:1].expand_as(first)
        yield "one input for all", ("constant inputs",), replace(healthy, inputs=(same, *others))
        broken = first.clone()
        broken[3] = torch.nan
        yield "an input that is no number", ("values that are not finite",), replace(healthy, inputs=(broken, *others))
        order = derangement(len(first), self.seed)
        strangers = tuple(x[order] for x in self.held.inputs)
        yield "pairs shuffled", ("pairs that do not belong together",), replace(healthy, inputs=strangers)
        for planted, name, way in (
            ("connector detached", "no gradient to the connector", lambda x, _: x.detach()),
            ("input used in training alone", "another model in evaluation", in_training_alone),
            ("tokens a thousandth as loud", "scale far from the host's", lambda x, _: x * FAINT),
        ):
            yield planted, (name,), replace(healthy, connector=Altered(connector, way).eval())
        fresh, still = self.trained(replace(self.settings, lr=0.0, steps=FEW))
        yield "connector untrained", UNTRAINED, self.seen(fresh, [])
        yield "rate of zero", ("training that moves nothing",), self.seen(fresh, still)
        gates = [name for name, p in connector.named_parameters() if "gate" in name and p.numel() == 1]
        if gates:
            shut = deepcopy(connector)
            with torch.no_grad():
                for name in gates:
                    shut.get_parameter(name).zero_()
            yield "gates shut", ("gates that are shut",), self.seen(shut, losses)
