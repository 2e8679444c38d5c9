"""Instruction sentences, their tokenizer, and a sentence vector: the text side of the first thread.

The logs translated sign-language clips into sentences such as "i'm going to show you how to make a cake". This corpus
has their form (an opener, a verb with its object, a tail) and none of their data.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import PreTrainedTokenizerFast

OPENERS = (
    "today i am going to show you how to",
    "in this clip we will learn how to",
    "now it is time to",
    "the next step is to",
    "before you start you should",
    "let us begin by seeing how to",
    "many people ask me how they can",
    "you will need both hands to",
    "my favourite way is to",
    "if you are new here try to",
    "once that is done you can",
    "remember that you always have to",
    "a good teacher would tell you to",
    "here is the proper way to",
    "never be afraid to",
    "at the end of the day we",
)
ACTIONS = {
    "bake": "a cake|some bread|the potatoes",
    "brush": "the horse|your teeth|her hair",
    "build": "a fence|the wall|a kite",
    "carve": "a spoon|the pumpkin|some soap",
    "catch": "the ball|a fish|the frisbee",
    "clean": "the window|your shoes|a filter",
    "cut": "the paper|an onion|some fabric",
    "draw": "a circle|the face|an eye",
    "fold": "the shirt|a napkin|some paper",
    "hang": "the picture|a lamp|some curtains",
    "hold": "the racket|a brush|your breath",
    "kick": "the ball|a bag|your leg",
    "knit": "a scarf|the sleeve|some gloves",
    "mix": "the dough|some paint|a drink",
    "open": "the valve|a jar|your hand",
    "paint": "the door|a landscape|some nails",
    "plant": "the roses|a tree|some onions",
    "play": "the guitar|a chord|your drum",
    "polish": "the silver|a stone|your shoes",
    "repair": "the bicycle|a tire|your phone",
    "roll": "the dough|a barrel|some clay",
    "sand": "the table|a board|some wood",
    "sew": "the button|a pocket|your sleeve",
    "sharpen": "the knife|a pencil|your skates",
    "throw": "the frisbee|a punch|some clay",
    "tie": "the rope|a knot|your shoes",
    "wash": "the car|a dog|your hands",
}
VERB_OBJECTS = tuple(f"{verb} {noun}" for verb, nouns in ACTIONS.items() for noun in nouns.split("|"))
TAILS = (
    "",
    "very slowly",
    "with a little water",
    "without any tools",
    "in just five minutes",
    "as well as you can",
    "for the first time",
    "on a flat surface",
    "while keeping your back straight",
    "until it looks right",
    "like a professional",
    "using only one finger",
    "so nothing gets lost",
    "from left to right",
    "under warm light",
    "after a short break",
    "because it saves money",
    "outside when weather allows",
    "three times per week",
    "and then wait",
)


@dataclass(frozen=True)
class Corpus:
    """Training and validation sentences, with no sentence in both."""

    train: tuple[str, ...]
    validation: tuple[str, ...]


def corpus(train: int = 4000, validation: int = 300, seed: int = 0) -> Corpus:
    """Draw distinct sentences from the 16 x 81 x 20 = 25,920 that the grammar makes.

    Raises:
        ValueError: if more sentences are asked for than there are.
    """
    grid = (len(OPENERS), len(VERB_OBJECTS), len(TAILS))
    total = int(np.prod(grid))
    if not 0 < train + validation <= total:
        raise ValueError(f"asked for {train + validation:,} sentences; the grammar makes 1 to {total:,}")
    chosen = np.random.default_rng(seed).choice(total, train + validation, replace=False)
    rows = np.stack(np.unravel_index(chosen, grid), axis=1)
    made = tuple(f"{OPENERS[o]} {VERB_OBJECTS[v]} {TAILS[t]}".strip() for o, v, t in rows)
    return Corpus(made[:train], made[train:])


def tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of the corpus: ids 0 to 3 are padding, end, mask and unknown; then the words in order."""
    words = " ".join((*OPENERS, *VERB_OBJECTS, *TAILS)).split()
    special = ["<pad>", "</s>", "<mask>", "<unk>"]
    vocabulary = {word: i for i, word in enumerate([*special, *dict.fromkeys(words)])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="</s>",
        mask_token="<mask>",
        unk_token="<unk>",
    )


def labels(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """Token ids `(batch, length)` with padding replaced by -100, which the hosts' loss leaves out."""
    batch = tokenizer(list(texts), padding=True, return_tensors="pt")
    return batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)


def sentence_vectors(texts: Iterable[str], width: int = 256, seed: int = 0) -> Float[Tensor, "batch width"]:
    """One unit-norm vector for each sentence, as a sentence encoder gives: linear in its words, aware of their order.

    Each word has a fixed Gaussian vector and each position a fixed sign pattern; the vector is the sum of their
    products, scaled to norm 1. A word's vector depends on its spelling alone, so new words need no table.
    """
    positions: dict[int, np.ndarray] = {}
    spellings: dict[str, np.ndarray] = {}

    def position(i: int) -> np.ndarray:
        if i not in positions:
            positions[i] = np.random.default_rng([seed, i]).choice([-1.0, 1.0], width)
        return positions[i]

    def spelling(word: str) -> np.ndarray:
        if word not in spellings:
            spellings[word] = np.random.default_rng([seed, *word.encode()]).standard_normal(width)
        return spellings[word]

    sums = [np.sum([spelling(w) * position(i) for i, w in enumerate(text.split())], axis=0) for text in texts]
    vectors = torch.tensor(np.stack(sums), dtype=torch.float32)
    return vectors / vectors.norm(dim=1, keepdim=True)
