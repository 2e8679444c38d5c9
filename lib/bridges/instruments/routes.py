"""Does the encoder run? Compare the ways of handing tokens to an encoder-decoder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class RouteComparison:
    """For each route: how often the encoder ran, and the largest absolute difference of its logits to the first."""

    encoder_calls: dict[str, int]
    logit_difference: dict[str, float]

    def _repr_markdown_(self) -> str:
        first = next(iter(self.encoder_calls))
        rows = (
            f"| `{route}` | {calls} | {self.logit_difference[route]:.3g} |"
            for route, calls in self.encoder_calls.items()
        )
        head = f"| route | encoder runs | largest difference in logits to `{first}` |\n|---|--:|--:|\n"
        return head + "\n".join(rows)


@torch.no_grad()
def compare_routes(routes: Mapping[str, Callable[[], Tensor]], encoder: nn.Module) -> RouteComparison:
    """Run every route once, counting the forward passes of `encoder`, and compare the logits with the first route's.

    Put the model in evaluation mode before: dropout makes any two passes differ.

    Raises:
        ValueError: when fewer than two routes are given, or a module is still in training mode.
    """
    if len(routes) < 2:
        raise ValueError(f"comparing takes at least two routes, not {len(routes)}")
    if encoder.training:
        raise ValueError("the encoder is in training mode, where dropout differs from pass to pass: call .eval()")
    calls = dict.fromkeys(routes, 0)
    logits: dict[str, Tensor] = {}
    for name, forward in routes.items():

        def count(*_: object, name: str = name) -> None:
            calls[name] += 1

        handle = encoder.register_forward_hook(count)
        try:
            logits[name] = forward()
        finally:
            handle.remove()
    first = logits[next(iter(routes))]
    return RouteComparison(calls, {n: (x - first).abs().max().item() for n, x in logits.items()})
