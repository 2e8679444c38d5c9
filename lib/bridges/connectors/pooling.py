"""One vector into many tokens, and many tokens into one vector."""

from jaxtyping import Float
from torch import Tensor, nn


class VectorToTokens(nn.Module):
    """An MLP from one vector to K tokens, the simplest connector that gives each token a value of its own."""

    def __init__(self, width: int, tokens: int, token_width: int, hidden: int = 256):
        super().__init__()
        self.tokens = tokens
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, tokens * token_width))

    def forward(self, vector: Float[Tensor, "batch width"]) -> Float[Tensor, "batch tokens dim"]:
        return self.mlp(vector).unflatten(1, (self.tokens, -1))  # (B, K * dim) -> (B, K, dim)


class MeanPooling(nn.Module):
    """The mean over tokens: every token counts the same."""

    def forward(self, tokens: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch width"]:
        return tokens.mean(1)


class AttentionPooling(nn.Module):
    """A learned weighted mean over tokens, the alignment log's "learnable attention pooling" without its dropout.

    One linear score for each token, turned into weights by a softmax over tokens.
    """

    def __init__(self, width: int):
        super().__init__()
        self.score = nn.Linear(width, 1)

    def forward(self, tokens: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch width"]:
        weights = self.score(tokens).softmax(1)  # (B, S, 1), sums to 1 over S
        return (weights * tokens).sum(1)
