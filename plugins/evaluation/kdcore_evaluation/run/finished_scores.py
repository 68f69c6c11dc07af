"""Scores of finished runs on their own labelled texts, computed from their stored predictions."""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcore_supervised import LabelledData, TaggedData
from pydantic import ValidationError

from kdcore_evaluation.run.compared_runs import ComparedRun, short_name
from kdcore_evaluation.run.item_scores import StoredPredictions, digest_of_texts, with_composed_labels
from kdcore_evaluation.run.results import PREDICTIONS
from kdcore_evaluation.run.scores import Column, Measurement

if TYPE_CHECKING:
    from pyarrow import Table

KIND = "predictions"
"""Kind of the columns of these scores."""

PARAMETERS = Column("cost", "", "", "", "all_parameters", False)
ENCODER_PARAMETERS = Column("cost", "", "", "", "parameters", False)
RELATIVE_SIZE = Column("cost", "", "", "", "relative_size", False)
SPEED = Column("cost", "", "", "", "sequences_per_second", True)
RELATIVE_SPEED = Column("cost", "", "", "", "relative_speed", True)

SCORES = "scores.json"
TEACHER_PREDICTIONS = "predictions-of-teacher"
"""Folder in a run folder with predictions of a teacher that is not a kdcore run, written by
`kdcore summary --predict-with-teacher`."""

_DATA: dict[str, type[LabelledData] | type[TaggedData]] = {one.task: one for one in (LabelledData, TaggedData)}
_OUTSIDE = "O"


@dataclass(frozen=True)
class FinishedPredictions:
    """Predictions of a run for the labelled texts of the split used for comparison.

    Attributes:
        data: the run's labelled data.
        metric: the metric that selected the student.
        folder: the folder of predictions.
        tables: the predictions by part, such as `test`; all are labelled.
        export: folder of the student that made the predictions.
    """

    data: LabelledData | TaggedData
    metric: str
    folder: Path
    tables: dict[str, Table]
    export: Path

    @property
    def split(self) -> str:
        """Return `test` if it has labels, otherwise `validation`."""
        return "test" if any(name.startswith("test") for name in self.tables) else "validation"

    @cached_property
    def texts(self) -> dict[str, str]:
        """Return a fingerprint of the texts of each part."""
        return {name: digest_of_texts(table) for name, table in self.tables.items()}

    def measurements(self, repetition: Hashable) -> list[Measurement]:
        """Return the score of each part, and the number of the student's parameters."""
        found = [
            Measurement(column, (repetition, None), self.data.stored_scores(table)[self.metric], stored)
            for column, table, stored in self._columns()
        ]
        size = parameters_of(self.export)
        return [*found, *([Measurement(PARAMETERS, (repetition, None), float(size))] if size else [])]

    def constant(self) -> tuple[str, list[Measurement]]:
        """Return the name and the scores of the best predictions that ignore the text."""
        name, found = "", []
        for column, table, _ in self._columns():
            name, score = _best_constant(self.data, self.metric, table)
            found.append(Measurement(column, (0, None), score))
        return name, found

    def validation_constant(self) -> tuple[str, float] | None:
        """Return the name and score of the best constant predictions for the validation texts; None without them."""
        table = self.tables.get("validation")
        return None if table is None else _best_constant(self.data, self.metric, table)

    def _columns(self) -> list[tuple[Column, Table, StoredPredictions]]:
        spans = isinstance(self.data, TaggedData)
        return [
            (
                Column(KIND, "", name.removeprefix(self.split).strip("_"), self.split, self.metric, True),
                table,
                StoredPredictions(self.folder / f"{name}.parquet", self.data.classes, spans),
            )
            for name, table in self.tables.items()
            if name.startswith(self.split)
        ]


def read_predictions(run: ComparedRun) -> FinishedPredictions | None:
    """Read the predictions of a run; None if its task has no labelled texts, or if they have not been predicted yet."""
    section = run.recipe.get("task", {})
    kind = _DATA.get(short_name("kdcore.tasks", str(section.get("name", ""))))
    if kind is None or not isinstance(section.get("data"), dict):
        return None
    try:
        data = kind.model_validate(section["data"])
    except ValidationError:
        return None
    return predictions_in(run.folder, data, section.get("metric") or data.main_metric)


def predictions_in(
    run: Path, data: LabelledData | TaggedData, metric: str, name: str = PREDICTIONS
) -> FinishedPredictions | None:
    """Read the predictions in a run folder for texts with the labels of `data`; None if there are none."""
    import pyarrow
    from pyarrow import parquet

    folder, tables = run / name, {}
    try:
        export = json.loads((folder / SCORES).read_text(encoding="utf-8"))["export"]
        for path in sorted(folder.glob("*.parquet")):
            table = with_composed_labels(parquet.read_table(path))
            if "label" in table.column_names and table.num_rows:
                data.stored_scores(table)
                tables[path.stem] = table
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException):
        return None
    return FinishedPredictions(data, metric, folder, tables, run / str(export)) if tables else None


def of_teacher(run: ComparedRun, student: FinishedPredictions) -> FinishedPredictions | None:
    """Read the predictions of a run's teacher for the same texts, from the teacher's own run or from this run.

    Returns:
        The predictions; None if there are none.
    """
    stated: Any = (run.recipe.get("teacher") or {}).get("path")
    if not isinstance(stated, str):
        return None
    path = (run.folder / stated).resolve()
    places = [(path.parent.parent, PREDICTIONS)] if path.parent.name == "exports" else []
    wanted = {name: texts for name, texts in student.texts.items() if name.startswith(student.split)}
    for place, name in (*places, (run.folder, TEACHER_PREDICTIONS)):
        found = predictions_in(place, student.data, student.metric, name)
        if found is not None and found.export.resolve() == path and wanted.items() <= found.texts.items():
            return found
    return None


def teacher_folder(run: ComparedRun) -> Path | None:
    """Return the folder of a run's only teacher; None if there is not exactly one."""
    path: Any = (run.recipe.get("teacher") or {}).get("path")
    return (run.folder / path).resolve() if isinstance(path, str) and (run.folder / path).is_dir() else None


def parameters_of(folder: Path) -> int:
    """Return the number of values in a model's safetensors files; 0 without such files."""
    return sum(prod(shape) for path in folder.glob("*.safetensors") for shape in _shapes(path))


def _shapes(path: Path) -> list[list[int]]:
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(size))
        return [tensor["shape"] for name, tensor in header.items() if name != "__metadata__"]
    except (OSError, ValueError, struct.error, MemoryError, OverflowError):
        return []


def _best_constant(data: LabelledData | TaggedData, metric: str, table: Table) -> tuple[str, float]:
    """Return the name and the score of predictions that ignore the text."""
    import pyarrow

    labels = table.column("label").to_pylist()
    if isinstance(data, TaggedData):
        nothing = pyarrow.array([[_OUTSIDE] * len(one) for one in labels])
        return "no spans", data.stored_scores(_with(table, "prediction", nothing))[metric]
    if not data.classes:
        return "constant number", data.stored_scores(_with(table, "outputs", pyarrow.array([[0.0]] * len(labels))))[
            metric
        ]
    flat = [name for one in labels for name in (one if data.multi_label else [one])]
    ranked = [name for name, _ in Counter(flat).most_common()]
    chosen = [ranked[:count] for count in range(1, len(ranked) + 1)] if data.multi_label else [ranked[:1]]
    scores = []
    for names in chosen:
        outputs = [1.0 if name in names else -1.0 for name in data.classes]
        scores.append(data.stored_scores(_with(table, "outputs", pyarrow.array([outputs] * len(labels))))[metric])
    return ("constant labels" if data.multi_label else "majority class"), max(scores, default=0.0)


def _with(table: Table, name: str, values: Any) -> Table:
    return table.set_column(table.column_names.index(name), name, values)
