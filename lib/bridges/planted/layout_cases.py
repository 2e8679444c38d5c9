"""Faults planted in every layout, trained in or broken as it would happen, and the counting of what is named first.

What may name a fault stands beside it, and was written down before the check-up saw the case. Each is told with the
held-out loss that it leaves, so that faults that do no harm can be told from those that do.
"""

import csv
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bridges.instruments import attached
from bridges.instruments.attached import take
from bridges.instruments.checkup import checkup
from bridges.instruments.conditioning import derangement
from bridges.instruments.retrieval import recall
from bridges.planted.layouts import EOS, LAYOUTS, PAD, SPARE, Layout, attributes, drawn, train

TEXTUAL = ("input_ids", "attention_mask", "labels")
SCALES = (1 / 32, 32.0)
OVER = 2.0**19  # times a host's weights, and divided out again behind: too much for half precision alone
HOT = 2000.0  # factor on the cosines
COLUMNS = ("layout", "seed", "planted", "names", "first", "raised", "loss")

UNHEARD = ("input that is not used", "tokens that do not follow the input")
UNTRAINED = ("connector is not the trained one", "held-out loss far above the log's end")
STILL = ("parameters that did not move", "no gradient to the connector", "parameters outside the optimiser")
LOST = ("held-out pairs at chance", "image embeddings all alike", "text embeddings all alike")
SCALE = ("scale far from the host's",)


@dataclass(frozen=True)
class Planted:
    """What was planted (nothing: healthy), what names it, and what the check-up is given.

    `loss` gives nats for each token on sound held-out samples, served as it is; of two sides, the share of pictures
    whose own text is not found first.
    """

    planted: str
    names: tuple[str, ...]
    model: nn.Module
    batch: dict[str, Any]
    loss: Callable[[], float]
    given: Mapping[str, Any]
    connector: tuple[str, ...] = ()


class Unshifted(nn.Module):
    """A loss of one's own that scores each place against the very token that was read there."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, labels: Tensor, **batch: Any) -> dict[str, Tensor]:
        if "input_ids" not in batch:  # a decoder of its own reads the labels as they are
            batch["decoder_input_ids"] = labels.clamp_min(PAD)
        logits = self.inner(**batch).logits[:, -labels.shape[1] :]
        return {"loss": cross_entropy(logits.flatten(0, 1), labels.flatten())}


class Bare(nn.Module):
    """Two sides whose embeddings go into the loss without being brought to unit length."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner, self.logit_scale = inner, inner.logit_scale
        self.get_image_features, self.get_text_features = inner.get_image_features, inner.get_text_features

    def forward(self, pixel_values: Tensor, input_ids: Tensor, **_: Any) -> Any:
        sides = [self.get_image_features(pixel_values=pixel_values), self.get_text_features(input_ids=input_ids)]
        image, text = (getattr(side, "pooler_output", side) for side in sides)
        logits, right = self.logit_scale.exp() * image @ text.T, torch.arange(len(image))
        loss = (cross_entropy(logits, right) + cross_entropy(logits.T, right)) / 2
        return _Sides(loss, image, text)


@dataclass(frozen=True)
class _Sides:
    loss: Tensor
    image_embeds: Tensor
    text_embeds: Tensor


def paths(layout: Layout, model: nn.Module) -> tuple[str, ...]:
    """Where a layout keeps its connector."""
    return attached._paths(model, attached._layout(model))


def parts(layout: Layout, model: nn.Module) -> tuple[str, ...]:
    """Beginnings of the names of the connector's parameters."""
    if layout.kind == "contrastive":
        return tuple(name for name, _ in model.named_parameters() if "projection." in name or "head" in name)
    return paths(layout, model)


def held_loss(model: nn.Module, batch: Mapping[str, Any]) -> float:
    """The loss that a model serves, or of two sides the share of pairs not found first."""
    with torch.no_grad():
        found = model(**batch)
    if "labels" in batch:
        return float(found.loss)
    return 1 - recall(found.image_embeds, found.text_embeds, (1,)).at[1] / 100


def _strangers(batch: dict[str, Any], seed: int) -> dict[str, Any]:
    """Texts with other samples' pictures."""
    text = take(batch, derangement(len(batch["input_ids" if "input_ids" in batch else "labels"]), seed))
    return batch | {name: text[name] for name in TEXTUAL if name in batch}


def _one_picture(batch: dict[str, Any]) -> dict[str, Any]:
    first = take(batch, torch.zeros(len(batch.get("labels", batch.get("input_ids"))), dtype=torch.long))
    return first | {name: batch[name] for name in TEXTUAL if name in batch}


def _padding(batch: dict[str, Any]) -> dict[str, Any]:
    labels = batch["labels"].clone()
    labels[:, -SPARE:] = PAD
    return batch | {"labels": labels}


def _twice(batch: dict[str, Any]) -> dict[str, Any]:
    labels = batch["labels"].roll(-1, 1)
    labels[:, -1] = -100
    return batch | {"labels": labels}


def _without_end(batch: dict[str, Any]) -> dict[str, Any]:
    return batch | {"labels": batch["labels"].masked_fill(batch["labels"] == EOS, -100)}


@contextmanager
def _hooked(model: nn.Module, path: str, way: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """What the connector gives, changed for the time being."""
    handle = model.get_submodule(path).register_forward_hook(
        lambda module, args, out: way(out) if isinstance(out, Tensor) else (way(out[0]), *out[1:])
    )
    try:
        yield
    finally:
        handle.remove()


def _overflowing(model: nn.Module) -> nn.Module:
    """A copy in half precision whose host's values go beyond its range, though in single precision nothing differs."""
    model = deepcopy(model)
    named = dict(model.named_modules())
    with torch.no_grad():
        for name, part in named.items():
            if name.endswith("mlp.up_proj"):
                part.weight.mul_(OVER)
                named[name.replace("up_proj", "down_proj")].weight.div_(OVER)
            elif name.endswith(".attn.c_attn"):  # GPT-2's queries, keys and values in one
                wide = part.weight.shape[1] // 3
                part.weight[:, -wide:].mul_(OVER)
                part.bias[-wide:].mul_(OVER)
                named[name.replace("c_attn", "c_proj")].weight.div_(OVER)
    return model.half()


def _half(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {name: x.half() if isinstance(x, Tensor) and x.is_floating_point() else x for name, x in batch.items()}


def cases(name: str, seed: int, healthy_alone: bool = False) -> Iterator[Planted]:
    """A healthy model of a layout, and then what is planted in it; each is to be looked at before the next."""
    layout = LAYOUTS[name]
    own = torch.Generator().manual_seed(seed)
    which, others = attributes(seed)
    taught, held = layout.batch(which, own), layout.batch(others, own)
    found = _two_sides if layout.kind == "contrastive" else _speaking
    for case in found(layout, seed, taught, held):
        yield case
        if healthy_alone:
            return


def _taught(layout: Layout, seed: int, batch: dict[str, Any], **more: Any) -> tuple[nn.Module, dict[str, Any]]:
    """A model as drawn and then trained, and all that its owner has to give of the training."""
    model = drawn(layout, seed)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    losses, optimizer = train(model, batch, layout.steps, layout.rate, seed, **more)
    return model, {"log": losses, "optimizer": optimizer, "before": before}


def _speaking(layout: Layout, seed: int, taught: dict[str, Any], held: dict[str, Any]) -> Iterator[Planted]:
    model, given = _taught(layout, seed, taught)
    where, own = paths(layout, model), layout.kind == "prompt"
    healthy = Planted("", (), model, held, lambda: held_loss(model, held), given)
    yield healthy
    if not own:
        same = _one_picture(held)
        loss = held_loss(model, same)
        yield replace(healthy, planted="constant pictures", names=("constant inputs",), batch=same, loss=lambda: loss)
    for factor in SCALES:
        with _hooked(model, where[-1], lambda x, factor=factor: x * factor):
            yield replace(healthy, planted=f"tokens times {factor:g}", names=SCALE)
    model.train()
    torch.manual_seed(seed)
    yield replace(healthy, planted="host in training mode", names=("host in training mode",))
    model.eval()
    lost = drawn(layout, seed + 1)
    mixed = deepcopy(model)
    fresh = {name: x for name, x in lost.state_dict().items() if name.startswith(where)}
    mixed.load_state_dict(fresh, strict=False)
    names = UNTRAINED if not own else ("held-out loss far above the log's end", "connector is not the trained one")
    yield Planted(
        "connector fresh", names, mixed, held, lambda: held_loss(mixed, held), {"log": given["log"]}
    )  # fmt: skip
    for planted, kept in (("weights that are no number", model), ("host beyond half precision", _overflowing(model))):
        broken = deepcopy(kept)
        batch = held if kept is model else _half(held)
        if kept is model:
            with torch.no_grad():
                next(p for name, p in broken.named_parameters() if name.startswith(where)).view(-1)[0] = torch.nan
        loss = held_loss(broken, batch)
        yield Planted(planted, ("values that are not finite",), broken, batch, lambda loss=loss: loss, {})
    bare = drawn(layout, seed)
    none = held | {"labels": torch.full_like(held["labels"], -100)}
    yield Planted("no label", ("no label is supervised",), bare, none, lambda: held_loss(bare, held), {})
    for planted, names, change in (
        ("pairs shuffled", ("pairs that do not belong together",), lambda batch: _strangers(batch, seed)),
        ("padding supervised", ("padding is supervised",), _padding),
        ("labels shifted twice", ("labels shifted twice",), _twice),
        ("end masked", ("generations that do not end",), _without_end),
    ):
        if own and planted == "pairs shuffled":
            continue
        wrong, told = _taught(layout, seed, change(taught))
        yield Planted(planted, names, wrong, change(held), lambda wrong=wrong: held_loss(wrong, held), told)
    yield _read_before(layout, seed, taught, held, where)
    yield from _unmoved(layout, seed, taught, held, where)


def _read_before(
    layout: Layout, seed: int, taught: dict[str, Any], held: dict[str, Any], where: tuple[str, ...]
) -> Planted:
    inner = drawn(layout, seed)
    wrapped = Unshifted(inner)
    losses, optimizer = train(wrapped, taught, layout.steps, layout.rate, seed)
    names = ("the answers are read before they are scored",)
    given = {"log": losses, "optimizer": optimizer}
    inside = tuple(f"inner.{path}" for path in where)
    return Planted("answers read", names, wrapped, held, lambda: held_loss(inner, held), given, inside)


def _unmoved(
    layout: Layout, seed: int, taught: dict[str, Any], held: dict[str, Any], where: tuple[str, ...]
) -> Iterator[Planted]:
    """Four ways in which the host alone is trained, or of a prompt, nothing."""
    if layout.kind == "prompt":
        model, given = drawn(layout, seed), {}
        given = {"before": {name: x.clone() for name, x in model.state_dict().items()}}
        connector = [p for p in model.parameters() if p.requires_grad]
        given["optimizer"] = torch.optim.AdamW([torch.nn.Parameter(p.detach().clone()) for p in connector], lr=1e-2)
        with torch.no_grad():
            level = held_loss(model, held)
        given["log"] = [level + 0.05 * x for x in torch.randn(layout.steps).tolist()]
    else:
        model, given = _taught(layout, seed, taught, only=lambda name: not name.startswith(where))
        connector = [p for name, p in model.named_parameters() if name.startswith(where)]
    loss = held_loss(model, held)
    case = Planted("connector outside the optimiser", STILL, model, held, lambda: loss, given)
    yield case
    zero = torch.optim.AdamW([{"params": connector, "lr": 0.0}, {"params": given["optimizer"].param_groups[0]["params"]}])
    names = ("a rate of zero", *STILL)
    yield replace(case, planted="rate of zero", names=names, given=given | {"optimizer": zero})
    with _hooked(model, where[-1], lambda x: x.detach()):
        yield replace(case, planted="connector detached", given={"log": given["log"], "before": given["before"]})
    for p in connector:
        p.requires_grad_(False)
    yield replace(case, planted="connector frozen", names=STILL)


def _two_sides(layout: Layout, seed: int, taught: dict[str, Any], held: dict[str, Any]) -> Iterator[Planted]:
    model, given = _taught(layout, seed, taught)
    given["losses"], batch = given.pop("log"), 32
    healthy = Planted("", (), model, held, lambda: held_loss(model, held), given)
    yield healthy
    count = len(held["input_ids"])
    for planted, name, alike in (
        ("one image for all", "constant image inputs", {"pixel_values": held["pixel_values"][:1].expand_as(held["pixel_values"])}),
        ("one text for all", "constant text inputs", {"input_ids": held["input_ids"][:1].expand(count, -1)}),
    ):
        loss = held_loss(model, held | alike)
        yield replace(healthy, planted=planted, names=(name,), batch=held | alike, loss=lambda loss=loss: loss)
    broken = deepcopy(model)
    with torch.no_grad():
        broken.get_parameter(parts(layout, model)[0]).view(-1)[0] = torch.nan
    loss = held_loss(broken, held)
    yield Planted("weights that are no number", ("values that are not finite",), broken, held, lambda: 1.0, {})
    fresh = deepcopy(model)
    new = {name: x for name, x in drawn(layout, seed + 1).state_dict().items() if name in parts(layout, model)}
    fresh.load_state_dict(new, strict=False)
    yield Planted("projections fresh", LOST, fresh, held, lambda: held_loss(fresh, held), {"losses": given["losses"]})
    wrong, told = _taught(layout, seed, _strangers(taught, seed))
    told["losses"] = told.pop("log")
    names = ("pairs that do not belong together",)
    yield Planted("pairs shuffled", names, wrong, _strangers(held, seed), lambda: held_loss(wrong, held), told)
    yield from _altered(layout, seed, taught, held)


def _altered(layout: Layout, seed: int, taught: dict[str, Any], held: dict[str, Any]) -> Iterator[Planted]:
    """Two sides trained with a loss that is not theirs."""
    inner = drawn(layout, seed)
    bare = Bare(inner)
    losses, optimizer = train(bare, taught, layout.steps, layout.rate, seed)
    names = ("embeddings not of unit length",)
    yield Planted("not normalised", names, bare, held, lambda: held_loss(inner, held), {"losses": losses})
    hot = drawn(layout, seed)
    nn.init.constant_(hot.logit_scale, math.log(HOT)).requires_grad_(False)
    losses, optimizer = train(hot, taught, layout.steps, layout.rate, seed)
    given = {"losses": losses, "optimizer": optimizer}
    names = ("temperature that hides the pairs",)
    yield Planted("factor of 2000", names, hot, held, lambda: held_loss(hot, held), given)


def count(path: Path, names: Sequence[str], seeds: Sequence[int], healthy_alone: bool = False) -> list[dict[str, Any]]:
    """Check up every case of the layouts `names`, and append a row of each to the table at `path`.

    What stands there already, as a layout and a seed with all its cases, is not made again.
    """
    rows = list(csv.DictReader(path.open())) if path.exists() else []
    done = {(row["layout"], int(row["seed"])) for row in rows}
    made = []
    for seed in seeds:
        for name in names:
            if (name, seed) in done:
                continue
            found = [_row(name, seed, case) for case in cases(name, seed, healthy_alone)]
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
    return dict(zip(COLUMNS, (*told, f"{case.loss():.4f}"), strict=True))
