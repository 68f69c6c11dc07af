"""Evaluate the training metrics of runs: losses with their baselines, and signs of collapse."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np

from kdcore_evaluation.run.compared_runs import ComparedRun
from kdcore_evaluation.run.finished_scores import read_predictions
from kdcore_evaluation.run.scores import Labels, Score, counted
from kdcore_evaluation.statistics.intervals import estimate_mean

_CHECKS = {
    "student_rank": ("effective rank of the pooled states", "teacher_rank", "{:.1f}"),
    "student_dead_units": ("constant dimensions of the pooled states", "teacher_dead_units", "{:.0%}"),
    "student_spread": ("relative spread of the pooled states", "teacher_spread", "{:.2g}"),
    "largest_class": ("predictions of the most frequent class", "", "{:.0%}"),
}


@dataclass(frozen=True)
class Sign:
    """A sign of collapse or stagnation at the last validation of a run.

    Attributes:
        what: the quantity that shows the sign.
        value: value of the student.
        reference: value of the teacher or of a constant prediction; None if there is none.
        against: description of the reference.
        form: format of both values.
    """

    what: str
    value: float
    reference: float | None
    against: str
    form: str

    @property
    def text(self) -> str:
        """The sign with its numbers."""
        own = f"{self.what} {self.form.format(self.value)}"
        return own if self.reference is None else f"{own} ({self.against}: {self.form.format(self.reference)})"


@dataclass(frozen=True)
class LossChange:
    """A loss of one group on held-out text, averaged over its runs.

    Attributes:
        group: labels of the group.
        loss: name of the loss, or of its term.
        before: loss of the student before training.
        constant: loss of the best constant prediction; None if there is none for this loss.
        after: loss at the last validation.
        explained: `1 - after / constant`, averaged over runs; None without a constant.
    """

    group: Labels
    loss: str
    before: Score
    constant: Score | None
    after: Score
    explained: Score | None


def signs_of_collapse(run: ComparedRun) -> list[Sign]:
    """List the signs that the last validation of a run recorded, as `finding/NAME` in its metrics."""
    row = _last_validation(run)
    found = []
    for name in (key.removeprefix("finding/") for key in row if key.startswith("finding/")):
        what, reference, form = _CHECKS.get(name, (f"held-out {name}", "", "{:.5g}"))
        value = row.get(f"check/{name}") if name in _CHECKS else row.get(f"held_out/{name}")
        other = row.get(f"check/{reference}") if name in _CHECKS else row.get(f"constant/{name}")
        against = "teacher" if name in _CHECKS else "best constant prediction"
        if other is None and name not in _CHECKS and (best := _without_text(run, name)) is not None:
            against, other = best
        if _is_number(value):
            found.append(Sign(what, float(value), float(other) if _is_number(other) else None, against, form))
    return found


def _without_text(run: ComparedRun, metric: str) -> tuple[str, float] | None:
    """Return the baseline of a run's main score, from its predictions for the validation texts."""
    predictions = read_predictions(run)
    return predictions.validation_constant() if predictions is not None and predictions.metric == metric else None


def loss_changes(groups: Mapping[Labels, Sequence[ComparedRun]], over: str) -> list[LossChange]:
    """Compare held-out losses before and after training with the losses of constant predictions.

    Args:
        groups: runs of each group.
        over: unit of the repetitions in a group, such as `seeds`.
    """
    found = []
    for group, runs in groups.items():
        histories = [_held_out(run) for run in runs]
        for name in dict.fromkeys(name for history in histories for name in history):
            own = [(history[name], run) for history, run in zip(histories, runs, strict=True) if name in history]
            constants = [value for _, run in own if (value := constant(run, name)) is not None]
            pairs = [(values[-1], value) for values, run in own if (value := constant(run, name))]
            found.append(
                LossChange(
                    group,
                    name,
                    _score([values[0] for values, _ in own], over),
                    _score(constants, over) if constants else None,
                    _score([values[-1] for values, _ in own], over),
                    _score([1 - last / value for last, value in pairs], over) if pairs else None,
                )
            )
    return found


def constant(run: ComparedRun, name: str) -> float | None:
    """Return the held-out loss of the best constant prediction; None if the run did not record it."""
    values = [value for row in run.metrics if _is_number(value := row.get(f"constant/{name}"))]
    return float(values[-1]) if values else None


def _held_out(run: ComparedRun) -> dict[str, list[float]]:
    """Return the held-out losses of a run in step order: only the trained losses, without scores."""
    last = _last_validation(run)
    # Scores of a task are among the held-out values; only losses have baselines or the names of the recipe's losses.
    named = {
        key.removeprefix("held_out/")
        for key in last
        if key.startswith("held_out/")
        and (f"constant/{key.removeprefix('held_out/')}" in last or _is_loss(key.removeprefix("held_out/"), run))
    }
    found: dict[str, list[float]] = {}
    for row in run.metrics:
        for name in named:
            value = row.get(f"held_out/{name}")
            if _is_number(value):
                found.setdefault(name, []).append(float(value))
    names = [name for key in last if (name := key.removeprefix("held_out/")) in found]
    return {name: found[name] for name in names if name != "loss" or len(names) != 2}  # with one term, both are equal


def _is_loss(name: str, run: ComparedRun) -> bool:
    return name == "loss" or name.partition("/")[0] in run.recipe["losses"]


def _last_validation(run: ComparedRun) -> Mapping[str, float]:
    return next((row for row in reversed(run.metrics) if "held_out/loss" in row), {})


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float)


def _score(values: Sequence[float], over: str) -> Score:
    usable = all(math.isfinite(value) for value in values)
    estimate = estimate_mean(np.array(values)[:, None]) if usable else None
    return Score(
        statistics.fmean(values),
        statistics.stdev(values) if usable and len(values) > 1 else None,
        len(values),
        over,
        estimate.interval if estimate is not None else None,
        counted(len(values), over),
    )
