"""What a check-up shows as plots: the loss log, scale and conditioning gap by token, and the gradient by parameter."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean

import torch
from torch import Tensor, nn

from bridges.instruments.chance import NEAR, chance_loss
from bridges.instruments.conditioning import derangement
from bridges.instruments.contrastive import Space
from bridges.instruments.generative import Speech
from bridges.instruments.gradients import gradient_flow
from bridges.instruments.plots import Profile
from bridges.instruments.report import Reading

POINTS = 300  # of a curve, at most
BLOCKS = 16  # of neighbouring tokens, whose gap is taken together where there are more
ROWS = 24  # of parameters, at most: beyond, they are taken together by the module that holds them
BROKEN = ("values that are not finite", "no label is supervised")  # after which no loss is worth a curve


def profiles(own: Speech | Space, readings: Sequence[Reading]) -> Iterator[Profile]:
    """The plots of a check-up whose readings have been taken."""
    whole = not any(reading.fault in BROKEN for reading in readings)
    losses = [float(loss) for loss in own.bridge.losses]
    if isinstance(own, Space):
        pairs = own.bridge.batch
        yield from loss_profile(losses, {f"chance, ln({pairs:,})": chance_loss(pairs)} if pairs > 1 else {})
        if whole:
            yield from gradient_profile(own.module, lambda: own.loss(min(len(own.bridge.image), 128)))
        return
    words = own.bridge.words()
    lines = {f"no word preferred, ln({words:,})": math.log(words)} if words > 1 else {}
    if whole:
        if losses:
            yield from loss_profile(losses, lines | {"held-out loss": own.loss()})
        yield from token_profiles(own)
        rows = own.chunks[0]
        yield from gradient_profile(own.module, lambda: own.host_loss(own.tokens(rows), rows))
    else:
        yield from loss_profile(losses, lines)


def loss_profile(losses: Sequence[float], lines: Mapping[str, float]) -> Iterator[Profile]:
    """A loss log beside its lines, in nats; a long one as means over neighbours."""
    if len(losses) > 1:
        values, at = _thinned(losses, POINTS)
        yield Profile("The loss log", "value of the log", "loss (nats)", values, at, lines=lines)


@torch.no_grad()
def token_profiles(own: Speech) -> list[Profile]:
    """How loud each token is, and how much the loss rises when it is another sample's, all others its own."""
    rows = own.chunks[0]
    tokens = own.tokens(rows)
    if tokens.dim() == 2:
        return []
    loud = tokens.float().square().mean((0, 2)).sqrt()
    y, lines = "RMS", dict[str, float]()
    if own.bridge.embeddings is not None:
        loud = loud / own.bridge.embeddings.detach().float().square().mean(-1).sqrt().mean()
        y, lines = "RMS over the embeddings'", {"the host's embeddings": 1.0}
    values, at = _thinned(loud.tolist(), POINTS)
    scale = Profile("Scale by token", "token", y, values, at, lines=lines)
    if own.prompt:
        return [scale]
    as_is, others = float(own.host_loss(tokens, rows)), tokens[derangement(len(rows)).to(tokens.device)]
    rises, middles = [], []
    for places in torch.arange(tokens.shape[1], device=tokens.device).tensor_split(min(BLOCKS, tokens.shape[1])):
        mixed = tokens.clone()
        mixed[:, places] = others[:, places]
        rises.append(float(own.host_loss(mixed, rows)) - as_is)
        middles.append(places.float().mean().item() + 1)
    where = "one place" if tokens.shape[1] <= BLOCKS else f"one {BLOCKS}th of the places"
    title = f"Loss with another sample's token in {where} ({len(rows)} samples)"
    lines = {"the least that counts": NEAR}
    return [scale, Profile(title, "token", "rise of the loss (nats)", tuple(rises), tuple(middles), lines=lines)]


def gradient_profile(module: nn.Module | None, loss: Callable[[], Tensor]) -> Iterator[Profile]:
    """The norm of the loss's gradient at each parameter that is trained, or at each module where there are many."""
    named = [] if module is None else [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            norms = gradient_flow(named, loss).gradient
    except (ValueError, RuntimeError):  # there is none, which a reading tells
        return
    paths = {name: tuple(name.replace("/", ".").split(".")) for name in norms}
    depth = max(map(len, paths.values()))
    while depth > 1 and len({path[:depth] for path in paths.values()}) > ROWS:
        depth -= 1
    summed: dict[tuple[str, ...], float] = {}
    for name, norm in norms.items():
        summed[paths[name][:depth]] = math.hypot(summed.get(paths[name][:depth], 0.0), norm)
    rows = list(summed)
    shared = next((i for i in range(depth) if len({row[: i + 1] for row in rows}) > 1), 0)
    names = tuple(".".join(row[shared:]) for row in rows[:ROWS])
    values = tuple(summed.values())[:ROWS]
    yield Profile("Gradient by parameter", "", "gradient's norm (nats per unit)", values, rows=names)


def _thinned(values: Sequence[float], count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """At most `count` means over neighbours, and their middle places, from 1."""
    width = math.ceil(len(values) / count)
    parts = [range(i, min(i + width, len(values))) for i in range(0, len(values), width)]
    return tuple(fmean(values[i] for i in part) for part in parts), tuple(fmean(part) + 1 for part in parts)
