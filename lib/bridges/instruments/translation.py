"""Judge generated sentences against references: BLEU, and whether they say the same to everything."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sacrebleu.metrics import BLEU


@dataclass(frozen=True)
class TranslationScores:
    """BLEU in points of 100 with sacrebleu's signature; shares of distinct outputs and of the most common one."""

    bleu: float
    signature: str
    distinct: float
    most_common: str
    most_common_share: float


def score(hypotheses: Sequence[str], references: Sequence[str]) -> TranslationScores:
    """Score sentences, one reference each.

    Raises:
        ValueError: when there are none, or not as many of one as of the other.
    """
    if not hypotheses or len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} outputs against {len(references)} references: give one for each")
    metric = BLEU(force=True)  # the corpus is tokenised already: spaces between all tokens
    bleu = metric.corpus_score(list(hypotheses), [list(references)])
    counts = Counter(hypotheses)
    common, times = counts.most_common(1)[0]
    n = len(hypotheses)
    return TranslationScores(bleu.score, str(metric.get_signature()), len(counts) / n, common, times / n)


def constant_floor(candidates: Sequence[str], references: Sequence[str]) -> float:
    """BLEU of the best single candidate said to every input: what a bridge that carries nothing can reach."""
    return max(score([c] * len(references), references).bleu for c in set(candidates))
