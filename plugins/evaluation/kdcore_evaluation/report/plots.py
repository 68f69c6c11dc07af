"""SVG plots for the page: readable on a phone, distinguishable without colours, with a textual description."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 360, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 14, 12, 42
_STYLES = 8
_DASHES = ("", "6 3", "2 3", "8 3 2 3", "12 4", "4 2", "1 2", "10 2 2 2 2 2")
_MOST_POINTS = 160
_MARKER = 4.5


_SMALLEST, _LARGEST = 1e-100, 1e100  # beyond these, the limits of an axis would overflow


@dataclass(frozen=True)
class Mark:
    """A point of a plot, with the bounds of its interval if it has one."""

    x: float
    y: float
    interval: tuple[float, float] | None = None
    text: str = ""


@dataclass(frozen=True)
class Series:
    """Points of one colour, dash pattern and shape.

    Attributes:
        label: what they are.
        style: number of the style.
        marks: the points, from left to right.
        line: whether they are joined.
        markers: whether each is drawn.
        dashed: whether the line has its style's dash pattern.
    """

    label: str
    style: int
    marks: Sequence[Mark]
    line: bool = True
    markers: bool = True
    dashed: bool = True


@dataclass(frozen=True)
class Axis:
    """An axis: what it shows, how its ticks are written, whether it is logarithmic."""

    title: str
    show: Callable[[float], str] = lambda value: f"{value:g}"
    logarithmic: bool = False


def plot(name: str, title: str, description: str, series: Sequence[Series], x: Axis, y: Axis) -> str:
    """Draw an SVG element.

    Args:
        name: unique in the page, for the ids of title and description.
        title: what is shown.
        description: the content of the plot in words, for screen readers.
        series: what is drawn, later ones on top.
        x: the horizontal axis.
        y: the vertical one.
    """
    horizontal = _Scale(x, [mark.x for one in series for mark in one.marks], _LEFT, WIDTH - _RIGHT)
    ends = [value for one in series for mark in one.marks for value in _ends(mark, y)]
    vertical = _Scale(y, ends, HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{name}-title {name}-text">',
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-text">{escape(description)}</desc>',
        *_grid(horizontal, vertical),
        *(part for one in series for part in _drawn(one, horizontal, vertical)),
        "</svg>",
    ]
    return "".join(parts)


def swatch(style: int, *, line: bool = True) -> str:
    """Draw a series' line and shape for a legend."""
    stroke = f'<path class="line c{style % _STYLES}"{_dash(style)} d="M1 7H27"/>' if line else ""
    marker = _marker(style, 14, 7)
    return f'<svg class="swatch" viewBox="0 0 28 14" aria-hidden="true">{stroke}{marker}</svg>'


class _Scale:
    """From values to places on the page."""

    def __init__(self, axis: Axis, values: Iterable[float], start: float, end: float) -> None:
        self.axis = axis
        known = [value for value in values if self.shows(value)]
        lowest, highest = min(known, default=0.0), max(known, default=1.0)
        if axis.logarithmic:
            lowest, highest = (lowest or 1.0) / 1.1, (highest or 1.0) * 1.1
        else:
            room = 0.06 * (highest - lowest) or 0.05 * abs(highest) or 1.0
            zero = 0 <= lowest <= 0.02 * highest  # a time or a step that begins there
            lowest, highest = lowest if zero else lowest - room, highest + room
        self.lowest, self.highest = self._warp(lowest), self._warp(highest)
        self.start, self.end = start, end

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
                return found
        return found if len(found) > 1 else _round_values(10**self.lowest, 10**self.highest)


def _round_values(lowest: float, highest: float, count: int = 5) -> list[float]:
    """Choose some round numbers between two."""
    span = highest - lowest
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if span / (factor * power) <= count)
    first = math.ceil(lowest / step)
    return [round(number * step, 12) for number in range(first, math.floor(highest / step) + 1)]


def _grid(x: _Scale, y: _Scale) -> Iterable[str]:
    for value in y.ticks():
        place = y.at(value)
        yield f'<path class="grid" d="M{_LEFT} {place}H{WIDTH - _RIGHT}"/>'
        text = escape(y.axis.show(value))
        yield f'<text class="tick" x="{_LEFT - 6}" y="{place + 4}" text-anchor="end">{text}</text>'
    for value in x.ticks():
        place = x.at(value)
        yield f'<path class="axis" d="M{place} {HEIGHT - _BOTTOM}v4"/>'
        text = escape(x.axis.show(value))
        yield f'<text class="tick" x="{place}" y="{HEIGHT - _BOTTOM + 17}" text-anchor="middle">{text}</text>'
    yield f'<path class="axis" d="M{_LEFT} {_TOP}V{HEIGHT - _BOTTOM}H{WIDTH - _RIGHT}"/>'
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    yield f'<text class="title" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x.axis.title)}</text>'
    height = (_TOP + HEIGHT - _BOTTOM) / 2
    turned = f'transform="rotate(-90 11 {height})"'
    yield f'<text class="title" x="11" y="{height}" text-anchor="middle" {turned}>{escape(y.axis.title)}</text>'


def _drawn(series: Series, x: _Scale, y: _Scale) -> Iterable[str]:
    marks = [mark for mark in series.marks if x.shows(mark.x) and y.shows(mark.y)]
    kept = marks if len(marks) <= _MOST_POINTS else _thinned(marks)
    color = f"c{series.style % _STYLES}"
    if series.line and len(kept) > 1:
        places = " ".join(f"{x.at(mark.x)},{y.at(mark.y)}" for mark in kept)
        dash = _dash(series.style) if series.dashed else ""
        yield f'<polyline class="line {color}"{dash} points="{places}"/>'
    for mark in kept if series.markers else ():
        low, high = _ends(mark, y.axis)
        if high > low:
            yield f'<path class="line {color}" d="M{x.at(mark.x)} {y.at(low)}V{y.at(high)}"/>'
        label = f"<title>{escape(': '.join(part for part in (series.label, mark.text) if part))}</title>"
        yield _marker(series.style, x.at(mark.x), y.at(mark.y), label)


def _thinned(marks: Sequence[Mark]) -> list[Mark]:
    """Thin points evenly; the last one is kept."""
    step = math.ceil(len(marks) / _MOST_POINTS)
    return [*marks[:-1:step], marks[-1]]


def _ends(mark: Mark, axis: Axis) -> tuple[float, float]:
    low, high = mark.interval or (mark.y, mark.y)
    return (mark.y if axis.logarithmic and low <= 0 else low), high


def _dash(style: int) -> str:
    dash = _DASHES[style % len(_DASHES)]
    return f' stroke-dasharray="{dash}"' if dash else ""


def _marker(style: int, x: float, y: float, inside: str = "") -> str:
    """Draw one of eight shapes; a second round of styles is drawn hollow."""
    r = _MARKER
    shapes = (
        f"M{x - r} {y}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z",
        f"M{x - r} {y - r}h{2 * r}v{2 * r}h{-2 * r}z",
        f"M{x} {y - r - 1}l{r + 1} {2 * r}h{-2 * r - 2}z",
        f"M{x} {y - r - 1}l{r + 1} {r + 1}l{-r - 1} {r + 1}l{-r - 1} {-r - 1}z",
        f"M{x} {y + r + 1}l{r + 1} {-2 * r}h{-2 * r - 2}z",
        f"M{x - 2} {y - r - 1}h4v{r - 1}h{r - 1}v4h{1 - r}v{r - 1}h-4v{1 - r}h{1 - r}v-4h{r - 1}z",
        f"M{x - r - 1} {y}l{r + 1} {-r}v{2 * r}z",
        f"M{x + r + 1} {y}l{-r - 1} {-r}v{2 * r}z",
    )
    hollow = " hollow" if style >= _STYLES else ""
    return f'<path class="mark c{style % _STYLES}{hollow}" d="{shapes[style % _STYLES]}">{inside}</path>'
