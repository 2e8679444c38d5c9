"""The forms in which trainings leave their logs, each read into rows: names with what stands under them."""

import csv
import gzip
import io
import json
import math
import re
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SEPARATORS = (",", ";", "\t", "|", r"\s+")  # of cells; the last stands for any white space
TENSORBOARD = ("Wall time", "Step", "Value")  # the columns of its export, which names no loss
HELD_OUT = {"val", "valid", "validation", "eval", "evaluation", "evaluating", "test", "testing", "dev", "heldout"}
COUNTED = {"epoch", "step", "steps", "iter", "iteration", "batch"}  # what a line is about, and no result
BLANK = {"", "—", "no log"}  # the last is what a Trainer's table says before its first loss
OF_ALL = "n of all"  # the name that rows of text have for a bar's 30/1000

# `loss: 4.85`, `loss=4.85`, `train loss 4.85`, `'loss': '4.85'`, `Step [10/600]`, `loss: tensor(4.85, ...)`: a name of
# one word or two, and a number that is no part of a longer one, of a share in percent or of a time.
NUMBER = r"[-+]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|nan|inf(?:inity)?)(?![\w%]|[.,]\d)"
NAME = r"(?!(?:info|debug|warning) )[A-Za-z_][\w./@-]*(?: [A-Za-z_][\w./@-]*)?"
PAIR = re.compile(
    rf"(?<![\w./])['\"]?({NAME})['\"]?(?:\s*[:=]\s*|\s+)\[?\s*['\"]?(?:tensor\(\[?)?({NUMBER})", re.IGNORECASE
)
BAR = re.compile(r"(?<![\d.])(\d+)/\d+ \[|\[ *(\d+)/ *\d+")  # tqdm's 30/1000 [00:10<05:00, and [  64/109468 (0%)]
ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # colours of a terminal

Row = tuple[str, dict[str, Any]]  # where it stands in the file, and what it holds by name


def ordered_words(name: str) -> list[str]:
    """The words of a name in lower case: the same two of `trainLoss`, `train/loss` and wandb's `run 3 - train/loss`."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.rpartition(" - ")[2])
    return [word for word in re.split(r"[^a-z]+", name.lower()) if word]


def words(name: str) -> set[str]:
    """`ordered_words`, in no order."""
    return set(ordered_words(name))


def number(value: Any) -> float:
    """A number, also in the text of one, with a point or a comma; not a number for what is none."""
    if isinstance(value, str):
        value = value.strip().strip("\"'")
        value = value.replace(",", ".") if value.count(",") == 1 and "." not in value else value
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def blank(value: Any) -> bool:
    """Whether a cell is empty, or says so with a dash."""
    return value is None or (isinstance(value, str) and (value.strip().lower() in BLANK or not value.strip(" :-")))


def read_rows(path: Path, wanted: Callable[[str], bool]) -> tuple[list[Row], tuple[str, ...]]:
    """The rows of a log, and which of its lines were passed over; nothing is executed.

    Tables with a header, JSON lines, one JSON document, or text that tells names with numbers; any of them gzipped.

    Args:
        path: the file.
        wanted: which names are looked for: a table is known by having one in its header.

    Raises:
        ValueError: for a file that cannot be read as text, naming the line where there is one.
    """
    text = _text(path)
    lines = [line for line in text.split("\n") if line.strip()]
    parsed = sum(isinstance(_json(line), dict) for line in lines)
    if path.name.lower().removesuffix(".gz").endswith((".jsonl", ".ndjson")) or 2 * parsed > len(lines) > 1:
        return _json_lines(path, text)
    if lines and lines[0].lstrip()[0] in "[{" and (whole := _json(text)) is not None:
        return list(_document(whole)), ()
    if table := _table(path, text, wanted):
        return table, ()
    if lines and all(math.isfinite(number(line)) for line in lines):  # one column without a name, as numpy saves it
        return [(f"line {n}", {"loss": line}) for n, line in enumerate(text.split("\n"), 1) if line.strip()], ()
    return list(_told(text)), ()


def beginning(path: Path) -> str:
    """The first line of a file that says anything, in short: what a refusal shows of it."""
    return next((repr(line.strip()[:60]) for line in _text(path).split("\n") if line.strip()), "with nothing")


def _text(path: Path) -> str:
    data = path.read_bytes()
    try:
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is gzipped and damaged ({error}): unpack what is left of it, and give that") from None
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):  # as PowerShell and Excel write
        text = data.decode("utf-16", errors="replace")
    elif b"\0" in data:
        raise ValueError(f"{path} is no text: give the log as it was printed, or its scalars as CSV")
    else:
        text = data.decode("utf-8-sig", errors="replace")  # numbers and most names survive another encoding
    return ESCAPES.sub("", text.replace("\r\n", "\n"))


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _json_lines(path: Path, text: str) -> tuple[list[Row], tuple[str, ...]]:
    rows: list[Row] = []
    lines = text.split("\n")
    for count, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append((f"line {count}", dict(_flat(json.loads(line)))))
        except (ValueError, RecursionError) as error:
            if count == len(lines) and rows:  # no line end behind it: the run was killed while it wrote
                return rows, (f"line {count}, torn",)
            told = getattr(error, "msg", error)
            raise ValueError(f"{path}, line {count}: no JSON ({told}): mend the line, or take it out") from None
    return rows, ()


def _flat(entry: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """The names and values of an entry, those of entries inside it with both names."""
    for name, value in entry.items() if isinstance(entry, dict) else ():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}/")
        else:
            yield f"{before}{name}", value


def _document(whole: Any, name: str = "entry ") -> Iterator[Row]:
    """The entries of one JSON document: of its lists of entries, or of its lists of numbers, one a name."""
    if isinstance(whole, list):
        for place, entry in enumerate(whole):
            if isinstance(entry, list) and len(entry) == len(TENSORBOARD):  # as TensorBoard gives one scalar
                entry = dict(zip(TENSORBOARD, entry, strict=True))
            if isinstance(entry, dict):
                yield f"{name}[{place}]", dict(_flat(entry))
    elif isinstance(whole, dict):
        values = {
            key: value for key, value in whole.items() if isinstance(value, list) and not any(map(_nested, value))
        }
        for place in range(max(map(len, values.values()), default=0)):
            yield f"{name}[{place}]", {key: value[place] for key, value in values.items() if place < len(value)}
        for key, value in whole.items():
            if key not in values:
                yield from _document(value, key)


def _nested(value: Any) -> bool:
    return isinstance(value, dict | list)


def _table(path: Path, text: str, wanted: Callable[[str], bool]) -> list[Row]:
    """The rows of a table with a header; none where the text is no table of what is wanted."""
    lines = text.replace("\r", "\n").split("\n")
    filled = [place for place, line in enumerate(lines) if line.strip()][:200]
    for place, header in enumerate(filled[:20]):  # a comment, or Excel's sep=; may stand before it
        for separator in SEPARATORS:
            names = _cells(lines[header], separator)
            columns = [i for i, name in enumerate(names) if wanted(name) and not PAIR.search(name)]
            columns += [names.index("Value")] if set(TENSORBOARD) <= set(names) else []
            below = (_cells(lines[i], separator) for i in filled[place + 1 :]) if columns else ()
            if any(_fits(row, names, separator) and math.isfinite(number(row[i])) for row in below for i in columns):
                return _read_table(path, lines, header, separator)
    return []


def _cells(line: str, separator: str) -> list[str]:
    if separator == r"\s+":
        return line.split()
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])]
    except csv.Error:  # a line too long for a row
        return []


def _fits(row: list[str], names: list[str], separator: str) -> bool:
    """Whether a line can be a row under these names; between words of prose there is white space too."""
    if len(row) < len(names):
        return False
    return separator != r"\s+" or all(math.isfinite(number(cell)) for cell in row)


def _read_table(path: Path, lines: list[str], header: int, separator: str) -> list[Row]:
    import pandas as pd  # half a second, for which other forms need not wait

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # cells that it would cut off
            table = pd.read_csv(
                io.StringIO("\n".join(lines[header:])),
                sep=separator,
                dtype=str,
                index_col=False,
                keep_default_na=False,
                skip_blank_lines=False,
                skipinitialspace=True,
            ).fillna("")
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        place = re.search(r"in line (\d+)", str(error))
        if not place and isinstance(error, pd.errors.ParserError):
            told = str(error).splitlines()[0].removeprefix("Error tokenizing data. C error: ")
            raise ValueError(
                f"{path} is a table that breaks off ({told}): look for a quotation mark too many"
            ) from None
        line = header + (int(place[1]) if place else 2)
        raise ValueError(
            f"{path}, line {line}: more cells than the header in line {header + 1} has names: name each column"
        ) from None
    table.columns = [str(name).strip() for name in table.columns]
    rows = [(f"line {header + 2 + i}", row) for i, row in enumerate(table.to_dict("records"))]
    return [(place, row) for place, row in rows if any(row[name] != name for name in row)]  # a header that came again


def _told(text: str) -> Iterator[Row]:
    """Names with numbers, line by line; the parts of a progress bar, which writes over its line, are lines too."""
    last: dict[str, Any] = {}
    for count, line in enumerate(text.split("\n"), 1):
        parts = line.split("\r")
        for place, part in enumerate(parts, 1):
            row: dict[str, Any] = {}
            end, held_out = 0, False
            for pair in PAIR.finditer(part):
                own, name = words(pair[1]), pair[1]
                held_out |= bool(words(part[end : pair.start()]) & HELD_OUT)  # `Test: [10/100] Loss 4.85`
                held_out |= bool(own & HELD_OUT) and own - HELD_OUT <= COUNTED
                if held_out and not own & (HELD_OUT | {"train", "training"}):
                    name = f"eval {name}"
                row.setdefault(name, pair[2])
                end = pair.end()
            if row and (bar := BAR.search(part)):
                row[OF_ALL] = bar[1] or bar[2]
            if row and not (row == last and len(parts) > 1):  # a bar is drawn again where nothing is new
                yield f"line {count}" + (f", part {place}" if len(parts) > 1 else ""), row
                last = row
