"""Train contrastive bridges on pairs, many settings and seeds at once, and judge them on held-out pairs."""

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bridges.benches.study import Outcome, Study
from bridges.hosts.contrastive import AlignmentSettings, ContrastiveBridge, Embeddings
from bridges.instruments.retrieval import recall
from bridges.tasks.pairs import Features
from bridges.tasks.scenes import scenes
from bridges.training.ensemble import Ensemble, fit_ensemble
from bridges.training.fit import FitSettings
from bridges.training.losses import CLIP_WEIGHT, MRL_WEIGHT, alignment_loss, info_nce


@dataclass(frozen=True)
class AlignmentRun:
    """One bridge to train: what it is, how it is trained, and the seed of its values and batches."""

    bridge: AlignmentSettings
    fit: FitSettings
    seed: int

    def build(self) -> ContrastiveBridge:
        """The bridge before training."""
        torch.manual_seed(self.seed)
        return ContrastiveBridge(self.bridge)


@dataclass(frozen=True)
class Bridges:
    """Trained bridges in the order of their runs; `groups` hold those of one architecture and length side by side."""

    runs: tuple[AlignmentRun, ...]
    groups: tuple[tuple[tuple[int, ...], Ensemble], ...]

    def model(self, index: int) -> nn.Module:
        """One bridge as a module of its own."""
        return next(e.model(members.index(index)) for members, e in self.groups if index in members)

    def curve(self, index: int) -> Float[Tensor, " steps"]:
        """The training loss of every step, in nats per unit of weight, so that ln(batch) is its chance line."""
        losses = next(e.losses[:, members.index(index)] for members, e in self.groups if index in members)
        return losses / (CLIP_WEIGHT + MRL_WEIGHT)

    def embed(self, pairs: Features) -> Iterator[tuple[int, Embeddings]]:
        """The pairs' embeddings by each bridge, with its index."""
        for members, ensemble in self.groups:
            device = ensemble.losses.device
            found = ensemble.apply(pairs.patches.to(device), pairs.text.to(device))
            for place, index in enumerate(members):
                yield index, Embeddings(*(part[place] for part in found))

    def measure(self, pairs: Features, of: Callable[[Embeddings], float]) -> Float[Tensor, " runs"]:
        """One number for each bridge from its embeddings of the pairs."""
        found = torch.empty(len(self.runs), dtype=torch.float64)  # on the CPU: one number each
        for index, embeddings in self.embed(pairs):
            found[index] = of(embeddings)
        return found


def held_out_loss(embeddings: Embeddings, batch: int) -> float:
    """CLIP loss in nats, averaged over batches in their order, the last one short, as an evaluation loop does."""
    image, text, scale = embeddings
    starts = range(0, len(image), batch)
    return sum(info_nce(image[i : i + batch], text[i : i + batch], scale).item() for i in starts) / len(starts)


def sampled_widths(steps: int, widths: Sequence[int]) -> list[int]:
    """One Matryoshka width for each step, the same for every run, so that runs differ in nothing else."""
    draw = torch.Generator().manual_seed(0)
    return [widths[i] for i in torch.randint(len(widths), (steps,), generator=draw).tolist()]


def train_bridges(
    runs: Sequence[AlignmentRun],
    pairs: Features,
    widths: Sequence[int],
    device: str = "cpu",
    describe: str = "bridges",
    look: Callable[[int, Bridges], None] | None = None,
) -> Bridges:
    """Train every run on the log's loss with one sampled Matryoshka width a step.

    Runs of one architecture, length and batch share a vectorised graph (`fit_ensemble`); the others follow in turn.
    `look` is called after each step of each graph, with the number of steps done and the bridges of that graph.
    """
    patches, text = pairs.patches.to(device), pairs.text.to(device)
    alike: dict[Any, list[int]] = {}
    for index, run in enumerate(runs):
        # The latents' standard deviation is a matter of values alone, not of architecture.
        architecture = replace(run.bridge, resampler=replace(run.bridge.resampler, latent_std=0.0))
        alike.setdefault((architecture, run.fit.steps, run.fit.batch), []).append(index)
    groups = []
    for members in alike.values():
        chosen = [runs[i] for i in members]
        sampled = sampled_widths(chosen[0].fit.steps, widths)

        def batch_loss(
            model: Callable[..., Embeddings], rows: Int[Tensor, " batch"], step: int, sampled: list[int] = sampled
        ) -> Tensor:
            return alignment_loss(*model(patches[rows], text[rows]), widths, sampled[step])[0]

        def seen(step: int, ensemble: Ensemble, chosen: list[AlignmentRun] = chosen) -> None:
            assert look
            look(step, Bridges(tuple(chosen), ((tuple(range(len(chosen))), ensemble),)))

        ensemble = fit_ensemble(
            [run.build().to(device) for run in chosen],
            batch_loss,
            len(pairs),
            [run.fit for run in chosen],
            [run.seed for run in chosen],
            look=seen if look else None,
            describe=f"{describe}, {len(chosen)} at once",
        )
        groups.append((tuple(members), ensemble))
    return Bridges(tuple(runs), tuple(groups))


RECENT = 10  # steps over which a look averages the training loss


@dataclass(frozen=True)
class AlignmentRecipe:
    """What a contrastive bridge is and how it is trained."""

    bridge: AlignmentSettings
    fit: FitSettings


@dataclass(frozen=True)
class Alignment:
    """Scenes and their captions: `known` pairs are learnt from, `unseen` ones judged on.

    `widths` are the Matryoshka prefixes; the last is the whole.
    """

    widths: tuple[int, ...]
    known: int = 4096
    unseen: int = 512
    device: str = field(default="cpu", metadata={"settings": False})

    @cached_property
    def pairs(self) -> Features:
        """To learn from."""
        return scenes(self.known, seed=0).features(seed=0)

    @cached_property
    def test(self) -> Features:
        """To judge on."""
        return scenes(self.unseen, seed=1).features(seed=1)

    def untrained(self, recipe: AlignmentRecipe, seed: int) -> ContrastiveBridge:
        """The bridge of an arm before its first step."""
        return AlignmentRun(recipe.bridge, recipe.fit, seed).build().to(self.device)

    def train(
        self,
        arms: Mapping[Hashable, AlignmentRecipe],
        seeds: Sequence[int],
        *,
        looks: Sequence[int] = (),
        read: Callable[[Embeddings], Mapping[str, float]] | None = None,
        keep: bool = False,
        describe: str = "bridges",
    ) -> Study:
        """Train every arm with every seed, side by side where their architecture, length and batch allow.

        Readings, at each look: `training`, the training loss of the steps just before, in nats per unit of weight; of
        the unseen pairs `loss` by batches of the arm's size in nats, and `r1`, the R@1 in points; and what
        `read(embeddings)` gives.

        Args:
            arms: recipes by name.
            seeds: of values and batches.
            looks: numbers of steps after which to look; the last step always is one.
            read: anything else to be measured of the unseen pairs' embeddings at each look.
            keep: whether the trained bridges are kept.
            describe: what the progress bar says.
        """
        places = [(arm, seed) for arm in arms for seed in seeds]
        readings: dict[tuple[Hashable, int], dict[int, dict[str, float]]] = {place: {} for place in places}
        by_run = {AlignmentRun(arms[arm].bridge, arms[arm].fit, seed): [] for arm, seed in places}  # type: dict[AlignmentRun, list[Any]]
        for arm, seed in places:
            by_run[AlignmentRun(arms[arm].bridge, arms[arm].fit, seed)].append((arm, seed))

        def look(step: int, bridges: Bridges) -> None:
            if step not in looks and step != bridges.runs[0].fit.steps:
                return
            for index, embeddings in bridges.embed(self.test):
                run = bridges.runs[index]
                image, text, _ = embeddings
                seen = {
                    "training": fmean(bridges.curve(index)[-RECENT:].tolist()),
                    "loss": held_out_loss(embeddings, run.fit.batch),
                    "r1": recall(image, text).at[1],
                } | dict(read(embeddings) if read else {})
                for place in by_run[run]:
                    # A run that has diverged is stuck: its loss counts as ten times chance.
                    chance = 10 * math.log(run.fit.batch)
                    readings[place][step] = {n: v if math.isfinite(v) else chance for n, v in seen.items()}

        trained = train_bridges(list(by_run), self.pairs, self.widths, self.device, describe, look)
        models = {p: trained.model(i) for i, run in enumerate(by_run) for p in by_run[run]} if keep else {}
        return Study.of({place: Outcome(readings[place], {}, models.get(place)) for place in places})


bench = Alignment
