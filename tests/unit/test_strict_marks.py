"""Where an answer's number is read, and whether the answer stops behind it."""

import pytest
from bridges.instruments.generation import StrictMarks, strict_marks

CASES = [
    # text, ended, answer: right at the first marker, at the last number, strictly
    ("3 + 4 = 7 #### 7", True, 7, (1, 1, 1)),
    ("3 + 4 = 7 #### 7", False, 7, (1, 1, 0)),  # right, and cut at the limit
    ("3 + 4 = 7 #### 7 ; 7 - 2 = 5 #### 5", False, 7, (1, 0, 0)),  # right, and running on
    ("3 + 4 = 7 #### 7 7", True, 7, (1, 1, 0)),  # it stops, but not behind the number
    ("3 + 4 = 7 #### 7 #### 7", True, 7, (1, 1, 0)),
    ("3 + 4 = 6 #### 6 7", True, 7, (0, 1, 0)),  # right by the last number alone
    ("the total is $1,050.00", True, "1050", (0, 1, 0)),  # no marker
    ("#### $1,050", True, 1050, (1, 1, 1)),
    ("", True, 7, (0, 0, 0)),
]


@pytest.mark.parametrize(("text", "ended", "answer", "marks"), CASES)
def test_each_mark_by_itself(text: str, ended: bool, answer: float, marks: tuple[int, int, int]) -> None:
    found = strict_marks([text], [ended], [answer])
    assert (found.first, found.last, found.strict) == marks
    assert found.ended == ended


def test_shares_of_all() -> None:
    texts, ended, answers, _ = zip(*CASES[:4], strict=True)
    assert strict_marks(texts, ended, answers) == StrictMarks(1.0, 0.75, 0.25, 0.5, 4)
    assert "25.0%" in strict_marks(texts, ended, answers)._repr_markdown_()


def test_another_marker() -> None:
    assert strict_marks(["answer: 5"], [True], [5], marker="answer:").strict == 1


def test_each_text_needs_its_end_and_answer() -> None:
    for given in (([], [], []), (["7"], [True, False], [7]), (["7"], [True], [])):
        with pytest.raises(ValueError, match="give as many of each"):
            strict_marks(*given)
