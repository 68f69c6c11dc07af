"""Write the GPU tables of docs/performance.md from the recorded results: `python tests/gpu/table.py`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "tests" / "gpu" / "results"
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- begin: python tests/gpu/table.py -->", "<!-- end: python tests/gpu/table.py -->"
EMPTY = "No results recorded yet."


def newest_results(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of the newest file of each suite and card, by the time in its name.

    A line that was cut short is left out.
    """
    newest: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for file in sorted(folder.glob("*.jsonl"), key=lambda one: one.name.partition("-")[2]):
        lines = []
        for text in file.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                continue
        if lines:
            newest[lines[0]["suite"], lines[0]["card"]] = lines
    return [line for key in sorted(newest) for line in newest[key]]


def tables(lines: Sequence[dict[str, Any]]) -> str:
    """Return the text between the marks."""
    if not lines:
        return EMPTY
    speed = [line for line in lines if line["check"].startswith("speed ")]
    parts = [_checks(lines)]
    if any("cells" in line["values"] for line in speed):
        parts.append(_speed(speed))
    return "\n\n".join(parts)


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _checks(lines: Iterable[dict[str, Any]]) -> str:
    """Return one row for each check: what it found and where."""
    rows = []
    for line in lines:
        versions = line["versions"]
        result = {True: "passed", False: "failed", None: line["error"]}[line["passed"]]
        if line["passed"] is False:
            result += f": {str(line['error']).replace('|', '/')[:160]}"
        software = f"torch {versions['torch']}, transformers {versions['transformers']}"
        rows.append((line["check"], line["card"], software, line["date"], f"{line['seconds']:.0f} s", result))
    return _markdown(("check", "card", "software", "date", "time", "result"), rows)


def _speed(lines: Iterable[dict[str, Any]]) -> str:
    """Return one row for each objective and batch."""
    rows = []
    for line in lines:
        for cell in line["values"].get("cells", []):
            batch = f"{cell['sequences']} x {cell['length']}"
            memory = [cell[f"{side}_gb"] for side in ("ours", "plain")]
            rows.append(
                (
                    line["card"],
                    line["check"].removeprefix("speed "),
                    batch,
                    f"{cell['padding']:.0%}",
                    f"{cell['dropout']:g}",
                    _number(cell.get("ratio"), ".2f"),
                    _number(cell.get("tokens_per_second"), ",.0f"),
                    _number(cell.get("mfu"), ".2f"),
                    _number(cell.get("mfu_measured"), ".2f"),
                    " / ".join(_number(value, ".1f") for value in memory),
                )
            )
    header = ("card", "objective", "batch", "padding", "dropout", "times bare encoders", "tokens/s")
    return _markdown((*header, "MFU (data sheet)", "MFU (measured peak)", "GB, kdcore / bare"), rows)


def _number(value: float | str | None, form: str) -> str:
    if value is None or value != value:
        return "-"
    return value if isinstance(value, str) else format(value, form)


def with_tables(page: str, text: str) -> str:
    """Return the page with `text` between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), tables(newest_results(RESULTS))), encoding="utf-8")
