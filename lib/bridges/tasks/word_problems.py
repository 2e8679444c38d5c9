"""Word problems in GSM8K's form, small enough to be learned on the spot, and two tokenizers to read them by."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Int
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

Format = Literal["worked", "spoken", "short"]
FORMATS: tuple[Format, ...] = get_args(Format)

LARGEST = 10  # numbers run from 0 to this, each a token
NAMES = ("anna", "ben", "ivy", "lena", "mia", "omar", "sam", "tom")
THINGS = ("apples", "books", "cards", "coins", "eggs", "pens", "shells", "stamps")
GAINS = (("buys", "finds", "gets"), ("earns", "receives", "wins"))  # of the first step, of the second
LOSSES = (("eats", "loses", "sells"), ("breaks", "donates", "drops"))
SHORT = len(NAMES) * len(THINGS) * len(GAINS[0]) * LARGEST * (LARGEST + 1)  # distinct problems of one step
ASK = "answer:"  # what every prompt ends with
MARKER = "####"  # GSM8K's: the final answer follows


@dataclass(frozen=True)
class Problem:
    """A question, and the steps (a, sign, b, result) that solve it."""

    question: str
    steps: tuple[tuple[int, str, int, int], ...]

    @property
    def answer(self) -> int:
        """The result of the last step."""
        return self.steps[-1][-1]

    def solution(self, form: Format = "worked") -> str:
        """The answer as a text, as GSM8K writes it (`worked`), in sentences (`spoken`), or the number alone (`short`).

        Raises:
            ValueError: for a format that is not one of `FORMATS`.
        """
        if form not in FORMATS:
            raise ValueError(f"format {form!r} is unknown; choose from {', '.join(FORMATS)}")
        steps = [f"{a} {sign} {b} = {result}" for a, sign, b, result in self.steps]
        end = f"{MARKER} {self.answer}"
        if form == "short":
            return end
        if form == "worked":
            return f"{' ; '.join(steps)} {end}"
        return " ".join(f"{word} {step}" for word, step in zip(("first", "then"), steps, strict=False)) + f" {end}"


def problems(count: int, seed: int, two_steps: float = 0.7) -> list[Problem]:
    """Draw distinct problems of one or two steps; two draws with different seeds may share some (see `split`).

    Args:
        count: how many.
        seed: of the draw.
        two_steps: the share of problems with a second step.

    Raises:
        ValueError: for a share outside 0 to 1, or more problems than can be told apart.
    """
    if not 0 <= two_steps <= 1:
        raise ValueError(f"a share of {two_steps} problems with two steps: give 0 to 1")
    most = int(min(SHORT / 2 / max(1 - two_steps, 1e-9), 50_000))
    if not 0 < count <= most:
        raise ValueError(
            f"asked for {count:,} problems: give 1 to {most:,} where {two_steps:.0%} have two steps, beyond which short"
            " ones repeat"
        )
    draw = np.random.default_rng(seed)
    found: dict[str, Problem] = {}
    while len(found) < count:
        made = _problem(draw, 2 if draw.random() < two_steps else 1)
        found.setdefault(made.question, made)
    return list(found.values())


def split(counts: Sequence[int], seed: int = 0, two_steps: float = 0.7) -> list[list[Problem]]:
    """Sets of problems of the given sizes, no question in two of them; a set is the same whatever sets follow it."""
    drawn = problems(sum(counts), seed, two_steps)
    ends = np.cumsum([0, *counts])
    return [drawn[start:end] for start, end in pairwise(ends)]


def _problem(draw: np.random.Generator, steps: int) -> Problem:
    name, things = (of[draw.integers(len(of))] for of in (NAMES, THINGS))  # `choice` draws the same, far more slowly
    has = int(draw.integers(LARGEST + 1))
    said, worked = f"{name} has {has} {things}", []
    for step in range(steps):
        gains = has == 0 or (has < LARGEST and draw.random() < 0.5)
        change = int(draw.integers(1, LARGEST - has + 1)) if gains else int(draw.integers(1, has + 1))
        verbs = (GAINS if gains else LOSSES)[step]
        verb = verbs[draw.integers(len(verbs))]
        said += f" then {verb} {change} ." if step else f" and {verb} {change} ."
        result = has + change if gains else has - change
        worked.append((has, "+" if gains else "-", change, result))
        has = result
    return Problem(f"{said} how many {things} now ?", tuple(worked))


def tokenizer(reader: Literal["source", "target"]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer of the problems: the same words for both readers, under other ids and other marks.

    The source's follows Mistral's marks (`<s>`, `</s>`), the target's Llama's. Both pad on the left.

    Raises:
        ValueError: for a reader that is neither.
    """
    numbers = [str(n) for n in range(LARGEST + 1)]
    others = ("has", "and", "first", "then", "how", "many", "now", ".", "?", "+", "-", "=", ";")
    words = sorted({*NAMES, *THINGS, *chain(*GAINS, *LOSSES), *others})
    if reader == "source":
        marks, order = ("<s>", "</s>", "<pad>", "<unk>"), [*words, ASK, MARKER, *numbers]
    elif reader == "target":
        marks, order = ("<|begin|>", "<|end|>", "<|pad|>", "<|unknown|>"), [*numbers[::-1], MARKER, ASK, *words[::-1]]
    else:
        raise ValueError(f"reader {reader!r} is unknown; choose from source, target")
    begin, end, pad, unknown = marks
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate([*marks, *order])}, unk_token=unknown))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=begin, eos_token=end, pad_token=pad, unk_token=unknown, padding_side="left"
    )


def prompt(question: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """What a host reads before it answers; an empty question is a hidden one."""
    return f"{tokenizer.bos_token} {question} {ASK}"


def encode(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, side: Literal["left", "right"] = "left"
) -> tuple[Int[Tensor, "texts length"], Int[Tensor, "texts length"]]:
    """Token ids and mask, padded on `side`; nothing is added to the texts."""
    batch = tokenizer(list(texts), padding=True, padding_side=side, add_special_tokens=False, return_tensors="pt")
    return batch["input_ids"], batch["attention_mask"]


def numbers(
    ids: Int[Tensor, "texts length"], tokenizer: PreTrainedTokenizerBase
) -> tuple[Bool[Tensor, "texts length"], Int[Tensor, " numbers"], Int[Tensor, " numbers"]]:
    """Where the texts' numbers stand, which they are, and whether each is its text's first (0) or a later one (1)."""
    known = torch.tensor([tokenizer.convert_tokens_to_ids(str(n)) for n in range(LARGEST + 1)], device=ids.device)
    there = torch.isin(ids, known)
    value = (ids[there][:, None] == known).long().argmax(1)
    return there, value, (there.cumsum(1) - 1).clamp_max(1)[there]
