"""A throw-away Slurm of one node on the loopback: munged, slurmctld and slurmd by hand, gone afterwards. Needs root."""

import os
import shutil
import socket
import stat
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")


def missing() -> list[str]:
    """Which of Slurm's programs are not installed."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


class Slurm:
    """Two partitions, ``low`` and ``high``, which preempts it; ``gpus`` logical GPUs: null devices."""

    def __init__(self, folder: Path, *, gpus: int, cpus: int, grace_s: int = 60) -> None:
        self.folder = folder
        folder.chmod(0o755)
        for name in ("state", "spool", "munge"):
            (folder / name).mkdir(mode=0o755)
        devices = [folder / f"gpu{index}" for index in range(gpus)]
        for device in devices:
            os.mknod(device, stat.S_IFCHR | 0o600, os.makedev(1, 3))
        host = socket.gethostname().partition(".")[0]
        ports = free_ports(2)
        (folder / "gres.conf").write_text("".join(f"Name=gpu File={device}\n" for device in devices))
        (folder / "slurm.conf").write_text(
            f"""ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0
KillWait=60
OverTimeLimit=0
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=16000 Gres=gpu:{gpus} State=UNKNOWN
PartitionName=low Nodes={host} Default=YES PriorityTier=1 GraceTime={grace_s} MaxTime=INFINITE State=UP
PartitionName=high Nodes={host} PriorityTier=2 PreemptMode=OFF MaxTime=INFINITE State=UP
"""
        )
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self.daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """All three daemons; returns when the node is idle."""
        munge = self.folder / "munge"
        key = munge / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        files = [f"--{name}-file={munge}/{name}" for name in ("pid", "log", "seed")]
        self._daemon(["munged", "-F", "--force", f"--key-file={key}", f"--socket={munge}/socket", *files])
        self._until(lambda: (munge / "socket").exists())
        self._daemon(["slurmctld", "-D", "-c", "-L", str(self.folder / "slurmctld.log")])
        self._daemon(["slurmd", "-D", "-L", str(self.folder / "slurmd.log")])
        self._until(lambda: "idle" in self.ask("sinfo", "-h", "-o", "%t", check=False))

    def _daemon(self, command: list[str]) -> None:
        with (self.folder / "daemons.log").open("ab") as log:
            self.daemons.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=log))

    def _until(self, true: object, seconds: float = 60) -> None:
        assert callable(true)
        end = time.monotonic() + seconds
        while not true():
            if time.monotonic() > end or any(daemon.poll() is not None for daemon in self.daemons):
                raise RuntimeError(f"Slurm did not come up; see {self.folder}/*.log")
            time.sleep(0.3)

    def ask(self, *command: str, check: bool = True, cwd: Path | None = None, **more: str) -> str:
        """What a command of Slurm prints."""
        done = subprocess.run(command, env=self.environment | more, cwd=cwd, capture_output=True, text=True, timeout=60)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def states(self) -> dict[str, str]:
        """job or task -> its state, of all that Slurm remembers."""
        lines = self.ask("squeue", "-h", "-r", "-t", "all", "-o", "%i %T", check=False).splitlines()
        return dict(line.split(maxsplit=1) for line in lines if line)

    def stop(self) -> None:
        """End what still runs, then the daemons, each by its process."""
        if self.daemons:
            self.ask("scancel", "-f", "-s", "KILL", "-u", "root", check=False)
            time.sleep(2)
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
