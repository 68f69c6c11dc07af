"""Show and record the progress of a run: progress bar, log file and trackers."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from logging.handlers import MemoryHandler
from pathlib import Path

from tqdm import tqdm

from kdcore.errors import InfrastructureError
from kdcore.progress import Progress
from kdcore.trackers.base import Tracker
from kdcore.training.loop.events import (
    Event,
    ExportEvent,
    FinishedEvent,
    StageEvent,
    StartEvent,
    StepEvent,
    StoppedEvent,
    ValidationEvent,
)

logger = logging.getLogger("kdcore")


class _Screen(logging.Handler):
    """Print log lines without breaking the progress bar; show the current phase there, or print it once a minute."""

    def __init__(self) -> None:
        super().__init__()
        self.bar: tqdm[None] | None = None
        self.status = ""
        self._printed = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        self._print(self.format(record))

    def show_phase(self, phase: str) -> None:
        """Show the current phase; called about once a second by a thread of the watchdog."""
        if os.environ.get("RANK", "0") != "0":
            return
        bar = self.bar  # the main thread may reset it at any time
        if bar is not None:
            bar.set_description_str("" if phase.startswith("step ") else phase)
        elif time.monotonic() - self._printed >= _QUIET_SECONDS:
            self._print(f"in progress: {phase}{self.status}")

    def _print(self, text: str) -> None:
        self._printed = time.monotonic()
        tqdm.write(text, file=sys.stderr)


_QUIET_SECONDS = 60.0
_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}, {rate_fmt}{postfix}]"  # without tqdm's own time left
_screen = _Screen()
show_phase = _screen.show_phase
_early = MemoryHandler(capacity=1000)
"""Buffer warnings logged before the run's log file exists, for example about its models and data."""
_early.setLevel(logging.WARNING)


@contextmanager
def console() -> Iterator[None]:
    """Print kdcore's log to stderr within the context; processes other than 0 print only errors."""
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)
    logger.propagate = False
    _early.buffer.clear()
    logger.addHandler(_screen)
    logger.addHandler(_early)
    try:
        yield
    finally:
        logger.removeHandler(_screen)
        _screen.bar, _screen.status = None, ""
        logger.removeHandler(_early)
        logger.setLevel(level)
        logger.propagate = propagate


def _bar_class() -> type[tqdm[None]]:
    """Return tqdm's bar for this terminal, or its widget in a notebook that has ipywidgets."""
    with warnings.catch_warnings(action="ignore"):  # without ipywidgets tqdm warns and prints a plain bar
        from tqdm.auto import tqdm as chosen

    return chosen  # type: ignore[no-any-return]


class Monitor:
    """Show and record the events of a run; this has no effect on processes other than 0."""

    def __init__(self, run_folder: Path, trackers: Sequence[Tracker], *, is_main: bool) -> None:
        self._trackers = trackers
        self._is_main = is_main
        self._bar: tqdm[None] | None = None
        self._file: _LogFile | None = None
        self._failed = False
        if is_main:
            self._file = _LogFile(run_folder / "train.log")
            self._file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            for record in _early.buffer:
                self._file.handle(record)
            logger.addHandler(self._file)
        logger.removeHandler(_early)

    def handle(self, event: Event) -> None:
        """Show and record one event."""
        if not self._is_main:
            return
        progress = event.progress
        match event:
            case StartEvent():
                self.start(progress)
            case StepEvent(metrics=metrics):
                if self._bar is not None:
                    self._bar.update(1)
                if metrics is not None:
                    self.log(progress, metrics)
            case ValidationEvent(values=values, metric=metric):
                kinds = {"held_out": values, "constant": event.constants, "explained": event.explained}
                kinds |= {"check": event.checks, "finding": dict.fromkeys(event.findings, 1.0)}
                self.log(progress, {f"{kind}/{name}": one for kind, row in kinds.items() for name, one in row.items()})
                score = event.baselines_of("loss") + ("" if metric is None else f", {metric} {values[metric]:.4f}")
                self.info(f"step {progress.step}: held-out loss {values['loss']:.5g}{score}")
                if event.findings:
                    self.info(f"warning: step {progress.step}: {event.warning}")
            case ExportEvent(path=path):
                self.info(f"step {progress.step}: student exported to {path}")
            case StageEvent(stage=stage, transform=transform, info=info):
                self.info(f"step {progress.step}: stage {stage} begins with `{transform}`: {info.num_layers} blocks")
            case StoppedEvent():
                self.info(f"step {progress.step}: stopped; run the same command again to resume")
            case FinishedEvent():
                self.info(f"step {progress.step}: finished")

    def start(self, progress: Progress) -> None:
        """Start the display at `progress`, and drop what trackers recorded beyond it."""
        for tracker in self._trackers:
            tracker.rewind(
                progress.step or -1
            )  # before the first step everything is repeated, including the first validation
        if self._is_main and (sys.stderr.isatty() or "ipykernel" in sys.modules):
            self._bar = _bar_class()(
                total=progress.max_steps, initial=progress.step, unit="step", dynamic_ncols=True, bar_format=_BAR
            )
            _screen.bar = self._bar
            if progress.max_steps is None or progress.max_seconds is not None:
                self._bar.total = None  # time may end the run first, so the number of steps is unknown

    def log(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        """Send a row of metrics to trackers and progress bar, with the `seconds` of training."""
        row = {**metrics, "seconds": round(progress.seconds, 3)}
        for tracker in self._trackers:
            try:
                tracker.log(progress.step, row)
            except OSError as error:
                self._failed = True
                raise _not_written(error, f"the metrics of step {progress.step}") from error
        if metrics.keys() >= {"train/loss", "train/tokens_per_second"}:
            status = f"loss {metrics['train/loss']:.4g}, {metrics['train/tokens_per_second']:,.0f} tokens/s"
            status += f", {time_left(progress)} left"
            _screen.status = f": {status}"
            if self._bar is not None:
                self._bar.set_postfix_str(status)

    def info(self, text: str) -> None:
        """Write a line to the screen and to the log file."""
        if self._is_main:
            logger.info(text)

    def close(self) -> None:
        """Flush and close everything."""
        if self._bar is not None:
            _screen.bar = None
            self._bar.close()
        failure: OSError | None = None
        for tracker in self._trackers:
            try:
                tracker.close()
            except OSError as error:
                failure = failure or error
        if self._file is not None:
            logger.removeHandler(self._file)
            failure = failure or self._file.failure
            with suppress(OSError):
                self._file.close()
        if failure is not None and not self._failed and sys.exc_info()[0] is None:
            raise _not_written(failure, "the last metrics or lines of the log") from failure


class _LogFile(logging.FileHandler):
    """Write train.log; keep the first disk error instead of printing a traceback for every line."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8")
        self.failure: OSError | None = None

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is logging's
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif self.failure is None:
            self.failure = OSError(error.errno, error.strerror, self.baseFilename)


def _not_written(error: OSError, what: str) -> InfrastructureError:
    return InfrastructureError(
        f"{error.filename}: {what} cannot be written: {error.strerror}. Free disk space or repair the disk, then run "
        "the same command again: it resumes from the last checkpoint"
    )


def time_left(progress: Progress) -> str:
    """Return the estimated time until the budget is used up, such as `2:05:10`; `?` if unknown."""
    if progress.fraction <= 0 or progress.seconds <= 0:
        return "?"
    seconds = int(progress.seconds / progress.fraction - progress.seconds)
    minutes, seconds = divmod(max(0, seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
