"""GLUE's folders (Wang et al. 2019) in the layout of its download.

Layouts, label values and the format of submissions follow the benchmark's documentation and widely used readers; they
have not been compared with the download. The files of all tasks are tab-separated without quotes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kdcore_preparation import RecordTable, TableRow, decoded_lines, open_input, require_columns, split_records
from pydantic import Field

from kdcore import ComponentConfig, DataError, PathString

GlueName = Literal["cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli"]


class GlueData(ComponentConfig):
    """One of GLUE's tasks, in GLUE's own files."""

    folder: PathString = Field(description="GLUE's folder, or the task's folder.")
    task: GlueName = Field(description="Name of the task.")


@dataclass(frozen=True)
class GlueTask:
    """One of GLUE's tasks.

    Attributes:
        folder: name of its folder.
        text: columns of the text, or of both texts of a pair.
        label: column of the label.
        labels: names of the classes, in the order of a model's outputs; empty if labels are numbers.
        values: the values of the classes in the files; empty if the files contain their names.
        metric: the benchmark's metric, or the first of its two metrics.
        train: training file.
        validation: files by the name of their part.
        test: files by the name of their part.
        submission: name of the submission file of each part.
        index: column that numbers the rows of the test files.
    """

    folder: str
    text: tuple[str, ...]
    label: str
    labels: tuple[str, ...]
    metric: str
    submission: dict[str, str]
    values: tuple[str, ...] = ()
    train: str = "train.tsv"
    validation: tuple[tuple[str, str], ...] = (("validation", "dev.tsv"),)
    test: tuple[tuple[str, str], ...] = (("test", "test.tsv"),)
    index: str = "index"


_ZERO_ONE = ("0", "1")
GLUE: dict[GlueName, GlueTask] = {
    "cola": GlueTask(
        "CoLA", ("sentence",), "label", ("unacceptable", "acceptable"), "matthews", {"test": "CoLA.tsv"}, _ZERO_ONE
    ),
    "sst2": GlueTask(
        "SST-2", ("sentence",), "label", ("negative", "positive"), "accuracy", {"test": "SST-2.tsv"}, _ZERO_ONE
    ),
    "mrpc": GlueTask(
        "MRPC",
        ("#1 String", "#2 String"),
        "Quality",
        ("not_equivalent", "equivalent"),
        "f1",
        {"test": "MRPC.tsv"},
        _ZERO_ONE,
    ),
    "qqp": GlueTask(
        "QQP",
        ("question1", "question2"),
        "is_duplicate",
        ("not_duplicate", "duplicate"),
        "f1",
        {"test": "QQP.tsv"},
        _ZERO_ONE,
        index="id",
    ),
    "stsb": GlueTask("STS-B", ("sentence1", "sentence2"), "score", (), "pearson", {"test": "STS-B.tsv"}),
    "mnli": GlueTask(
        "MNLI",
        ("sentence1", "sentence2"),
        "gold_label",
        ("entailment", "neutral", "contradiction"),
        "accuracy",
        {"test": "MNLI-m.tsv", "test_mismatched": "MNLI-mm.tsv", "test_diagnostic": "AX.tsv"},
        validation=(("validation", "dev_matched.tsv"), ("validation_mismatched", "dev_mismatched.tsv")),
        test=(
            ("test", "test_matched.tsv"),
            ("test_mismatched", "test_mismatched.tsv"),
            ("test_diagnostic", "../AX/AX.tsv"),
            ("test_diagnostic", "../diagnostic/diagnostic.tsv"),
        ),
    ),
    "qnli": GlueTask(
        "QNLI", ("question", "sentence"), "label", ("entailment", "not_entailment"), "accuracy", {"test": "QNLI.tsv"}
    ),
    "rte": GlueTask(
        "RTE", ("sentence1", "sentence2"), "label", ("entailment", "not_entailment"), "accuracy", {"test": "RTE.tsv"}
    ),
    "wnli": GlueTask(
        "WNLI",
        ("sentence1", "sentence2"),
        "label",
        ("not_entailment", "entailment"),
        "accuracy",
        {"test": "WNLI.tsv"},
        _ZERO_ONE,
    ),
}
_COLA_COLUMNS = ["source", "label", "star", "sentence"]  # for train.tsv and dev.tsv of CoLA, which have no header
_NO_LABEL = ("", "-")  # a question pair without a label; a pair on which annotators did not agree


def glue_folder(folder: str, name: GlueName) -> Path:
    """Find the folder of a task: the given folder, or the one inside it with the task's name.

    Raises:
        DataError: neither folder contains the task's files.
    """
    task, given = GLUE[name], Path(folder)
    for place in (given / task.folder, given):
        if (place / task.train).is_file():
            return place
    raise DataError(
        f"the folder contains neither {task.train} nor {task.folder}/{task.train}",
        where=folder,
        key="task.data.glue.folder",
        hint=f"use GLUE's folder, or the folder of {task.folder}",
    )


def read_glue(path: Path, name: GlueName, part: str, report: Counter[str]) -> RecordTable:
    """Read the texts of a task's file, with labels and row numbers if the file has them.

    Lines of train and validation files without a text or a label are skipped. Lines of test files are kept even if they
    are incomplete, because a submission needs every line. Both are counted in `report`.

    Raises:
        DataError: the file lacks a column of this task.
    """
    task, is_test = GLUE[name], part.startswith("test")
    needed = list(task.text) if is_test else [*task.text, task.label]
    columns: dict[str, list[Any]] = {column: [] for column in needed}
    lines: list[int] = []
    numbers: list[str] = []
    with open_input(path) as stream:
        records = split_records(decoded_lines(stream, report, str(path)), "\t")
        header = _COLA_COLUMNS
        if name != "cola" or is_test:
            header = [column.strip() for column in next(records, TableRow(1, [])).values]
        require_columns(str(path), header, needed)
        places = [header.index(column) for column in needed]
        number = header.index(task.index) if task.index in header else None
        for line, values, _ in records:
            record = [field.strip() for field in values]
            whole = len(record) > max(places) and (is_test or record[places[-1]] not in _NO_LABEL)
            if not whole:
                report["broken lines kept" if is_test else "lines without a text or a label left out"] += 1
                if not is_test:
                    continue
            for column, place in zip(needed, places, strict=True):
                columns[column].append(record[place] if place < len(record) else "")
            numbers.append(record[number] if number is not None and is_test else str(len(lines)))
            lines.append(line)
    columns["id"] = numbers
    return RecordTable(str(path), "line", lines, columns)


def submission_rows(task: GlueTask, ids: Sequence[str], predictions: Sequence[Any]) -> str:
    """Format a submission with one row number and prediction per line; clip scores to the task's range, 0 to 5."""
    lines = ["index\tprediction"]
    for number, prediction in zip(ids, predictions, strict=True):
        if isinstance(prediction, str):
            shown = dict(zip(task.labels, task.values, strict=True))[prediction] if task.values else prediction
        else:
            shown = f"{min(5.0, max(0.0, float(prediction))):.3f}"
        lines.append(f"{number}\t{shown}")
    return "\n".join(lines) + "\n"
