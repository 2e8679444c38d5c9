"""The second thread: image patches and captions in one space."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bridges.connectors import peers
from bridges.connectors.resampler import PerceiverResampler, ResamplerSettings
from bridges.hosts.contrastive import AlignmentSettings, ContrastiveBridge
from bridges.instruments.checkup import Contrastive
from bridges.instruments.conditioning import derangement
from bridges.planted.cases import BATCH, FEW, TAUGHT, Altered, Case, Size, chosen, in_training_alone
from bridges.tasks import scenes
from bridges.training.fit import FitSettings, fit
from bridges.training.losses import info_nce


def shared_space(size: Size, seeds: range, only: Sequence[str] = ()) -> Iterator[Case]:
    """The second thread: image patches and captions in one space; CLIP's vision tower sees the drawn scenes."""
    drawn = scenes.scenes(TAUGHT + size.samples)
    pixels = torch.stack([torch.from_numpy(drawn.draw(i, 8)) for i in range(len(drawn))]).permute(0, 3, 1, 2) / 255
    patches, text, wide = drawn.patches(), drawn.text(), scenes.WIDTH
    builders: dict[str, Callable[[], nn.Module]] = {
        "PerceiverResampler": lambda: nn.Sequential(
            nn.Linear(wide, size.width),
            PerceiverResampler(ResamplerSettings(size.width, size.tokens, 2, 4, latent_std=1.0)),
            nn.Linear(size.width, size.width),
        ),
        "linear": lambda: nn.Sequential(nn.LayerNorm(wide), nn.Linear(wide, size.width)),
        "CLIP": lambda: peers.ClipVision(size.width, size.width),
    } | {name: partial(peer, wide, size.width, size.tokens, size.width) for name, peer in peers.PEERS.items()}
    for name, build in chosen(builders, only).items():
        for seed in seeds:
            yield from _cases(name, build, pixels if name == "CLIP" else patches, text, size, seed)


def _cases(
    name: str, build: Callable[[], nn.Module], image: Tensor, text: Tensor, size: Size, seed: int
) -> Iterator[Case]:
    case, wide = partial(Case, "into a shared space", name, seed), text.shape[1]
    shape = ResamplerSettings(size.width, size.tokens, 1, 4)
    plan = AlignmentSettings(wide, wide, size.width, shape, "direct", "attention")

    def trained(steps: int, rate: float) -> tuple[Any, list[float]]:
        torch.manual_seed(seed)
        bridge = ContrastiveBridge(plan)
        bridge.image = nn.Sequential(build())
        history = fit(
            bridge.train(),
            lambda rows: info_nce(*bridge(image[rows], text[rows])),
            TAUGHT,
            FitSettings(steps, lr=rate, batch=BATCH),
            seed,
        )
        return bridge.eval(), history.losses

    bridge, losses = trained(size.steps, 3e-3)
    held = image[TAUGHT:], text[TAUGHT:]
    healthy = Contrastive(bridge, *held, losses=losses, batch=BATCH)
    yield case("", (), healthy)
    for planted, names, side in (
        ("image", ("constant image inputs",), 0),
        ("text", ("constant text inputs",), 1),
    ):
        same = [x[:1].expand_as(x) if i == side else x for i, x in enumerate(held)]
        yield case(f"one {planted} for all", names, replace(healthy, image=same[0], text=same[1]))
    broken = held[0].clone()
    broken[3] = torch.nan
    yield case("an image that is no number", ("values that are not finite",), replace(healthy, image=broken))
    order = derangement(size.samples, seed)
    yield case("pairs shuffled", ("pairs that do not belong together",), replace(healthy, text=held[1][order]))
    for planted, fault, way in (
        ("image side detached", "parameters that no gradient reaches", lambda x, _: x.detach()),
        ("image used in training alone", "another model in evaluation", in_training_alone),
        ("image embeddings not normalised", "embeddings not of unit length", lambda x, _: 3 * x),
    ):
        yield case(planted, (fault,), replace(healthy, embed=Altered(bridge, way).eval()))
    yield case(
        "factor on the cosines of 0.05",
        ("temperature that hides the pairs",),
        replace(healthy, embed=lambda i, t: bridge(i, t)[:2], scale=0.05, module=bridge),
    )
    fresh, still = trained(FEW, 0.0)
    alike = ("held-out pairs at chance", "image embeddings all alike", "text embeddings all alike")
    yield case("bridge untrained", alike, replace(healthy, embed=fresh, losses=()))
    yield case("rate of zero", ("training that moves nothing",), replace(healthy, embed=fresh, losses=still))
    if name != "linear":  # behind a LayerNorm a linear map learns at this rate too
        fast, risen = trained(2 * FEW, 1.0)
        yield case("rate of one", (*alike, "loss that diverged"), replace(healthy, embed=fast, losses=risen))
