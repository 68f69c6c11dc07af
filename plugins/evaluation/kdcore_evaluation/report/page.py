"""The comparison as one self-contained HTML page, without network access or further files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from kdcore import dump_yaml
from kdcore_evaluation.report.comparison import Comparison
from kdcore_evaluation.report.figures import Styles, budget_section, cost_section, loss_section, score_figures
from kdcore_evaluation.report.layer_maps import layer_section
from kdcore_evaluation.report.learning import signs_of_collapse
from kdcore_evaluation.report.markup import (
    Cell,
    ContentGroup,
    Number,
    PageSection,
    Piece,
    Row,
    Table,
    cell,
    counts,
    csv_download,
    score_cell,
    wrapped,
)
from kdcore_evaluation.report.table_formats import (
    DIFFERENCES_NOTE,
    FAVOURED,
    csv_text,
    difference_title,
    notes,
    shown_differences,
    shown_p,
    shown_within,
)
from kdcore_evaluation.run.scores import CHANCE_TITLES, Labels, ScoreTable


@dataclass(frozen=True)
class _Repeat:
    """How to reproduce the page: commands, notes, and the recipe of each run."""

    commands: str
    notes: list[str]
    recipes: list[tuple[str, str]]


def page(comparison: Comparison) -> str:
    """Compose the whole page."""
    environment = Environment(
        loader=PackageLoader("kdcore_evaluation.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["wrapped"] = wrapped
    environment.tests["number"] = lambda piece: isinstance(piece, Number)
    styles = {labels: number for number, labels in enumerate(groups_of(comparison))}
    sections = [
        _scores(comparison, styles),
        loss_section(comparison, styles),
        budget_section(comparison, styles),
        cost_section(comparison, styles),
        layer_section(comparison),
        PageSection("runs", "Runs", [ContentGroup(tables=[_runs(comparison)])]),
    ]
    groups = len(comparison.table.groups)
    return environment.get_template("page.html").render(
        title=f"kdcore: {_number_of_runs(comparison)} compared by {', '.join(comparison.by)}",
        heading=f"{_number_of_runs(comparison)}, {groups if groups != 1 else 'one'} "
        f"group{'s' if groups != 1 else ''} by {', '.join(comparison.by)}",
        over=comparison.over,
        suites=", ".join(dict.fromkeys(row.suite for row in comparison.rows)),
        collapses=_collapses(comparison),
        remarks=comparison.remarks,
        sections=[section for section in sections if section.blocks],
        repeat=_repeat(comparison),
    )


def groups_of(comparison: Comparison) -> list[Labels]:
    """List all plotted groups, in the order of their styles."""
    curves = (curve.group for own in comparison.curves.values() for curve in own)
    return list(dict.fromkeys([*comparison.table.groups, *comparison.budget, *curves, *comparison.table.references]))


def _number_of_runs(comparison: Comparison) -> str:
    count = len(comparison.runs)
    return f"{count} runs" if count != 1 else "one run"


def _collapses(comparison: Comparison) -> Table | None:
    rows = []
    for run in comparison.runs:
        for sign in signs_of_collapse(run):
            own = Number(sign.value, sign.form.format(sign.value))
            reference: tuple[Piece, ...] = ("-",)
            if sign.reference is not None:
                reference = (Number(sign.reference, sign.form.format(sign.reference)), f" ({sign.against})")
            rows.append(Row([cell(run.name), cell(sign.what), cell(own), Cell(reference)]))
    head = ["run", "sign", "student", "compared with"]
    return Table("Signs of collapse", head, [rows], frozenset({2})) if rows else None


def _scores(comparison: Comparison, styles: Styles) -> PageSection:
    table = comparison.table
    if not table.columns:
        return PageSection("scores", "Scores", [ContentGroup(notes=["No scores."])])
    scores = ContentGroup(figures=score_figures(comparison, styles), tables=[_score_table(comparison)])
    differences = _differences(table)
    return PageSection(
        "scores", "Scores", [scores, *([ContentGroup("Differences", tables=[differences])] if differences else [])]
    )


def _score_table(comparison: Comparison) -> Table:
    table = comparison.table
    keys = len(table.keys)
    head = [*table.keys, comparison.unit, *(column.title for column in table.columns)]
    groups = []
    for labels, scores in table.groups.items():
        runs = len(comparison.runs_of_groups.get(labels, ()))
        cells = [
            Cell(one.pieces, (*one.notes, f" {FAVOURED}")) if (labels, column) in table.favoured else one
            for column in table.columns
            for one in [score_cell(scores.get(column), column)]
        ]
        groups.append(Row([*map(cell, labels), cell(Number(runs, str(runs)) if runs else "-"), *cells]))
    references = [
        Row([cell(labels[0]), cell("-"), *(score_cell(scores.get(column), column) for column in table.columns)], keys)
        for labels, scores in table.references.items()
    ]
    chance = {column: value for column, value in table.chance.items() if column in table.columns}
    for title in dict.fromkeys(CHANCE_TITLES[column.metric] for column in chance):
        own = [chance.get(column) if CHANCE_TITLES.get(column.metric) == title else None for column in table.columns]
        cells = [
            cell("-" if value is None else Number(value, column.show(value)))
            for column, value in zip(table.columns, own, strict=True)
        ]
        references.append(Row([cell(title), cell("-"), *cells], keys))
    below = "Below the line: references, which are not compared among each other."
    return Table(
        "Scores",
        head,
        [body for body in (groups, references) if body],
        frozenset(range(keys, len(head))),
        notes=[*notes(table), *([below] if references else [])],
        download=csv_download(csv_text(table)),
    )


def _differences(table: ScoreTable) -> Table | None:
    chosen = shown_differences(table)
    if not chosen:
        return None
    within = any(one.p_within is not None for one in chosen)
    head = ["first", "second", "score", "difference", "95% interval", "p", "over"]
    rows = []
    for one in chosen:
        low, high = (Number(bound, one.column.show_signed(bound)) for bound in one.interval)
        cells = [
            cell(", ".join(one.first)),
            cell(", ".join(one.second)),
            cell(difference_title(table, one)),
            cell(Number(one.value, one.column.show_signed(one.value))),
            cell("[", low, ", ", high, "]"),
            cell(Number(one.p_value, shown_p(one.p_value))),
            Cell(counts(one.over)),
        ]
        rows.append(Row([*cells, *([cell(shown_within(one))] if within else [])]))
    head += ["within the margin"] if within else []
    return Table("Differences", head, [rows], frozenset({3, 4, 5}), notes=[DIFFERENCES_NOTE])


def _runs(comparison: Comparison) -> Table:
    keys = [
        key
        for key in dict.fromkeys([*comparison.by, comparison.over, "seed", "method"])
        if key not in ("run", "export")
    ]
    head = ["run", "state", "steps", "minutes", *keys, "data", "teacher"]
    rows = []
    for run in comparison.runs:
        steps = max((int(row["step"]) for row in run.metrics), default=None)
        seconds = max((float(row["seconds"]) for row in run.metrics if "seconds" in row), default=None)
        cells = [
            cell(run.name),
            cell(run.state),
            cell("-" if steps is None else Number(steps, f"{steps:,}")),
            cell("-" if seconds is None else Number(seconds, f"{seconds / 60:.1f}")),
            *(cell(run.label(key) or "-") for key in keys),
            cell((run.data or "-")[:8]),
            cell((run.teacher or "-")[:8]),
        ]
        rows.append(Row(cells))
    note = "Data and teacher: first digits of fingerprints; equal digits mean equal content."
    return Table("Runs", head, [rows], frozenset({2, 3}), notes=[note])


def _repeat(comparison: Comparison) -> _Repeat:
    suites = list(dict.fromkeys(row.suite for row in comparison.rows))
    versions: dict[str, list[str]] = {}
    for row in comparison.rows:
        for name, version in json.loads(row.versions).items():
            if version not in versions.setdefault(name, []):
                versions[name].append(version)
    packages = ", ".join(f"{name} {' and '.join(found)}" for name, found in sorted(versions.items()))
    lines = [
        "kdcore-train RECIPE.yaml",
        *(f"kdcore evaluate RUNS --on SUITE.yaml    # {suite}" for suite in suites),
        f"kdcore compare RUNS --by {','.join(comparison.by)} --over {comparison.over} --html page.html",
    ]
    grid = _grid(comparison)
    return _Repeat(
        commands="\n".join(lines),
        notes=[*([grid] if grid else []), *([f"Versions: {packages}."] if packages else [])],
        recipes=[(run.name, dump_yaml(run.stated)) for run in comparison.runs],
    )


def _grid(comparison: Comparison) -> str:
    rows = [row for row in comparison.rows if row.kind == "finetune" and row.learning_rate is not None]
    if not rows:
        return ""

    def values(found: Iterable[object]) -> str:
        return ", ".join(str(value) for value in sorted(set(found), key=str))

    return (
        f"Fine-tuned with learning rates {values(f'{row.learning_rate:g}' for row in rows)}, "
        f"batch sizes {values(row.batch_size for row in rows)} and seeds {values(row.seed for row in rows)}; for "
        "each model and task the setting with the best validation score is shown. "
        "Every trial's recipe is in its result row."
    )
