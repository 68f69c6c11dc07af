"""Estimate the differences that a sweep can detect, and its duration."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from pathlib import Path

from kdcore_supervised import LabelledData, TaggedData

from kdcore import InputError, Recipe, SweepCell, load_recipe, read_metrics, run_folders, run_state
from kdcore_evaluation.report.comparison import Comparison
from kdcore_evaluation.report.table_formats import aligned
from kdcore_evaluation.run.item_scores import METRICS_OF_ALL_TEXTS
from kdcore_evaluation.run.results import ResultRow
from kdcore_evaluation.run.scores import counted
from kdcore_evaluation.run.suite import Suite, SuiteTask
from kdcore_evaluation.statistics.power import ALPHA, POWER, detectable_difference

DEFAULT_DEVIATION = 0.01
"""Standard deviation of a score over seeds, if it is neither given nor found in earlier results."""

TEXT_VARIANCE = 0.1
"""Variance over texts of the difference between two students' answers (right or wrong), averaged over seeds: they
disagree on 20% of the texts, half of which are the same for all seeds."""

_RETRIEVAL_METRICS = 2
_AGREEMENT_METRICS = 3
"""Number of scores of the probe `agreement`, if the student's embeddings are as wide as the teacher's."""

_SEEDS = (3, 5, 10, 20)
_HOUR = 3600.0


@dataclass(frozen=True)
class TaskPlan:
    """A row of the plan.

    Attributes:
        task: label and metric.
        texts: number of texts that scores are reported on.
        deviation: standard deviation of a score over seeds.
        source: where the deviation comes from.
        by_text: whether each text has a score, so that the interval accounts for the choice of texts.
    """

    task: str
    texts: int
    deviation: float
    source: str
    by_text: bool = True

    def detectable(self, seeds: int, comparisons: int) -> float:
        """Return the difference between two groups that `seeds` paired seeds detect with a power of 0.8.

        The seeds of both groups are assumed to be independent; the level is divided by the number of comparisons, as in
        the first step of Holm's method. For a single seed, only the choice of texts is taken into account.
        """
        parts = [(2 * self.deviation**2 / seeds, seeds - 1)] if seeds > 1 else []
        if self.by_text and self.texts > 1:
            parts.append((TEXT_VARIANCE / self.texts, self.texts - 1))
        return detectable_difference(parts, alpha=ALPHA / comparisons)


def plan_text(
    cells: Sequence[SweepCell],
    groups: int,
    seeds: int,
    over: str,
    suite: Suite,
    earlier: Comparison | None,
    deviation: float | None,
) -> str:
    """Describe runs, hours and detectable differences of a sweep.

    Args:
        cells: all runs.
        groups: number of compared groups.
        seeds: number of repetitions of each group.
        over: key of the repetitions.
        suite: the suite; its labelled texts are counted.
        earlier: comparison of earlier results; None if there are none.
        deviation: standard deviation over seeds; None to take it from earlier results, or to use the default if there
            are none.

    Raises:
        DataError: the texts of a task cannot be read.
    """
    left = [cell for cell in cells if run_state(cell.folder) != "finished"]
    sizes = {label: _reported_sizes(task) for label, task in suite.all_tasks.items()}
    tasks = _tasks(suite, sizes, earlier, deviation)
    trials = len(suite.learning_rates) * len(suite.batch_sizes) * len(suite.seeds) * len(suite.all_tasks)
    lines = [
        f"{len(cells)} runs: {groups} groups x {seeds} values of {over}; {len(cells) - len(left)} are finished",
        f"training: {_training_hours(left)}",
    ]
    if trials:
        hours = _tuning_hours(trials * len(cells), earlier)
        lines.append(f"fine-tunings: {trials} of each student, {trials * len(cells)} in all; {hours}")
    if not tasks or groups < 2:
        return "\n".join([*lines, "nothing to compare: fewer than two groups, or no labelled tasks in the suite"])
    family, composition = _family(cells, groups, suite, sizes)
    counts = sorted({seeds, *_SEEDS})
    head = ["task", "texts", "standard deviation", *(f"n = {count}" for count in counts)]
    rows = [
        [
            one.task,
            f"{one.texts:,}",
            f"{one.deviation:.4f} ({one.source})",
            *(_detectable(one, count, family) for count in counts),
        ]
        for one in tasks
    ]
    note = f"difference between groups with n values of {over} each, found with a power of {POWER} at the level {ALPHA}"
    corrected = f" (after correction for up to {family} differences)" if family > 1 else ""
    lines += ["", f"{note}{corrected}:", *aligned([head, *rows])]
    if family > 1:
        lines.append(f"differences of the comparison: {composition}")
    if seeds < 2:
        lines.append(f"this sweep has a single value of {over}: n = 1 is the difference between two students by their")
        lines.append("texts alone, which cannot be attributed to the groups")
    return "\n".join(lines)


def _detectable(task: TaskPlan, seeds: int, comparisons: int) -> str:
    if seeds == 1 and not (task.by_text and task.texts > 1):
        return "-"
    text = f"{task.detectable(seeds, 1):.4f}"
    return f"{text} ({task.detectable(seeds, comparisons):.4f})" if comparisons > 1 else text


def _family(
    cells: Sequence[SweepCell], groups: int, suite: Suite, sizes: Mapping[str, Sequence[int]]
) -> tuple[int, str]:
    """Count the differences whose p-values `kdcore compare` adjusts, assuming that no model lacks a score.

    Returns:
        The number, and a description of its composition.
    """
    columns = sum(map(len, sizes.values())) + (len(sizes) > 1) if suite.seeds else 0  # several tasks have an average
    if suite.probes.linear is not None:
        kinds = {label: task.data for label, task in suite.all_tasks.items()}
        columns += sum(len(own) for label, own in sizes.items() if _has_linear_probe(kinds[label]))
    columns += _RETRIEVAL_METRICS * (suite.probes.retrieval is not None)
    columns += suite.probes.masked_lm is not None
    agreement = _AGREEMENT_METRICS if suite.probes.agreement is not None else 0  # teachers have none
    pairs = groups * (groups - 1) // 2
    parts = [(pairs, "pairs of groups", columns + agreement)]
    if "initial" in suite.references:
        parts.append((groups, "pairs of a group and its students before training", columns + agreement))
    if "teacher" in suite.references:
        parts.append((groups * _number_of_teachers(cells), "pairs of a group and a teacher", columns))
    text = ", ".join(f"{counted(count, what)} x {counted(scores, 'scores')}" for count, what, scores in parts if count)
    return sum(count * scores for count, _, scores in parts), text


def _has_linear_probe(data: LabelledData | TaggedData) -> bool:
    return isinstance(data, LabelledData) and not data.multi_label


def _number_of_teachers(cells: Sequence[SweepCell]) -> int:
    """Count the distinct teachers from which students take their configuration."""
    found = set()
    for cell in cells:
        settings = load_recipe(cell.recipe, cell.overrides).settings
        found.add(settings.models_of_teachers.get(settings.students_teacher or "", {}).get("path"))
    return len(found - {None})


def _tasks(
    suite: Suite, sizes: Mapping[str, Sequence[int]], earlier: Comparison | None, deviation: float | None
) -> list[TaskPlan]:
    found = []
    for label, task in suite.all_tasks.items():
        own = deviation if deviation is not None else _found_deviation(label, task, earlier)
        source = "stated" if deviation is not None else "default" if own is None else "earlier results"
        title = f"{label} {task.main_metric}"
        texts = sizes[label][0] if sizes[label] else 0
        by_text = task.main_metric not in METRICS_OF_ALL_TEXTS
        found.append(TaskPlan(title, texts, DEFAULT_DEVIATION if own is None else own, source, by_text))
    return found


def _reported_sizes(task: SuiteTask) -> list[int]:
    """Return the numbers of texts in the test split (or validation split) and in its second part, if any."""
    sizes = {part.name: len(part) for part in task.data.read(Counter()) if part.labelled}
    split = "test" if "test" in sizes else "validation"
    return [size for name, size in sizes.items() if name.startswith(split)]


def _found_deviation(label: str, task: SuiteTask, earlier: Comparison | None) -> float | None:
    """Pool the standard deviations of earlier groups over their seeds."""
    if earlier is None:
        return None
    squares, freedom = 0.0, 0
    for scores in earlier.table.groups.values():
        for column, score in scores.items():
            same = (column.kind, column.task, column.part, column.metric) == ("finetune", label, "", task.main_metric)
            repeated = score.deviation is not None and isfinite(score.deviation) and score.unit != "fine-tunings"
            if same and repeated and score.deviation is not None:
                squares += score.deviation**2 * (score.count - 1)
                freedom += score.count - 1
    return sqrt(squares / freedom) if squares > 0 else None


def _training_hours(left: Sequence[SweepCell]) -> str:
    if not left:
        return "all runs are finished"
    hours, unknown = 0.0, 0
    for cell in left:
        own = _hours_of(cell)
        hours, unknown = hours + (own or 0.0), unknown + (own is None)
    if unknown == len(left):
        return f"{len(left)} runs; no earlier run of the same kind shows how long they take"
    rest = f", and {unknown} runs of unknown length" if unknown else ""
    return f"{len(left) - unknown} runs take about {hours:.1f} hours{rest}"


def _hours_of(cell: SweepCell) -> float | None:
    """Return the hours of a run: its budget in hours, or the mean of similar finished runs in the folder."""
    recipe = load_recipe(cell.recipe, cell.overrides)
    if recipe.settings.training.budget.hours is not None:
        return float(recipe.settings.training.budget.hours)
    parent, seconds = cell.folder.parent, []
    for folder in run_folders(parent) if parent.is_dir() else ():
        if folder != cell.folder and run_state(folder) == "finished" and _same_kind(folder, recipe):
            seconds += [max((float(row["seconds"]) for row in read_metrics(folder) if "seconds" in row), default=0.0)]
    return statistics.fmean(seconds) / _HOUR if seconds else None


def _same_kind(folder: Path, recipe: Recipe) -> bool:
    """Return whether a run had the same losses, batch size and budget."""
    try:
        other = load_recipe(folder / "recipe.yaml")
    except InputError:  # a damaged run does not prevent a plan
        return False
    training = [(one.settings.training.budget, one.settings.training.batch_size) for one in (recipe, other)]
    return training[0] == training[1] and recipe.data["losses"].keys() == other.data["losses"].keys()


def _tuning_hours(trials: int, earlier: Comparison | None) -> str:
    rows: dict[str, ResultRow] = {row.cell: row for row in earlier.rows if row.kind == "finetune"} if earlier else {}
    if not rows:
        return "no earlier fine-tuning shows how long they take"
    mean = statistics.fmean(row.seconds for row in rows.values())
    return f"about {mean * trials / _HOUR:.1f} hours, one at a time"
