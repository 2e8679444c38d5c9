"""What a setting is made of, as plain data and as a digest: two settings that train alike have one."""

import ast
import hashlib
import inspect
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import PurePath
from textwrap import dedent
from types import CodeType, SimpleNamespace
from typing import Any

PARAMETERS = {"profile", "seeds", "device", "out"}  # of every chapter: they say which runs are made, not what a run is


def label(arm: Hashable) -> str:
    """An arm's name as it stands in a row: a tuple's parts between bars."""
    return " | ".join(map(str, arm)) if isinstance(arm, tuple) else str(arm)


def fingerprint(thing: Any) -> Any:
    """What a setting is made of, as plain data: two settings that train alike have one fingerprint.

    A function is its syntax tree without docstrings, with that of the functions and the values of the constants that it
    names in its own module; a dataclass its fields, defaults too, but for those that are off (None, False, 0, empty):
    so a new option that is off changes nothing. What else a dataclass rests on it says in a property `depends`; a field
    with `settings` False in its metadata is left out.

    Raises:
        ValueError: for a lambda, whose source cannot be told from its neighbours', or for what cannot be written down.
    """
    if thing is None or isinstance(thing, str | bool | int):
        return thing
    if isinstance(thing, float):
        return repr(thing)
    if isinstance(thing, PurePath):
        return thing.name
    if isinstance(thing, partial):
        return ["partial", fingerprint(thing.func), fingerprint(thing.args), fingerprint(thing.keywords)]
    if is_dataclass(thing) and not isinstance(thing, type):
        kept = {f.name: getattr(thing, f.name) for f in fields(thing) if f.metadata.get("settings", True) and f.init}
        found = {name: fingerprint(v) for name, v in kept.items() if not _off(v)}
        return [type(thing).__name__, found, fingerprint(getattr(thing, "depends", None))]
    if isinstance(thing, Mapping):
        return {label(key): fingerprint(value) for key, value in thing.items()}
    if isinstance(thing, SimpleNamespace):  # a chapter's sizes, of which the number of seeds bears on no single run
        return fingerprint({k: v for k, v in vars(thing).items() if k != "seeds"})
    if isinstance(thing, Sequence | range):
        return [fingerprint(part) for part in thing]
    if inspect.ismethod(thing):
        return [fingerprint(thing.__self__), thing.__func__.__name__]
    if inspect.isfunction(thing):
        return _function(thing, set())
    if isinstance(thing, type):
        return thing.__name__
    raise ValueError(
        f"{thing!r} in an arm's settings cannot be written down: give numbers, names, dataclasses, functions"
    )


def digest(*things: Any) -> str:
    """Twelve hexadecimal digits of the settings' SHA-256."""
    text = json.dumps([fingerprint(thing) for thing in things], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def syntax(source: str) -> str:
    """A source's syntax tree without its docstrings: what comments and layout do not change."""
    tree = ast.parse(dedent(source))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        holds = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if holds and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            node.body = body[1:]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _off(value: Any) -> bool:
    return value is None or (isinstance(value, bool | int | str | tuple) and not value)


def _function(function: Callable[..., Any], seen: set[str]) -> Any:
    name = function.__qualname__
    if "<lambda>" in name:
        raise ValueError(
            "an arm's settings hold a lambda: give the function a name with def, so that it can be compared"
        )
    if function.__module__.startswith("bridges."):
        return f"{function.__module__}.{name}"  # the library's: held by the engine's own digest
    seen.add(name)
    names = _names(function.__code__)
    nonlocals = inspect.getclosurevars(function).nonlocals
    held = {**function.__globals__, **nonlocals}
    known = {k: v for k, v in held.items() if k in names and k not in PARAMETERS}
    parts: dict[str, Any] = {}
    for key, value in sorted(known.items()):
        if inspect.isfunction(value):
            if value.__module__ == function.__module__ and value.__qualname__ not in seen:
                parts[key] = _function(value, seen)
        elif _settled(value):
            parts[key] = fingerprint(value)
    return [syntax(inspect.getsource(function)), parts]


def _settled(value: Any) -> bool:
    """Whether a value that a function names is a setting: plain data, through and through."""
    if isinstance(value, Mapping):
        return all(map(_settled, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_settled, value))
    return isinstance(value, str | int | float | range) or (is_dataclass(value) and not isinstance(value, type))


def _names(code: CodeType) -> set[str]:
    """The names that a function's code uses from outside, those of its comprehensions and inner functions too."""
    inner = [part for part in code.co_consts if isinstance(part, CodeType)]
    return {*code.co_names, *code.co_freevars}.union(*map(_names, inner))
