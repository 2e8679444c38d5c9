"""The check-up during a training: what it logs and warns of, and that the training goes on as it would without it."""

import json
import runpy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bridges.instruments.callback import LOGGED, BridgeCheckup, readings_of
from bridges.instruments.checkup import checkup
from bridges.instruments.report import FAULTS, Reading, Report
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import CLIPConfig, CLIPModel, Trainer, TrainerCallback, TrainingArguments

ROOT = Path(__file__).parents[2]
PROJECTOR = "model.multi_modal_projector"


class Samples(Dataset[dict[str, Tensor]]):
    def __init__(self, batch: dict[str, Tensor], count: int):
        self.batch, self.count = batch, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {name: x[i] for name, x in self.batch.items()}


def llava() -> tuple[nn.Module, dict[str, Tensor]]:
    """The example's model, with what a check-up could disturb: dropout, and statistics of a norm."""
    made = runpy.run_path(str(ROOT / "book" / "examples" / "my_llava.py"))
    model = made["model"]
    projector = model.get_submodule(PROJECTOR)
    projector.act = nn.Sequential(nn.GELU(), nn.Dropout(0.1), Averaged())
    return model, {name: x[:16] for name, x in made["batch"].items()}


class Averaged(nn.Module):
    """Takes a running mean away, which training mode moves."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(48))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.lerp_(x.detach().flatten(0, -2).mean(0), 0.1)
        return x - self.mean


def trained(
    folder: Path, model: nn.Module, batch: dict[str, Tensor], callbacks: list[TrainerCallback], **change: Any
) -> Trainer:
    settings: dict[str, Any] = {"max_steps": 4, "logging_steps": 2, "learning_rate": 1e-3}
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=8,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        seed=3,
        **(settings | change),
    )
    trainer = Trainer(model, arguments, train_dataset=Samples(batch, 16), callbacks=callbacks)
    trainer.train()
    return trainer


def test_training_is_bit_for_bit_what_it_is_without(tmp_path: Path) -> None:
    ends, draws = [], []
    for watched in (False, True):
        model, batch = llava()
        callback = BridgeCheckup(batch, every=2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trained(tmp_path, model, batch, [callback] if watched else [])
        ends.append({name: x.clone() for name, x in model.state_dict().items()})
        draws.append((torch.rand(2).tolist(), float(np.random.rand())))  # beartype itself draws of Python's
        assert model.training
        assert (callback.report is not None) == watched
    assert draws[0] == draws[1]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert ends[0][f"{PROJECTOR}.act.2.mean"].any()


def test_readings_stand_beside_the_loss_and_a_fault_is_warned_of_once(tmp_path: Path) -> None:
    model, batch = llava()
    printed: list[dict[str, Any]] = []

    class Prints(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            printed.append(dict(logs))

    callback = BridgeCheckup(batch, every=2)
    with pytest.warns(UserWarning, match=r"^step 2: input that is not used\. To try: train longer") as seen:
        trainer = trained(tmp_path, model, batch, [callback, Prints()], logging_steps=1)
    told = [str(w.message) for w in seen if str(w.message).startswith("step ")]
    assert len(told) == len({text.partition(": ")[2] for text in told}) == len(callback.warned)
    logged = {line["step"]: line for line in trainer.state.log_history if "checkup_faults" in line}
    assert list(logged) == [2, 4]
    assert all({"loss", "checkup_gap", "checkup_rms_ratio", "checkup_gradient_share"} <= set(logged[s]) for s in logged)
    assert logged[2]["checkup_gradient_share"] == 1
    assert callback.report is not None
    assert logged[4]["checkup_faults"] == len(callback.report.faults)
    assert [line["checkup_gap"] for line in printed if "checkup_gap" in line] == [
        logged[step]["checkup_gap"] for step in (2, 4)
    ]
    found = {reading.what: reading for reading in callback.report.readings}
    assert found["moved since before"].fault == ""
    assert found["parameters outside the optimiser"].found.startswith("0 of 4")
    # A linear schedule ends at a rate of zero, which is no fault: the last step was taken at another.
    assert found["rate of its groups"].found.endswith("zero for 0")
    json.dumps(trainer.state.log_history)


def test_with_the_trainer_at_hand_all_that_it_reports_to_gets_a_line(tmp_path: Path) -> None:
    model, batch = llava()
    printed: list[dict[str, Any]] = []

    class Reports(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            printed.append(dict(logs))

    class Late(BridgeCheckup):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.trainer = made[0]
            super().on_train_begin(args, state, control, **kwargs)

    made: list[Any] = []

    class Noted(Trainer):
        def __init__(self, *given: Any, **named: Any):
            super().__init__(*given, **named)
            made.append(self)

    own = TrainingArguments(
        str(tmp_path), max_steps=2, report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True, logging_steps=2
    )
    trainer = Noted(model, own, train_dataset=Samples(batch, 16), callbacks=[Reports(), Late(batch, every=2)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    assert sum("checkup_gap" in line for line in printed) == 1
    assert sum("checkup_gap" in line for line in trainer.state.log_history) == 1


def test_parameters_left_out_of_the_optimiser_and_a_rate_of_zero_are_told_but_a_warm_up_is_not(tmp_path: Path) -> None:
    model, batch = llava()
    projector = model.get_submodule(PROJECTOR)
    before = torch.optim.AdamW([projector.linear_1.weight, projector.linear_1.bias], lr=1e-3)
    callback = BridgeCheckup(batch, every=2)
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=2,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    with pytest.warns(UserWarning, match=r"^step 2: ") as seen:
        Trainer(
            model,
            arguments,
            train_dataset=Samples(batch, 16),
            callbacks=[callback],
            optimizers=(before, torch.optim.lr_scheduler.ConstantLR(before, 1.0)),
        ).train()
    assert str(seen[0].message).startswith("step 2: parameters outside the optimiser. To try: build the optimiser")
    for change, named in (({"learning_rate": 0.0}, True), ({"warmup_steps": 1000, "max_steps": 2000}, False)):
        model, batch = llava()

        class Stops(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                control.should_training_stop = state.global_step >= 2

        callback = BridgeCheckup(batch, every=2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trained(tmp_path, model, batch, [callback, Stops()], **change)
        assert ("a rate of zero" in callback.warned) == named
        assert ("parameters that did not move" in callback.warned) == named


def test_what_cannot_be_checked_up_is_refused_at_the_start_and_stops_no_training_later(tmp_path: Path) -> None:
    model, batch = llava()
    with pytest.raises(ValueError, match=r"has no part 'model\.projector'"):
        trained(tmp_path, model, batch, [BridgeCheckup(batch, "model.projector")])
    with pytest.raises(ValueError, match="every 0 steps: give a positive number"):
        BridgeCheckup(batch, every=0)
    callback = BridgeCheckup(batch, every=1, labels=batch["labels"][1:])
    with pytest.warns(UserWarning, match="no check-up from step 1 on: samples: 16, 15"):
        trainer = trained(tmp_path, model, batch, [callback])
    assert trainer.state.global_step == 4
    assert callback.report is None


def test_two_sides_are_checked_up_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = CLIPConfig(
        text_config=small | {"vocab_size": 60, "eos_token_id": 59, "max_position_embeddings": 16},
        vision_config=small | {"image_size": 16, "patch_size": 8},
        projection_dim=16,
    )
    batch = {"input_ids": torch.randint(3, 58, (32, 8)), "pixel_values": torch.randn(32, 3, 16, 16)}
    batch["input_ids"][:, -1] = 59

    class Returns(CLIPModel):
        def forward(self, input_ids: Tensor, pixel_values: Tensor) -> Any:
            return super().forward(input_ids, pixel_values, return_loss=True)

    callback = BridgeCheckup(batch, every=2)
    with pytest.warns(UserWarning, match=r"^step 2: held-out pairs at chance"):
        trainer = trained(tmp_path, Returns(config), batch, [callback], max_steps=2)
    assert any("checkup_recall" in line for line in trainer.state.log_history)


def test_readings_of_every_report_have_the_names_that_are_logged() -> None:
    model, batch = llava()
    found = readings_of(checkup(model.eval(), batch))
    assert set(found) == set(LOGGED) - {"checkup_recall"} | {"checkup_faults"}
    rows = (Reading("parameters without gradient", "25%", ""), Reading("conditioning gap (nats)", "-1e-05 [0, 0]", ""))
    assert readings_of(Report(rows)) == {"checkup_gradient_share": 0.75, "checkup_gap": -1e-05, "checkup_faults": 0}
    assert FAULTS
