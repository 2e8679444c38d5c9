"""Train translators by which one frozen LLM tells another what it has read, many recipes and seeds at once."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bridges.connectors.scale import ScaleMatch, embedding_rms
from bridges.connectors.translator import GatedTranslator, TranslatorSettings
from bridges.hosts.causal import answer_loss, generate, hidden_states, read_logits, until_end
from bridges.tasks import word_problems
from bridges.tasks.gsm8k import marked_answer
from bridges.tasks.word_problems import Format, Problem, encode, prompt
from bridges.training.ensemble import Ensemble, fit_ensemble
from bridges.training.fit import FitSettings
from bridges.training.losses import kl_aligned, kl_as_written
from bridges.training.pretrain import TAUGHT, small_solver

# Of the seeds 0 to 3 tried in scouting, bridges into the hosts of seed 1 learnt next to nothing within the steps there
# are; what is measured on these two holds for hosts that can be read.
HOST_SEEDS = (2, 3)
LONGEST = 20  # tokens that an answer may have: the longest solution takes 18 and its end token one


@dataclass(frozen=True)
class Pair:
    """A source that reads and a target that answers, both frozen, each with its tokenizer."""

    source: PreTrainedModel
    source_words: PreTrainedTokenizerBase
    target: PreTrainedModel
    target_words: PreTrainedTokenizerBase


@dataclass(frozen=True)
class Exam:
    """Problems as the two hosts of a pair read them: the source's states, the target's prompts and answers."""

    problems: tuple[Problem, ...]
    states: Float[Tensor, "layers problems length width"]
    mask: Int[Tensor, "problems length"]
    hidden: tuple[Int[Tensor, "problems prompt"], Int[Tensor, "problems prompt"]]  # ids and mask, without the question
    visible: tuple[Int[Tensor, "problems text"], Int[Tensor, "problems text"]]  # with it
    labels: Int[Tensor, "problems answer"]  # -100 where there is none

    def prompts(self, visible: bool) -> tuple[Tensor, Tensor]:
        """The target's prompt ids and their mask."""
        return self.visible if visible else self.hidden

    def first(self, count: int) -> "Exam":
        """The first `count` problems alone."""
        hidden, visible = ((ids[:count], mask[:count]) for ids, mask in (self.hidden, self.visible))
        return Exam(
            self.problems[:count], self.states[:, :count], self.mask[:count], hidden, visible, self.labels[:count]
        )


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
    the question behind the soft tokens. `shift` asks each position for a token so much later than the next, as happens
    where a training loop shifts the labels and the host shifts them again. `ramp` opens the gates over so many steps by
    a schedule in their place. `staged` lets the answers grow from their first tokens to their whole length over so many
    steps.
    """

    fit: FitSettings
    translator: TranslatorSettings
    scale: float | None = 1.0
    layer: int = 1
    visible: bool = False
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


class _Weighted(Bridge):
    """A bridge that carries the weight of its penalty, which may differ between models trained side by side."""

    weight: Tensor

    def __init__(self, bridge: Bridge, weight: float):
        super().__init__(bridge.translator, bridge.scale, int(bridge.layer))
        self.register_buffer("weight", torch.tensor(weight))

    def forward(self, states: Tensor, mask: Tensor, opened: float | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(states, mask, opened), self.weight


@dataclass(frozen=True)
class Answers:
    """What a target said to each problem of an exam, and whether the number behind its first marker is right."""

    ids: list[list[int]]  # up to and with the end token
    texts: list[str]
    right: list[bool]

    @property
    def accuracy(self) -> float:
        """In points, 0 to 100."""
        return 100 * sum(self.right) / len(self.right)


@dataclass(frozen=True)
class Trained:
    """A trained bridge, the loss of every step in nats per token, and at each look its answers to each exam."""

    recipe: BridgeRecipe
    seed: int
    bridge: Bridge
    losses: list[float]
    looks: dict[int, dict[str, Answers]] = field(default_factory=dict)
    watched: dict[int, Any] = field(default_factory=dict)

    def accuracies(self, exam: str) -> dict[int, float]:
        """By the number of steps done, in points."""
        return {step: seen[exam].accuracy for step, seen in self.looks.items()}

    def drop(self, exam: str) -> float:
        """The highest accuracy of the run minus its last, in points."""
        found = list(self.accuracies(exam).values())
        return max(found) - found[-1]


def examine(problems: Sequence[Problem], pair: Pair, form: Format = "worked", with_answers: bool = False) -> Exam:
    """Let the source read the problems' questions, and encode what the target reads and should answer.

    `with_answers` lets the source read the solutions too: a leak, to see what one looks like.
    """
    device = pair.source.device
    read = [prompt(p.question, pair.source_words) + (f" {p.solution(form)}" if with_answers else "") for p in problems]
    ids, mask = (t.to(device) for t in encode(read, pair.source_words))
    hidden = encode([prompt("", pair.target_words)] * len(problems), pair.target_words)
    visible = encode([prompt(p.question, pair.target_words) for p in problems], pair.target_words)
    said = [f"{p.solution(form)} {pair.target_words.eos_token}" for p in problems]
    answers, there = encode(said, pair.target_words, "right")
    return Exam(
        tuple(problems),
        hidden_states(pair.source, ids, mask).float(),  # the translator computes in float32, whatever its hosts do
        mask,
        (hidden[0].to(device), hidden[1].to(device)),
        (visible[0].to(device), visible[1].to(device)),
        answers.masked_fill(there == 0, -100).to(device),
    )


def read(ids: Sequence[Sequence[int]], problems: Sequence[Problem], words: PreTrainedTokenizerBase) -> Answers:
    """Mark generated ids against the problems."""
    texts = words.batch_decode([list(row) for row in ids], skip_special_tokens=True)
    right = [marked_answer(text) == str(p.answer) for text, p in zip(texts, problems, strict=True)]
    return Answers([list(row) for row in ids], texts, right)


def answer(
    target: PreTrainedModel,
    words: PreTrainedTokenizerBase,
    soft: Float[Tensor, "problems tokens dim"] | None,
    exam: Exam,
    visible: bool,
    **options: Any,
) -> Answers:
    """What the target says behind the soft tokens, or by itself; `options` go to transformers' `generate`."""
    return _answers(target, words, None if soft is None else soft[None], exam, visible, **options)[0]


def _answers(
    target: PreTrainedModel,
    words: PreTrainedTokenizerBase,
    soft: Float[Tensor, "models problems tokens dim"] | None,
    exam: Exam,
    visible: bool,
    batch: int = 1024,
    **options: Any,
) -> list[Answers]:
    """The same for several bridges, whose batches are one."""
    (ids, mask), models = exam.prompts(visible), 1 if soft is None else len(soft)
    ids, mask = ids.repeat(models, 1), mask.repeat(models, 1)
    tokens = None if soft is None else soft.flatten(0, 1)
    said: list[list[int]] = []
    for start in range(0, len(ids), batch):
        part = slice(start, start + batch)
        own = None if tokens is None else tokens[part]
        new = generate(target, own, ids[part], mask[part], **{"max_new_tokens": LONGEST} | options)
        said += until_end(new, cast(int, words.eos_token_id))
    count = len(exam.problems)
    return [read(said[i * count : (i + 1) * count], exam.problems, words) for i in range(models)]


def source_alone(pair: Pair, exam: Exam) -> Answers:
    """What the source itself answers to the questions that it reads."""
    texts = [prompt(p.question, pair.source_words) for p in exam.problems]
    ids, mask = (t.to(pair.source.device) for t in encode(texts, pair.source_words))
    said = until_end(generate(pair.source, None, ids, mask, LONGEST), cast(int, pair.source_words.eos_token_id))
    return read(said, exam.problems, pair.source_words)


@dataclass(frozen=True)
class Bench:
    """A pair of hosts with the problems that bridges between them are trained on, and looked at with."""

    pair: Pair
    taught: Exam
    exams: Mapping[str, Exam]

    def four_lines(self, bridge: "Bridge", exam: str, visible: bool) -> dict[str, Answers]:
        """What every comparison needs: target alone, source alone, bridged, and bridged from another problem's states.

        Alone the target reads the question, whether it does so behind the soft tokens or not.
        """
        own, words = self.exams[exam], self.pair.target_words
        with torch.no_grad():
            soft, other = bridge(own.states, own.mask), bridge(own.states.roll(1, 1), own.mask.roll(1, 0))
        return {
            "target alone": answer(self.pair.target, words, None, own, visible=True),
            "source alone": source_alone(self.pair, own),
            "bridged": answer(self.pair.target, words, soft, own, visible),
            "shuffled source": answer(self.pair.target, words, other, own, visible),
        }


def bench(
    seed: int, size: str, cache: Path, device: str = "cpu", target: str = "target", asked: int = 200, taught: int = 4000
) -> Bench:
    """The small hosts of a seed, `taught` of the problems they have learnt, and the exams `select` and `report`.

    Each exam has `asked` problems that neither host has seen.
    """
    pair = Pair(
        small_solver("source", seed, size, cache, device),
        word_problems.tokenizer("source"),
        small_solver(target, seed, size, cache, device),
        word_problems.tokenizer("target"),
    )
    known, select, report = word_problems.split([TAUGHT, asked, asked])
    return Bench(
        pair, examine(known[:taught], pair), {"select": examine(select, pair), "report": examine(report, pair)}
    )


def train_arms(
    arms: Mapping[str, BridgeRecipe], seeds: Sequence[int], benches: Sequence[Bench], **options: Any
) -> dict[tuple[str, int], Trained]:
    """Train every arm with every seed, seed s on bench s modulo their number; `options` go to `train_bridges`.

    The bench's exams are looked at unless other ones are given.
    """
    found: dict[tuple[str, int], Trained] = {}
    for place, own in enumerate(benches):
        runs = [(name, seed) for name in arms for seed in seeds if seed % len(benches) == place]
        trained = train_bridges(
            [(arms[name], seed) for name, seed in runs], own.pair, own.taught, **{"exams": own.exams} | options
        )
        found |= dict(zip(runs, trained, strict=True))
    return found


def untrained(recipe: BridgeRecipe, seed: int, pair: Pair) -> Bridge:
    """The bridge before its first step, its values drawn from `seed`."""
    torch.manual_seed(seed)
    widths = pair.source.config.hidden_size, pair.target.config.hidden_size
    translator = GatedTranslator(widths[0], recipe.translator, widths[1])
    scale = ScaleMatch(embedding_rms(pair.target) * (recipe.scale or 1.0), norm=recipe.scale is not None)
    return Bridge(translator, scale, recipe.layer).to(pair.target.device)


def bridge_logits(
    target: PreTrainedModel,
    soft: Float[Tensor, "batch tokens dim"] | None,
    exam: Exam,
    rows: Int[Tensor, " batch"],
    visible: bool,
) -> Float[Tensor, "batch read vocabulary"]:
    """The target's logits while it reads soft tokens, prompt and answer; `answer_loss` takes them with the labels."""
    ids, mask = (part[rows] for part in exam.prompts(visible))
    labels = exam.labels[rows]
    there = (labels != -100).long()
    return read_logits(target, soft, torch.cat([ids, labels.clamp_min(0)], 1), torch.cat([mask, there], 1))


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
    alike: dict[object, list[int]] = {}
    for index, (recipe, _) in enumerate(runs):
        alike.setdefault(recipe.architecture, []).append(index)
    found: dict[int, Trained] = {}
    for members in alike.values():
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
            models.append(_Weighted(untrained(recipe, seed, self.pair), weight).to(self.pair.target.device).train())
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
        return [
            Trained(recipe, seed, _bridge(ensemble, i), ensemble.losses[:, i].tolist(), self.seen[i], self.watched[i])
            for i, (recipe, seed) in enumerate(self.runs)
        ]

    def _loss(self, models: Callable[..., Any], rows: Int[Tensor, "models batch"], step: int) -> Tensor:
        own, exam = self.shared, self.exam
        opened = min(1.0, step / own.ramp) if own.ramp else None
        soft, weights = models(exam.states[:, rows].transpose(0, 1), exam.mask[rows], opened)
        # The host reads the batches of all models as one.
        logits = bridge_logits(self.pair.target, soft.flatten(0, 1), exam, rows.flatten(), own.visible)
        anchored = own.anchor and step >= own.anchor.start
        losses = []
        for told, own_rows, weight in zip(logits.chunk(len(rows)), rows, weights, strict=True):
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
            said = _answers(self.pair.target, self.pair.target_words, soft, exam, self.shared.visible)
            for seen, one in zip(self.seen, said, strict=True):
                seen.setdefault(step, {})[name] = one
        for i, (recipe, _) in enumerate(self.runs):
            if self.watch:
                self.watched[i][step] = self.watch(recipe, _bridge(calm, i))
        return [-seen[step][self.select].accuracy for seen in self.seen] if self.select else None


def _bridge(ensemble: Ensemble, place: int) -> Bridge:
    model = cast(_Weighted, ensemble.model(place))
    return Bridge(model.translator, model.scale, int(model.layer)).eval()
