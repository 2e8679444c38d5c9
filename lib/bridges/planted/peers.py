"""The check-up beside general diagnosers of training, on the same small runs with one planted fault each.

    pip install defaultplusplus==0.4.1 torch-audit==0.3.0 torchtest2==0.1.0
    python -m bridges.planted.peers --out book/reference/peers.csv

The book does not depend on them, and `--tools` leaves out what is not there. What counts as naming a fault stands in
`names.py`, written before any counted run. Rows that are in the file are not made again.
"""

import argparse
import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from bridges.instruments.uncertainty import wilson
from bridges.planted.names import names
from bridges.planted.others import TOOLS
from bridges.planted.small import PLANTED, THEIRS, run

HARM = 0.05  # nats above the healthy twin's held-out loss, in every seed: less is no harm


@dataclass(frozen=True)
class Row:
    """One tool on one run; `named` is 1 where what it said first names the fault, `at_all` where anything it said does.

    `loss` is the run's on faultless held-out samples, in nats; `seconds` are of one processor, beyond the training's.
    """

    tool: str
    version: str
    host: str
    seed: int
    planted: str
    first: str
    named: int
    at_all: int
    level: str
    said: str
    loss: str
    seconds: float


def rows(tools: Iterable[str], seeds: int, healthy: int) -> Iterator[tuple[str, str, str, int]]:
    """All runs as (tool, host, planted, seed), a seed after another, and further healthy ones last."""
    for seed in range(max(seeds, healthy)):
        for planted, places in (PLANTED | THEIRS).items():
            if seed < (seeds if planted else healthy):
                yield from ((name, host, planted, seed) for host in places for name in tools)


def main(argv: list[str] | None = None) -> None:
    """Make the rows that the file lacks, one after another."""
    parser = argparse.ArgumentParser("bridges.planted.peers", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the table of rows (CSV)")
    parser.add_argument("--hosts", type=Path, default=Path("_build/small"), help="folder that keeps the small hosts")
    parser.add_argument("--tools", nargs="+", default=list(TOOLS), choices=list(TOOLS))
    parser.add_argument("--seeds", type=int, default=3, help="of each fault")
    parser.add_argument("--healthy", type=int, default=6, help="healthy seeds of each host")
    given = parser.parse_args(argv)
    kept = {(row["tool"], row["host"], row["planted"], int(row["seed"])) for row in read(given.out)}
    for name, host, planted, seed in rows(given.tools, given.seeds, given.healthy):
        if (name, host, planted, seed) in kept:
            continue
        row = look(name, host, planted, seed, given.hosts)
        fresh = not given.out.is_file()
        with given.out.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(asdict(row)), lineterminator="\n")
            if fresh:
                writer.writeheader()
            writer.writerow(asdict(row))
    print(table(read(given.out)), by_fault(read(given.out)), sep="\n\n")


def look(name: str, host: str, planted: str, seed: int, hosts: Path) -> Row:
    """What one tool says of one run."""
    version, diagnose = TOOLS[name]
    it = run(host, planted, seed, hosts)
    said, seconds = diagnose(it)
    loss = f"{it.loss():.3f}" if name == "check-up" else ""
    named = [names(name, planted, thing) for thing in said.things]
    first, rest = said.things[0] if said.things else "", "; ".join(said.things)
    return Row(
        name, version, host, seed, planted, first, int(any(named[:1])), int(any(named)), said.level, rest, loss,
        round(max(seconds, 0.0), 2),
    )  # fmt: skip


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a file that `main` writes; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def harmful(found: Sequence[dict[str, str]]) -> set[tuple[str, str]]:
    """Which (host, planted) do harm: in every seed the held-out loss is none, or `HARM` above the healthy twin's."""
    loss = {(r["host"], r["planted"], r["seed"]): float(r["loss"]) for r in found if r["loss"]}
    over: dict[tuple[str, str], list[bool]] = {}
    for (host, planted, seed), value in loss.items():
        if planted and (host, "", seed) in loss:
            over.setdefault((host, planted), []).append(not value <= loss[host, "", seed] + HARM)
    return {key for key, told in over.items() if all(told)}


def table(found: Sequence[dict[str, str]]) -> str:
    """Hits and false alarms of each tool, with Wilson's 95 % intervals, and what it takes, in Markdown."""
    bad = harmful(found)
    head = ["tool", "named first", "named at all", "first, of harmful ones", "first, of its own", "healthy: error"]
    lines = [[*head, "healthy: any alarm", "seconds a run"], ["---", *["--:"] * 7]]
    for name, (version, _) in TOOLS.items():
        own = [row for row in found if row["tool"] == name]
        ill = [row for row in own if row["planted"] in PLANTED and row["planted"]]
        hurt = [row for row in ill if (row["host"], row["planted"]) in bad]
        theirs = [row for row in own if row["planted"] in THEIRS]
        well = [row for row in own if not row["planted"]]
        cells = [[row[key] == "1" for row in part] for part, key in (
            (ill, "named"), (ill, "at_all"), (hurt, "named"), (theirs, "named"))]  # fmt: skip
        cells += [[row["level"] in loud for row in well] for loud in (("error",), ("error", "warning"))]
        taken = [float(row["seconds"]) for row in own if not row["first"].startswith("refused")]
        seconds = f"{median(taken):.1f}" if taken else ""
        lines.append([f"{name} {version}".strip(), *map(_share, cells), seconds])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _share(right: Sequence[bool]) -> str:
    if not right:
        return "0 of 0"
    found = wilson(sum(right), len(right))
    return f"{sum(right)} of {len(right)} ({100 * found.low:.0f} to {100 * found.high:.0f} %)"


def by_fault(found: Sequence[dict[str, str]]) -> str:
    """What is planted, in which hosts it does harm, and of how many runs each tool named it first and at all."""
    bad = harmful(found)
    lines = [["planted", "does harm in", *TOOLS], ["---", "---", *["--:"] * len(TOOLS)]]
    for planted, places in (PLANTED | THEIRS).items():
        if not planted:
            continue
        cells = []
        for name in TOOLS:
            own = [row for row in found if row["tool"] == name and row["planted"] == planted]
            first, whole = (sum(row[key] == "1" for row in own) for key in ("named", "at_all"))
            cells.append(f"{first}" + (f" ({whole})" if whole > first else "") + f" of {len(own)}")
        harm = ", ".join(host for host in places if (host, planted) in bad) or "none"
        lines.append([planted, harm, *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
