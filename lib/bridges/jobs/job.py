"""A training from files on disk to a trained connector: what the three threads have in common."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bridges.jobs.estimate import duration, footprint, step_time
from bridges.training import checkpoints
from bridges.training.fit import FitSettings, Group, History, fit
from bridges.training.parallel import Parallel

SCHEDULES = ("linear", "cosine", "constant")
SETTINGS, LOSSES = "settings.json", "log.jsonl"
READ = 2**24  # bytes of a data file that are looked at to know it again


def told(default: Any, what: str, *, path: bool = False) -> Any:
    """A field of settings with what the command line says of it, and whether it is a file or folder of the reader's."""
    return field(default=default, metadata={"help": what, "path": path})


@dataclass(frozen=True)
class Training:
    """How long and how fast a connector is trained, in every thread."""

    batch_size: int = told(16, "samples in a batch, over all processes")
    learning_rate: float = told(5e-5, "highest learning rate of AdamW")
    warmup_steps: int = told(500, "steps in which the rate grows to its highest")
    schedule: str = told("linear", "of the rate after the warm-up: linear, cosine or constant")
    every: int = told(0, "steps from one validation and checkpoint to the next; 0 for one an epoch")
    seed: int = told(0, "of first values, batches and dropout")

    def __post_init__(self) -> None:
        positive, low = ("batch_size", "epochs", "steps", "longest"), ("every", "warmup_steps")
        for least, names in ((1, positive), (0, low)):
            for name in names:
                if (value := getattr(self, name, least)) < least:
                    raise ValueError(f"{name} is {value}: give at least {least}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}: give a positive number")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule {self.schedule!r} is unknown; choose from {', '.join(SCHEDULES)}")

    def fit(self, steps: int, every: int, groups: tuple[Group, ...] = ()) -> FitSettings:
        """The same as `fit` reads it; `every` is meant where the settings' own is 0."""
        return FitSettings(
            steps,
            self.learning_rate,
            self.batch_size,
            self.warmup_steps,
            schedule=self.schedule,  # type: ignore[arg-type]
            groups=groups,
            every=self.every or every,
        )


@dataclass(frozen=True)
class KeptRun:
    """A folder, what run it is for, and the processes that train together."""

    out: Path
    asked: dict[str, Any]
    parallel: Parallel

    def device(self, own: str) -> torch.device:
        """Where this process computes: on `own`, or where Accelerate has put it."""
        return self.parallel.device if self.parallel.world > 1 else torch.device(own)

    def take(self) -> None:
        """Write `settings.json`; not before hosts and data have been read, so that a slip of the pen claims nothing."""
        path = self.out / SETTINGS
        if self.parallel.main and not path.is_file():
            self.out.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(self.asked, indent=1) + "\n", encoding="utf-8")
            partial.replace(path)
        self.parallel.wait()


def claim(
    out: Path,
    thread: str,
    settings: Training,
    files: Sequence[Path],
    parallel: Parallel | None,
    chance: float | None = None,
) -> KeptRun:
    """See that a folder is free, or this run's already: the same thread, settings and data.

    `chance` is the loss of a connector that tells nothing, in nats, where there is such a line.

    Raises:
        ValueError: for a folder of another run, naming what is different.
    """
    data = {str(path): _known_by(path) for path in files}
    asked = json.loads(json.dumps({"thread": thread, "settings": asdict(settings), "data": data, "chance": chance}))
    path = out / SETTINGS
    if path.is_file():
        kept = read_run(path)
        if kept["thread"] != thread:
            raise ValueError(f"{out} holds a run of the thread {kept['thread']}: give another folder")
        for part in ("settings", "data"):
            for name in {**kept[part], **asked[part]}:
                old, new = (side[part].get(name) for side in (kept, asked))
                if old != new:
                    raise ValueError(
                        f"{out} holds another run, with {name} {old!r} and not {new!r}: give another folder, or that"
                        " run's own settings and data"
                    )
    elif (out / checkpoints.LAST).is_file():
        raise ValueError(f"{out} holds a checkpoint without {SETTINGS}: give another folder")
    return KeptRun(out, asked, parallel or Parallel())


S = TypeVar("S", bound=Training)


class Job(ABC):
    """A training that is ready to start, in a folder of its own.

    The folder holds `settings.json`, `log.jsonl` (a line `step, loss, rate` for every step, a line `step, validation`
    for every validation), and the checkpoints of `fit`: a job that was killed goes on from the last of them.

    Args:
        settings: the thread's.
        module: what is trained and kept.
        samples: how many there are to train on.
        fit: how long and how fast.
        run: the folder, as `claim` gives it.
    """

    thread: ClassVar[str]

    def __init__(self, settings: Training, module: nn.Module, samples: int, fit: FitSettings, run: KeptRun):
        self.settings, self.module, self.samples, self.fit = settings, module, samples, fit
        self.run, self.out, self.parallel = run, run.out, run.parallel
        self.step = 0  # training steps done

    @abstractmethod
    def batch_loss(self, rows: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
        """The training loss of a batch, or of this process's share of one."""

    @abstractmethod
    def validation_loss(self) -> float:
        """The loss on what is held out, of the module as it is."""

    @abstractmethod
    def sketch(self) -> tuple[nn.Module, Callable[[], Tensor]]:
        """Module and hosts made anew from their configurations, and the loss of an empty batch: for `footprint`."""

    def validate(self) -> float:
        """`validation_loss` without dropout and gradients."""
        training = self.module.training
        self.module.eval()
        try:
            with torch.no_grad():
                return self.validation_loss()
        finally:
            self.module.train(training)

    def estimate(self) -> str:
        """Parameters, memory and time of the training, in lines to print before it starts."""
        rows = torch.arange(self.settings.batch_size // self.parallel.world) % self.samples
        place = next(self.module.parameters()).device

        def make() -> tuple[nn.Module, Callable[[], Tensor]]:
            with place:
                return self.sketch()

        self.module.train()
        seconds = step_time(lambda: self.batch_loss(rows), self.module)
        left = self.fit.steps - checkpoints.steps_done(self.out)
        return (
            f"{footprint(make)}\n{left:,} of {self.fit.steps:,} steps to do, {seconds:.3g} s each: about"
            f" {duration(seconds, left)} beside validation"
        )

    def train(self) -> History:
        """Train to the end, from the last checkpoint where there is one; the module then has its best weights.

        Raises:
            FloatingPointError: when the loss is not finite.
            ValueError: for a checkpoint of another run, or a damaged one.
        """
        self.run.take()
        self.step = checkpoints.steps_done(self.out)
        log = self.out / LOSSES
        if self.parallel.main:  # what was logged after the last checkpoint is trained again
            kept = [line for line in read_log(log) if line["step"] <= self.step]
            log.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

        def tell(line: dict[str, int | float]) -> None:
            self.step = int(line["step"])
            if self.parallel.main:
                with log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")

        self.module.train()
        history = fit(
            self.module,
            self.batch_loss,
            self.samples,
            self.fit,
            self.settings.seed,
            self.thread,
            validate=self.validate,
            keep=self.out,
            tell=tell,
            parallel=self.parallel,
        )
        self.module.eval()
        return history

    def load_best(self) -> None:
        """Give the module the best weights of its folder.

        Raises:
            ValueError: where none have been kept yet.
        """
        if not (self.out / checkpoints.BEST).is_file():
            raise ValueError(f"{self.out} holds no {checkpoints.BEST} yet: train until the first validation")
        checkpoints.put_back(self.module, checkpoints.read_best(self.out))
        self.module.eval()


def settings_of(out: Path, thread: str, template: S) -> S:
    """The settings of the run that a folder holds; `template` says of which kind they are.

    Raises:
        ValueError: for a folder without a run, or with one of another thread.
    """
    path = out / SETTINGS
    if not path.is_file():
        raise ValueError(f"{out} holds no run: there is no {path.name} in it")
    kept = read_run(path)
    if kept["thread"] != thread:
        raise ValueError(f"{out} holds a run of the thread {kept['thread']}, not {thread}")
    found: dict[str, Any] = {}
    for part in fields(template):
        value, like = kept["settings"][part.name], getattr(template, part.name)
        if is_dataclass(like):
            value = replace(like, **value)  # type: ignore[type-var]
        found[part.name] = tuple(value) if isinstance(value, list) else value
    return replace(template, **found)


def hold_out(count: int, held: int, seed: int) -> tuple[Int[Tensor, " train"], Int[Tensor, " held"]]:
    """Rows to train on and rows held out, drawn at random.

    Raises:
        ValueError: when either side would have fewer than two.
    """
    if held < 2 or count - held < 2:
        raise ValueError(f"{count} samples, {held} of them held out: at least two are needed on either side")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[held:], order[:held]


def _known_by(path: Path) -> str:
    """What tells a file from another."""
    with path.open("rb") as file:
        return f"{path.stat().st_size} bytes, sha256 {sha256(file.read(READ)).hexdigest()[:16]} of the first {READ}"


def read_run(path: Path) -> dict[str, Any]:
    """What a `settings.json` holds: `thread`, `settings`, `data` and `chance`.

    Raises:
        ValueError: for a file that does not.
    """
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if {"thread", "settings", "data", "chance"} <= set(kept):
            return kept
    except (ValueError, TypeError):
        pass
    raise ValueError(f"{path} is damaged: give another folder")


def read_log(log: Path) -> list[dict[str, Any]]:
    """The whole lines of a `log.jsonl`; a run killed while it wrote leaves a torn one."""
    found = []
    for line in log.read_text(encoding="utf-8").split("\n") if log.is_file() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
