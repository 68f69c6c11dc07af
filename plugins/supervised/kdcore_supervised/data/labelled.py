"""Labelled texts: define the keys that locate them, and read their train, validation and test parts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from kdcore_preparation import RecordMistakes, RecordTable, clean_text, read_records, table_files
from pydantic import BeforeValidator, Field, model_validator

from kdcore import ComponentConfig, DataError, PathOrHubName, PathString
from kdcore_supervised.data.glue import GLUE, GlueData, GlueTask, glue_folder, read_glue
from kdcore_supervised.data.labelled_datasets import HuggingFaceData, load_splits
from kdcore_supervised.data.labelled_tables import (
    QUOTES_HINT,
    ClassNumbers,
    Quoting,
    column_of_texts,
    count_empty,
    label_as_text,
    merged,
)
from kdcore_supervised.data.splitting import SplitFractions
from kdcore_supervised.metrics import (
    CLASS_METRICS,
    LABEL_SET_METRICS,
    NUMBER_METRICS,
    Metric,
    constant_scores,
    metrics_of,
)

if TYPE_CHECKING:
    from pyarrow import Table

SPLITS = ("train", "validation", "test")
_LABELS_KEY = "task.data.labels"
_NO_LABEL = ("", "-1")  # the library datasets marks missing labels by -1

Label = Annotated[
    str, BeforeValidator(lambda value: label_as_text(value) if isinstance(value, int | float | str) else value)
]


class LabelledData(ComponentConfig):
    """Texts with labels from files, GLUE's folders or the library `datasets`."""

    task: ClassVar[str] = "sequence_classification"
    """Name of the task that trains on this data."""

    train: PathString | None = Field(None, description="File, folder or glob: csv, tsv, jsonl or parquet.")
    validation: PathString | None = Field(None, description="Validation files, in the same format as `train`.")
    test: PathString | None = Field(None, description="Test files, in the same format; labels may be missing.")
    glue: GlueData | None = None
    huggingface: HuggingFaceData | None = None
    split: SplitFractions | None = Field(
        None, description="Fractions of `train` for validation and testing, chosen by a hash of the text."
    )
    quoting: Quoting | None = Field(
        None, description="`none`: quotes in csv files are text, and every line is a record; default: csv is quoted."
    )
    text: str | Annotated[list[str], Field(min_length=1, max_length=2)] | None = Field(
        None, description="Column of the text, or both columns of a pair."
    )
    label: str | None = Field(None, description="Column of the label.")
    id: str | None = Field(None, description="Column of record names; default: the record's number in the file.")
    labels: Annotated[list[Label], Field(min_length=2)] | None = Field(
        None, description="The classes as spelled in the files, in the order of the model's outputs."
    )
    regression: bool = Field(False, description="Whether labels are numbers instead of classes.")
    multi_label: bool = Field(
        False, description="Whether each text has a list of labels; needs jsonl, parquet or `huggingface`."
    )
    tokenizer: PathOrHubName | None = Field(
        None, description="Default: the tokenizer of the folder that the student starts from, or the teacher's."
    )
    max_length: int = Field(
        128, ge=4, description="Maximum number of tokens, including special tokens; longer sequences are truncated."
    )

    @model_validator(mode="after")
    def _one_source(self) -> LabelledData:
        sources = {"train": self.train, "glue": self.glue, "huggingface": self.huggingface}
        given = [name for name, value in sources.items() if value is not None]
        if len(given) != 1:
            raise ValueError("needs one of `train` (a file), `glue` and `huggingface`")
        columns = {"text": self.text, "label": self.label}
        if self.glue is not None:
            own = {**columns, "id": self.id, "labels": self.labels, "regression": self.regression or None}
            own["multi_label"] = self.multi_label or None
            known = [name for name, value in own.items() if value is not None]
            if known:
                raise ValueError(f"`{known[0]}` is defined by GLUE's task: remove it")
        else:
            missing = [name for name, value in columns.items() if value is None]
            if missing:
                raise ValueError(f"needs `{missing[0]}`, the name of a column")
            if (self.labels is None) != self.regression:
                raise ValueError("needs either `labels` (the classes in order) or `regression: true`")
            if self.labels is not None and len(set(self.labels)) < len(self.labels):
                raise ValueError("`labels` names a class twice")
        if self.multi_label and self.regression:
            raise ValueError("`multi_label` and `regression` are mutually exclusive")
        if self.train is None and (self.validation is not None or self.test is not None):
            raise ValueError("`validation` and `test` are files and can be used only with `train`")
        if self.split is not None and (self.validation is not None or self.test is not None or self.glue is not None):
            raise ValueError("`split` divides `train`: remove it if other splits are given")
        return self

    @property
    def glue_task(self) -> GlueTask | None:
        """Layout of GLUE's task; None for other data."""
        return None if self.glue is None else GLUE[self.glue.task]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of the outputs; empty for regression."""
        return self.glue_task.labels if self.glue_task else tuple(self.labels or ())

    def read(self, report: Counter[str]) -> list[LabelledTexts]:
        """Read all parts, as `read_labelled` does."""
        return read_labelled(self, report)

    def identity(self) -> str:
        """Return the settings that affect training besides texts, tokenizer and length."""
        return repr((self.classes, self.regression))

    def stored_scores(self, predictions: Table) -> dict[str, float]:
        """Score predictions in the form in which the task stores them in Parquet; empty without labels."""
        if "label" not in predictions.column_names:
            return {}
        outputs = np.array(predictions.column("outputs").to_pylist(), dtype=np.float64)
        labels, number = predictions.column("label").to_pylist(), {name: one for one, name in enumerate(self.classes)}
        if self.multi_label:
            sets = [set(map(label_as_text, own)) for own in labels]
            values = np.array([[name in own for name in number] for own in sets], dtype=np.float32)
        else:
            values = np.array(
                [number[label_as_text(one)] for one in labels] if number else labels,
                dtype=None if number else np.float64,
            )
        return {str(name): value for name, value in metrics_of(outputs, values).items()}

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Metrics for the kind of labels, the default first."""
        if self.multi_label:
            return LABEL_SET_METRICS
        return CLASS_METRICS if self.classes else NUMBER_METRICS

    @property
    def kind(self) -> str:
        """The kind of labels, for messages."""
        return "lists of classes" if self.multi_label else "classes" if self.classes else "numbers"

    @property
    def main_metric(self) -> str:
        """The metric of the GLUE task, or the default for the kind of labels."""
        return self.glue_task.metric if self.glue_task else self.metrics[0]

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the text, or of both texts of a pair."""
        if self.glue_task:
            return self.glue_task.text
        return (self.text,) if isinstance(self.text, str) else tuple(self.text or ())


@dataclass(frozen=True)
class LabelledTexts:
    """One part of labelled texts or pairs of texts.

    Attributes:
        name: name of the part, such as `validation_mismatched`.
        ids: one name per record.
        texts: one list of texts, or two for pairs; cleaned by `kdcore_preparation.clean_text`.
        labels: (n,) int64 classes or float32 numbers; for multiple labels per text, (n, C) float32 with 1 for each
            label of a text and 0 otherwise; None for unlabelled texts.
    """

    name: str
    ids: list[str]
    texts: tuple[list[str], ...]
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def labelled(self) -> bool:
        """Whether the texts have labels."""
        return self.labels is not None

    def baselines(self) -> dict[str, float]:
        """Return the scores of the best predictions that ignore the text; empty for numbers or without labels."""
        return {} if self.labels is None else constant_scores(self.labels)

    def content(self) -> Iterator[bytes]:
        """Yield the bytes that identify texts and labels."""
        yield repr((self.name, len(self))).encode()
        for text in self.texts:
            yield "\0".join(text).encode("utf-8", errors="replace")
        yield b"" if self.labels is None else self.labels.tobytes()

    def select(self, chosen: np.ndarray, name: str) -> LabelledTexts:
        """Return the records at the indices `chosen` (m,) as a part called `name`."""
        texts = tuple([column[index] for index in chosen] for column in self.texts)
        labels = None if self.labels is None else self.labels[chosen]
        return LabelledTexts(name, [self.ids[index] for index in chosen], texts, labels)


def read_labelled(data: LabelledData, report: Counter[str]) -> list[LabelledTexts]:
    """Read all parts: `train` first, then the parts whose names begin with `validation` and with `test`.

    Repairs and irregularities are counted in `report`.

    Raises:
        DataError: files or columns are missing, a label is not among the classes, or a part is empty.
    """
    if data.glue is not None:
        parts = _read_glue(data, data.glue, report)
    elif data.huggingface is not None:
        parts = _read_huggingface(data, data.huggingface, report)
    else:
        parts = [
            _labelled(data, table, split, report)
            for split in SPLITS
            if (table := _read_files(data, split, report)) is not None
        ]
    if data.split is not None:
        divided = data.split.divide(zip(*parts[0].texts, strict=True))
        parts = [parts[0].select(chosen, name) for name, chosen in divided.items()]
    for part in parts:
        if not len(part):
            raise DataError(
                f"`{part.name}` contains no texts",
                key="task.data",
                hint="increase the fractions under `split`" if data.split else "name files that contain records",
            )
    return parts


def overlap(parts: Sequence[LabelledTexts], other: str) -> tuple[int, str | None, int]:
    """Count the texts and ids of parts whose names begin with `other` that are also in the part `train`.

    Returns:
        The number of shared texts, the first of them, and the number of shared ids. The latter is meaningful only if a
        column contains ids; otherwise ids are record numbers.
    """
    train = next(part for part in parts if part.name == "train")
    texts, ids = set(zip(*train.texts, strict=True)), set(train.ids)
    others = [part for part in parts if part.name.startswith(other)]
    same = [text for part in others for text in zip(*part.texts, strict=True) if text in texts]
    return len(same), " / ".join(same[0]) if same else None, sum(one in ids for part in others for one in part.ids)


def _read_files(data: LabelledData, split: str, report: Counter[str]) -> RecordTable | None:
    path = getattr(data, split)
    if path is None:
        return None
    label, unlabelled = str(data.label), split == "test"
    needed = [*data.columns, *([] if unlabelled else [label]), *([data.id] if data.id else [])]
    labels = None if data.regression else data.classes
    try:
        files = table_files(path)
        report.update(files.left_out)
        tables = [
            read_records(
                file,
                needed,
                report,
                label=label,
                labels=labels,
                quoted=data.quoting is None,
                quotes_hint=QUOTES_HINT,
            )
            for file in files.values()
        ]
        return merged(tables, path)
    except DataError as error:
        raise DataError(
            replace(problem, key=problem.key or f"task.data.{split}") for problem in error.problems
        ) from error


def _read_glue(data: LabelledData, glue: GlueData, report: Counter[str]) -> list[LabelledTexts]:
    task, folder = GLUE[glue.task], glue_folder(glue.folder, glue.task)
    parts = [_labelled(data, read_glue(folder / task.train, glue.task, "train", report), "train", report)]
    for name, file in task.validation:
        parts.append(_labelled(data, read_glue(folder / file, glue.task, name, report), name, report))
    for name, file in task.test:
        if (folder / file).is_file():
            parts.append(_labelled(data, read_glue(folder / file, glue.task, name, report), name, report))
    return parts


def _read_huggingface(data: LabelledData, source: HuggingFaceData, report: Counter[str]) -> list[LabelledTexts]:
    needed = [*data.columns, *([data.id] if data.id else [])]
    tables = load_splits(source, needed, str(data.label), data.classes, only_train=data.split is not None)
    return [_labelled(data, table, name, report) for name, table in tables.items()]


def _labelled(data: LabelledData, table: RecordTable, name: str, report: Counter[str]) -> LabelledTexts:
    """Convert the records of a table to clean texts with labels."""
    column = data.glue_task.label if data.glue_task else str(data.label)
    texts = tuple([clean_text(text, report) for text in column_of_texts(table, name)] for name in data.columns)
    for column_texts in texts:
        count_empty(column_texts, report)
    key = "id" if data.glue_task else data.id
    ids = list(map(str, table.columns[key] if key else range(len(table))))
    labels = None
    if column in table.columns and data.multi_label:
        if not (name.startswith("test") and all(value is None for value in table.columns[column])):
            labels = _label_sets(data, table, report)
    elif column in table.columns:
        values = [label_as_text(value) for value in table.columns[column]]
        if not (name.startswith("test") and all(value in _NO_LABEL for value in values)):
            labels = _classes(data, table, values) if data.classes else _numbers(table, values)
    return LabelledTexts(name, ids, texts, labels)


def _classes(data: LabelledData, table: RecordTable, values: Sequence[str]) -> np.ndarray:
    written = (data.glue_task.values if data.glue_task else ()) or data.classes
    number, mistakes = ClassNumbers(written), RecordMistakes(table.where)
    classes = [number.get(value) for value in values]
    for record, (value, index) in enumerate(zip(values, classes, strict=True)):
        if index is None:
            shown = f"is labelled {value!r}" if value else "has no label"
            mistakes.add(table.place(record), shown)
    mistakes.raise_if_any(
        key=_LABELS_KEY, allowed=list(written), hint="add the label to `task.data.labels`, or repair the file"
    )
    return np.array(classes, dtype=np.int64)


def _label_sets(data: LabelledData, table: RecordTable, report: Counter[str]) -> np.ndarray:
    number = ClassNumbers(data.classes)
    found = np.zeros((len(table), len(data.classes)), dtype=np.float32)
    unknown, mistakes = RecordMistakes(table.where), RecordMistakes(table.where)
    for record, value in enumerate(table.columns[str(data.label)]):
        place = table.place(record)
        if not isinstance(value, list):
            mistakes.add(place, f"has no list of labels (found {value!r})")
            continue
        labels = [label_as_text(one) for one in value]
        if len(set(labels)) < len(labels):
            report["labels stated twice"] += len(labels) - len(set(labels))
        for label in labels:
            if (index := number.get(label)) is None:
                unknown.add(place, f"has the label {label!r}")
            else:
                found[record, index] = 1.0
    mistakes.raise_if_any(
        key="task.data.label", hint="`multi_label: true` needs lists, even for one label or none: use jsonl or parquet"
    )
    unknown.raise_if_any(
        key=_LABELS_KEY, allowed=data.classes, hint="add the label to `task.data.labels`, or repair the file"
    )
    return found


def _numbers(table: RecordTable, values: Sequence[str]) -> np.ndarray:
    numbers, mistakes = [], RecordMistakes(table.where)
    for record, value in enumerate(values):
        try:
            numbers.append(float(value))
        except ValueError:
            numbers.append(math.nan)
        if not math.isfinite(numbers[-1]):
            mistakes.add(table.place(record), f"has a label that is not a number (found {value!r})")
    mistakes.raise_if_any(
        key="task.data.label", hint="`regression: true` needs labels that are numbers; for classes list `labels`"
    )
    return np.array(numbers, dtype=np.float32)
