"""Record metrics for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter

from kdcore.recipe.schema import ComponentConfig
from kdcore.trackers.base import Tracker


class TensorBoardTracker(Tracker):
    """Write scalars to `tensorboard/` in the run folder."""

    def __init__(self, config: ComponentConfig, run_folder: Path) -> None:
        super().__init__(config, run_folder)
        self._folder = run_folder / "tensorboard"
        self._purge_step: int | None = None
        self._writer: SummaryWriter | None = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one scalar per metric."""
        if self._writer is None:
            self._writer = SummaryWriter(str(self._folder), purge_step=self._purge_step)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def rewind(self, step: int) -> None:
        """Make TensorBoard hide values of earlier sessions after `step`."""
        self._purge_step = step + 1

    def close(self) -> None:
        """Flush and close the writer."""
        if self._writer is not None:
            self._writer.close()
