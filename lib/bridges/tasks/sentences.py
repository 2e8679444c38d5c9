"""Sentences of one's own, one a line, and a word-level tokenizer made from them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, normalizers
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import WordLevelTrainer
from transformers import PreTrainedTokenizerFast

from bridges.tasks.instructions import Corpus

SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "mask_token": "<mask>", "unk_token": "<unk>"}
FEWEST = 50


def read_sentences(path: Path, held_out: int, seed: int = 0) -> Corpus:
    """The distinct sentences of a file, `held_out` of them drawn for validation.

    Raises:
        ValueError: for a file that is missing, not UTF-8, or too short to be split.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not there: give a text file with one sentence a line")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8 text") from None
    sentences = tuple(dict.fromkeys(" ".join(line.split()) for line in lines if line.strip()))
    if len(sentences) < held_out + FEWEST:
        raise ValueError(
            f"{path} has {len(sentences)} distinct sentences: {held_out} are held out and at least {FEWEST} needed to"
            " train on, so give more"
        )
    order = np.random.default_rng(seed).permutation(len(sentences))
    drawn = tuple(sentences[i] for i in order)
    return Corpus(train=drawn[held_out:], validation=drawn[:held_out])


def word_tokenizer(texts: Sequence[str], vocabulary: int = 3000) -> PreTrainedTokenizerFast:
    """A lower-case word-level tokenizer of the commonest words; punctuation stands apart, other words are `<unk>`."""
    backend = Tokenizer(WordLevel(unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = Whitespace()
    special = list(SPECIAL.values())
    backend.train_from_iterator(texts, WordLevelTrainer(vocab_size=vocabulary, special_tokens=special))
    backend.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


def spaced(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> tuple[str, ...]:
    """The texts as a perfect translation would decode: lower case, a space between all tokens, rare words kept."""
    cut = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str
    return tuple(" ".join(token for token, _ in cut(text.lower())) for text in texts)
