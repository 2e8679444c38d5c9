"""Small scenes with captions: the image and text side of the second thread, made on the spot.

A scene is a grid of 4 x 4 cells with three objects, each of one of six shapes and six colours. It can be had as
features of frozen towers (fixed random functions of what is in each cell, and of what the caption says), as an image,
or as a sentence.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from bridges.tasks.pairs import Features

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "bar")
COLOURS = ("red", "green", "blue", "yellow", "white", "purple")
RGB = {
    "red": (214, 69, 65),
    "green": (46, 160, 67),
    "blue": (65, 131, 215),
    "yellow": (247, 202, 24),
    "white": (240, 240, 240),
    "purple": (155, 89, 182),
}
GRID = 4
OBJECTS = 3
KINDS = len(SHAPES) * len(COLOURS)
WIDTH = 32  # of a patch and of a caption
NOISE = 0.1  # standard deviation added to each patch feature, whose own is near 1


@dataclass(frozen=True)
class Scenes:
    """What lies where: for each object of each scene its kind (shape * 6 + colour) and its cell (row * 4 + column)."""

    kinds: Int[Tensor, "scenes objects"]
    cells: Int[Tensor, "scenes objects"]

    def __len__(self) -> int:
        return len(self.kinds)

    def patches(self, seed: int = 0) -> Float[Tensor, "scenes cells width"]:
        """Features of a frozen image tower, one for each cell: what is in it, where it is, and a little noise."""
        draw = torch.Generator().manual_seed(seed)
        grid = torch.full((len(self), GRID * GRID), KINDS)  # the last kind is an empty cell
        grid.scatter_(1, self.cells, self.kinds)
        return (
            _tower("objects", KINDS + 1)[grid]
            + _tower("cells", GRID * GRID)
            + NOISE * torch.randn(len(self), GRID * GRID, WIDTH, generator=draw)
        )

    def text(self) -> Float[Tensor, "scenes width"]:
        """Unit vectors of a frozen text tower: the sum over objects of a shape's code times a colour's."""
        objects = _tower("shapes", len(SHAPES))[self.kinds // len(COLOURS)]
        objects = objects * _tower("colours", len(COLOURS))[self.kinds % len(COLOURS)]  # (N, 3, width)
        return normalize(objects.sum(1), dim=-1)

    def features(self, seed: int = 0) -> Features:
        """Patches, their noise drawn from `seed`, and text vectors."""
        return Features(self.patches(seed), self.text())

    def captions(self) -> list[str]:
        """Each scene in words; where the objects lie is left out."""
        return [
            ", ".join(f"a {COLOURS[kind % len(COLOURS)]} {SHAPES[kind // len(COLOURS)]}" for kind in kinds)
            for kinds in self.kinds.tolist()
        ]

    def draw(self, index: int, cell: int = 16) -> np.ndarray:
        """One scene as an image, (height, width, 3) of uint8, `cell` pixels a cell."""
        picture = np.full((GRID * cell, GRID * cell, 3), 40, np.uint8)
        y, x = np.mgrid[:cell, :cell] / (cell - 1) * 2 - 1  # each cell from -1 to 1
        masks = {
            "circle": x**2 + y**2 < 0.6,
            "square": np.maximum(abs(x), abs(y)) < 0.65,
            "triangle": (y < 0.7) & (abs(x) < (y + 0.8) / 2),
            "diamond": abs(x) + abs(y) < 0.85,
            "cross": np.minimum(abs(x), abs(y)) < 0.22,
            "bar": (abs(y) < 0.25) & (abs(x) < 0.9),
        }
        for kind, place in zip(self.kinds[index].tolist(), self.cells[index].tolist(), strict=True):
            shape, colour = divmod(kind, len(COLOURS))
            top, left = place // GRID * cell, place % GRID * cell
            picture[top : top + cell, left : left + cell][masks[SHAPES[shape]]] = RGB[COLOURS[colour]]
        return picture


def scenes(count: int, seed: int = 0) -> Scenes:
    """Scenes drawn at random, no two objects of a scene in one cell."""
    draw = torch.Generator().manual_seed(seed)
    cells = torch.rand(count, GRID * GRID, generator=draw).argsort(1)[:, :OBJECTS]
    return Scenes(torch.randint(KINDS, (count, OBJECTS), generator=draw), cells)


def _tower(name: str, rows: int) -> Float[Tensor, "rows width"]:
    """A frozen table of random codes, the same in every run."""
    draw = torch.Generator().manual_seed(sum(map(ord, name)))
    return torch.randn(rows, WIDTH, generator=draw)
