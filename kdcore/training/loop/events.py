"""Events of a training run, consumed by commands, the monitor and notebooks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kdcore.errors import EXIT_INTERRUPTED
from kdcore.progress import Progress
from kdcore.signals import ModelInfo


@dataclass(frozen=True)
class RunResult:
    """The result of a run.

    Attributes:
        folder: the run folder.
        finished: whether the run used up its budget; otherwise it was interrupted and can be resumed.
        export: the exported student; None if there is none.
        held_out: the last held-out losses, with their weighted sum as `loss`; empty if this session did not validate.
        interrupted: whether SIGINT (Ctrl-C) has stopped the run.
    """

    folder: Path
    finished: bool
    export: Path | None
    held_out: dict[str, float]
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        """0 for a finished run, 130 for an interrupted one."""
        return 0 if self.finished else EXIT_INTERRUPTED


@dataclass(frozen=True)
class StartEvent:
    """Training starts from scratch or continues from a checkpoint.

    Attributes:
        progress: progress before the first step of this session.
        checkpoint: the checkpoint that was restored; None for a new run.
    """

    progress: Progress
    checkpoint: Path | None


@dataclass(frozen=True)
class StepEvent:
    """An optimizer step was taken.

    Attributes:
        progress: progress after the step.
        metrics: the averages since the last row of metrics, by name (`train/loss`, `train/lr`, ...), equal on every
            process except for the speed. None in steps that log nothing: their losses stay on the device.
    """

    progress: Progress
    metrics: Mapping[str, float] | None


@dataclass(frozen=True)
class ValidationEvent:
    """The student was validated.

    Attributes:
        progress: progress at the validation.
        values: held-out loss of each term, their weighted sum as `loss`, and the task's scores.
        metric: name of the task's main score; None if `values` contains no scores.
        constants: values that the best constant predictions reach, by the names in `values`; `loss` is included only if
            all terms have such a value.
        initial: values of the student before training, for losses that were active then.
        checks: effective rank and other measures of collapse.
        findings: signs of collapse or stagnation, by the names of the values or checks that show them.
    """

    progress: Progress
    values: Mapping[str, float]
    metric: str | None
    constants: Mapping[str, float] = field(default_factory=dict)
    initial: Mapping[str, float] = field(default_factory=dict)
    checks: Mapping[str, float] = field(default_factory=dict)
    findings: Mapping[str, str] = field(default_factory=dict)

    @property
    def warning(self) -> str:
        """The findings with usual remedies; empty without findings."""
        return collapse_warning(self.findings.values())

    @property
    def explained(self) -> dict[str, float]:
        """The explained fraction of each loss that has a constant baseline."""
        return explained_shares(self.values, self.constants)

    def baselines_of(self, name: str) -> str:
        """Format the baselines of a value, in parentheses after a space; empty if none is known."""
        trained = self.progress.step > 0
        notes = [f"before training: {self.initial[name]:.5g}"] if trained and name in self.initial else []
        if name in self.constants:
            notes.append(f"constant prediction: {self.constants[name]:.5g}")
        if trained and name in self.explained:
            notes.append(f"explained: {self.explained[name]:.1%}")
        return f" ({', '.join(notes)})" if notes else ""


def explained_shares(values: Mapping[str, float], constants: Mapping[str, float]) -> dict[str, float]:
    """Return `1 - loss / constant` by name: 1 for a loss of 0, at most 0 for a loss no better than the constant."""
    return {name: 1 - values[name] / value for name, value in constants.items() if name in values and value > 0}


def collapse_warning(findings: Collection[str]) -> str:
    """Compose one text of all findings and usual remedies; empty without findings."""
    return f"the student may have collapsed or learned nothing: {'; '.join(findings)}. {_ADVICE}" if findings else ""


_ADVICE = (
    "Usually one of these helps: a lower optimizer.lr, a longer scheduler.warmup, student.initialize from the teacher, "
    "a larger hidden size, more steps, a loss on hidden states"
)


@dataclass(frozen=True)
class CheckpointEvent:
    """A checkpoint was written; it is complete in `path` when a callback or a caller of `steps` receives this event.

    Attributes:
        progress: progress that the checkpoint records.
        path: folder of the checkpoint.
        milestone: whether it is kept permanently.
    """

    progress: Progress
    path: Path
    milestone: bool


@dataclass(frozen=True)
class ExportEvent:
    """The student was exported.

    Attributes:
        progress: progress at the export.
        path: the Hugging Face folder.
    """

    progress: Progress
    path: Path


@dataclass(frozen=True)
class StageEvent:
    """The student was transformed; the steps that follow belong to a new stage.

    Attributes:
        progress: progress at the change. A checkpoint of the same step was written before it.
        stage: 0-based number of the stage that begins.
        transform: name of the transform.
        info: description of the changed student.
    """

    progress: Progress
    stage: int
    transform: str
    info: ModelInfo


@dataclass(frozen=True)
class FinishedEvent:
    """The run is finished; the last event.

    Attributes:
        progress: progress at the end.
        result: the result that `kdcore.train` returns.
    """

    progress: Progress
    result: RunResult


@dataclass(frozen=True)
class StoppedEvent:
    """A signal stopped the run after a checkpoint; the last event. The same command continues the run.

    Attributes:
        progress: progress at the stop.
        result: the result that `kdcore.train` returns.
    """

    progress: Progress
    result: RunResult


Event = (
    StartEvent | StepEvent | ValidationEvent | CheckpointEvent | ExportEvent | StageEvent | FinishedEvent | StoppedEvent
)
