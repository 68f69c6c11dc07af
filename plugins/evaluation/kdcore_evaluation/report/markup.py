"""HTML elements of the page."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from html import escape

from kdcore_evaluation.report.plots import swatch
from kdcore_evaluation.run.scores import Column, Score


def datum(value: float, text: str) -> str:
    """Format a number as `<data>`, with its exact value for programs."""
    return f'<data value="{value!r}">{escape(text)}</data>'


def wrapped(text: str) -> str:
    """Escape a name and allow line breaks after `/`, `_` and `-`."""
    return re.sub(r"([/_-])(?=.)", r"\1<wbr>", escape(text))


def score_cell(score: Score | None, column: Column) -> str:
    """Format a score with its interval and what was repeated."""
    if score is None:
        return '<span class="quiet">-</span>'
    text = datum(score.mean, column.show(score.mean))
    if column.kind == "cost" and not column.has_spread(score):
        return text
    bounds = ", ".join(datum(bound, column.show(bound)) for bound in score.interval or ())
    repeated = f"({counts(score.repetitions)})" if score.repetitions else ""
    spread = " ".join(part for part in (f"[{bounds}]" if bounds else "", repeated) if part)
    return f'{text} <span class="spread">{spread}</span>' if spread else text


def counts(text: str) -> str:
    """Escape a text such as `3 seeds` and format its whole numbers as `<data>`."""
    return re.sub(r"\d+", lambda found: datum(int(found[0]), found[0]), escape(text))


def region(label: str, inside: str) -> str:
    """Wrap content that may be wider than the screen, scrollable with the keyboard."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">{inside}</div>\n'


def table_of(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Collection[int] = (), caption: str = ""
) -> str:
    """Make a table; cells of `rows` are HTML, the first of each row is its header."""
    kinds = [' class="number"' if index in numbers else "" for index in range(len(head))]
    top = "".join(f'<th scope="col"{kind}>{escape(text)}</th>' for text, kind in zip(head, kinds, strict=True))
    lines = []
    for first, *rest in rows:
        cells = "".join(f"<td{kind}>{text}</td>" for text, kind in zip(rest, kinds[1:], strict=True))
        lines.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    above = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{above}<thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def legend(entries: Sequence[tuple[str, int]], *, line: bool = True) -> str:
    """Make the legend of a plot."""
    items = "".join(f"<li>{swatch(style, line=line)}{escape(label)}</li>" for label, style in entries)
    return f'<ul class="legend">{items}</ul>'
