"""Define the interface of a callback."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kdcore.recipe.schema import ComponentConfig

if TYPE_CHECKING:
    from kdcore.training.loop.events import CheckpointEvent, ExportEvent, StepEvent, ValidationEvent


class Callback:
    """React to the events of a run on process 0, and optionally stop the run early. Subclasses override what they need.

    Constructed as `Callback(config, run_folder)` for each session of a run. For a new run, this happens before the
    folder contains any files, so a callback can refuse the run by raising InputError. Callbacks draw random numbers
    from a separate stream, which leaves the random states of the run unchanged. When a resumed run repeats the steps
    since its last checkpoint, trackers drop the metrics that they recorded for these steps, but callbacks receive the
    events a second time. If a method raises an exception, the run writes a checkpoint and ends with an error that names
    the callback. That callback is not called again; the others are. If the error occurs at the final export, the run is
    already finished, and starting it again does not call any callbacks. In that case, run `kdcore export` and do the
    work of the callback manually.
    """

    class Config(ComponentConfig):
        """The keys of this callback's entry in `callbacks`."""

    def __init__(self, config: ComponentConfig, run_folder: Path) -> None:
        self.config = config
        self.run_folder = run_folder

    def on_step(self, event: StepEvent) -> None:
        """React to an optimizer step; `event.metrics` is None in steps without logging."""

    def on_validation(self, event: ValidationEvent) -> None:
        """React to a validation, with its losses and scores."""

    def on_checkpoint(self, event: CheckpointEvent) -> None:
        """React to a checkpoint.

        The checkpoint is complete: training has waited for the background thread that commits it.
        """

    def on_export(self, event: ExportEvent) -> None:
        """React to an export of the student."""

    def should_stop(self) -> bool:
        """Return whether the run should write a checkpoint and stop, as after a signal. Called after every event.

        A stopped run does not export a final student; the next start resumes it.
        """
        return False
