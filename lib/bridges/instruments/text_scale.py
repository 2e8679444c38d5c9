"""Does a host read text as loud as its own table has it? Some tables scale in the forward pass, and code does again."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.modules.module import register_module_forward_pre_hook

SAME = 0.999  # cosine from which a place holds a word of the table
PLACES = 128  # that are looked at for the ratio


@dataclass(frozen=True)
class TextScale:
    """The size of text as a host is handed it, over what its table gives; and its loss with text as the table has it.

    `words` is how many of the places that were looked at hold text, `loss` and `restored` are in nats; `restored` is
    taken where the ratio is beyond `within` alone, and else the loss as it is.
    """

    ratio: float
    words: int
    loss: float
    restored: float


@torch.no_grad()
def text_scale(loss: Callable[[], Tensor], within: float = 2.0) -> TextScale | None:
    """Find the host in what `loss()` calls, and the words in its `inputs_embeds` by their directions.

    A place holds text where it points along a row of the table; a table that adds or shifts, as with positions, is not
    recognised. The host is the outermost module that is called with `inputs_embeds` by name.

    Returns:
        None where there is no such host, or no place of its inputs points along its table.
    """
    hosts = _hosts(loss)
    seen: list[tuple[nn.Module, Tensor]] = []

    def look(host: nn.Module, embeds: Tensor) -> Tensor:
        seen.append((host, embeds))
        return embeds

    with _reads(hosts, look):
        as_is = float(loss())
    if not seen:
        return None
    host, embeds = seen[0]
    places = embeds.flatten(0, -2)
    places = places[:: max(1, len(places) // PLACES)]
    there, ids = _words(host, places)
    if not there.any():
        return None
    own = _table(host)(ids[there]).norm(dim=-1).clamp_min(1e-12)
    ratio = (places[there].norm(dim=-1) / own).median().item()
    restored = as_is
    if not 1 / within <= ratio <= within:

        def restore(reader: nn.Module, embeds: Tensor) -> Tensor:
            if reader is not host:
                return embeds
            text, _ = _words(host, embeds.flatten(0, -2))
            return torch.where(text.view(*embeds.shape[:-1], 1), embeds / ratio, embeds)

        with _reads([host], restore):
            restored = float(loss())
    return TextScale(ratio, int(there.sum()), as_is, restored)


def _hosts(loss: Callable[[], Tensor]) -> list[nn.Module]:
    """The modules with a table of words that `loss()` calls, the outermost first."""
    found: dict[int, nn.Module] = {}

    def note(module: nn.Module, inputs: Any) -> None:
        if id(module) not in found and _has_table(module):
            found[id(module)] = module

    handle = register_module_forward_pre_hook(note)
    try:
        loss()
    finally:
        handle.remove()
    return list(found.values())


def _has_table(module: nn.Module) -> bool:
    try:
        weight = getattr(_table(module), "weight", None)
    except (AttributeError, NotImplementedError):
        return False
    return isinstance(weight, Tensor) and weight.dim() == 2


def _table(module: Any) -> Any:  # some models have the method, and no table
    return module.get_input_embeddings()


@contextmanager
def _reads(hosts: list[nn.Module], way: Callable[[nn.Module, Tensor], Tensor]) -> Iterator[None]:
    """For the time being, what these are handed as `inputs_embeds` goes through `way`."""

    def before(module: nn.Module, args: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        embeds = named.get("inputs_embeds")
        if isinstance(embeds, Tensor):
            named = {**named, "inputs_embeds": way(module, embeds)}
        return args, named

    with ExitStack() as stack:
        for host in hosts:
            stack.callback(host.register_forward_pre_hook(before, with_kwargs=True).remove)
        yield


def _words(host: nn.Module, places: Float[Tensor, "places width"]) -> tuple[Bool[Tensor, " p"], Int[Tensor, " p"]]:
    """Which places point along a row of the table, and which row is nearest to each."""
    table = normalize(_table(host).get_parameter("weight").float(), dim=-1)
    cosine, ids = (normalize(places.float(), dim=-1) @ table.T).max(-1)
    return cosine >= SAME, ids
