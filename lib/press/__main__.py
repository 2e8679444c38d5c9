"""`python -m press`: run a chapter, keep pairs together, print the ledger."""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

from press import BUILD, LEDGER, RECORDS, REFERENCE, ROOT, PressError, chapter, ledger, sweep, warm
from press.lock import WORKFLOW, hold


def main() -> int:
    """Run the command given on the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m press")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("chapter", help="execute a chapter with papermill")
    run.add_argument("name", nargs="?", default="", help="the chapter's file name without its ending")
    run.add_argument("--book", action="store_true", help="put the result in the book, not in _build/runs")
    run.add_argument("--folder", type=Path, help="put the result in this folder of the book, not in _build/runs")
    run.add_argument(
        "-p",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="a parameter of the chapter",
    )
    grid = commands.add_parser("sweep", help="execute a chapter at every point of a grid, what stands excepted")
    grid.add_argument("name", help="the chapter's file name without its ending")
    grid.add_argument(
        "-p",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="a parameter of the chapter, and its values",
    )
    grid.add_argument("--slurm", action="store_true", help="submit every point to Slurm, by workflow/profiles/slurm")
    grid.add_argument("--snakemake", nargs=argparse.REMAINDER, default=[], help="all that follows goes to Snakemake")
    pair = commands.add_parser("pair", help="bring scripts and notebooks together, the last edited leading")
    pair.add_argument("--check", action="store_true", help="only say which pairs differ")
    keep = commands.add_parser("keep", help="store a chapter's checked outputs, against which nbval tests it")
    keep.add_argument("name")
    table = commands.add_parser("ledger", help="print the verdicts")
    table.add_argument("--collect", action="store_true", help="check all records and write the ledger from them")
    commands.add_parser("reference", help="keep today's records in book/reference, to be committed")
    rows = commands.add_parser(
        "evidence", help="bring the rows of record up to a number of seeds; a second call goes on"
    )
    rows.add_argument("names", nargs="*", help="chapters, by their words; all where none is named")
    rows.add_argument(
        "--seeds", type=int, default=ledger.LOOKS[-1], help="take looks at undecided claims up to so many seeds"
    )
    rows.add_argument(
        "--again", action="store_true", help="train the arms that claims ask for once more over their hosts"
    )
    rows.add_argument("--every", action="store_true", help="bring every arm up to --seeds, whatever is decided")
    rows.add_argument("--profile", default="quick", choices=["quick", "full"])
    rows.add_argument("--cores", type=int, default=os.cpu_count() or 1, help="how many processes train at once")
    locked = commands.add_parser("locked", help="run a command unless another such command is at work in this folder")
    locked.add_argument("--warm", action="store_true", help="let the jobs that it starts on this machine start warm")
    locked.add_argument("argv", nargs=argparse.REMAINDER)
    site = commands.add_parser("site", help="render pages and executed chapters; any warning is an error")
    site.add_argument("--output", type=Path, required=True)
    commands.add_parser("report", help="say where the book is and how long each chapter took")
    options = parser.parse_args()
    try:
        return globals()[f"_{options.command}"](options)
    except PressError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _chapter(options: argparse.Namespace) -> int:
    executed = chapter.run(options.name, dict(options.p), book=options.book, folder=options.folder)
    if not options.book:
        record = json.loads(executed.with_suffix(".json").read_text())
        for verdict in record["verdicts"]:
            print(f"{verdict['id']} {verdict['verdict']} ({verdict['strength']})")
    return 0


def _sweep(options: argparse.Namespace) -> int:
    grid = sweep.grid_of(options.p)
    return sweep.run(options.name, grid, slurm=options.slurm, options=options.snakemake)


def _pair(options: argparse.Namespace) -> int:
    from press import pairs  # its imports take two seconds that the other commands need not wait

    if not options.check:
        pairs.bring_together()
        return 0
    found = pairs.differing()
    for name, where in found:
        print(f"notebooks/{name}.py and its .ipynb differ ({where}): run make pair", file=sys.stderr)
    return 1 if found else 0


def _keep(options: argparse.Namespace) -> int:
    from press import pairs

    print(f"{pairs.keep_verdicts(options.name)} checked output kept in {chapter.notebook_of(options.name).name}")
    return 0


def _ledger(options: argparse.Namespace) -> int:
    if options.collect:
        rows = ledger.collect(_book_records())
        ledger.check_references(REFERENCE)
        LEDGER.write_text(json.dumps(rows, indent=1) + "\n")
        return 0
    _book_records()
    if not LEDGER.is_file():
        raise PressError("there is no ledger yet: run make book")
    print(ledger.as_text(json.loads(LEDGER.read_text())))
    return 0


def _book_records() -> list[Path]:
    records = [RECORDS / f"{name}.json" for name in chapter.chapters()]
    for record in records:
        if not record.is_file():
            raise PressError(f"{record.stem} has no record yet: run make book")
    return records


def _reference(_: argparse.Namespace) -> int:
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for record in _book_records():
        content = json.loads(record.read_text())
        target = REFERENCE / f"{record.stem}.{content['profile']}.json"
        shutil.copyfile(record, target)
        print(target.relative_to(ROOT))
    return 0


def _locked(options: argparse.Namespace) -> int:
    """Snakemake's own lock would outlive a kill: it runs with --nolock, and holds this one."""
    if not options.argv:
        raise PressError("locked takes a command to run")
    lock = hold(*WORKFLOW)
    os.set_inheritable(lock.fileno(), True)
    if options.warm:
        warm.start()
    os.execvp(options.argv[0], options.argv)


def _evidence(options: argparse.Namespace) -> int:
    from press import longruns

    return longruns.run(options.names, options.seeds, options.profile, options.cores, options.every, options.again)


def _site(options: argparse.Namespace) -> int:
    from jupyter_book.cli.main import main as jupyter_book

    strict = ["-W", "-n", "--keep-going", "--all"]
    jupyter_book(["build", ".", "--path-output", str(options.output), *strict])  # ends with its exit status
    return 0


def _report(_: argparse.Namespace) -> int:
    for record in _book_records():
        content = json.loads(record.read_text())
        verdicts = ", ".join(f"{v['id']} {v['verdict']}" for v in content["verdicts"])
        print(f"{record.stem:32} {content['seconds']:5.0f} s  {verdicts}")
    print(f"the book: {(BUILD / 'html' / 'index.html').relative_to(ROOT)}  (make serve opens it at a local address)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
