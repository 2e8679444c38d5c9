"""Runs of bridges: how a bridge between two frozen LLMs is made, and many trained side by side."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from bridges.benches.exams import Answers, Bench, Exam, Pair, answers_of, bridge_logits
from bridges.connectors.scale import ScaleMatch, embedding_rms
from bridges.connectors.translator import Bridge, GatedTranslator, TranslatorSettings
from bridges.hosts.causal import adapted, answer_loss
from bridges.training.ensemble import Ensemble, alike, fit_ensemble
from bridges.training.fit import FitSettings


@dataclass(frozen=True)
class Batch:
    """What a penalty on the loss may look at: the target's logits behind one bridge, and what they were asked for."""

    logits: Tensor  # (B, read, V)
    labels: Tensor  # (B, answer), -100 where there is none
    rows: Tensor  # (B,), which of the taught problems
    step: int
    bench: Bench


@dataclass(frozen=True)
class BridgeRecipe:
    """How a bridge is made and trained.

    `scale` is the soft tokens' RMS over that of the target's embeddings, after LayerNorm; None leaves them as they
    come. `layer` is the source's: 0 its embeddings, 1 what the first block puts out. With `visible` the target reads
    the question behind the soft tokens. `lora` is the rank of the adapter that each run trains in a target of its own
    (`hosts.causal.adapted`), 0 for none.

    What an experiment is about it gives as functions: `labels(labels, step)` changes what is asked for,
    `penalty(batch)` is added to the loss in nats per token, `opened(step)` stands in for how far the gates are open,
    0 to 1.
    """

    fit: FitSettings
    translator: TranslatorSettings
    scale: float | None = 1.0
    layer: int = 1
    visible: bool = False
    lora: int = 0
    labels: Callable[[Tensor, int], Tensor] | None = None
    penalty: Callable[[Batch], Tensor] | None = None
    opened: Callable[[int], float] | None = None

    @property
    def architecture(self) -> object:
        """Equal for recipes that differ in values alone, or in their loss, and can share one vectorised graph."""
        groups = tuple(replace(g, rate=1.0, weight_decay=None) for g in self.fit.groups)
        fit = FitSettings(self.fit.steps, batch=self.fit.batch, groups=groups)
        shape = replace(self.translator, gate=0.0)
        return BridgeRecipe(fit, shape, visible=self.visible, lora=self.lora, opened=self.opened)


class AdaptedBridge(Bridge):
    """A bridge with a target of its own, which puts its logits in the place of the soft tokens where rows are given."""

    def __init__(self, bridge: Bridge, target: PreTrainedModel):
        super().__init__(bridge.translator, bridge.scale, int(bridge.layer))
        target.set_attn_implementation("eager")  # vmap has no rule for the fused one
        self.target = target

    def forward(
        self,
        states: Tensor,
        mask: Tensor,
        opened: float | None = None,
        rows: Tensor | None = None,
        exam: Exam | None = None,
        visible: bool = False,
    ) -> Tensor:
        soft = super().forward(states, mask, opened)
        return soft if rows is None or exam is None else bridge_logits(self.target, soft, exam, rows, visible)


@dataclass(frozen=True)
class TrainedBridge:
    """A trained bridge, the loss of every step in nats per token, and at each look its answers to each exam.

    `target` is the bridge's own where it was adapted, and else the pair's, which is not kept here.
    """

    recipe: BridgeRecipe
    seed: int
    bridge: Bridge
    losses: list[float]
    looks: dict[int, dict[str, Answers]] = field(default_factory=dict)
    watched: dict[int, Any] = field(default_factory=dict)
    target: PreTrainedModel | None = None

    def accuracies(self, exam: str) -> dict[int, float]:
        """By the number of steps done, in points."""
        return {step: seen[exam].accuracy for step, seen in self.looks.items()}

    def drop(self, exam: str) -> float:
        """The highest accuracy of the run minus its last, in points."""
        found = list(self.accuracies(exam).values())
        return max(found) - found[-1]


def untrained(recipe: BridgeRecipe, seed: int, pair: Pair) -> Bridge:
    """The bridge before its first step, its values drawn from `seed`."""
    torch.manual_seed(seed)
    widths = pair.source.config.hidden_size, pair.target.config.hidden_size
    translator = GatedTranslator(widths[0], recipe.translator, widths[1])
    scale = ScaleMatch(embedding_rms(pair.target) * (recipe.scale or 1.0), norm=recipe.scale is not None)
    return Bridge(translator, scale, recipe.layer).to(pair.target.device)


def with_target(bridge: Bridge, recipe: BridgeRecipe, pair: Pair) -> Bridge:
    """The bridge with an adapted target of its own where its recipe asks for one, and else as it is."""
    return AdaptedBridge(bridge, adapted(pair.target, recipe.lora)) if recipe.lora else bridge


def train_bridges(
    runs: Sequence[tuple[BridgeRecipe, int, Bench]],
    *,
    looks: Sequence[int] = (),
    read: Callable[[Bridge, Bench], Any] | None = None,
    select: str = "",
    describe: str = "bridges",
) -> list[TrainedBridge]:
    """Train every (recipe, seed) on its bench; those of one architecture share a vectorised graph, whatever the bench.

    Two runs of one shape and one seed start from the same values, and two of one seed see the same batches.

    Args:
        runs: what to train, the seed of its values and batches, and its hosts, which stay as they are.
        looks: numbers of steps after which every bridge answers the exams of its bench.
        read: anything else to be measured of a bridge at each look, given its hosts and exams.
        select: the exam whose accuracy a plateau schedule follows.
        describe: what the progress bar says.
    """
    found: dict[int, TrainedBridge] = {}
    kinds = [
        # Adapted targets are stacked, and with them what they read: they keep to one bench.
        (recipe.architecture, _shape(own), recipe.lora and id(own))
        for recipe, _, own in runs
    ]
    for members in alike(kinds):
        group = _Group([runs[i] for i in members], looks, read, select)
        for index, trained in zip(members, group.train(describe), strict=True):
            found[index] = trained
    return [found[i] for i in range(len(runs))]


def _shape(bench: Bench) -> tuple[int, ...]:
    """What benches must share for bridges over them to be stacked: all widths and the questions' padded length."""
    layers, _, length, width = bench.taught.states.shape
    return layers, length, width, bench.pair.target.config.hidden_size


class _Group:
    """Runs of one architecture, trained in one ensemble."""

    def __init__(
        self,
        runs: list[tuple[BridgeRecipe, int, Bench]],
        looks: Sequence[int],
        read: Callable[[Bridge, Bench], Any] | None,
        select: str,
    ):
        self.runs, self.looks, self.read, self.select = runs, looks, read, select
        self.shared = runs[0][0]  # what all recipes have in common can be read off the first
        self.homes = [(runs[own[0]][2], own) for own in alike([id(bench) for *_, bench in runs])]
        self.seen: list[dict[int, dict[str, Answers]]] = [{} for _ in runs]
        self.watched: list[dict[int, Any]] = [{} for _ in runs]

    def train(self, describe: str) -> list[TrainedBridge]:
        models = []
        for recipe, seed, bench in self.runs:
            bridge = with_target(untrained(recipe, seed, bench.pair), recipe, bench.pair)
            models.append(bridge.to(bench.pair.target.device).train())
        ensemble = fit_ensemble(
            models,
            self._loss,
            [len(bench.taught.problems) for *_, bench in self.runs],
            [recipe.fit for recipe, *_ in self.runs],
            [seed for _, seed, _ in self.runs],
            folded=True,
            look=self._look,
            describe=f"{describe}, {len(models)} at once",
        )
        found = []
        for i, (recipe, seed, _) in enumerate(self.runs):
            bridge, losses = _bridge(ensemble, i), ensemble.losses[:, i].tolist()
            seen, watched = self.seen[i], self.watched[i]
            found.append(TrainedBridge(recipe, seed, bridge, losses, seen, watched, _target(ensemble, i)))
        return found

    def _loss(self, models: Callable[..., Any], rows: Int[Tensor, "models batch"], step: int) -> Tensor:
        own, runs = self.shared, self.runs[: len(rows)]  # the first alone where `fit_ensemble` tries the loss
        opened = own.opened(step) if own.opened else None
        taught = [bench.taught for *_, bench in runs]
        # A bridge reads one layer: that one stands in for all, which would take as long to copy as to read.
        layer = [exam.states[r.layer, each] for exam, (r, *_), each in zip(taught, runs, rows, strict=True)]
        states = torch.stack(layer)[:, None].expand(-1, len(taught[0].states), -1, -1, -1)
        read = states, torch.stack([exam.mask[each] for exam, each in zip(taught, rows, strict=True)]), opened
        logits: dict[int, Tensor] = {}
        if own.lora:
            logits = dict(enumerate(models(*read, rows, taught[0], own.visible)))
        else:
            soft = models(*read)
            for bench, places in self.homes:  # a host reads the batches of all its models as one
                here = [place for place in places if place < len(rows)]
                if here:
                    told = bridge_logits(
                        bench.pair.target, soft[here].flatten(0, 1), bench.taught, rows[here].flatten(), own.visible
                    )
                    logits |= dict(zip(here, told.unflatten(0, (len(here), -1)), strict=True))
        losses = []
        for i, (recipe, _, bench) in enumerate(runs):
            labels = bench.taught.labels[rows[i]]
            if recipe.labels:
                labels = recipe.labels(labels, step)
            loss = answer_loss(logits[i], labels)
            if recipe.penalty:
                loss = loss + recipe.penalty(Batch(logits[i], labels, rows[i], step, bench))
            losses.append(loss)
        return torch.stack(losses)

    def _look(self, step: int, ensemble: Ensemble) -> list[float] | None:
        if step not in self.looks:
            return None
        calm = replace(ensemble, template=deepcopy(ensemble.template).eval())
        # With a schedule the gates' own values were never trained: the looks open them as the schedule had them.
        opened = self.shared.opened(step) if self.shared.opened else None
        for bench, places in self.homes:
            part = calm.part(places)
            for name, exam in bench.exams.items():
                soft = part.apply(exam.states, exam.mask, opened)  # (M, N, K, d)
                if self.shared.lora:
                    targets = [cast(PreTrainedModel, _target(part, i)) for i in range(len(soft))]
                    said = [
                        self._answers(target, one[None], exam, bench)[0]
                        for target, one in zip(targets, soft, strict=True)
                    ]
                else:
                    said = self._answers(bench.pair.target, soft, exam, bench)
                for place, one in zip(places, said, strict=True):
                    self.seen[place].setdefault(step, {})[name] = one
        for i, (*_, bench) in enumerate(self.runs):
            if self.read:
                self.watched[i][step] = self.read(_bridge(calm, i), bench)
        return [-seen[step][self.select].accuracy for seen in self.seen] if self.select else None

    def _answers(self, target: PreTrainedModel, soft: Tensor, exam: Exam, bench: Bench) -> list[Answers]:
        return answers_of(target, bench.pair.target_words, soft, exam, self.shared.visible)


def _bridge(ensemble: Ensemble, place: int) -> Bridge:
    model = cast(Bridge, ensemble.model(place))
    return Bridge(model.translator, model.scale, int(model.layer)).eval()


def _target(ensemble: Ensemble, place: int) -> PreTrainedModel | None:
    if not isinstance(ensemble.template, AdaptedBridge):
        return None
    return cast(AdaptedBridge, ensemble.model(place)).target.eval()
