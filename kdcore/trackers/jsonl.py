"""Record metrics as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdcore.recipe.schema import ComponentConfig
from kdcore.trackers.base import Tracker
from kdcore.utils.atomic import atomic_write

METRICS = "metrics.jsonl"


def rows_of(text: str) -> list[dict[str, Any]]:
    """Parse JSON lines with maps; skip truncated lines, such as the first and last line of an excerpt."""
    rows = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def read_metrics(run_folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's metrics, each with its `step`; empty if there are none yet."""
    try:
        text = (run_folder / METRICS).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [row for row in rows_of(text) if "step" in row]


class JsonLinesTracker(Tracker):
    """Append one JSON object per row, with the key `step`, to `metrics.jsonl` in the run folder."""

    def __init__(self, config: ComponentConfig, run_folder: Path) -> None:
        super().__init__(config, run_folder)
        self.path = run_folder / METRICS
        self._file = self.path.open("a", encoding="utf-8")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append and flush a row, so that it can be followed and survives a crash."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()

    def rewind(self, step: int) -> None:
        """Drop rows after `step` and a truncated last row."""
        self._file.close()
        kept = [row for row in rows_of(self.path.read_text(encoding="utf-8", errors="replace")) if row["step"] <= step]
        with atomic_write(self.path) as file:
            file.write("".join(json.dumps(row) + "\n" for row in kept).encode())
        self._file = self.path.open("a", encoding="utf-8")

    def close(self) -> None:
        """Close the file."""
        self._file.close()
