"""What a script's run depends on: modules of `lib` that it imports, files and hosts that its source asks for."""

import ast
import hashlib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from modulefinder import ModuleFinder
from pathlib import Path

from bridges.benches.fingerprint import syntax

from press import REFERENCE, ROOT, PressError

LIB = ROOT / "lib"


def lib_files(script: Path, lib: Path = LIB) -> list[str]:
    """The files below `lib` that `script` imports, directly or through one another, and itself where it lies there.

    Sorted, as seen from the root.
    Only `lib` is searched: what a pinned package does is the business of the pins.
    """
    finder = ModuleFinder(path=[str(lib)])
    finder.run_script(str(script))
    named = (getattr(module, "__file__", None) for module in finder.modules.values())
    files = {Path(name).resolve() for name in named if name} | {script.resolve()}
    return sorted(str(f.relative_to(lib.parent)) for f in files if f.is_relative_to(lib))


@cache
def _tree(file: Path, written: int) -> str:
    return syntax(file.read_text(encoding="utf-8"))


def syntax_digest(files: Iterable[str], root: Path = ROOT) -> str:
    """SHA-256 of the syntax trees of modules, named as seen from the root."""
    trees = [_tree(root / f, (root / f).stat().st_mtime_ns) for f in files]
    return hashlib.sha256("".join(trees).encode()).hexdigest()


def asked_files(script: Path) -> list[str]:
    """The files of the book that a chapter's source asks for by name, as seen from the root.

    `recorded("NAME")` asks for a log's figures, `reference("CHAPTER", "PROFILE")` for a record, `example("FILE")` for a
    file of `book/examples`, `of_record("CHAPTER", "STUDY")` for rows of record; those of its own word are always read.

    Raises:
        PressError: where a name is not written out, so that the graph cannot see it.
    """
    found: dict[str, Callable[..., str]] = {
        "recorded": lambda name: f"book/recorded/{name}.yml",
        "reference": lambda chapter, profile: str((REFERENCE / f"{chapter}.{profile}.json").relative_to(ROOT)),
        "example": lambda name: f"book/examples/{name}",
        "of_record": lambda chapter, study: f"book/evidence/{chapter}/{study.replace(' ', '_')}.csv",
    }
    files = set()
    for call in _calls(script):
        name = call.func.id if isinstance(call.func, ast.Name) else ""
        if name in found:
            try:
                files.add(found[name](*(ast.literal_eval(a) for a in call.args)))
            except ValueError:
                raise PressError(f"{script.name}: {name}(...) takes names written out, for the graph to read") from None
    word = script.stem[3:]
    files |= {str(p.relative_to(ROOT)) for p in (ROOT / "book" / "evidence" / word).glob("*.csv")}
    return sorted(files)


def asked_hosts(script: Path, profile: str) -> list[str]:
    """The small hosts that a chapter's seeds need, as the cache names them without the size, such as `t5-0`.

    Read from its calls of `translation.bench(...)` and `answering.bench(...)`, from every `target="..."`, and from what
    `begin(..., hosts=...)` names beside; the number of seeds from `begin(...)`. What is not seen here the chapter makes
    by itself.
    """
    count, hosts = 0, set()
    families: set[str] = set()
    for call in _calls(script):
        given = {k.arg: _value(k.value) for k in call.keywords if k.arg}
        match call.func:
            case ast.Name(id="begin"):
                seeds = given.get("seeds")
                named = set(given.get("hosts") or ())  # type: ignore[call-overload]
                hosts |= {name for name in named if "-" in name}
                families |= {name for name in named if "-" not in name}
                count = seeds[profile != "quick"] if isinstance(seeds, tuple) else int(seeds or 0)  # type: ignore[call-overload]
            case ast.Attribute(value=ast.Name(id="translation"), attr="bench"):
                families |= set(given.get("hosts") or ("t5",))  # type: ignore[call-overload]
                hosts |= {f"{given['encoder']}-0"} if given.get("encoder") else set()
            case ast.Attribute(value=ast.Name(id="answering"), attr="bench"):
                families |= {"source", str(given.get("target") or "target")}
        if isinstance(given.get("target"), str):
            families.add(str(given["target"]))
    return sorted(hosts | {f"{family}-{seed}" for family in families for seed in range(count)})


def _calls(script: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))


def _value(node: ast.expr) -> object:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None
