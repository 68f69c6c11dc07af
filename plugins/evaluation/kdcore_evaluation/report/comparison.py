"""Compare runs: groups, their scores, their loss curves, and remarks on the limits of the comparison."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from kdcore import InputError
from kdcore_evaluation.run.compared_runs import MISSING, ComparedRun, check_keys
from kdcore_evaluation.run.differences import differences
from kdcore_evaluation.run.finished_scores import (
    ENCODER_PARAMETERS,
    PARAMETERS,
    RELATIVE_SIZE,
    RELATIVE_SPEED,
    SPEED,
    FinishedPredictions,
    of_teacher,
    read_predictions,
    teacher_folder,
)
from kdcore_evaluation.run.finished_scores import KIND as PREDICTIONS_KIND
from kdcore_evaluation.run.results import PREDICTIONS, ResultRow
from kdcore_evaluation.run.scores import (
    REFERENCES,
    Column,
    Labels,
    Measurement,
    Score,
    ScoreTable,
    by_model,
    chances,
    make_table,
    summary,
)
from kdcore_evaluation.run.scores import measurements as measurements_of

_FAVOURED_LOSSES = {
    "cosine": ("hidden_mse", "hidden_mse_cls", "hidden_mse_concat", "hidden_cosine", "hidden_pkd"),
    "masked_lm_loss": ("masked_lm",),
}
"""Losses that train on the quantity that a metric measures: hidden states equal to the teacher's have a cosine of 1
with them, which other objectives do not require."""

_ORDER = ("teacher", "initial", "without teacher", "random", "constant", "model")
"""Roles of references in table order: the upper reference, then baselines from the strongest to the weakest."""


@dataclass(frozen=True)
class Point:
    """A loss at a point in training; seconds are None if the run did not record them."""

    step: int
    seconds: float | None
    loss: float


@dataclass(frozen=True)
class Curve:
    """The losses of one run.

    Attributes:
        run: name of the run.
        group: its group in the comparison.
        training: the objective on training text, smoothed over the steps between two rows of metrics.
        held_out: the objective on held-out text.
    """

    run: str
    group: Labels
    training: list[Point]
    held_out: list[Point]


@dataclass
class Comparison:
    """The content of the tables and the page.

    Attributes:
        runs: the runs.
        by: keys that define the groups.
        over: key whose values are repetitions.
        table: scores at the end of each run.
        curves: losses of each run, by method, because losses are comparable only within a method.
        budget: score of each group by the fraction of the budget at which its students were exported.
        primary: the plotted column; None without scores.
        remarks: limits of the comparison, shown to the reader.
        rows: the result rows that the scores were computed from.
        roles: role of each reference, one of `teacher`, `initial`, `without teacher`, `random`, `constant` and `model`.
        unit: unit of the repetitions, such as `seeds`.
    """

    runs: list[ComparedRun]
    by: Labels
    over: str
    table: ScoreTable
    curves: dict[str, list[Curve]]
    budget: dict[Labels, dict[float, Score]]
    primary: Column | None
    remarks: list[str]
    rows: list[ResultRow]
    roles: dict[Labels, str]
    unit: str

    @property
    def runs_of_groups(self) -> dict[Labels, list[ComparedRun]]:
        """The runs of each group by the keys other than `export`."""
        keys = tuple(key for key in self.by if key != "export")
        found: dict[Labels, list[ComparedRun]] = {}
        for run in self.runs:
            found.setdefault(_group(run, keys, ""), []).append(run)
        return found

    def text(self) -> str:
        """Format the table for a terminal; without scores, the held-out losses; empty without both."""
        from kdcore_evaluation.report.learning import loss_changes
        from kdcore_evaluation.report.table_formats import losses, terminal

        if self.table.columns:
            return terminal(self.table)
        changes = loss_changes(self.runs_of_groups, self.unit)
        return losses(changes, tuple(key for key in self.by if key != "export")) if changes else ""

    def __str__(self) -> str:
        """Format the remarks and the table as `kdcore compare` prints them."""
        return "\n".join(filter(None, [*self.remarks, self.text()]))

    def _repr_html_(self) -> str:
        """Return the page in a frame of a notebook, which isolates its styles."""
        from kdcore_evaluation.report.page import page

        return f'<iframe srcdoc="{escape(page(self))}" width="100%" height="600"></iframe>'


@dataclass(frozen=True)
class Results:
    """The result rows of one evaluation, and the folder to which their paths are relative."""

    folder: Path
    rows: list[ResultRow]


def compare_runs(
    runs: Sequence[ComparedRun], results: Sequence[Results], by: Labels, over: str, margin: float | None = None
) -> Comparison:
    """Compare runs.

    Args:
        runs: the runs.
        results: evaluations; rows of runs that are not compared are ignored.
        by: keys that define the groups: recipe keys, or `method`, `run`, `seed`, `export`.
        over: key whose values are repetitions.
        margin: points by which a group may be below its teacher and still count as equivalent; None for no test.

    Raises:
        InputError: a key does not exist, or a margin is set and no teacher has a score.
    """
    check_keys(runs, [*by, over])
    own, others, folders = _rows_of(runs, results)
    teacher_runs, without_teacher = _teacher_runs(runs), _without_teacher(runs)
    compared = [run for run in runs if run.folder not in teacher_runs and run.folder not in without_teacher]
    groups: dict[Labels, list[Measurement]] = {_group(run, by, ""): [] for run in compared if "export" not in by}
    references: dict[Labels, list[Measurement]] = {}
    roles: dict[Labels, str] = {}
    before: dict[Labels, Labels] = {}
    budget: dict[Labels, dict[float, list[Measurement]]] = {}
    finished = {run.folder: one for run in runs if (one := read_predictions(run)) is not None}
    for run in runs:
        models = by_model(own[run.folder]).values()
        last = _last(rows for rows in models if rows[0].role == "student")
        group = _group(run, tuple(key for key in by if key != "export"), "")
        stands_for = _reference_of_run(run, group, teacher_runs, without_teacher)
        if run.folder in finished and "export" not in by:
            found = finished[run.folder].measurements(run.label(over) or run.name)
            (references if stands_for else groups).setdefault(stands_for or _group(run, by, ""), []).extend(found)
        for rows in models:
            found = measurements_of(rows, _repetition(run, over, rows[0]), folders)
            if rows[0].role == "initial":
                name = (f"before training: {', '.join(group)}".rstrip(": "),)
                before[group], roles[name] = name, "initial"
                references.setdefault(name, []).extend(found)
            elif stands_for:
                if rows is last:
                    references.setdefault(stands_for, []).extend(found)
            elif rows is last or "export" in by:
                groups.setdefault(_group(run, by, rows[0].export or ""), []).extend(found)
            if rows[0].share is not None and not stands_for:
                budget.setdefault(group, {}).setdefault(rows[0].share, []).extend(found)
        if stands_for in references:
            roles[stands_for] = "teacher" if run.folder in teacher_runs else "without teacher"
    for rows in by_model(others).values():
        name = (_reference_name(rows[0]),)
        roles[name] = rows[0].role
        references.setdefault(name, []).extend(measurements_of(rows, 0, folders))
    _add_references_of_finished(compared, finished, references, roles)
    references = {name: references[name] for name in sorted(references, key=lambda name: _ORDER.index(roles[name]))}
    everything = [row for rows in own.values() for row in rows] + others
    _add_relative_costs(groups, references, roles, everything)
    table = make_table(by, groups, references, _plural(over), chances(everything))
    teachers = [name for name, role in roles.items() if role == "teacher"]
    if margin is not None and not teachers:
        raise InputError(
            "the results contain no teacher to compare with",
            where="--margin",
            hint="evaluate with a suite that has `references: [teacher]`",
        )
    # Random weights and constants are far below most students; testing them would cost power for other differences.
    fixed = [name for name, role in roles.items() if role not in ("initial", "random", "constant")]
    against = {}
    for labels in groups:
        own_group = tuple(label for key, label in zip(by, labels, strict=True) if key != "export")
        against[labels] = [*([before[own_group]] if own_group in before else []), *fixed]
    trained = [name for name, role in roles.items() if role == "without teacher"]
    table.differences = differences(groups, references, against, teachers, _plural(over), margin, trained)
    table.favoured = _favoured(runs, by, table)
    primary = _primary(table)
    return Comparison(
        runs=list(runs),
        by=by,
        over=over,
        table=table,
        curves=_curves(runs, tuple(key for key in by if key != "export")),
        budget=_scores_by_share(budget, primary, over),
        primary=primary,
        remarks=[*_run_remarks(runs), *_result_remarks(runs, own, others, finished)],
        rows=everything,
        roles=roles,
        unit=_plural(over),
    )


def _rows_of(
    runs: Sequence[ComparedRun], results: Iterable[Results]
) -> tuple[dict[Path, list[ResultRow]], list[ResultRow], dict[ResultRow, Path]]:
    """Collect the rows of each run and of the reference models of the same evaluations, with the folder of each row."""
    own: dict[Path, list[ResultRow]] = {run.folder.resolve(): [] for run in runs}
    others: list[ResultRow] = []
    folders: dict[ResultRow, Path] = {}
    for evaluation in results:
        found = False
        folders |= dict.fromkeys(evaluation.rows, evaluation.folder)
        for row in evaluation.rows:
            if row.run is not None:
                place = Path(os.path.normpath(evaluation.folder / row.run)).resolve()
                if place in own:
                    found = True
                    if row.kind != PREDICTIONS_KIND:  # read from the run itself
                        own[place].append(row)
        if found or not runs:
            roles = (*REFERENCES, "model")
            others += [row for row in evaluation.rows if row.role in roles and (row.run is None or not runs)]
    return {run.folder: own[run.folder.resolve()] for run in runs}, others, folders


def _teacher_runs(runs: Sequence[ComparedRun]) -> set[Path]:
    """Return the folders of runs whose exports are teachers of other runs."""
    teachers = [folder for run in runs if (folder := teacher_folder(run)) is not None]
    return {run.folder for run in runs if any(folder.is_relative_to(run.folder.resolve()) for folder in teachers)}


def _without_teacher(runs: Sequence[ComparedRun]) -> set[Path]:
    """Return the folders of runs that train another run's student on the same data, but without a teacher."""
    taught = {_student_of(run) for run in runs if _has_teacher(run)}
    return {run.folder for run in runs if not _has_teacher(run) and _student_of(run) in taught}


def _has_teacher(run: ComparedRun) -> bool:
    return bool(run.recipe.get("teacher") or run.recipe.get("teachers"))


def _student_of(run: ComparedRun) -> tuple[str, str]:
    """Return the configuration of the exported student and its training data; a unique value without an export."""
    for export in ("best", "final"):
        try:
            config = json.loads((run.folder / "exports" / export / "config.json").read_text(encoding="utf-8"))
            return json.dumps({key: value for key, value in config.items() if key[0] != "_"}, sort_keys=True), str(
                run.data
            )
        except (OSError, ValueError, AttributeError):
            continue
    return (str(run.folder), "")


def _reference_of_run(run: ComparedRun, group: Labels, teachers: set[Path], without_teacher: set[Path]) -> Labels:
    """Return the name of a run that serves as a reference; empty if the run is one of the compared runs."""
    if run.folder in teachers:
        return (f"teacher {run.name}",)
    return (f"without teacher: {', '.join(group)}",) if run.folder in without_teacher else ()


def _add_references_of_finished(
    compared: Sequence[ComparedRun],
    finished: Mapping[Path, FinishedPredictions],
    references: dict[Labels, list[Measurement]],
    roles: dict[Labels, str],
) -> None:
    """Add the references for the scores of finished runs: their teachers and constant predictions."""
    teachers: dict[Path, FinishedPredictions] = {}
    constants: dict[str, list[Measurement]] = {}
    for run in compared:
        own = finished.get(run.folder)
        if own is None:
            continue
        title, scores = own.constant()
        constants.setdefault(title, scores)
        theirs = of_teacher(run, own)
        if theirs is not None:
            of_run = theirs.folder.name == PREDICTIONS
            teachers[(theirs.folder.parent if of_run else theirs.export).resolve()] = theirs
    for folder, theirs in teachers.items():
        name = (f"teacher {'/'.join(folder.parts[-2:])}",)
        if name not in references:
            references[name] = theirs.measurements(0)
            roles[name] = "teacher"
    for title, scores in constants.items():
        references[title,], roles[title,] = scores, "constant"


def _add_relative_costs(
    groups: Mapping[Labels, list[Measurement]],
    references: Mapping[Labels, list[Measurement]],
    roles: Mapping[Labels, str],
    rows: Iterable[ResultRow],
) -> None:
    """Add parameters and speed relative to a single teacher; omit speeds that come from different machines."""
    teachers = [references[name] for name, role in roles.items() if role == "teacher" and name in references]
    theirs = {column: {one.value for own in teachers for one in own if one.column == column} for column in _COSTS}
    machines = {row.device for row in rows if row.metric == SPEED.metric}
    for column, relative in _COSTS.items():
        if len(theirs[column]) != 1 or (column == SPEED and len(machines) != 1):
            continue
        if column == ENCODER_PARAMETERS and theirs[PARAMETERS]:
            continue  # parameters with heads are known
        (value,) = theirs[column]
        for own in (*groups.values(), *references.values()):
            own += [Measurement(relative, one.repetition, one.value / value) for one in own if one.column == column]


_COSTS = {PARAMETERS: RELATIVE_SIZE, ENCODER_PARAMETERS: RELATIVE_SIZE, SPEED: RELATIVE_SPEED}


def _favoured(runs: Sequence[ComparedRun], by: Labels, table: ScoreTable) -> dict[tuple[Labels, Column], Labels]:
    """Find the losses of each group that optimise the quantity measured by a column."""
    found: dict[tuple[Labels, Column], Labels] = {}
    for column in table.columns:
        for group in table.groups:
            # Stored recipes include the package of a component, as in `kdcore-hidden-mse:hidden_mse`.
            losses = {loss.rpartition(":")[2] for run in runs if _matches(run, by, group) for loss in run.losses}
            own = tuple(loss for loss in _FAVOURED_LOSSES.get(column.metric, ()) if loss in losses)
            if own and column in table.groups[group]:
                found[group, column] = own
    return found


def _matches(run: ComparedRun, by: Labels, group: Labels) -> bool:
    own = _group(run, by, "")
    return all(key == "export" or one == other for key, one, other in zip(by, own, group, strict=True))


def _group(run: ComparedRun, by: Labels, export: str) -> Labels:
    return tuple(export if key == "export" else run.label(key) or MISSING for key in by)


def _repetition(run: ComparedRun, over: str, row: ResultRow) -> str:
    return (row.export or "") if over == "export" else run.label(over) or run.name


def _last(models: Iterable[list[ResultRow]]) -> list[ResultRow] | None:
    """Select the rows of a run's best or final student; if there are none, the rows of its last export."""
    ranked = sorted(models, key=lambda rows: (rows[0].export == "best", rows[0].share or 0.0))
    return ranked[-1] if ranked else None


def _reference_name(row: ResultRow) -> str:
    return f"teacher {row.model}" if row.role == "teacher" else row.model


def _plural(over: str) -> str:
    return {"seed": "seeds", "run": "runs", "export": "exports", "method": "methods"}.get(over, f"values of {over}")


def _primary(table: ScoreTable) -> Column | None:
    """Choose the plotted column: the average over tasks if it exists, then a fine-tuned score, then a probe's score."""
    for kind in ("finetune", "predictions", "embeddings", "linear", "retrieval", "agreement"):
        columns = [column for column in table.columns if column.kind == kind]
        averages = [column for column in columns if column.task == "average"]
        chosen = [*averages, *(column for column in columns if column.metric != "cosine")]
        if chosen:
            return chosen[0]
    return None


def _scores_by_share(
    budget: Mapping[Labels, Mapping[float, list[Measurement]]], primary: Column | None, over: str
) -> dict[Labels, dict[float, Score]]:
    found: dict[Labels, dict[float, Score]] = {}
    for group, shares in budget.items():
        for share, values in sorted(shares.items()):
            own = [one for one in values if one.column == primary]
            if own:
                found.setdefault(group, {})[share] = summary(own, _plural(over))
    return found if any(len(shares) > 1 for shares in found.values()) else {}


def _curves(runs: Sequence[ComparedRun], by: Labels) -> dict[str, list[Curve]]:
    found: dict[str, list[Curve]] = {}
    for run in runs:
        training, held_out = _points(run, "train/loss"), _points(run, "held_out/loss")
        if training or held_out:
            found.setdefault(run.method, []).append(Curve(run.name, _group(run, by, ""), training, held_out))
    return found


def _points(run: ComparedRun, metric: str) -> list[Point]:
    return [
        Point(int(row["step"]), float(row["seconds"]) if "seconds" in row else None, float(row[metric]))
        for row in run.metrics
        if isinstance(row.get(metric), int | float)
    ]


def _run_remarks(runs: Sequence[ComparedRun]) -> list[str]:
    remarks = []
    unfinished = [run for run in runs if run.state != "finished"]
    if unfinished:
        names = ", ".join(f"{run.name} ({run.state})" for run in unfinished)
        remarks.append(f"These runs are not finished, so their values are intermediate: {names}.")
    for what, values in (
        ("data", {run.name: run.data for run in runs}),
        ("teachers", {run.name: run.teacher for run in runs}),
    ):
        kinds: dict[str, list[str]] = {}
        for name, value in values.items():
            if value is not None:
                kinds.setdefault(value, []).append(name)
        if len(kinds) > 1:
            sides = "; ".join(", ".join(names) for names in kinds.values())
            remarks.append(
                f"These runs had different {what}, so their differences are not only due to their methods: {sides}."
            )
    silent = [run.name for run in runs if not run.metrics]
    if silent:
        remarks.append(f"metrics.jsonl is missing or empty, so no losses are drawn: {', '.join(silent)}.")
    untimed = [run.name for run in runs if run.metrics and not any("seconds" in row for row in run.metrics)]
    if untimed:
        remarks.append(f"No seconds in metrics.jsonl, so they are not drawn against time: {', '.join(untimed)}.")
    return remarks


def _result_remarks(
    runs: Sequence[ComparedRun],
    own: Mapping[Path, list[ResultRow]],
    others: Sequence[ResultRow],
    finished: Mapping[Path, FinishedPredictions],
) -> list[str]:
    remarks = _finished_remarks(runs, finished)
    everything = [row for rows in own.values() for row in rows] + list(others)
    without = [run.name for run in runs if not own[run.folder] and run.folder not in finished]
    if everything and without:
        remarks.append(f"Not evaluated: {', '.join(without)}.")
    elif runs and not everything and not finished:
        remarks.append(
            "None of these runs was evaluated: run `kdcore evaluate RUN --on SUITE` for scores, for example with "
            "kdcore:suites/demo.yaml."
        )
    for task in dict.fromkeys(row.task for row in everything if row.task is not None):
        rows = [row for row in everything if row.task == task and row.kind == "finetune"]
        labels = dict.fromkeys(row.labels or "numbers" for row in rows)
        if len(labels) > 1:
            remarks.append(f"`{task}` has different sets of labels: {'; '.join(labels)}.")
        elif len({row.data for row in rows}) > 1:
            remarks.append(f"`{task}` has different texts in these results.")
        if rows and all(row.split != "test" for row in rows):
            remarks.append(f"`{task}` has no labelled test split: learning rates were selected on the shown scores.")
    suites = dict.fromkeys(f"{row.suite} ({row.suite_sha256[:8]})" for row in everything)
    if len(suites) > 1:
        remarks.append(f"Measured by different suites, or by different versions of one: {', '.join(suites)}.")
    devices = dict.fromkeys(row.device for row in everything if row.metric == "sequences_per_second")
    if len(devices) > 1:
        remarks.append(f"Speed was measured on different machines: {'; '.join(devices)}.")
    remarks += _missing_seeds(own, others)
    return remarks


def _finished_remarks(runs: Sequence[ComparedRun], finished: Mapping[Path, FinishedPredictions]) -> list[str]:
    remarks = []
    kinds: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for run in runs:
        if run.folder in finished:
            own = finished[run.folder]
            texts = tuple((name, texts) for name, texts in own.texts.items() if name.startswith(own.split))
            kinds.setdefault(texts, []).append(run.name)
    if len(kinds) > 1:
        sides = "; ".join(", ".join(names) for names in kinds.values())
        remarks.append(f"These runs predicted different texts, so their scores come from different tests: {sides}.")
    if finished and all(own.split == "validation" for own in finished.values()):
        remarks.append("No labelled test split: the students were selected on the shown scores.")
    taught = [run for run in runs if run.folder in finished and _has_teacher(run)]
    if taught and not _without_teacher(runs):
        remarks.append(
            "No run trains the same student without a teacher; `--train-without-teacher` does. It takes the recipe of "
            f"{taught[0].name} with `teacher: null`, another `run.id` and without the losses that need a teacher."
        )
    return remarks


def _missing_seeds(own: Mapping[Path, list[ResultRow]], others: Sequence[ResultRow]) -> list[str]:
    rows = [row for found in (*own.values(), others) for row in found if row.kind == "finetune" and row.main]
    trials: dict[tuple[str, str | None, str], set[tuple[float | None, int | None, int | None]]] = {}
    for row in rows:
        place = (row.learning_rate, row.batch_size, row.seed)
        trials.setdefault((row.model, row.task, row.suite_sha256), set()).add(place)
    most: dict[tuple[str | None, str], int] = {}
    for (_, task, suite), places in trials.items():
        most[task, suite] = max(most.get((task, suite), 0), len(places))
    behind = [
        f"{model} on {task} ({len(places)} of {most[task, suite]} fine-tunings)"
        for (model, task, suite), places in trials.items()
        if len(places) < most[task, suite]
    ]
    return [f"Not all fine-tunings are finished: {', '.join(behind)}."] if behind else []
