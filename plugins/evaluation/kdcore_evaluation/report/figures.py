"""The plots of the page, each with a table of its values."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kdcore_evaluation.report.comparison import Comparison, Curve, Point
from kdcore_evaluation.report.learning import LossChange, constant, loss_changes
from kdcore_evaluation.report.markup import (
    Cell,
    ContentGroup,
    Figure,
    LegendEntry,
    Number,
    PageSection,
    Row,
    Table,
    cell,
    counts,
    figure,
    legend_entry,
    score_cell,
)
from kdcore_evaluation.report.plots import Axis, Baseline, Mark, Series
from kdcore_evaluation.run.scores import CHANCE_TITLES, Column, Labels, Score

Styles = Mapping[Labels, int]

_SCORES = ("predictions", "finetune", "embeddings", "linear", "retrieval", "agreement")
_MOST_SCORES = 6


@dataclass(frozen=True)
class _TimeUnit:
    """A unit of time for an axis."""

    name: str
    seconds: float


def name_of(labels: Labels) -> str:
    """Format a group in one line."""
    return ", ".join(labels)


def score_figures(comparison: Comparison, styles: Styles) -> list[Figure]:
    """Draw the scores and repetitions of every group, with references as lines, starting with the main score."""
    columns = [column for column in comparison.table.columns if column.kind in _SCORES and column != comparison.primary]
    first = [comparison.primary] if comparison.primary is not None else []
    figures = (_score_figure(comparison, column, styles) for column in [*first, *columns][:_MOST_SCORES])
    return [drawn for drawn in figures if drawn is not None]


def _score_figure(comparison: Comparison, column: Column, styles: Styles) -> Figure | None:
    table = comparison.table
    shown = {labels: scores[column] for labels, scores in table.groups.items() if column in scores}
    if not shown:
        return None
    means, repetitions = [], []
    for place, (labels, score) in enumerate(shown.items()):
        mark = Mark(place, score.mean, score.interval, _words(column, score))
        means.append(Series(name_of(labels), styles[labels], [mark], line=False))
        if len(score.values) > 1:
            marks = [Mark(place, value, None, column.show(value)) for value in score.values]
            repetitions.append(Series(name_of(labels), styles[labels], marks, line=False, faint=True))
    several = f"small points: single {comparison.unit}" if repetitions else ""
    return figure(
        f"scores-{table.columns.index(column)}",
        column.title,
        [*means, *repetitions],
        Axis("", names=[name_of(labels) for labels in shown]),
        Axis(column.title),
        baselines=_references(comparison, column),
        legend=[legend_entry(name_of(labels), styles[labels], line=False) for labels in shown],
        note="; ".join(part for part in ("bars: 95% intervals", several) if part),
        separate=True,
    )


def loss_section(comparison: Comparison, styles: Styles) -> PageSection:
    """Draw loss against steps and against time for each method, and compare losses with constant predictions."""
    curves = comparison.curves
    notes = ["Methods have different objectives: compare losses within a method, not between methods."]
    steps = [_loss_plot(comparison, f"steps-{n}", method, styles, None) for n, method in enumerate(curves)]
    timed = [
        _loss_plot(comparison, f"time-{number}", method, styles, clock)
        for number, (method, own) in enumerate(curves.items())
        if (clock := _clock([point.seconds for curve in own for point in _points(curve)])) is not None
    ]
    changes = loss_changes(comparison.runs_of_groups, comparison.unit)
    blocks = [
        ContentGroup(
            notes=notes if len(curves) > 1 else [], tables=[_change_table(comparison, changes)] if changes else []
        ),
        ContentGroup("Against steps", figures=steps),
        ContentGroup(
            "Against time", figures=timed, tables=[_loss_table(method, own) for method, own in curves.items()]
        ),
    ]
    return PageSection("loss", "Losses", [block for block in blocks if block.figures or block.tables])


def _change_table(comparison: Comparison, changes: Sequence[LossChange]) -> Table:
    keys = [key for key in comparison.by if key != "export"]
    head = [*keys, "held-out loss", "before training", "constant prediction", "after training", "explained", "repeated"]
    rows = []
    for one in changes:
        names = [cell(label) for label in one.group]
        values = [_loss_cell(score) for score in (one.before, one.constant, one.after)]
        explained = _loss_cell(one.explained, lambda value: f"{value:.1%}")
        rows.append(Row([*names, cell(one.loss), *values, explained, Cell(counts(one.after.repetitions))]))
    first = len(keys) + 1
    return Table(
        "Losses and baselines",
        head,
        [rows],
        frozenset(range(first, first + 4)),
        notes=[
            "Means over runs, with 95% intervals. Constant prediction: the held-out loss that the best prediction "
            "reaches that ignores the text. Explained: 1 - after / constant, so 100% is a loss of 0, and 0% or less is "
            "no better than a constant. A dash: the loss has no constant prediction."
        ],
    )


def _loss_cell(score: Score | None, show: Callable[[float], str] = lambda value: f"{value:.4g}") -> Cell:
    if score is None:
        return cell("-")
    bounds = [Number(bound, show(bound)) for bound in score.interval or ()]
    return Cell((Number(score.mean, show(score.mean)),), ("[", bounds[0], ", ", bounds[1], "]") if bounds else ())


def _points(curve: Curve) -> list[Point]:
    return [*curve.training, *curve.held_out]


def _loss_plot(comparison: Comparison, name: str, method: str, styles: Styles, clock: _TimeUnit | None) -> Figure:
    curves = comparison.curves[method]
    groups = list(dict.fromkeys(curve.group for curve in curves))
    several = len(groups) > 1
    against = "step" if clock is None else f"{clock.name} of training"
    series = []
    for kind, faint in (("training", True), ("held-out", False)):
        for curve in curves:
            points = curve.training if faint else curve.held_out
            known = [point for point in points if clock is None or point.seconds is not None]
            marks = [Mark(_place(point, clock), point.loss, None, _point_text(point, clock)) for point in known]
            if marks:
                label, few = f"{curve.run}, {kind} loss", len(marks) < 3
                series.append(Series(label, styles[curve.group], marks, markers=few, dashed=several, faint=faint))
    baselines = _loss_baselines(comparison, method)
    values = [mark.y for one in series for mark in one.marks] + [one.y for one in baselines]
    logarithmic = bool(values) and min(values) > 0 and max(values) / min(values) > 5
    legend = [
        legend_entry(f"{name_of(group)}, held-out", styles[group], markers=False, dashed=several)
        for group in groups
        if any(curve.held_out for curve in curves if curve.group == group)
    ]
    if any(curve.training for curve in curves):
        legend.append(LegendEntry("training (thin lines)", color=f"c{styles[groups[0]] % 8}", faint=True))
    falls = "; ".join(
        f"{one.label} from {one.marks[0].y:.4g} to {one.marks[-1].y:.4g}" for one in series if len(one.marks) > 1
    )
    lines = [f"{one.label} {one.text}" for one in baselines]
    return figure(
        name,
        f"{method}: loss against {'steps' if clock is None else against}",
        series,
        Axis(against, _short),
        Axis("loss", _short, logarithmic),
        baselines=baselines,
        legend=legend,
        note="one line per run",
        description="; ".join([falls, *lines]),
    )


def _loss_baselines(comparison: Comparison, method: str) -> list[Baseline]:
    """Draw the held-out losses of constant predictions and of the student before training."""
    runs = [run for run in comparison.runs if run.method == method]
    constants = [value for run in runs if (value := constant(run, "loss")) is not None]
    initial = [curve.held_out[0].loss for curve in comparison.curves[method] if _starts_untrained(curve)]
    return [*_lines("constant prediction", constants, "constant"), *_lines("before training", initial, "initial")]


def _starts_untrained(curve: Curve) -> bool:
    return bool(curve.held_out) and curve.held_out[0].step == 0


def _lines(
    label: str, values: Sequence[float], kind: str, show: Callable[[float], str] = lambda value: f"{value:.4g}"
) -> list[Baseline]:
    """Draw one line if values (such as those of several seeds) differ by less than 2%, otherwise two lines."""
    if not values:
        return []
    mean = statistics.fmean(values)
    if max(values) - min(values) <= 0.02 * abs(mean):
        return [Baseline(label, mean, show(mean), kind)]
    ends = ((f"{label} (lowest)", min(values)), (f"{label} (highest)", max(values)))
    return [Baseline(name, value, show(value), kind) for name, value in ends]


def _place(point: Point, clock: _TimeUnit | None) -> float:
    return float(point.step) if clock is None else (point.seconds or 0.0) / clock.seconds


def _point_text(point: Point, clock: _TimeUnit | None) -> str:
    place = f"step {point.step:,}" if clock is None else f"{_place(point, clock):.3g} {clock.name}"
    return f"{place}: {point.loss:.4g}"


def _clock(seconds: Sequence[float | None]) -> _TimeUnit | None:
    known = [one for one in seconds if one is not None]
    if not known:
        return None
    longest = max(known)
    if longest > 7200:
        return _TimeUnit("hours", 3600)
    return _TimeUnit("minutes", 60) if longest > 120 else _TimeUnit("seconds", 1)


def _loss_table(method: str, curves: Sequence[Curve]) -> Table:
    rows = []
    for curve in curves:
        points = _points(curve)
        seconds = [point.seconds for point in points if point.seconds is not None]
        steps = max(point.step for point in points)
        losses = [_loss(own, which) for own in (curve.training, curve.held_out) for which in (0, -1)]
        time = cell(Number(max(seconds), f"{max(seconds):.0f}") if seconds else "-")
        rows.append(Row([cell(curve.run), cell(Number(steps, f"{steps:,}")), time, *losses]))
    head = ["run", "steps", "seconds", "training, first", "training, last", "held-out, first", "held-out, last"]
    return Table(f"Losses of each run: {method}", head, [rows], frozenset(range(1, 7)), folded=True)


def _loss(points: Sequence[Point], which: int) -> Cell:
    return cell(Number(points[which].loss, f"{points[which].loss:.4g}") if points else "-")


def budget_section(comparison: Comparison, styles: Styles) -> PageSection:
    """Draw the score of exports against their fraction of the budget."""
    column = comparison.primary
    if not comparison.budget or column is None:
        return PageSection("budget", "")
    series, rows = [], []
    shares = sorted({share for own in comparison.budget.values() for share in own})
    for group, own in comparison.budget.items():
        marks = [
            Mark(share, score.mean, score.interval, f"{share:.0%}: {_words(column, score)}")
            for share, score in own.items()
        ]
        series.append(Series(name_of(group), styles[group], marks))
        rows.append(Row([cell(name_of(group)), *(score_cell(own.get(share), column) for share in shares)]))
    title = f"{column.title} against the fraction of the budget"
    drawn = figure(
        "budget-plot",
        title,
        series,
        Axis("fraction of the budget", lambda value: f"{value:.0%}"),
        Axis(column.title),
        baselines=_references(comparison, column),
        legend=[legend_entry(one.label, one.style) for one in series],
        note="bars: 95% intervals",
        separate=True,
    )
    head = ["group", *(f"{share:.0%}" for share in shares)]
    table = Table(title, head, [rows], frozenset(range(1, len(head))), caption=column.title)
    return PageSection("budget", "Score by fraction of the budget", [ContentGroup(figures=[drawn], tables=[table])])


def cost_section(comparison: Comparison, styles: Styles) -> PageSection:
    """Draw the score against size and against speed."""
    nothing = PageSection("cost", "")
    primary, table = comparison.primary, comparison.table
    costs = [column for column in table.columns if column.kind == "cost"]
    if primary is None or not costs:
        return nothing
    everything = {**table.groups, **table.references}
    figures = [
        drawn
        for metric in ("parameters", "sequences_per_second")
        for column in costs
        if column.metric == metric and (drawn := _scatter(metric, primary, column, everything, styles)) is not None
    ]
    if not figures:
        return nothing
    columns = [primary, *costs]
    bodies = [
        [
            Row([cell(name_of(labels)), *(score_cell(scores.get(column), column) for column in columns)])
            for labels, scores in own.items()
            if any(column in scores for column in costs)
        ]
        for own in (table.groups, table.references)
    ]
    head = ["model", *(column.title for column in columns)]
    devices = dict.fromkeys(row.device for row in comparison.rows if row.kind == "cost")
    whole = Table(
        "Score, size and speed",
        head,
        [rows for rows in bodies if rows],
        frozenset(range(1, len(head))),
        notes=[f"Speed and memory measured on: {'; '.join(devices)}."] if devices else [],
    )
    return PageSection("cost", "Score by size and speed", [ContentGroup(figures=figures, tables=[whole])])


def _scatter(
    name: str, primary: Column, cost: Column, everything: Mapping[Labels, Mapping[Column, Score]], styles: Styles
) -> Figure | None:
    series = []
    for labels, scores in everything.items():
        if primary in scores and cost in scores:
            text = f"{_words(primary, scores[primary])}, {cost.show(scores[cost].mean)}"
            mark = Mark(scores[cost].mean, scores[primary].mean, scores[primary].interval, text)
            series.append(Series(name_of(labels), styles[labels], [mark], line=False))
    if not series:
        return None
    return figure(
        name,
        f"{primary.title} against {cost.title}",
        series,
        Axis(cost.title, lambda value: f"{value / 1e6:g} M")
        if name == "parameters"
        else Axis("sequences per second", _short),
        Axis(primary.title),
        legend=[legend_entry(one.label, one.style, line=False) for one in series],
        note="bars: 95% intervals",
        separate=True,
    )


def _references(comparison: Comparison, column: Column) -> list[Baseline]:
    """Draw the references that have a score in a column, and the score of predictions that ignore the text."""
    table = comparison.table
    shown = {labels: scores[column].mean for labels, scores in table.references.items() if column in scores}
    lines, initial = [], [value for labels, value in shown.items() if comparison.roles[labels] == "initial"]
    for labels, value in shown.items():
        if comparison.roles[labels] != "initial":
            lines.append(Baseline(name_of(labels), value, column.show(value), comparison.roles[labels]))
        elif value is initial[0]:
            lines += _lines("before training", initial, "initial", column.show)
    if column in table.chance:
        value = table.chance[column]
        lines.append(Baseline(CHANCE_TITLES[column.metric], value, column.show(value), "constant"))
    return lines


def _words(column: Column, score: Score) -> str:
    interval = f" [{', '.join(map(column.show, score.interval))}]" if score.interval else ""
    return column.show(score.mean) + interval


def _short(value: float) -> str:
    """Format a number on an axis."""
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:g}"
