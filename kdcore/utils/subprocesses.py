"""Start child processes, forward stop signals to them, and stop those that do not exit.

This module is quick to import, because a launcher must handle signals before anything else is imported.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import FrameType
from typing import IO, Self

from kdcore.errors import EXIT_INTERRUPTED

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)

_POLL_SECONDS = 0.05
_SET_PARENT_DEATH_SIGNAL = 1  # prctl(2)
# Loaded before a fork: the child of a process with threads must not import or allocate more than necessary.
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class Supervisor:
    """Start child processes. Within the context, forward SIGINT, SIGTERM and SIGUSR2 to those that are running.

    A caller that handles interruptions as exceptions does not enter the context, but calls `stop`.

    Args:
        sessions: start each process in a new session. Then Ctrl-C reaches only this process, which forwards it once,
            and `stop` kills a process together with its children.

    Attributes:
        processes: the started processes, in the order in which they were started.
    """

    def __init__(self, *, sessions: bool = True) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self._sessions = sessions
        self._received: dict[int, int] = {}  # number of processes when each signal was first received
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        for number in STOP_SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @property
    def interrupted(self) -> bool:
        """Whether a signal has been received."""
        return bool(self._received)

    def start(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        stdin: int | None = None,
        output: IO[bytes] | None = None,
        end_with_parent: bool = False,
    ) -> subprocess.Popen[bytes]:
        """Start a process. Signals received before its start are forwarded to it as well.

        Args:
            command: program and arguments.
            environment: its complete environment; None to inherit this process's.
            stdin: its standard input; None to inherit this process's.
            output: file for standard output and standard error; None to inherit both.
            end_with_parent: kill it when this process ends, even if by SIGKILL. Linux only.

        Raises:
            OSError: the program cannot be started.
        """
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=stdin,
            stdout=output,
            stderr=output,
            start_new_session=self._sessions,
            preexec_fn=kill_with_parent if end_with_parent else None,
        )
        self.processes.append(process)
        for number, known in tuple(self._received.items()):
            if known < len(self.processes):  # otherwise the handler has forwarded it to this process
                process.send_signal(number)
        return process

    def run(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        output: IO[bytes] | None = None,
    ) -> int:
        """Start a process unless a signal has been received; wait for it and return its exit code, see `code_of`.

        Raises:
            OSError: the program cannot be started.
        """
        if self.interrupted:
            return EXIT_INTERRUPTED
        process = self.start(command, environment=environment, output=output)
        process.wait()
        return self.code_of(process)

    def code_of(self, process: subprocess.Popen[bytes]) -> int:
        """Return a finished process's exit code: negative after a signal, 130 if that signal was forwarded to it.

        A forwarded signal kills a process that has not installed its handlers yet.
        """
        return EXIT_INTERRUPTED if -process.returncode in self._received else int(process.returncode)

    def wait(self, seconds: float) -> list[subprocess.Popen[bytes]]:
        """Wait until all processes have ended, for at most this many seconds; return those that are still running."""
        deadline = time.monotonic() + seconds
        while (running := self._running()) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        return running

    def stop(self, grace_seconds: float) -> None:
        """Send SIGTERM to the running processes and kill those that are still running after the grace period."""
        for process in self._running():
            process.terminate()
        for process in self.wait(grace_seconds):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL) if self._sessions else process.kill()
            process.wait()

    def _running(self) -> list[subprocess.Popen[bytes]]:
        return [process for process in self.processes if process.poll() is None]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._received.setdefault(number, len(self.processes))
        for process in self._running():
            process.send_signal(number)


def kill_with_parent() -> None:
    """Let the kernel kill this process when its parent ends, even if by SIGKILL. This has an effect only on Linux."""
    if _libc is not None:
        _libc.prctl(_SET_PARENT_DEATH_SIGNAL, int(signal.SIGKILL))


def shell_code(code: int) -> int:
    """Convert an exit code of `subprocess` to a shell's: a signal's number is added to 128 instead of negated."""
    return code if code >= 0 else 128 - code
