"""A Slurm cluster of one node on this machine: munged, slurmctld and slurmd, with all that they read and write in one folder.

They run as whoever starts them, without systemd, cgroups or accounting. By hand: `python -m tests.support.slurm_cluster COMMAND...` runs a command on one.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"  # the daemons' place, which not everybody's PATH has
SECONDS = 30  # how long a daemon may take to start or end

CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SrunPortRange=60001-63000
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdTimeout=600
ReturnToService=2
JobRequeue=1
MinJobAge=600
KillWait=5
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
PropagateResourceLimits=NONE
NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=test Nodes=node Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why there can be no cluster on this machine, and what to do; "" if there can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    return f"no Slurm on this machine ({', '.join(absent)}); on Debian: apt-get install slurm-wlm munge" if absent else ""


@contextlib.contextmanager
def cluster(cpus: int = 2) -> Iterator[dict[str, str]]:
    """A running cluster; the environment variables that lead Slurm's commands to it."""
    with tempfile.TemporaryDirectory(prefix="slurm-") as name, contextlib.ExitStack() as started:  # in /tmp: a socket's path has 107 bytes
        folder = Path(name)
        folder.chmod(0o755)  # or munged refuses it
        for part in ("state", "spool"):
            (folder / part).mkdir()
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o600)
        user = pwd.getpwuid(os.geteuid()).pw_name
        config = folder / "slurm.conf"
        config.write_text(CONFIG.format(folder=folder, user=user, host=socket.gethostname(), ports=free_ports(2), cpus=cpus))
        env = {"SLURM_CONF": str(config), "PATH": PATH}

        def start(*command: str) -> None:
            log = (folder / f"{command[0]}.out").open("wb")
            process = subprocess.Popen(command, env=os.environ | env, stdout=log, stderr=log, start_new_session=True)
            log.close()
            started.callback(end, process)

        def path(part: str) -> str:
            return str(folder / part)

        start(
            "munged", "--foreground", "--socket", path("munge.socket"), "--key-file", path("munge.key"), "--pid-file", path("munged.pid"),
            "--log-file", path("munged.log"), "--seed-file", path("munged.seed"), "--num-threads", "2",
        )  # fmt: skip
        until(folder, lambda: (folder / "munge.socket").exists())
        start("slurmctld", "-D")
        start("slurmd", "-D", "-N", "node")
        until(folder, lambda: ask(env, "sinfo", "-h", "-o", "%T").strip() == "idle")
        started.callback(ask, env, "scancel", "--full", "--user", user)
        yield env


def ask(env: dict[str, str], *command: str) -> str:
    """What a command of Slurm prints."""
    return subprocess.run(command, env=os.environ | env, capture_output=True, text=True, check=False, timeout=SECONDS).stdout


def free_ports(n: int) -> list[int]:
    """Ports on which nobody listens now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


def until(folder: Path, true: Callable[[], bool]) -> None:
    """Wait for a daemon; what they all have written is in the error if it does not come."""
    end = time.monotonic() + SECONDS
    while not true():
        if time.monotonic() > end:
            logs = "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in sorted(folder.glob("*.[lo]*")))
            raise RuntimeError(f"the cluster has not started in {SECONDS} s\n{logs}")
        time.sleep(0.1)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a daemon."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":
    if missing() or not sys.argv[1:]:
        sys.exit(missing() or "expected a command, which is run on a cluster made for it")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # and leave no daemon behind
    with cluster() as env:
        signal.signal(signal.SIGINT, lambda number, frame: None)  # the terminal's Ctrl-C is for the command
        sys.exit(subprocess.run(sys.argv[1:], env=os.environ | env, check=False).returncode)
