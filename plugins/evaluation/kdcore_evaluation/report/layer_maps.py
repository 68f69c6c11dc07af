"""Plots and tables of the measurements of `kdcore summary --layers`."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np

from kdcore_evaluation.report.comparison import Comparison
from kdcore_evaluation.report.markup import (
    ContentGroup,
    HeatCell,
    HeatMap,
    Number,
    PageSection,
    Row,
    Table,
    cell,
    csv_download,
)
from kdcore_evaluation.run.compared_runs import ComparedRun
from kdcore_evaluation.run.layer_report import Errors, LayerReport, read_layers
from kdcore_evaluation.run.scores import counted

_MODELS = {"teacher": "teacher", "initial": "before training", "student": "after training"}
_LEVELS = 10
_MEASURES = {
    "masked_lm": "masked-LM loss",
    "state": "distance of states to the teacher's, relative to their variance",
    "state_mapped": "distance of linearly mapped states to the teacher's, relative to their variance",
}
_BY = {"frequency": "occurrences in a million tokens", "position": "position in the sequence"}


@dataclass(frozen=True)
class _MeasuredGroup:
    """A group of runs with reports on the same blocks."""

    name: str
    unit: str
    reports: list[LayerReport]

    @property
    def title(self) -> str:
        """The group, with the number of its reports."""
        return f"{self.name} ({counted(len(self.reports), self.unit)})"

    def mean(self, values: Callable[[LayerReport], Sequence[Sequence[float | None]]]) -> np.ndarray:
        """Average a matrix over the reports; NaN where a report has no value."""
        means: np.ndarray = np.mean([np.array(values(one), dtype=float) for one in self.reports], axis=0)
        return means


def layer_section(comparison: Comparison) -> PageSection:
    """Draw the similarity of blocks and the divergence of heads as heat maps, and list errors by groups of tokens."""
    blocks = []
    for number, group in enumerate(_measured_groups(comparison)):
        maps = [*_similarities(group, number), *_heads(group, number)]
        blocks.append(ContentGroup(group.title, notes=[_note(group)], heat_maps=maps, tables=list(_errors(group))))
    return PageSection("layers", "What each layer has learnt", blocks)


def _measured_groups(comparison: Comparison) -> Iterator[_MeasuredGroup]:
    for labels, runs in comparison.runs_of_groups.items():
        reports = _comparable([report for run in runs if (report := _report_of(run)) is not None])
        if reports:
            yield _MeasuredGroup(", ".join(labels), comparison.unit, reports)


def _report_of(run: ComparedRun) -> LayerReport | None:
    report = read_layers(run.folder)
    if report is None:
        return None
    rows, columns = len(report.teacher_blocks), len(report.student_blocks)
    matrices = [matrix for own in (report.cka, report.cka_without_dominant) for matrix in own.values()]
    fits = all(len(matrix) == rows and all(len(row) == columns for row in matrix) for matrix in matrices)
    return report if fits else None


def _comparable(reports: Sequence[LayerReport]) -> list[LayerReport]:
    """Select the reports with the blocks, pairs and models of the first."""

    def form(report: LayerReport) -> tuple[object, ...]:
        heads = [(one.teacher, one.student, list(map(len, one.divergence.values()))) for one in report.heads]
        return report.teacher_blocks, report.student_blocks, report.pairs, sorted(report.cka), heads

    return [report for report in reports if form(report) == form(reports[0])]


def _note(group: _MeasuredGroup) -> str:
    first = group.reports[0]
    return (
        f"Measured on {first.tokens:,} tokens of held-out text. Similarity: debiased linear CKA, 1 for states that are "
        "equal up to rotation and scale, about 0 for unrelated ones. Outlined: blocks that the losses pair."
    )


def _similarities(group: _MeasuredGroup, number: int) -> Iterator[HeatMap]:
    first = group.reports[0]
    for name, text in (("student", "after training"), ("initial", "before training")):
        for field, which in (("cka", ""), ("cka_without_dominant", ", without dominant dimensions")):
            if name not in getattr(first, field):
                continue
            values = group.mean(lambda report, f=field, n=name: getattr(report, f)[n])  # type: ignore[misc]
            paired = {
                (first.teacher_blocks.index(teacher), first.student_blocks.index(student))
                for teacher, student in first.pairs
                if teacher in first.teacher_blocks and student in first.student_blocks
            }
            yield _heat_map(
                f"{field.replace('_', '-')}-{name}-{number}",
                f"Similarity {text}{which}",
                ("teacher's block", list(map(str, first.teacher_blocks))),
                ("student's block", list(map(str, first.student_blocks))),
                values,
                paired,
            )


def _heads(group: _MeasuredGroup, number: int) -> Iterator[HeatMap]:
    """Draw one row for each pair of blocks."""
    first = group.reports[0]
    if not first.heads or len({len(own) for one in first.heads for own in one.divergence.values()}) != 1:
        return
    for name, text in (("student", "after training"), ("initial", "before training")):
        if all(name in one.divergence for report in group.reports for one in report.heads):
            values = group.mean(lambda report, n=name: [one.divergence[n] for one in report.heads])  # type: ignore[misc]
            yield _heat_map(
                f"heads-{name}-{number}",
                f"Divergence of attention heads {text} (0: equal, 1: disjoint)",
                ("blocks", [f"{one.teacher} and {one.student}" for one in first.heads]),
                ("head", list(map(str, range(values.shape[1])))),
                values,
                far=True,
            )


def _heat_map(
    name: str,
    title: str,
    rows: tuple[str, list[str]],
    columns: tuple[str, list[str]],
    values: np.ndarray,
    paired: Set[tuple[int, int]] = frozenset(),
    *,
    far: bool = False,
) -> HeatMap:
    cells = [
        [
            HeatCell(
                Number(value, f"{value:.2f}") if math.isfinite(value) else None,
                round(_LEVELS * min(1.0, max(0.0, value))) if math.isfinite(value) else 0,
                (row, column) in paired,
            )
            for column, value in enumerate(map(float, own))
        ]
        for row, own in enumerate(values)
    ]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([rows[0], columns[0], "value"])
    for row, own in zip(rows[1], values, strict=True):
        writer.writerows([row, column, value] for column, value in zip(columns[1], map(float, own), strict=True))
    return HeatMap(
        name=name,
        title=title,
        corner=f"{rows[0]}, {columns[0]}",
        rows=rows[1],
        columns=columns[1],
        cells=cells,
        far=far,
        download=csv_download(file.getvalue()),
    )


def _errors(group: _MeasuredGroup) -> Iterator[Table]:
    """Tabulate errors by frequency and by position, averaged over the reports that have the same groups."""
    for errors in group.reports[0].errors:
        same = [
            other
            for report in group.reports
            for other in report.errors
            if (other.measure, other.by) == (errors.measure, errors.by) and _ranges(other) == _ranges(errors)
        ]
        models = [name for name in _MODELS if name in errors.overall]
        overall = [cell(_shown(_mean([one.overall for one in same], name))) for name in models]
        rows = [Row([cell("all"), cell(_count(sum(one.count for one in errors.groups))), *overall])]
        for number, one in enumerate(errors.groups):
            means = [cell(_shown(_mean([other.groups[number].values for other in same], name))) for name in models]
            rows.append(Row([cell(_range(one.lowest, one.highest)), cell(_count(one.count)), *means]))
        head = [_BY[errors.by], "tokens", *(_MODELS[name] for name in models)]
        title = f"{_MEASURES[errors.measure]}, by {errors.by}"
        yield Table(
            f"{title[:1].upper()}{title[1:]}: {group.title}", head, [rows], frozenset(range(1, len(head))), folded=True
        )


def _ranges(errors: Errors) -> list[tuple[int, int | None]]:
    return [(one.lowest, one.highest) for one in errors.groups]


def _mean(found: Sequence[Mapping[str, float]], name: str) -> float:
    return float(np.mean([one.get(name, math.nan) for one in found]))


def _shown(value: float) -> Number:
    return Number(value, f"{value:.3f}")


def _count(value: int) -> Number:
    return Number(value, f"{value:,}")


def _range(lowest: int, highest: int | None) -> str:
    if highest is None:
        return f"{lowest:,} or more"
    return f"{lowest:,}" if highest == lowest + 1 else f"{lowest:,} to {highest:,}"
