"""Rows of record: what the long runs of a study read, one text file a study, with where each row comes from.

A file is CSV that `pandas.read_csv(path, comment="#")` reads. Its rows stand in batches as they were made; the line of
JSON before a batch says on what device, with which versions, at which commit, in how many seconds, and the SHA-256 of
its rows. A batch that was edited is refused.
"""

import fcntl
import hashlib
import io
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.special import stdtrit

from press import BUILD, ROOT, PressError
from press.ledger import LOOKS
from press.provenance import PACKAGES, commit, device_name

EVIDENCE = ROOT / "book" / "evidence"
COLUMNS = ["arm", "digest", "seed", "look", "reading", "value"]
KEY = ["arm", "seed", "look", "reading"]
ROUNDING = 1e-6  # of a value, by which another processor may round it where all seeds give the same
# `make evidence` gives the number of seeds that arms of record are to have; unset, nothing is added.
WANTED = "BRIDGES_EVIDENCE"
EVERY = "BRIDGES_EVIDENCE_EVERY"  # set: every arm, not those of undecided claims alone
# Set: the arms that claims ask for are trained over so many hosts once more, for whose the variance is.
AGAIN = "BRIDGES_EVIDENCE_AGAIN"

# Under `make evidence`: the studies and claims that this process has still to come to, the arms that claims ask for,
# and those of them that undecided claims ask for.
awaited: set[str] = set()
asked: set[str] = set()
undecided: set[str] = set()


class Done(BaseException):
    """Raised under `make evidence` behind a chapter's last study and claim."""


def wanted() -> int:
    """How many seeds arms of record are to have; 0 outside `make evidence`."""
    return int(os.environ.get(WANTED, 0))


def again() -> int:
    """Over how many hosts arms are to be trained once more; 0 outside `make evidence ARGS=--again`."""
    return int(os.environ.get(AGAIN, 0))


def looked(chapter: str, profile: str) -> dict[str, list[str]]:
    """The arms that a chapter's claims asked for at the last look: `asked` by any, `undecided` by an undecided one.

    Raises:
        PressError: where no look has been taken.
    """
    path = _looked_file(chapter, profile)
    if not path.is_file():
        raise PressError(f"{chapter} has not been looked at yet: press evidence takes one look after another")
    return json.loads(path.read_text())


def goes_on(chapter: str, profile: str, arm: str) -> bool:
    """Whether an arm is to have as many seeds as wanted: at the first look all are, then those of undecided claims.

    Raises:
        PressError: beyond the first look, where the one before has not been taken.
    """
    if again():
        return arm in looked(chapter, profile)["asked"]
    return wanted() <= LOOKS[0] or bool(os.environ.get(EVERY)) or arm in looked(chapter, profile)["undecided"]


def came_to(name: str, chapter: str, profile: str) -> None:
    """Under `make evidence`, say that a study has its rows or a claim its verdict; ends the chapter behind the last."""
    awaited.discard(name)
    if awaited:
        return
    path = _looked_file(chapter, profile)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps({"asked": sorted(asked), "undecided": sorted(undecided)}))
    partial.replace(path)
    raise Done


def _looked_file(chapter: str, profile: str) -> Path:
    return BUILD / "looked" / f"{chapter}.{profile}.json"


@dataclass(frozen=True)
class Batch:
    """Rows that one run made, and where."""

    made: Mapping[str, Any]
    rows: str  # lines of CSV


def path_of(chapter: str, study: str, profile: str = "quick", again: bool = False) -> Path:
    """Where a study's rows of record are, or those of its arms trained again over the same hosts."""
    name = study.replace(" ", "_") + (".again" if again else "")
    return EVIDENCE / chapter / (f"{name}.csv" if profile == "quick" else f"{name}.{profile}.csv")


def read_batches(path: Path) -> list[Batch]:
    """A file's batches, none where there is no file.

    Raises:
        PressError: for a file of another form, or a batch whose rows are not those that were written.
    """
    if not path.is_file():
        return []
    head, *lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    mend = "take it away and run make evidence, or bring the committed file back"
    if head.strip() != ",".join(COLUMNS):
        raise PressError(f"{path.name}: its first line is not {','.join(COLUMNS)}: {mend}")
    batches: list[Batch] = []
    for line in lines:
        if line.startswith("# "):
            try:
                batches.append(Batch(json.loads(line[2:]), ""))
            except ValueError:
                raise PressError(f"{path.name}: a batch's line is no JSON: {mend}") from None
        elif batches:
            batches[-1] = Batch(batches[-1].made, batches[-1].rows + line)
        else:
            raise PressError(f"{path.name}: rows stand before any batch: {mend}")
    for batch in batches:
        if _digest(batch.rows) != batch.made.get("sha256"):
            where = f"seeds {batch.made.get('seeds')} of {batch.made.get('finished')}"
            raise PressError(f"{path.name}: the rows of {where} are not those that were measured: {mend}")
    return batches


def read_rows(path: Path) -> pd.DataFrame:
    """All rows of a file."""
    batches = read_batches(path)
    if not batches:
        return pd.DataFrame(columns=COLUMNS)
    text = ",".join(COLUMNS) + "\n" + "".join(batch.rows for batch in batches)
    rows = pd.read_csv(io.StringIO(text), dtype={"arm": str, "digest": str, "reading": str})
    return rows.drop_duplicates(KEY, keep="last")


def add(path: Path, rows: pd.DataFrame, device: str, seconds: float) -> None:
    """Write a batch behind the others; a kill leaves the file as it was.

    Raises:
        PressError: for an arm whose name holds a number sign, which would end the line for pandas.
    """
    if rows["arm"].str.contains("#").any():
        raise PressError(f"an arm of {path.stem} has a number sign in its name: take it out")
    text = _text(rows)
    made = {
        "seeds": sorted({int(s) for s in rows["seed"]}),
        "device": device_name(device),
        "processor": processor(),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "commit": commit(),
        "seconds": round(seconds, 1),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "sha256": _digest(text),
    }
    with locked(path):
        _write(path, [*read_batches(path), Batch(made, text)])


def prune(path: Path, digests: Mapping[str, str]) -> None:
    """Take away the rows of arms that are no more, or whose settings are others now."""
    with locked(path):
        batches = read_batches(path)
        kept = []
        for batch in batches:
            rows = pd.read_csv(io.StringIO(batch.rows), names=COLUMNS, dtype={"digest": str})
            rows = rows[rows["arm"].map(digests) == rows["digest"]]
            if len(rows):
                text = _text(rows)
                kept.append(Batch({**batch.made, "sha256": _digest(text)}, text))
        if kept != batches:
            _write(path, kept)


def stale(rows: pd.DataFrame, digests: Mapping[str, str]) -> list[str]:
    """The arms whose rows were made with other settings or hosts' recipes, or which the chapter no longer has."""
    return sorted(str(arm) for arm in rows.loc[rows["arm"].map(digests) != rows["digest"], "arm"].unique())


def agreement(made: pd.DataFrame, record: pd.DataFrame) -> dict[str, int]:
    """How many values of runs made here equal those of record, lie as near as two runs do, or lie farther apart.

    Two runs of one arm differ by more than √2 t standard deviations over its seeds once in twenty, with t the quantile
    of Student's distribution.
    """
    both = made.merge(record, on=KEY, suffixes=("", "_record"))
    over = record.groupby(["arm", "look", "reading"])["value"].agg(["std", "count"]).reset_index()
    both = both.merge(over, on=["arm", "look", "reading"], how="left")
    apart = (both["value"] - both["value_record"]).abs()
    allowed = 2**0.5 * stdtrit((both["count"] - 1).clip(lower=1), 0.975) * both["std"].fillna(0)
    equal = apart == 0
    near = ~equal & ((apart <= allowed) | (apart <= ROUNDING * both["value_record"].abs()))
    return {"equal": int(equal.sum()), "near": int(near.sum()), "far": int((~equal & ~near).sum())}


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time, also where several chapters or shares run at once."""
    lock = BUILD / "locks" / ("-".join(path.parts[-2:]) + ".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def claimed(path: Path, batch: Sequence[int], wait: bool = False) -> Callable[[], None] | None:
    """Claim a batch of seeds for this process; None where a living one has it, unless it is to be waited for.

    Call what is returned to let go.
    """
    name = f"{'-'.join(path.parts[-2:])}.{'-'.join(map(str, batch))}.claim"
    lock = BUILD / "locks" / name
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = lock.open("a")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        held.close()
        return None
    return held.close


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _text(rows: pd.DataFrame) -> str:
    return rows[COLUMNS].to_csv(index=False, header=False, lineterminator="\n")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _write(path: Path, batches: Sequence[Batch]) -> None:
    """Beside the file, then moved whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    body = "".join(f"# {json.dumps(batch.made)}\n{batch.rows}" for batch in batches)
    partial.write_text(",".join(COLUMNS) + "\n" + body, encoding="utf-8")
    partial.replace(path)
