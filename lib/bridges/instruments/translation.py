"""Judge generated sentences against references: BLEU beside its floors, and whether all inputs get the same words."""

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean, pstdev, variance

import numpy as np
import torch
from jaxtyping import Float, Shaped
from sacrebleu.metrics import BLEU
from scipy.special import stdtrit
from torch import Tensor
from torch.nn.functional import normalize

from bridges.instruments.conditioning import conditioning_gap

SAMPLES = 10  # shown in a report, as in the resampler log's
# The resampler log's bands, from "Interpretation" and "Success Criteria"; BLEU's belong to the log's own corpus.
BLEU_BANDS = ((10.0, "excellent"), (8.0, "good"), (5.0, "moderate"), (3.0, "poor"), (0.0, "failed"))
DISTINCT_BANDS = ((0.7, "good diversity"), (0.5, "some repetition"), (0.0, "mode collapse"))


@dataclass(frozen=True)
class TranslationScores:
    """BLEU in points of 100 with sacrebleu's signature; shares of distinct outputs and of the most common one."""

    bleu: float
    signature: str
    distinct: float
    most_common: str
    most_common_share: float


def _metric() -> BLEU:
    return BLEU(force=True)  # the corpora are tokenised already: spaces between all tokens


def score(hypotheses: Sequence[str], references: Sequence[str]) -> TranslationScores:
    """Score sentences, one reference each.

    Raises:
        ValueError: when there are none, or not as many of one as of the other.
    """
    if not hypotheses or len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} outputs against {len(references)} references: give one for each")
    metric = _metric()
    bleu = metric.corpus_score(list(hypotheses), [list(references)])
    counts = Counter(hypotheses)
    common, times = counts.most_common(1)[0]
    n = len(hypotheses)
    return TranslationScores(bleu.score, str(metric.get_signature()), len(counts) / n, common, times / n)


def bleu_interval(hypotheses: Sequence[str], references: Sequence[str], resamples: int = 1000) -> tuple[float, float]:
    """The 95 % interval of corpus BLEU over bootstrap samples of the sentences (Koehn 2004), by sacrebleu.

    It holds the trained model fixed: how far another training run would land is a matter of seeds.
    """
    metric = _metric()
    found = metric.corpus_score(list(hypotheses), [list(references)], n_bootstrap=resamples)
    told = json.loads(found.format(width=9, is_json=True, signature=str(metric.get_signature())))
    mean, half = told.get("confidence_mean", 0.0), told.get("confidence_var", 0.0)  # not told where BLEU is 0
    return mean - half, mean + half


@dataclass(frozen=True)
class BleuDifference:
    """BLEU of a second system minus a first's, in points of 100, with its bootstrap interval over `n` sentences.

    `p` is how often chance, sentences being drawn anew, moves the difference at least as far as it is from zero.
    """

    mean: float  # on the test set as it is
    low: float
    high: float
    n: int
    p: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}], p = {self.p:.2g}"


def bootstrap_difference(
    first: Sequence[str],
    second: Sequence[str],
    references: Sequence[str],
    *,
    sentences: int | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> BleuDifference:
    """The paired bootstrap of two systems' corpus BLEU (Koehn 2004): both are scored on the same drawn sentences.

    It holds both models fixed: it may tell two runs of one recipe apart, and rightly so. By how much such runs differ
    is a matter of seeds, see `least_difference`.

    Args:
        first: what one system says, a sentence for each reference.
        second: what the other says.
        references: one each.
        sentences: of a drawn test set, such as one that is larger than that at hand; as many as there are by default.
        resamples: test sets to draw.
        confidence: of the percentile interval.
        seed: of the draws.

    Raises:
        ValueError: when there are none, or not as many of each.
    """
    if not references or not len(first) == len(second) == len(references):
        raise ValueError(f"{len(first)} and {len(second)} outputs, {len(references)} references: give one of each")
    there, n = len(references), sentences or len(references)
    drawn = np.random.default_rng(seed).multinomial(n, [1 / there] * there, size=resamples)
    one, two = (_sums(said, references) for said in (first, second))
    found = np.array([_bleu_of(b) - _bleu_of(a) for a, b in zip(drawn @ one, drawn @ two, strict=True)])
    mean = _bleu_of(two.sum(0)) - _bleu_of(one.sum(0))
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    beyond = int((abs(found - found.mean()) >= abs(mean)).sum())
    return BleuDifference(mean, float(low), float(high), n, (beyond + 1) / (resamples + 1))


def _sums(said: Sequence[str], references: Sequence[str]) -> Shaped[np.ndarray, "sentences 10"]:
    """What corpus BLEU adds up over sentences: n-grams that match, n-grams there are, words said, words wanted."""
    metric = _metric()
    each = [metric.corpus_score([s], [[r]]) for s, r in zip(said, references, strict=True)]
    return np.array([[*e.counts, *e.totals, e.sys_len, e.ref_len] for e in each])


def _bleu_of(sums: Shaped[np.ndarray, " 10"]) -> float:
    counts, totals, (said, wanted) = sums[:4].tolist(), sums[4:8].tolist(), sums[8:].tolist()
    return BLEU.compute_bleu(counts, totals, said, wanted, smooth_method="exp").score


def least_difference(*groups: Sequence[float], confidence: float = 0.95) -> float:
    """The difference that two single runs must exceed, in the unit of the scores, before it says anything.

    Two more runs of the same kind differ by less in 95 of 100 cases: t √2 s, where s is the standard deviation of a
    run within its group, pooled over the groups, and t is Student's quantile at its degrees of freedom.

    Args:
        groups: scores of runs that differ in nothing but the seed; several groups where runs are alike only within
            each, such as over one host.
        confidence: the share of cases.

    Raises:
        ValueError: for a group of fewer than two runs, or none, or scores that are not finite.
    """
    if not groups or any(len(group) < 2 for group in groups):
        raise ValueError("a spread needs at least two runs in each group: train another with a new seed")
    if not all(math.isfinite(score) for group in groups for score in group):
        raise ValueError("scores must be finite: leave out runs that were lost, and say so")
    free = sum(len(group) - 1 for group in groups)
    spread = math.sqrt(sum((len(group) - 1) * variance(group) for group in groups) / free)
    return float(stdtrit(free, (1 + confidence) / 2)) * math.sqrt(2) * spread


def constant_floor(candidates: Sequence[str], references: Sequence[str]) -> float:
    """BLEU of the best single candidate said to every input: what a bridge that carries nothing can reach."""
    return max(score([c] * len(references), references).bleu for c in set(candidates))


@dataclass(frozen=True)
class Floors:
    """BLEU without translating: the best constant sentence, random sentences, the nearest neighbour's sentence."""

    constant: float
    random: float
    retrieval: float

    def __str__(self) -> str:
        return f"constant {self.constant:.1f}, random {self.random:.1f}, retrieval {self.retrieval:.1f}"


def floors(
    known: Sequence[str],
    known_vectors: Float[Tensor, "known width"],
    references: Sequence[str],
    vectors: Float[Tensor, "samples width"],
    candidates: int = 30,
    seed: int = 0,
) -> Floors:
    """The floors of a corpus, from its training sentences and their vectors.

    `candidates` of the known sentences are tried as the constant; the nearest neighbour is that by cosine.
    """
    draw = torch.Generator().manual_seed(seed)
    at_random = torch.randint(len(known), (len(references),), generator=draw).tolist()
    nearest = (normalize(vectors, dim=-1) @ normalize(known_vectors, dim=-1).T).argmax(1).tolist()
    return Floors(
        constant_floor(known[:candidates], references),
        score([known[i] for i in at_random], references).bleu,
        score([known[i] for i in nearest], references).bleu,
    )


@dataclass(frozen=True)
class Lengths:
    """Statistics of sentence lengths, in words."""

    mean: float
    std: float
    shortest: int
    longest: int


def lengths(sentences: Sequence[str]) -> Lengths:
    """The lengths of sentences."""
    counts = [len(s.split()) for s in sentences]
    return Lengths(fmean(counts), pstdev(counts), min(counts), max(counts))


@dataclass(frozen=True)
class ValidationReport:
    """All that the resampler log's validation script reports of a translator, and what it leaves out.

    Left out there: the floors, the bootstrap interval, the loss in nats per token and the conditioning gap.
    """

    scores: TranslationScores
    loss: float
    gap: float
    output_lengths: Lengths
    reference_lengths: Lengths
    floors: Floors | None
    outputs: tuple[str, ...] = field(repr=False)
    references: tuple[str, ...] = field(repr=False)

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The bootstrap interval of BLEU, computed when it is asked for."""
        return bleu_interval(self.outputs, self.references)

    @property
    def band(self) -> str:
        """The log's word for this BLEU; it holds on the log's corpus, and on no other."""
        return next(word for least, word in BLEU_BANDS if self.scores.bleu >= least)

    @property
    def diversity(self) -> str:
        """The log's word for this share of distinct outputs."""
        return next(word for least, word in DISTINCT_BANDS if self.scores.distinct >= least)

    def summary(self) -> dict[str, object]:
        """All but the sentences, ready for JSON."""
        kept = {k: v for k, v in asdict(self).items() if k not in ("outputs", "references")}
        return kept | {"interval": self.interval, "band": self.band, "diversity": self.diversity}

    def write(self, folder: Path) -> None:
        """Write `validation_summary.json` and `translations.txt`, as the log's script does."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "validation_summary.json").write_text(json.dumps(self.summary(), indent=1) + "\n", encoding="utf-8")
        pairs = zip(self.references, self.outputs, strict=True)
        lines = (f"[{i}]\nreference:   {r}\ntranslation: {o}\n" for i, (r, o) in enumerate(pairs, 1))
        (folder / "translations.txt").write_text("\n".join(lines), encoding="utf-8")

    def _repr_markdown_(self) -> str:
        s, low, high = self.scores, *self.interval
        out, ref = self.output_lengths, self.reference_lengths
        rows = [
            ("BLEU", f"{s.bleu:.2f} [{low:.2f}, {high:.2f}], {self.band} by the log's bands"),
            ("floors of BLEU", str(self.floors) if self.floors else "not given"),
            ("distinct outputs", f"{100 * s.distinct:.1f} % of {len(self.outputs)}: {self.diversity}"),
            ("most common output", f"{100 * s.most_common_share:.1f} %: *{_cell(s.most_common)}*"),
            ("loss", f"{self.loss:.3f} nats per token"),
            ("conditioning gap", f"{self.gap:.3f} nats per token"),
            ("words in an output", f"{out.mean:.1f} ± {out.std:.1f}, {out.shortest} to {out.longest}"),
            ("words in a reference", f"{ref.mean:.1f} ± {ref.std:.1f}, {ref.shortest} to {ref.longest}"),
        ]
        table = "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows)
        pairs = list(zip(self.references, self.outputs, strict=True))[:SAMPLES]
        samples = "| reference | translation |\n|---|---|\n" + "\n".join(
            f"| {_cell(r)} | {_cell(o)} |" for r, o in pairs
        )
        return f"{table}\n\n{samples}\n\n`{s.signature}`"


def _cell(sentence: str) -> str:
    return sentence.replace("|", r"\|")  # else it would end the table's cell


@torch.no_grad()
def validate(
    translate: Callable[[Tensor], Sequence[str]],
    loss: Callable[[Tensor], Tensor | float],
    inputs: Shaped[Tensor, "samples ..."],
    references: Sequence[str],
    floors: Floors | None = None,
) -> ValidationReport:
    """Judge a translator, given as two functions of its inputs: what it says, and its loss against the references.

    Raises:
        ValueError: when outputs and references differ in number.
    """
    outputs = tuple(translate(inputs))
    return ValidationReport(
        score(outputs, references),
        float(loss(inputs)),
        conditioning_gap(loss, inputs),
        lengths(outputs),
        lengths(references),
        floors,
        outputs,
        tuple(references),
    )
