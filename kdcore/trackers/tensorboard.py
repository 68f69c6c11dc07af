"""Record metrics for TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from kdcore.recipe.schema import ComponentConfig
from kdcore.trackers.base import Tracker
from kdcore.utils.atomic import names_path


class TensorBoardTracker(Tracker):
    """Write scalars to `tensorboard/` in the run folder.

    `SummaryWriter` would write in a thread, which prints tracebacks when the disk is full.
    """

    def __init__(self, config: ComponentConfig, run_folder: Path) -> None:
        super().__init__(config, run_folder)
        self._folder = run_folder / "tensorboard"
        self._purge_step: int | None = None
        self._writer: EventsWriter | None = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write and flush one scalar per metric."""
        with names_path(self._folder):
            if self._writer is None:
                self._folder.mkdir(exist_ok=True)
                # The name has the second of the start: a run that resumes within it must not replace its own file.
                suffix = f".{sum(1 for _ in self._folder.iterdir())}"
                self._writer = EventsWriter(str(self._folder / "events"), filename_suffix=suffix)
                if self._purge_step is not None:
                    session = SessionLog(status=SessionLog.START)
                    self._writer.write_event(Event(wall_time=time.time(), step=self._purge_step, session_log=session))
            for name, value in metrics.items():
                self._writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
            self._writer.flush()

    def rewind(self, step: int) -> None:
        """Make TensorBoard hide values of earlier sessions after `step`."""
        self._purge_step = step + 1

    def close(self) -> None:
        """Flush and close the file."""
        if self._writer is not None:
            with names_path(self._folder):
                self._writer.close()
