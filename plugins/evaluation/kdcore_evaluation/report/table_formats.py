"""Tables of scores for a terminal, Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence

from kdcore_evaluation.run.scores import CHANCE_TITLES, Column, Labels, Score, ScoreTable

NOTE = (
    "Mean ± sample standard deviation (repetitions). The best of a column is marked where it differs from every other "
    "by more than the root of the sum of both squared deviations."
)
_LATEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def terminal(table: ScoreTable) -> str:
    """Format aligned columns, with `*` after the best."""
    rows = _texts(table, lambda column, score: shown(column, score) + ("*" if score.best else ""))
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    lines = ["  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*lines, *_chance_lines(table), *_note(table, "*")])


def markdown(table: ScoreTable) -> str:
    """Format a Markdown table, the best in bold."""

    def cell(column: Column, score: Score) -> str:
        text = shown(column, score)
        return f"**{text}**" if score.best else text

    header, *rows = [[text.replace("|", "\\|") for text in row] for row in _texts(table, cell)]
    rule = ["---"] * len(table.keys) + ["---:"] * len(table.columns)
    lines = [f"| {' | '.join(row)} |" for row in (header, rule, *rows)]
    return "\n".join([*lines, "", *_chance_lines(table), *_note(table, "bold")])


def csv_text(table: ScoreTable) -> str:
    """Format one line per group and column, with all digits."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    fields = ["column", "kind", "task", "split", "metric", "mean", "standard_deviation", "count", "over", "best"]
    writer.writerow([*table.keys, "reference", *fields])
    for reference, groups in ((False, table.groups), (True, table.references)):
        for labels, scores in groups.items():
            for column in table.columns:
                score = scores.get(column)
                if score is not None:
                    what = [column.title, column.kind, column.task, column.split, column.metric]
                    values = [score.mean, "" if score.deviation is None else score.deviation, score.count, score.unit]
                    writer.writerow([*_padded(labels, table), reference, *what, *values, score.best])
    return file.getvalue().rstrip("\n")


def latex(table: ScoreTable) -> str:
    """Format a tabular with booktabs' rules, the best in bold."""

    def cell(column: Column, score: Score) -> str:
        text = _escaped(shown(column, score)).replace("±", r"$\pm$")
        return rf"\textbf{{{text}}}" if score.best else text

    header, *rows = _texts(table, cell, _escaped)
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
    """Format a score, such as `0.731 ± 0.004 (3)`."""
    text = column.show(score.mean)
    if score.deviation is None or not column.has_spread(score):
        return text
    return f"{text} ± {column.show(score.deviation)} ({score.count})"


def _texts(
    table: ScoreTable, cell: Callable[[Column, Score], str], escape: Callable[[str], str] = lambda text: text
) -> list[list[str]]:
    """Format header and rows, references last."""
    rows = [[escape(text) for text in (*table.keys, *(column.title for column in table.columns))]]
    for labels, scores in (*table.groups.items(), *table.references.items()):
        cells = [cell(column, scores[column]) if column in scores else "-" for column in table.columns]
        rows.append([*(escape(text) for text in _padded(labels, table)), *cells])
    return rows


def _padded(labels: Labels, table: ScoreTable) -> Sequence[str]:
    """Pad the name of a reference to all key columns."""
    return [*labels, *[""] * (len(table.keys) - len(labels))]


def _chance_lines(table: ScoreTable) -> list[str]:
    return [
        f"{column.title}: {CHANCE_TITLES[column.metric]} {share:.3f}"
        for column, share in table.chance.items()
        if column in table.columns
    ]


def _note(table: ScoreTable, mark: str) -> list[str]:
    spread = any(score.deviation is not None for scores in table.groups.values() for score in scores.values())
    return [NOTE.replace("is marked", f"is marked ({mark})")] if spread else []


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
