"""What a cell has measured: `result.json` in its folder, which is there once the cell is finished."""

from __future__ import annotations

import json
import os
import platform
import shutil
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from kdcore.data.staging import whole_file
from kdcore.errors import DataError
from kdcore.evaluation.cells import Cell, TaskData
from kdcore.evaluation.results import Row, relative
from kdcore.evaluation.subjects import Subject
from kdcore.tasks.metrics import metrics_of
from kdcore.trackers.jsonl import read_metrics

RESULT = "result.json"
PREDICTIONS = "predictions"
_PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers", "numpy", "scikit-learn", "scipy")
_HEAVY = ("checkpoints", "exports")

Outcome = dict[str, Any]


def read_outcome(folder: Path) -> Outcome | None:
    """What a cell has measured; None if it is not finished."""
    try:
        outcome: Outcome = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return outcome if "measured" in outcome or "skipped" in outcome else None


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """Write what a cell has measured, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    whole = {"versions": versions(), **outcome, "finished": finished}
    with whole_file(folder / RESULT) as file:
        file.write(json.dumps(whole, indent=1).encode() + b"\n")


def versions() -> dict[str, str]:
    """Python and the packages that decide results."""
    found = {"python": platform.python_version()}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        if name in _PACKAGES or name.startswith("kdcore"):
            found[name] = distribution.version
    return dict(sorted(found.items()))


def collect_finetuning(folder: Path, known: TaskData) -> None:
    """Score the predictions of a finished fine-tuning, and keep what repeats and explains it, not the weights.

    Raises:
        DataError: its predictions cannot be read.
    """
    measured = [
        {"metric": metric, "value": value, "higher_is_better": True, "split": part, "examples": examples}
        for part, (outputs, labels, examples) in _predictions(folder / PREDICTIONS, known).items()
        for metric, value in metrics_of(outputs, labels).items()
    ]
    if not measured:
        raise DataError("the fine-tuning has written no predictions of texts with labels", where=str(folder))
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    outcome = {"measured": measured, "seconds": _seconds(folder)}
    write_outcome(folder, {**outcome, "versions": {**versions(), **environment.get("packages", {})}})
    for name in _HEAVY:
        shutil.rmtree(folder / name, ignore_errors=True)


def rows_of(cell: Cell, outcome: Outcome, known: TaskData | None, suite: tuple[str, str], folder: Path) -> list[Row]:
    """Result rows of a finished cell.

    Args:
        cell: the cell.
        outcome: what it has measured.
        known: what is known of its task, if it has one.
        suite: name of the suite, and its fingerprint.
        folder: of the evaluation.
    """
    subject = cell.subject
    return [
        Row(
            model=subject.name,
            role=subject.role,
            source=place_of(subject, folder),
            model_sha256=subject.sha256,
            run=relative(subject.run, folder) if subject.run is not None else None,
            export=subject.export,
            share=subject.share,
            suite=suite[0],
            suite_sha256=suite[1],
            cell=cell.id,
            kind=cell.kind,
            task=cell.task,
            split=one["split"],
            metric=one["metric"],
            main=known is None or one["metric"] == known.task.main_metric,
            value=float(one["value"]),
            higher_is_better=one["higher_is_better"],
            chance=known.majority.get(one["split"]) if known is not None else None,
            examples=one["examples"],
            learning_rate=cell.learning_rate,
            batch_size=cell.batch_size,
            seed=cell.seed,
            seconds=float(outcome.get("seconds", 0.0)),
            data=cell.data,
            labels=",".join(known.task.data.classes) if known is not None else None,
            recipe=json.dumps(cell.settings, sort_keys=True),
            versions=json.dumps(outcome.get("versions", {}), sort_keys=True),
            device=str(outcome.get("device", "")),
            finished=str(outcome.get("finished", "")),
        )
        for one in outcome.get("measured", ())
    ]


def place_of(subject: Subject, folder: Path) -> str:
    """Where a model is, as rows hold it: relative to the evaluation's folder, or its name on a hub."""
    return relative(subject.given, folder) if os.path.isabs(subject.given) else subject.given


def _predictions(folder: Path, known: TaskData) -> dict[str, tuple[np.ndarray, np.ndarray, int]]:
    """Outputs (n, C) and labels (n,) of every part whose labels are known."""
    from pyarrow import parquet

    found = {}
    number = {label: index for index, label in enumerate(known.task.data.classes)}
    for path in sorted(folder.glob("*.parquet")):
        table = parquet.read_table(path)
        if "label" in table.column_names:
            labels = table.column("label").to_pylist()
            values = np.array([number[label] for label in labels]) if number else np.array(labels, dtype=np.float64)
            found[path.stem] = (np.array(table.column("outputs").to_pylist(), dtype=np.float64), values, len(labels))
    return found


def _seconds(folder: Path) -> float:
    """Seconds of training by the run's own clock."""
    return max((float(row.get("seconds", 0.0)) for row in read_metrics(folder)), default=0.0)
