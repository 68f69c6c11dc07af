"""The keys under `task.data`, and reading the texts that they name."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kdcore_preparation import DatasetSource, clean_text
from pydantic import Field, model_validator

from kdcore import ComponentConfig, DataError, PathString
from kdcore_embeddings.data.records import RecordMistakes, TextRecords, read_dataset, read_files


class TextDataset(DatasetSource):
    """A dataset of the library `datasets`; needs `pip install "kdcore-preparation[datasets]"`."""

    train: str = Field("train", description="Name of the split to train on.")
    held_out: str | None = Field(None, description="Name of the held-out split.")


class TextData(ComponentConfig):
    """Texts from files or the library `datasets`."""

    train: PathString | None = Field(
        None, description="File, folder or glob: txt (a text a line), csv, tsv, jsonl or parquet."
    )
    huggingface: TextDataset | None = None
    held_out: float | PathString = Field(
        0.0, description="Fraction of the texts that is held out, chosen by a hash of their content; or files."
    )
    text: str = Field("text", description="Column of the texts; ignored in txt files.")

    @model_validator(mode="after")
    def _one_source(self) -> TextData:
        if (self.train is None) == (self.huggingface is None):
            raise ValueError("needs either `train` (files) or `huggingface`")
        if isinstance(self.held_out, float) and not 0 <= self.held_out < 1:
            raise ValueError(f"`held_out` must be a fraction from 0 to 1 or name files, not {self.held_out:g}")
        if self.huggingface is not None and self.huggingface.held_out is not None and self.held_out != 0.0:
            raise ValueError("`held_out` and `huggingface.held_out` exclude each other")
        return self

    @property
    def where(self) -> str | None:
        """Name of the texts in messages."""
        return self.train if self.huggingface is None else self.huggingface.where


@dataclass(frozen=True)
class TextPart:
    """The texts of a split.

    Attributes:
        texts: cleaned, none of them empty, each of them once.
    """

    texts: list[str]

    def __len__(self) -> int:
        return len(self.texts)


def read_texts(data: TextData, report: Counter[str]) -> tuple[TextPart, TextPart]:
    """Read the texts to train on and the held-out ones.

    Empty texts and repetitions are left out and counted in `report`, and so are texts to train on that are held out,
    too.

    Raises:
        DataError: files or columns are missing, or nothing is left to train on.
    """
    train = list(_cleaned(_sources(data, report), data, report))
    if isinstance(data.held_out, str):
        held = list(_cleaned(read_files(data.held_out, (data.text,), report), data, report))
    elif data.huggingface is not None and data.huggingface.held_out is not None:
        records = read_dataset(data.huggingface, data.huggingface.held_out, (data.text,), "task.data.huggingface")
        held = list(_cleaned([records], data, report))
    else:
        held = [text for text in train if content_place(text) < data.held_out]
        train = [text for text in train if content_place(text) >= data.held_out]
    held = _once(held, set(), report, "repeated texts left out")
    train = _once(train, set(), report, "repeated texts left out")
    train = _once(train, set(held), report, "texts left out of training because they are held out")
    if not train:
        raise DataError(
            "contains no texts to train on",
            where=data.where,
            key="task.data",
            hint="decrease `held_out`, or name files that contain texts",
        )
    return TextPart(train), TextPart(held)


def content_place(content: str) -> float:
    """Map a content to a number from 0 to 1: pseudorandom, and equal for equal contents."""
    digest = hashlib.sha256(content.encode("utf-8", errors="replace")).digest()
    return int.from_bytes(digest[:8]) / 2**64


def _sources(data: TextData, report: Counter[str]) -> Iterator[TextRecords]:
    try:
        if data.train is not None:
            yield from read_files(data.train, (data.text,), report)
        elif data.huggingface is not None:
            yield read_dataset(data.huggingface, data.huggingface.train, (data.text,), "task.data.huggingface")
    except DataError as error:
        raise DataError(replace(problem, key=problem.key or "task.data.train") for problem in error.problems) from error


def _cleaned(sources: Any, data: TextData, report: Counter[str]) -> Iterator[str]:
    for records in sources:
        mistakes = RecordMistakes(records.where)
        for number, value in zip(records.numbers, records.columns[data.text], strict=True):
            if value is not None and not isinstance(value, str | int | float):
                kind = type(value).__name__
                mistakes.add(f"{records.unit} {number} has no text under `{data.text}` (found {kind})")
                continue
            text = "" if value is None else clean_text(str(value), report)
            if text:
                yield text
            else:
                report["empty texts left out"] += 1
        mistakes.raise_if_any("name a column of texts as `task.data.text`")


def _once(texts: Sequence[str], known: set[str], report: Counter[str], what: str) -> list[str]:
    kept = []
    for text in texts:
        if text in known:
            report[what] += 1
            continue
        kept.append(text)
        known.add(text)
    return kept
