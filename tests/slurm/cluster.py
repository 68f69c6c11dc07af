"""A real SLURM of three nodes on this machine, in a temporary folder: `python cluster.py up FOLDER`, `... down FOLDER`.

It needs root and Debian's packages, which `make test-slurm` installs: munge, slurmctld, slurmd, slurmdbd and MariaDB
run as daemons of their own, on free ports, beside whatever else runs here. `down` ends them by their pid files. Outside
of the folder there is only a line in /etc/hosts: the processes of a job find each other by the names of their nodes.

The nodes node1 and node2 are those of the partitions:
    low      preempted by `high`, 30 s after its signal
    instant  preempted by `high` at once
    high     preempts the others
node3 (partition `apart`) sees an empty folder where the others see FOLDER/shared: what is not on a shared file system.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

NODES = ("node1", "node2", "node3")
CPUS = 2
PROGRAMS = ("munged", "mariadbd", "mysql_install_db", "slurmdbd", "slurmctld", "slurmd", "sbatch", "sacctmgr")
ACCOUNT = "lab"

_HOSTS = Path("/etc/hosts")
_START_SECONDS = 60
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def missing() -> str | None:
    """What keeps a cluster from being brought up on this machine; None if nothing does."""
    if os.geteuid() != 0:
        return "a test cluster needs root"
    absent = [program for program in PROGRAMS if shutil.which(program, path=_PATH) is None]
    return f"not installed here: {', '.join(absent)} (`make test-slurm` installs them)" if absent else None


class Cluster:
    """The daemons that live in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shared = folder / "shared"
        self.configuration = folder / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which SLURM's commands talk to this cluster and to no other."""
        return {"SLURM_CONF": str(self.configuration), "PATH": _PATH}

    def up(self) -> None:
        """Start everything and wait until the nodes take jobs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        for name in ("log", "pid", "state", "spool", "shared", "munge"):
            (self.folder / name).mkdir(exist_ok=True)
        _add_host_names(self.folder)
        ports = _free_ports(len(NODES) + 3)
        self._munge()
        self._database(ports[0])
        self._write_configuration(ports)
        self._start_accounting()
        self._start("slurmctld", ["slurmctld"], self.folder / "pid" / "slurmctld")
        until(lambda: "UP" in self.run("scontrol", "ping", check=False), _START_SECONDS, "slurmctld answers")
        for node in NODES:
            self.start_node(node)

    def start_node(self, node: str) -> None:
        """Start the daemon of one node, and wait until the node takes jobs."""
        command = ["slurmd", "-N", node]
        if node == NODES[-1]:
            hide = f"mount -t tmpfs none {self.shared} && exec {' '.join(command)}"
            command = ["unshare", "--mount", "sh", "-c", hide]
        self._start(f"slurmd-{node}", command, self.pid_file(node))
        until(lambda: self.state(node) in ("idle", "mixed", "allocated"), _START_SECONDS, f"{node} takes jobs")

    def pid_file(self, node: str) -> Path:
        """Where the daemon of a node leaves the number of its process."""
        return self.folder / "pid" / f"slurmd-{node}"

    def kill_node(self, node: str) -> None:
        """Kill a node's daemon, which leaves the processes of its jobs alone."""
        os.kill(int(self.pid_file(node).read_text(encoding="utf-8")), signal.SIGKILL)
        self.pid_file(node).unlink()

    def state(self, node: str) -> str:
        """What SLURM thinks of a node, such as `idle`."""
        return self.run("sinfo", "--noheader", "--nodes", node, "--format=%T", check=False).split("\n")[0].strip()

    def preempt_with_user_signal(self, wanted: bool) -> None:
        """Whether a job that has a grace time receives the signal that it requested, USR2, before its end."""
        lines = self.configuration.read_text(encoding="utf-8").splitlines()
        lines = [line for line in lines if not line.startswith("SlurmctldParameters=")]
        if wanted:
            lines.append("SlurmctldParameters=preempt_send_user_signal")
        self.configuration.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self.run("scontrol", "reconfigure")

    def run(self, *command: str, check: bool = True) -> str:
        """What a command of SLURM prints."""
        done = subprocess.run(command, env={**os.environ, **self.environment}, capture_output=True, text=True)
        if check and done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}{done.stdout}")
        return done.stdout

    def down(self) -> None:
        """End the jobs, then the daemons, each by its number; the folder stays."""
        if (self.folder / "pid" / "slurmctld").is_file():
            self.run("scancel", "--state=PENDING", "--user=root", check=False)
            self.run("scancel", "--state=RUNNING", "--user=root", check=False)
            with contextlib.suppress(TimeoutError):
                until(lambda: not self.run("squeue", "--noheader", check=False).strip(), 20, "the jobs have ended")
        names = [*(f"slurmd-{node}" for node in NODES), "slurmctld", "slurmdbd", "mariadbd", "munged"]
        for name in names:
            _end(self.folder / "pid" / name)
        _remove_host_names(self.folder)

    def _munge(self) -> None:
        folder = self.folder / "munge"
        key = folder / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        places = {"socket": "socket", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={folder / name}" for option, name in places.items()]
        pid = self.folder / "pid" / "munged"
        command = ["munged", f"--key-file={key}", f"--pid-file={pid}", *options]
        self._start("munged", command, pid)

    def _database(self, port: int) -> None:
        data, pid = self.folder / "database", self.folder / "pid" / "mariadbd"
        quiet = (self.folder / "log" / "mariadbd").open("ab")
        install = ["mysql_install_db", "--user=root", f"--datadir={data}", "--skip-test-db", "--no-defaults"]
        subprocess.run(install, env={**os.environ, "PATH": _PATH}, stdout=quiet, stderr=quiet, check=True)
        setup = self.folder / "setup.sql"
        setup.write_text(
            "CREATE DATABASE slurm_acct_db;\n"
            "CREATE USER slurm@'127.0.0.1' IDENTIFIED BY 'slurm';\n"
            "GRANT ALL ON slurm_acct_db.* TO slurm@'127.0.0.1';\n",
            encoding="utf-8",
        )
        options = {
            "user": "root",
            "datadir": data,
            "socket": data / "socket",
            "port": port,
            "bind-address": "127.0.0.1",
            "skip-name-resolve": 1,
            "pid-file": pid,
            "init-file": setup,
            "innodb-buffer-pool-size": "64M",
            "innodb-flush-log-at-trx-commit": 0,
        }
        command = ["mariadbd", "--no-defaults", *(f"--{name}={value}" for name, value in options.items())]
        subprocess.Popen(command, env={**os.environ, "PATH": _PATH}, stdout=quiet, stderr=quiet, start_new_session=True)
        until(lambda: _listens(port), _START_SECONDS, "the database answers")
        self._database_port = port

    def _write_configuration(self, ports: Sequence[int]) -> None:
        folder, munge = self.folder, self.folder / "munge" / "socket"
        dbd = folder / "slurmdbd.conf"
        dbd.write_text(
            f"""\
AuthType=auth/munge
AuthInfo=socket={munge}
DbdHost=localhost
DbdPort={ports[1]}
SlurmUser=root
LogFile={folder}/log/slurmdbd
PidFile={folder}/pid/slurmdbd
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={self._database_port}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
""",
            encoding="utf-8",
        )
        dbd.chmod(0o600)
        nodes = "\n".join(
            f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs={CPUS} RealMemory=8000"
            for node, port in zip(NODES, ports[3:], strict=True)
        )
        # Jobs take their ports from their ids: those of two clusters on one machine must not be the same.
        first_job = random.randrange(1, 500_000)
        # cred_expire is also how long a job waits that was put back into the queue: two minutes by default.
        self.configuration.write_text(
            f"""\
ClusterName=kdcore
SlurmctldHost={socket.gethostname()}(127.0.0.1)
SlurmctldPort={ports[2]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={munge},cred_expire=6
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2
SlurmdTimeout=12
KillWait=10
MinJobAge=600
FirstJobId={first_job}
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/pid/slurmctld
SlurmctldLogFile={folder}/log/slurmctld
SlurmdPidFile={folder}/pid/slurmd-%n
SlurmdLogFile={folder}/log/slurmd-%n
SlurmdSpoolDir={folder}/spool/%n
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort={ports[1]}
AccountingStoragePass={munge}
AccountingStorageEnforce=associations
{nodes}
PartitionName=low Nodes=node[1-2] Default=YES PriorityTier=1 GraceTime=30
PartitionName=instant Nodes=node[1-2] PriorityTier=1
PartitionName=high Nodes=node[1-2] PriorityTier=10 PreemptMode=OFF
PartitionName=apart Nodes=node3 PriorityTier=1
SlurmctldParameters=preempt_send_user_signal
""",
            encoding="utf-8",
        )

    def _start_accounting(self) -> None:
        self._start("slurmdbd", ["slurmdbd"], self.folder / "pid" / "slurmdbd")
        port = int(self.configuration.read_text(encoding="utf-8").split("AccountingStoragePort=")[1].split()[0])
        until(lambda: _listens(port), _START_SECONDS, "slurmdbd answers")
        for what in (["cluster", "kdcore"], ["account", ACCOUNT], ["user", "root", f"account={ACCOUNT}"]):
            self.run("sacctmgr", "--immediate", "add", *what)

    def _start(self, name: str, command: Sequence[str], pid: Path) -> None:
        with (self.folder / "log" / name).open("ab") as log:
            subprocess.run(
                command,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=True,
                start_new_session=True,
            )
        until(lambda: pid.is_file() and bool(pid.read_text(encoding="utf-8").strip()), _START_SECONDS, f"{name} runs")


def until(condition: Callable[[], Any], seconds: float, what: str, log: Callable[[], str] = str) -> Any:
    """Wait for something to become true; gives what it became.

    Raises:
        TimeoutError: it did not; with what is known from `log`.
    """
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.0f} s until {what}\n{log()}")
        time.sleep(0.1)


def _end(pid_file: Path) -> None:
    if not pid_file.is_file():
        return
    number = int(pid_file.read_text(encoding="utf-8"))
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(number, signal_number)
        except ProcessLookupError:
            break
        with contextlib.suppress(TimeoutError):
            until(lambda: _has_ended(number), 15, "it has ended")
    pid_file.unlink(missing_ok=True)


def _has_ended(number: int) -> bool:
    """Whether a process no longer runs, although its exit code may not have been read yet."""
    try:
        return Path(f"/proc/{number}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _hosts_line(folder: Path) -> str:
    return f"127.0.0.1 {' '.join(NODES)}  # test cluster {folder}\n"


def _add_host_names(folder: Path) -> None:
    text = _HOSTS.read_text(encoding="utf-8")
    if text and not text.endswith("\n"):
        text += "\n"
    _HOSTS.write_text(text + _hosts_line(folder), encoding="utf-8")


def _remove_host_names(folder: Path) -> None:
    text = _HOSTS.read_text(encoding="utf-8")
    _HOSTS.write_text(text.replace(_hosts_line(folder), ""), encoding="utf-8")


def main() -> int:
    """Bring a cluster up, or take it down."""
    if len(sys.argv) != 3 or sys.argv[1] not in ("up", "down"):
        print("usage: python cluster.py up|down FOLDER", file=sys.stderr)
        return 2
    reason = missing()
    if reason is not None:
        print(f"error: {reason}", file=sys.stderr)
        return 2
    cluster = Cluster(Path(sys.argv[2]).absolute())
    if sys.argv[1] == "down":
        cluster.down()
        return 0
    try:
        cluster.up()
    except BaseException:
        cluster.down()
        raise
    print("\n".join(f"export {name}={value}" for name, value in cluster.environment.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
