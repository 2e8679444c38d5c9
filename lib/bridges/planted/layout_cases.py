"""Faults planted in every layout, trained in or broken as it would happen, and the counting of what is named first.

What may name a fault stands beside it, and was written down before the check-up saw the case. Each is told with the
held-out loss that it leaves, so that faults that do no harm can be told from those that do.
"""

import csv
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bridges.instruments import places
from bridges.instruments.checkup import checkup
from bridges.instruments.retrieval import recall
from bridges.planted import layout_breaks as breaks
from bridges.planted.layout_breaks import Batch
from bridges.planted.layouts import LAYOUTS, Layout, attributes, drawn, train

SCALES = (1 / 32, 32.0)
HOT = 2000.0  # factor on the cosines
COLUMNS = ("layout", "seed", "planted", "names", "first", "raised", "loss")

UNTRAINED = ("connector is not the trained one", "held-out loss far above the log's end")
STILL = ("parameters that did not move", "no gradient to the connector", "parameters outside the optimiser")
LOST = ("held-out pairs at chance", "image embeddings all alike", "text embeddings all alike")
BROKEN = ("values that are not finite",)
SCALE = ("scale far from the host's",)


@dataclass(frozen=True)
class Planted:
    """What was planted (nothing: healthy), what names it, and what the check-up is given.

    `loss` is in nats for each token on sound held-out samples, the model served as it is; of two sides, the share of
    pictures whose own text is not found first.
    """

    planted: str
    names: tuple[str, ...]
    model: nn.Module
    batch: Batch
    loss: float
    given: dict[str, Any]
    connector: tuple[str, ...] = ()


@dataclass(frozen=True)
class World:
    """A layout, a seed, and the samples that are taught and held out."""

    layout: Layout
    seed: int
    taught: Batch
    held: Batch

    def drawn(self, other: int = 0) -> Any:
        """A model as drawn, or `other` seeds on."""
        return drawn(self.layout, self.seed + other)

    def trained(
        self,
        change: Callable[[Batch], Batch] = lambda batch: batch,
        rate: float | None = None,
        only: Callable[[str], bool] | None = None,
        wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
    ) -> tuple[Any, dict[str, Any]]:
        """A model taught, and what its owner has to give of the training."""
        model = self.drawn()
        before = {name: x.clone() for name, x in model.state_dict().items()}
        rate = self.layout.rate if rate is None else rate
        losses, optimizer = train(wrap(model), change(self.taught), self.layout.steps, rate, self.seed, only)
        return model, {"log": losses, "optimizer": optimizer, "before": before}


def held_loss(model: nn.Module, batch: Batch) -> float:
    """The loss that a model serves, or of two sides the share of pairs not found first."""
    with torch.no_grad():
        found = model(**batch)
    if "labels" in batch:
        return float(found.loss)
    return 1 - recall(found.image_embeds, found.text_embeds, (1,)).at[1] / 100


def cases(name: str, seed: int) -> Iterator[Planted]:
    """A healthy model of a layout, and then what is planted in it; each is to be looked at before the next."""
    layout = LAYOUTS[name]
    own = torch.Generator().manual_seed(seed)
    which, others = attributes(seed)
    world = World(layout, seed, layout.batch(which, own), layout.batch(others, own))
    if layout.kind == "contrastive":
        yield from _two_sides(world)
        return
    model, given = world.trained()
    where = places.paths_in(model, places.layout(model))
    healthy = Planted("", (), model, world.held, held_loss(model, world.held), given)
    yield healthy
    yield from _served(world, healthy, where)
    yield from _taught(world, where)
    yield from _unmoved(world, where)


def _served(world: World, healthy: Planted, where: tuple[str, ...]) -> Iterator[Planted]:
    """A healthy model, served in the wrong way."""
    model, held = healthy.model, world.held
    if world.layout.kind != "prompt":
        same = breaks.one_picture(held)
        names = ("constant inputs",)
        yield replace(healthy, planted="constant pictures", names=names, batch=same, loss=held_loss(model, same))
    for factor in SCALES:
        with breaks.hooked(model, where[-1], factor):
            yield replace(healthy, planted=f"tokens times {factor:g}", names=SCALE, loss=held_loss(model, held))
    model.train()
    torch.manual_seed(world.seed)
    names = ("host in training mode",)
    yield replace(healthy, planted="host in training mode", names=names, loss=held_loss(model, held))
    model.eval()
    mixed = deepcopy(model)
    fresh = {name: x for name, x in world.drawn(1).state_dict().items() if name.startswith(where)}
    mixed.load_state_dict(fresh, strict=False)
    log = {"log": healthy.given["log"]}
    yield Planted("connector fresh", UNTRAINED, mixed, held, held_loss(mixed, held), log)
    broken = deepcopy(model)
    with torch.no_grad():
        next(p for name, p in broken.named_parameters() if name.startswith(where)).view(-1)[0] = torch.nan
    yield Planted("weights that are no number", BROKEN, broken, held, held_loss(broken, held), {})
    over, few = breaks.overflowing(model), breaks.half(held)
    yield Planted("host beyond half precision", BROKEN, over, few, held_loss(over, few), {})


def _taught(world: World, where: tuple[str, ...]) -> Iterator[Planted]:
    """Models taught from samples that are wrong, or by a loss that is."""
    held, bare = world.held, world.drawn()
    none = held | {"labels": torch.full_like(held["labels"], -100)}
    yield Planted("no label", ("no label is supervised",), bare, none, held_loss(bare, held), {})

    def strangers(batch: Batch) -> Batch:
        return breaks.strangers(batch, world.seed)

    changes: list[tuple[str, str, Callable[[Batch], Batch]]] = [
        ("pairs shuffled", "pairs that do not belong together", strangers),
        ("padding supervised", "padding is supervised", breaks.padding),
        ("labels shifted twice", "labels shifted twice", breaks.twice),
        ("end masked", "generations that do not end", breaks.without_end),
    ]
    for planted, name, change in changes[world.layout.kind == "prompt" :]:
        model, given = world.trained(change)
        yield Planted(planted, (name,), model, change(held), held_loss(model, held), given)
    model, given = world.trained(wrap=breaks.Unshifted)
    names = ("the answers are read before they are scored",)
    inside = tuple(f"inner.{path}" for path in where)
    given.pop("before")  # of the model within
    yield Planted("answers read", names, breaks.Unshifted(model), held, held_loss(model, held), given, inside)


def _unmoved(world: World, where: tuple[str, ...]) -> Iterator[Planted]:
    """Four ways in which the host alone is trained, or of a prompt, nothing."""

    def within(name: str) -> bool:
        return name.startswith(where)

    if world.layout.kind == "prompt":
        model, given = world.trained(rate=0.0)
        given["optimizer"] = torch.optim.AdamW(deepcopy(list(model.prompt_encoder.parameters())))  # of an older object
    else:
        model, given = world.trained(only=lambda name: not within(name))
    connector = [p for name, p in model.named_parameters() if within(name)]
    case = Planted("connector outside the optimiser", STILL, model, world.held, held_loss(model, world.held), given)
    yield case
    others = given["optimizer"].param_groups[0]["params"]
    zero = torch.optim.AdamW([{"params": connector, "lr": 0.0}, {"params": others}])
    names = ("a rate of zero", *STILL)
    yield replace(case, planted="rate of zero", names=names, given=given | {"optimizer": zero})
    with breaks.hooked(model, where[-1]):
        yield replace(case, planted="connector detached", given={name: given[name] for name in ("log", "before")})
    for p in connector:
        p.requires_grad_(False)
    yield replace(case, planted="connector frozen")


def _two_sides(world: World) -> Iterator[Planted]:
    model, given = world.trained()
    held = world.held
    healthy = Planted("", (), model, held, held_loss(model, held), given)
    yield healthy
    for planted, fault, side in (
        ("one image for all", "constant image inputs", "pixel_values"),
        ("one text for all", "constant text inputs", "input_ids"),
    ):
        same = held | {side: held[side][:1].expand_as(held[side])}
        yield replace(healthy, planted=planted, names=(fault,), batch=same, loss=held_loss(model, same))
    fresh, broken, other = deepcopy(model), deepcopy(model), world.drawn(1).state_dict()
    ends = [name for name in other if "projection." in name or "head." in name]
    fresh.load_state_dict({name: other[name] for name in ends}, strict=False)
    yield Planted("projections fresh", LOST, fresh, held, held_loss(fresh, held), {"log": given["log"]})
    with torch.no_grad():
        broken.get_parameter(ends[0]).view(-1)[0] = torch.nan
    yield Planted("weights that are no number", BROKEN, broken, held, 1.0, {})  # ties of what is no number tell nothing
    wrong, told = world.trained(lambda batch: breaks.strangers(batch, world.seed))
    names = ("pairs that do not belong together",)
    mixed = breaks.strangers(held, world.seed)
    yield Planted("pairs shuffled", names, wrong, mixed, held_loss(wrong, held), told)
    wrong, told = world.trained(wrap=breaks.Bare)
    names, bare = ("embeddings not of unit length",), breaks.Bare(wrong)
    told.pop("before")
    yield Planted("not normalised", names, bare, held, held_loss(wrong, held), told)

    def hot(model: nn.Module) -> nn.Module:
        nn.init.constant_(model.get_parameter("logit_scale"), torch.tensor(HOT).log().item()).requires_grad_(False)
        return model

    wrong, told = world.trained(wrap=hot)
    names = ("temperature that hides the pairs",)
    yield Planted("factor of 2000", names, wrong, held, held_loss(wrong, held), told)


def count(path: Path, names: Sequence[str], seeds: Sequence[int], healthy_alone: bool = False) -> list[dict[str, Any]]:
    """Check up every case of the layouts `names`, or the healthy ones alone, and append a row of each to a CSV table.

    A layout and seed whose cases stand there already are not made again, and no row is written twice.
    """
    rows = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []
    done = {(row["layout"], int(row["seed"]), bool(row["planted"])) for row in rows}
    made = []
    for seed, name in ((seed, name) for seed in seeds for name in names):
        if (name, seed, not healthy_alone) in done:
            continue
        found = []
        for case in cases(name, seed):
            if case.planted or (name, seed, False) not in done:
                found.append(_row(name, seed, case))
            if healthy_alone:
                break
        new = not path.exists()
        with path.open("a", newline="") as file:
            table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            if new:
                table.writeheader()
            table.writerows(found)
        made += found
    return made


def _row(name: str, seed: int, case: Planted) -> dict[str, Any]:
    report = checkup(case.model, case.batch, case.connector, **case.given)
    raised = [fault.name for fault in report.faults]
    told = (name, seed, case.planted, "|".join(case.names), raised[0] if raised else "", "|".join(raised))
    return dict(zip(COLUMNS, (*told, f"{case.loss:.4f}"), strict=True))
