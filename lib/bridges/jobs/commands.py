"""`python -m bridges train`, `validate` and `curves`: the three threads on files of one's own."""

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from transformers.utils.logging import disable_progress_bar

from bridges.jobs import image_text, llm_to_llm, vector_to_text
from bridges.jobs import validation as reports
from bridges.jobs.job import SETTINGS, Training, read_run, settings_of
from bridges.tasks.loss_log import read_loss_log
from bridges.training.device import DEVICES, find_device
from bridges.training.parallel import Parallel


@dataclass(frozen=True)
class Thread:
    """A thread's module, its report, and the field of its settings that names the data to train on."""

    module: ModuleType
    report: Callable[[Any], reports.ValidationReport]
    data: str


THREADS = {
    vector_to_text.THREAD: Thread(vector_to_text, reports.vector_to_text, "features"),
    image_text.THREAD: Thread(image_text, reports.image_text, "pairs"),
    llm_to_llm.THREAD: Thread(llm_to_llm, reports.llm_to_llm, "train"),
}


def run(arguments: Sequence[str]) -> int:
    """Parse a command line that begins with `train`, `validate` or `curves`, and run it; returns the exit status."""
    options = parser().parse_args(arguments)
    disable_progress_bar()  # transformers' own, for files that are read in milliseconds
    {"train": _train, "validate": _validate, "curves": _curves}[options.command](options)
    return 0


def parser() -> argparse.ArgumentParser:
    """The options of the three commands."""
    found = argparse.ArgumentParser(prog="python -m bridges")
    commands = found.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train a connector").add_subparsers(dest="thread", required=True)
    validate = commands.add_parser("validate", help="judge one").add_subparsers(dest="thread", required=True)
    for name, thread in THREADS.items():
        _add_training(train.add_parser(name, description=thread.module.__doc__), thread)
        _add_validation(validate.add_parser(name), name)
    curves = commands.add_parser("curves", help="draw training and validation losses by step")
    curves.add_argument("runs", type=Path, nargs="+", help="folders of trainings, or loss logs")
    curves.add_argument("--output", type=Path, default=Path("curves.png"), help="the figure, a .png, .svg or .pdf")
    return found


def settings(options: argparse.Namespace) -> Training:
    """The settings that a `train` command line asks for.

    Raises:
        ValueError: for files given without the data to train on.
    """
    thread = THREADS[options.thread]
    named, given = thread.module.NAMED, _given(options)
    for part in fields(named["small"]):
        if thread.data not in given and part.metadata.get("path") and part.name in given:
            raise ValueError(
                f"{_flag(part.name)} is given and {_flag(thread.data)} is not: give both, or neither for the small set"
            )
    return replace(named[options.config or (next(iter(named)) if thread.data in given else "small")], **given)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _given(options: argparse.Namespace) -> dict[str, Any]:
    names = [part.name for part in fields(THREADS[options.thread].module.NAMED["small"])]
    return {name: value for name in names if (value := getattr(options, name, None)) is not None}


def _add_training(parser: argparse.ArgumentParser, thread: Thread) -> None:
    named = thread.module.NAMED
    parser.add_argument("--out", type=Path, required=True, help="folder of the run: settings, log and checkpoints")
    parser.add_argument(
        "--config",
        choices=list(named),
        help="named settings; what is given here comes before them."
        f" Without it: {next(iter(named))!r}, or 'small' where no --{thread.data} is given",
    )
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument(
        "--cache", type=Path, default=Path("_build/hosts"), help="folder that keeps small hosts, for the small set"
    )
    if thread.module is vector_to_text:
        parser.add_argument(
            "--freeze-encoder",
            action="store_true",
            help="as in the log: features are made beforehand, and connector and host are trained",
        )
    for part in fields(named["small"]):
        if "help" in part.metadata:
            _add_setting(parser, part.name, getattr(named["small"], part.name), part.metadata)


def _add_setting(parser: argparse.ArgumentParser, name: str, like: Any, told: Any) -> None:
    flag = _flag(name)
    if isinstance(like, bool):
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=told["help"])
    else:
        kind = (lambda text: str(Path(text).resolve())) if told["path"] else type(like)
        parser.add_argument(flag, type=kind, help=told["help"], metavar=name.upper())


def _add_validation(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; its report is written there too")
    parser.add_argument("--device", choices=DEVICES, default="auto")
    if name == vector_to_text.THREAD:
        parser.add_argument("--features", type=Path, help="other clips to judge by than those held out")
        parser.add_argument("--manifest", type=Path, help="their manifest")


def _train(options: argparse.Namespace) -> None:
    thread, asked = THREADS[options.thread], settings(options)
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"{options.out} is a file: give a folder for the run")
    parallel = Parallel.launched() if "WORLD_SIZE" in os.environ else Parallel()
    if not getattr(asked, thread.data):
        folder = options.out / "data"
        if parallel.main:
            thread.module.small(folder, options.cache, asked)
        parallel.wait()
        asked = replace(thread.module.small(folder, options.cache, asked), **_given(options))
    job = thread.module.prepare(asked, options.out, find_device(options.device), parallel)
    estimate = job.estimate()
    if parallel.main:
        print(estimate, flush=True)
    history = job.train()
    if parallel.main:
        print(
            f"{options.out}: {len(history.losses)} steps, last loss {history.losses[-1]:.4f}, best validation"
            f" {history.validation[history.best]:.4f} after {history.best} steps"
        )


def _validate(options: argparse.Namespace) -> None:
    thread = THREADS[options.thread]
    kept = settings_of(options.out, options.thread, thread.module.NAMED["small"])
    job = thread.module.prepare(kept, options.out, find_device(options.device))
    job.load_best()
    if getattr(options, "features", None) or getattr(options, "manifest", None):
        if not (options.features and options.manifest):
            raise ValueError("features and manifest belong together: give both")
        job.held_out = vector_to_text.read_clips(options.features, options.manifest, job.clips.vectors.shape[1])
    report = thread.report(job)
    report.write(options.out)
    print(report.markdown)


def _curves(options: argparse.Namespace) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("curves are drawn by matplotlib, which is not here: pip install '.[book]'") from None
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    for place, path in enumerate(options.runs):
        log = read_loss_log(path)
        name, colour = path.name, f"C{place}"
        axes.plot(log.steps, log.losses, color=colour, alpha=0.5, linewidth=0.8, label=f"{name}, training")
        if log.validation:
            axes.plot(*zip(*log.validation, strict=True), "o-", color=colour, markersize=4, label=f"{name}, validation")
        chance = read_run(path / SETTINGS)["chance"] if (path / SETTINGS).is_file() else None
        if chance is not None:
            axes.axhline(chance, color=colour, linestyle=":", label=f"{name}, chance in training")
        print(f"{path}: {log}")
    axes.set(xlabel="training step", ylabel="loss (nats)")
    axes.legend()
    figure.savefig(options.output, dpi=150)
    print(options.output)
