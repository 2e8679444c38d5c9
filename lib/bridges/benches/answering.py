"""Word problems that one frozen LLM reads and another answers: recipes and seeds in, a study out."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import cast

import torch

from bridges.benches.bridge_runs import (
    AdaptedBridge,
    BridgeRecipe,
    TrainedBridge,
    train_bridges,
    untrained,
    with_target,
)
from bridges.benches.exams import LONGEST, Bench, Pair, answer, examine, source_alone
from bridges.benches.pretrain import TAUGHT, small_solver, solver_recipe
from bridges.benches.study import PER_HOST, Outcome, Study
from bridges.connectors.translator import Bridge
from bridges.instruments.generation import degeneration
from bridges.tasks import word_problems

RECENT = 20  # steps over which a look averages the training loss


@dataclass(frozen=True)
class Answering:
    """Word problems that a source reads and a target answers, for each seed another pair of hosts.

    Every exam has `asked` problems that neither host has seen; bridges learn from `taught` of those that they have. The
    target is one of `pretrain.SOLVERS`; with `same_target` it is that of seed 0 for all.
    """

    cache: Path = field(metadata={"settings": False})
    device: str = field(default="cpu", metadata={"settings": False})
    size: str = "quick"
    target: str = "target"
    asked: int = 200
    taught: int = 4000
    exams: tuple[str, ...] = ("report",)
    same_target: bool = False

    @property
    def depends(self) -> list[object]:
        """The recipes of the hosts, without their seeds, with which rows go stale."""
        return [solver_recipe(role, self.size) for role in ("source", self.target)]

    def home(self, seed: int) -> Bench:
        """The hosts of a seed, with what they are taught and asked."""
        return _home(self, seed % PER_HOST)

    def untrained(self, recipe: BridgeRecipe, seed: int) -> Bridge:
        """The bridge of an arm before its first step, with a target of its own where that is adapted."""
        pair = self.home(seed).pair
        return with_target(untrained(recipe, seed, pair), recipe, pair)

    def train(
        self,
        arms: Mapping[Hashable, BridgeRecipe],
        seeds: Sequence[int],
        *,
        looks: Sequence[int] | Mapping[Hashable, Sequence[int]] = (),
        read: Callable[[Bridge, Bench], Mapping[str, float]] | None = None,
        other_exam: bool = False,
        describe: str = "bridges",
    ) -> Study:
        """Train every arm with every seed, each on the hosts of its seed, side by side where their architecture allows.

        Readings, at each look: the accuracy on each exam, in points, by the exam's name; `loss`, the training loss of
        the steps just before, in nats per token; `loops`, the share of the first exam's answers that end in a loop,
        and `degenerate`, the same with those that are empty, in points; and what `read(bridge, bench)` gives. At the
        last look, on the first exam, also `target alone`, `source alone` and `shuffled source`. Texts: the answers of
        the last look, by exam.

        Args:
            arms: recipes by name.
            seeds: of the bridges' values and batches, and of their hosts.
            looks: numbers of steps after which to look, for all arms or by arm; the last step always is one.
            read: anything else to be measured of a bridge at each look.
            other_exam: tell every bridge a second time, as that of seed + PER_HOST, with another exam in the place of
                `report`.
            describe: what the progress bar says.
        """
        if other_exam:
            asked_twice = replace(self, exams=(*self.exams, "other"))
            return _told_twice(asked_twice.train(arms, seeds, looks=looks, read=read, describe=describe))
        outcomes: dict[tuple[Hashable, int], Outcome] = {}
        by_looks: dict[tuple[int, ...], list[Hashable]] = {}
        for arm, recipe in arms.items():
            of_arm = looks.get(arm, ()) if isinstance(looks, Mapping) else looks
            by_looks.setdefault(tuple(sorted({*of_arm, recipe.fit.steps})), []).append(arm)
        for at, names in by_looks.items():
            pairs = [(arm, seed) for arm in names for seed in seeds]
            trained = train_bridges(
                [(arms[arm], seed, self.home(seed)) for arm, seed in pairs],
                looks=at,
                read=read,
                select=self.exams[0] if any(arms[a].fit.schedule == "plateau" for a in names) else "",
                describe=describe,
            )
            for (arm, seed), one in zip(pairs, trained, strict=True):
                outcomes[arm, seed] = self._outcome(one, self.home(seed))
        return Study.of(outcomes)

    def _outcome(self, one: TrainedBridge, bench: Bench) -> Outcome:
        exam = bench.exams[self.exams[0]]
        end = cast(int, bench.pair.target_words.eos_token_id)
        readings: dict[int, dict[str, float]] = {}
        for look, seen in one.looks.items():
            readings[look] = {name: answers.accuracy for name, answers in seen.items()}
            readings[look]["loss"] = fmean(one.losses[max(0, look - RECENT) : look])
            said = degeneration(seen[self.exams[0]].ids, end, LONGEST)
            readings[look] |= {"loops": 100 * said.loops, "degenerate": 100 * said.degenerate}
            readings[look] |= one.watched.get(look, {})
        target = one.target or bench.pair.target
        with torch.no_grad():
            other = one.bridge(exam.states.roll(1, 1), exam.mask.roll(1, 0))
        shuffled = answer(target, bench.pair.target_words, other, exam, one.recipe.visible)
        last = max(readings)
        readings[last] |= {
            "target alone": _alone(self, one.seed % PER_HOST, "target")
            if one.target is None
            else answer(target, bench.pair.target_words, None, exam, visible=True).accuracy,
            "source alone": _alone(self, one.seed % PER_HOST, "source"),
            "shuffled source": shuffled.accuracy,
        }
        texts = {name: tuple(answers.texts) for name, answers in one.looks[last].items()}
        model = AdaptedBridge(one.bridge, one.target) if one.target else one.bridge
        return Outcome(readings, texts | {"shuffled source": tuple(shuffled.texts)}, model.eval())


bench = Answering


@lru_cache(maxsize=8)
def _home(bench: Answering, seed: int) -> Bench:
    read_by, answered_by = word_problems.tokenizer("source"), word_problems.tokenizer("target")
    source = small_solver("source", seed, bench.size, bench.cache, bench.device)
    target = small_solver(bench.target, 0 if bench.same_target else seed, bench.size, bench.cache, bench.device)
    pair = Pair(source, read_by, target, answered_by)
    known, select, report, other = word_problems.split([TAUGHT, *3 * [bench.asked]])
    problems = {"select": select, "report": report, "other": other}
    return Bench(
        pair, examine(known[: bench.taught], pair), {name: examine(problems[name], pair) for name in bench.exams}
    )


def _told_twice(study: Study) -> Study:
    """Each bridge with its accuracy on one exam, and as that of another seed with that on the other."""
    told: dict[tuple[Hashable, int], Outcome] = {}
    for (arm, seed), outcome in study.outcomes.items():
        first = {
            look: {k: v for k, v in readings.items() if k != "other"} for look, readings in outcome.readings.items()
        }
        told[arm, seed] = replace(outcome, readings=first)
        other = {look: {**first[look], "report": readings["other"]} for look, readings in outcome.readings.items()}
        told[arm, seed + PER_HOST] = Outcome(other)
    return Study.of(told)


@lru_cache(maxsize=64)
def _alone(bench: Answering, seed: int, host: str) -> float:
    pair, exam = bench.home(seed).pair, bench.home(seed).exams[bench.exams[0]]
    if host == "source":
        return source_alone(pair, exam).accuracy
    return answer(pair.target, pair.target_words, None, exam, visible=True).accuracy
