"""Small runs with a planted fault, the check-up on them, and the table that stands it beside other diagnosers."""

from pathlib import Path

import pytest
import torch
from bridges.instruments.report import FAULTS
from bridges.planted import others, peers, small
from bridges.planted.names import NAMES, names
from bridges.planted.small_hosts import EOS, PAD, world


def test_what_is_drawn_is_padded_on_the_side_that_was_asked_for() -> None:
    left, right = world(20, 5), world(20, 5, "right")
    assert bool((left.sentences[:, -1] == EOS).all())
    assert torch.equal(left.mask.sum(1), right.mask.sum(1))
    assert bool((left.prompts[left.mask == 0] == PAD).all())
    assert bool((left.mask[:, -1] == 1).all())
    assert bool((right.mask[:, 0] == 1).all())


def test_every_tool_is_asked_of_faults_that_are_planted_and_the_check_up_of_faults_that_it_knows() -> None:
    planted = small.PLANTED | small.THEIRS
    assert NAMES.keys() == others.TOOLS.keys()
    assert all(fault in planted for own in NAMES.values() for fault in own)
    assert {thing for told in NAMES["check-up"].values() for thing in told} <= FAULTS.keys()
    assert names("torch-audit", "gates shut", "TA103 projector.into")
    assert not names("torch-audit", "gates shut", "TA103 host.lm_head")


def test_the_check_up_names_what_is_planted_in_a_pair_and_passes_the_healthy_one(tmp_path: Path) -> None:
    well = peers.look("check-up", "pair", "", 50, tmp_path)
    assert (well.first, well.level) == ("", "none")
    ill = peers.look("check-up", "pair", "embeddings not normalised", 50, tmp_path)
    assert (ill.named, ill.first) == (1, "embeddings not of unit length")
    still = peers.look("check-up", "pair", "rate of zero", 50, tmp_path)
    assert still.named == 1
    assert float(still.loss) > float(well.loss)


def test_rows_are_kept_and_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, str, str, int]] = []

    def look(name: str, host: str, planted: str, seed: int, hosts: Path) -> peers.Row:
        made.append((name, host, planted, seed))
        harm = "1.0" if planted else "0.1"
        return peers.Row(name, "", host, seed, planted, planted, int(bool(planted)), 1, "error", planted, harm, 0.5)

    monkeypatch.setattr(peers, "look", look)
    out = tmp_path / "peers.csv"
    given = ["--out", str(out), "--tools", "check-up", "--seeds", "1", "--healthy", "2"]
    peers.main(given)
    count = sum(map(len, (small.PLANTED | small.THEIRS).values())) + len(small.PLANTED[""])
    assert len(made) == count
    peers.main(given)
    assert len(made) == count
    kept = peers.read(out)
    assert len(kept) == count
    assert ("t5", "gates shut") in peers.harmful(kept)
    assert "6 of 6 (61 to 100 %)" in peers.table(kept)
    assert "| gates shut | llama, t5 | 2 of 2 | 0 of 0 |" in peers.by_fault(kept)


def test_a_tool_that_is_not_installed_is_named_with_the_command_that_installs_it() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"no-such-tool is not installed: pip install no-such-tool==1\.0"):
        others.tool("no-such-tool", "1.0")


def test_a_fault_that_cannot_be_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'gates shut' cannot be planted in 'pair'; it can in llama, t5"):
        small.run("pair", "gates shut", 0, tmp_path)
