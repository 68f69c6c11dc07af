"""Call the callbacks of a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdcore.callbacks.base import Callback
from kdcore.errors import KdcoreError
from kdcore.faults import plugin_faults
from kdcore.recipe.loading import Component
from kdcore.training.loop.events import (
    CheckpointEvent,
    Event,
    ExportEvent,
    FinishedEvent,
    StepEvent,
    StoppedEvent,
    ValidationEvent,
)


class CallbackRunner:
    """Pass events to the callbacks of a run, and store the error of a failed callback until the last event."""

    def __init__(self, components: Sequence[Component], folder: Path) -> None:
        """Construct the callbacks.

        Args:
            components: the recipe's callbacks; empty on processes other than 0.
            folder: the run folder.

        Raises:
            KdcoreError: a callback rejects its configuration, or fails.
        """
        self._failure: KdcoreError | None = None
        self._callbacks: list[tuple[str, Callback]] = []
        for component in components:
            with plugin_faults(component.cls, component.key):
                self._callbacks.append((component.key, component.cls(component.config, folder)))
        self.see_checkpoints = any(type(one).on_checkpoint is not Callback.on_checkpoint for _, one in self._callbacks)

    def handle(self, event: Event) -> bool:
        """Call every callback that has not failed; return whether any of them requests a stop or fails.

        Raises:
            KdcoreError: at the last event, if a callback has failed; the run has then been stopped with a checkpoint.
        """
        stop = False
        for key, callback in list(self._callbacks):
            try:
                with plugin_faults(callback, key):
                    _call(callback, event)
                    stop |= bool(callback.should_stop())
            except KdcoreError as error:
                self._callbacks.remove((key, callback))
                self._failure = self._failure or error
                stop = True
        if self._failure is not None and isinstance(event, FinishedEvent | StoppedEvent):
            raise self._failure
        return stop


def _call(callback: Callback, event: Event) -> None:
    match event:
        case StepEvent():
            callback.on_step(event)
        case ValidationEvent():
            callback.on_validation(event)
        case CheckpointEvent():
            callback.on_checkpoint(event)
        case ExportEvent():
            callback.on_export(event)
