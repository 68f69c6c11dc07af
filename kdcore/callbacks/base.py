"""Define the interface of a callback."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kdcore.recipe.schema import ComponentConfig

if TYPE_CHECKING:
    from kdcore.training.loop.events import CheckpointEvent, ExportEvent, StepEvent, ValidationEvent


class Callback:
    """React to the events of a run on process 0, and stop it early. Subclasses override what they need.

    Constructed as `Callback(config, run_folder)` for each session of a run. For a new run, this happens before the
    folder contains any files, and raising InputError refuses the run. Random numbers are drawn from a stream that is
    separate from the run's. A tracker drops metrics that a resumed run repeats, but a callback receives the events
    again when a run repeats the steps since its last checkpoint. If a method raises an exception, the run writes a
    checkpoint and ends with an error that names the callback. That callback is not called again; the others are. If the
    error occurs at the final export, the run is already finished, and its next start calls no callbacks. In that case,
    export again with `kdcore export` and make up for the missed callback manually.
    """

    class Config(ComponentConfig):
        """The keys of this callback's entry in `callbacks`."""

    def __init__(self, config: ComponentConfig, run_folder: Path) -> None:
        self.config = config
        self.run_folder = run_folder

    def on_step(self, event: StepEvent) -> None:
        """React to an optimizer step; `event.metrics` is None in steps that log nothing."""

    def on_validation(self, event: ValidationEvent) -> None:
        """React to a validation, with its losses and scores."""

    def on_checkpoint(self, event: CheckpointEvent) -> None:
        """React to a checkpoint.

        The checkpoint is complete: training has waited for the background thread that commits it.
        """

    def on_export(self, event: ExportEvent) -> None:
        """React to an export of the student."""

    def should_stop(self) -> bool:
        """Return whether to write a checkpoint and stop the run, as after a signal; called after every event.

        A stopped run does not export a final student; the next start resumes it.
        """
        return False
