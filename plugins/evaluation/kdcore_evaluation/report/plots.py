"""Geometry of the page's plots: scales, ticks and paths of inline SVG, which figure.svg renders."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 360, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 24
STYLES = 8
_DASHES = ("", "6 3", "2 3", "8 3 2 3", "12 4", "4 2", "1 2", "10 2 2 2 2 2")
_FEWEST_POINTS, _MOST_POINTS, _MOST_OF_PLOT = 24, 160, 4000
_MARKER = 4.5
_GAP = 2 * _MARKER + 3
_MOST_SHIFTS = 25  # across the whole plot
_LETTER = 6.6  # maximum width of a letter in the ticks

_SMALLEST, _LARGEST = 1e-100, 1e100  # beyond these, the limits of an axis would overflow


@dataclass(frozen=True)
class Mark:
    """A point of a plot.

    Attributes:
        x: its position on the horizontal axis.
        y: its position on the vertical axis.
        interval: bounds on the vertical axis; None if there are none.
        text: its exact values as text.
    """

    x: float
    y: float
    interval: tuple[float, float] | None = None
    text: str = ""


@dataclass(frozen=True)
class Series:
    """Points with the same colour, dash pattern and shape.

    Attributes:
        label: description of the points.
        style: number of the style.
        marks: the points, from left to right.
        line: whether they are joined.
        markers: whether each point has a marker.
        dashed: whether the line has its style's dash pattern.
        faint: whether the series is in the background, with a thin line and small markers.
    """

    label: str
    style: int
    marks: Sequence[Mark]
    line: bool = True
    markers: bool = True
    dashed: bool = True
    faint: bool = False


@dataclass(frozen=True)
class Baseline:
    """A horizontal line for comparison.

    Attributes:
        label: description of the line.
        y: its position on the vertical axis.
        text: its exact value as text.
        kind: role of the reference, such as `teacher` or `constant`; selects the dash pattern.
    """

    label: str
    y: float
    text: str
    kind: str


@dataclass(frozen=True)
class Axis:
    """An axis.

    Attributes:
        title: the quantity on the axis.
        show: function that formats its ticks.
        logarithmic: whether it is logarithmic.
        names: names of the categories at 0, 1, ..., if the axis has categories.
    """

    title: str
    show: Callable[[float], str] = lambda value: f"{value:g}"
    logarithmic: bool = False
    names: Sequence[str] = ()


@dataclass(frozen=True)
class DrawnSeries:
    """One series in pixel coordinates.

    Attributes:
        label: description of the points.
        color: class of the colour.
        dash: dash pattern of the line; empty for a solid one.
        faint: whether it is in the background.
        line: positions of the line's points, as `x,y x,y`; empty without a line.
        whiskers: paths of the intervals.
        markers: paths of the markers, with their texts.
        hollow: whether markers are hollow.
        values: position and text of every point.
    """

    label: str
    color: str
    dash: str
    faint: bool
    line: str
    whiskers: list[str]
    markers: list[tuple[str, str]]
    hollow: bool
    values: list[tuple[float, float, str]]


@dataclass(frozen=True)
class Drawing:
    """A plot in pixel coordinates.

    Attributes:
        rows: positions and texts of the ticks of the vertical axis.
        columns: positions and texts of the ticks of the horizontal axis.
        baselines: position and description of each horizontal line.
        series: the series to draw, later ones on top.
        shifted: whether points were shifted sideways because they would overlap.
    """

    rows: list[tuple[float, str]]
    columns: list[tuple[float, str]]
    baselines: list[tuple[float, Baseline]]
    series: list[DrawnSeries]
    shifted: bool
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM


def draw(
    series: Sequence[Series], x: Axis, y: Axis, baselines: Sequence[Baseline] = (), *, separate: bool = False
) -> Drawing:
    """Compute the layout of a plot.

    Args:
        series: the series to draw, later ones on top. Values that an axis cannot show are left out.
        x: the horizontal axis.
        y: the vertical axis.
        baselines: horizontal lines.
        separate: whether markers that would overlap are shifted sideways.
    """
    kept = [drawn_marks(one, len(series)) for one in series]
    horizontal = _Scale(x, [mark.x for marks in kept for mark in marks], _LEFT, WIDTH - _RIGHT)
    ends = [value for marks in kept for mark in marks for value in _ends(mark, y)]
    vertical = _Scale(y, [*ends, *(one.y for one in baselines)], HEIGHT - _BOTTOM, _TOP)
    swarm = _Swarm()
    drawn = [
        _drawn(one, marks, horizontal, vertical, swarm if separate else None)
        for one, marks in zip(series, kept, strict=True)
    ]
    return Drawing(
        rows=[(vertical.at(value), y.show(value)) for value in vertical.ticks()],
        columns=_columns(horizontal),
        baselines=[(vertical.at(one.y), one) for one in baselines if vertical.shows(one.y)],
        series=drawn,
        shifted=swarm.shifted,
    )


def marker(style: int, x: float, y: float, size: float = _MARKER) -> str:
    """Return the path of one of eight shapes; styles after the first eight are drawn hollow."""
    r = size
    shapes = (
        f"M{x - r:g} {y:g}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z",
        f"M{x - r:g} {y - r:g}h{2 * r}v{2 * r}h{-2 * r}z",
        f"M{x:g} {y - r - 1:g}l{r + 1} {2 * r}h{-2 * r - 2}z",
        f"M{x:g} {y - r - 1:g}l{r + 1} {r + 1}l{-r - 1} {r + 1}l{-r - 1} {-r - 1}z",
        f"M{x:g} {y + r + 1:g}l{r + 1} {-2 * r}h{-2 * r - 2}z",
        f"M{x - r / 2:g} {y - r - 1:g}h{r}v{r / 2 + 1}h{r / 2 + 1}v{r}h{-r / 2 - 1}v{r / 2 + 1}h{-r}v{-r / 2 - 1}"
        f"h{-r / 2 - 1}v{-r}h{r / 2 + 1}z",
        f"M{x - r - 1:g} {y:g}l{r + 1} {-r}v{2 * r}z",
        f"M{x + r + 1:g} {y:g}l{-r - 1} {-r}v{2 * r}z",
    )
    return shapes[style % STYLES]


def dash_of(style: int) -> str:
    """Return the dash pattern of a style; empty for a solid line."""
    return _DASHES[style % len(_DASHES)]


def drawn_marks(series: Series, count: int) -> Sequence[Mark]:
    """Thin out the points of one of `count` series to keep pages with many runs small, but keep the last point."""
    most = max(_FEWEST_POINTS, min(_MOST_POINTS, _MOST_OF_PLOT // count))
    step = math.ceil(len(series.marks) / most)
    return series.marks if step < 2 else [*series.marks[:-1:step], series.marks[-1]]


class _Scale:
    """Map values to pixels."""

    def __init__(self, axis: Axis, values: Iterable[float], start: float, end: float) -> None:
        self.axis = axis
        self.start, self.end = start, end
        if axis.names:
            self.lowest, self.highest = -0.5, len(axis.names) - 0.5
            return
        known = [value for value in values if self.shows(value)]
        lowest, highest = min(known, default=0.0), max(known, default=1.0)
        if axis.logarithmic:
            lowest, highest = (lowest or 1.0) / 1.1, (highest or 1.0) * 1.1
        else:
            room = 0.06 * (highest - lowest) or 0.05 * abs(highest) or 1.0
            zero = 0 <= lowest <= 0.02 * highest  # a time or a step, which begins at 0
            lowest, highest = lowest if zero else lowest - room, highest + room
        self.lowest, self.highest = self._warp(lowest), self._warp(highest)

    def _warp(self, value: float) -> float:
        return math.log10(value) if self.axis.logarithmic else value

    def at(self, value: float) -> float:
        share = (self._warp(value) - self.lowest) / (self.highest - self.lowest)
        return round(self.start + share * (self.end - self.start), 1)

    def shows(self, value: float) -> bool:
        in_range = value == 0 or _SMALLEST <= abs(value) <= _LARGEST
        return math.isfinite(value) and in_range and (value > 0 or not self.axis.logarithmic)

    def ticks(self) -> list[float]:
        if not self.axis.logarithmic:
            return _round_values(self.lowest, self.highest)
        found: list[float] = []
        for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
            decades = range(math.floor(self.lowest), math.ceil(self.highest) + 1)
            found = [factor * 10.0**decade for decade in decades for factor in factors]
            found = [value for value in found if self.lowest <= math.log10(value) <= self.highest]
            if len(found) >= 3:
                return found[:: -(-len(found) // 7)]
        return found if len(found) > 1 else _round_values(10**self.lowest, 10**self.highest)


class _Swarm:
    """Shift markers sideways so that none covers another."""

    def __init__(self) -> None:
        self._taken: list[tuple[float, float, float]] = []
        self.shifted = False

    def place(self, x: float, top: float, bottom: float) -> float:
        """Return the nearest position to x that is free between `top` and `bottom`; x itself if none is near."""
        steps = (step * side for step in range(_MOST_SHIFTS + 1) for side in ((1, -1) if step else (1,)))
        for shift in (step * _GAP for step in steps):
            at = round(x + shift, 1)
            inside = _LEFT + _MARKER <= at <= WIDTH - _RIGHT - _MARKER or not shift
            if inside and all(self._apart(at, top, bottom, one) for one in self._taken):
                self.shifted = self.shifted or bool(shift)
                break
        else:
            at = x
        self._taken.append((at, top, bottom))
        return at

    @staticmethod
    def _apart(x: float, top: float, bottom: float, other: tuple[float, float, float]) -> bool:
        return abs(x - other[0]) >= _GAP - 0.2 or bottom + _GAP < other[1] or other[2] + _GAP < top


def _round_values(lowest: float, highest: float, count: int = 5) -> list[float]:
    """Choose round numbers between two values."""
    span = highest - lowest
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if span / (factor * power) <= count)
    first = math.ceil(lowest / step)
    return [round(number * step, 12) for number in range(first, math.floor(highest / step) + 1)]


def _columns(scale: _Scale) -> list[tuple[float, str]]:
    """Return the ticks of the horizontal axis; names of categories only if all fit side by side."""
    names = scale.axis.names
    if not names:
        return [(scale.at(value), scale.axis.show(value)) for value in scale.ticks()]
    fit = max(map(len, names)) * _LETTER < (WIDTH - _LEFT - _RIGHT) / len(names)
    return [(scale.at(number), name) for number, name in enumerate(names)] if fit else []


def _drawn(series: Series, marks: Sequence[Mark], x: _Scale, y: _Scale, swarm: _Swarm | None) -> DrawnSeries:
    places, whiskers, markers, values = [], [], [], []
    for mark in (one for one in marks if x.shows(one.x) and y.shows(one.y)):
        low, high = _ends(mark, y.axis)
        top, bottom = y.at(high), y.at(low)
        at, height = x.at(mark.x), y.at(mark.y)
        if series.markers and swarm is not None:
            at = swarm.place(at, top, bottom)
        places.append(f"{at:g},{height:g}")
        values.append((at, height, mark.text))
        if high > low:
            whiskers.append(f"M{at:g} {bottom:g}V{top:g}M{at - 3:g} {bottom:g}h6M{at - 3:g} {top:g}h6")
        if series.markers:
            size = 0.6 * _MARKER if series.faint else _MARKER
            markers.append((marker(series.style, at, height, size), mark.text))
    return DrawnSeries(
        label=series.label,
        color=f"c{series.style % STYLES}",
        dash=dash_of(series.style) if series.dashed else "",
        faint=series.faint,
        line=" ".join(places) if series.line and len(places) > 1 else "",
        whiskers=whiskers,
        markers=markers,
        hollow=series.style >= STYLES,
        values=values,
    )


def _ends(mark: Mark, axis: Axis) -> tuple[float, float]:
    low, high = mark.interval or (mark.y, mark.y)
    return (mark.y if axis.logarithmic and low <= 0 else low), high
