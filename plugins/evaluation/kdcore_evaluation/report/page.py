"""The comparison as one self-contained HTML page: no network, no script, no further file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources

from kdcore import dump_yaml
from kdcore_evaluation.report.comparison import Comparison
from kdcore_evaluation.report.figures import budget_section, cost_section, loss_section
from kdcore_evaluation.report.markup import counts, datum, region, score_cell, table_of, wrapped
from kdcore_evaluation.report.table_formats import (
    DIFFERENCES_NOTE,
    difference_title,
    notes,
    shown_differences,
    shown_p,
    shown_within,
)
from kdcore_evaluation.run.scores import CHANCE_TITLES, Column, Labels, Score, ScoreTable


def page(comparison: Comparison) -> str:
    """Compose the whole page."""
    styles = {labels: number for number, labels in enumerate(groups_of(comparison))}
    sections = [
        ("scores", "Scores", _scores(comparison)),
        ("loss", "Loss during training", loss_section(comparison, styles)),
        ("budget", "Score by fraction of the budget", budget_section(comparison, styles)),
        ("cost", "Score by size and speed", cost_section(comparison, styles)),
        ("runs", "Runs", _runs(comparison)),
        ("repeat", "How to reproduce this page", _repeat(comparison)),
    ]
    shown = [(name, title, body) for name, title, body in sections if body]
    title = f"kdcore: {_number_of_runs(comparison)} compared by {', '.join(comparison.by)}"
    css = resources.files("kdcore_evaluation.report").joinpath("page.css").read_text(encoding="utf-8")
    links = "".join(f'<li><a href="#{name}">{escape(text)}</a></li>' for name, text, _ in shown)
    body = "".join(
        f'<section aria-labelledby="{name}"><h2 id="{name}">{escape(text)}</h2>\n{part}</section>\n'
        for name, text, part in shown
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Without an icon in the page a browser requests one from the server.
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>\n{css}</style>\n</head>\n<body>\n"
        f"<header><h1>{escape(_heading(comparison))}</h1>{_lead(comparison)}</header>\n"
        f'<nav aria-label="Parts of this page"><ul>{links}</ul></nav>\n'
        f"<main>\n{_remarks(comparison.remarks)}{body}</main>\n</body>\n</html>\n"
    )


def groups_of(comparison: Comparison) -> list[Labels]:
    """List every group that is drawn, in the order of their styles."""
    curves = (curve.group for own in comparison.curves.values() for curve in own)
    return list(dict.fromkeys([*comparison.table.groups, *comparison.budget, *curves, *comparison.table.references]))


def _heading(comparison: Comparison) -> str:
    count = len(comparison.table.groups)
    groups = f"{count} groups" if count != 1 else "one group"
    return f"{_number_of_runs(comparison)}, {groups} by {', '.join(comparison.by)}"


def _number_of_runs(comparison: Comparison) -> str:
    count = len(comparison.runs)
    return f"{count} runs" if count != 1 else "one run"


def _lead(comparison: Comparison) -> str:
    suites = ", ".join(dict.fromkeys(row.suite for row in comparison.rows)) or "nothing yet"
    over = escape(comparison.over)
    return f'<p class="quiet">Repeated over {over}. Measured by: {escape(suites)}. Made by kdcore compare.</p>'


def _remarks(remarks: Sequence[str]) -> str:
    if not remarks:
        return ""
    items = "".join(f"<li>{escape(remark)}</li>" for remark in remarks)
    return f'<aside class="remarks" aria-label="Remarks"><strong>Before you compare</strong><ul>{items}</ul></aside>\n'


def _scores(comparison: Comparison) -> str:
    table = comparison.table
    if not table.columns:
        return "<p>No scores.</p>"
    head = "".join(f'<th scope="col">{escape(key)}</th>' for key in table.keys)
    head += "".join(f'<th scope="col" class="number">{escape(column.title)}</th>' for column in table.columns)
    parts = [f"<tbody>{_rows(table, table.groups)}</tbody>"]
    if table.references:
        parts.append(f'<tbody class="references">{_rows(table, table.references)}</tbody>')
    whole = f"<table><thead><tr>{head}</tr></thead>{''.join(parts)}</table>"
    chance = "".join(
        f"<li>{escape(column.title)}: {CHANCE_TITLES[column.metric]} {datum(share, f'{share:.3f}')}</li>"
        for column, share in table.chance.items()
        if column in table.columns
    )
    below = [*notes(table)]
    if table.references:
        below.append("Below the line: reference models, which are not compared.")
    baselines = f"<ul>{chance}</ul>" if chance else ""
    return f'{region("Scores", whole)}{baselines}<p class="quiet">{escape(" ".join(below))}</p>{_differences(table)}'


def _differences(table: ScoreTable) -> str:
    chosen = shown_differences(table)
    if not chosen:
        return ""
    head = ["first", "second", "score", "difference", "95% interval", "p", "over"]
    within = any(one.p_within is not None for one in chosen)
    body = []
    for one in chosen:
        bounds = ", ".join(datum(bound, one.column.show_signed(bound)) for bound in one.interval)
        row = [
            wrapped(", ".join(one.first)),
            wrapped(", ".join(one.second)),
            escape(difference_title(table, one)),
            datum(one.value, one.column.show_signed(one.value)),
            f"[{bounds}]",
            datum(one.p_value, shown_p(one.p_value)),
            counts(one.over),
        ]
        body.append([*row, *([escape(shown_within(one))] if within else [])])
    head += ["within the margin"] if within else []
    whole = table_of(head, body, numbers={3, 4, 5}, caption="Differences")
    return f'{region("Differences", whole)}<p class="quiet">{escape(DIFFERENCES_NOTE)}</p>'


def _rows(table: ScoreTable, groups: Mapping[Labels, Mapping[Column, Score]]) -> str:
    lines = []
    for labels, scores in groups.items():
        span = len(table.keys) - len(labels) + 1
        first = f'<th scope="row"{f" colspan={span}" if span > 1 else ""}>{wrapped(labels[0])}</th>'
        rest = "".join(f"<td>{wrapped(label)}</td>" for label in labels[1:])
        cells = "".join(f'<td class="number">{score_cell(scores.get(column), column)}</td>' for column in table.columns)
        lines.append(f"<tr>{first}{rest}{cells}</tr>")
    return "".join(lines)


def _runs(comparison: Comparison) -> str:
    keys = [
        key
        for key in dict.fromkeys([*comparison.by, comparison.over, "seed", "method"])
        if key not in ("run", "export")
    ]
    head = ["run", "state", "steps", "minutes", *keys, "data", "teacher"]
    body = []
    for run in comparison.runs:
        steps = max((int(row["step"]) for row in run.metrics), default=None)
        seconds = max((float(row["seconds"]) for row in run.metrics if "seconds" in row), default=None)
        body.append(
            [
                wrapped(run.name),
                escape(run.state),
                "-" if steps is None else datum(steps, f"{steps:,}"),
                "-" if seconds is None else datum(seconds, f"{seconds / 60:.1f}"),
                *(wrapped(run.label(key) or "-") for key in keys),
                escape((run.data or "-")[:8]),
                escape((run.teacher or "-")[:8]),
            ]
        )
    note = '<p class="quiet">Data and teacher: first digits of fingerprints; equal digits mean equal content.</p>'
    return region("Runs", table_of(head, body, numbers={2, 3})) + note


def _repeat(comparison: Comparison) -> str:
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
    recipes = "".join(
        f"<details><summary>Recipe of {wrapped(run.name)}</summary><pre>{escape(dump_yaml(run.stated))}</pre></details>"
        for run in comparison.runs
    )
    return (
        region("Commands", f"<pre>{escape(chr(10).join(lines))}</pre>")
        + (f"<p>{escape(grid)}</p>" if grid else "")
        + (f'<p class="quiet">Versions: {escape(packages)}.</p>' if packages else "")
        + recipes
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
