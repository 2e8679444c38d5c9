"""The translator's attention against torch's `nn.MultiheadAttention`, weights copied."""

import torch
from bridges.connectors.translator import Attention
from torch import nn


def test_self_attention_is_torchs() -> None:
    torch.manual_seed(0)
    ours, theirs = Attention(16, heads=4), nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.into.weight)
        theirs.in_proj_bias.copy_(ours.into.bias)
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    x = torch.randn(3, 5, 16)
    torch.testing.assert_close(ours(x), theirs(x, x, x)[0])


def test_cross_attention_is_torchs_masked_positions_and_all() -> None:
    torch.manual_seed(0)
    ours = Attention(16, heads=4, key_width=10)
    theirs = nn.MultiheadAttention(16, 4, kdim=10, vdim=10, batch_first=True)
    with torch.no_grad():
        for ours_own, theirs_own in (("to_q", "q"), ("to_k", "k"), ("to_v", "v")):
            getattr(theirs, f"{theirs_own}_proj_weight").copy_(getattr(ours, ours_own).weight)
        theirs.in_proj_bias.copy_(torch.cat([ours.to_q.bias, ours.to_k.bias, ours.to_v.bias]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    x, keys = torch.randn(3, 5, 16), torch.randn(3, 7, 10)
    there = torch.rand(3, 7) < 0.7
    there[:, 0] = True
    torch.testing.assert_close(ours(x, keys, there), theirs(x, keys, keys, key_padding_mask=~there)[0])
