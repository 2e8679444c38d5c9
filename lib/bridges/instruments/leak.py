"""Did the source read the answers?"""

import re
from collections.abc import Sequence


def leak_check(read: Sequence[str], answers: Sequence[str]) -> float:
    """The share of samples whose source text, `read`, holds the sample's own answer word for word, 0 to 1.

    A source may not have read the answer that the bridge is to carry an idea of: where it has, the bridge is judged on
    copying. Whole words count, whatever white space stands between them: 18 is not in 180. Give worked solutions where
    there are some, since a bare number can stand in a question by chance.

    Raises:
        ValueError: when there are no samples, not as many texts as answers, or an answer is empty.
    """
    if not read or len(read) != len(answers):
        raise ValueError(f"{len(read)} texts against {len(answers)} answers: give what was read for each answer")
    words = [answer.split() for answer in answers]
    if not all(words):
        raise ValueError("an answer is empty, and stands in every text: leave its sample out")
    patterns = (r"(?<!\w)" + r"\s+".join(map(re.escape, answer)) + r"(?!\w)" for answer in words)
    return sum(bool(re.search(p, text)) for p, text in zip(patterns, read, strict=True)) / len(read)
