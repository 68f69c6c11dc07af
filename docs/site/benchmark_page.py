"""Write the page of the benchmark history: plots as SVG, and a table, from docs/benchmarks/history.json."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT = 360, 300
LEFT, RIGHT, TOP, BOTTOM = 40, 348, 24, 190
COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#aa3377")
GRAY = "#888888"
PLOTS = [
    (f"Step, {padded}, against a {against} loop", {"command": "bench_steps.py", "against": against, "padding": padding})
    for against in ("bare", "plain")
    for padded, padding in (("no padding", 0.0), ("30% padding", 0.3))
] + [
    (f"Loss alone, {padded}", {"command": "bench_losses.py", "padding": padding})
    for padded, padding in (("no padding", 0.0), ("30% padding", 0.3))
]
"""Title of each plot, and the values of the records that it shows."""
HEAD = """# Benchmark history

How many times as fast kdcore is as a loop over transformers on one CPU thread, measurement by measurement: the median
of adjacent pairs, with a bar from the lowest to the highest. [Performance](performance.md) describes the method, the
two loops and the machines. Measurements on different dates were made under different load, and some on different
machines. `make bench` appends to `docs/benchmarks/history.json`, and `make docs` draws this page.
"""


def selected(records: Sequence[dict[str, Any]], keys: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the records with these values."""
    return [record for record in records if all(record[key] == value for key, value in keys.items())]


def plot(title: str, records: Sequence[dict[str, Any]]) -> str:
    """Draw ratios over measurements as SVG, one line for each objective."""
    times = list(dict.fromkeys((record["date"], record["commit"]) for record in records))
    names = list(dict.fromkeys(record["name"] for record in records))
    top = max(record["highest"] for record in records) * 1.05
    step = next(step for step in (0.5, 1, 2, 5, 10) if top / step <= 6)

    def x(record: dict[str, Any]) -> float:
        place = times.index((record["date"], record["commit"])) + 0.5
        shift = 8 * (names.index(record["name"]) - (len(names) - 1) / 2)
        return round(LEFT + (RIGHT - LEFT) * place / len(times) + shift, 1)

    def y(value: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * value / top, 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="sans-serif" font-size="11" fill="{GRAY}" role="img"><title>{escape(title)}</title>',
        f'<text x="{LEFT}" y="12" font-size="12">{escape(title)}</text>',
    ]
    for number in range(int(top / step) + 1):
        value = number * step
        parts.append(
            f'<path d="M{LEFT} {y(value)}H{RIGHT}" stroke="{GRAY}" stroke-width="{1 if value == 1 else 0.3}"/>'
        )
        parts.append(f'<text x="{LEFT - 6}" y="{y(value) + 4}" text-anchor="end">{value:g}</text>')
    for number, (date, commit) in enumerate(times):
        middle = round(LEFT + (RIGHT - LEFT) * (number + 0.5) / len(times), 1)
        parts.append(f'<text x="{middle}" y="{BOTTOM + 14}" text-anchor="middle">{escape(date)}</text>')
        parts.append(f'<text x="{middle}" y="{BOTTOM + 27}" text-anchor="middle">{escape(commit)}</text>')
    for number, name in enumerate(names):
        color = COLORS[number % len(COLORS)]
        own = [record for record in records if record["name"] == name]
        line = " ".join(f"{x(record)},{y(record['ratio'])}" for record in own)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        for record in own:
            text = f"{name}: {record['ratio']:g} ({record['lowest']:g} to {record['highest']:g})"
            parts.append(
                f'<path d="M{x(record)} {y(record["lowest"])}V{y(record["highest"])}" stroke="{color}"/>'
                f'<circle cx="{x(record)}" cy="{y(record["ratio"])}" r="3" fill="{color}">'
                f"<title>{escape(text)}</title></circle>"
            )
        left, below = LEFT + 155 * (number % 2), BOTTOM + 50 + 16 * (number // 2)
        parts.append(f'<circle cx="{left}" cy="{below - 4}" r="4" fill="{color}"/>')
        parts.append(f'<text x="{left + 9}" y="{below}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def benchmark_files(records: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return the page and its plots, by their paths in the site."""
    files, lines = {}, [HEAD]
    for number, (title, keys) in enumerate(PLOTS):
        file = f"benchmarks/plot-{number}.svg"
        files[file] = plot(title, selected(records, keys))
        lines += [f"![{title}]({file})", ""]
    lines += ["| date | commit | command | objective | padding | against | times as fast |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for one in reversed(records):
        ratio = f"{one['ratio']:.2f} ({one['lowest']:.2f} to {one['highest']:.2f})"
        about = f"{one['date']} | {one['commit']} | `{one['command']}` | `{one['name']}` | {one['padding']:.0%}"
        lines.append(f"| {about} | {one['against']} | {ratio} |")
    return files | {"benchmark-history.md": "\n".join([*lines, ""])}
