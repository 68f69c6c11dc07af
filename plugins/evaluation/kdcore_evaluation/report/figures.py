"""The plots of the page, each with a table of what it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from kdcore_evaluation.report.comparison import Comparison, Curve, Point
from kdcore_evaluation.report.markup import datum, legend, region, score_cell, table_of, wrapped
from kdcore_evaluation.report.plots import Axis, Mark, Series, plot
from kdcore_evaluation.run.scores import Column, Labels, Score

Styles = Mapping[Labels, int]


@dataclass(frozen=True)
class _TimeUnit:
    """A unit of time for an axis."""

    name: str
    seconds: float


def name_of(labels: Labels) -> str:
    """Format a group in one line."""
    return ", ".join(labels)


def loss_section(comparison: Comparison, styles: Styles) -> str:
    """Draw loss against steps and against time, one pair of plots for each method."""
    if not comparison.curves:
        return ""
    parts = []
    if len(comparison.curves) > 1:
        parts.append("<p>Methods have different objectives: compare losses within a method, not between methods.</p>")
    for number, (method, curves) in enumerate(comparison.curves.items()):
        groups = list(dict.fromkeys(curve.group for curve in curves))
        body = [_loss_plot(f"steps-{number}", method, curves, styles, None)]
        clock = _clock([point.seconds for curve in curves for point in _drawn_points(curve)])
        if clock is not None:
            body.append(_loss_plot(f"time-{number}", method, curves, styles, clock))
        if len(comparison.curves) > 1:
            parts.append(f"<h3>{escape(method)}</h3>")
        if len(groups) > 1:
            parts.append(legend([(name_of(group), styles[group]) for group in groups]))
        parts.append(f'<div class="side">{"".join(body)}</div>')
        parts.append(region(f"Losses of {method}", _loss_table(curves)))
    return "\n".join(parts)


def _drawn_points(curve: Curve) -> list[Point]:
    return curve.training or curve.held_out


def _loss_plot(name: str, method: str, curves: Sequence[Curve], styles: Styles, clock: _TimeUnit | None) -> str:
    series = []
    several = len({curve.group for curve in curves}) > 1
    for curve in curves:
        points = [point for point in _drawn_points(curve) if clock is None or point.seconds is not None]
        marks = [Mark(_place(point, clock), point.loss) for point in points]
        series.append(Series(curve.run, styles[curve.group], marks, markers=len(marks) < 3, dashed=several))
    against = "steps" if clock is None else f"{clock.name} of training"
    values = [mark.y for one in series for mark in one.marks]
    logarithmic = bool(values) and min(values) > 0 and max(values) / min(values) > 5
    kind = "training loss" if any(curve.training for curve in curves) else "held-out loss"
    title = f"{method}: {kind} against {against}"
    falls = "; ".join(
        f"{curve.run} from {_drawn_points(curve)[0].loss:.4g} to {_drawn_points(curve)[-1].loss:.4g}"
        for curve in curves
    )
    scale = ", logarithmic" if logarithmic else ""
    drawn = plot(name, title, f"{title}. {falls}.", series, Axis(against, _short), Axis(kind, _short, logarithmic))
    return f"<figure>{drawn}<figcaption>{escape(title)}{scale}; one line per run.</figcaption></figure>"


def _place(point: Point, clock: _TimeUnit | None) -> float:
    return float(point.step) if clock is None else (point.seconds or 0.0) / clock.seconds


def _clock(seconds: Sequence[float | None]) -> _TimeUnit | None:
    known = [one for one in seconds if one is not None]
    if not known:
        return None
    longest = max(known)
    if longest > 7200:
        return _TimeUnit("hours", 3600)
    return _TimeUnit("minutes", 60) if longest > 120 else _TimeUnit("seconds", 1)


def _loss_table(curves: Sequence[Curve]) -> str:
    rows = []
    for curve in curves:
        points = [*curve.training, *curve.held_out]
        seconds = [point.seconds for point in points if point.seconds is not None]
        steps = max(point.step for point in points)
        rows.append(
            [
                wrapped(curve.run),
                datum(steps, f"{steps:,}"),
                datum(max(seconds), f"{max(seconds):.0f}") if seconds else "-",
                _loss(curve.training, 0),
                _loss(curve.training, -1),
                _loss(curve.held_out, 0),
                _loss(curve.held_out, -1),
            ]
        )
    head = ["run", "steps", "seconds", "training, first", "training, last", "held-out, first", "held-out, last"]
    return table_of(head, rows, numbers=range(1, 7))


def _loss(points: Sequence[Point], which: int) -> str:
    return datum(points[which].loss, f"{points[which].loss:.4g}") if points else "-"


def budget_section(comparison: Comparison, styles: Styles) -> str:
    """Draw the score of exports against their fraction of the budget."""
    column = comparison.primary
    if not comparison.budget or column is None:
        return ""
    series, rows = [], []
    shares = sorted({share for own in comparison.budget.values() for share in own})
    for group, own in comparison.budget.items():
        marks = [Mark(share, score.mean, score.interval, _words(column, score)) for share, score in own.items()]
        series.append(Series(name_of(group), styles[group], marks))
        rows.append([wrapped(name_of(group)), *(score_cell(own.get(share), column) for share in shares)])
    title = f"{column.title} against the fraction of the budget"
    described = "; ".join(f"{one.label}: " + ", ".join(f"{m.x:.0%} {m.y:.3f}" for m in one.marks) for one in series)
    drawn = plot(
        "budget-plot",
        title,
        f"{title}. {described}.",
        series,
        Axis("fraction of the budget", lambda value: f"{value:.0%}"),
        Axis(column.title),
    )
    figure = f"<figure>{drawn}<figcaption>{escape(title)}; bars show 95% intervals.</figcaption></figure>"
    head = ["group", *(f"{share:.0%}" for share in shares)]
    table = table_of(head, rows, numbers=range(1, len(head)), caption=column.title)
    entries = [(one.label, one.style) for one in series]
    return f'<div class="side"><div>{legend(entries)}{figure}</div>{region(title, table)}</div>'


def cost_section(comparison: Comparison, styles: Styles) -> str:
    """Draw the score against size and against speed."""
    primary, table = comparison.primary, comparison.table
    costs = [column for column in table.columns if column.kind == "cost"]
    if primary is None or not costs:
        return ""
    everything = {**table.groups, **table.references}
    figures = []
    for metric in ("parameters", "sequences_per_second"):
        for column in (one for one in costs if one.metric == metric):
            figure = _scatter(metric, primary, column, everything, styles)
            figures += [figure] if figure else []
    if not figures:
        return ""
    measured = [labels for labels, scores in everything.items() if any(column in scores for column in costs)]
    rows = [
        [
            wrapped(name_of(labels)),
            *(score_cell(everything[labels].get(column), column) for column in (primary, *costs)),
        ]
        for labels in measured
    ]
    head = ["model", primary.title, *(column.title for column in costs)]
    entries = [(name_of(labels), styles[labels]) for labels in measured]
    devices = dict.fromkeys(row.device for row in comparison.rows if row.kind == "cost")
    note = f'<p class="quiet">Speed and memory measured on: {escape("; ".join(devices))}.</p>'
    costly = region("Score, size and speed", table_of(head, rows, numbers=range(1, len(head))))
    return f'{legend(entries, line=False)}<div class="side">{"".join(figures)}</div>{costly}{note}'


def _scatter(
    name: str, primary: Column, cost: Column, everything: Mapping[Labels, Mapping[Column, Score]], styles: Styles
) -> str:
    series = []
    for labels, scores in everything.items():
        if primary in scores and cost in scores:
            text = f"{_words(primary, scores[primary])}, {cost.show(scores[cost].mean)}"
            mark = Mark(scores[cost].mean, scores[primary].mean, scores[primary].interval, text)
            series.append(Series(name_of(labels), styles[labels], [mark], line=False))
    if not series:
        return ""
    title = f"{primary.title} against {cost.title}"
    described = "; ".join(f"{one.label}: {one.marks[0].text}" for one in series)
    axis = Axis(cost.title, cost.show) if name == "parameters" else Axis("sequences per second", _short)
    drawn = plot(name, title, f"{title}. {described}.", series, axis, Axis(primary.title))
    return f"<figure>{drawn}<figcaption>{escape(title)}; bars show 95% intervals.</figcaption></figure>"


def _words(column: Column, score: Score) -> str:
    interval = f" [{', '.join(map(column.show, score.interval))}]" if score.interval else ""
    return column.show(score.mean) + interval


def _short(value: float) -> str:
    """Format a number on an axis."""
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:g}"
