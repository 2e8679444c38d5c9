"""Train translators by which one frozen LLM tells another what it has read, many recipes and seeds at once."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from bridges.connectors.scale import ScaleMatch, embedding_rms
from bridges.connectors.translator import Bridge, GatedTranslator, TranslatorSettings
from bridges.hosts.causal import adapted, answer_loss
from bridges.training.ensemble import Ensemble, alike, fit_ensemble
from bridges.training.exams import Answers, Bench, Exam, Pair, answers_of, bridge_logits
from bridges.training.fit import FitSettings
from bridges.training.losses import kl_aligned, kl_as_written


@dataclass(frozen=True)
class Anchor:
    """A KL penalty towards the target that reads the question and no soft tokens, from step `start` on.

    As the translation log writes it, it compares the two outputs' first `positions` by index; `aligned`, the first
    `positions` tokens of the answer.
    """

    weight: float = 0.03
    positions: int = 20
    aligned: bool = False
    start: int = 0


@dataclass(frozen=True)
class BridgeRecipe:
    """How a bridge is made and trained.

    `scale` is the soft tokens' RMS over that of the target's embeddings, after LayerNorm; None leaves them as they
    come. `layer` is the source's: 0 its embeddings, 1 what the first block puts out. With `visible` the target reads
    the question behind the soft tokens. `lora` is the rank of the adapter that each run trains in a target of its own
    (`hosts.causal.adapted`), 0 for none. `shift` asks each position for a token so much later than the next, as happens
    where a training loop shifts the labels and the host shifts them again. `ramp` opens the gates over so many steps by
    a schedule in their place. `staged` lets the answers grow from their first tokens to their whole length over so many
    steps.
    """

    fit: FitSettings
    translator: TranslatorSettings
    scale: float | None = 1.0
    layer: int = 1
    visible: bool = False
    lora: int = 0
    anchor: Anchor | None = None
    shift: int = 0
    ramp: int = 0
    staged: int = 0

    @property
    def architecture(self) -> object:
        """Equal for recipes that differ in values alone, or in their loss, and can share one vectorised graph."""
        groups = tuple(replace(g, rate=1.0, weight_decay=None) for g in self.fit.groups)
        fit = FitSettings(self.fit.steps, batch=self.fit.batch, groups=groups)
        return BridgeRecipe(
            fit, replace(self.translator, gate=0.0), visible=self.visible, lora=self.lora, ramp=self.ramp
        )


class _Adapted(Bridge):
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
class Trained:
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


def train_bridges(
    runs: Sequence[tuple[BridgeRecipe, int, Bench]],
    *,
    looks: Sequence[int] = (),
    watch: Callable[[BridgeRecipe, Bridge], Any] | None = None,
    select: str = "",
    describe: str = "bridges",
) -> list[Trained]:
    """Train every (recipe, seed) on its bench; those of one architecture share a vectorised graph, whatever the bench.

    Two runs of one shape and one seed start from the same values, and two of one seed see the same batches.

    Args:
        runs: what to train, the seed of its values and batches, and its hosts, which stay as they are.
        looks: numbers of steps after which every bridge answers the exams of its bench.
        watch: anything else to be measured of a bridge at each look.
        select: the exam whose accuracy a plateau schedule follows.
        describe: what the progress bar says.
    """
    found: dict[int, Trained] = {}
    kinds = [
        # Adapted targets are stacked, and with them what they read: they keep to one bench.
        (recipe.architecture, _shape(own), recipe.lora and id(own))
        for recipe, _, own in runs
    ]
    for members in alike(kinds):
        group = _Group([runs[i] for i in members], looks, watch, select)
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
        watch: Callable[[BridgeRecipe, Bridge], Any] | None,
        select: str,
    ):
        self.runs, self.looks, self.watch, self.select = runs, looks, watch, select
        self.shared = runs[0][0]  # what all recipes have in common can be read off the first
        self.homes = [(runs[own[0]][2], own) for own in alike([id(bench) for *_, bench in runs])]
        self.seen: list[dict[int, dict[str, Answers]]] = [{} for _ in runs]
        self.watched: list[dict[int, Any]] = [{} for _ in runs]
        self.baselines = [_baseline(bench, r.anchor) if r.anchor else None for r, _, bench in runs]

    def train(self, describe: str) -> list[Trained]:
        models = []
        for recipe, seed, bench in self.runs:
            bridge, target = untrained(recipe, seed, bench.pair), bench.pair.target
            own = _Adapted(bridge, adapted(target, recipe.lora)) if recipe.lora else bridge
            models.append(own.to(target.device).train())
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
            found.append(Trained(recipe, seed, bridge, losses, self.seen[i], self.watched[i], _target(ensemble, i)))
        return found

    def _loss(self, models: Callable[..., Any], rows: Int[Tensor, "models batch"], step: int) -> Tensor:
        own, runs = self.shared, self.runs[: len(rows)]  # the first alone where `fit_ensemble` tries the loss
        opened = min(1.0, step / own.ramp) if own.ramp else None
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
            loss = answer_loss(logits[i], _labels(recipe, bench.taught, rows[i], step))
            anchor, baseline = recipe.anchor, self.baselines[i]
            if anchor and baseline is not None and step >= anchor.start:
                loss = loss + anchor.weight * _penalty(
                    anchor, logits[i], baseline[rows[i]], bench.taught.labels[rows[i]]
                )
            losses.append(loss)
        return torch.stack(losses)

    def _look(self, step: int, ensemble: Ensemble) -> list[float] | None:
        if step not in self.looks:
            return None
        calm = replace(ensemble, template=deepcopy(ensemble.template).eval())
        # With a schedule the gates' own values were never trained: the looks open them as the schedule had them.
        opened = min(1.0, step / self.shared.ramp) if self.shared.ramp else None
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
        for i, (recipe, *_) in enumerate(self.runs):
            if self.watch:
                self.watched[i][step] = self.watch(recipe, _bridge(calm, i))
        return [-seen[step][self.select].accuracy for seen in self.seen] if self.select else None

    def _answers(self, target: PreTrainedModel, soft: Tensor, exam: Exam, bench: Bench) -> list[Answers]:
        return answers_of(target, bench.pair.target_words, soft, exam, self.shared.visible)


def _labels(recipe: BridgeRecipe, exam: Exam, rows: Int[Tensor, " batch"], step: int) -> Tensor:
    """The answers, or as much of them as the stage asks for."""
    labels, over = exam.labels[rows], recipe.staged
    if recipe.shift:
        labels = pad(labels[:, recipe.shift :], (0, recipe.shift), value=-100)
    if step >= over:
        return labels
    asked = 2 + step * labels.shape[1] // over
    return labels.masked_fill(torch.arange(labels.shape[1], device=labels.device) >= asked, -100)


def _penalty(anchor: Anchor, logits: Tensor, baseline: Tensor, answers: Tensor) -> Tensor:
    if not anchor.aligned:
        return kl_as_written(logits, baseline, anchor.positions)
    return kl_aligned(logits[:, -answers.shape[1] - 1 : -1], baseline, answers != -100, anchor.positions)


def _baseline(bench: Bench, anchor: Anchor) -> Tensor:
    """Logits of the target that reads the question itself: of its prompt, or of the answer behind it."""
    return bench.answer_logits if anchor.aligned else bench.prompt_logits[:, : anchor.positions]


def _bridge(ensemble: Ensemble, place: int) -> Bridge:
    model = cast(Bridge, ensemble.model(place))
    return Bridge(model.translator, model.scale, int(model.layer)).eval()


def _target(ensemble: Ensemble, place: int) -> PreTrainedModel | None:
    if not isinstance(ensemble.template, _Adapted):
        return None
    return cast(_Adapted, ensemble.model(place)).target.eval()
