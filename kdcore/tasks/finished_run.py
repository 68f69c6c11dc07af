"""A finished run as `kdcore summary` reads it, and the interface for additional rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from kdcore.tasks.base import Task


@dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Attributes:
        folder: the run folder.
        export: folder of the student: `exports/best` where the run chose its best student by a score, else
            `exports/final`.
        teacher_source: folder or hub name of the teacher's weights; None without a teacher. Of several teachers it is
            the one that lent the student its missing configuration.
        task: the run's task.
        held_out: values of each held-out loss and score in the order of steps, by name, without the weighted total.
        constants: value of each held-out loss that the best constant prediction reaches, where the loss defines it.
        teacher_sources: source of each teacher by label; that of `teacher:` has the label `teacher`.
    """

    folder: Path
    export: Path
    teacher_source: str | None
    task: Task
    held_out: Mapping[str, list[float]]
    teacher_sources: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def student(self) -> Any:
        """The exported student as `AutoModel` loads it: float32, on the CPU, in eval mode."""
        return _load(str(self.export))

    @cached_property
    def initial(self) -> Any | None:
        """The student before training, loaded likewise; None if the run did not export it."""
        folder = self.folder / "exports" / "initial"
        return _load(str(folder)) if folder.is_dir() else None

    @cached_property
    def teacher(self) -> Any | None:
        """The teacher, loaded likewise; None without one."""
        return None if self.teacher_source is None else _load(self.teacher_source)


class SummaryRows(ABC):
    """Rows that a package adds to `kdcore summary` (registry `kdcore.summary_rows`).

    Every installed component is called; its name only appears in `kdcore plugins`.
    """

    @abstractmethod
    def rows(self, run: FinishedRun) -> dict[str, str]:
        """Return title -> text of each row; empty for runs that the package has no rows for."""


def _load(source: str) -> Any:
    import torch
    from transformers import AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return AutoModel.from_pretrained(source, dtype=torch.float32, trust_remote_code=False).eval()
