"""A bridge made of other people's parts: flamingo-pytorch's resampler speaks to a T5 of transformers.

    python -m bridges checkup book/examples/my_bridge.py --html report.html

Nothing of it is trained, and the check-up says so. Put your own connector, host, inputs and sentences in their places.
"""

import torch
from bridges.instruments.checkup import Generative
from flamingo_pytorch import PerceiverResampler
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

torch.manual_seed(0)
config = T5Config(vocab_size=1000, d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=4, decoder_start_token_id=0)
host = T5ForConditionalGeneration(config)
host.eval().requires_grad_(False)


class Connector(nn.Module):
    """A sequence of features in, eight tokens of the host out."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(64, 128)
        self.resampler = PerceiverResampler(dim=128, depth=2, dim_head=32, heads=4, num_latents=8)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.resampler(self.into(features)).squeeze(1)


labels = torch.randint(2, 1000, (128, 12))  # held-out samples: the ids that the host should say for each
labels[:, -1] = config.eos_token_id  # and where it should end
features = torch.randn(1000, 64)[labels]  # and what it is to say them from, here a vector for each id


def loss(tokens: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """What the host thinks of the right answers when it reads these tokens."""
    return host(inputs_embeds=tokens, labels=labels[rows]).loss


bridge = Generative(Connector(), features, loss, labels, embeddings=host.shared.weight)
