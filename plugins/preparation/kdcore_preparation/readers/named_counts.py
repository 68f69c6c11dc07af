"""Count named items, such as dropped templates, each with an example.

A reader's report is a counter by description. A key with two or three lines counts an item by name: the description,
the name (empty for all items that are not counted by name), and an example. This way, named counts of parts and
processes are added like all other counts; `summarised` formats the most frequent names for display.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

SHOWN_NAMES = 20
"""Number of the most frequent names that are shown."""

KEPT_NAMES = 200
"""Number of the most frequent names that are kept for a piece of text, so that records stay small."""

_NAMES_IN_MEMORY = 10_000
_EXAMPLE_LENGTH = 70


class NamedCounts:
    """Count items by name in a report, with bounded memory.

    Args:
        what: description of the items, such as `templates dropped`.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._keys: dict[str, str] = {}

    def count(self, report: Counter[str], name: str, example: Callable[[], str]) -> None:
        """Count one item; `example` returns an example text, and is called only for the first item of each name."""
        key = self._keys.get(name)
        if key is None:
            if len(self._keys) < _NAMES_IN_MEMORY:
                key = self._keys[name] = f"{self._what}\n{_shortened(name)}\n{_shortened(example())}"
            else:
                key = f"{self._what}\n"
        report[key] += 1


def most_frequent(report: Mapping[str, int], limit: int = KEPT_NAMES) -> Counter[str]:
    """Keep the most frequent names of each description; the others are counted without their names."""
    kept = Counter({key: count for key, count in report.items() if "\n" not in key})
    for what, names in _grouped(report).items():
        ordered = sorted(names.items(), key=lambda item: (not item[0], -item[1][0], item[0]))
        for place, (name, (count, example)) in enumerate(ordered):
            if name and place < limit:
                kept[f"{what}\n{name}\n{example}"] += count
            else:
                kept[f"{what}\n"] += count
    return kept


def summarised(report: Mapping[str, int]) -> dict[str, int]:
    """Format a report for display: plain counts sorted by description, then named counts, most frequent first."""
    lines = {key: count for key, count in sorted(report.items()) if "\n" not in key}
    kept = most_frequent(report, SHOWN_NAMES)
    for what, names in _grouped(kept).items():
        for name, (count, example) in sorted(names.items(), key=lambda item: (not item[0], -item[1][0], item[0])):
            lines[f"{what}: {name}, such as {example}" if name else f"{what}: others"] = count
    return lines


def _grouped(report: Mapping[str, int]) -> dict[str, dict[str, tuple[int, str]]]:
    """Group named counts by description and name; return the count and the first example of each."""
    grouped: dict[str, dict[str, tuple[int, str]]] = {}
    for key, count in report.items():
        if "\n" in key:
            what, name, example = (*key.split("\n"), "")[:3]
            before, first = grouped.setdefault(what, {}).get(name, (0, example))
            grouped[what][name] = (before + count, first)
    return grouped


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _EXAMPLE_LENGTH else f"{text[: _EXAMPLE_LENGTH - 1]}…"
