"""Child processes that receive the signals of their parent, and are killed when they do not end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdcore.utils.subprocesses import STOP_SIGNALS, Supervisor, shell_code

COUNTS = """
import signal, sys
from pathlib import Path
seen = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
    signal.signal(number, lambda number, frame: seen.append(number))
print("ready", flush=True)
while not seen:
    signal.pause()
signal.setitimer(signal.ITIMER_REAL, 0.2)
signal.signal(signal.SIGALRM, lambda *_: sys.exit(len(seen)))
while True:
    signal.pause()
"""
STUBBORN = """
import signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_reaches_each_process_once(number: signal.Signals, tmp_path: Path) -> None:
    with Supervisor() as supervisor:
        for index in range(2):
            with (tmp_path / str(index)).open("wb") as output:
                supervisor.start([sys.executable, "-c", COUNTS], output=output)
        while any((tmp_path / str(index)).read_bytes() != b"ready\n" for index in range(2)):
            time.sleep(0.01)
        os.kill(os.getpid(), number)
        assert supervisor.wait(60) == []
        assert supervisor.interrupted
        assert [supervisor.code_of(process) for process in supervisor.processes] == [1, 1]


def test_a_process_that_is_started_after_a_signal_receives_it() -> None:
    with Supervisor() as supervisor:
        os.kill(os.getpid(), signal.SIGTERM)
        process = supervisor.start(["sleep", "600"])
        assert supervisor.wait(60) == []
        assert process.returncode == -signal.SIGTERM
        assert supervisor.code_of(process) == 130
        assert supervisor.run(["sleep", "600"]) == 130
        assert supervisor.processes == [process], "no process is started by `run` after a signal"


def test_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with Supervisor():
        assert [signal.getsignal(number) for number in STOP_SIGNALS] != before
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_a_process_that_ignores_sigterm_is_killed_with_its_children(tmp_path: Path) -> None:
    supervisor = Supervisor()
    with (tmp_path / "pid").open("wb") as output:
        process = supervisor.start([sys.executable, "-c", STUBBORN], output=output)
    while not (text := (tmp_path / "pid").read_text()).endswith("\n"):
        time.sleep(0.01)
    supervisor.stop(0.1)
    assert process.returncode == -signal.SIGKILL
    assert supervisor.code_of(process) == -signal.SIGKILL
    for _ in range(6000):
        state = Path(f"/proc/{int(text)}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.01)
    raise AssertionError("the child of the process is still running")


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel has no such signal")
def test_a_process_can_end_with_its_parent() -> None:
    code = "from kdcore import Supervisor; import os, sys\n"
    code += "print(Supervisor().start(['sleep', '600'], end_with_parent=True).pid, flush=True); os.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL
    for _ in range(6000):
        state = Path(f"/proc/{int(done.stdout)}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.01)
    raise AssertionError("the process is still running")


def test_exit_codes_of_a_shell() -> None:
    assert [shell_code(code) for code in (0, 3, -signal.SIGKILL)] == [0, 3, 137]
