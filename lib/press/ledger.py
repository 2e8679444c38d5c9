"""The ledger: verdicts computed from the claims' criteria, and the rules that keep both honest."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from bridges.instruments.variance import NestedVariance

from press import CLAIMS, NOTEBOOKS, PressError
from press.cards import measured, number, threshold
from press.claims import Claim, Part, check_schema, load_claims

UNDECIDED = "undecided"
# The rule of book/criteria.md: at these numbers of seeds a part is looked at, each time with this confidence, so that
# all its looks together have 95 %.
LOOKS = (16, 32, 64, 128, 256)
LOOK = 1 - 0.05 / len(LOOKS)
SECOND = range(LOOKS[0], LOOKS[1])  # seeds that are judged by themselves, against the word of the first look


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
    seeds: int = 0  # at which look of the rows of record; 0 without rows of record
    live: "Measured | None" = None  # the same of the runs made on the spot, where the verdict is from rows of record
    second: "Measured | None" = None  # the same of the second set of seeds
    variance: NestedVariance | None = None  # whose the variance over seeds is

    @staticmethod
    def of(row: Mapping[str, Any]) -> "Measured":
        """What stands in a record, without the runs made on the spot."""
        interval = tuple(row["interval"]) if row["interval"] else None
        return Measured(row["metric"], row["verdict"], row["observed"], interval, row["n"], row.get("seeds", 0))

    def would_decide(self, part: Part) -> int:
        """How many seeds would take the interval off its line if mean and spread stayed the same; 0 if none would."""
        lines = part.threshold if isinstance(part.threshold, tuple) else (part.threshold,)
        distance = min(abs(self.observed - line) for line in lines)
        if self.interval is None or distance == 0:
            return 0
        half = max(self.observed - self.interval[0], self.interval[1] - self.observed)
        return math.ceil((self.seeds or self.n) * (half / distance) ** 2)

    def finding(self, part: Part) -> str:
        """The verdict in words, with what an undecided part leaves open."""
        if self.verdict == UNDECIDED and self.interval:
            low, high = map(number, self.interval)
            if self.seeds == LOOKS[-1]:
                return f"undecided after the last look: it lies on its line, between {low} and {high}"
            seeds = self.would_decide(part)
            more = f"; at this spread about {seeds:,} seeds would decide" if 0 < seeds < 10_000 else ""
            return f"undecided: less than {low} and more than {high} are excluded{more}"
        none = self.interval and self.verdict == "refuted" and part.no_effect(*self.interval)
        return f"{self.verdict}: no effect worth having, in either direction" if none else self.verdict

    def record(self) -> dict[str, Any]:
        """As it stands in a record."""
        row = {k: getattr(self, k) for k in ("metric", "verdict", "observed", "interval", "n")}
        row["interval"] = list(self.interval) if self.interval else None
        row |= {"seeds": self.seeds} if self.seeds else {}
        for name in ("live", "second"):
            other = getattr(self, name)
            row |= {name: {k: v for k, v in other.record().items() if k != "metric"}} if other else {}
        if self.variance:
            shares = {k: getattr(self.variance, k) for k in ("hosts", "bridges", "exam", "shift")}
            row["variance"] = {"sd": self.variance.sd, "n": self.variance.hosts.n} | {
                k: [e.mean, e.low, e.high] for k, e in shares.items() if e
            }
        return row


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
    otherwise undecided. A claim of several parts is partly confirmed when some of them are.

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
    return verdict_of(claim, parts)


def verdict_of(claim: Claim, parts: tuple[Measured, ...]) -> Verdict:
    """The claim's word from its parts'."""
    said = {part.verdict for part in parts}
    word = said.pop() if len(said) == 1 else "partly" if "confirmed" in said else UNDECIDED
    return Verdict(claim, word, parts)


def first_decided(looks: Mapping[int, Verdict]) -> Verdict:
    """A claim's verdict from those at growing numbers of seeds: each part stops at the first that decides it.

    A part that none decides is told by the last look that brought it more runs.
    """
    claim = next(iter(looks.values())).claim
    parts = []
    for place in range(len(claim.parts)):
        told: Measured | None = None
        for seeds, verdict in looks.items():
            seen = replace(verdict.parts[place], seeds=seeds)
            if told is None or seen.n > told.n:
                told = seen
            if told.verdict != UNDECIDED:
                break
        assert told
        parts.append(told)
    return verdict_of(claim, tuple(parts))


def beside(verdict: Verdict, other: Verdict, name: str) -> Verdict:
    """A verdict with what other runs gave for each part: those made on the spot (`live`), or the `second` seeds."""
    parts = tuple(replace(p, **{name: o}) for p, o in zip(verdict.parts, other.parts, strict=True))  # type: ignore[arg-type]
    return replace(verdict, parts=parts)


def with_variance(verdict: Verdict, found: Mapping[str, NestedVariance]) -> Verdict:
    """A verdict with whose the variance of its parts is."""
    return replace(verdict, parts=tuple(replace(p, variance=found.get(p.metric)) for p in verdict.parts))


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
    if low == high and part.unit == "share" and part.strength != "exact":
        low, high = where_all_are_equal(mean, n, part.is_difference)
    every, some = part.holds(low, high)
    word = "confirmed" if every else UNDECIDED if some else "refuted"
    return Measured(part.metric, word, mean, None if low == high else (low, high), n)


def where_all_are_equal(share: float, n: int, is_difference: bool) -> tuple[float, float]:
    """The interval of a mean share where all n seeds gave the same: others are rare, and as far off as a share can be.

    With the probability of LOOK at most 1 - ((1 - LOOK) / 2)^(1/n) of all seeds give another value (Clopper and Pearson
    1934).
    """
    rare = 1 - ((1 - LOOK) / 2) ** (1 / n)
    return share - rare * (share + is_difference), share + rare * (1 - share)


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


def undecided(rows: Iterable[Mapping[str, Any]], claims: Path = CLAIMS) -> Iterator[tuple[Claim, Part, Measured]]:
    """The parts that are undecided, of these rows of the ledger."""
    known = load_claims(claims)
    for row in rows:
        criteria = {part.metric: part for part in known[row["id"]].parts}
        for part in map(Measured.of, row["parts"]):
            if part.verdict == UNDECIDED:
                yield known[row["id"]], criteria[part.metric], part


def second_words(
    rows: Iterable[Mapping[str, Any]], claims: Path = CLAIMS
) -> list[tuple[Claim, Part, Measured, Measured]]:
    """The parts that stopped at the first look and have the second set of seeds, with what both sets gave."""
    known = load_claims(claims)
    found = []
    for row in rows:
        criteria = {part.metric: part for part in known[row["id"]].parts}
        for part in row["parts"]:
            seen, second = Measured.of(part), part.get("second")
            stopped = seen.seeds == LOOKS[0] and seen.verdict != UNDECIDED
            if second and stopped and criteria[seen.metric].strength != "exact":
                found.append(
                    (known[row["id"]], criteria[seen.metric], seen, Measured.of(second | {"metric": seen.metric}))
                )
    return found


def as_text(rows: Iterable[Mapping[str, Any]], claims: Path = CLAIMS) -> str:
    """The ledger as plain text: one line a claim, those without an experiment marked pending, then undecided parts."""
    rows = list(rows)
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
    open_parts = list(undecided(rows, claims))
    count = sum(len(claim.parts) for claim in load_claims(claims).values() if claim.id in judged)
    lines += ["", f"{len(open_parts)} of {count} parts are undecided" + (":" if open_parts else "")]
    for claim, part, found in open_parts:
        lines.append(
            f"{claim.id:6}{part.metric}, line {threshold(part)} {part.unit}, {found.seeds or found.n} seeds:"
            f" {measured(found.observed, found.interval)}, {found.finding(part)}"
        )
    return "\n".join(lines)
