"""Train connectors into encoder-decoders, many recipes and seeds at once."""

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel

from bridges.benches.pretrain import host_recipe, small_host
from bridges.benches.study import Outcome, Study
from bridges.connectors.pooling import VectorToTokens
from bridges.connectors.projection import AttentionBridge, Projection
from bridges.connectors.resampler import ResamplerSettings, VectorResampler
from bridges.connectors.scale import Standardise
from bridges.hosts.sentence import SentenceEncoder
from bridges.hosts.seq2seq import Route, VectorToText, still
from bridges.instruments.conditioning import conditioning_gap
from bridges.instruments.translation import Floors, floors, score
from bridges.tasks import instructions
from bridges.tasks.sentences import spaced, word_tokenizer
from bridges.training.ensemble import Ensemble, alike, fit_ensemble
from bridges.training.fit import FitSettings

PER_HOST = 100  # seeds s, s + 100, s + 200, ... are translators over the host of seed s


@dataclass(frozen=True)
class Recipe:
    """How one translator is made and trained.

    `resampler` gives the connector's inner width, tokens (`latents`) and heads whatever the connector; a projection
    makes one token. `unfrozen` trains the sentence encoder too, which the inputs then pass through. `logged_scale`
    leaves the vectors at their own scale, as the logs did; else they are standardised. `loss(translator, inputs,
    labels)`, in nats per token, is what is minimised where it is given, in the place of the translation loss.
    """

    fit: FitSettings
    resampler: ResamplerSettings
    connector: Literal["projection", "bridge", "perceiver", "mlp"] = "perceiver"
    host: str = "t5"
    route: Route = "inputs_embeds"
    unfrozen: bool = False
    logged_scale: bool = False
    loss: Callable[[VectorToText, Tensor, Tensor], Tensor] | None = None

    def build(self, width: int, token_width: int) -> nn.Module:
        """The connector from vectors of `width`; draws from torch's global generator."""
        r = self.resampler
        match self.connector:
            case "projection":
                return Projection(width, r.width, token_width)
            case "bridge":
                return AttentionBridge(width, r.width, r.latents, token_width, r.heads)
            case "perceiver":
                return VectorResampler(width, r, token_width)
            case "mlp":
                return VectorToTokens(width, r.latents, token_width)
        raise ValueError(f"connector {self.connector!r} is unknown; choose from projection, bridge, perceiver, mlp")

    @property
    def architecture(self) -> object:
        """Equal for recipes that differ in values alone and can share one vectorised graph."""
        groups = tuple(replace(g, rate=1.0) for g in self.fit.groups)
        fit = FitSettings(self.fit.steps, batch=self.fit.batch, groups=groups)
        return replace(self, fit=fit, resampler=replace(self.resampler, latent_std=0.0), logged_scale=False)


@dataclass(frozen=True)
class Sentences:
    """Sentences in the forms a translator needs: their vectors, and token ids as labels (-100 where there is none)."""

    texts: tuple[str, ...]
    vectors: Float[Tensor, "sentences width"]
    labels: Int[Tensor, "sentences length"]
    ids: Int[Tensor, "sentences length"] | None = None  # what an unfrozen sentence encoder reads

    def inputs(self, recipe: Recipe) -> Shaped[Tensor, "sentences width"]:
        """What the recipe's translator is given.

        Raises:
            ValueError: for an unfrozen encoder without ids to read.
        """
        if recipe.unfrozen and self.ids is None:
            raise ValueError("an unfrozen sentence encoder reads ids: give `ids` with the sentences")
        return self.ids if recipe.unfrozen and self.ids is not None else self.vectors


@dataclass(frozen=True)
class TrainedTranslator:
    """A trained translator, the loss of every step in nats per token, and what was seen at each look."""

    recipe: Recipe
    seed: int
    model: VectorToText
    losses: list[float]
    looks: dict[int, Any] = field(default_factory=dict)


def untrained(
    recipe: Recipe,
    seed: int,
    sentences: Sentences,
    hosts: Mapping[str, PreTrainedModel] | Callable[[str, int], PreTrainedModel],
    encoder: SentenceEncoder | None,
) -> VectorToText:
    """The translator before its first step: connector values from `seed`, host and encoder as they were pretrained.

    `hosts` gives the recipe's host by its name, or by its name and the seed.

    Raises:
        ValueError: for an unfrozen recipe without an encoder.
    """
    host = still(hosts(recipe.host, seed) if callable(hosts) else hosts[recipe.host])
    width = sentences.vectors.shape[1]
    torch.manual_seed(seed)
    connector = recipe.build(width, host.config.hidden_size)
    scale = Standardise(width)
    if not recipe.logged_scale:
        scale.fit(sentences.vectors.cpu())
    if recipe.unfrozen and encoder is None:
        raise ValueError("an unfrozen recipe trains the sentence encoder: give `encoder`")
    front = encoder.still() if recipe.unfrozen and encoder else None
    return VectorToText(nn.Sequential(scale, connector), host, recipe.route, front).to(sentences.vectors.device).eval()


def train_translators(
    runs: Sequence[tuple[Recipe, int]],
    sentences: Sentences,
    hosts: Mapping[str, PreTrainedModel] | Callable[[str, int], PreTrainedModel],
    encoder: SentenceEncoder | None = None,
    *,
    looks: Sequence[int] = (),
    look: Callable[[Recipe, VectorToText], Any] | None = None,
    describe: str = "translators",
) -> list[TrainedTranslator]:
    """Train every (recipe, seed), without dropout; those of one architecture and length share a vectorised graph.

    Two runs with one seed start from the same connector values, where their shapes agree, and see the same batches.

    Args:
        runs: what to train, and the seed of its values and batches.
        sentences: to train on.
        hosts: pretrained encoder-decoders by the name a recipe gives, or by name and seed; copied, not changed.
        encoder: the sentence encoder that unfrozen recipes train.
        looks: numbers of steps after which `look` is called with each translator; what it returns is kept.
        look: anything to be measured of a translator while it is trained.
        describe: what the progress bar says.
    """
    found: dict[int, TrainedTranslator] = {}
    for members in alike([recipe.architecture for recipe, _ in runs]):
        chosen = [runs[i] for i in members]
        inputs = sentences.inputs(chosen[0][0])
        seen: list[dict[int, Any]] = [{} for _ in chosen]

        def batch_loss(
            model: Callable[..., Tensor], rows: Int[Tensor, " batch"], _: int, inputs: Tensor = inputs
        ) -> Tensor:
            return model(inputs[rows], sentences.labels[rows])

        def looking(
            step: int, ensemble: Ensemble, chosen: list[tuple[Recipe, int]] = chosen, seen: list[dict[int, Any]] = seen
        ) -> None:
            if look and step in looks:
                for place, (recipe, _) in enumerate(chosen):
                    seen[place][step] = look(recipe, _one(ensemble, place))

        ensemble = fit_ensemble(
            [_as_trained(untrained(recipe, seed, sentences, hosts, encoder), recipe) for recipe, seed in chosen],
            batch_loss,
            len(sentences.texts),
            [recipe.fit for recipe, _ in chosen],
            [seed for _, seed in chosen],
            look=looking,
            describe=f"{describe}, {len(chosen)} at once",
        )
        for place, index in enumerate(members):
            recipe, seed = runs[index]
            losses = ensemble.losses[:, place].tolist()
            found[index] = TrainedTranslator(recipe, seed, _one(ensemble, place), losses, seen[place])
    return [found[i] for i in range(len(runs))]


class _Minimising(VectorToText):
    """A translator whose forward pass is its recipe's own loss; its parts keep their names."""

    def __init__(self, translator: VectorToText, loss: Callable[[VectorToText, Tensor, Tensor], Tensor]):
        super().__init__(translator.connector, translator.host, translator.route, translator.encoder)
        self.loss = loss

    @property
    def translator(self) -> VectorToText:
        """The same parts with the translation loss."""
        return VectorToText(self.connector, self.host, self.route, self.encoder)

    def forward(self, inputs: Shaped[Tensor, "batch width"], labels: Int[Tensor, "batch length"]) -> Float[Tensor, ""]:
        return self.loss(self.translator, inputs, labels)


def _as_trained(translator: VectorToText, recipe: Recipe) -> VectorToText:
    return _Minimising(translator, recipe.loss).eval() if recipe.loss else translator


def _one(ensemble: Ensemble, place: int) -> VectorToText:
    model = ensemble.model(place)
    return model.translator if isinstance(model, _Minimising) else cast(VectorToText, model)


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

    def said(self, model: VectorToText, recipe: Recipe) -> tuple[str, ...]:
        """What a translator makes of the held-out sentences."""
        ids = model.generate(self.unseen.inputs(recipe), self.longest)
        return tuple(self.tokenizer.batch_decode(ids, skip_special_tokens=True))

    def train(
        self,
        arms: Mapping[Hashable, Recipe],
        seeds: Sequence[int],
        *,
        looks: Sequence[int] = (),
        read: Callable[[VectorToText, Recipe], Mapping[str, float]] | None = None,
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
            describe: what the progress bar says.
        """
        pairs = [(arm, seed) for arm in arms for seed in seeds]
        outcomes: dict[tuple[Hashable, int], Outcome] = {}
        by_steps: dict[int, list[tuple[Hashable, int]]] = {}
        for arm, seed in pairs:
            by_steps.setdefault(arms[arm].fit.steps, []).append((arm, seed))
        for steps, some in by_steps.items():
            trained = train_translators(
                [(arms[arm], seed) for arm, seed in some],
                self.known,
                self.host,
                self.sentence_encoder,
                looks=[look for look in looks if look < steps],
                look=lambda recipe, model: self._readings(model, recipe, read)[0],
                describe=describe,
            )
            for (arm, seed), one in zip(some, trained, strict=True):
                readings, said = self._readings(one.model, one.recipe, read)
                outcomes[arm, seed] = Outcome({**one.looks, steps: readings}, {"said": said}, one.model)
        return Study.of({pair: outcomes[pair] for pair in pairs})

    def _readings(
        self, model: VectorToText, recipe: Recipe, read: Callable[[VectorToText, Recipe], Mapping[str, float]] | None
    ) -> tuple[dict[str, float], tuple[str, ...]]:
        model = model.eval()
        said, inputs = self.said(model, recipe), self.unseen.inputs(recipe)
        scores = score(said, self.references)
        with torch.no_grad():
            loss = float(model(inputs, self.unseen.labels))
        gap = conditioning_gap(lambda x: model(x, self.unseen.labels), inputs)
        readings = {"bleu": scores.bleu, "distinct": 100 * scores.distinct, "loss": loss, "gap": gap}
        return readings | dict(read(model, recipe) if read else {}), said


bench = Translation


@lru_cache(maxsize=64)
def _host(bench: Translation, family: str, seed: int) -> PreTrainedModel:
    read = (bench.given_text.train, bench.tokenizer) if bench.given_text else None
    return small_host(family, bench.size, bench.cache, bench.device, read, seed)
