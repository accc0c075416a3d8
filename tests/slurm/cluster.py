"""Debian's SLURM on this machine: a controller and two nodes with room for one job each; `make slurm` installs it."""

from __future__ import annotations

import getpass
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

PATH = os.pathsep.join([os.environ["PATH"], "/usr/local/sbin", "/usr/sbin"])
"""Daemons are there, also for users without root's rights."""
LONGEST = 300.0
"""Seconds after which what has not happened counts as failed."""
NODES = ("one", "two")
GPUS = "NodeName=one Name=gpu Type=a100 File=/dev/null\n"
CGROUPS = "CgroupPlugin=cgroup/v1\n"
"""None are used, but slurmd loads a plug-in for them; that for the second version wants systemd, which a container lacks."""
CONTROLLER = ("slurmctld", "-D")
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/controller
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/%n
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
KillWait=5
MinJobAge=1000000
GresTypes=gpu
NodeName=one NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=4000 Gres=gpu:a100:1
NodeName=two NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=4000
PartitionName=main Nodes=ALL Default=YES State=UP
"""


class Cluster:
    """SLURM's daemons and commands. All files, keys and ports are its own.

    Args:
        folder: a path so short that that of a socket fits (107 characters).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.configuration = folder / "slurm.conf"
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._environment = os.environ | {"PATH": PATH, "SLURM_CONF": str(self.configuration)}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside the block jobs can be submitted. At its end nothing of the cluster is left, its jobs' processes included."""
        self._configure()
        try:
            files = [f"--{kind}={self.folder}/munge.{kind}" for kind in ("key-file", "socket", "pid-file", "seed-file")]
            self._start("munged", "munged", "--foreground", *files)
            self.wait_for((self.folder / "munge.socket").is_socket, "munged listens")
            self._start("controller", *CONTROLLER)
            for node in NODES:
                self._start(node, "slurmd", "-D", "-N", node)
            self.wait_for(self._is_idle, "both nodes are idle")
            yield
        finally:
            for name in reversed([*self._daemons]):
                self._stop(name)
            self._kill_what_is_left()

    @contextmanager
    def without_controller(self) -> Iterator[None]:
        """Inside the block SLURM's commands get no answer; jobs go on."""
        self._stop("controller")
        yield
        self._start("controller", *CONTROLLER)

    def wait_for(self, happened: Callable[[], bool], what: str) -> None:
        """Returns when something has happened."""
        end = time.monotonic() + LONGEST
        while not happened():
            ended = [name for name, process in self._daemons.items() if process.poll() is not None]
            assert not ended, f"ended before {what}: {ended}\n{self.logs()}"
            assert time.monotonic() < end, f"not in {LONGEST:.0f} s: {what}\n{self.logs()}"
            time.sleep(0.1)

    def run(self, *command: str) -> str:
        """What one of SLURM's commands prints."""
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stderr}\n{self.logs()}"
        return done.stdout

    def queue(self) -> list[str]:
        """Jobs that have not ended."""
        return self.run("squeue", "--noheader", "--format=%i").split()

    def end_jobs(self) -> None:
        """Cancels all jobs and waits for their end."""
        self.run("scancel", "--me")
        self.wait_for(lambda: not self.queue(), "jobs have ended")

    def jobs(self) -> list[str]:
        """Names of all jobs, in the order in which they were submitted."""
        return self.run("squeue", "--states=all", "--noheader", "--sort=i", "--format=%j").splitlines()

    def logs(self) -> str:
        """Ends of the daemons' logs."""
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-2000:]}" for path in self.folder.glob("*.log"))

    def _configure(self) -> None:
        self.folder.chmod(0o755)  # munged insists that everyone can reach its socket
        for name in ("controller", *NODES):
            (self.folder / name).mkdir()
        (self.folder / "munge.key-file").write_bytes(os.urandom(128))
        (self.folder / "munge.key-file").chmod(0o600)
        (self.folder / "cgroup.conf").write_text(CGROUPS)
        (self.folder / "gres.conf").write_text(GPUS)
        with ExitStack() as listening:
            listeners = [listening.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(1 + len(NODES))]
            ports = [listener.getsockname()[1] for listener in listeners]
        host = socket.gethostname().split(".")[0]
        self.configuration.write_text(CONFIGURATION.format(folder=self.folder, host=host, user=getpass.getuser(), ports=ports))

    def _start(self, name: str, *command: str) -> None:
        with open(self.folder / f"{name}.log", "ab") as log:
            self._daemons[name] = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)

    def _stop(self, name: str) -> None:
        process = self._daemons.pop(name)
        process.terminate()
        process.wait(LONGEST)

    def _is_idle(self) -> bool:
        command = ["sinfo", "--noheader", "--Node", "--format=%T"]
        asked = subprocess.run(command, env=self._environment, capture_output=True, text=True)  # it may fail at first
        return asked.stdout.split() == ["idle"] * len(NODES)

    def _kill_what_is_left(self) -> None:
        """Processes of jobs, which have the name of the configuration in their environment."""
        for place in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if place.name != str(os.getpid()) and os.fsencode(self.configuration) in (place / "environ").read_bytes():
                    os.kill(int(place.name), signal.SIGKILL)


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """A cluster that runs."""
    with tempfile.TemporaryDirectory(prefix="slurm", ignore_cleanup_errors=True) as folder:
        cluster = Cluster(Path(folder))
        with cluster.running():
            yield cluster
