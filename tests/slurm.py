"""A Slurm of one node on this machine, for the tests: `python tests/slurm.py COMMAND...` runs a command beside it.

Without a command it installs Debian's packages where there are none. Everything listens on the loopback alone.
"""

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
# A job's own srun reads this file, whatever SLURM_CONF says where the job was submitted.
CONF = Path("/etc/slurm/slurm.conf")
MARK = "# Written by tests/slurm.py, which takes it away again.\n"
SECONDS = 60  # to start within


class NoSlurm(Exception):
    """Why none can be had here, in one line."""


def missing() -> list[str]:
    """The programs that are not installed."""
    return [name for name in PROGRAMS if not shutil.which(name)]


def install() -> None:
    """Install Slurm with the system's packages; raises NoSlurm where that is not possible."""
    if not (shutil.which("apt-get") and os.geteuid() == 0):
        raise NoSlurm(f"no {', '.join(missing())} here; as root on Debian or Ubuntu: apt install {' '.join(PACKAGES)}")
    # Slurm's daemons are started by the tests, not by the packages.
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        try:
            subprocess.run(["apt-get", "-qq", *command], env=environment, check=True, stdout=subprocess.DEVNULL)
        except subprocess.CalledProcessError as error:
            raise NoSlurm(f"Slurm could not be installed ({error})") from None


@contextmanager
def cluster(cpus: int = 4) -> Iterator[None]:
    """Slurm runs inside; raises NoSlurm where it cannot.

    The daemons end with this process, however it ends. `cpus` may be more than there are.
    """
    if missing():
        raise NoSlurm(f"no {', '.join(missing())} on this machine: python tests/slurm.py installs them")
    if os.geteuid() != 0:
        raise NoSlurm("only root can start Slurm's daemons")
    with ExitStack() as stack:
        # One at a time: another checkout's tests may be at it.
        alone = stack.enter_context(Path("/run/where-bridges-break-slurm.lock").open("w"))
        fcntl.flock(alone, fcntl.LOCK_EX)
        if CONF.exists() and not CONF.read_text().startswith(MARK):
            raise NoSlurm(f"this machine has a Slurm of its own ({CONF})")
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="slurm-")))
        stack.callback(CONF.unlink, missing_ok=True)
        _configure(folder, cpus)
        for command in _daemons(folder):
            stack.enter_context(_running(command, folder))
        stack.callback(cancel_all)
        _wait_for_node(folder)
        yield


def _configure(folder: Path, cpus: int) -> None:
    folder.chmod(0o755)
    munge = folder / "munge"
    munge.mkdir()
    (munge / "key").write_bytes(os.urandom(64))
    (munge / "key").chmod(0o400)
    for path in (munge, munge / "key"):
        shutil.chown(path, "munge", "munge")
    with socket.socket() as one, socket.socket() as two:
        for port in (one, two):
            port.bind(("127.0.0.1", 0))
        ports = one.getsockname()[1], two.getsockname()[1]
    host = socket.gethostname().split(".")[0]  # as slurmd looks for itself
    CONF.parent.mkdir(exist_ok=True)
    CONF.write_text(
        f"""{MARK}ClusterName=book
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={munge}/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,batch_sched_delay=1
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=16000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
    )


def _daemons(folder: Path) -> list[list[str]]:
    munge = folder / "munge"
    # setpriv ends each daemon when this process ends; none of them forks, so that its id is the one started here.
    ends = ["setpriv", "--pdeathsig", "TERM"]
    own = ["--reuid", "munge", "--regid", "munge", "--clear-groups"]
    names = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    files = [f"--{option}={munge / name}" for option, name in names.items()]
    return [[*ends, *own, "munged", "--foreground", *files], [*ends, "slurmctld", "-D"], [*ends, "slurmd", "-D"]]


@contextmanager
def _running(command: list[str], folder: Path) -> Iterator[None]:
    with (folder / "daemons.log").open("a") as log, subprocess.Popen(command, stdout=log, stderr=log) as daemon:
        try:
            yield
        finally:
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()


def _wait_for_node(folder: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        asked = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True, check=False)
        if asked.stdout.strip() == "idle":
            return
        time.sleep(0.5)
    raise NoSlurm(f"Slurm did not start within {SECONDS} s:\n{(folder / 'daemons.log').read_text()[-2000:]}")


def jobs() -> list[str]:
    """The ids of the jobs that wait or run."""
    return subprocess.run(["squeue", "-h", "-o", "%i"], capture_output=True, text=True, check=True).stdout.split()


def cancel_all() -> None:
    """Ends all jobs, and waits for their end."""
    deadline = time.monotonic() + SECONDS
    if left := jobs():
        subprocess.run(["scancel", "--full", *left], check=True)
    while jobs() and time.monotonic() < deadline:
        time.sleep(0.2)


def main() -> int:
    try:
        if missing():
            print("installing Slurm for its tests", flush=True)
            install()
        if sys.argv[1:]:
            with cluster():
                return subprocess.run(sys.argv[1:], check=False).returncode
    except NoSlurm as error:
        # The tests skip without it, and say so.
        print(f"no Slurm: {error}", file=sys.stderr)
        return 1 if sys.argv[1:] else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
