"""The long runs: chapters executed so that their studies' rows of record grow, in as many processes as there are cores.

A chapter's script is run as it stands, without a kernel, up to its last study and claim. What it has trained when it is
killed is kept; a second call goes on.
"""

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from queue import Empty, Queue
from threading import Thread

from press import ROOT, PressError, evidence
from press.chapter import ONE_THREAD, chapters, parameters_of, script_of, word_of
from press.claims import load_claims
from press.ledger import LOOKS


def studies(script: Path) -> list[str]:
    """The studies of a chapter, in the order of its source."""
    return re.findall(r'run\.study\(\s*"([^"]+)"', script.read_text(encoding="utf-8"))


def run(names: Sequence[str], seeds: int, profile: str, cores: int, every: bool = False, again: bool = False) -> int:
    """Take looks at the chapters' claims, up to `seeds` seeds; returns the exit status.

    All arms have as many seeds as the first look, then those that undecided claims ask for go on to the next; `every`
    brings all arms up to `seeds`, whatever is decided. With `again` the arms that claims ask for are trained once more
    instead, over the hosts of the first look. Two processes may be at one chapter: each batch of seeds goes to the one
    that claims it first.

    Raises:
        PressError: for an unknown chapter, an impossible number, or a chapter that failed.
    """
    if seeds < 1 or cores < 1:
        raise PressError(f"{seeds} seeds on {cores} cores: give at least one of each")
    words = [word_of(script_of(name).stem) for name in names] or chapters()
    words = [word for word in words if studies(script_of(word))]
    left: Queue[str] = Queue()
    # Each chapter stands as often as there are cores, side by side: who is free helps with what is at hand.
    for word in words:
        for _ in range(cores if len(words) < cores else 1):
            left.put(word)
    failed: list[str] = []
    looks = [seeds] if every else [min(seeds, LOOKS[0]), *(look for look in LOOKS[1:] if look <= seeds)]
    steps = [{evidence.WANTED: str(look)} | ({evidence.EVERY: "1"} if every else {}) for look in looks]
    if again:
        first = {evidence.WANTED: str(LOOKS[0])}
        steps = [first, first | {evidence.AGAIN: str(LOOKS[0])}]
    threads = [Thread(target=_work, args=(left, failed, steps, profile)) for _ in range(cores)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise PressError(f"no rows from {', '.join(sorted(set(failed)))}: what went wrong stands above")
    return 0


def _work(left: "Queue[str]", failed: list[str], steps: Sequence[dict[str, str]], profile: str) -> None:
    """Take chapters until none is left, each look by look until all its claims are decided, or once more."""
    while True:
        try:
            word = left.get_nowait()
        except Empty:
            return
        for place, step in enumerate(steps):
            command = [sys.executable, "-m", "press.longruns", word, profile]
            given = {"MPLBACKEND": "agg"} | ONE_THREAD | step
            if subprocess.run(command, cwd=ROOT, env=os.environ | given, check=False).returncode:
                failed.append(word)
                break
            left_over = "asked" if evidence.AGAIN in steps[-1] else "undecided"
            if place + 1 < len(steps) and not evidence.looked(word, profile)[left_over]:
                break


def execute(word: str, profile: str) -> None:
    """Run a chapter's script up to its last study and claim, in this process, which ends with it."""
    script = script_of(word)
    text = script.read_text(encoding="utf-8")
    default = parameters_of(script)["profile"]
    if profile != default:  # as papermill would, but with the lines where they are
        text = text.replace(f'profile = "{default}"', f'profile = "{profile}"', 1)
    path = script
    if text != script.read_text(encoding="utf-8"):
        path = script.with_name(f".{script.stem}.{os.getpid()}.py")
        path.write_text(text, encoding="utf-8")
    evidence.awaited.update(studies(script), (c.id for c in load_claims().values() if c.chapter == word))
    try:
        runpy.run_path(str(path), run_name="__main__")
    except evidence.Done:
        pass
    finally:
        if path != script:
            path.unlink()


if __name__ == "__main__":
    try:
        execute(*sys.argv[1:])
    except PressError as error:
        sys.exit(f"error: {error}")
