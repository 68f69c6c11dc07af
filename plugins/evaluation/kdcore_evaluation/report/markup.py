"""Content of the page's tables, figures and sections, which page.html renders."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import quote

from markupsafe import Markup, escape

from kdcore_evaluation.report.plots import Axis, Baseline, Drawing, Series, dash_of, draw, drawn_marks, marker
from kdcore_evaluation.run.scores import Column, Score


@dataclass(frozen=True)
class Number:
    """A number with all digits, and its displayed form."""

    value: float
    text: str


Piece = str | Number


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, and less important text after it."""

    pieces: tuple[Piece, ...]
    notes: tuple[Piece, ...] = ()


@dataclass(frozen=True)
class Row:
    """A row of a table; the first cell is its header and spans `span` columns."""

    cells: Sequence[Cell]
    span: int = 1


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        label: its name.
        head: titles of the columns.
        bodies: groups of rows, separated by a line.
        numbers: columns that are aligned to the right.
        caption: text above the table.
        notes: text below the table.
        download: address of the content as CSV.
        folded: whether the table is hidden until the reader opens it.
    """

    label: str
    head: Sequence[str]
    bodies: Sequence[Sequence[Row]]
    numbers: frozenset[int] = frozenset()
    caption: str = ""
    notes: Sequence[str] = ()
    download: str = ""
    folded: bool = False


@dataclass(frozen=True)
class LegendEntry:
    """A line of a legend: a marker, a line, or both, and a label."""

    label: str
    color: str = ""
    dash: str = ""
    kind: str = ""
    line: bool = True
    faint: bool = False
    shape: str = ""
    hollow: bool = False


@dataclass(frozen=True)
class Figure:
    """A plot with its title, legend and description.

    Attributes:
        name: identifier, unique within the page.
        title: what is shown.
        note: how to read the plot.
        description: the content of the plot in words.
        x: title of the horizontal axis; empty without one.
        y: title of the vertical axis.
        legend: the legend.
        drawing: the plot in pixels.
        download: address of its values as CSV.
    """

    name: str
    title: str
    note: str
    description: str
    x: str
    y: str
    legend: Sequence[LegendEntry]
    drawing: Drawing
    download: str


@dataclass(frozen=True)
class HeatCell:
    """A cell of a heat map: its value (None if undefined), its level from 0 to 10, and whether it is outlined."""

    number: Number | None
    level: int
    outlined: bool


@dataclass(frozen=True)
class HeatMap:
    """A table whose cells are coloured by their values.

    Attributes:
        name: identifier, unique within the page.
        title: what is shown.
        corner: names of the row and column dimensions.
        rows: titles of the rows.
        columns: titles of the columns.
        cells: the values, row by row.
        far: whether high values are bad and are therefore shown in a different colour.
        download: address of its values as CSV.
    """

    name: str
    title: str
    corner: str
    rows: Sequence[str]
    columns: Sequence[str]
    cells: Sequence[Sequence[HeatCell]]
    far: bool
    download: str


@dataclass(frozen=True)
class ContentGroup:
    """Figures side by side, then heat maps, then tables."""

    heading: str = ""
    notes: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    heat_maps: Sequence[HeatMap] = ()
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class PageSection:
    """A part of the page."""

    name: str
    title: str
    blocks: Sequence[ContentGroup] = field(default_factory=list)


def figure(
    name: str,
    title: str,
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    *,
    baselines: Sequence[Baseline] = (),
    legend: Sequence[LegendEntry] = (),
    note: str = "",
    description: str = "",
    separate: bool = False,
) -> Figure:
    """Draw a figure; its baselines are added to its legend.

    Args:
        name: identifier, unique within the page.
        title: what is shown.
        series: the series to draw, later ones on top.
        x: the horizontal axis.
        y: the vertical axis.
        baselines: horizontal lines.
        legend: the legend of the series.
        note: how to read the plot.
        description: the content of the plot in words; the default lists all points.
        separate: whether markers that would overlap are shifted sideways.
    """
    drawing = draw(series, x, y, baselines, separate=separate)
    if not description:
        parts = [f"{one.label}: {', '.join(mark.text for mark in one.marks)}" for one in series]
        description = "; ".join([*parts, *(f"{one.label} {one.text}" for one in baselines)])
    shifted = "points that would cover each other are shifted sideways" if drawing.shifted else ""
    noted = "; ".join(part for part in (note, shifted) if part)
    lines = [LegendEntry(f"{one.label} {one.text}", kind=one.kind) for one in baselines]
    return Figure(
        name=name,
        title=title,
        note=noted[:1].upper() + noted[1:],
        description=f"{title}. {description}.",
        x=x.title,
        y=y.title + (" (logarithmic)" if y.logarithmic else ""),
        legend=[*legend, *lines],
        drawing=drawing,
        download=csv_download(_csv_of(series, x, y, baselines)),
    )


def legend_entry(
    label: str, style: int, *, line: bool = True, markers: bool = True, dashed: bool = True
) -> LegendEntry:
    """Make the entry of a series with a style."""
    return LegendEntry(
        label,
        color=f"c{style % 8}",
        dash=dash_of(style) if dashed else "",
        line=line,
        shape=marker(style, 14, 7) if markers else "",
        hollow=style >= 8,
    )


def _csv_of(series: Sequence[Series], x: Axis, y: Axis, baselines: Sequence[Baseline]) -> str:
    """Format the drawn points with all digits."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["series", x.title or "place", y.title, "low", "high"])
    for one in series:
        writer.writerows(
            [one.label, mark.x, mark.y, *(mark.interval or ("", ""))] for mark in drawn_marks(one, len(series))
        )
    writer.writerows([one.label, "", one.y, "", ""] for one in baselines)
    return file.getvalue()


def csv_download(text: str) -> str:
    """Return the address of a CSV file that is part of the page."""
    return "data:text/csv;charset=utf-8," + quote(text, safe=",.:;/()[]+")


def cell(*pieces: Piece) -> Cell:
    """Make a cell."""
    return Cell(pieces)


def score_cell(score: Score | None, column: Column) -> Cell:
    """Format a score with its interval and repetitions."""
    if score is None:
        return Cell(("-",))
    text = Number(score.mean, column.show(score.mean))
    if column.kind == "cost" and not column.has_spread(score):
        return Cell((text,))
    return Cell((text,), (*interval(score, column), *counts(f" ({score.repetitions})" if score.repetitions else "")))


def interval(score: Score, column: Column) -> tuple[Piece, ...]:
    """Format an interval; empty without one."""
    if score.interval is None:
        return ()
    low, high = (Number(bound, column.show(bound)) for bound in score.interval)
    return ("[", low, ", ", high, "]")


def counts(text: str) -> tuple[Piece, ...]:
    """Split a text such as `3 seeds` into its whole numbers and the rest."""
    parts = re.split(r"(\d[\d,]*)", text)
    return tuple(Number(int(part.replace(",", "")), part) if part[:1].isdigit() else part for part in parts if part)


def wrapped(text: str) -> Markup:
    """Escape a name and allow line breaks after `/`, `_` and `=`; browsers already allow them after `-`."""
    return Markup(re.sub(r"([/_=])(?=.)", r"\1<wbr>", str(escape(text))))
