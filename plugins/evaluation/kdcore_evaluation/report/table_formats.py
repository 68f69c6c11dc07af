"""Tables of scores and of their differences for a terminal, Markdown, CSV, LaTeX and programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kdcore_evaluation.run.scores import CHANCE_TITLES, Column, Difference, Labels, Score, ScoreTable

if TYPE_CHECKING:
    from kdcore_evaluation.report.learning import LossChange

NOTE = "[95% interval of the mean] (what was repeated)"
DIFFERENCES_NOTE = (
    "Differences: first minus second, each with a 95% interval; p-values are adjusted by Holm's method for all "
    "differences of this table."
)
FAVOURED = "†"
SIGNIFICANCE = 0.05
_FEW_GROUPS = 4
_WIDE = 120
_LATEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    FAVOURED: r"$\dagger$",
}


def terminal(table: ScoreTable) -> str:
    """Format aligned columns, with the differences below them; wide tables have one line per score."""
    rows = _texts(table)
    lines = aligned(rows)
    if len(lines[1]) > _WIDE and len(rows) < len(rows[0]):
        lines = aligned([*map(list, zip(*rows, strict=True))])
    lines += [*_chance_lines(table), *notes(table)]
    rows = difference_rows(table)
    if rows:
        lines += ["", *aligned(rows), DIFFERENCES_NOTE]
    return "\n".join(lines)


def losses(changes: Sequence[LossChange], keys: Labels) -> str:
    """Format held-out losses before and after training beside those of the best constant predictions.

    Args:
        changes: losses of all groups.
        keys: keys that define the groups.
    """
    rows = [[*keys, "held-out loss", "before training", "now", "constant prediction", "explained"]]
    for one in changes:
        values = [_loss(score, "{:.4g}") for score in (one.before, one.after, one.constant)]
        rows.append([*one.group, one.loss, *values, _loss(one.explained, "{:.1%}")])
    return "\n".join(aligned(rows))


def _loss(score: Score | None, form: str) -> str:
    if score is None:
        return "-"
    interval = f" [{', '.join(map(form.format, score.interval))}]" if score.interval else ""
    return form.format(score.mean) + interval + (f" ({score.repetitions})" if score.repetitions else "")


def markdown(table: ScoreTable) -> str:
    """Format Markdown tables."""
    scores = _markdown_table(_texts(table), len(table.keys))
    lines = [*scores, "", *_chance_lines(table), *notes(table)]
    rows = difference_rows(table)
    if rows:
        lines += ["", *_markdown_table(rows, 2), "", DIFFERENCES_NOTE]
    return "\n".join(lines)


def csv_text(table: ScoreTable) -> str:
    """Format one line per group and column, then one per difference (second group in `minus`), with all digits."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    what = ["column", "kind", "task", "split", "metric"]
    values = ["mean", "standard_deviation", "low", "high", "count", "over", "p_value", "p_within"]
    writer.writerow([*table.keys, "reference", "minus", *what, *values])
    for reference, groups in ((False, table.groups), (True, table.references)):
        for labels, scores in groups.items():
            for column in table.columns:
                score = scores.get(column)
                if score is not None:
                    low, high = score.interval or (None, None)
                    own = [score.mean, score.deviation, low, high, score.count, score.unit, None, None]
                    writer.writerow([*_padded(labels, table), reference, None, *_facts(column), *own])
    for one in table.differences:
        own = [one.value, None, *one.interval, None, one.over, one.p_value, one.p_within]
        writer.writerow([*_padded(one.first, table), False, ", ".join(one.second), *_facts(one.column), *own])
    return file.getvalue().rstrip("\n")


def json_text(table: ScoreTable) -> str:
    """Format scores, differences and baselines with all digits as a JSON object."""
    fields = ("title", "kind", "task", "split", "metric", "higher_is_better")

    def about(column: Column) -> dict[str, Any]:
        return {name: getattr(column, name) for name in fields}

    scores = [
        {
            "group": labels,
            "reference": reference,
            "column": about(column),
            "mean": score.mean,
            "standard_deviation": score.deviation,
            "interval": score.interval,
            "count": score.count,
            "over": score.unit,
            "runs": score.runs or None,
            "favoured_by": table.favoured.get((labels, column), ()),
        }
        for reference, groups in ((False, table.groups), (True, table.references))
        for labels, own in groups.items()
        for column, score in own.items()
    ]
    found = [
        {
            "first": one.first,
            "second": one.second,
            "column": about(one.column),
            "difference": one.value,
            "interval": one.interval,
            "p_value": one.p_value,
            "p_within": one.p_within,
            "over": one.over,
        }
        for one in table.differences
    ]
    baselines = [{"column": about(column), "score": value} for column, value in table.chance.items()]
    whole = {"keys": table.keys, "scores": scores, "differences": found, "baselines": baselines}
    return json.dumps(whole, indent=1)


def latex(table: ScoreTable) -> str:
    """Format a tabular of the scores with booktabs' rules."""
    header, *rows = [[_escaped(text) for text in row] for row in _texts(table)]
    split = len(table.groups)
    body = [" & ".join(row) + r" \\" for row in rows]
    lines = [
        rf"\begin{{tabular}}{{{'l' * len(table.keys)}{'r' * len(table.columns)}}}",
        r"\toprule",
        " & ".join(header) + r" \\",
        r"\midrule",
        *body[:split],
        *([r"\midrule", *body[split:]] if table.references else []),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines)


def shown(column: Column, score: Score) -> str:
    """Format a score, such as `0.731 [0.722, 0.740] (3 seeds)`; for sizes and speeds of equal runs, only the number."""
    text = column.show(score.mean)
    if column.kind == "cost" and not column.has_spread(score):
        return text
    interval = f" [{', '.join(column.show(bound) for bound in score.interval)}]" if score.interval else ""
    return f"{text}{interval} ({score.repetitions})" if score.repetitions else f"{text}{interval}"


def shown_differences(table: ScoreTable) -> list[Difference]:
    """Select the differences to show: all for few groups, otherwise those from the best group of each column.

    The best group has the highest mean. The p-values are adjusted for all pairs, so this selection does not bias them.
    """
    if len(table.groups) <= _FEW_GROUPS:
        return table.differences
    best = {}
    for column in table.columns:
        means = {labels: scores[column].mean for labels, scores in table.groups.items() if column in scores}
        if means:
            best[column] = (max if column.higher_is_better else min)(means, key=means.__getitem__)
    return [one for one in table.differences if best[one.column] in (one.first, one.second)]


def difference_rows(table: ScoreTable) -> list[list[str]]:
    """Format header and rows of the differences; empty if there are none."""
    chosen = shown_differences(table)
    if not chosen:
        return []
    within = any(one.p_within is not None for one in chosen)
    header = ["first", "second", "score", "difference", "p", "over", *(["within the margin"] if within else [])]
    return [header, *([*_difference(table, one), *([shown_within(one)] if within else [])] for one in chosen)]


def shown_within(difference: Difference) -> str:
    """Format whether a one-sided test at level 0.025 shows that the first group is worse by less than the margin."""
    if difference.p_within is None:
        return "-"
    verdict = "shown" if difference.p_within < SIGNIFICANCE / 2 else "not shown"
    return f"{verdict} (p {shown_p(difference.p_within)})"


def shown_p(value: float) -> str:
    """Format a p-value."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def notes(table: ScoreTable) -> list[str]:
    """Return the notes that explain intervals and marks."""
    scores = [score for own in (*table.groups.values(), *table.references.values()) for score in own.values()]
    found = [NOTE] if any(score.interval for score in scores) else []
    by_column: dict[Column, dict[str, None]] = {}
    for (_, column), losses in table.favoured.items():
        by_column.setdefault(column, {}).update(dict.fromkeys(losses))
    return found + [
        f"{FAVOURED} {column.title}: by construction in favour of {', '.join(losses)}, trained on what it measures."
        for column, losses in by_column.items()
    ]


def difference_title(table: ScoreTable, one: Difference) -> str:
    """Return the title of a difference, marked if its column favours one of the groups by construction."""
    first, second = (table.favoured.get((labels, one.column)) for labels in (one.first, one.second))
    return one.column.title + (f" {FAVOURED}" if bool(first) != bool(second) else "")


def _difference(table: ScoreTable, one: Difference) -> list[str]:
    bounds = ", ".join(map(one.column.show_signed, one.interval))
    return [
        ", ".join(one.first),
        ", ".join(one.second),
        difference_title(table, one),
        f"{one.column.show_signed(one.value)} [{bounds}]",
        shown_p(one.p_value),
        one.over,
    ]


def _facts(column: Column) -> list[str]:
    return [column.title, column.kind, column.task, column.split, column.metric]


def _texts(table: ScoreTable) -> list[list[str]]:
    """Format header and rows, references last."""
    rows = [[*table.keys, *(column.title for column in table.columns)]]
    for labels, scores in (*table.groups.items(), *table.references.items()):
        cells = [
            shown(column, scores[column]) + (f" {FAVOURED}" if (labels, column) in table.favoured else "")
            if column in scores
            else "-"
            for column in table.columns
        ]
        rows.append([*_padded(labels, table), *cells])
    return rows


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Format rows as lines of aligned columns, the first one as header."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    lines = ["  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return lines


def _markdown_table(rows: Sequence[Sequence[str]], names: int) -> list[str]:
    """Format a table whose first columns are `names` and whose other columns are numbers."""
    header, *body = [[text.replace("|", "\\|") for text in row] for row in rows]
    rule = ["---"] * names + ["---:"] * (len(header) - names)
    return [f"| {' | '.join(row)} |" for row in (header, rule, *body)]


def _padded(labels: Labels, table: ScoreTable) -> Sequence[str]:
    """Pad the name of a reference to all key columns."""
    return [*labels, *[""] * (len(table.keys) - len(labels))]


def _chance_lines(table: ScoreTable) -> list[str]:
    return [
        f"{column.title}: {CHANCE_TITLES[column.metric]} {share:.3f}"
        for column, share in table.chance.items()
        if column in table.columns
    ]


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
