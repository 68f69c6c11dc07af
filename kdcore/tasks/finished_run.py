"""Define a finished run, as `kdcore summary` reads it, and the interface for additional rows."""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcore.errors import InputError

if TYPE_CHECKING:  # the options of `kdcore summary` are read without torch
    from kdcore.losses.base import Loss
    from kdcore.models.base import Model
    from kdcore.tasks.base import Task


@dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Attributes:
        folder: the run folder.
        export: folder of the student: `exports/best` if the run selected its best student by a score, otherwise
            `exports/final`.
        teacher_source: folder or hub name of the teacher's weights; None without a teacher. With several teachers, it
            refers to the teacher from which the student takes missing configuration.
        task: the run's task.
        held_out: values of each held-out loss and score by name, ordered by step, without the weighted total.
        constants: value of each held-out loss for the best constant prediction, if the loss defines one.
        teacher_sources: source of each teacher by label; the teacher under `teacher:` has the label `teacher`.
        student_model: description of the student; its `load_export` loads `export`, or another export, as an encoder.
        teacher_model: description of the teacher with `teacher_source`; None without one.
        losses: losses of the last stage by label, with newly initialized parameters.
        arguments: arguments of `kdcore summary`, with the options of `SummaryRows`; empty if no command was run.
    """

    folder: Path
    export: Path
    teacher_source: str | None
    task: Task
    held_out: Mapping[str, list[float]]
    teacher_sources: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, float] = field(default_factory=dict)
    student_model: Model | None = None
    teacher_model: Model | None = None
    losses: Mapping[str, Loss] = field(default_factory=dict)
    arguments: argparse.Namespace = field(default_factory=argparse.Namespace)

    @cached_property
    def student(self) -> Any:
        """The exported student as `AutoModel` loads it, in float32, on the CPU and in eval mode."""
        return load_encoder(str(self.export))

    @cached_property
    def initial(self) -> Any | None:
        """The student before training, loaded in the same way; None if the run did not export it."""
        folder = self.folder / "exports" / "initial"
        return load_encoder(str(folder)) if folder.is_dir() else None

    @cached_property
    def teacher(self) -> Any | None:
        """The teacher, loaded in the same way; None without one."""
        return None if self.teacher_source is None else load_encoder(self.teacher_source)


class SummaryRows(ABC):
    """Rows that a package adds to `kdcore summary` (registry `kdcore.summary_rows`).

    Every installed component is called; its name appears only in `kdcore plugins`. The module is imported for every
    `kdcore summary`, including `kdcore summary --help`. Import slow modules, such as torch, inside `rows`.
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:  # noqa: B027 - not every component has any
        """Declare options, such as `--layers`. `kdcore summary RUN` must remain valid without them. Optional."""

    @abstractmethod
    def rows(self, run: FinishedRun) -> dict[str, str]:
        """Return the text of each row by its title; empty if the package has no rows for the run.

        Args:
            run: the run; `run.arguments` contains the declared options.

        Raises:
            InputError: the run lacks something that an option requires. The command ends with this error.
        """


def load_encoder(source: str, auto_class: str = "AutoModel") -> Any:
    """Load a folder or hub model with a class of transformers, in float32, on the CPU and in eval mode.

    Raises:
        InputError: transformers has no such class.
    """
    import torch
    import transformers
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    cls: Any = getattr(transformers, str(auto_class), None)
    if not hasattr(cls, "from_pretrained"):
        raise InputError(f"transformers has no class `{auto_class}` that loads models", key="auto_class")
    return cls.from_pretrained(source, dtype=torch.float32, trust_remote_code=False).eval()
