"""Which files of `lib` a script uses: what its run depends on."""

from modulefinder import ModuleFinder
from pathlib import Path

from press import ROOT

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
