"""Outcome of a trial: `result.json` in its folder, written once the trial is finished."""

from __future__ import annotations

import json
import os
import platform
import shutil
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from kdcore import DataError, atomic_write, read_environment, read_metrics
from kdcore_evaluation.run.evaluated_models import EvaluatedModel
from kdcore_evaluation.run.results import PREDICTIONS, ResultRow, relative
from kdcore_evaluation.run.trials import TaskData, Trial

RESULT = "result.json"
_PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers", "numpy", "scikit-learn", "scipy")
_HEAVY = ("checkpoints", "exports")

Outcome = dict[str, Any]


def read_outcome(folder: Path) -> Outcome | None:
    """Read the outcome of a trial; None if it is not finished."""
    try:
        outcome: Outcome = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return outcome if "measured" in outcome or "skipped" in outcome else None


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """Write the outcome of a trial atomically, after its `items`: tables of predictions or of values, by name."""
    from pyarrow import parquet

    items = folder / PREDICTIONS
    (items if "items" in outcome else folder).mkdir(parents=True, exist_ok=True)
    for name, table in outcome.get("items", {}).items():
        with atomic_write(items / f"{name}.parquet") as file:
            parquet.write_table(table, file)
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    stated = {key: value for key, value in outcome.items() if key != "items"}
    whole = {"versions": versions(), **stated, "finished": finished}
    with atomic_write(folder / RESULT) as file:
        file.write(json.dumps(whole, indent=1).encode() + b"\n")


def versions() -> dict[str, str]:
    """Return versions of Python and of the packages that affect results."""
    found = {"python": platform.python_version()}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"] or ""  # an interrupted removal may leave none
        if name in _PACKAGES or name.startswith("kdcore"):
            found[name] = distribution.version
    return dict(sorted(found.items()))


def collect_finetuning(folder: Path, known: TaskData) -> None:
    """Score the predictions of a finished fine-tuning run and remove its weights; keep recipe, metrics and log.

    Raises:
        DataError: the predictions cannot be read.
    """
    from pyarrow import parquet

    measured = [
        {"metric": metric, "value": value, "higher_is_better": True, "split": path.stem, "examples": table.num_rows}
        for path in sorted((folder / PREDICTIONS).glob("*.parquet"))
        for table in [parquet.read_table(path)]
        for metric, value in known.task.data.stored_scores(table).items()
    ]
    if not measured:
        raise DataError("the fine-tuning run wrote no predictions for labelled texts", where=str(folder))
    outcome = {"measured": measured, "seconds": _seconds(folder)}
    write_outcome(folder, {**outcome, "versions": {**versions(), **read_environment(folder).packages}})
    for name in _HEAVY:
        shutil.rmtree(folder / name, ignore_errors=True)


def rows_of(
    trial: Trial, outcome: Outcome, known: TaskData | None, suite: tuple[str, str], folder: Path
) -> list[ResultRow]:
    """Convert the outcome of a finished trial to result rows.

    Args:
        trial: the trial.
        outcome: the trial's outcome.
        known: the data of the trial's task; None for probes without a task.
        suite: name and fingerprint of the suite.
        folder: folder of the evaluation.
    """
    model = trial.model
    return [
        ResultRow(
            model=model.name,
            role=model.role,
            source=place_of(model, folder),
            model_sha256=model.sha256,
            run=relative(model.run, folder) if model.run is not None else None,
            export=model.export,
            share=model.share,
            suite=suite[0],
            suite_sha256=suite[1],
            cell=trial.id,
            kind=trial.kind,
            task=trial.task,
            split=one["split"],
            metric=one["metric"],
            main=known is None or one["metric"] == known.task.main_metric,
            value=float(one["value"]),
            higher_is_better=one["higher_is_better"],
            chance=_chance(known, one["split"], one["metric"]) if known is not None else None,
            examples=one["examples"],
            learning_rate=trial.learning_rate,
            batch_size=trial.batch_size,
            seed=trial.seed,
            seconds=float(outcome.get("seconds", 0.0)),
            data=trial.data,
            labels=",".join(known.task.data.classes) if known is not None else None,
            recipe=json.dumps(trial.settings, sort_keys=True),
            versions=json.dumps(outcome.get("versions", {}), sort_keys=True),
            device=str(outcome.get("device", "")),
            finished=str(outcome.get("finished", "")),
        )
        for one in outcome.get("measured", ())
    ]


def _chance(known: TaskData, split: str, metric: str) -> float | None:
    """Return the score of predictions that ignore the text; for metrics without a baseline, return their accuracy."""
    own = known.baselines.get(split, {})
    return own.get(metric, own.get("accuracy"))


def place_of(model: EvaluatedModel, folder: Path) -> str:
    """Return a model's location as stored in rows: relative to the evaluation's folder, or a hub name."""
    return relative(model.given, folder) if os.path.isabs(model.given) else model.given


def _seconds(folder: Path) -> float:
    """Return seconds of training as logged by the run."""
    return max((float(row.get("seconds", 0.0)) for row in read_metrics(folder)), default=0.0)
