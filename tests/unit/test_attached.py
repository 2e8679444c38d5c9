"""The check-up on models as people have them: where connectors are found, what is refused, what is left as it was."""

import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from bridges.instruments.attached import attach
from bridges.instruments.batches import take
from bridges.instruments.checkup import checkup
from bridges.instruments.labels import label_readings
from bridges.instruments.places import LAYOUTS as PATHS
from bridges.instruments.report import FAULTS
from bridges.planted.layout_cases import count
from bridges.planted.layouts import LAYOUTS, attributes, drawn, train
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

# transformers and PEFT warn of their own use of each other.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
WORDS, WIDTH, SAMPLES = 12, 16, 120


class Own(nn.Module):
    """A model of nobody's library: features through a connector into a host that says one word."""

    def __init__(self, calls: int = 1, through: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vision = nn.ModuleDict({"projector": nn.Linear(WIDTH, WIDTH)})
        self.drop, self.head = nn.Dropout(0.0), nn.Linear(WIDTH, WORDS)
        self.calls, self.through = calls, through

    def forward(self, features: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        project = self.vision["projector"]
        for _ in range(self.calls):
            if self.through and self.training:
                read = features.detach().requires_grad_(self.through == "reentrant, reads what is trained")
                tokens = checkpoint(project, read, use_reentrant=self.through.startswith("reentrant"))
            else:
                tokens = project(features)
        logits = self.head(self.drop(tokens))
        return {"logits": logits} if labels is None else {"loss": cross_entropy(logits, labels[:, 0])}


def batch() -> dict[str, Tensor]:
    own = torch.Generator().manual_seed(0)
    labels = torch.randint(WORDS, (SAMPLES, 1), generator=own)
    table = torch.randn(WORDS, WIDTH, generator=own)
    return {"features": table[labels[:, 0]] + 0.1 * torch.randn(SAMPLES, WIDTH, generator=own), "labels": labels}


def taught(model: nn.Module | None = None) -> tuple[nn.Module, dict[str, Any]]:
    model = model or Own()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    losses, optimizer = train(model, batch(), 60, 1e-2, 0)
    return model, {"log": losses, "optimizer": optimizer, "before": before}


def hooks(model: nn.Module) -> list[Any]:
    """Those of the check-up: transformers leaves some of its own."""
    kinds = [kind for part in model.modules() for kind in (part._forward_hooks, part._forward_pre_hooks)]
    found = [hook for kind in kinds for hook in kind.values()]
    return [hook for hook in found if hook.__module__.startswith("bridges")]


def names(model: nn.Module, given: dict[str, Any] | None = None) -> list[str]:
    return [fault.name for fault in checkup(model, batch(), "vision.projector", **(given or {})).faults]


@pytest.fixture(scope="module")
def healthy() -> tuple[nn.Module, dict[str, Any]]:
    return taught()


@pytest.mark.parametrize("name", LAYOUTS)
def test_three_lines_report_on_every_layout_untrained(name: str) -> None:
    layout = LAYOUTS[name]
    model = drawn(layout, 0)
    held = layout.batch(attributes(0)[1], torch.Generator().manual_seed(0))
    modes = [part.training for part in model.modules()]
    started = time.process_time()
    report = checkup(model, held)
    assert time.process_time() - started < 10
    assert len(report.readings) > 8
    assert report.missing
    if layout.kind == "generative":
        assert {fault.name for fault in report.faults} & {
            "input that is not used",
            "tokens that do not follow the input",
        }
    assert modes == [part.training for part in model.modules()]
    assert not hooks(model)
    assert all(p.grad is None for p in model.parameters())


def test_the_table_of_paths_is_that_of_the_layouts() -> None:
    generative = {layout.name for layout in LAYOUTS.values() if layout.kind != "contrastive"}
    assert len(PATHS) == len(generative) - 1  # prompt and prefix tuning are one class


def test_a_prompt_that_was_loaded_to_be_used_is_measured_too() -> None:
    layout = LAYOUTS["prompt tuning"]
    model = drawn(layout, 0)
    model.active_peft_config.inference_mode = True
    held = layout.batch(attributes(0)[1], torch.Generator().manual_seed(0))
    assert checkup(model, held).readings
    assert model.active_peft_config.inference_mode


def test_a_model_of_ones_own_is_healthy_under_any_chunk(healthy: tuple[nn.Module, dict[str, Any]]) -> None:
    model, given = healthy
    assert not names(model, given)
    assert not checkup(model, batch(), "vision.projector", chunk=7).faults
    assert not checkup(model, batch(), ["vision.projector"]).faults


def test_what_cannot_be_found_is_told_with_what_is_there() -> None:
    with pytest.raises(ValueError, match=r"where Own keeps its connector is not known: .* such as vision.projector"):
        checkup(Own(), batch())
    with pytest.raises(ValueError, match=r"Own has no part 'projector': .* at its top: vision, drop, head"):
        checkup(Own(), batch(), "projector")
    with pytest.raises(ValueError, match=r"give a batch of held-out samples too"):
        checkup(Own())


def test_a_call_that_does_not_fit_is_told() -> None:
    b = batch()
    with pytest.raises(ValueError, match="put labels into the batch"):
        checkup(Own(), {"features": b["features"]}, "vision.projector")
    with pytest.raises(ValueError, match="features has 119 rows for 120 samples"):
        checkup(Own(), b | {"features": b["features"][1:]}, "vision.projector")
    with pytest.raises(ValueError, match="was called 2 times in one call"):
        checkup(Own(calls=2), b, "vision.projector")
    with pytest.raises(ValueError, match="was not called"):
        checkup(Own(calls=1), b, "vision")
    with pytest.raises(ValueError, match="holds no tensor"):
        attach(Own(), {}, "vision.projector")


def test_samples_are_taken_with_all_their_places() -> None:
    whole = {"labels": torch.arange(4)[:, None], "patches": torch.arange(8), "texts": list("abcd"), "flag": True}
    found = take(whole, torch.tensor([2, 0]))
    assert found["patches"].tolist() == [4, 5, 0, 1]
    assert found["texts"] == ["c", "a"]
    assert found["flag"] is True


def test_an_error_in_the_models_call_leaves_no_hook_and_no_mode() -> None:
    model = Own()
    model.vision.eval()
    modes = [part.training for part in model.modules()]
    with pytest.raises(IndexError):
        checkup(model, batch() | {"labels": torch.full((SAMPLES, 1), WORDS)}, "vision.projector")
    assert modes == [part.training for part in model.modules()]
    assert not hooks(model)


def test_a_checkpoint_that_lets_no_gradient_through_is_told(healthy: tuple[nn.Module, dict[str, Any]]) -> None:
    none = ["no gradient in training mode"]
    for through, expected in (("reentrant", none), ("reentrant, reads what is trained", []), ("not so", [])):
        model = Own(through=through)
        model.load_state_dict(healthy[0].state_dict())
        assert names(model.eval()) == expected, through
        model.head.requires_grad_(False)
        assert names(model) == expected, through


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_host_that_is_checkpointed_behind_its_connector_is_healthy(reentrant: bool) -> None:
    layout = LAYOUTS["LLaVA"]
    model = drawn(layout, 0)
    which, others = attributes(0)
    own = torch.Generator().manual_seed(0)
    train(model, layout.batch(which, own), layout.steps, layout.rate, 0)
    for name, p in model.named_parameters():
        p.requires_grad_("projector" in name)
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model.config.use_cache = False
    assert not checkup(model, layout.batch(others, own)).faults


def test_the_optimiser_is_read(healthy: tuple[nn.Module, dict[str, Any]]) -> None:
    model, given = healthy
    connector = list(model.vision.parameters())
    for optimizer, name in (
        (torch.optim.AdamW(model.head.parameters()), "parameters outside the optimiser"),
        (torch.optim.AdamW(deepcopy(model).parameters()), "parameters outside the optimiser"),
        (torch.optim.AdamW(connector, lr=0.0), "a rate of zero"),
        (torch.optim.AdamW(connector, lr=1e-9), "parameters that did not move"),
    ):
        assert names(model, {"optimizer": optimizer, "log": given["log"]}) == [name]
    # A schedule that has ended brought a training to its end, or a resumed one to nothing.
    assert given["optimizer"].param_groups[0]["lr"] == 0
    assert not names(model, given)
    flat = [2.5 + 0.01 * x for x in torch.randn(80, generator=torch.Generator().manual_seed(0)).tolist()]
    assert names(model, {"optimizer": given["optimizer"], "log": flat})[0] == "a rate of zero"
    begun = torch.optim.AdamW(connector)
    torch.optim.lr_scheduler.LambdaLR(begun, lambda step: step / 10)
    assert "a rate of zero" not in names(Own(), {"optimizer": begun})


def test_weight_decay_counts_on_gates_and_temperatures() -> None:
    class Gated(Own):
        def __init__(self) -> None:
            super().__init__()
            self.vision["projector"].register_parameter("gate", nn.Parameter(torch.ones(1)))

    model = Gated()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    assert "weight decay on gates" in names(model, {"optimizer": optimizer})
    clip = drawn(LAYOUTS["CLIP"], 0)
    held = LAYOUTS["CLIP"].batch(attributes(0)[1], torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW([p for p in clip.parameters() if p.requires_grad], weight_decay=0.1)
    report = checkup(clip, held, optimizer=optimizer, before=clip.state_dict())
    assert {"weight decay on gates", "parameters that did not move"} <= {fault.name for fault in report.faults}


def test_what_was_before_tells_what_has_moved(healthy: tuple[nn.Module, dict[str, Any]]) -> None:
    model, given = healthy
    assert not names(model, {"before": given["before"]})
    assert names(model, {"before": model.state_dict()}) == ["parameters that did not move"]
    zero = {name: torch.zeros_like(x) for name, x in given["before"].items()}
    assert not names(model, {"before": zero}), "a projector may start at zero, as that of Gemma 3 does"
    with pytest.raises(ValueError, match="before holds none of the connector's parameters"):
        checkup(model, batch(), "vision.projector", before={"other": torch.ones(2)})


def test_a_log_tells_a_connector_that_is_not_its_own(healthy: tuple[nn.Module, dict[str, Any]]) -> None:
    model, given = healthy
    mixed = deepcopy(model)
    mixed.vision["projector"].reset_parameters()
    assert names(mixed, {"log": given["log"]})[0] == "connector is not the trained one"
    assert not names(mixed.eval()) or names(mixed)[0] != "connector is not the trained one"


def test_labels_that_repeat_their_end_are_padding() -> None:
    own = torch.Generator().manual_seed(0)
    said = torch.cat([torch.randint(5, 50, (64, 6), generator=own), torch.full((64, 1), 2)], 1)
    ragged = said.clone()
    ragged[::2, -1] = -100
    ragged[::2, -2] = 2

    def raised(labels: Tensor) -> list[str]:
        return [reading.fault for reading in label_readings(labels) if reading.fault]

    assert not raised(said)
    assert not raised(ragged)
    assert raised(torch.cat([said, torch.zeros(64, 4).long()], 1)) == ["padding is supervised"]
    assert raised(torch.cat([said, torch.full((64, 4), 2)], 1)) == ["padding is supervised"]


@pytest.mark.parametrize("name", ["LLaVA", "VisionEncoderDecoder", "prompt tuning", "SigLIP"])
def test_planted_faults_are_named_first(name: str, tmp_path: Path) -> None:
    """All layouts are counted over seeds by hand; what came out stands in book/reference/checkup_layouts.csv."""
    rows = count(tmp_path / "rows.csv", [name], [200])
    assert [row["planted"] for row in rows].count("") == 1
    assert {fault for row in rows for fault in row["names"].split("|") if fault} <= FAULTS.keys()
    wrong = [row for row in rows if row["first"] not in row["names"].split("|")]
    # What the check-up cannot see: labels of a decoder that reads them itself; what does a prompt little harm; and what
    # a prompt is taught by a loss at the wrong place, where its frozen host has not learnt to say it.
    unseen = {
        "VisionEncoderDecoder": {"labels shifted twice"},
        "prompt tuning": {"end masked", "tokens times 0.03125", "tokens times 32", "answers read"},
    }
    assert {row["planted"] for row in wrong} <= unseen.get(name, set()), wrong
    assert not count(tmp_path / "rows.csv", [name], [200]), "what is there is not made again"
    assert len(count(tmp_path / "rows.csv", [name], [201], healthy_alone=True)) == 1
