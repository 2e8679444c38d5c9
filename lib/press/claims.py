"""The claims under test, each with the criterion under which the log would be right, written before any run."""

import hashlib
import json
import operator
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import fastjsonschema
import yaml

from press import CLAIMS, PressError

COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}


@dataclass(frozen=True)
class Part:
    """One measured quantity and the comparison under which the log would be right."""

    metric: str
    reads: str
    comparison: str
    threshold: float | tuple[float, float]
    unit: str
    strength: str

    @property
    def is_difference(self) -> bool:
        """Whether it compares two arms by their difference, as its reading says."""
        return self.unit != "ratio" and bool(re.search(r"\bminus\b|\bsame difference\b", self.reads))

    def no_effect(self, low: float, high: float) -> bool:
        """Whether an interval of a difference lies wholly between the line and its mirror image."""
        if not self.is_difference or isinstance(self.threshold, tuple):
            return False
        return -abs(self.threshold) < low and high < abs(self.threshold)

    def holds(self, low: float, high: float) -> tuple[bool, bool]:
        """Whether the comparison holds for every value from `low` to `high`, and whether it holds for any."""
        if isinstance(self.threshold, tuple):
            bottom, top = self.threshold
            return bottom <= low and high <= top, low <= top and bottom <= high
        if self.comparison in ("==", "!="):
            point = low == high == self.threshold
            inside = low <= self.threshold <= high
            return (point, inside) if self.comparison == "==" else (not inside, not point)
        test = COMPARISONS[self.comparison]
        ends = test(low, self.threshold), test(high, self.threshold)
        return all(ends), any(ends)


@dataclass(frozen=True)
class Claim:
    """One row of `book/claims.yml`."""

    id: str
    sources: tuple[str, ...]
    statement: str
    figures: dict[str, float | str]
    strength: str
    parts: tuple[Part, ...]
    chapter: str
    pending: bool

    @property
    def digest(self) -> str:
        """SHA-256 of the criterion, kept with every verdict so that a criterion bent afterwards is noticed."""
        criterion = {"strength": self.strength, "parts": [asdict(p) for p in self.parts]}
        return hashlib.sha256(json.dumps(criterion, sort_keys=True).encode()).hexdigest()

    def _repr_html_(self) -> str:
        from press.cards import claim_card

        return claim_card(self)


@cache
def load_claims(path: Path = CLAIMS) -> dict[str, Claim]:
    """The claims by id, in the file's order.

    Raises:
        PressError: when the file is no YAML, breaks its schema, names an unknown source or gives an id twice.
    """
    try:
        text = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise PressError(f"{path.name} is not YAML: {' '.join(str(error).split())}") from None
    check_schema(text, "claims", path)
    claims: dict[str, Claim] = {}
    for entry in text["claims"]:
        where = f"{path.name}, claim {entry['id']}"
        if entry["id"] in claims:
            raise PressError(f"{where}: the id stands twice")
        unknown = set(entry["sources"]) - set(text["sources"])
        if unknown:
            raise PressError(f"{where}: unknown source {', '.join(sorted(unknown))}")
        criterion = entry.pop("criterion")
        parts = []
        for part in criterion["parts"]:
            if (part["comparison"] == "between") != isinstance(part["threshold"], list):
                raise PressError(f"{where}, {part['metric']}: 'between' takes two thresholds, the others one")
            threshold = part["threshold"]
            part["threshold"] = tuple(threshold) if isinstance(threshold, list) else threshold
            parts.append(Part(**{"strength": criterion["strength"], **part}))
        claims[entry["id"]] = Claim(
            **(entry | {"sources": tuple(entry["sources"]), "pending": entry.get("pending", False)}),
            strength=criterion["strength"],
            parts=tuple(parts),
        )
    return claims


def check_schema(value: Any, name: str, where: Path) -> None:
    """Raise a PressError naming the place when `value` does not fit `press/NAME.schema.json`."""
    try:
        _validator(name)(value)
    except fastjsonschema.JsonSchemaValueException as error:
        raise PressError(f"{where.name}: {error.message}") from None


@cache
def _validator(name: str) -> Callable[[Any], Any]:
    schema = Path(__file__).with_name(f"{name}.schema.json")
    return fastjsonschema.compile(json.loads(schema.read_text()))
