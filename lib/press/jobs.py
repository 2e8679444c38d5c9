"""What the chapters of a reader's own training share: files that were given or a small set, and what both amount to."""

import shlex
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bridges.instruments.report import Report
from bridges.jobs import commands
from bridges.jobs.job import Job, Training
from bridges.training.fit import History
from IPython.display import Markdown
from matplotlib.axes import Axes

from press import HOSTS, PressError
from press.chapter import parameters_of, script_of
from press.figures import COLOURS
from press.provenance import Run, refusing
from press.tables import Table, cell, table


@dataclass(frozen=True)
class Ready:
    """A training that is ready to start, on a reader's files or on a small set."""

    job: Any
    own: bool  # whether the files are the reader's
    prepare: Callable[..., Job]
    device: str
    scratch: TemporaryDirectory[str]  # removed with the kernel

    def resumed(self, **changes: Any) -> float | None:
        """The largest difference between the losses of a training that goes through and of one that is broken off.

        The second is ended a few steps behind its first checkpoint and called again. With files of the reader's own
        nothing is trained, and None comes back: it would load everything three times.

        Args:
            changes: of the settings, which make the training short; `every` is one of them.
        """
        if self.own:
            return None
        brief, here = replace(self.job.settings, **changes), Path(self.scratch.name)
        through = self.prepare(brief, here / "through", self.device).train()
        broken = self.prepare(brief, here / "broken", self.device)
        whole, last = broken.batch_loss, brief.every * 4 // 3

        def ended(rows: Any) -> Any:
            if broken.step == last:
                raise KeyboardInterrupt
            return whole(rows)

        broken.batch_loss = ended  # type: ignore[method-assign]
        with suppress(KeyboardInterrupt):
            broken.train()
        again = self.prepare(brief, here / "broken", self.device).train()
        difference = max(abs(a - b) for a, b in zip(through.losses, again.losses, strict=True))
        print(f"broken off in step {broken.step + 1} of {broken.fit.steps}")
        print(f"largest difference of {len(again.losses)} losses: {difference:.3g}")
        return difference


def ready(
    thread: str, run: Run, given: Mapping[str, Any], larger: Mapping[str, Callable[[Path], None]] | None = None
) -> Ready:
    """The training that a chapter's parameters ask for.

    A parameter that is called as a setting and is not empty sets it. Where the thread's data are not among them, its
    small set is written, with the sizes of the profile for settings.

    Args:
        thread: as the command line names it.
        run: the chapter's, whose sizes are called as the thread's settings.
        given: the chapter's globals, which hold its parameters.
        larger: by a host's setting, what writes the full profile's own into a folder.

    Raises:
        PressError: for an unknown config, unfit files, or files without a `run_folder`.
    """
    kind = commands.THREADS[thread]
    module, named = kind.module, kind.module.NAMED
    asked = {name: given[name] for name in parameters_of(script_of(run.chapter))}
    own, config = bool(asked[kind.data]), asked["config"]
    scratch: TemporaryDirectory[str] = TemporaryDirectory()
    here = Path(scratch.name)
    with refusing():
        if config not in ("", *named):
            raise ValueError(f"no config {config!r}; choose from {', '.join(named)}")
        if own and not asked["run_folder"]:
            raise ValueError("a training of yours is to stay: give run_folder")
        set_here: dict[str, Any] = {}
        for part in fields(named["small"]):
            if value := asked.get(part.name):
                set_here[part.name] = str(Path(value).resolve()) if part.metadata.get("path") else value
        settings = commands.settings(Namespace(thread=thread, config=config or None, **set_here))
        if not own:
            for role, write in (larger or {}).items() if run.profile == "full" else ():
                if role not in set_here:
                    set_here[role] = str(here / role)
                    write(here / role)
            sizes = {name: value for name, value in vars(run.size).items() if name != "seeds"}
            settings = replace(module.small(here / "data", HOSTS, replace(settings, **sizes)), **set_here)
        folder = Path(asked["run_folder"]).resolve() if asked["run_folder"] else here / "run"
        job = module.prepare(settings, folder, run.device)
    return Ready(job, own, module.prepare, run.device, scratch)


def settings_table(
    named: Mapping[str, Training],
    logged: str,
    ours: str,
    plain: Mapping[tuple[str, str], str] | None = None,
    empty: str = "",
) -> Table:
    """Named settings side by side, bold where the log gives them.

    Args:
        named: the settings by name, `small` among them.
        logged: what the log gives of all but `small`, names between spaces, with points for what is within.
        ours: what it does not give.
        plain: texts in the place of single values, by setting and name; never bold.
        empty: what stands for an empty text.
    """

    def shown(setting: str, name: str) -> str:
        if (setting, name) in (plain or {}):
            return (plain or {})[setting, name]
        text = str(attrgetter(setting)(named[name])) or empty
        return f"**{text}**" if setting in logged.split() and name != "small" else text

    rows = ((s.replace("_", " "), *(shown(s, name) for name in named)) for s in (*logged.split(), *ours.split()))
    return table(f"setting | {' | '.join(named)}", rows)


def command(line: str, wanted: Training) -> Markdown:
    """A command line of `python -m bridges`, which is seen to ask for these settings, its files apart.

    Raises:
        PressError: where it asks for others.
    """
    asked = commands.settings(commands.parser().parse_args(shlex.split(line)))
    files = {part.name: getattr(wanted, part.name) for part in fields(wanted) if part.metadata.get("path")}
    if replace(asked, **files) != wanted:
        raise PressError(f"the command line asks for {asked}, and is to ask for {wanted}")
    return Markdown(f"```\n.venv/bin/python -m bridges {line.replace(chr(10), f' {chr(92)}{chr(10)}')}\n```")


def losses(axes: Axes, history: History, held_out: str, at: Mapping[str, float], **labels: Any) -> None:
    """Training and validation losses against the step, and named dotted lines.

    Args:
        axes: to draw on.
        history: of one training.
        held_out: what validation looks at, with its number.
        at: where dotted lines stand, by what they are.
        labels: for `axes.set`.
    """
    steps = range(1, len(history.losses) + 1)
    axes.plot(steps, history.losses, "-", color=COLOURS["sky"], lw=0.9, label="training")
    looks: tuple[Sequence[int], Sequence[float]] = list(history.validation), list(history.validation.values())
    axes.plot(*looks, "o-", color=COLOURS["orange"], label=f"validation, {held_out}")
    for name, value in at.items():
        axes.axhline(value, color="black", linewidth=0.9, linestyle=":")
        beside = {"textcoords": "offset points", "xytext": (0, 3), "ha": "right", "va": "bottom"}
        axes.annotate(name, (steps[-1], value), **beside)  # type: ignore[arg-type]
    axes.set(xlabel="training step", ylim=(0, None), **({"ylabel": "loss (nats per token)"} | labels))
    axes.legend()


def answered(asked: Mapping[str, bool], difference: float | None, found: Report) -> str:
    """A line for each question with its answer, then whether a training resumed and what a check-up found first."""
    lines = dict(asked) | ({} if difference is None else {"resumed to the same losses": difference < 1e-5})
    return "\n".join([*(f"{name}: {cell(bool(yes))}" for name, yes in lines.items()), f"check-up: {found.headline}"])
