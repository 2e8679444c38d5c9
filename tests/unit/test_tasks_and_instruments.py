"""The instruction task, the translation scores and the intervals."""

import pytest
import torch
from bridges.instruments.translation import constant_floor, score
from bridges.instruments.uncertainty import mean_interval
from bridges.tasks import instructions


def test_no_sentence_is_in_both_parts_and_the_draw_is_fixed() -> None:
    drawn = instructions.corpus(train=500, validation=100, seed=3)
    assert len({*drawn.train, *drawn.validation}) == 600
    assert drawn == instructions.corpus(train=500, validation=100, seed=3)
    assert drawn != instructions.corpus(train=500, validation=100, seed=4)
    with pytest.raises(ValueError, match="asked for 26,000 sentences; the grammar makes 1 to 25,920"):
        instructions.corpus(train=25_000, validation=1_000)


def test_the_tokenizer_knows_every_word_and_gives_sentences_back() -> None:
    words = instructions.tokenizer()
    drawn = instructions.corpus().validation
    ids = words(list(drawn))["input_ids"]
    assert not any(words.unk_token_id in row for row in ids)
    assert words.batch_decode(ids, skip_special_tokens=True) == list(drawn)
    labels = instructions.labels(
        ["now it is time to bake a cake", "never be afraid to wash a dog like a professional"], words
    )
    assert (labels[0] == -100).sum() == 2
    assert (labels == words.pad_token_id).sum() == 0


def test_sentence_vectors_have_unit_norm_and_know_order() -> None:
    vectors = instructions.sentence_vectors(["wash a dog", "a dog wash", "wash a dog"])
    assert torch.allclose(vectors.norm(dim=1), torch.ones(3))
    assert torch.equal(vectors[0], vectors[2])
    assert vectors[0] @ vectors[1] < 0.9


def test_scores_of_a_perfect_and_of_a_constant_translator() -> None:
    references = ["we fold the shirt", "we wash the car", "we sew the button", "we fold a napkin now"]
    perfect = score(references, references)
    assert perfect.bleu == pytest.approx(100)
    assert (perfect.distinct, perfect.most_common_share) == (1, 0.25)
    assert "version" in perfect.signature
    constant = score(["we wash the car"] * 4, references)
    assert (constant.distinct, constant.most_common, constant.most_common_share) == (0.25, "we wash the car", 1)
    assert constant_floor(references, references) >= constant.bleu
    with pytest.raises(ValueError, match="1 outputs against 4 references"):
        score(["we"], references)


def test_the_interval_is_students() -> None:
    estimate = mean_interval([1.0, 2.0, 3.0])
    # 2 +- t(0.975, 2) * 1 / sqrt(3), with t = 4.302653 from any table
    assert (estimate.mean, estimate.n) == (2, 3)
    assert estimate.high - 2 == pytest.approx(4.302653 / 3**0.5, abs=1e-6)
    assert str(estimate) == "2 [-0.484, 4.48]"
    with pytest.raises(ValueError, match="at least two runs, not 1: raise seeds"):
        mean_interval([1.0])
    with pytest.raises(ValueError, match="must be finite"):
        mean_interval([1.0, float("nan")])
