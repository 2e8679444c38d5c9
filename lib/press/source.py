"""Show code from its real source, whole or in part, so that a page cannot drift from what runs."""

import inspect
from collections.abc import Callable
from textwrap import dedent

from IPython.display import Code

from press import PressError


def show_source(thing: Callable[..., object] | type, start: str = "", lines: int = 0) -> Code:
    """The source of `thing`, from the first line that holds `start`, `lines` long (0: to the end).

    Raises:
        PressError: when no line holds `start`: the source is not what the page says it is.
    """
    text = dedent(inspect.getsource(thing)).splitlines()
    first = next((i for i, line in enumerate(text) if start in line), None)
    if first is None:
        raise PressError(f"no line of {thing.__qualname__} holds {start!r}; look at the source and mend the page")
    chosen = text[first : first + lines] if lines else text[first:]
    return Code(dedent("\n".join(chosen)), language="python")
