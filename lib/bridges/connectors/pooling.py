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
