"""The ledger: verdicts computed from the claims' criteria, and the rules that keep both honest."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from press import CLAIMS, NOTEBOOKS, PressError
from press.claims import Claim, Part, check_schema, load_claims


@runtime_checkable
class Interval(Protocol):
    """A mean over `n` runs with the ends of its interval, such as `bridges.instruments.uncertainty.Estimate`."""

    @property
    def mean(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def n(self) -> int: ...


@dataclass(frozen=True)
class Measured:
    """What was observed for one part, and what follows from it."""

    metric: str
    verdict: str
    observed: float
    interval: tuple[float, float] | None
    n: int
    live: "Measured | None" = None  # the same of the runs made on the spot, where the verdict is from rows of record

    def record(self) -> dict[str, Any]:
        """As it stands in a record."""
        row = {k: getattr(self, k) for k in ("metric", "verdict", "observed", "interval", "n")}
        row["interval"] = list(self.interval) if self.interval else None
        live = self.live and {k: v for k, v in self.live.record().items() if k in ("observed", "interval", "n")}
        return row | ({"live": live} if live else {})


@dataclass(frozen=True)
class Verdict:
    """A claim with what was measured for it."""

    claim: Claim
    verdict: str
    parts: tuple[Measured, ...]
    why: str = ""

    def __str__(self) -> str:
        return f"{self.claim.id} {self.verdict} ({self.claim.strength})"

    def record(self) -> dict[str, Any]:
        """The row that goes into the chapter's record; the first part is the headline."""
        head = self.parts[0] if self.parts else None
        row = {
            "id": self.claim.id,
            "verdict": self.verdict,
            "strength": self.claim.strength,
            "observed": head.observed if head else None,
            "interval": list(head.interval) if head and head.interval else None,
            "n": head.n if head else 0,
            "criterion": self.claim.digest,
            "parts": [part.record() for part in self.parts],
        }
        return row | ({"why": self.why} if self.why else {})

    def _repr_html_(self) -> str:
        from press.cards import card

        return card(self)


def judge(
    claim_id: str,
    observed: float | Interval | Mapping[str, float | Interval] | None = None,
    *,
    n: int = 1,
    untestable: str = "",
    claims: Path = CLAIMS,
) -> Verdict:
    """Compute a claim's verdict from what was observed.

    A part is confirmed when its comparison holds for every value of the interval, refuted when it holds for none, and
    otherwise not reproduced. A claim of several parts is partly confirmed when some of them are.

    Args:
        claim_id: the claim's id in `book/claims.yml`.
        observed: for a criterion of one part its value, else a mapping from each metric's name. A plain number for an
            exact part (with `n` cases it was computed over), a mean with its interval for any other.
        untestable: why the claim cannot be tested here, instead of an observation.

    Raises:
        PressError: for an unknown claim, metrics that differ from the criterion's, or a missing interval.
    """
    known = load_claims(claims)
    if claim_id not in known:
        raise PressError(f"claim {claim_id!r} is not in {claims.name}; add its criterion there first")
    claim = known[claim_id]
    if untestable:
        return Verdict(claim, "not testable here", (), untestable)
    values = dict(observed) if isinstance(observed, Mapping) else {claim.parts[0].metric: observed}
    wanted = {part.metric for part in claim.parts}
    if set(values) != wanted:
        raise PressError(
            f"claim {claim_id} is judged by {', '.join(sorted(wanted))}, not by {', '.join(sorted(values))}"
        )
    parts = tuple(_measure(claim, part, values[part.metric], n) for part in claim.parts)
    tokenizer = {part.verdict for part in parts}
    word = tokenizer.pop() if len(tokenizer) == 1 else "partly" if "confirmed" in tokenizer else "not reproduced"
    return Verdict(claim, word, parts)


def beside(verdict: Verdict, live: Verdict) -> Verdict:
    """A verdict with what the runs made on the spot gave for each part."""
    parts = tuple(replace(p, live=here) for p, here in zip(verdict.parts, live.parts, strict=True))
    return replace(verdict, parts=parts)


def _measure(claim: Claim, part: Part, value: float | Interval | None, n: int) -> Measured:
    if isinstance(value, Interval):
        low, high, mean, n = float(value.low), float(value.high), float(value.mean), int(value.n)
    elif part.strength == "exact" and isinstance(value, int | float):
        low = high = mean = float(value)
    else:
        raise PressError(
            f"claim {claim.id}, {part.metric}: a {part.strength} part takes a mean with its interval"
            " (mean, low, high, n), such as uncertainty.mean_interval gives"
        )
    if not low <= mean <= high:
        raise PressError(f"claim {claim.id}, {part.metric}: {mean} does not lie in [{low}, {high}]")
    every, some = part.holds(low, high)
    word = "confirmed" if every else "not reproduced" if some else "refuted"
    return Measured(part.metric, word, mean, None if low == high else (low, high), n)


def collect(records: Iterable[Path], claims: Path = CLAIMS, notebooks: Path = NOTEBOOKS) -> list[dict[str, Any]]:
    """All verdicts of the book's records, in the order of the claims, after checking that nothing is missing or bent.

    Raises:
        PressError: for a record that breaks the schema, a claim without a verdict that is not listed as pending, a
            verdict without a claim or twice given, a pending claim with a verdict, a claim judged in another chapter
            than it names, and a criterion changed after its record.
    """
    known = load_claims(claims)
    rows: dict[str, dict[str, Any]] = {}
    for path in records:
        record = json.loads(path.read_text())
        check_schema(record, "record", path)
        for verdict in record["verdicts"]:
            claim = known.get(verdict["id"])
            check_verdict(verdict, claim, path)
            assert claim is not None
            if verdict["id"] in rows:
                raise PressError(f"{claim.id} has two verdicts: in {path.name} and {rows[claim.id]['chapter']}")
            if claim.pending:
                raise PressError(f"{claim.id} has a verdict in {path.name}: take 'pending' off it in {claims.name}")
            if claim.chapter != record["chapter"]:
                raise PressError(f"{claim.id} is judged in {record['chapter']} but {claims.name} names {claim.chapter}")
            extra = {key: record[key] for key in ("chapter", "profile", "device")}
            rows[claim.id] = {k: v for k, v in verdict.items() if k != "criterion"} | extra
    for claim in known.values():
        if claim.id not in rows and not claim.pending:
            raise PressError(
                f"{claim.id} has no verdict: judge it in the chapter {claim.chapter}, or mark it pending in"
                f" {claims.name}"
            )
        if not claim.pending and not list(notebooks.glob(f"[0-9][0-9]_{claim.chapter}.py")):
            raise PressError(f"{claim.id} names the chapter {claim.chapter}, which is not in {notebooks.name}")
    return [rows[claim_id] for claim_id in known if claim_id in rows]


def check_verdict(verdict: Mapping[str, Any], claim: Claim | None, where: Path) -> None:
    """Raise a PressError when a recorded verdict has no claim, or its criterion has changed since."""
    if claim is None:
        raise PressError(f"{where.name} holds a verdict on {verdict['id']}, which is no claim of claims.yml")
    if verdict["criterion"] != claim.digest:
        raise PressError(
            f"{claim.id}: its criterion in claims.yml has changed after {where.name} was recorded. A criterion is"
            " written before the run: restore it, or, when the change is meant, delete that record, run the chapter"
            " again and say why in the commit"
        )


def check_references(folder: Path, claims: Path = CLAIMS) -> None:
    """Hold the committed reference records against today's criteria, so that a bent one shows."""
    known = load_claims(claims)
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        check_schema(record, "record", path)
        for verdict in record["verdicts"]:
            check_verdict(verdict, known.get(verdict["id"]), path)


def as_text(rows: Iterable[Mapping[str, Any]], claims: Path = CLAIMS) -> str:
    """The ledger as plain text, one line a claim, those without an experiment yet marked pending."""
    from press.cards import measured

    judged = {row["id"]: row for row in rows}
    lines = [f"{'claim':6}{'verdict':19}{'strength':15}{'observed':44}{'n':>4}  chapter"]
    for claim in load_claims(claims).values():
        row = judged.get(claim.id)
        if row is None:
            lines.append(f"{claim.id:6}{'pending':19}{claim.strength:15}{'':48}  {claim.chapter}")
            continue
        seen = "" if row["observed"] is None else measured(row["observed"], row["interval"], claim.parts[0].unit)
        lines.append(
            f"{claim.id:6}{row['verdict']:19}{row['strength']:15}{seen:44}{row['n']:>4}  {row['chapter']}"
            f" ({row['profile']}, {row['device']})"
        )
    return "\n".join(lines)
