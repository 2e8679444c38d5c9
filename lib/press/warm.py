"""Processes that start warm: what every chapter and host imports, some seconds of work, is imported once and forked.

`start` puts a server beside Snakemake, which serves the jobs of one `make book` and ends with it. A job is this file,
`python -SP lib/press/warm.py MODULE ARGUMENTS`: it asks the server for a fork that runs the module on the asker's own
standard streams, and leaves with its exit status; where there is no server it becomes `python -m MODULE`. A kernel is
asked for in the same way.
"""

import array
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

SOCKET = "BRIDGES_WARM"  # names the server's socket file to the jobs
# What chapters and hosts import at their start; a module that is missing here costs its import in every chapter.
MODULES = (
    "bridges.benches.alignment", "bridges.benches.answering", "bridges.benches.translation", "ipykernel.kernelapp",
    "ipywidgets", "papermill", "press.book", "press.chapter",
)  # fmt: skip
# Matplotlib reads it when it is imported; another backend would draw nothing in a page.
INLINE = "module://matplotlib_inline.backend_inline"


def ask(module: str, arguments: list[str]) -> int:
    """Run `python -m MODULE ARGUMENTS` in a fork of the server, with these streams; returns the exit status."""
    with socket.socket(socket.AF_UNIX) as server:
        wanted = {"module": module, "arguments": arguments, "cwd": str(Path.cwd()), "environment": dict(os.environ)}
        text = json.dumps(wanted).encode()
        streams = array.array("i", [0, 1, 2])
        pid = 0
        try:
            server.connect(os.environ[SOCKET])
            server.sendmsg([len(text).to_bytes(8, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
            server.sendall(text)
            pid = int.from_bytes(_whole(server, 8), "big")
        except (KeyError, OSError):
            pass
        if not pid:  # no server, or one that ended before it forked
            os.execv(sys.executable, [sys.executable, "-m", module, *arguments])
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: os.kill(pid, number))
        # Who started this one may be killed: the fork then ends with this process, which nobody waits for any more.
        parent = os.getppid()
        server.settimeout(1.0)
        while os.getppid() == parent:
            try:
                return int.from_bytes(_whole(server, 8) or b"\1", "big")
            except TimeoutError:
                continue
        return 1


def _whole(connection: socket.socket, size: int) -> bytes:
    """As many bytes, or none where the other side is gone."""
    text = b""
    while len(text) < size:
        part = connection.recv(size - len(text))
        if not part:
            return b""
        text += part
    return text


def start() -> None:
    """Start a server that ends with this process, and name it to all that this process starts."""
    import subprocess
    from tempfile import mkdtemp

    os.environ[SOCKET] = str(Path(mkdtemp(prefix="warm-")) / "socket")
    command = [sys.executable, "-m", "press.warm", "serve", os.environ[SOCKET], str(os.getpid())]
    subprocess.Popen(command, env=os.environ | {"MPLBACKEND": INLINE})


def serve(path: str, parent: int, modules: Sequence[str] = MODULES) -> None:
    """Import, and fork for everyone who asks, until the parent ends."""
    from contextlib import suppress
    from importlib import import_module

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # meant for the jobs, which end by themselves
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a fork's keeper
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(64)  # who asks early waits in the queue
        server.settimeout(1.0)
        for module in modules:
            if os.getppid() == parent:
                import_module(module)
        while os.getppid() == parent:
            with suppress(TimeoutError):
                connection = server.accept()[0]
                if not os.fork():
                    server.close()
                    _keep(connection)
                connection.close()
    Path(path).unlink()
    Path(path).parent.rmdir()


def _keep(connection: socket.socket) -> None:
    """In a fork: fork once more for the work, send its number and its exit status; end it when the asker is gone."""
    import threading
    from contextlib import suppress

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    connection.settimeout(None)
    head, rights, *_ = connection.recvmsg(8, socket.CMSG_SPACE(3 * array.array("i").itemsize))
    streams = array.array("i", rights[0][2])
    wanted = json.loads(_whole(connection, int.from_bytes(head, "big")))
    pid = os.fork()
    if not pid:
        connection.close()
        for place, stream in enumerate(streams):
            os.dup2(stream, place)
            os.close(stream)
        _become(**wanted)
    connection.sendall(pid.to_bytes(8, "big"))

    def watch() -> None:
        connection.recv(1)  # nothing is sent: it returns when the asker is gone
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    connection.sendall((status if status >= 0 else 128 - status).to_bytes(8, "big"))
    os._exit(0)


def _become(module: str, arguments: list[str], cwd: str, environment: dict[str, str]) -> None:
    """In the fork's fork: run the module as `python -m` would, and end."""
    import runpy
    import traceback

    os.setsid()  # a signal to the asker's group reaches the asker, which passes it on
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    if "JPY_PARENT_PID" in environment:  # a kernel ends with this process, whose number it read when it was imported
        arguments = [*arguments, f"--IPKernelApp.parent_handle={os.getppid()}"]
    os.chdir(cwd)
    sys.argv = [module, *arguments]
    sys.path[0] = cwd
    status: object = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code
        if isinstance(status, str):
            print(status, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))


if __name__ == "__main__":
    sys.exit(serve(sys.argv[2], int(sys.argv[3])) if sys.argv[1] == "serve" else ask(sys.argv[1], sys.argv[2:]))  # type: ignore[func-returns-value]
