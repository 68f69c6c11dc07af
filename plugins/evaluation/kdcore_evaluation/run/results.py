"""Result rows: one per model, task, trial and metric, in Parquet and as lines of JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

from pydantic import AfterValidator, TypeAdapter

from kdcore import atomic_write, read_json_rows

JSON_LINES = "results.jsonl"
PARQUET = "results.parquet"
TRIALS_FOLDER = "cells"
"""Folder of trials in an evaluation folder; stored evaluations use this name."""

PREDICTIONS = "predictions"
"""Folder of predictions of a run or a trial."""


def _versions(text: str) -> str:
    TypeAdapter(dict[str, str]).validate_json(text)
    return text


def _path(text: str) -> str:
    if "\0" in text:
        raise ValueError("a path without NUL")
    return text


PathText = Annotated[str, AfterValidator(_path)]
Versions = Annotated[str, AfterValidator(_versions)]


@dataclass(frozen=True)
class ResultRow:
    """One measured number and everything needed to reproduce it.

    Attributes:
        model: name of the model in tables.
        role: `student`, `initial`, `teacher`, `random` or `model`.
        source: location of the weights: relative to the folder of the results, or a hub name.
        model_sha256: hash of weights, configuration and tokenizer.
        run: folder of the run that exported the model, relative to the folder of the results.
        export: name of the run's export.
        share: fraction of the run's budget at export; 1 at the end.
        suite: name of the suite.
        suite_sha256: hash of the suite's resolved content.
        cell: id of the trial.
        kind: `finetune`, or the name of a probe.
        task: label of the task; None for probes without one.
        split: part of the labelled texts, such as `validation` or `test`; `held_out` for text.
        metric: name of the metric.
        main: whether models are compared by this metric on this task.
        value: the number.
        higher_is_better: whether higher values are better.
        chance: score of the best predictions that ignore the text, such as the fraction of the most frequent class.
        examples: number of texts or sequences.
        learning_rate, batch_size, seed: hyperparameters of the fine-tuning run.
        seconds: duration of the trial.
        data: fingerprint of the data.
        labels: classes in the order of the outputs, joined by commas; empty for numbers.
        recipe: the complete recipe of the fine-tuning run, or the settings of the probe, as JSON.
        versions: versions of Python and packages, as JSON.
        device: device of the measurement.
        finished: time of completion, in UTC.
    """

    model: str
    role: str
    source: PathText
    model_sha256: str
    run: PathText | None
    export: str | None
    share: float | None
    suite: str
    suite_sha256: str
    cell: str
    kind: str
    task: str | None
    split: str | None
    metric: str
    main: bool
    value: float
    higher_is_better: bool
    chance: float | None
    examples: int | None
    learning_rate: float | None
    batch_size: int | None
    seed: int | None
    seconds: float
    data: str | None
    labels: str | None
    recipe: str
    versions: Versions
    device: str
    finished: str

    @property
    def identity(self) -> tuple[str, str, str | None, str]:
        """Identity of the model: role, name, run (or source) and fingerprint."""
        return (self.role, self.model, self.run or self.source, self.model_sha256)


def write_rows(folder: Path, rows: Sequence[ResultRow]) -> None:
    """Write both files, each atomically."""
    import pyarrow
    from pyarrow import parquet

    lines = "".join(json.dumps(asdict(row)) + "\n" for row in rows)
    with atomic_write(folder / JSON_LINES) as file:
        file.write(lines.encode())
    columns = {field.name: [getattr(row, field.name) for row in rows] for field in fields(ResultRow)}
    schema = pyarrow.schema([(name, _arrow_type(hint)) for name, hint in get_type_hints(ResultRow).items()])
    with atomic_write(folder / PARQUET) as file:
        parquet.write_table(pyarrow.table(columns, schema=schema), file)


def read_rows(folder: Path) -> list[ResultRow]:
    """Read the rows of an evaluation's folder; empty if there are no results yet.

    Damaged rows are skipped with one warning; `kdcore evaluate` writes them again from the finished trials.
    """
    return read_json_rows(folder / JSON_LINES, ResultRow)


def merged_rows(
    before: Iterable[ResultRow], now: Sequence[ResultRow], measured: Iterable[tuple[str, str]]
) -> list[ResultRow]:
    """Combine earlier rows of other models with new rows.

    Args:
        before: the earlier rows.
        now: rows of the models of this evaluation.
        measured: role and source of each model of this evaluation.
    """
    again = set(measured)
    return [*(row for row in before if (row.role, row.source) not in again), *now]


def relative(path: str | Path, folder: Path) -> str:
    """Return a path relative to the evaluation, so that evaluations and runs can be moved together."""
    return Path(os.path.relpath(path, folder)).as_posix()


def _arrow_type(hint: Any) -> Any:
    import pyarrow

    types: Mapping[type, Any] = {
        str: pyarrow.string(),
        float: pyarrow.float64(),
        int: pyarrow.int64(),
        bool: pyarrow.bool_(),
    }
    plain = [one for one in get_args(hint) if one is not type(None)]
    return types[plain[0] if plain else hint]
