"""Runs of translators: how a connector into an encoder-decoder is made, and many trained side by side."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel

from bridges.connectors.pooling import VectorToTokens
from bridges.connectors.projection import AttentionBridge, Projection
from bridges.connectors.resampler import ResamplerSettings, VectorResampler
from bridges.connectors.scale import Standardise
from bridges.hosts.sentence import SentenceEncoder
from bridges.hosts.seq2seq import Route, VectorToText, still
from bridges.training.ensemble import Ensemble, alike, fit_ensemble
from bridges.training.fit import FitSettings


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
