"""GSM8K's lines and answers, on small files and, where they are at hand, on the real ones."""

import json
import re
from pathlib import Path

import pytest
from bridges.tasks.gsm8k import Question, last_number, marked_answer, plain, read_gsm8k, write_gsm8k

REAL = Path(__file__).parents[2].parent / "shared/data/gsm8k"
ROWS = [
    ("How many?", "2 + 3 = <<2+3=5>>5\n#### 5"),
    ('Käthe’s "price"\u2028in €?', "It is $1,250.\n#### 1,250"),
    ("A lone half of a pair: \ud83d?", "It is\n#### -12"),
]


def line(**row: object) -> str:
    return json.dumps(row)


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    write_gsm8k(tmp_path / "a.jsonl", ROWS)
    found = read_gsm8k(tmp_path / "a.jsonl")
    assert found == [Question(*row, answer) for row, answer in zip(ROWS, ("5", "1250", "-12"), strict=True)]
    assert len((tmp_path / "a.jsonl").read_text(encoding="ascii").splitlines()) == 3


def test_a_files_edges_are_forgiven(tmp_path: Path) -> None:
    path = tmp_path / "windows.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + "\r\n \r\n".join(line(question=q, answer=a) for q, a in ROWS).encode() + b"\r\n\n"
    )
    assert [q.question for q in read_gsm8k(path)] == [q for q, _ in ROWS]
    path.write_text(line(id=7, question="q", answer="#### 1", source="x"), encoding="utf-8")
    assert read_gsm8k(path) == [Question("q", "#### 1", "1")]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{question: 1}", r"not JSON \(Expecting property name"),
        (line(question="q", answer="#### 1")[:-1], "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("1" * 5_000, "not JSON"),
        ('["question", "answer"]', "needs the keys question and answer"),
        (line(question="q"), "needs the keys question and answer"),
        (line(question="q", answer=5), "needs the keys question and answer"),
        (line(question=" ", answer="#### 1"), "both with a text"),
        (line(question="q", answer=""), "both with a text"),
        (line(question="q", answer="It is 5."), "no '#### number'"),
        (line(question="q", answer="It is 5.\n#### five"), "no '#### number'"),
    ],
)
def test_a_malformed_line_is_named_by_its_number(bad: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(f"{line(question='q', answer='#### 1')}\n\n{bad}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"bad\.jsonl, line 3: .*{message}") as caught:
        read_gsm8k(path)
    assert "line 1" not in str(caught.value), "the parser's own line would mislead"


def test_files_that_hold_no_problems_are_refused(tmp_path: Path) -> None:
    for missing in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(ValueError, match=r"is not there: give GSM8K's train\.jsonl"):
            read_gsm8k(missing)
    (tmp_path / "empty.jsonl").write_text("\n \n", encoding="utf-8")
    with pytest.raises(ValueError, match="is empty"):
        read_gsm8k(tmp_path / "empty.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(line(question="q", answer="#### 1").encode() + b"\n\xe4")
    with pytest.raises(ValueError, match=r"is not UTF-8 \(.* at byte 38\): save it"):
        read_gsm8k(tmp_path / "latin.jsonl")


@pytest.mark.parametrize(
    ("text", "marked", "last"),
    [
        ("so 5\n#### 72", "72", "72"),
        ("####72", "72", "72"),
        ("#### 1,234,567", "1234567", "1234567"),
        ("#### $18", "18", "18"),
        ("#### $ 18.50 each", "18.5", "18.5"),
        ("#### -7", "-7", "-7"),
        ("#### -$5", "-5", "-5"),
        ("#### $-5", "-5", "-5"),
        ("#### 0.250", "0.25", "0.25"),
        ("#### .5", "0.5", "0.5"),
        ("#### -0.0", "0", "0"),
        ("#### 18.", "18", "18"),
        ("#### 1,000, or so", "1000", "1000"),
        ("#### #### 4", "4", "4"),
        ("#### 18 #### 19", "18", "19"),  # a model that cannot stop is judged by its first
        ("#### 181818", "181818", "181818"),
        ("the answer is 18.", None, "18"),
        ("18 ####", None, "18"),
        ("### 18", None, "18"),
        ("no number, $ or .", None, None),
        ("", None, None),
        ("he owes -$1,200.", None, "-1200"),
        ("16-3", None, "-3"),
        ("3,4,5", None, "345"),
        ("#### ٣", None, None),
    ],
)
def test_answers_are_found_marked_and_last(text: str, marked: str | None, last: str | None) -> None:
    assert (marked_answer(text), last_number(text)) == (marked, last)


def test_numbers_have_one_spelling() -> None:
    same = {
        "1000.5": ("1,000.50", "1000.5", "$1,000.5", "01000.500"),
        "-0.5": ("-.5", "-0.50"),
        "0": ("-0", "000", ".0"),
    }
    for spelling, others in same.items():
        assert {plain(other) for other in others} == {spelling}
    assert plain("100") == "100", "zeros that say something stay"


@pytest.mark.skipif(not REAL.is_dir(), reason="GSM8K is not at hand")
@pytest.mark.parametrize(("name", "count"), [("train", 7_473), ("test", 1_319)])
def test_the_real_files_are_read_whole_and_written_alike(name: str, count: int, tmp_path: Path) -> None:
    path = REAL / f"{name}.jsonl"
    found = read_gsm8k(path)
    assert len(found) == count
    for q in found:
        official = re.findall(r"#### (-?[0-9.,]+)", q.solution)  # that of the benchmark's own evaluation
        assert [q.answer] == [number.replace(",", "") for number in official]
        assert last_number(q.solution) == q.answer
    write_gsm8k(tmp_path / "again.jsonl", [(q.question, q.solution) for q in found])
    assert (tmp_path / "again.jsonl").read_bytes() == path.read_bytes()
