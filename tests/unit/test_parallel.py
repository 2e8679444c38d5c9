"""Two processes under `accelerate launch` train as one does on the same global batches. Launched, this file trains."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bridges.training.fit import FitSettings, Group, History, fit
from bridges.training.losses import info_nce
from bridges.training.parallel import Parallel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout, normalize

INPUTS, OTHERS = torch.randn(2, 48, 12, generator=torch.Generator().manual_seed(0))
LENGTHS = torch.arange(48) % 6 + 1  # tokens of each sample
LABELS = torch.arange(48 * 6).view(48, 6).remainder(5).masked_fill(torch.arange(6) >= LENGTHS[:, None], -100)
SETTINGS = FitSettings(20, lr=0.02, batch=8, warmup=3, clip=0.5, groups=(Group("late.", start=7),), every=5)


class Model(nn.Module):
    def __init__(self, rank: int):
        super().__init__()
        torch.manual_seed(rank)  # the main process's values are everybody's
        self.tower, self.other, self.late = nn.Linear(12, 30), nn.Linear(12, 30), nn.Linear(30, 30)
        self.scale, self.idle = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.ones(3))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.late(self.tower(inputs).tanh())


def train(task: str, parallel: Parallel, keep: Path | None = None, stop: int = -1) -> tuple[Model, History]:
    model, step = Model(parallel.rank), 0

    def batch_loss(rows: Tensor) -> Tensor:
        nonlocal step
        step += 1
        if step == stop:
            os.kill(os.getpid(), signal.SIGKILL)
        out = model(INPUTS[rows])
        if task == "contrastive":
            image, text = normalize(out, dim=-1), normalize(model.other(OTHERS[rows]), dim=-1)
            return info_nce(parallel.gather(image), parallel.gather(text), model.scale.exp())
        if task == "dropout":
            return (dropout(out, 0.5) - 1).square().mean()
        labels = LABELS[rows]
        total = cross_entropy(out.view(-1, 5), labels.flatten(), ignore_index=-100, reduction="sum")
        lost = task == "lost" and step == 3 and parallel.rank == 1
        return parallel.mean(total / (0 if lost else 1), (labels >= 0).sum())

    def validate() -> float:
        return (dropout(model(INPUTS), 0.2).square().mean() + parallel.rank).item()

    look = validate if keep else None
    return model, fit(model, batch_loss, 48, SETTINGS, 3, validate=look, keep=keep, parallel=parallel)


def launched(folder: Path, script: str, *arguments: str, expected: int = 0) -> str:
    """What two processes said that the launcher started; each writes a file into the folder."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]
    command += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
    env = {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"} | os.environ
    ran = subprocess.run(
        [*command, __file__, script, str(folder), *arguments], env=env, capture_output=True, text=True, timeout=60
    )
    assert (ran.returncode == 0) == (expected == 0), ran.stderr
    return ran.stderr


def as_written(model: Model, history: History) -> dict[str, list[float]]:
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    return {"losses": history.losses, "validation": list(history.validation.values()), "weights": weights.tolist()}


def read(folder: Path, name: str) -> list[dict[str, list[float]]]:
    return [json.loads((folder / f"{name}.{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    launched(folder, "all")
    return folder


@pytest.mark.parametrize("task", ["tokens", "contrastive"])
def test_two_processes_train_as_one_does(task: str, together: Path) -> None:
    alone = as_written(*train(task, Parallel()))
    first, second = read(together, task)
    assert first == second
    assert len(alone["losses"]) == 20
    for what in ("losses", "weights"):
        torch.testing.assert_close(first[what], alone[what], rtol=0, atol=1e-5)
    assert max(alone["losses"]) - min(alone["losses"]) > 0.1


def test_what_no_process_has_a_gradient_for_stays_as_it_was(together: Path) -> None:
    """`idle` is never used: with gradients of zero in place of none, weight decay would move it."""
    ours = read(together, "tokens")[0]["weights"]
    places = dict(zip([n for n, p in Model(0).named_parameters() for _ in range(p.numel())], ours, strict=True))
    assert places["idle"] == 1


def test_a_killed_training_of_two_ends_as_if_it_had_not_been(together: Path, tmp_path: Path) -> None:
    launched(tmp_path, "dropout", "13", expected=1)
    assert not list(tmp_path.glob("*.json"))
    assert (tmp_path / "keep" / "last.safetensors").is_file()
    launched(tmp_path, "dropout")
    whole, again = read(together, "dropout"), read(tmp_path, "dropout")
    assert again == whole
    assert whole[0] == whole[1]
    assert min(whole[0]["validation"]) > 0.5, "the mean over the processes, not the main one's"
    with pytest.raises(ValueError, match=r"last\.safetensors was trained on another number of processes: take it away"):
        train("dropout", Parallel(), tmp_path / "keep")


def test_processes_have_masks_of_their_own(together: Path) -> None:
    a, b = (json.loads((together / f"mask.{rank}.json").read_text()) for rank in range(2))
    assert a != b


def test_what_cannot_be_shared_is_refused_on_every_process(together: Path) -> None:
    for rank in range(2):
        said = json.loads((together / f"refused.{rank}.json").read_text())
        assert said == [
            "a batch of 7 cannot be shared evenly by 2 processes: give a multiple of 2",
            "training: the loss is inf at step 2; lower the learning rate or look for infinities in the inputs",
        ]


def test_alone_everything_is_the_identity() -> None:
    parallel, rows = Parallel(), torch.arange(6.0, requires_grad=True)
    assert parallel.main
    assert parallel.share(rows).equal(rows)
    assert parallel.gather(rows) is rows
    assert parallel.average(rows) is rows
    assert parallel.mean(rows.sum(), 5) == 3
    assert Parallel.launched().world == 1


def test_processes_that_were_not_joined_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """`accelerate launch --multi_gpu` without GPUs starts two trainings that know nothing of each other."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"^2 processes were launched and each would train alone: [^\n]*$"):
        Parallel.launched()


def main(script: str, folder: Path, stop: int = -1) -> None:
    parallel = Parallel.launched()
    assert parallel.world == 2

    def write(name: str, what: object) -> None:
        (folder / f"{name}.{parallel.rank}.json").write_text(json.dumps(what))

    if script == "all":
        for task in ("tokens", "contrastive"):
            write(task, as_written(*train(task, parallel)))
        said = []
        for refused in (
            lambda: fit(nn.Linear(1, 1), torch.sum, 9, FitSettings(1, batch=7), 0, parallel=parallel),
            lambda: train("lost", parallel),
        ):
            try:
                refused()
            except (ValueError, FloatingPointError) as error:
                said.append(str(error))
        write("refused", said)
    write("dropout", as_written(*train("dropout", parallel, folder / "keep", stop)))
    write("mask", dropout(torch.ones(64)).tolist())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))
