"""What a run shows between its log lines: the phase and one time left."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from kdcore import Progress
from kdcore.recipe.schema import Budget
from kdcore.training.loop import monitor
from kdcore.training.loop.events import StepEvent
from kdcore.training.loop.monitor import Monitor, console, show_phase
from kdcore.training.runtime.watchdog import Watchdog

METRICS = {"train/loss": 0.25, "train/tokens_per_second": 1234.0}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_a_line_comes_after_a_quiet_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 1000.0
    monkeypatch.setattr(monitor.time, "monotonic", lambda: now)
    with console():
        shown = Monitor(tmp_path, [], is_main=True)
        shown.info("run started")
        progress = Progress.start(Budget(steps=10), 10)
        shown.start(progress)
        for later, phase in ((59.0, "loading the models"), (1.5, "loading the models"), (59.0, "a validation")):
            now += later
            show_phase(phase)
        shown.handle(StepEvent(progress.at(5, 100.0), METRICS))
        now += 2.0
        show_phase("step 6")
        shown.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "run started",
        "in progress: loading the models",
        "in progress: step 6: loss 0.25, 1,234 tokens/s, 0:01:40 left",
    ]


def test_the_bar_shows_the_phase_and_one_time_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with console():
        shown = Monitor(tmp_path, [], is_main=True)
        progress = Progress.start(Budget(steps=10), 10)
        shown.start(progress)
        shown.handle(StepEvent(progress.at(5, 100.0), METRICS))
        show_phase("a validation")
        last = terminal.getvalue().split("\r")[-1]
        assert last.startswith("a validation")
        assert re.findall(r"\d:\d\d:\d\d left", last) == ["0:01:40 left"]
        assert "<" not in last, "tqdm's own estimate"
        show_phase("step 7")
        assert "step 7" not in terminal.getvalue().split("\r")[-1]
        shown.close()


def test_the_watchdog_passes_on_the_phase(tmp_path: Path) -> None:
    import threading

    seen, enough = [], threading.Event()

    def show(phase: str) -> None:
        seen.append(phase)
        enough.set()

    with Watchdog(0.01, tmp_path / "train.log", show) as watchdog:
        watchdog.starting("loading the models")
        assert enough.wait(20)
    assert set(seen) <= {"the start", "loading the models"}
