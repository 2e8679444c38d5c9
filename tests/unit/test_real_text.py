"""The bench of real text on tiny models in the same form: what is read, what is said, and that two hosts may scale."""

from pathlib import Path

import pytest
import torch
from bridges.benches import real_text
from bridges.benches.real_text import RealText, SentenceRecipe, sentences
from bridges.hosts.sentence import SentenceEncoder
from bridges.tasks.gsm8k import write_gsm8k
from bridges.tasks.sentences import word_tokenizer
from bridges.training.fit import FitSettings
from transformers import BertConfig, BertModel, Gemma3ForCausalLM, Gemma3TextConfig

NAMES, THINGS = ("Ada", "Ben", "Cleo", "Dan"), ("eggs", "figs", "nuts", "pens", "cups")
TEXTS = [f"{name} has {count} {thing}." for name in NAMES for thing in THINGS for count in ("two", "six", "ten", "no")]
QUICK = FitSettings(steps=60, lr=3e-3, batch=16, warmup=5)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RealText:
    (tmp_path / "gsm8k").mkdir()
    write_gsm8k(tmp_path / "gsm8k" / "train.jsonl", [(f"{text} How many?", "#### 1") for text in TEXTS])
    tokenizer = word_tokenizer(TEXTS)

    def load(name: str, cache: Path, device: str) -> object:
        torch.manual_seed(0)
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        if name == "minilm":
            model = BertModel(BertConfig(vocab_size=len(tokenizer), pad_token_id=0, **shape), add_pooling_layer=False)
            return SentenceEncoder(model, 0).eval(), tokenizer
        config = Gemma3TextConfig(vocab_size=len(tokenizer), head_dim=8, num_key_value_heads=4, **shape)
        return Gemma3ForCausalLM(config).eval().requires_grad_(False), tokenizer

    monkeypatch.setattr(real_text.pretrained, "load", load)
    real_text._home.cache_clear()
    return RealText(tmp_path, taught=60, asked=16)


def test_sentences_are_those_of_4_to_12_words_once_each(bench: RealText) -> None:
    assert sorted(sentences(bench.cache)) == sorted(TEXTS)


def test_a_study_of_two_scales_reads_what_it_promises(bench: RealText) -> None:
    arms = {"enters": SentenceRecipe(QUICK), "table": SentenceRecipe(QUICK, scale="table", connector="linear")}
    study = bench.train(arms, (0,), looks=(30,))
    for arm in arms:
        one = study.outcomes[arm, 0]
        assert sorted(one.readings) == [30, 60]
        last = one.readings[60]
        assert last["silent"] > 0
        assert last["given"] > 0
        assert last["arrives"] == pytest.approx((last["silent"] - last["loss"]) / (last["silent"] - last["given"]))
        assert 0 < last["distinct"] <= 100
        assert 0 <= last["bleu"] <= 100
        assert 0 <= last["ends"] <= 100
        assert len(one.texts["said"]) == 16
    # Gemma multiplies by the root of its width, and the table knows nothing of that.
    assert study.outcomes["enters", 0].readings[60]["rms"] == pytest.approx(1, rel=0.02)
    assert study.outcomes["table", 0].readings[60]["rms"] == pytest.approx(32**-0.5, rel=0.02)


def test_the_same_seed_gives_the_same_rows(bench: RealText) -> None:
    arms = {"resampler": SentenceRecipe(QUICK, connector="resampler", tokens=2, standardised=False, scale="free")}
    one, two = (bench.train(arms, (1,)) for _ in range(2))
    assert one.made.equals(two.made)


def test_too_few_sentences_are_told(bench: RealText) -> None:
    with pytest.raises(ValueError, match="sentences are too few to hold 70 out"):
        RealText(bench.cache, asked=70).train({"a": SentenceRecipe(QUICK)}, (0,))
