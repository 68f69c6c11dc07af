"""Implement `kdcore summary`: print losses, scores and sizes of a finished run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdcore.commands.base import Command, add_allow_imports, add_options
from kdcore.errors import InputError, KdcoreError, PluginError, first_line
from kdcore.recipe.loading import load_recipe
from kdcore.recipe.schema import without_cache
from kdcore.registry import Entry, summary_rows
from kdcore.trackers.jsonl import read_metrics

if TYPE_CHECKING:
    from kdcore.tasks.finished_run import FinishedRun, SummaryRows
    from kdcore.training.loop.plan import Plan


class SummaryCommand(Command):
    """Print a short table about a finished run.

    It lists losses, scores and sizes, plus rows added by the task and by installed packages. For example,
    kdcore-evaluation adds inference speed and the similarity of the student's embeddings to the teacher's.
    """

    help = "summarise a finished run: losses, scores, size, comparison with the teacher"

    def __init__(self) -> None:
        self._unusable: set[str] = set()

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare RUN, and the options that packages add."""
        parser.add_argument("run", metavar="RUN", type=Path, help="run folder, such as runs/NAME/ID")
        add_allow_imports(parser)
        for entry in sorted(summary_rows.entries(), key=lambda entry: entry.precedence):
            try:
                add_options(summary_rows.get(_name(entry))(), entry, parser, ["RUN"])
            except KdcoreError as error:
                print(f"warning: rows of `{_name(entry)}` are left out: {error}", file=sys.stderr)
                self._unusable.add(_name(entry))

    def run(self, arguments: argparse.Namespace) -> int:
        """Measure and print."""
        print(
            summarise(arguments.run, allow_imports=arguments.allow_imports, arguments=arguments, without=self._unusable)
        )
        return 0


def summarise(
    folder: Path,
    *,
    allow_imports: bool = False,
    arguments: argparse.Namespace | None = None,
    without: Collection[str] = (),
) -> str:
    """Describe a finished run in a table. The models are loaded as a user would load them.

    Args:
        folder: the run folder.
        allow_imports: whether to run the Python files under `imports:` of the run's recipe.
        arguments: arguments of the command, including the options that packages add; None for the defaults.
        without: components, as `package:name`, whose rows are left out.

    Raises:
        InputError: the folder contains no finished run, or its task cannot summarise it.
    """
    from kdcore.tasks.finished_run import FinishedRun
    from kdcore.training.run.build import make_plan
    from kdcore.training.run.run_folder import stored_data

    exports = folder / "exports"
    if not (exports / "final").is_dir():
        raise InputError("the folder contains no finished run", where=str(folder), hint="pass a folder runs/NAME/ID")
    recipe = load_recipe(folder / "recipe.yaml", allow_imports=allow_imports)
    live = {  # a cache may have been removed since
        "teacher.cache" if recipe.settings.teachers is None else f"teachers.{label}.cache": None
        for label, section in recipe.settings.models_of_teachers.items()
        if "cache" in section and "cache" not in without_cache(section)
    }
    export = exports / ("best" if (exports / "best").is_dir() else "final")
    caches = [without_cache(section).get("cache") for section in recipe.settings.models_of_teachers.values()]
    if missing := [cache for cache in caches if cache is not None and not Path(cache).exists()]:
        return _table(_rows_without_caches(export, read_metrics(folder), missing))
    plan = make_plan(load_recipe(recipe.path, live, allow_imports=allow_imports), stored_data(folder))
    teacher_sources = {label: model.source for label, model in plan.teachers.items() if model.source is not None}
    metrics = read_metrics(folder)
    run = FinishedRun(
        folder=folder,
        export=export,
        teacher_source=teacher_sources.get(plan.recipe.settings.students_teacher or ""),
        task=plan.task,
        held_out=_values(metrics, "held_out"),
        constants=_constants(metrics),
        teacher_sources=teacher_sources,
        student_model=plan.student,
        teacher_model=plan.teachers.get(plan.recipe.settings.students_teacher or ""),
        losses=plan.stages[-1].losses,
        arguments=arguments or argparse.Namespace(),
    )
    rows = _warning_row(run, metrics) | _held_out_rows(run.held_out, run.constants)
    rows |= run.task.summary_rows(run)
    for name, value in run.task.baselines("held_out").items():
        if f"held-out {name}" in rows:
            rows[f"held-out {name}"] += f"; without the text: {value:.4f}"
    rows |= _size_rows(run)
    for provider in [*map(_name, summary_rows.entries()), *summary_rows.registered()]:
        if provider not in without:
            rows |= _rows_of(provider, run)
    rows |= _place_rows(run)
    rows |= _suggestion(run, plan)
    return _table(rows)


def _table(rows: Mapping[str, str]) -> str:
    width = max(map(len, rows))
    return "\n".join(f"{title:<{width}}  {text}" for title, text in rows.items())


def _rows_without_caches(
    export: Path, metrics: Sequence[Mapping[str, float]], missing: Sequence[str]
) -> dict[str, str]:
    """Describe a run whose teachers' descriptions were stored only in caches that no longer exist."""
    from kdcore.tasks.finished_run import load_encoder

    student, caches = load_encoder(str(export)), ", ".join(missing)
    return {
        **_held_out_rows(_values(metrics, "held_out"), _constants(metrics)),
        "blocks": str(student.config.num_hidden_layers),
        "parameters": f"{_parameters(student):,}",
        "student": str(export),
        "not shown": "rows that require the teacher or the task: only the cache "
        f"{caches} describes the teacher, and it does not exist. Restore it, or compute it with `kdcore teacher cache`",
    }


def _values(rows: Iterable[Mapping[str, float]], kind: str) -> dict[str, list[float]]:
    """Return the metrics of one kind by name, ordered by step, without the weighted total."""
    values: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            prefix, _, label = name.partition("/")
            if prefix == kind and label != "loss":
                values.setdefault(label, []).append(value)
    return values


def _warning_row(run: FinishedRun, metrics: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """Describe the signs of collapse that the last validation recorded, with its numbers."""
    from kdcore.training.loop.collapse import collapse_findings
    from kdcore.training.loop.events import collapse_warning

    last = next((row for row in reversed(metrics) if "held_out/loss" in row), {})
    values, constants, checks = (
        {name.removeprefix(kind): value for name, value in last.items() if name.startswith(kind)}
        for kind in ("held_out/", "constant/", "check/")
    )
    found = collapse_findings(values, constants, checks, run.task.baselines("held_out"), run.task.metric)
    findings = [text for name, text in found.items() if f"finding/{name}" in last]
    return {"warning": collapse_warning(findings)} if findings else {}


def _constants(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: values[-1] for name, values in _values(metrics, "constant").items()}


def _held_out_rows(held_out: Mapping[str, list[float]], constants: Mapping[str, float]) -> dict[str, str]:
    """Format the first held-out value of each loss (before training, or when it became active) and the last one."""
    from kdcore.training.loop.events import explained_shares

    explained = explained_shares({name: values[-1] for name, values in held_out.items()}, constants)
    rows = {}
    for label, (first, *later) in held_out.items():
        if later:
            ratio = f" ({first / later[-1]:.1f} times lower)" if 0 < later[-1] < first else ""
            rows[f"held-out {label}"] = f"{first:.4f} at the start, {later[-1]:.4f} at the end{ratio}"
            if label in constants:
                rows[f"held-out {label}"] += f"; best constant prediction: {constants[label]:.4f}"
            if label in explained:
                rows[f"held-out {label}"] += f" (explained: {explained[label]:.1%})"
    return rows


def _size_rows(run: FinishedRun) -> dict[str, str]:
    student, size = run.student, _parameters(run.student)
    if run.teacher is None:
        return {"blocks": str(student.config.num_hidden_layers), "parameters": f"{size:,}"}
    theirs = _parameters(run.teacher)
    rows = {}
    if len(run.teacher_sources) > 1:
        rows["teachers"] = ", ".join(f"{label}: {source}" for label, source in run.teacher_sources.items())
        rows["compared with"] = str(run.teacher_source)
    return rows | {
        "blocks": f"teacher {run.teacher.config.num_hidden_layers}, student {student.config.num_hidden_layers}",
        "parameters": f"teacher {theirs:,}, student {size:,} ({size / theirs:.0%})",
    }


def _parameters(model: object) -> int:
    return sum(parameter.numel() for parameter in model.parameters())  # type: ignore[attr-defined]


def _name(entry: Entry) -> str:
    return f"{entry.distribution}:{entry.name}"


def _rows_of(name: str, run: FinishedRun) -> dict[str, str]:
    """Return the rows of a package. If it fails, print a warning and return no rows."""
    try:
        provider: SummaryRows = summary_rows.get(name)()
        return provider.rows(run)
    except Exception as error:
        if isinstance(error, InputError) and not isinstance(error, PluginError):
            raise  # the run does not have what an option asks for
        print(f"warning: rows of `{name}` are left out: {first_line(error)}", file=sys.stderr)
        return {}


def _place_rows(run: FinishedRun) -> dict[str, str]:
    heads = run.task.heads(run.task.config)
    auto_class = heads[0].auto_class if heads else run.task.auto_class
    usage = run.task.card_usage()
    loader = usage[0]["library_name"] if usage else f"{auto_class}.from_pretrained"
    rows = {"student": f"{run.export}  ({loader} loads it)"}
    if (run.folder / "predictions").is_dir():
        rows["predictions"] = str(run.folder / "predictions")
    if (run.folder / "tensorboard").is_dir():
        rows["curves"] = f"tensorboard --logdir {run.folder / 'tensorboard'}  (pip install tensorboard)"
    return rows


def _suggestion(run: FinishedRun, plan: Plan) -> dict[str, str]:
    """Suggest an even pairing of blocks for the first loss whose pairing is not even."""
    for label, loss in plan.losses.items():
        if getattr(loss.config, "layers", "uniform") != "uniform":
            change = f"run.id=NEW losses.{label}.layers=uniform"
            return {"try next": f"kdcore-train {run.folder / 'recipe.yaml'} {change}"}
    return {}
