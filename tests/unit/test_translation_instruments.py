"""Does a translator use its input, what do its tokens hold, and what is its BLEU worth?"""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from bridges.instruments.conditioning import conditioning_gap, derangement
from bridges.instruments.tokens import effective_rank, token_geometry
from bridges.instruments.translation import (
    Floors,
    Lengths,
    ValidationReport,
    bleu_interval,
    floors,
    lengths,
    score,
    validate,
)
from bridges.tasks import instructions
from torch import Tensor

TEXTS = instructions.corpus(1, 60).validation
VECTORS = instructions.sentence_vectors(TEXTS, 32)


@pytest.mark.parametrize("count", [2, 3, 4, 7, 64])
def test_in_a_derangement_all_trade_places_in_one_round(count: int) -> None:
    for seed in range(50):
        order = derangement(count, seed).tolist()
        place, visited = 0, []
        for _ in range(count):
            place = order[place]
            visited.append(place)
        assert sorted(visited) == list(range(count))
    assert {tuple(derangement(3, seed).tolist()) for seed in range(50)} == {(1, 2, 0), (2, 0, 1)}
    assert derangement(64, 5).tolist() == derangement(64, 5).tolist()
    with pytest.raises(ValueError, match="1 samples cannot trade places"):
        derangement(1)


def test_the_gap_is_zero_for_a_deaf_model_and_what_the_input_was_worth_for_one_that_hears() -> None:
    deaf = conditioning_gap(lambda inputs: (0 * inputs + 3 - VECTORS).square().mean(), VECTORS)
    assert deaf == 0
    hearing = conditioning_gap(lambda inputs: (inputs - VECTORS).square().sum(1).mean(), VECTORS, seed=4)
    assert hearing == pytest.approx((VECTORS[derangement(60, 4)] - VECTORS).square().sum(1).mean().item())
    assert hearing > 0.5
    weight = torch.ones(32, requires_grad=True)
    assert conditioning_gap(lambda inputs: (weight * inputs).sum(), VECTORS) == pytest.approx(0, abs=1e-5)


def shares(tokens: Tensor) -> tuple[float, float, float]:
    found = token_geometry(tokens)
    return found.identity, found.input, found.interaction


OWN, HEARD = torch.eye(4, 6)[None], torch.randn(9, 1, 6, generator=torch.Generator().manual_seed(0))
BOTH = torch.randn(9, 4, 6, generator=torch.Generator().manual_seed(1))
BOTH = BOTH - BOTH.mean(0) - BOTH.mean(1, keepdim=True) + BOTH.mean((0, 1))


def test_planted_tokens_are_taken_apart() -> None:
    own, heard = OWN.expand(9, 4, 6), HEARD.expand(9, 4, 6)
    assert shares(own) == (1, 0, 0)
    assert shares(heard) == pytest.approx((0, 1, 0), abs=1e-12)
    assert shares(BOTH) == pytest.approx((0, 0, 1), abs=1e-12)
    variances = torch.tensor([part.var((0, 1), correction=0).sum() for part in (own, heard, BOTH)])
    mixed = own + heard + BOTH
    assert shares(mixed) == pytest.approx((variances / variances.sum()).tolist(), abs=1e-6)
    assert token_geometry(own).effective_rank == 0, "nothing follows the input"
    assert token_geometry(own).cosine == 0
    assert token_geometry(heard).effective_rank == pytest.approx(1, abs=1e-5)
    assert token_geometry(heard).cosine == pytest.approx(1)
    assert "| 1.000 | 0.000 | 0.000 | 0.00 | 0.000 |" in token_geometry(own)._repr_markdown_()


def test_geometry_sums_to_one_and_minds_no_scale_shift_or_order() -> None:
    tokens = torch.randn(9, 4, 6) + 3 * OWN + HEARD
    found = token_geometry(tokens)
    assert sum(shares(tokens)) == pytest.approx(1, abs=1e-12)
    for other in (1e-3 * tokens, tokens[torch.randperm(9)], tokens[:, torch.randperm(4)]):
        assert asdict(token_geometry(other)) == pytest.approx(asdict(found), abs=1e-5)
    moved = replace(token_geometry(tokens + torch.randn(6)), cosine=found.cosine)
    assert asdict(moved) == pytest.approx(asdict(found), abs=1e-5)


def test_the_rank_is_that_of_what_follows_the_input() -> None:
    turned = torch.linalg.qr(torch.randn(6, 6)).Q[:4]  # four orthonormal tokens, said with either sign
    assert token_geometry(torch.stack([turned, -turned]) + 5 * OWN).effective_rank == pytest.approx(4)
    assert token_geometry(torch.stack([turned, -turned])).cosine == pytest.approx(0, abs=1e-6)
    three_to_one = math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    matrices = torch.stack([torch.diag(torch.tensor(d)) for d in ([2.0, 2.0, 2.0], [0.0, 5.0, 0.0], [3.0, 0.0, 1.0])])
    assert effective_rank(torch.cat([matrices, torch.zeros(1, 3, 3)])).tolist() == pytest.approx(
        [3, 1, three_to_one, 0]
    )


def test_tokens_of_zeros_have_no_cosine() -> None:
    tokens = torch.ones(2, 3, 4)
    tokens[1] *= 2
    tokens[:, 2] = 0
    assert token_geometry(tokens).cosine == pytest.approx(1 / 3), "one pair of three points the same way"


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.randn(1, 3, 4), "1 inputs of 3 tokens: geometry takes at least two of each"),
        (torch.randn(3, 1, 4), "3 inputs of 1 tokens: geometry takes at least two of each"),
        (torch.full((2, 2, 2), math.nan), "not finite: look at the connector's inputs"),
        (torch.zeros(2, 3, 4), "there is no variance to take apart"),
        # The sum of these is off by rounding, and so is their mean.
        (torch.full((6, 10, 64), 0.1, dtype=torch.float64), "there is no variance to take apart"),
    ],
)
def test_tokens_without_geometry_are_refused(tokens: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        token_geometry(tokens)


def test_floors_say_what_bleu_costs_nothing() -> None:
    known, references = TEXTS[:40], TEXTS[40:]
    found = floors(known, VECTORS[:40], references, VECTORS[40:], candidates=5)
    assert found.constant == max(score([text] * 20, references).bleu for text in known[:5])
    assert found == floors(known, 7 * VECTORS[:40], references, VECTORS[40:] / 3, candidates=5), "nearest by cosine"
    assert found.random != floors(known, VECTORS[:40], references, VECTORS[40:], candidates=5, seed=1).random
    told = floors(known, VECTORS[:40] * torch.rand(40, 1).add(0.1), known[::-1], VECTORS[:40].flip(0))
    assert told.retrieval == pytest.approx(100)
    assert told.random < 40
    assert str(Floors(1.0, 2.345, 99.96)) == "constant 1.0, random 2.3, retrieval 100.0"


def test_lengths_count_words() -> None:
    assert lengths(["one two  three", "", "four"]) == Lengths(4 / 3, math.sqrt(14) / 3, 0, 3)


def test_the_interval_holds_the_bleu_and_shrinks_with_more_sentences() -> None:
    said = [text if i % 3 else TEXTS[0] for i, text in enumerate(TEXTS)]
    low, high = bleu_interval(said, TEXTS)
    assert low < score(said, TEXTS).bleu < high < 100
    assert round(low, 2) != low, "as it is, and not as it is printed"
    few = bleu_interval(said[:15], TEXTS[:15])
    assert few[1] - few[0] > 1.4 * (high - low)
    assert bleu_interval(said, TEXTS) == (low, high)
    assert bleu_interval(TEXTS, TEXTS) == pytest.approx((100, 100))
    assert bleu_interval([""] * 60, TEXTS) == bleu_interval(["zebra"] * 60, TEXTS) == (0, 0)


@pytest.fixture
def report() -> ValidationReport:
    """Of a translator that hears: it says each sentence by its vector, the first of them wrong."""

    def translate(inputs: Tensor) -> list[str]:
        said = [TEXTS[i] for i in (inputs @ VECTORS.T).argmax(1).tolist()]
        return ["Ünd | now", *said[1:]]

    return validate(translate, lambda x: (x - VECTORS).square().sum(), VECTORS, TEXTS, Floors(1.0, 2.0, 3.0))


def test_a_report_of_a_good_translator_is_written_and_reads_back(report: ValidationReport, tmp_path: Path) -> None:
    assert (report.band, report.diversity, report.loss) == ("excellent", "good diversity", 0)
    assert report.gap > 10
    assert report.interval[0] < report.scores.bleu < report.interval[1]
    report.write(tmp_path / "new")
    summary = json.loads((tmp_path / "new" / "validation_summary.json").read_text(encoding="utf-8"))
    assert summary == json.loads(json.dumps(report.summary()))
    assert summary["scores"] == asdict(report.scores)
    assert (summary["band"], summary["floors"]["retrieval"]) == ("excellent", 3)
    assert not {"outputs", "references"} & set(summary)
    blocks = (tmp_path / "new" / "translations.txt").read_text(encoding="utf-8").split("\n\n")
    read = [[line.split(": ", 1)[1].strip() for line in block.splitlines()[1:]] for block in blocks]
    assert read == [list(pair) for pair in zip(TEXTS, report.outputs, strict=True)]
    rows = [row.replace("\\|", "") for row in report._repr_markdown_().splitlines() if row.startswith("|")]
    assert {row.count("|") for row in rows} == {3}
    assert len(rows) == 2 + 8 + 2 + 10


def test_a_translator_that_says_one_thing_is_named() -> None:
    found = validate(lambda x: [TEXTS[3]] * len(x), lambda x: torch.tensor(2.5), VECTORS, TEXTS)
    assert (found.diversity, found.scores.most_common_share, found.gap) == ("mode collapse", 1, 0)
    assert found.scores.bleu <= floors(TEXTS, VECTORS, TEXTS, VECTORS).constant
    assert "conditioning gap | 0.000 nats per token" in found._repr_markdown_()
    assert "floors of BLEU | not given" in found._repr_markdown_()
    with pytest.raises(ValueError, match="59 outputs against 60 references"):
        validate(lambda x: TEXTS[1:], lambda x: 0.0, VECTORS, TEXTS)


def test_the_logs_bands_begin_at_their_bounds(report: ValidationReport) -> None:
    def of(bleu: float, distinct: float = 1.0) -> ValidationReport:
        return replace(report, scores=replace(report.scores, bleu=bleu, distinct=distinct))

    bands = {10.0: "excellent", 9.99: "good", 8.0: "good", 5.0: "moderate", 3.0: "poor", 2.99: "failed", 0.0: "failed"}
    assert {bleu: of(bleu).band for bleu in bands} == bands
    shares = {0.7: "good diversity", 0.69: "some repetition", 0.5: "some repetition", 0.49: "mode collapse"}
    assert {distinct: of(1.0, distinct).diversity for distinct in shares} == shares
