"""Supervising a decoder that may ignore its input: the log's term, which cannot act, and two that can."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn.functional import relu

from bridges.hosts.seq2seq import VectorToText

LOG_WEIGHT = 0.1  # of the added loss, from "Option D: Add Attention Supervision" of the encoder log
LEAST = 1e-12  # weights below count as this in a logarithm, so that one of 0 has a finite gradient


@dataclass(frozen=True)
class Supervision:
    """Weights of the losses added to a translation loss; as the log has it, `written` is 0.1."""

    written: float = 0.0
    entropy: float = 0.0
    conditioning: float = 0.0


def log_mean_attention(attentions: Sequence[Float[Tensor, "batch heads queries keys"]]) -> Float[Tensor, ""]:
    """The encoder log's supervision, `-log(cross_attention.mean())`, over all layers.

    Every row of a softmax sums to 1, so this is ln(keys) whatever the model does: a constant without a gradient. Rows
    of weights returned after dropout do not sum to 1, and there it follows the noise.

    Args:
        attentions: cross-attention weights of each layer, as a host returns them.

    Raises:
        ValueError: where a host returned no weights.
    """
    return -_weights(attentions).mean().log()


def attention_entropy(attentions: Sequence[Float[Tensor, "batch heads queries keys"]]) -> Float[Tensor, ""]:
    """Mean entropy of the rows in nats, 0 to ln(keys): with a gradient, towards attention that is not flat.

    It takes weights as the softmax gave them: with the host in evaluation mode, where no dropout has been at them.

    Args:
        attentions: cross-attention weights of each layer, as a host returns them.

    Raises:
        ValueError: where a host returned no weights.
    """
    weights = _weights(attentions)
    return -(weights * weights.clamp_min(LEAST).log()).sum(-1).mean()


def conditioning_loss(right: Float[Tensor, ""], shuffled: Float[Tensor, ""], margin: float = 1.0) -> Float[Tensor, ""]:
    """What the conditioning gap lacks of `margin`, in nats per token; 0 once the gap is as wide.

    The gap of `bridges.instruments.conditioning` as a loss: what torch calls `margin_ranking_loss`, of the loss with
    other samples' inputs, which shall be the higher, and the loss with the right ones.

    Args:
        right: loss of a batch with its own inputs.
        shuffled: loss of the same batch when every sample gets another's input.
        margin: the gap that is asked for.

    Raises:
        ValueError: for a margin that asks for nothing.
    """
    if not margin > 0:
        raise ValueError(f"a margin of {margin} asks for no gap: give a positive one, in nats per token")
    return relu(margin - (shuffled - right))


class Attending(nn.Module):
    """A translator that returns its cross-attention beside its loss, so that either can be supervised.

    Its host must have its attention written out, as `untrained` makes it.
    """

    def __init__(self, translator: VectorToText):
        super().__init__()
        self.translator = translator

    def forward(
        self, inputs: Shaped[Tensor, "batch width"], labels: Int[Tensor, "batch length"]
    ) -> tuple[Float[Tensor, ""], tuple[Float[Tensor, "batch heads length keys"], ...]]:
        """Cross-entropy in nats per token, and the weights (B, h, T, K) of every decoder layer."""
        own = self.translator
        said = own.host(**own.host_inputs(inputs), labels=labels, output_attentions=True)
        return said.loss, said.cross_attentions


class Supervised(nn.Module):
    """A translator whose loss holds its supervision.

    The weights are a buffer, so that arms which differ in them share a vectorised graph. The conditioning gap takes a
    second pass: arms with it and arms without it have buffers of different shape, and do not stack.
    """

    weights: Tensor

    def __init__(self, translator: VectorToText, supervision: Supervision, margin: float = 1.0):
        super().__init__()
        self.attending, self.margin = Attending(translator), margin
        weights = astuple(supervision) if supervision.conditioning else astuple(supervision)[:-1]
        self.register_buffer("weights", torch.tensor(weights, device=next(translator.parameters()).device))

    def forward(self, inputs: Shaped[Tensor, "batch width"], labels: Int[Tensor, "batch length"]) -> Float[Tensor, ""]:
        """Translation loss and weighted supervision; the next sample of the batch lends the wrong input."""
        loss, attentions = self.attending(inputs, labels)
        terms = [log_mean_attention(attentions), attention_entropy(attentions)]
        if len(self.weights) > len(terms):
            shuffled, _ = self.attending(inputs.roll(1, 0), labels)
            terms.append(conditioning_loss(loss, shuffled, self.margin))
        return loss + self.weights @ torch.stack(terms)


def _weights(attentions: Sequence[Tensor]) -> Tensor:
    """The layers' weights as one tensor (layers, B, h, T, K)."""
    if not attentions or any(a is None for a in attentions):
        raise ValueError(
            "the host returned no cross-attention weights: set its attention to 'eager', as `still` does, and ask for"
            " them with output_attentions=True"
        )
    return torch.stack(tuple(attentions))
