"""What a connector's tokens hold: how much is the token's own, how much the input's, and in how many directions."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize
from torch.special import xlogy


@dataclass(frozen=True)
class TokenGeometry:
    """Shares of the tokens' variance, and how many directions across tokens follow the input.

    `identity` is the share that tells token from token whatever the input; `input` the share that all tokens of an
    input have in common; `interaction` what a token says of its input that the others do not. They sum to 1.
    `effective_rank` runs from 1 (all tokens move together with the input) to the number of tokens.
    """

    identity: float
    input: float
    interaction: float
    effective_rank: float
    cosine: float  # mean over pairs of tokens of one input

    def _repr_markdown_(self) -> str:
        return (
            "| share of variance: token identity | input | interaction | effective rank | cosine between tokens |\n"
            "|--:|--:|--:|--:|--:|\n"
            f"| {self.identity:.3f} | {self.input:.3f} | {self.interaction:.3f} | {self.effective_rank:.2f} |"
            f" {self.cosine:.3f} |"
        )


def effective_rank(matrices: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, " batch"]:
    """The exponential of the entropy of normalised singular values (Roy and Vetterli 2007); 0 for a matrix of zeros."""
    matrices = matrices.double()
    gram = matrices @ matrices.transpose(1, 2)  # (B, K, K): its eigenvalues are the squares, and K is small
    singular = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    total = singular.sum(-1, keepdim=True)
    shares = singular / total.clamp_min(torch.finfo(singular.dtype).tiny)
    return torch.where(total[:, 0] > 0, (-xlogy(shares, shares)).sum(-1).exp(), 0.0)


@torch.no_grad()
def token_geometry(tokens: Float[Tensor, "batch tokens dim"]) -> TokenGeometry:
    """Take the tokens of a batch of inputs apart: a two-way analysis of variance, and the rank of what is left.

    The effective rank is that of each input's tokens after every token's mean over inputs is taken away, averaged over
    inputs.

    Raises:
        ValueError: for fewer than two inputs or tokens, values that are not finite, or tokens that do not vary.
    """
    if len(tokens) < 2 or tokens.shape[1] < 2:
        raise ValueError(f"{len(tokens)} inputs of {tokens.shape[1]} tokens: geometry takes at least two of each")
    if not torch.isfinite(tokens).all():
        raise ValueError("tokens hold values that are not finite: look at the connector's inputs and weights")
    x = tokens.double()
    mean = x.mean((0, 1))
    of_token, of_input = x.mean(0) - mean, x.mean(1) - mean  # (K, dim), (B, dim)
    rest = x - mean - of_token - of_input[:, None]
    if (x == x[0, 0]).all():  # the variance itself may be off zero by rounding
        raise ValueError("all tokens of all inputs are equal: there is no variance to take apart")
    total = (x - mean).square().mean((0, 1)).sum()
    shares = [part.square().sum(-1).mean() / total for part in (of_token, of_input, rest)]
    unit, count = normalize(x, dim=-1), tokens.shape[1]
    # Without each token's cosine with itself, which is 1, or 0 for a token of zeros.
    cosines = unit.sum(1).square().sum(-1) - unit.square().sum((1, 2))
    identity, of_inputs, interaction = (share.item() for share in shares)
    return TokenGeometry(
        identity,
        of_inputs,
        interaction,
        effective_rank(x - x.mean(0)).mean().item(),
        (cosines.mean() / (count * (count - 1))).item(),
    )
