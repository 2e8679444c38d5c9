"""A detector's score, on cases that are counted by hand."""

import pytest
from bridges.instruments.detection import Detection, detection


def test_detection_counts_as_many_good_cases_as_bad_ones() -> None:
    assert detection([True, True], [False, False]) == Detection(1.0, 0.0, 2)
    assert detection([True, False], [True, True, False]).score == -0.5  # the third good case has no bad one beside it
    everything = detection([True] * 4, [True] * 4)
    assert everything.hits == 1.0
    assert everything.score == 0.0
    with pytest.raises(ValueError, match="at least one of each"):
        detection([], [True])


def test_detection_prints_itself() -> None:
    assert "| 2 | 100% | 50% | 0.5 |" in detection([True, True], [True, False])._repr_markdown_()
