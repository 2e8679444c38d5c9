"""Whose the variance is: components worked by hand, and the share a planted host has."""

import pytest
import torch
from bridges.instruments.variance import host_share, nested_variance, variance_components


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


def test_hosts_bridges_and_exam_are_told_apart() -> None:
    """Values that are planted, with an exam's part that all runs share and one that each has to itself."""
    draw = torch.Generator().manual_seed(1)
    hosts, n = torch.randn(4000, generator=draw) * 3, 4000
    bridges = torch.randn(2, n, generator=draw) * 2
    asked = torch.randn(3, n, generator=draw)
    first, again = (hosts + bridges[i] + asked[i] for i in (0, 1))
    other = hosts + bridges[1] + asked[2] + 0.5
    found = nested_variance(first.tolist(), again.tolist(), other.tolist(), draws=500)
    parts = {"hosts": 9.0, "bridges": 4.0, "exam": 1 + 0.25 / 2}
    for name, part in parts.items():
        share = getattr(found, name)
        assert share.low <= part / sum(parts.values()) <= share.high, name
        assert share.high - share.low < 0.1
    assert found.hosts.mean + found.bridges.mean + found.exam.mean == pytest.approx(1)
    assert found.sd**2 == pytest.approx(sum(parts.values()), rel=0.1)
    assert found.shift is not None
    assert found.shift.low < 0.5 < found.shift.high
    unasked = nested_variance(first.tolist(), again.tolist(), draws=500)
    assert unasked.exam is None
    assert unasked.shift is None
    assert unasked.bridges.low <= 5 / 14 <= unasked.bridges.high
    with pytest.raises(ValueError, match="one for each of three hosts"):
        nested_variance([1.0, 2.0, 3.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="do not vary"):
        nested_variance([1.0] * 3, [1.0] * 3)
