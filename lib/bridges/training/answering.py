"""Train translators by which one frozen LLM tells another what it has read, many recipes and seeds at once."""

from collections.abc import Callable, Mapping, Sequence
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
from bridges.hosts.causal import adapted, answer_loss, read_logits
from bridges.training.ensemble import Ensemble, alike, fit_ensemble
from bridges.training.exams import Answers, Exam, Pair, answers_of, bridge_logits
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
        """Equal for recipes that differ in values alone and can share one vectorised graph."""
        groups = tuple(replace(g, rate=1.0, weight_decay=None) for g in self.fit.groups)
        fit = FitSettings(self.fit.steps, batch=self.fit.batch, groups=groups)
        anchor = self.anchor and replace(self.anchor, weight=0.0)
        return replace(self, fit=fit, scale=1.0, layer=0, anchor=anchor, translator=replace(self.translator, gate=0.0))


class _Weighted(Bridge):
    """A bridge that carries the weight of its penalty, which may differ between models trained side by side."""

    weight: Tensor

    def __init__(self, bridge: Bridge, weight: float):
        super().__init__(bridge.translator, bridge.scale, int(bridge.layer))
        self.register_buffer("weight", torch.tensor(weight))

    def forward(self, states: Tensor, mask: Tensor, opened: float | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(states, mask, opened), self.weight


class _Adapted(_Weighted):
    """The same with a target of its own, which puts its logits in the place of the soft tokens where rows are given."""

    def __init__(self, bridge: Bridge, weight: float, target: PreTrainedModel):
        super().__init__(bridge, weight)
        target.set_attn_implementation("eager")  # vmap has no rule for the fused one
        self.target = target

    def forward(  # type: ignore[override]
        self,
        states: Tensor,
        mask: Tensor,
        opened: float | None = None,
        rows: Tensor | None = None,
        exam: Exam | None = None,
        visible: bool = False,
    ) -> tuple[Tensor, Tensor]:
        soft, weight = super().forward(states, mask, opened)
        if rows is None or exam is None:
            return soft, weight
        return bridge_logits(self.target, soft, exam, rows, visible), weight


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
    runs: Sequence[tuple[BridgeRecipe, int]],
    pair: Pair,
    exam: Exam,
    *,
    looks: Sequence[int] = (),
    exams: Mapping[str, Exam] | None = None,
    watch: Callable[[BridgeRecipe, Bridge], Any] | None = None,
    select: str = "",
    describe: str = "bridges",
) -> list[Trained]:
    """Train every (recipe, seed) into one pair of hosts; those of one architecture share a vectorised graph.

    Two runs of one shape and one seed start from the same values, and two of one seed see the same batches.

    Args:
        runs: what to train, and the seed of its values and batches.
        pair: the hosts, which stay as they are.
        exam: problems to train on.
        looks: numbers of steps after which every bridge answers the exams.
        exams: problems to look at, by name.
        watch: anything else to be measured of a bridge at each look.
        select: the exam whose accuracy a plateau schedule follows.
        describe: what the progress bar says.
    """
    found: dict[int, Trained] = {}
    for members in alike([recipe.architecture for recipe, _ in runs]):
        chosen = [runs[i] for i in members]
        group = _Group(chosen, pair, exam, looks, exams or {}, watch, select)
        for index, trained in zip(members, group.train(describe), strict=True):
            found[index] = trained
    return [found[i] for i in range(len(runs))]


class _Group:
    """Runs of one architecture, trained in one ensemble."""

    def __init__(
        self,
        runs: list[tuple[BridgeRecipe, int]],
        pair: Pair,
        exam: Exam,
        looks: Sequence[int],
        exams: Mapping[str, Exam],
        watch: Callable[[BridgeRecipe, Bridge], Any] | None,
        select: str,
    ):
        self.runs, self.pair, self.exam = runs, pair, exam
        self.looks, self.exams, self.watch, self.select = looks, exams, watch, select
        self.shared = runs[0][0]  # what all recipes have in common can be read off the first
        self.seen: list[dict[int, dict[str, Answers]]] = [{} for _ in runs]
        self.watched: list[dict[int, Any]] = [{} for _ in runs]
        self.baseline = self._baseline() if self.shared.anchor else None

    def train(self, describe: str) -> list[Trained]:
        models = []
        for recipe, seed in self.runs:
            weight = recipe.anchor.weight if recipe.anchor else 0.0
            bridge = untrained(recipe, seed, self.pair)
            own = _Adapted(bridge, weight, adapted(self.pair.target, recipe.lora)) if recipe.lora else None
            models.append((own or _Weighted(bridge, weight)).to(self.pair.target.device).train())
        ensemble = fit_ensemble(
            models,
            self._loss,
            len(self.exam.problems),
            [recipe.fit for recipe, _ in self.runs],
            [seed for _, seed in self.runs],
            folded=True,
            look=self._look,
            describe=f"{describe}, {len(models)} at once",
        )
        found = []
        for i, (recipe, seed) in enumerate(self.runs):
            bridge, losses = _bridge(ensemble, i), ensemble.losses[:, i].tolist()
            found.append(Trained(recipe, seed, bridge, losses, self.seen[i], self.watched[i], _target(ensemble, i)))
        return found

    def _loss(self, models: Callable[..., Any], rows: Int[Tensor, "models batch"], step: int) -> Tensor:
        own, exam = self.shared, self.exam
        opened = min(1.0, step / own.ramp) if own.ramp else None
        read = exam.states[:, rows].transpose(0, 1), exam.mask[rows], opened
        if own.lora:
            logits, weights = models(*read, rows, exam, own.visible)
        else:  # the host reads the batches of all models as one
            soft, weights = models(*read)
            flat = bridge_logits(self.pair.target, soft.flatten(0, 1), exam, rows.flatten(), own.visible)
            logits = flat.unflatten(0, rows.shape)
        anchored = own.anchor and step >= own.anchor.start
        losses = []
        for told, own_rows, weight in zip(logits, rows, weights, strict=True):
            loss = answer_loss(told, self._labels(own_rows, step))
            losses.append(loss + weight * self._penalty(told, own_rows) if anchored else loss)
        return torch.stack(losses)

    def _labels(self, rows: Tensor, step: int) -> Tensor:
        """The answers, or as much of them as the stage asks for."""
        labels, over = self.exam.labels[rows], self.shared.staged
        if self.shared.shift:
            labels = pad(labels[:, self.shared.shift :], (0, self.shared.shift), value=-100)
        if step >= over:
            return labels
        asked = 2 + step * labels.shape[1] // over
        return labels.masked_fill(torch.arange(labels.shape[1], device=labels.device) >= asked, -100)

    def _penalty(self, logits: Tensor, rows: Tensor) -> Tensor:
        anchor, baseline = cast(Anchor, self.shared.anchor), cast(Tensor, self.baseline)[rows]
        if not anchor.aligned:
            return kl_as_written(logits, baseline, anchor.positions)
        answers = self.exam.labels[rows]
        return kl_aligned(logits[:, -answers.shape[1] - 1 : -1], baseline, answers != -100, anchor.positions)

    @torch.no_grad()
    def _baseline(self, batch: int = 512) -> Tensor:
        """Logits of the target that reads the question itself: of its prompt, or of the answer behind it."""
        anchor = self.shared.anchor
        (ids, mask), labels = self.exam.visible, self.exam.labels
        found = []
        for start in range(0, len(ids), batch):
            part = slice(start, start + batch)
            if anchor and not anchor.aligned:
                logits = self.pair.target(input_ids=ids[part], attention_mask=mask[part]).logits  # as the log calls it
                found.append(logits[:, : anchor.positions])
            else:
                told, there = labels[part].clamp_min(0), (labels[part] != -100).long()
                both = torch.cat([ids[part], told], 1), torch.cat([mask[part], there], 1)
                found.append(read_logits(self.pair.target, None, *both)[:, -labels.shape[1] - 1 : -1])
        return torch.cat(found)

    def _look(self, step: int, ensemble: Ensemble) -> list[float] | None:
        if step not in self.looks:
            return None
        calm = replace(ensemble, template=deepcopy(ensemble.template).eval())
        # With a schedule the gates' own values were never trained: the looks open them as the schedule had them.
        opened = min(1.0, step / self.shared.ramp) if self.shared.ramp else None
        for name, exam in self.exams.items():
            soft = calm.apply(exam.states, exam.mask, opened)[0]  # (M, N, K, d)
            if self.shared.lora:
                targets = [cast(PreTrainedModel, _target(calm, i)) for i in range(len(soft))]
                said = [self._answers(target, one[None], exam)[0] for target, one in zip(targets, soft, strict=True)]
            else:
                said = self._answers(self.pair.target, soft, exam)
            for seen, one in zip(self.seen, said, strict=True):
                seen.setdefault(step, {})[name] = one
        for i, (recipe, _) in enumerate(self.runs):
            if self.watch:
                self.watched[i][step] = self.watch(recipe, _bridge(calm, i))
        return [-seen[step][self.select].accuracy for seen in self.seen] if self.select else None

    def _answers(self, target: PreTrainedModel, soft: Tensor, exam: Exam) -> list[Answers]:
        return answers_of(target, self.pair.target_words, soft, exam, self.shared.visible)


def _bridge(ensemble: Ensemble, place: int) -> Bridge:
    model = cast(_Weighted, ensemble.model(place))
    return Bridge(model.translator, model.scale, int(model.layer)).eval()


def _target(ensemble: Ensemble, place: int) -> PreTrainedModel | None:
    if not isinstance(ensemble.template, _Adapted):
        return None
    return cast(_Adapted, ensemble.model(place)).target.eval()
