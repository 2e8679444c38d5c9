"""One at a time: a lock that the system releases when its process ends, however it ends."""

import fcntl
import os
import platform
from pathlib import Path
from typing import IO

from press import BUILD, PressError

# Held by whatever runs the workflow: the lock, and what to say to a second one.
WORKFLOW = (BUILD / "lock", "another make book or sweep is at work in this folder")


def hold(lock: Path, refusal: str) -> IO[str]:
    """Hold a lock until the returned file is closed, there and in every process that inherited it.

    Raises:
        PressError: when another process holds it, with `refusal` and that process.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = lock.open("a+")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held.seek(0)
        process = held.read() or "unknown"
        held.close()
        raise PressError(f"{refusal} (process {process}): wait for it, or end it") from None
    held.truncate(0)
    held.write(f"{os.getpid()} on {platform.node()}")
    held.flush()
    return held
