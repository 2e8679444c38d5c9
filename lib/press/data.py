"""The logs' recorded figures, kept as data with their source."""

from typing import Any

import yaml

from press import ROOT, PressError

RECORDED = ROOT / "book" / "recorded"


def recorded(name: str) -> dict[str, Any]:
    """The figures a log recorded, from `book/recorded/NAME.yml`, with its `source` and `columns`.

    Raises:
        PressError: when there is no such file, naming those there are.
    """
    path = RECORDED / f"{name}.yml"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in RECORDED.glob("*.yml")))
        raise PressError(f"no recorded figures named {name!r}; there are {there}")
    return yaml.safe_load(path.read_text(encoding="utf-8"))
