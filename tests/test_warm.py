"""Processes that start warm behave as those that start cold, and leave nothing behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from press import ROOT, warm

JOB = """
import os, sys
print(os.getcwd(), os.environ["SAYS"], *sys.argv[1:], flush=True)
if sys.argv[1] == "wait":
    open("pid", "w").write(str(os.getpid()))
    import time
    time.sleep(60)
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def asking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """A folder with a module `job`, a server, and the environment that names it."""
    (tmp_path / "job.py").write_text(JOB)
    monkeypatch.chdir(tmp_path)
    script = f"from press import warm; warm.serve({str(tmp_path / 'server' / 'socket')!r}, {os.getpid()}, ['json'])"
    (tmp_path / "server").mkdir()
    server = subprocess.Popen([sys.executable, "-c", script])
    while not (tmp_path / "server" / "socket").exists():
        time.sleep(0.05)
    yield dict(os.environ) | {warm.SOCKET: str(tmp_path / "server" / "socket"), "SAYS": "hello"}
    server.kill()
    server.wait()


def ask(environment: dict[str, str], *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-SP", str(ROOT / "lib" / "press" / "warm.py"), "job", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def until(condition, seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(condition())


@pytest.mark.parametrize("served", [True, False])
def test_a_warm_job_sees_what_a_cold_one_sees(asking: dict[str, str], tmp_path: Path, served: bool) -> None:
    if not served:
        del asking[warm.SOCKET]
    job = ask(asking, "3", "more")
    with job:
        said, _ = job.communicate(timeout=30)
    assert (said.split(), job.returncode) == ([str(tmp_path), "hello", "3", "more"], 3)


def test_a_job_starts_cold_where_the_server_ends_before_it_forks(asking: dict[str, str], tmp_path: Path) -> None:
    asking[warm.SOCKET] = str(tmp_path / "dying")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(asking[warm.SOCKET])
        server.listen(1)
        with ask(asking, "4") as job:
            server.accept()[0].close()
            assert job.wait(timeout=30) == 4


def test_a_job_ends_with_who_asked(asking: dict[str, str], tmp_path: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        (tmp_path / "pid").unlink(missing_ok=True)
        job = ask(asking, "wait")
        assert until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        pid = int((tmp_path / "pid").read_text())
        assert alive(pid)
        job.send_signal(number)
        with job:
            assert job.wait(timeout=10) in (-number, 128 + number)
        assert until(lambda pid=pid: not alive(pid))


def test_the_server_ends_with_who_started_it(tmp_path: Path) -> None:
    script = "import os; from press import warm; warm.start(); print(os.environ[warm.SOCKET])"
    started = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=20)
    folder = Path(started.stdout.strip()).parent
    assert until(lambda: not folder.exists())
