"""Metrics as lines of JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from kdcore.recipe.schema import ComponentConfig
from kdcore.trackers.base import Tracker


class JsonLinesTracker(Tracker):
    """Appends one JSON object a row to `metrics.jsonl` in the run folder, with the key `step` in each."""

    def __init__(self, config: ComponentConfig, run_folder: Path) -> None:
        super().__init__(config, run_folder)
        self.path = run_folder / "metrics.jsonl"
        self._file = self.path.open("a", encoding="utf-8")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append a row at once, so that it can be followed and survives a crash."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()

    def rewind(self, step: int) -> None:
        """Drop rows beyond `step`, and a last row that was cut off."""
        self._file.close()
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except ValueError:  # the process died while it wrote this line
                continue
        staging = self.path.with_suffix(".staging")
        staging.write_text("".join(kept), encoding="utf-8")
        os.replace(staging, self.path)
        self._file = self.path.open("a", encoding="utf-8")

    def close(self) -> None:
        """Close the file."""
        self._file.close()
