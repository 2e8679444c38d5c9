"""Where a chapter's numbers come from: its settings checked before it starts, its record written when it ends."""

import json
import math
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from press import ROOT, PressError
from press.claims import check_schema
from press.ledger import Interval, Verdict

NO_SETTING = {"settings": False}  # of a run: what is trained depends on its sizes alone
PACKAGES = ("torch", "transformers", "numpy", "sacrebleu")


def find_device(name: str) -> str:
    """The device to run on, as `bridges` finds it.

    Raises:
        PressError: for a name that is not known, or a device that is not there.
    """
    from bridges.training import device  # imports torch, which most commands do without

    with refusing():
        return device.find_device(name)


def device_name(device: str) -> str:
    """The device in words, for the record."""
    if device == "cuda":
        import torch

        return f"cuda ({torch.cuda.get_device_name()})"
    return f"{device} ({platform.machine()})"


def commit() -> str:
    """The commit the chapter ran from, with `+` behind it where files differ from it, rows of evidence left out."""
    try:
        git = ["git", "-C", str(ROOT)]
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run(
            [*git, "status", "--porcelain", "--", ":!book/evidence"], capture_output=True, text=True, check=True
        )
        return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@contextmanager
def refusing() -> Iterator[None]:
    """Around the loading of what a reader gave: what cannot be read or loaded stops the chapter, with its one line.

    Raises:
        PressError: in the place of a ValueError or OSError.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        raise PressError(str(error)) from None


@dataclass
class Run:
    """One run of a chapter: what it was asked, and what it found."""

    chapter: str = field(metadata=NO_SETTING)
    profile: str = field(metadata=NO_SETTING)
    seeds: int = field(metadata=NO_SETTING)
    device: str = field(metadata=NO_SETTING)
    out: str = field(metadata=NO_SETTING)
    size: Any
    started: float = field(default_factory=time.monotonic, metadata=NO_SETTING)
    verdicts: dict[str, Verdict] = field(default_factory=dict, metadata=NO_SETTING)
    measurements: dict[str, Any] = field(default_factory=dict, metadata=NO_SETTING)
    # What a reader gave in place of the book's own, by name.
    given: dict[str, str] = field(default_factory=dict, metadata=NO_SETTING)
    # Whether a parameter of the chapter's own differs from its default.
    altered: bool = field(default=False, metadata=NO_SETTING)
    # Of each study's runs with the rows of record.
    agreement: list[dict[str, int]] = field(default_factory=list, metadata=NO_SETTING)

    def note(self, verdict: Verdict) -> Verdict:
        """Keep a verdict for the record; returns it, so that a cell shows its card."""
        self.verdicts[verdict.claim.id] = verdict
        return verdict

    def measure(self, **values: float | Interval) -> None:
        """Keep measured values that are no claim's but that other pages may show."""
        self.measurements |= {name: _plain(value) for name, value in values.items()}

    def verdict_lines(self) -> str:
        """One line for each verdict: what the checked cell prints."""
        return "\n".join(map(str, self.verdicts.values()))

    def close(self) -> "Provenance":
        """Write the record to `out` and show the chapter's provenance."""
        record = {
            "chapter": self.chapter,
            "profile": self.profile,
            "device": device_name(self.device),
            "seeds": self.seeds,
            "seconds": round(time.monotonic() - self.started, 1),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": commit(),
            "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
            "verdicts": [v.record() for v in self.verdicts.values()],
            "measurements": self.measurements,
        }
        if self.given:
            record["given"] = self.given
        if self.agreement:
            record["agreement"] = {k: sum(one[k] for one in self.agreement) for k in self.agreement[0]}
        path = Path(self.out or "record.json")
        check_schema(record, "record", path)
        if self.out:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
        return Provenance(record)


@dataclass(frozen=True)
class Provenance:
    """A record's settings, shown as a table."""

    record: Mapping[str, Any]

    def _repr_markdown_(self) -> str:
        r = self.record
        versions = ", ".join(f"{name} {number}" for name, number in r["versions"].items())
        rows = {
            "profile": r["profile"],
            "device": r["device"],
            "seeds": r["seeds"],
            "duration": f"{r['seconds']:.0f} s",
            "finished": r["finished"],
            "commit": r["commit"],
            "versions": versions,
        } | r.get("given", {})
        if "agreement" in r:
            of = r["agreement"]
            rows["held to the rows of record"] = (
                f"{of['equal']:,} of {sum(of.values()):,} values equal to the last digit, {of['near']:,} within the"
                f" spread over seeds, {of['far']:,} farther off"
            )
        return "| provenance | |\n|---|---|\n" + "\n".join(f"| {k} | {v} |" for k, v in rows.items())


def begin(
    chapter: str,
    sizes: Mapping[str, Any],
    *,
    profile: str,
    seeds: int,
    device: str,
    out: str,
    least: int = 2,
) -> Run:
    """Check a chapter's settings before anything runs.

    Args:
        chapter: the chapter's name, as its file's.
        sizes: what each profile means here; each has a field `seeds`.
        profile, seeds, device, out: the chapter's parameters; `seeds = 0` takes the profile's own number.
        least: the fewest seeds from which the chapter can give an interval.

    Raises:
        PressError: for an impossible value, naming what is allowed.
    """
    if profile not in sizes:
        raise PressError(f"profile {profile!r} is unknown; choose from {', '.join(sizes)}")
    size = sizes[profile]
    if isinstance(seeds, bool) or not isinstance(seeds, int) or not (seeds == 0 or seeds >= least):
        raise PressError(f"seeds is {seeds!r}; give a whole number of at least {least}, or 0 for the profile's own")
    if out and not out.endswith(".json"):
        raise PressError(f"out is {out!r}; give a path that ends in .json, or nothing")
    chapter = chapter[3:] if chapter[:2].isdigit() else chapter
    return Run(chapter, profile, seeds or size.seeds, find_device(device), out, size)


def _plain(value: float | Interval) -> Any:
    if isinstance(value, Interval):
        return {"mean": value.mean, "low": value.low, "high": value.high, "n": value.n}
    if not math.isfinite(value):
        raise PressError(f"a measurement must be finite, not {value}")
    return float(value)
