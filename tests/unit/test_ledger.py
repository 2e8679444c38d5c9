"""Verdicts follow from the criterion, and nothing missing or bent gets into the ledger."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from bridges.instruments.uncertainty import Estimate
from press import PressError
from press.claims import Claim, Part, load_claims
from press.ledger import as_text, check_references, collect, judge

ENTRY = {
    "id": "A1",
    "sources": ["log"],
    "statement": "The effect is there.",
    "figures": {"effect": 3},
    "criterion": {
        "strength": "statistical",
        "parts": [
            {"metric": "effect", "reads": "difference over seeds", "comparison": ">", "threshold": 1, "unit": "points"}
        ],
    },
    "chapter": "first",
}


def write_claims(folder: Path, *entries: dict) -> Path:
    path = folder / "claims.yml"
    path.write_text(yaml.safe_dump({"sources": {"log": {"title": "A log", "thread": "A"}}, "claims": list(entries)}))
    load_claims.cache_clear()
    return path


def write_record(folder: Path, claims: Path, observed: Estimate, chapter: str = "first") -> Path:
    verdict = judge("A1", observed, claims=claims)
    path = folder / f"{chapter}.json"
    path.write_text(
        json.dumps(
            {
                "chapter": chapter,
                "profile": "quick",
                "device": "cpu",
                "seeds": 3,
                "seconds": 1.0,
                "finished": "2026-01-01T00:00:00+00:00",
                "commit": "unknown",
                "versions": {},
                "verdicts": [verdict.record()],
                "measurements": {},
            }
        )
    )
    (folder / f"01_{chapter}.py").touch()
    return path


@pytest.mark.parametrize(
    ("comparison", "threshold", "low", "high", "every", "some"),
    [
        (">", 1, 1.1, 2, True, True),
        (">", 1, 0.5, 2, False, True),
        (">", 1, 0.5, 1, False, False),
        (">=", 1, 1, 2, True, True),
        ("<", 0, -2, -1, True, True),
        ("<=", 0, 0.1, 1, False, False),
        ("==", 0, 0, 0, True, True),
        ("==", 0, -1, 1, False, True),
        ("!=", 0, 0, 0, False, False),
        ("!=", 0, -1, 1, False, True),
        ("!=", 0, 1, 2, True, True),
        ("between", (1, 2), 1, 2, True, True),
        ("between", (1, 2), 1.5, 3, False, True),
        ("between", (1, 2), 3, 4, False, False),
    ],
)
def test_a_comparison_holds_for_every_some_or_no_value(
    comparison: str, threshold: float | tuple[float, float], low: float, high: float, every: bool, some: bool
) -> None:
    part = Part("m", "reads", comparison, threshold, "", "statistical")
    assert part.holds(low, high) == (every, some)


@pytest.mark.parametrize(("low", "high", "word"), [(2, 4, "confirmed"), (-1, 0.5, "refuted"), (0.5, 2, "undecided")])
def test_the_interval_decides(tmp_path: Path, low: float, high: float, word: str) -> None:
    claims = write_claims(tmp_path, ENTRY)
    assert judge("A1", Estimate((low + high) / 2, float(low), float(high), 5), claims=claims).verdict == word


@pytest.mark.parametrize(
    ("first", "second", "word"),
    [
        (2, 2, "confirmed"),
        (0, 0, "refuted"),
        (2, 0, "partly"),
    ],
)
def test_a_claim_of_several_parts_can_hold_in_part(tmp_path: Path, first: float, second: float, word: str) -> None:
    part = ENTRY["criterion"]["parts"][0]
    entry = ENTRY | {"criterion": {"strength": "exact", "parts": [part, part | {"metric": "other"}]}}
    claims = write_claims(tmp_path, entry)
    assert judge("A1", {"effect": first, "other": second}, claims=claims).verdict == word


def test_judging_refuses_what_the_criterion_does_not_ask_for(tmp_path: Path) -> None:
    claims = write_claims(tmp_path, ENTRY)
    with pytest.raises(PressError, match="takes a mean with its interval"):
        judge("A1", 2.0, claims=claims)
    with pytest.raises(PressError, match="judged by effect, not by efect"):
        judge("A1", {"efect": Estimate(2.0, 1.0, 3.0, 5)}, claims=claims)
    with pytest.raises(PressError, match="'A7' is not in"):
        judge("A7", 2.0, claims=claims)


def test_a_record_becomes_a_row(tmp_path: Path) -> None:
    claims = write_claims(tmp_path, ENTRY)
    record = write_record(tmp_path, claims, Estimate(3.0, 2.0, 4.0, 5))
    rows = collect([record], claims, tmp_path)
    kept = {"id", "verdict", "strength", "observed", "interval", "n", "chapter", "profile", "device", "parts"}
    assert set(rows[0]) == kept
    assert rows[0]["verdict"] == "confirmed"
    assert rows[0]["interval"] == [2, 4]
    assert "A1" in as_text(rows, claims)
    assert "confirmed" in as_text(rows, claims)


def test_a_criterion_changed_after_its_record_is_refused(tmp_path: Path) -> None:
    claims = write_claims(tmp_path, ENTRY)
    record = write_record(tmp_path, claims, Estimate(0.5, 0.2, 0.8, 5))
    bent = json.loads(json.dumps(ENTRY))
    bent["criterion"]["parts"][0]["threshold"] = 0.1
    write_claims(tmp_path, bent)
    with pytest.raises(PressError, match=r"A1: its criterion in claims\.yml has changed after first\.json"):
        collect([record], claims, tmp_path)
    reference = tmp_path / "reference"
    reference.mkdir()
    (reference / record.name).write_text(record.read_text())
    with pytest.raises(PressError, match="has changed after"):
        check_references(reference, claims)


def test_rewording_a_statement_leaves_the_criterion_alone(tmp_path: Path) -> None:
    claim = load_claims(write_claims(tmp_path, ENTRY))["A1"]
    assert replace(claim, statement="Said otherwise.").digest == claim.digest


def test_missing_pending_and_foreign_verdicts_are_refused(tmp_path: Path) -> None:
    claims = write_claims(tmp_path, ENTRY)
    record = write_record(tmp_path, claims, Estimate(3.0, 2.0, 4.0, 5))
    with pytest.raises(PressError, match="A1 has no verdict"):
        collect([], claims, tmp_path)
    with pytest.raises(PressError, match="two verdicts"):
        collect([record, record], claims, tmp_path)
    write_claims(tmp_path, ENTRY | {"pending": True})
    assert collect([], claims, tmp_path) == []
    with pytest.raises(PressError, match="take 'pending' off it"):
        collect([record], claims, tmp_path)
    write_claims(tmp_path, ENTRY | {"chapter": "other"})
    with pytest.raises(PressError, match="judged in first but"):
        collect([record], claims, tmp_path)
    write_claims(tmp_path, ENTRY | {"id": "A2"})
    with pytest.raises(PressError, match="A1, which is no claim"):
        collect([record], claims, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": ["lost"]}, "unknown source lost"),
        ({"chapter": "01_first"}, "chapter must match pattern"),
        ({"id": "Z1"}, "id must match pattern"),
    ],
)
def test_a_malformed_claim_is_named(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(PressError, match=message):
        load_claims(write_claims(tmp_path, ENTRY | change))


def test_the_books_claims_are_all_there() -> None:
    load_claims.cache_clear()
    claims = load_claims()
    threads = {thread: sum(c.startswith(thread) for c in claims) for thread in "ABC"}
    assert threads == {"A": 15, "B": 11, "C": 15}
    assert all(isinstance(c, Claim) for c in claims.values())
