"""Clips of one's own: a vector of features for each, and the sentence it is to become.

The sign-language logs name a folder and a manifest (`--train_features features/train --train_manifest
manifests/train.tsv`) and do not say what is in them. The format here is ours:

- The manifest is UTF-8 text with a line `id<TAB>sentence` for each clip. Blank lines are skipped, and so is a first
  line `id<TAB>sentence` or `id<TAB>text`. Quotation marks are part of the sentence.
- `<id>.npy` in the folder holds the clip's vector, numbers of shape (width,) or (1, width).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

HEADERS = (["id", "sentence"], ["id", "text"])
MEND = "extract this clip's features again or take its line out"


@dataclass(frozen=True)
class Clips:
    """Clips in the manifest's order: row i of `vectors` (float32) belongs to `ids[i]` and `sentences[i]`."""

    ids: tuple[str, ...]
    vectors: Float[Tensor, "clips width"]
    sentences: tuple[str, ...]

    def __post_init__(self) -> None:
        counts = len(self.ids), len(self.vectors), len(self.sentences)
        if len(set(counts)) > 1:
            raise ValueError("{} ids, {} vectors and {} sentences: one each for a clip".format(*counts))

    def __len__(self) -> int:
        return len(self.ids)


def read_clips(features: Path, manifest: Path, width: int | None = None) -> Clips:
    """The clips of a manifest with their vectors, all of one width: `width`, or that of the first sound file.

    Raises:
        ValueError: when the manifest or the folder is missing, or the manifest is not UTF-8 or names no clip; for lines
            that are no clip, name one twice, or name a vector that is missing, damaged, not finite or of another type,
            shape or width: every such line with its number and the mend.
    """
    if not manifest.is_file():
        raise ValueError(f"{manifest} is not there: write one line for each clip, its id, a tab and its sentence")
    if not features.is_dir():
        raise ValueError(f"{features} is not a folder: give the one that holds <id>.npy for each clip of {manifest}")
    try:
        lines = manifest.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        why = f"{error.reason} at byte {error.start}"
        raise ValueError(f"{manifest} is not UTF-8 ({why}): save it as UTF-8 text") from None
    rows = [(number, [c.strip() for c in line.split("\t")]) for number, line in enumerate(lines, 1) if line.strip()]
    if rows and rows[0][1] in HEADERS:
        del rows[0]
    if not rows:
        raise ValueError(f"{manifest} holds no clips: write one line for each, its id, a tab and its sentence")
    seen: dict[str, str] = {}
    vectors, faults = [], []
    source = "asked for"
    for number, columns in tqdm(rows, desc=f"reading {manifest.name}", leave=False):
        try:
            _check(columns, f"line {number}", seen)
            path = features / f"{columns[0]}.npy"
            vector = _vector(path)
            if width is None:
                width, source = len(vector), f"of {path.name}"
            if len(vector) != width:
                raise ValueError(f"{path} has width {len(vector)}, not the {width} {source}: use one encoder for all")
            vectors.append(vector)
        except ValueError as fault:
            faults.append(f"line {number}: {fault}")
    _refuse(f"{manifest} cannot be read as clips", faults)
    return Clips(tuple(seen), torch.from_numpy(np.stack(vectors)), tuple(columns[1] for _, columns in rows))


def write_clips(features: Path, manifest: Path, clips: Clips) -> None:
    """Keep clips so that `read_clips` gives the same back: a manifest with a header, and `<id>.npy` for each clip.

    Raises:
        ValueError: for clips that would not come back the same, every one with its number; nothing is written then.
    """
    vectors = clips.vectors.detach().to("cpu", torch.float32)
    faults = [] if vectors.numel() else [f"the vectors have the shape {tuple(vectors.shape)}: there is nothing to keep"]
    lines = ["\t".join(HEADERS[0]).encode()]  # always there, else a first clip `id`, `text` would be taken for it
    seen: dict[str, str] = {}
    for number, columns in enumerate(zip(clips.ids, clips.sentences, strict=True), 1):
        try:
            _check(columns, f"clip {number}", seen)
            if any(c != c.strip() or set(c) & set("\t\r\n") for c in columns):
                raise ValueError(f"{columns} has a tab, a line break or outer blanks: take them out")
            if not torch.isfinite(vectors[number - 1]).all():
                raise ValueError(f"the vector of {columns[0]} is not finite in float32: leave the clip out")
            lines.append("\t".join(columns).encode())
        except ValueError as fault:
            faults.append(f"clip {number}: {fault}")
    _refuse(f"{manifest} cannot be written", faults)
    features.mkdir(parents=True, exist_ok=True)
    manifest.parent.mkdir(parents=True, exist_ok=True)
    for name, row in zip(tqdm(clips.ids, desc=f"writing {features.name}", leave=False), vectors, strict=True):
        np.save(features / f"{name}.npy", row.numpy())
    manifest.write_bytes(b"\n".join([*lines, b""]))


def _check(columns: Sequence[str], place: str, seen: dict[str, str]) -> None:
    """Refuse what is no id and sentence, and an id that was `seen` at another place."""
    name, *said = columns
    if len(said) > 1:
        raise ValueError(f"{len(columns)} columns, not 2: take the tabs after the first out of the sentence")
    if not name.strip():
        raise ValueError("no id before the tab: name the clip as its .npy file is named")
    if not said or not said[0].strip():
        raise ValueError(f"no tab and sentence after {name[:80]!r}: write its sentence or take the line out")
    if any(part in name for part in ("/", "\\", "..", "\0")) or len(f"{name}.npy".encode()) > 255:
        raise ValueError(f"{name[:80]!r} can name no file in the folder: give a short id without /, \\ and ..")
    if name in seen:
        raise ValueError(f"{name} stands twice, first at {seen[name]}: give each clip an id of its own")
    seen[name] = place


def _vector(path: Path) -> Float[np.ndarray, " width"]:
    if not path.is_file():
        raise ValueError(f"there is no {path}: {MEND}")
    try:
        with path.open("rb") as file:  # numpy.load would also open archives, and advise to unpickle what it cannot read
            array = np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # a damaged header raises nearly anything: SyntaxError, TokenError, MemoryError
        raise ValueError(f"{path} is no readable .npy file ({str(error).partition(chr(10))[0]}): {MEND}") from None
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{path} holds {array.dtype}, not real numbers: save it with numpy.save as float32")
    if array.shape not in ((array.size,), (1, array.size)) or not array.size:
        raise ValueError(f"{path} has the shape {array.shape}, not (width,): save one vector for the clip")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is counted below
        vector = array.reshape(-1).astype(np.float32)
    if broken := int((~np.isfinite(vector)).sum()):
        raise ValueError(f"{path}: {broken} of {len(vector)} values are NaN or infinite in float32: {MEND}")
    return vector


def _refuse(what: str, faults: list[str]) -> None:
    if faults:
        more = f"\n  and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise ValueError(f"{what}:\n  " + "\n  ".join(faults[:10]) + more)
