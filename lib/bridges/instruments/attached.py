"""A model as people have it and the path of its connector: hooks take the connector's output, and put in another.

Nothing of the model is written again. A sample's tokens are what the connector gives within the model's own call, and
the loss with other tokens is that of the same call with its output replaced.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from bridges.instruments.batches import each, loss_of, samples, shared, take, tensor_of
from bridges.instruments.contrastive import Contrastive
from bridges.instruments.generative import CHUNK, Generative
from bridges.instruments.places import layout, part_at, paths_in
from bridges.instruments.readings import mode

TWO_SIDES = ("get_image_features", "get_text_features", "logit_scale")  # what CLIP, SigLIP and their like have
READ = ("encoder_hidden_states", "hidden_states", "context")  # names under which a connector is handed what it reads


class _Caught(Exception):
    """Carries a connector's output out of the model's call, so that the host need not run."""

    def __init__(self, output: Tensor):
        self.output = output


@dataclass(frozen=True)
class Attached(Generative):
    """A generative bridge inside a model; made by `attach`."""

    model: nn.Module = field(kw_only=True)
    batch: Mapping[str, Any] = field(kw_only=True)
    paths: tuple[str, ...] = field(kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "loss", self._replaced)

    def tokens(self, rows: Tensor, factor: float = 1.0) -> Tensor:
        def louder(read: Tensor) -> Tensor:
            return read if factor == 1 else read * factor

        return self._run(rows, read=louder)

    def _run(self, rows: Tensor, read: Callable[[Tensor], Tensor]) -> Tensor:
        """The tokens (N, places, width) of the samples `rows`; what the connector reads goes through `read`."""

        def catch(output: Any) -> Any:
            raise _Caught(tensor_of(output))

        try:
            with _hooks(self.model, self.paths, read, catch):
                self.model(**take(self.batch, rows))
        except _Caught as caught:
            return each(caught.output, len(rows))
        raise ValueError(
            f"{self.paths[-1]} was not called: give the path of a module that the model's call runs through"
        )

    def _replaced(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """The model's loss on the samples `rows` with these tokens in the place of the connector's."""

        def put(output: Any) -> Any:
            like = tensor_of(output)
            own = tokens[:1] if shared(like, len(rows)) else tokens
            tensor = own.reshape(like.shape).to(like.dtype)
            return tensor if isinstance(output, Tensor) else (tensor, *output[1:])

        with _hooks(self.model, self.paths, lambda read: read, put):
            return loss_of(self.model(**take(self.batch, rows)))

    def direct(self, rows: Tensor) -> Tensor:
        # Not by the hooks: what a connector gives within a reentrant checkpoint has no gradient yet.
        return loss_of(self.model(**take(self.batch, rows)))

    @torch.no_grad()
    def answered(self, tokens: Tensor, rows: Tensor, labels: Tensor, read: bool = False) -> Tensor | None:
        own, ids = self.batch.get("labels"), self.batch.get("input_ids")
        if own is None or own.shape != labels.shape or (read and ids is not None and ids.shape != labels.shape):
            return None
        batch = dict(self.batch)
        if read:
            there = (own >= 0) & (labels >= 0)
            labels = torch.where(there, labels, own)
            if ids is not None:
                batch["input_ids"] = torch.where(there, labels, ids)
        return replace(self, batch=batch | {"labels": labels})._replaced(tokens, rows)

    def read(self) -> tuple[Tensor | None, Tensor | None]:
        return self.batch.get("input_ids"), self.batch.get("attention_mask")

    def whole(self) -> nn.Module:
        return self.model

    def words(self) -> int:
        table = _table(self.model)
        return 0 if table is None else len(cast(Tensor, table.weight))


def attach(
    model: nn.Module,
    batch: Mapping[str, Any],
    connector: str | Sequence[str] = (),
    *,
    chunk: int = CHUNK,
    **given: Any,
) -> Generative | Contrastive:
    """A model and a batch of held-out samples as a bridge that can be checked up.

    Args:
        model: any whose call on the batch gives a loss; or one of two sides, as CLIP and SigLIP are.
        batch: its arguments by name, labels among them; the first dimension of a tensor is that of the samples, or of
            equally many places for each.
        connector: the path of the connector's module, or of several in the order of their calls, the last of which
            gives what the host reads; found by itself in the classes of `places.LAYOUTS`.
        chunk: samples in a call, at most.
        given: other fields of `Generative` or `Contrastive`.

    Raises:
        ValueError: when the connector is not found, not called or called more than once, when the call gives no loss,
            or when samples do not fit.
    """
    if all(hasattr(model, name) for name in TWO_SIDES):
        return _two_sides(model, batch, given)
    at = (connector,) if connector and isinstance(connector, str) else tuple(connector) or layout(model)
    paths = paths_in(model, at)
    module = _Parts(model, paths)
    own: dict[str, Any] = {"model": model, "batch": batch, "paths": paths, "module": module}
    own |= {"labels": batch.get("labels")} | given
    bridge = Attached(module, torch.empty(0), lambda tokens, rows: tokens, **own)
    _one_call(model, take(batch, torch.arange(min(2, samples(batch)))), paths)
    seen: list[Tensor] = []

    def keep(read: Tensor) -> Tensor:
        seen.append(read.detach())
        return read

    parts = torch.arange(samples(batch)).split(chunk)
    with torch.no_grad(), mode(model, training=False):
        tokens = [bridge._run(rows, keep) for rows in parts]
    if len(seen) != len(parts):
        raise ValueError(f"{paths[0]} is handed no tensor by its call: give the path of a module that is")
    inputs = torch.cat([each(read, len(rows)) for read, rows in zip(seen, parts, strict=True)])
    table, ids = _table(model), batch.get("input_ids")
    if table is not None and ids is not None and cast(Tensor, table.weight).shape[1] == tokens[0].shape[-1]:
        with torch.no_grad():  # through the module, which may scale; an image's own id may lie beyond the table
            own.setdefault("embeddings", table(ids.unique().clamp(0, bridge.words() - 1)))
    return replace(bridge, inputs=inputs, embeddings=own.get("embeddings"))


class _Parts(nn.Module):
    """The connector's modules and parameters under their paths, to be trained, put in a mode, and named together."""

    def __init__(self, model: nn.Module, paths: Sequence[str]):
        super().__init__()
        for path in paths:
            part = part_at(model, path)
            name = path.replace(".", "/")  # a dot cannot stand in a module's name
            if isinstance(part, nn.Parameter):
                self.register_parameter(name, part)
            else:
                self.add_module(name, part)
        self.training = any(part.training for part in self.children())  # of this alone: parts may be in both modes


def _one_call(model: nn.Module, few: Mapping[str, Any], paths: Sequence[str]) -> None:
    """See that the model's call gives a loss, and runs through the connector once.

    Raises:
        ValueError: when it does not.
    """
    calls: list[Tensor] = []

    def count(output: Any) -> Any:
        calls.append(tensor_of(output))
        return output

    with torch.no_grad(), mode(model, training=False), _hooks(model, paths, lambda read: read, count):
        loss_of(model(**few))
    if not calls:
        raise ValueError(f"{paths[-1]} was not called: give the path of a module that the model's call runs through")
    if len(calls) > 1:
        raise ValueError(
            f"{paths[-1]} was called {len(calls)} times in one call of the model: give samples of one picture or sound"
            " each, or the path of a module that is called once"
        )


@contextmanager
def _hooks(
    model: nn.Module, paths: Sequence[str], read: Callable[[Tensor], Tensor], output: Callable[[Any], Any]
) -> Iterator[None]:
    """For the time being, what the first module reads goes through `read`, what the last one gives through `output`."""
    modules = [part for path in paths if isinstance(part := part_at(model, path), nn.Module)]

    def before(
        module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        key = next((name for name in READ if isinstance(named.get(name), Tensor)), None)
        key = key or next((name for name, x in named.items() if isinstance(x, Tensor)), None)
        place = next((i for i, x in enumerate(args) if isinstance(x, Tensor)), None)
        if key in READ or (place is None and key is not None):
            return args, {**named, key: read(named[key])}
        if place is not None:
            args = (*args[:place], read(args[place]), *args[place + 1 :])
        return args, named

    if not modules:
        raise ValueError(f"{', '.join(paths)}: a parameter is not called: name the module that makes tokens of it too")
    # PEFT reads a prompt that was loaded to be used past its module, which gives the same.
    prompt: Any = getattr(model, "active_peft_config", None)
    used = getattr(prompt, "inference_mode", False)
    if used:
        prompt.inference_mode = False
    handles = [
        modules[0].register_forward_pre_hook(before, with_kwargs=True),
        modules[-1].register_forward_hook(lambda module, args, found: output(found)),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        if used:
            prompt.inference_mode = True


def _table(model: nn.Module) -> nn.Module | None:
    """The module that turns the host's ids into vectors."""
    for whole in (getattr(model, "decoder", None), model):
        try:
            found = cast(Any, whole).get_input_embeddings()
        except (AttributeError, NotImplementedError):
            continue
        if isinstance(getattr(found, "weight", None), Tensor):
            return cast(nn.Module, found)
    return None


def _two_sides(model: nn.Module, batch: Mapping[str, Any], given: Mapping[str, Any]) -> Contrastive:
    """CLIP, SigLIP and their like; the loss is theirs, as far as `logit_bias` tells."""

    def embed(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = model(**take(batch, torch.arange(len(image))))
        return found.image_embeds, found.text_embeds, cast(Tensor, model.logit_scale).exp()

    for name in ("pixel_values", "input_ids"):
        if name not in batch:
            raise ValueError(f"the batch holds no {name}: give both sides, as the processor makes them")
    return Contrastive(embed, batch["pixel_values"], batch["input_ids"], **({"module": model} | dict(given)))
