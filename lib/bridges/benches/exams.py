"""Exams in word problems: what the hosts of a pair read, what a target says to them, and how that is marked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bridges.connectors.scale import Whitening
from bridges.connectors.translator import Bridge
from bridges.hosts.causal import generate, hidden_states, read_logits, until_end
from bridges.tasks.gsm8k import marked_answer
from bridges.tasks.word_problems import Format, Problem, encode, prompt

LONGEST = 20  # tokens that an answer may have: the longest solution takes 18 and its end token one


@dataclass(frozen=True)
class Pair:
    """A source that reads and a target that answers, both frozen, each with its tokenizer."""

    source: PreTrainedModel
    source_words: PreTrainedTokenizerBase
    target: PreTrainedModel
    target_words: PreTrainedTokenizerBase


@dataclass(frozen=True)
class Exam:
    """Problems as the two hosts of a pair read them: the source's states, the target's prompts and answers."""

    problems: tuple[Problem, ...]
    states: Float[Tensor, "layers problems length width"]
    mask: Int[Tensor, "problems length"]
    hidden: tuple[Int[Tensor, "problems prompt"], Int[Tensor, "problems prompt"]]  # ids and mask, without the question
    visible: tuple[Int[Tensor, "problems text"], Int[Tensor, "problems text"]]  # with it
    labels: Int[Tensor, "problems answer"]  # -100 where there is none

    def prompts(self, visible: bool) -> tuple[Tensor, Tensor]:
        """The target's prompt ids and their mask."""
        return self.visible if visible else self.hidden

    def first(self, count: int) -> "Exam":
        """The first `count` problems alone."""
        hidden, visible = ((ids[:count], mask[:count]) for ids, mask in (self.hidden, self.visible))
        return Exam(
            self.problems[:count], self.states[:, :count], self.mask[:count], hidden, visible, self.labels[:count]
        )


def whitened(exam: Exam, taught: Exam, layer: int, strength: float = 1.0) -> Exam:
    """The exam with one more layer to read, behind the others: `layer`, whitened by its states in `taught`."""
    states = taught.states[layer]
    whitening = Whitening(states.shape[-1]).fit(states[taught.mask.bool()].cpu(), strength).to(states.device)
    return replace(exam, states=torch.cat([exam.states, whitening(exam.states[layer])[None]]))


@dataclass(frozen=True)
class Answers:
    """What a target said to each problem of an exam, and whether the number behind its first marker is right."""

    ids: list[list[int]]  # up to and with the end token
    texts: list[str]
    right: list[bool]

    @property
    def accuracy(self) -> float:
        """In points, 0 to 100."""
        return 100 * sum(self.right) / len(self.right)


def examine(problems: Sequence[Problem], pair: Pair, form: Format = "worked", with_answers: bool = False) -> Exam:
    """Let the source read the problems' questions, and encode what the target reads and should answer.

    `with_answers` lets the source read the solutions too: a leak, to see what one looks like.
    """
    device = pair.source.device
    read = [prompt(p.question, pair.source_words) + (f" {p.solution(form)}" if with_answers else "") for p in problems]
    ids, mask = (t.to(device) for t in encode(read, pair.source_words))
    hidden = tuple(t.repeat(len(problems), 1) for t in encode([prompt("", pair.target_words)], pair.target_words))
    visible = encode([prompt(p.question, pair.target_words) for p in problems], pair.target_words)
    said = [f"{p.solution(form)} {pair.target_words.eos_token}" for p in problems]
    answers, there = encode(said, pair.target_words, "right")
    return Exam(
        tuple(problems),
        hidden_states(pair.source, ids, mask).float(),  # the translator computes in float32, whatever its hosts do
        mask,
        (hidden[0].to(device), hidden[1].to(device)),
        (visible[0].to(device), visible[1].to(device)),
        answers.masked_fill(there == 0, -100).to(device),
    )


def read(ids: Sequence[Sequence[int]], problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase) -> Answers:
    """Mark generated ids against the problems."""
    texts = tokenizer.batch_decode([list(row) for row in ids], skip_special_tokens=True)
    right = [marked_answer(text) == str(p.answer) for text, p in zip(texts, problems, strict=True)]
    return Answers([list(row) for row in ids], texts, right)


def answer(
    target: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    soft: Float[Tensor, "problems tokens dim"] | None,
    exam: Exam,
    visible: bool,
    **options: Any,
) -> Answers:
    """What the target says behind the soft tokens, or by itself; `options` go to transformers' `generate`."""
    return answers_of(target, tokenizer, None if soft is None else soft[None], exam, visible, **options)[0]


def answers_of(
    target: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    soft: Float[Tensor, "models problems tokens dim"] | None,
    exam: Exam,
    visible: bool,
    batch: int = 1024,
    **options: Any,
) -> list[Answers]:
    """The same for several bridges, whose batches are one."""
    (ids, mask), models = exam.prompts(visible), 1 if soft is None else len(soft)
    ids, mask = ids.repeat(models, 1), mask.repeat(models, 1)
    tokens = None if soft is None else soft.flatten(0, 1)
    said: list[list[int]] = []
    for start in range(0, len(ids), batch):
        part = slice(start, start + batch)
        own = None if tokens is None else tokens[part]
        new = generate(target, own, ids[part], mask[part], **{"max_new_tokens": LONGEST} | options)
        said += until_end(new, cast(int, tokenizer.eos_token_id))
    count = len(exam.problems)
    return [read(said[i * count : (i + 1) * count], exam.problems, tokenizer) for i in range(models)]


def source_alone(pair: Pair, exam: Exam) -> Answers:
    """What the source itself answers to the questions that it reads."""
    texts = [prompt(p.question, pair.source_words) for p in exam.problems]
    ids, mask = (t.to(pair.source.device) for t in encode(texts, pair.source_words))
    said = until_end(generate(pair.source, None, ids, mask, LONGEST), cast(int, pair.source_words.eos_token_id))
    return read(said, exam.problems, pair.source_words)


def bridge_logits(
    target: PreTrainedModel,
    soft: Float[Tensor, "batch tokens dim"] | None,
    exam: Exam,
    rows: Int[Tensor, " batch"],
    visible: bool,
) -> Float[Tensor, "batch read vocabulary"]:
    """The target's logits while it reads soft tokens, prompt and answer; `answer_loss` takes them with the labels."""
    ids, mask = (part[rows] for part in exam.prompts(visible))
    labels = exam.labels[rows]
    there = (labels != -100).long()
    return read_logits(target, soft, torch.cat([ids, labels.clamp_min(0)], 1), torch.cat([mask, there], 1))


@dataclass(frozen=True)
class Bench:
    """A pair of hosts with the problems that bridges between them are trained on, and looked at with."""

    pair: Pair
    taught: Exam
    exams: Mapping[str, Exam]

    @cached_property
    def prompt_logits(self) -> Float[Tensor, "problems text vocabulary"]:
        """The target's while it reads the questions that are taught, called as in the translation log."""
        ids, mask = self.taught.visible
        return self._read(lambda rows: self.pair.target(input_ids=ids[rows], attention_mask=mask[rows]).logits)

    @cached_property
    def answer_logits(self) -> Float[Tensor, "problems answer vocabulary"]:
        """The target's while it has read those questions and foretells each token of the answers."""
        last = slice(-self.taught.labels.shape[1] - 1, -1)
        return self._read(lambda rows: bridge_logits(self.pair.target, None, self.taught, rows, True)[:, last])

    @torch.no_grad()
    def _read(self, logits: Callable[[Tensor], Tensor], batch: int = 512) -> Tensor:
        rows = torch.arange(len(self.taught.labels), device=self.taught.labels.device)
        return torch.cat([logits(part) for part in rows.split(batch)])

    def four_lines(self, bridge: Bridge, exam: str, visible: bool) -> dict[str, Answers]:
        """What every comparison needs: target alone, source alone, bridged, and bridged from another problem's states.

        Alone the target reads the question, whether it does so behind the soft tokens or not.
        """
        own, tokenizer = self.exams[exam], self.pair.target_words
        with torch.no_grad():
            soft, other = bridge(own.states, own.mask), bridge(own.states.roll(1, 1), own.mask.roll(1, 0))
        return {
            "target alone": answer(self.pair.target, tokenizer, None, own, visible=True),
            "source alone": source_alone(self.pair, own),
            "bridged": answer(self.pair.target, tokenizer, soft, own, visible),
            "shuffled source": answer(self.pair.target, tokenizer, other, own, visible),
        }
