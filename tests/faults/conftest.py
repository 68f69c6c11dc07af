"""Real processes that are really disturbed, and a loss in which things happen at a given step."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch

EVENTFUL = """
import os
import time

import torch

from kdcore import Loss, LossConfig, Requests, Signals, register_loss

SIGNALS = {"interrupt": [2], "interrupt twice": [2, 2], "requeue": [12], "terminate": [15], "stop": [19]}


class NotANumber(torch.autograd.Function):
    # The value stays, its gradient is lost.
    @staticmethod
    def forward(context, value):
        return value.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * float("nan")


@register_loss("eventful")
class Eventful(Loss):
    class Config(LossConfig):
        pass

    def __init__(self, config, teacher, student):
        super().__init__(config)
        self.passes = 0  # number 0, before step 1, only finds out which parameters the loss reaches

    def requests(self):
        return Requests(student=Signals.hidden([1]))

    def counts(self, batch):
        return {"eventful": batch.num_tokens}

    def forward(self, student, teacher, batch):
        total = student.tokens(1).square().sum()
        if not torch.is_grad_enabled():
            return {"eventful": total}
        event, at, rank = os.environ["EVENT"], int(os.environ["EVENT_PASS"]), os.environ["EVENT_RANK"]
        happens = self.passes >= at and os.environ.get("RANK", "0") == rank
        if happens and self.passes == at:
            # One who is stopped is in the middle of a step, before and after.
            time.sleep(0.5 if event == "stop" else 0)
            for number in SIGNALS.get(event, []):
                os.kill(os.getpid(), number)
            time.sleep(0.5 if event == "stop" else 0)
        self.passes += 1
        if happens and event in ("nan", "inf"):
            total = total * float(event)
        if happens and event == "nan gradient":
            total = NotANumber.apply(total)
        return {"eventful": total}
"""


class Running:
    """A program that has been started, its output in a file."""

    def __init__(self, command: list[str], environment: Mapping[str, str], folder: Path) -> None:
        self._output = folder / f"output-{time.monotonic_ns()}"
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                command, env=environment, cwd=folder, stdout=output, stderr=output, start_new_session=True
            )

    @property
    def text(self) -> str:
        """Its output so far."""
        return self._output.read_text(encoding="utf-8", errors="replace")

    @property
    def errors(self) -> list[str]:
        """The lines with errors."""
        assert "Traceback" not in self.text, self.text
        return [line for line in self.text.splitlines() if line.startswith("error: ")]

    def until(self, what: Callable[[], object], seconds: float = 90) -> None:
        """Wait for something that happens while it runs."""
        deadline = time.monotonic() + seconds
        while not what():
            assert self.process.poll() is None, f"it has ended with {self.process.returncode}:\n{self.text}"
            assert time.monotonic() < deadline, f"it does not come:\n{self.text}"
            time.sleep(0.02)

    def wait(self) -> int:
        """Its exit code."""
        return self.process.wait(120)

    def children(self) -> list[int]:
        """Process numbers of the programs that it has started."""
        pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        return [pid for pid in pids if _stat(pid)[1:2] == [str(self.process.pid)]]

    def kill(self) -> None:
        """Nothing of it is left, the programs that it has started included."""
        for pid in [*self.children(), self.process.pid]:
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()


def _stat(pid: int) -> list[str]:
    """State, parent and more of a process; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return []


@pytest.fixture
def is_stopped() -> Callable[[int], bool]:
    """Whether a process was stopped by a signal."""
    return lambda pid: _stat(pid)[:1] == ["T"]


@pytest.fixture
def has_pending_signal() -> Callable[[int], bool]:
    """Whether a process has been sent a signal that it has not seen yet."""

    def look(pid: int) -> bool:
        try:
            status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        except OSError:
            return False
        return any(line.startswith("ShdPnd:") and int(line.split()[1], 16) for line in status.splitlines())

    return look


@pytest.fixture
def imports_torch() -> Callable[[int], bool]:
    """Whether a process has begun to import torch."""

    def look(pid: int) -> bool:
        try:
            return "libtorch" in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
        except OSError:
            return False

    return look


@pytest.fixture
def eventful(small_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Let something happen in a step of `small_recipe`: gives the overrides to train it with.

    Losses and gradients are lost from the first of the step's `micro_batches` on. Steps count from the start of the
    process.
    """
    (small_recipe.parent / "eventful.py").write_text(EVENTFUL, encoding="utf-8")

    def happen(event: str, step: int, rank: int = 0, micro_batches: int = 1) -> list[str]:
        monkeypatch.setenv("EVENT", event)
        monkeypatch.setenv("EVENT_PASS", str((step - 1) * micro_batches + 1))
        monkeypatch.setenv("EVENT_RANK", str(rank))
        return ["imports=[eventful.py]", "losses={eventful: {}}", "training.budget.steps=12"]

    return happen


@pytest.fixture
def start(small_recipe: Path) -> Iterator[Callable[..., Running]]:
    """Start `kdcore train` with `small_recipe` and overrides, in `processes` processes and with further variables."""
    running: list[Running] = []

    def run(*overrides: str, processes: int | None = None, **variables: str) -> Running:
        command = [sys.executable, "-m", "kdcore.commands.main", "train", str(small_recipe), *overrides]
        command += [] if processes is None else ["--processes", str(processes)]
        running.append(Running(command, {**os.environ, **variables}, small_recipe.parent))
        return running[-1]

    yield run
    for each in running:
        each.kill()


@pytest.fixture
def half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets DeepSpeed train fp16 with the CPU's own half kernels; for users it stays refused."""
    from deepspeed.accelerator import get_accelerator

    kind = type(get_accelerator())
    monkeypatch.setattr(kind, "is_fp16_supported", lambda self: True)
    monkeypatch.setattr(kind, "supported_dtypes", lambda self: [torch.float, torch.half, torch.bfloat16])
