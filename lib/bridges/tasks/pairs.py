"""Image-text pairs of one's own: a folder of images with captions, or features that frozen towers gave beforehand."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

CAPTIONS = "captions.tsv"
FEATURES = "features.safetensors"


@dataclass(frozen=True)
class Pairs:
    """Images and their captions, row by row."""

    images: tuple[Path, ...]
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def pictures(self) -> Iterator[Image.Image]:
        """The images one by one, in RGB.

        Raises:
            ValueError: for a file that is no image, naming it.
        """
        for path in self.images:
            try:
                with Image.open(path) as opened:
                    deep = opened.mode.startswith("I;16")  # else all but the darkest pixels would turn white
                    yield (opened.point(lambda value: value / 256).convert("L") if deep else opened).convert("RGB")
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                raise ValueError(f"{path} cannot be read ({error}): replace it or take its line out") from None


@dataclass(frozen=True)
class Features:
    """What frozen towers made of the pairs: row i of both belongs together."""

    patches: Float[Tensor, "pairs patches patch_width"]
    text: Float[Tensor, "pairs text_width"]

    def __len__(self) -> int:
        return len(self.patches)


def read_pairs(folder: Path) -> Pairs:
    """The pairs of a folder: `captions.tsv` has a line `image<TAB>caption` for each, images named from the folder.

    Raises:
        ValueError: for lines that are no pair, name an image that is not there, or name one twice: every such line with
            its number, the file and the mend.
    """
    table = folder / CAPTIONS
    if not table.is_file():
        raise ValueError(f"{table} is not there: write one line for each image, its file name, a tab and its caption")
    try:
        text = table.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{table} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8 text"
        ) from None
    pairs: dict[Path, str] = {}
    faults = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        name, tab, caption = line.partition("\t")
        image = folder / name.strip()
        if not tab or not caption.strip():
            faults.append(f"line {number}: no tab and caption after {name!r}")
        elif len(name) > 255 or not image.is_file():
            faults.append(f"line {number}: there is no image {image}")
        elif image in pairs:
            faults.append(f"line {number}: {name} stands twice; give each caption an image of its own")
        else:
            pairs[image] = caption.strip()
    if faults:
        more = f"\n  and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise ValueError(f"{table} cannot be read as pairs:\n  " + "\n  ".join(faults[:10]) + more)
    if not pairs:
        raise ValueError(f"{table} holds no pairs: write one line for each image, its file name, a tab and its caption")
    return Pairs(tuple(pairs), tuple(pairs.values()))


def write_features(folder: Path, features: Features) -> None:
    """Keep features as `features.safetensors`, with the tensors `patches` and `text`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"patches": features.patches.contiguous(), "text": features.text.contiguous()}, folder / FEATURES)


def read_features(folder: Path) -> Features:
    """The features of a folder, checked.

    Raises:
        ValueError: when the file is missing or damaged, a tensor is missing or of the wrong shape, the two differ in
            length, or a row holds a value that is not finite, naming the file, the tensor and the row.
    """
    path = folder / FEATURES
    if not path.is_file():
        raise ValueError(f"{path} is not there: write one with bridges.tasks.pairs.write_features")
    try:
        found = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): write it anew") from None
    for name, dimensions in (("patches", 3), ("text", 2)):
        if name not in found:
            raise ValueError(f"{path} holds {', '.join(sorted(found)) or 'nothing'}, not {name!r}")
        tensor = found[name]
        if tensor.dim() != dimensions or not tensor.numel():
            raise ValueError(f"{path}: {name} must have {dimensions} dimensions, not the shape {tuple(tensor.shape)}")
        broken = (~torch.isfinite(tensor)).flatten(1).any(1).nonzero().flatten().tolist()
        if broken:
            raise ValueError(
                f"{path}: {name} is not finite in {len(broken)} rows, the first is row {broken[0]}: leave those pairs"
                " out, or look at what wrote them"
            )
        found[name] = tensor.to(torch.float32)
    if len(found["patches"]) != len(found["text"]):
        raise ValueError(
            f"{path} has {len(found['patches'])} rows of patches and {len(found['text'])} of text: one each for a pair"
        )
    if len(found["text"]) < 2:
        raise ValueError(f"{path} has {len(found['text'])} pairs: a contrast takes at least two")
    return Features(found["patches"], found["text"])


def split(features: Features, held_out: float = 0.1, seed: int = 0) -> tuple[Features, Features]:
    """Training and held-out pairs, drawn at random.

    Raises:
        ValueError: when either side would have fewer than two pairs.
    """
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    count = round(held_out * len(features))
    if count < 2 or len(features) - count < 2:
        raise ValueError(f"{len(features)} pairs cannot be split with {held_out:.0%} held out: give more pairs")
    train, test = (Features(features.patches[rows], features.text[rows]) for rows in (order[count:], order[:count]))
    return train, test
