"""A real sentence's vector, by a connector, into a real frozen language model: recipes and seeds in, a study out.

The host's output layer is cut to the words of the corpus, which spares most of a small model's work; the loss is one of
choosing among these words alone. The host computes in bfloat16.
"""

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from sacrebleu.metrics import BLEU, CHRF
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.nn.utils.rnn import pad_sequence

from bridges.benches.study import Outcome, Study
from bridges.connectors.pooling import VectorToTokens
from bridges.connectors.resampler import ResamplerSettings, VectorResampler
from bridges.connectors.scale import ScaleMatch, Standardise, embedding_rms, rms
from bridges.hosts import pretrained
from bridges.instruments.conditioning import derangement
from bridges.tasks.gsm8k import read_gsm8k
from bridges.training.fit import FitSettings, fit

SHORTEST, LONGEST = 4, 12  # words of a sentence
NEW = 24  # tokens that may be said
PART = 32  # sentences in a call that is not trained
FIT = FitSettings(steps=200, lr=1e-3, batch=16, warmup=20)


@dataclass(frozen=True)
class SentenceRecipe:
    """How a connector is built, trained and scaled.

    Vectors go in at unit norm, or `standardised`. Behind the connector the tokens are `free`, or brought to an RMS of
    what `enters` the host's first block, or of the `table` that it is taken from, as the log takes it; and then made
    `louder` by a factor.
    """

    fit: FitSettings = FIT
    connector: Literal["linear", "mlp", "resampler"] = "mlp"
    tokens: int = 8
    standardised: bool = True
    scale: Literal["free", "enters", "table"] = "enters"
    louder: float = 1.0


@dataclass(frozen=True)
class RealText:
    """Sentences of GSM8K's questions, as a real encoder's vectors, to be said by a real language model.

    `cache` is the folder that `make real` fills, with GSM8K's train.jsonl in its folder gsm8k. The hosts are the same
    for all seeds: a seed draws the connector's first values and the batches.
    """

    cache: Path = field(metadata={"settings": False})
    device: str = field(default="cpu", metadata={"settings": False})
    host: str = "gemma3-270m"
    encoder: str = "minilm"
    taught: int = 8000
    asked: int = 128

    @property
    def depends(self) -> list[object]:
        """The SHA-256 of the hosts' weights, with which rows go stale."""
        return [dict(pretrained.named(name).files) for name in (self.host, self.encoder)]

    def train(
        self,
        arms: Mapping[Hashable, SentenceRecipe],
        seeds: Sequence[int],
        *,
        looks: Sequence[int] = (),
        describe: str = "connectors",
    ) -> Study:
        """Train every arm with every seed, one after another.

        Readings at each look and the last step, of held-out sentences: `loss` in nats per token, and `shuffled` with
        other sentences' vectors. At the last look also: `silent`, the loss without soft tokens; `given`, that behind
        the sentence's own text; `arrives`, the share of the way from the one to the other that the connector goes;
        `bleu` and `chrf` in points, `distinct` and `ends`, shares in percent; `nearest`, the BLEU of the training
        sentence with the nearest vector; `rms`, that of the tokens over what enters the host's first block. Texts: what
        is said at the end.
        """
        home = _home(self)
        outcomes: dict[tuple[Hashable, int], Outcome] = {}
        for arm, recipe in arms.items():
            for seed in seeds:
                outcomes[arm, seed] = home.run(recipe, seed, looks, f"{describe}, {arm}, seed {seed}")
        return Study.of(outcomes)


bench = RealText


@dataclass(frozen=True)
class Corpus:
    """Sentences with their vectors, and their ids among the words that the host chooses from, -100 behind the end."""

    texts: tuple[str, ...]
    vectors: Float[Tensor, "sentences width"]
    ids: Int[Tensor, "sentences length"]


class Speaker:
    """A host that says sentences behind soft tokens, choosing among the ids `words` alone."""

    def __init__(self, host: Any, tokenizer: Any, texts: Sequence[str]):
        self.host, self.tokenizer = host, tokenizer
        rows = self._rows(texts)
        self.words = torch.tensor(sorted({i for row in rows for i in row}), device=host.device)
        self.at = {int(word): place for place, word in enumerate(self.words)}
        self.head = host.get_output_embeddings().weight[self.words]
        self.first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id

    def encoded(self, texts: Sequence[str]) -> Int[Tensor, "sentences length"]:
        """Places among the words, with the end."""
        rows = ([self.at[i] for i in row] for row in self._rows(texts))
        return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=-100)

    def _rows(self, texts: Sequence[str]) -> list[list[int]]:
        found = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return [[*ids, self.tokenizer.eos_token_id] for ids in found]

    def embedded(self, ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length dim"]:
        """What enters the first block for places among the words, the first word's where there is none."""
        return self.host.get_input_embeddings()(self.words[ids.clamp_min(0)])

    def loss(self, soft: Float[Tensor, "batch tokens dim"] | None, ids: Int[Tensor, "batch length"]) -> Tensor:
        """Nats per token of sentences behind the mark of a beginning and soft tokens."""
        start = self.host.get_input_embeddings()(torch.full((len(ids), 1), self.first, device=self.words.device))
        told = self.embedded(ids)
        parts = [start, told] if soft is None else [start, soft.to(start.dtype), told]
        states = self.host.base_model(inputs_embeds=torch.cat(parts, 1), use_cache=False).last_hidden_state
        logits = states[:, -ids.shape[1] - 1 : -1] @ self.head.T
        return cross_entropy(logits.flatten(0, 1).float(), ids.flatten(), ignore_index=-100)

    @torch.no_grad()
    def say(self, soft: Float[Tensor, "batch tokens dim"]) -> tuple[list[str], list[bool]]:
        """What is said greedily behind soft tokens, and whether it ends, among the words alone."""
        start = self.host.get_input_embeddings()(torch.full((len(soft), 1), self.first, device=self.words.device))
        read, cache, said = torch.cat([start, soft.to(start.dtype)], 1), None, []
        for _ in range(NEW):
            out = self.host.base_model(inputs_embeds=read, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            said.append((out.last_hidden_state[:, -1] @ self.head.T).argmax(-1))
            read = self.embedded(said[-1][:, None])
        rows, end = torch.stack(said, 1), self.at[self.tokenizer.eos_token_id]
        ends = [bool((row == end).any()) for row in rows]
        cut = [row[: int((row == end).int().argmax())] if there else row for row, there in zip(rows, ends, strict=True)]
        return [self.tokenizer.decode(self.words[row]).strip() for row in cut], ends


class Home:
    """A host that speaks, sentences to learn from and held-out ones, and what is the same for all connectors."""

    def __init__(self, speaker: Speaker, taught: Corpus, asked: Corpus):
        self.speaker, self.taught, self.asked = speaker, taught, asked
        self.entering = embedding_rms(speaker.host)
        self.table = rms(speaker.host.get_input_embeddings().weight.detach().float()).mean().item()

    def build(self, recipe: SentenceRecipe, seed: int) -> nn.Module:
        """The connector before its first step."""
        torch.manual_seed(seed)
        width, dim = self.taught.vectors.shape[1], self.speaker.head.shape[1]
        if recipe.connector == "linear":
            flat = nn.Linear(width, recipe.tokens * dim)
            inner: nn.Module = nn.Sequential(flat, nn.Unflatten(1, (recipe.tokens, dim)))
        elif recipe.connector == "mlp":
            inner = VectorToTokens(width, recipe.tokens, dim, hidden=width)
        else:
            # The first log's: latents of unit scale, no norm on what is read.
            inner = VectorResampler(
                width, ResamplerSettings(256, recipe.tokens, 2, 4, latent_std=1.0, input_norm=False), dim
            )
        into = Standardise(width).fit(self.taught.vectors) if recipe.standardised else nn.Identity()
        target = {"enters": self.entering, "table": self.table, "free": 1.0}[recipe.scale] * recipe.louder
        return nn.Sequential(into, inner, ScaleMatch(target, norm=recipe.scale != "free"))

    def run(self, recipe: SentenceRecipe, seed: int, looks: Sequence[int], describe: str) -> Outcome:
        connector, readings = self.build(recipe, seed), {}

        def loss(rows: Tensor) -> Tensor:
            ids = self.taught.ids[rows]
            return self.speaker.loss(connector(self.taught.vectors[rows]), ids[:, : int((ids >= 0).sum(1).max())])

        def look(told: dict[str, int | float]) -> None:
            if told["step"] in looks and "loss" in told:
                readings[int(told["step"])] = self.losses(connector.eval())
                connector.train()

        fit(connector, loss, len(self.taught.texts), recipe.fit, seed, describe, tell=look)
        connector.eval()
        said, ends = self.said(connector)
        last = self.losses(connector)
        silent, given = self.bounds
        with torch.no_grad():
            loud = rms(connector(self.asked.vectors)).mean().item() / self.entering
        last |= {"silent": silent, "given": given, "arrives": (silent - last["loss"]) / (silent - given)}
        last |= {"bleu": bleu(said, self.asked.texts)}
        last |= {"chrf": CHRF().corpus_score(said, [list(self.asked.texts)]).score}
        last |= {"distinct": 100 * len(set(said)) / len(set(self.asked.texts)), "ends": 100 * sum(ends) / len(ends)}
        last |= {"nearest": self.nearest, "rms": loud}
        return Outcome(readings | {recipe.fit.steps: last}, {"said": said}, connector)

    @torch.no_grad()
    def losses(self, connector: nn.Module) -> dict[str, float]:
        """The held-out loss, and that with other sentences' vectors."""
        own, others = [], []
        for rows in torch.arange(len(self.asked.texts)).split(PART):
            soft, ids = connector(self.asked.vectors[rows]), self.asked.ids[rows]
            own.append(self.speaker.loss(soft, ids).item())
            others.append(self.speaker.loss(soft[derangement(len(rows))], ids).item())
        return {"loss": fmean(own), "shuffled": fmean(others)}

    @torch.no_grad()
    def said(self, connector: nn.Module) -> tuple[list[str], list[bool]]:
        """What the host says of each held-out sentence's vector, and whether it comes to an end."""
        texts: list[str] = []
        ends: list[bool] = []
        for rows in torch.arange(len(self.asked.texts)).split(PART):
            some, ended = self.speaker.say(connector(self.asked.vectors[rows]))
            texts, ends = texts + some, ends + ended
        return texts, ends

    @cached_property
    def bounds(self) -> tuple[float, float]:
        """The loss without soft tokens, and behind the sentence's own text."""
        silent, given = [], []
        with torch.no_grad():
            for rows in torch.arange(len(self.asked.texts)).split(PART):
                ids = self.asked.ids[rows]
                silent.append(self.speaker.loss(None, ids).item())
                # Row by row: padding between a text and its repetition would be read.
                for one in ids:
                    there = one[one >= 0][None]
                    given.append(self.speaker.loss(self.speaker.embedded(there), there).item())
        return fmean(silent), fmean(given)

    @cached_property
    def nearest(self) -> float:
        """BLEU of the training sentence whose vector lies nearest."""
        at = (normalize(self.asked.vectors, dim=-1) @ normalize(self.taught.vectors, dim=-1).T).argmax(1)
        return bleu([self.taught.texts[i] for i in at.tolist()], self.asked.texts)


def bleu(said: Sequence[str], wanted: Sequence[str]) -> float:
    """Corpus BLEU in points, by sacrebleu with its own tokens, capitals counted as other letters."""
    return BLEU().corpus_score(list(said), [list(wanted)]).score


def sentences(cache: Path) -> list[str]:
    """The distinct sentences of GSM8K's training questions that have from 4 to 12 words, in the order of the file.

    Raises:
        ValueError: when the file is not there.
    """
    found: dict[str, None] = {}
    for problem in read_gsm8k(cache / "gsm8k" / "train.jsonl"):
        for sentence in re.split(r"(?<=[.?!])\s+", " ".join(problem.question.split())):
            if SHORTEST <= len(sentence.split()) <= LONGEST:
                found[sentence] = None
    return list(found)


@lru_cache(maxsize=2)
def _home(bench: RealText) -> Home:
    texts = sentences(bench.cache)
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
    drawn = [texts[i] for i in order[: bench.asked + bench.taught]]
    if len(drawn) < 2 * bench.asked:
        raise ValueError(f"{len(drawn)} sentences are too few to hold {bench.asked} out: give the file whole")
    encoder, words = pretrained.load(bench.encoder, bench.cache, bench.device)
    vectors = encoder.encode(drawn, words)
    host, tokenizer = pretrained.load(bench.host, bench.cache, bench.device)
    speaker = Speaker(host.to(torch.bfloat16), tokenizer, drawn)
    ids = speaker.encoded(drawn)
    asked, taught = (
        Corpus(tuple(drawn[part]), vectors[part], ids[part]) for part in (slice(bench.asked), slice(bench.asked, None))
    )
    return Home(speaker, taught, asked)
