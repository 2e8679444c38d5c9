"""Whose the variance is: components worked by hand, and the share a planted host has."""

import pytest
import torch
from bridges.instruments.variance import host_share, variance_components


def test_components_are_those_worked_by_hand() -> None:
    # Means 2, 6, 10: mean squares of 32 between and 2 within.
    runs = [[1.0, 3.0], [5.0, 7.0], [9.0, 11.0]]
    assert variance_components(torch.tensor(runs)) == pytest.approx((15, 2))
    assert host_share(runs).mean == pytest.approx(15 / 17)
    # The hosts' means are equal: less apart than two runs of one, and no variance is negative.
    assert variance_components(torch.tensor([[0.0, 10.0], [10.0, 0.0]])) == pytest.approx((0, 50))


def test_the_interval_holds_a_planted_share() -> None:
    draw = torch.Generator().manual_seed(0)
    hosts, own = torch.randn(400, 1, generator=draw), torch.randn(400, 2, generator=draw)
    for share in (0.0, 0.3, 0.9):
        found = host_share((share**0.5 * hosts + (1 - share) ** 0.5 * own).tolist(), draws=2000)
        assert found.low - 0.02 <= share <= found.high
        assert found.high - found.low < 0.25
    with pytest.raises(ValueError, match="as many of each"):
        host_share([[1.0, 2.0], [1.0]])
    with pytest.raises(ValueError, match="do not vary"):
        host_share([[1.0, 1.0], [1.0, 1.0]])
    with pytest.raises(ValueError, match="two hosts or more"):
        variance_components(torch.ones(1, 2))
