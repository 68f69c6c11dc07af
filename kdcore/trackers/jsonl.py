"""Record metrics as JSON lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict

from kdcore.recipe.schema import ComponentConfig
from kdcore.trackers.base import Tracker
from kdcore.utils.atomic import atomic_write, names_path
from kdcore.utils.stored import StoredCount, load_json_rows, read_json_rows

METRICS = "metrics.jsonl"


def _number(value: Any) -> Any:
    if type(value) is not float and (type(value) is not int or abs(value) > sys.float_info.max):
        raise ValueError("a number")
    return value


class _MetricRow(BaseModel):
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[Any, AfterValidator(_number)]]

    step: StoredCount


def read_metrics(run_folder: Path, *, last_bytes: int | None = None) -> list[dict[str, Any]]:
    """Return the rows of a run's metrics: numbers by name, including `step`. Empty if there are none yet.

    Damaged rows are skipped with one warning, which names the first of them.

    Args:
        run_folder: the run folder.
        last_bytes: read only the rows in this many bytes at the end of the file; None to read all rows.
    """
    return _as_maps(read_json_rows(run_folder / METRICS, _MetricRow, last_bytes=last_bytes))


def _as_maps(rows: Sequence[_MetricRow]) -> list[dict[str, Any]]:
    return [{"step": row.step, **(row.model_extra or {})} for row in rows]


class JsonLinesTracker(Tracker):
    """Append one JSON object per row, with the key `step`, to `metrics.jsonl` in the run folder."""

    def __init__(self, config: ComponentConfig, run_folder: Path) -> None:
        super().__init__(config, run_folder)
        self.path = run_folder / METRICS
        self._file = self.path.open("a", encoding="utf-8")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append and flush a row, so that readers can see it immediately and it survives a crash."""
        with names_path(self.path):
            self._file.write(json.dumps({"step": step, **metrics}) + "\n")
            self._file.flush()

    def rewind(self, step: int) -> None:
        """Drop rows after `step` and damaged rows.

        Raises:
            OSError: the file cannot be read or written; it is left unchanged.
        """
        self._file.close()
        with names_path(self.path):
            rows = load_json_rows(self.path, _MetricRow)
        kept = [row for row in _as_maps(rows) if row["step"] <= step]
        with atomic_write(self.path) as file:
            file.write("".join(json.dumps(row) + "\n" for row in kept).encode())
        self._file = self.path.open("a", encoding="utf-8")

    def close(self) -> None:
        """Close the file."""
        with names_path(self.path):
            self._file.close()
