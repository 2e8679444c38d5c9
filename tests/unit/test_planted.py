"""Other people's connectors behind one signature, and cases whose planted fault the check-up has to name."""

import pytest
import torch
from bridges.connectors.peers import PEERS, ClipVision
from bridges.instruments.checkup import checkup
from bridges.instruments.report import FAULTS
from bridges.planted.cases import Size
from bridges.planted.space import shared_space

WITH_MASKS = ("perceiver-pytorch", "Idefics2", "BLIP-2 Q-Former")


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_makes_tokens_of_sequences(name: str) -> None:
    torch.manual_seed(0)
    peer = PEERS[name](12, 16, 5, 8).eval()
    inputs = torch.randn(3, 7, 12)
    tokens = peer(inputs)
    assert tokens.shape == (3, 5, 8)
    tokens.sum().backward()
    assert all(p.grad is not None for name, p in peer.named_parameters() if name.startswith(("into", "out")))
    if name in WITH_MASKS:
        mask = torch.ones(3, 7).long()
        mask[:, :2] = 0
        other = inputs.clone()
        other[:, :2] = 9.0
        assert torch.allclose(peer(inputs, mask), peer(other, mask), atol=1e-6)
        assert not torch.allclose(peer(inputs), peer(other), atol=1e-3)


def test_clips_tower_sees_pixels() -> None:
    assert ClipVision(16, 8)(torch.rand(2, 3, 32, 32)).shape == (2, 17, 8)


def test_planted_faults_are_named_first_and_the_healthy_case_passes() -> None:
    """The chapter counts over connectors and seeds; here one connector shows that cases are what they say."""
    cases = list(shared_space(Size(samples=120, width=16, tokens=4, steps=120), range(200, 201), ["linear"]))
    assert [case.planted for case in cases].count("") == 1
    assert {name for case in cases for name in case.names} <= FAULTS.keys()
    wrong = [
        (case.planted, str(report))
        for case in cases
        if (report := checkup(case.bridge)).headline not in (case.names or ("nothing raised",))
    ]
    assert not wrong


def test_a_connector_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="connector 'linnear' is unknown; choose from PerceiverResampler, linear"):
        next(shared_space(Size(120, 16, 4, 10), range(1), ["linnear"]))
