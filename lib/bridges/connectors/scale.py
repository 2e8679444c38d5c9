"""Scale of what enters a connector and of what leaves it."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import layer_norm


class Standardise(nn.Module):
    """Shift and scale each feature with statistics fixed beforehand; the identity until `fit` is called.

    A unit-norm sentence vector of width d has features of standard deviation near 1 / sqrt(d), too small to be heard
    beside learned tokens of unit scale.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def fit(self, vectors: Float[Tensor, "samples width"]) -> "Standardise":
        """Take mean and standard deviation of each feature from training vectors; returns itself."""
        self.mean.copy_(vectors.mean(0))
        self.std.copy_(vectors.std(0).clamp_min(1e-6))
        return self

    def forward(self, vector: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
        return (vector - self.mean) / self.std


class Whitening(nn.Module):
    """Centre a layer's states and bring their directions to one variance, with statistics fixed beforehand.

    What is faint in the states is then as loud as the rest; nothing is added and nothing lost, since the map can be
    undone. It is the symmetric one (ZCA; Kessy, Lewin and Strimmer, 2018). The identity until `fit` is called.
    """

    FLOOR = 1e-3  # of the mean variance, for directions with next to none
    mean: Tensor
    matrix: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("matrix", torch.eye(width))

    def fit(self, states: Float[Tensor, "positions width"], strength: float = 1.0) -> "Whitening":
        """Take mean and covariance from the states of training texts, padding left out; returns itself.

        `strength` is the share of the way, on the scale of the logarithm: 1 makes all variances equal, 0 leaves them
        and centres alone.

        Raises:
            ValueError: for fewer than two positions, states that do not vary, or a strength outside 0 to 1.
        """
        if len(states) < 2 or not 0 <= strength <= 1:
            raise ValueError(
                f"{len(states)} positions at strength {strength}: give two or more, and a strength of 0 to 1"
            )
        values, axes = torch.linalg.eigh(torch.cov(states.T))
        if not values.mean() > 0:
            raise ValueError("the states do not vary: there is nothing to whiten")
        scale = (values + self.FLOOR * values.mean()).rsqrt().pow(strength)
        self.mean.copy_(states.mean(0))
        self.matrix.copy_(axes @ scale.diag() @ axes.T)
        return self

    def forward(self, states: Float[Tensor, "*texts width"]) -> Float[Tensor, "*texts width"]:
        return (states - self.mean) @ self.matrix


def rms(x: Float[Tensor, "... width"]) -> Float[Tensor, "..."]:
    """Root mean square over the last dimension."""
    return x.square().mean(-1).sqrt()


# Whose stack multiplies the embeddings of ids by its `embed_scale`, but not embeddings that it is given.
SCALED_BY_STACK = ("blenderbot-small", "marian", "mvp", "pegasus")


@torch.no_grad()
def embedding_table(host: Any) -> Float[Tensor, "vocabulary width"]:
    """The embedding of every word at the scale at which a connector's tokens stand beside it, on the host's device.

    It goes through the embedding module, as words do: Gemma's multiplies its weights by the root of the width, and so
    do those of BART and its kin where `scale_embedding` is set. Pegasus, Marian and the like do it behind the module.
    Where nothing scales, these are the weights, to the last bit.
    """
    table = host.get_input_embeddings()
    found = table(torch.arange(len(table.weight), device=table.weight.device))
    if getattr(host.config, "model_type", "") in SCALED_BY_STACK and getattr(host.config, "scale_embedding", False):
        found = found * host.config.d_model**0.5
    return found


def embedding_rms(host: nn.Module) -> float:
    """The mean over the vocabulary of the RMS of a token's embedding, at the scale at which the host hears it.

    The translation log takes it of the table's weights, which is the same for hosts that do not scale them.
    """
    return rms(embedding_table(host).float()).mean().item()


class ScaleMatch(nn.Module):
    """Soft tokens at a given RMS, after LayerNorm without values of its own; or left alone where `norm` is False.

    The translation log divides by the RMS once more between the two. LayerNorm has already made it 1, so here it is
    left out. Both settings are buffers: models that differ in them can be trained side by side.
    """

    rms: Tensor
    norm: Tensor

    def __init__(self, rms: float, norm: bool = True):
        super().__init__()
        if not rms > 0:
            raise ValueError(f"an RMS of {rms} leaves nothing of the tokens: give a positive one")
        self.register_buffer("rms", torch.tensor(float(rms)))
        self.register_buffer("norm", torch.tensor(norm))

    def forward(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        matched = layer_norm(tokens, tokens.shape[-1:]) * self.rms
        return torch.where(self.norm, matched, tokens)
