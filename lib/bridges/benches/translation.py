"""Sentences that an encoder-decoder learns to say from one vector: recipes and seeds in, a study out."""

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from bridges.benches.pretrain import host_recipe, small_host
from bridges.benches.study import PER_HOST, Outcome, Study
from bridges.benches.translator_runs import Recipe, Sentences, train_translators, untrained
from bridges.hosts.sentence import SentenceEncoder
from bridges.hosts.seq2seq import VectorToText
from bridges.instruments.conditioning import conditioning_gap
from bridges.instruments.translation import Floors, floors, score
from bridges.tasks import instructions
from bridges.tasks.sentences import spaced, word_tokenizer


@dataclass(frozen=True)
class Translation:
    """The book's sentences and encoder-decoders that learn to say them from one vector, for each seed hosts of its own.

    Vectors are the book's own, linear in the words, of `width` numbers where it is given, or by the small sentence
    encoder of seed 0 where `encoder` names it. `held_out` sentences are translated by every trained model.

    A reader's own stand in the place of the book's where they are given: `given_text`, which the hosts read too, and
    `given_encoder`, a sentence encoder and its tokenizer.
    """

    cache: Path = field(metadata={"settings": False})
    device: str = field(default="cpu", metadata={"settings": False})
    hosts: tuple[str, ...] = field(default=("t5",), metadata={"settings": False})  # which a page needs, for the graph
    size: str = "quick"
    encoder: str = ""
    held_out: int = 150
    longest: int = 20  # words that a translation may have
    width: int = 0  # of the book's own vectors; 0 is their own 256
    given_text: instructions.Corpus | None = field(default=None, metadata={"settings": False})
    given_encoder: tuple[SentenceEncoder, Any] | None = field(default=None, metadata={"settings": False})

    @property
    def depends(self) -> list[object]:
        """The recipes of the hosts, without their seeds, and what was given, with which rows go stale."""
        recipes: list[object] = [host_recipe(family, self.size) for family in ("t5", "bart", self.encoder) if family]
        return [*recipes, self._given] if self.given_text or self.given_encoder else recipes

    @cached_property
    def _given(self) -> str:
        """SHA-256 of a reader's own text and of the weights of their own encoder."""
        read = hashlib.sha256(repr(self.given_text).encode())
        for name, value in self.given_encoder[0].state_dict().items() if self.given_encoder else ():
            read.update(name.encode() + value.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return read.hexdigest()

    @cached_property
    def corpus(self) -> instructions.Corpus:
        """The sentences."""
        return self.given_text or instructions.corpus(validation=self.held_out)

    @cached_property
    def tokenizer(self) -> Any:
        """Of the sentences."""
        return word_tokenizer(self.given_text.train) if self.given_text else instructions.tokenizer()

    @cached_property
    def sentence_encoder(self) -> SentenceEncoder | None:
        """The small sentence encoder, where there is one."""
        if not self.encoder:
            return None
        model = small_host(self.encoder, self.size, self.cache, self.device)
        return SentenceEncoder(model, self.tokenizer.pad_token_id).eval()

    def sentences(self, texts: tuple[str, ...]) -> Sentences:
        """Sentences with their vectors, labels and ids."""
        encoder, tokenizer = self.given_encoder or (self.sentence_encoder, self.tokenizer)
        own = {"width": self.width} if self.width else {}
        vectors = encoder.encode(texts, tokenizer) if encoder else instructions.sentence_vectors(texts, **own)
        ids = self.tokenizer(list(texts), padding=True, return_tensors="pt")["input_ids"]
        labels = instructions.labels(texts, self.tokenizer)
        return Sentences(texts, vectors.to(self.device), labels.to(self.device), ids.to(self.device))

    @cached_property
    def known(self) -> Sentences:
        """What is learnt from."""
        return self.sentences(self.corpus.train)

    @cached_property
    def unseen(self) -> Sentences:
        """What is judged on."""
        return self.sentences(self.corpus.validation)

    @cached_property
    def other(self) -> Sentences:
        """As many of the book's sentences again, in neither of the two."""
        drawn, used = instructions.corpus(0, 2000, seed=1).validation, {*self.corpus.train, *self.corpus.validation}
        return self.sentences(tuple(text for text in drawn if text not in used)[: self.held_out])

    @cached_property
    def references(self) -> tuple[str, ...]:
        """The held-out sentences as BLEU reads them."""
        return spaced(self.unseen.texts, self.tokenizer)

    @cached_property
    def floors(self) -> Floors:
        """BLEU without translating; the constant is the best of 60 training sentences."""
        known, vectors = self.known.vectors.cpu(), self.unseen.vectors.cpu()
        texts = spaced(self.known.texts, self.tokenizer)
        return floors(texts, known, self.references, vectors, candidates=60)

    def host(self, family: str, seed: int) -> PreTrainedModel:
        """The pretrained host of a seed."""
        return _host(self, family, seed % PER_HOST)

    def untrained(self, recipe: Recipe, seed: int) -> VectorToText:
        """The translator of an arm before its first step."""
        return untrained(recipe, seed, self.known, self.host, self.sentence_encoder)

    def said(self, model: VectorToText, recipe: Recipe, exam: Sentences | None = None) -> tuple[str, ...]:
        """What a translator makes of the held-out sentences, or of those of another exam."""
        ids = model.generate((exam or self.unseen).inputs(recipe), self.longest)
        return tuple(self.tokenizer.batch_decode(ids, skip_special_tokens=True))

    def train(
        self,
        arms: Mapping[Hashable, Recipe],
        seeds: Sequence[int],
        *,
        looks: Sequence[int] = (),
        read: Callable[[VectorToText, Recipe], Mapping[str, float]] | None = None,
        other_exam: bool = False,
        describe: str = "translators",
    ) -> Study:
        """Train every arm with every seed, each on the host of its seed, side by side where their architecture allows.

        Readings, at each look, of the held-out sentences: `bleu`; `distinct`, the share of different outputs in
        percent; `loss` and the conditioning `gap`, in nats per token; and what `read(translator, recipe)` gives.
        Texts: `said`, at the last look.

        Args:
            arms: recipes by name.
            seeds: of the connectors' values and the batches, and of the hosts.
            looks: numbers of steps after which to look; the last step always is one.
            read: anything else to be measured of a translator at each look.
            other_exam: tell every translator a second time, as that of seed + PER_HOST, by sentences that are held out
                as well, `read` apart.
            describe: what the progress bar says.
        """
        pairs = [(arm, seed) for arm in arms for seed in seeds]
        exams = (self.unseen, self.other) if other_exam else (self.unseen,)
        outcomes: dict[tuple[Hashable, int], Outcome] = {}
        by_steps: dict[int, list[tuple[Hashable, int]]] = {}
        for arm, seed in pairs:
            by_steps.setdefault(arms[arm].fit.steps, []).append((arm, seed))

        def look(recipe: Recipe, model: VectorToText) -> list[tuple[dict[str, float], tuple[str, ...]]]:
            return [self._readings(model, recipe, read, exam) for exam in exams]

        for steps, some in by_steps.items():
            trained = train_translators(
                [(arms[arm], seed) for arm, seed in some],
                self.known,
                self.host,
                self.sentence_encoder,
                looks=[look for look in looks if look < steps],
                look=look,
                describe=describe,
            )
            for (arm, seed), one in zip(some, trained, strict=True):
                seen = {**one.looks, steps: look(one.recipe, one.model)}
                for i in range(len(exams)):
                    readings = {step: told[i][0] for step, told in seen.items()}
                    outcomes[arm, seed + i * PER_HOST] = Outcome(readings, {"said": seen[steps][i][1]}, one.model)
        order = [(arm, seed + i * PER_HOST) for i in range(len(exams)) for arm, seed in pairs]
        return Study.of({pair: outcomes[pair] for pair in order})

    def _readings(
        self,
        model: VectorToText,
        recipe: Recipe,
        read: Callable[[VectorToText, Recipe], Mapping[str, float]] | None,
        exam: Sentences,
    ) -> tuple[dict[str, float], tuple[str, ...]]:
        model = model.eval()
        said, inputs = self.said(model, recipe, exam), exam.inputs(recipe)
        scores = score(said, spaced(exam.texts, self.tokenizer))
        with torch.no_grad():
            loss = float(model(inputs, exam.labels))
        gap = conditioning_gap(lambda x: model(x, exam.labels), inputs)
        readings = {"bleu": scores.bleu, "distinct": 100 * scores.distinct, "loss": loss, "gap": gap}
        return readings | dict(read(model, recipe) if read else {}), said


bench = Translation


@lru_cache(maxsize=64)
def _host(bench: Translation, family: str, seed: int) -> PreTrainedModel:
    read = (bench.given_text.train, bench.tokenizer) if bench.given_text else None
    return small_host(family, bench.size, bench.cache, bench.device, read, seed)
