"""The instruments that read a stuck training: a planted failure each must name, a healthy case it must pass."""

import math
from pathlib import Path

import pytest
import torch
from bridges.__main__ import main
from bridges.instruments.alignment import diagnose, spread
from bridges.instruments.attention import flatness
from bridges.instruments.chance import Printed, chance_recall, fitting_datasets, mean_chance_loss, read_loss, stuck
from bridges.instruments.factorial import effects
from bridges.instruments.gradients import gradient_flow
from bridges.instruments.probe import linear_probe, variance_share
from bridges.instruments.retrieval import ranks, recall
from bridges.tasks.loss_log import read_losses
from torch import nn
from torch.nn.functional import normalize

RECALLS = {1: Printed("0.03"), 5: Printed("0.17"), 10: Printed("0.34")}


def test_the_logs_digits_give_its_dataset() -> None:
    found = fitting_datasets(Printed("4.8036"), RECALLS, [2**i for i in range(1, 11)])
    assert [(f.batch, f.pairs, f.last_batch) for f in found] == [(128, 2984, 40)]
    assert mean_chance_loss(2984, 128) == pytest.approx((23 * math.log(128) + math.log(40)) / 24)
    others = {f.batch for f in fitting_datasets(Printed("4.8036"), RECALLS, range(2, 1025))}
    assert others == {123, 124, 125, 127, 128}, "among all batch sizes the solution is not unique"


def test_digits_that_chance_cannot_print_fit_nothing() -> None:
    assert fitting_datasets(Printed("4.8036"), RECALLS | {1: Printed("0.50")}, range(2, 1025)) == []
    assert fitting_datasets(Printed("1.1239"), RECALLS, range(2, 1025)) == []


def test_a_printed_number_stands_for_what_rounds_to_it() -> None:
    printed = Printed("0.34")
    assert printed.fits(0.3351)
    assert not printed.fits(0.3349)
    assert printed.misfit(0.36) == pytest.approx(2)


LINE = math.log(64)


@pytest.mark.parametrize(
    ("curve", "state"),
    [
        ([5.0] * 20 + [LINE] * 60, "at chance"),
        ([5.0 - i * 0.05 for i in range(80)], "learns"),
        ([4.0] * 20 + [2.0] * 20 + [LINE] * 40, "fell back to chance"),
        ([5.2] * 80, "above chance"),
        ([2.0] * 40 + [50.0] * 40, "diverged"),
        ([LINE] * 50 + [LINE - 3] + [LINE] * 50, "at chance"),
    ],
)
def test_a_loss_curve_is_read_against_its_line(curve: list[float], state: str) -> None:
    reading = read_loss(curve, 64)
    assert reading.state == state
    assert state in reading._repr_markdown_()
    assert read_loss([1.25 * x for x in curve], 64, weight=1.25).state == state


@pytest.mark.parametrize(
    ("losses", "batch", "message"),
    [([], 64, "empty"), ([1.0, math.nan], 64, "nan at step 1"), ([1.0], 1, "no negatives")],
)
def test_a_curve_that_cannot_be_read_is_refused(losses: list[float], batch: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_loss(losses, batch)


def test_the_step_at_which_a_curve_left_its_line_is_a_step_below_it() -> None:
    assert read_loss([LINE] * 50 + [0.0] * 50, 64).left_at == 50


def test_small_galleries_are_found_and_open_ones_refused() -> None:
    for pairs in range(2, 40):
        recalls = {k: Printed(f"{chance_recall(k, pairs):.2f}") for k in (1, 5, 10)}
        found = fitting_datasets(Printed(f"{mean_chance_loss(pairs, 16):.4f}"), recalls, [16])
        assert pairs in [f.pairs for f in found]
    with pytest.raises(ValueError, match="give one that is not zero"):
        fitting_datasets(Printed("4.85"), {1: Printed("0.00")}, [128])


def test_stuck_counts_what_is_not_a_number() -> None:
    assert stuck(math.nan, 32)
    assert stuck(math.log(32) - 0.04, 32)
    assert not stuck(math.log(32) - 0.06, 32)


def test_ties_make_constant_embeddings_look_perfect_or_at_chance_or_as_they_are() -> None:
    constant = normalize(torch.ones(40, 8), dim=-1)
    assert recall(constant, constant, (1,), ties="first").at == {1: 100}
    by_index = recall(constant, constant, (1, 5, 10), ties="index")
    assert by_index.at == pytest.approx({k: chance_recall(k, 40) for k in (1, 5, 10)})
    assert recall(constant, constant, (1, 5, 10)).at == {1: 0, 5: 0, 10: 0}
    assert ranks(constant, constant).unique().tolist() == [19.5]
    assert recall(constant, constant, (20, 21)).at == {20: 0, 21: 100}
    twice = normalize(torch.randn(10, 8), dim=-1).repeat(2, 1)
    assert recall(twice, twice, (1, 2)).at == {1: 0, 2: 100}


def test_a_lost_model_finds_nothing() -> None:
    lost = torch.full((20, 4), torch.nan)
    right = normalize(torch.randn(20, 4), dim=-1)
    for queries, gallery in ((lost, lost), (right, lost), (lost, right)):
        assert recall(queries, gallery, (1, 5)).at == {1: 0, 5: 0}


@pytest.mark.parametrize(("width", "count"), [(24, 129), (512, 257), (7, 130), (32, 128)])
def test_equal_rows_tie_however_many_there_are(width: int, count: int) -> None:
    torch.manual_seed(0)
    constant = normalize(torch.randn(1, width), dim=-1).repeat(count, 1)
    assert recall(constant, constant, (1,), ties="index").at[1] == pytest.approx(100 / count)


def test_right_pairs_are_found_and_chance_is_printed_beside() -> None:
    rows = normalize(torch.randn(30, 16), dim=-1)
    found = recall(rows, rows, (1, 5))
    assert found.at == {1: 100, 5: 100}
    assert found.chance == pytest.approx({1: 100 / 30, 5: 500 / 30})
    assert "30 candidates" in found._repr_markdown_()
    with pytest.raises(ValueError, match="30 queries against 29"):
        ranks(rows, rows[1:])


def test_effects_are_the_ones_planted() -> None:
    a, b, c = torch.meshgrid(*[torch.tensor([0.0, 1.0])] * 3, indexing="ij")
    planted = 3 * a - 2 * b + 4 * a * c
    response = planted[..., None] + torch.tensor([-0.1, 0.0, 0.1])
    found = effects(response, ["a", "b", "c"])
    means = {"".join(names): e.mean for names, e in found.of.items()}
    assert means == pytest.approx({"a": 5, "b": -2, "c": 2, "ab": 0, "ac": 2, "bc": 0}, abs=1e-6)
    assert "a × c" in found._repr_markdown_()
    with pytest.raises(ValueError, match="2 factors need a response of shape"):
        effects(response, ["a", "b"])


def test_gradient_flow_names_the_dead_and_leaves_gradients_alone() -> None:
    model = nn.ModuleDict({"used": nn.Linear(3, 1), "idle": nn.Linear(3, 1)})
    inputs = torch.randn(8, 3)
    flow = gradient_flow(model.named_parameters(), lambda: model["used"](inputs).square().mean())
    assert flow.dead == ("idle.weight", "idle.bias")
    assert flow.norm("used") == pytest.approx(flow.norm())
    assert "dead" in flow._repr_markdown_()
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(ValueError, match="one finite number"):
        gradient_flow(model.named_parameters(), lambda: model["used"](inputs))
    with pytest.raises(ValueError, match="everything is frozen"):
        gradient_flow(model.requires_grad_(False).named_parameters(), lambda: inputs.sum())


def test_flatness_runs_from_one_key_alone_to_all_alike() -> None:
    assert flatness(torch.full((2, 3, 5), 0.2)) == pytest.approx(1)
    assert flatness(torch.eye(5)) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="one key"):
        flatness(torch.ones(2, 1))
    with pytest.raises(ValueError, match="sum to 1"):
        flatness(torch.ones(2, 3))
    with pytest.raises(ValueError, match="shares"):
        flatness(torch.tensor([[2.0, -1.0]]))
    half = (torch.randn(4, 300) * 8).softmax(-1)
    assert flatness(half.half()) == pytest.approx(flatness(half), abs=1e-2)


def test_a_probe_finds_what_is_there_and_nothing_else() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(200, 20)
    targets = inputs @ torch.randn(20, 5) + torch.randn(200, 5)
    there, shuffled = linear_probe(inputs, targets), linear_probe(inputs, targets[torch.randperm(200)])
    assert there.found
    assert there.r2 > 0.8
    assert not shuffled.found
    wide = torch.randn(100, 3000)
    assert not linear_probe(wide, torch.randn(100, 4)).found
    with pytest.raises(ValueError, match="at least eight"):
        linear_probe(inputs[:4], targets[:4])
    with pytest.raises(ValueError, match="not finite"):
        linear_probe(inputs * torch.inf, targets)
    loud = torch.cat([inputs, 1000 * torch.randn(200, 1)], 1)
    assert linear_probe(loud, targets).r2 > 0.8, "one loud feature must not drown the others"


def test_a_label_can_be_there_and_faint() -> None:
    torch.manual_seed(0)
    labels = torch.arange(300) % 3
    states = torch.randn(300, 4)
    assert variance_share(torch.eye(3)[labels], labels) == pytest.approx(1)
    assert variance_share(states, labels) < 0.05
    states[:, 0] = labels.float()
    drowned = torch.cat([states, 100 * torch.randn(300, 1)], 1)
    assert variance_share(states, labels) > 0.1
    assert variance_share(drowned, labels) < 0.02
    assert linear_probe(drowned, labels[:, None].float()).r2 > 0.95, "the probe hears it all the same"
    with pytest.raises(ValueError, match="one label to each"):
        variance_share(states, labels[:-1])
    with pytest.raises(ValueError, match="do not vary"):
        variance_share(torch.ones(4, 2), torch.arange(4))


def test_a_probe_seldom_finds_what_is_not_there() -> None:
    draw = torch.Generator().manual_seed(1)
    false = sum(
        linear_probe(torch.randn(60, 10, generator=draw), torch.randn(60, 3, generator=draw), seed).found
        for seed in range(40)
    )
    assert false <= 4  # 1 in 41 by construction


class TestDiagnosis:
    """From the curve alone, and with the inputs; the real trainings stand in the chapter on the stuck loss."""

    at_chance = (5.0, 4.5, *[LINE] * 60)

    def setup_method(self) -> None:
        torch.manual_seed(0)
        self.patches = torch.randn(100, 9, 12)
        self.text = self.patches.mean(1) @ torch.randn(12, 7)

    def test_the_curve_leaves_four_candidates(self) -> None:
        found = diagnose(self.at_chance, 64)
        assert found.candidates == ("collapse", "constant text", "constant image", "shuffled pairs")

    def test_a_healthy_curve_is_let_pass(self) -> None:
        assert diagnose([5 - 0.05 * i for i in range(80)], 64).candidates == ("healthy",)

    def test_inputs_tell_them_apart(self) -> None:
        def named(patches: torch.Tensor, text: torch.Tensor) -> str:
            return str(diagnose(self.at_chance, 64, inputs=(patches, text)))

        assert named(self.patches, self.text) == "collapse"
        assert named(self.patches, self.text[:1].expand(100, -1)) == "constant text"
        assert named(self.patches[:1].expand(100, -1, -1), self.text) == "constant image"
        assert named(self.patches, self.text.flip(0)) == "shuffled pairs"
        assert named(self.patches, torch.zeros_like(self.text)) == "constant text"
        assert named(self.patches + 1000, self.text) == "collapse"
        loud = self.patches.clone()
        loud[..., 0] = loud[..., 0] * 3000 + 5000
        assert named(loud, (loud.mean(1) / loud.mean(1).std(0)) @ torch.randn(12, 7)) == "collapse"
        broken = self.text.clone()
        broken[3, 0] = torch.nan
        with pytest.raises(ValueError, match="row 3 holds a value that is not finite"):
            named(self.patches, broken)

    def test_a_curve_that_does_not_move_is_frozen_and_one_that_falls_is_early(self) -> None:
        noise = torch.randn(80, generator=torch.Generator().manual_seed(2)) * 0.2
        assert diagnose((5.5 + noise).tolist(), 64).candidates == ("frozen",)
        assert diagnose([9.0] * 80, 64).candidates == ("frozen",)
        assert diagnose(torch.linspace(5, 9, 80).tolist(), 64).candidates == ("diverged",)
        with pytest.raises(ValueError, match="one value is no curve"):
            diagnose([9.0], 64)
        falling = torch.linspace(7, 5, 80) + noise
        assert diagnose(falling.tolist(), 64).candidates == ("too early to tell",)

    def test_spread_is_zero_for_one_vector_only(self) -> None:
        assert spread(torch.ones(10, 4)) == pytest.approx(0, abs=1e-12)
        assert spread(torch.randn(500, 4)) > 0.9


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "step,loss\n0,4.9\n1,4.8\n"),
        ("bom.csv", "\ufeffloss, step\n4.9, 0\n\n4.8, 1\n"),
        ("a.jsonl", '{"step": 0, "loss": 4.9}\n{"step": 1, "loss": 4.8}\n'),
        ("a.ndjson", '{"loss": 4.9, "note": "\u2028"}\n\n{"eval_loss": 1.0}\n{"loss": 4.8}\n\n'),
    ],
)
def test_a_loss_log_is_read(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_losses(tmp_path / name) == [4.9, 4.8]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "step,loss\n0,4.9\n1,nan\n", "line 3: loss is 'nan', not a finite number"),
        ("a.csv", "step,loss\n0,4.9\n\n\n1,nan\n", "line 5: loss is 'nan', not a finite number"),
        ("a.csv", "step,total\n0,4.9\n", "looked for a column or key of the name loss"),
        ("a.csv", "step,loss\n", "holds no losses"),
        ("a.jsonl", '{"loss": 4.9}\n{"loss"\n', "line 2: no JSON"),
        ("a.jsonl", '{"loss": 4.9}\n{"loss": null}\n', "line 2: loss is None"),
    ],
)
def test_a_broken_loss_log_is_named_with_its_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_losses(tmp_path / name)
    with pytest.raises(ValueError, match="is not there"):
        read_losses(tmp_path / "gone.csv")


def test_the_command_line_reads_a_loss_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.csv"
    log.write_text("step,loss\n" + "\n".join(f"{i},{1.25 * LINE}" for i in range(40)))
    command = ["bridges", "checkup", "--loss", str(log), "--batch-size", "64", "--weight", "1.25"]
    monkeypatch.setattr("sys.argv", command)
    assert main() == 0
    told = capsys.readouterr().out.split("\n")
    assert told[0] == "collapse or constant text or constant image or shuffled pairs"
    assert told[1].strip().startswith("at chance: first 4.159")
    monkeypatch.setattr("sys.argv", [*command[:3], str(tmp_path / "gone.csv"), *command[4:]])
    assert main() == 1
    assert "gone.csv is not there" in capsys.readouterr().err
