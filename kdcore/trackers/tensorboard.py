"""Record metrics for TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import hparams, scalar, text

from kdcore.recipe.schema import ComponentConfig
from kdcore.recipe.yaml import dump_yaml, read_yaml
from kdcore.trackers.base import Tracker
from kdcore.utils.atomic import names_path


class TensorBoardTracker(Tracker):
    """Write scalars, the recipe, and its values as hyperparameters, to `tensorboard/` in the run folder.

    `SummaryWriter` is not used, because it writes in a thread that prints tracebacks when the disk is full.
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
                # The name contains the start time in seconds: a run that resumes within the same second must not
                # replace its file.
                suffix = f".{sum(1 for _ in self._folder.iterdir())}"
                self._writer = EventsWriter(str(self._folder / "events"), filename_suffix=suffix)
                if suffix == ".0":
                    self._describe()
                if self._purge_step is not None:
                    session = SessionLog(status=SessionLog.START)
                    self._writer.write_event(Event(wall_time=time.time(), step=self._purge_step, session_log=session))
            for name, value in metrics.items():
                self._writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
            self._writer.flush()

    def _describe(self) -> None:
        """Write the recipe as text and as hyperparameters, if the run folder contains a recipe."""
        file = self.run_folder / "recipe.yaml"
        if self._writer is not None and file.is_file():
            recipe = read_yaml(file).plain()
            lines = dump_yaml(recipe).splitlines()
            described = [text("recipe", "\n".join(f"    {line}" for line in lines))]  # an indented block of Markdown
            described += hparams(dict(_values(recipe)), dict.fromkeys(("train/loss", "held_out/loss")))[:2]
            for summary in described:
                self._writer.write_event(Event(wall_time=time.time(), step=0, summary=summary))

    def rewind(self, step: int) -> None:
        """Make TensorBoard hide values of earlier sessions after `step`."""
        self._purge_step = step + 1

    def close(self) -> None:
        """Flush and close the file."""
        if self._writer is not None:
            with names_path(self._folder):
                self._writer.close()


def _values(value: object, place: str = "") -> Iterator[tuple[str, object]]:
    """Yield the dotted key of each value of a recipe; lists are values."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _values(inner, f"{place}.{key}" if place else key)
    elif value is not None:
        yield place, str(value) if isinstance(value, list) else value
