"""Define the keys under `task.data`, and read the texts."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from kdcore_preparation import DatasetSource, RecordMistakes, RecordTable, clean_text
from numpy.typing import NDArray
from pydantic import Field, model_validator

from kdcore import ComponentConfig, DataError, PathString
from kdcore_embeddings.data.records import read_dataset, read_files

_LARGEST_SCORE = float(np.finfo(np.float32).max)
_DATASET_KEY = "task.data.huggingface"


class TextDataset(DatasetSource):
    """A dataset of the library `datasets`; needs `pip install "kdcore-preparation[datasets]"`."""

    train: str = Field("train", description="Name of the split to train on.")
    held_out: str | None = Field(None, description="Name of the held-out split.")


class TextData(ComponentConfig):
    """Texts from files or the library `datasets`."""

    train: PathString | None = Field(
        None, description="File, folder or glob: txt (one text per line), csv, tsv, jsonl or parquet."
    )
    huggingface: TextDataset | None = None
    held_out: float | PathString = Field(
        0.0, description="Fraction of the texts to hold out, chosen by a hash of their content; or held-out files."
    )
    text: str | None = Field(None, description="Column of the texts if they are not grouped; default: `text`.")
    translations: str | list[str] | None = Field(
        None,
        description="Columns of translations of the text. The student also reads these, and learns the teacher's "
        "embedding of the text for each of them.",
    )
    query: str | None = Field(None, description="Column of queries; a query and its documents form a group.")
    positive: str | None = Field(None, description="Column of the document that belongs to the query.")
    negatives: str | list[str] | None = Field(
        None,
        description="Column of lists of documents that do not belong to the query, or columns of single documents.",
    )
    num_negatives: int | None = Field(
        None, ge=1, description="Use the first N negatives of each group; default: one per column, or one per list."
    )
    scores: str | None = Field(
        None,
        description="Column of lists of scores to learn: the positive document's score, then the negatives' scores.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> TextData:
        if (self.train is None) == (self.huggingface is None):
            raise ValueError("needs either `train` (files) or `huggingface`")
        if isinstance(self.held_out, str) and not self.held_out.strip():
            raise ValueError("`held_out` is empty: it must be a fraction from 0 to 1 or name files")
        if isinstance(self.held_out, float) and not 0 <= self.held_out < 1:
            raise ValueError(f"`held_out` must be a fraction from 0 to 1 or name files, not {self.held_out:g}")
        if self.huggingface is not None and self.huggingface.held_out is not None and self.held_out != 0.0:
            raise ValueError("`held_out` and `huggingface.held_out` are mutually exclusive")
        if (self.query is None) != (self.positive is None):
            raise ValueError("`query` and `positive` must be set together")
        given = [name for name in ("negatives", "num_negatives", "scores") if getattr(self, name) is not None]
        if given and self.query is None:
            raise ValueError(f"`{given[0]}` needs `query` and `positive`")
        if self.query is not None and self.text is not None:
            raise ValueError("`text` and `query` are mutually exclusive")
        if self.query is not None and self.translations is not None:
            raise ValueError("`translations` and `query` are mutually exclusive")
        if (self.text or "text") in self.translation_columns:
            raise ValueError(f"`translations` contains the column of the texts, `{self.text or 'text'}`")
        if self.num_negatives is not None and self.negatives is None:
            raise ValueError("`num_negatives` needs `negatives`")
        if isinstance(self.negatives, list) and (self.num_negatives or 0) > len(self.negatives):
            raise ValueError(f"`num_negatives` is larger than the number of columns ({len(self.negatives)})")
        return self

    @property
    def width(self) -> int:
        """Number of texts per group; 1 if texts are not grouped."""
        if self.query is None:
            return 1
        if self.negatives is None:
            return 2
        usual = len(self.negatives) if isinstance(self.negatives, list) else 1
        return 2 + (self.num_negatives or usual)

    @property
    def translation_columns(self) -> tuple[str, ...]:
        """The columns of translations."""
        return (self.translations,) if isinstance(self.translations, str) else tuple(self.translations or ())

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read."""
        if self.query is None or self.positive is None:
            return (self.text or "text", *self.translation_columns)
        negatives = [self.negatives] if isinstance(self.negatives, str) else self.negatives or []
        return (self.query, self.positive, *negatives, *([] if self.scores is None else [self.scores]))

    @property
    def where(self) -> str | None:
        """Name of the texts in messages."""
        return self.train if self.huggingface is None else self.huggingface.where


@dataclass(frozen=True)
class TextGroup:
    """Related texts: a single text, or a query, its document and negatives.

    Attributes:
        texts: the cleaned texts, none of them empty; the query is the first, its document the second.
        scores: one score per document; empty without scores.
        source: the text that the teacher reads in place of a translation; None if the text is not a translation.
    """

    texts: tuple[str, ...]
    scores: tuple[float, ...] = ()
    source: str | None = None

    @property
    def key(self) -> str:
        """The text that decides whether the group is held out."""
        return self.texts[0] if self.source is None else self.source


@dataclass(frozen=True)
class TextPart:
    """The texts of a split.

    Attributes:
        texts: the texts of all groups, group by group.
        width: k, the number of texts per group; 1 if texts are not grouped.
        scores: (n, k - 1) scores of the documents; None without scores.
        sources: the texts that the teacher reads instead; None if there are no translations.
    """

    texts: list[str]
    width: int
    scores: NDArray[np.float32] | None
    sources: list[str] | None = None

    def __len__(self) -> int:
        return len(self.texts) // self.width

    @classmethod
    def of(cls, groups: Sequence[TextGroup], data: TextData) -> TextPart:
        """Concatenate groups."""
        scores = None
        if data.scores is not None:
            scores = np.array([group.scores for group in groups], np.float32).reshape(len(groups), data.width - 1)
        sources = None if data.translations is None else [group.key for group in groups]
        return cls([text for group in groups for text in group.texts], data.width, scores, sources)


def read_texts(data: TextData, report: Counter[str]) -> tuple[TextPart, TextPart]:
    """Read the training texts and the held-out texts.

    Empty texts, repetitions, groups without a positive document or with too few negatives, and unused negatives are
    left out and counted in `report`. The same applies to training texts and queries that are also held out.

    Raises:
        DataError: files or columns are missing, records are malformed, or nothing is left to train on.
    """
    train = list(_groups(_sources(data, report), data, report))
    if isinstance(data.held_out, str):
        held = list(
            _groups(_keyed(read_files(data.held_out, data.columns, report), "task.data.held_out"), data, report)
        )
    elif data.huggingface is not None and data.huggingface.held_out is not None:
        records = read_dataset(data.huggingface, data.huggingface.held_out, data.columns, _DATASET_KEY)
        held = list(_groups([records], data, report))
    else:
        held = [group for group in train if content_place(group.key) < data.held_out]
        train = [group for group in train if content_place(group.key) >= data.held_out]
    kind = "texts" if data.query is None else "groups"
    train, held = (_once(groups, report, f"repeated {kind} left out") for groups in (train, held))
    firsts = {text for group in held for text in (group.texts[0], group.key)}
    kept = [group for group in train if firsts.isdisjoint((group.texts[0], group.key))]
    report[f"{kind} left out of training because they are held out"] += len(train) - len(kept)
    if not kept:
        raise DataError(
            f"contains no {kind} to train on" + "".join(f"; {count} {what}" for what, count in report.items() if count),
            where=data.where,
            key="task.data",
            hint="decrease `held_out`, or name files that contain texts",
        )
    return TextPart.of(kept, data), TextPart.of(held, data)


def content_place(content: str) -> float:
    """Map content to a pseudorandom number from 0 to 1; equal content always has the same number."""
    digest = hashlib.sha256(content.encode("utf-8", errors="replace")).digest()
    return int.from_bytes(digest[:8]) / 2**64


def _sources(data: TextData, report: Counter[str]) -> Iterator[RecordTable]:
    if data.train is not None:
        yield from _keyed(read_files(data.train, data.columns, report), "task.data.train")
    elif data.huggingface is not None:
        yield read_dataset(data.huggingface, data.huggingface.train, data.columns, _DATASET_KEY)


def _keyed(sources: Iterable[RecordTable], key: str) -> Iterator[RecordTable]:
    """Add the recipe key of the files to errors about them."""
    try:
        yield from sources
    except DataError as error:
        raise DataError(replace(problem, key=problem.key or key) for problem in error.problems) from error


def _groups(sources: Iterable[RecordTable], data: TextData, report: Counter[str]) -> Iterator[TextGroup]:
    for records in sources:
        mistakes = RecordMistakes(records.where)
        reader = _GroupReader(data, report, mistakes)
        for record in range(len(records)):
            values = {column: records.columns[column][record] for column in data.columns}
            yield from reader.read(values, records.place(record))
        mistakes.raise_if_any(hint="name columns of texts under `task.data`")


class _GroupReader:
    """Turn records into groups.

    Args:
        data: the names of the columns.
        report: counts of left-out content.
        mistakes: collects the records that cannot be used.
    """

    def __init__(self, data: TextData, report: Counter[str], mistakes: RecordMistakes) -> None:
        self._data, self._report, self._mistakes = data, report, mistakes

    def read(self, values: Mapping[str, Any], place: str) -> list[TextGroup]:
        """Return the groups of a record; none if the record is skipped or malformed."""
        if self._data.query is None or self._data.positive is None:
            return self._read_texts(values, place)
        group = self._read_group(values, self._data.query, self._data.positive, place)
        return [] if group is None else [group]

    def _read_texts(self, values: Mapping[str, Any], place: str) -> list[TextGroup]:
        """Return a text and its translations."""
        column, *others = self._data.columns
        text = self._text(values[column], column, place)
        self._report["empty texts left out"] += text == ""
        if not text:
            return []
        found = [TextGroup((text,))]
        for other in others:
            translation = self._text(values[other], other, place)
            self._report["empty translations left out"] += translation == ""
            if translation:
                found.append(TextGroup((translation,), source=text))
        return found

    def _read_group(self, values: Mapping[str, Any], query: str, document: str, place: str) -> TextGroup | None:
        data, report = self._data, self._report
        first = self._text(values[query], query, place)
        positive = self._text(values[document], document, place)
        negatives, scores = self._negatives(values, place), self._scores(values, place)
        if first is None or positive is None or negatives is None or scores is None:
            return None
        if not first or not positive:
            report["groups without a query or a positive document left out"] += 1
            return None
        if first == positive:
            report["groups left out whose positive document is the query"] += 1
            return None
        if data.scores is not None and len(scores) != 1 + len(negatives):
            self._mistakes.add(place, f"has {len(scores)} scores for {1 + len(negatives)} documents")
            return None
        kept = [number for number, text in enumerate(negatives) if text and text not in (first, positive)]
        report["negatives left out that are empty, the query or the positive document"] += len(negatives) - len(kept)
        different = [number for number in kept if negatives.index(negatives[number]) == number]
        report["repeated negatives of a group left out"] += len(kept) - len(different)
        kept = different[: data.width - 2]
        report["negatives left out beyond the first of a group (task.data.num_negatives)"] += len(different) - len(kept)
        if len(kept) < data.width - 2:
            report["groups with too few negatives left out"] += 1
            return None
        texts = (first, positive, *(negatives[number] for number in kept))
        return TextGroup(texts, (scores[0], *(scores[1 + number] for number in kept)) if scores else ())

    def _text(self, value: Any, column: str, place: str) -> str | None:
        """Return a clean text; None if the value is not a text."""
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if value is not None and not isinstance(value, str) and not number:
            found = value if isinstance(value, bool | float) else type(value).__name__
            self._mistakes.add(place, f"has no text under `{column}` (found {found})")
            return None
        return "" if value is None else clean_text(str(value), self._report)

    def _negatives(self, values: Mapping[str, Any], place: str) -> list[str] | None:
        if self._data.negatives is None:
            return []
        if isinstance(self._data.negatives, str):
            column, found = self._data.negatives, values[self._data.negatives]
            found = [] if found is None else found
            if not isinstance(found, list):
                self._mistakes.add(place, f"has no list under `{column}` (found {type(found).__name__})")
                return None
            texts = [self._text(value, column, place) for value in found]
        else:
            texts = [self._text(values[column], column, place) for column in self._data.negatives]
        known = [text for text in texts if text is not None]
        return known if len(known) == len(texts) else None

    def _scores(self, values: Mapping[str, Any], place: str) -> list[float] | None:
        if self._data.scores is None:
            return []
        found = values[self._data.scores]
        if not isinstance(found, list) or not all(
            isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST_SCORE
            for value in found
        ):
            self._mistakes.add(place, f"has no list of finite numbers under `{self._data.scores}`")
            return None
        return [float(value) for value in found]


def _once(groups: Sequence[TextGroup], report: Counter[str], what: str) -> list[TextGroup]:
    kept = {group.texts: group for group in reversed(groups)}
    differing = sum(group.scores != kept[group.texts].scores for group in groups)
    report["groups left out that repeat the texts of another one with other scores"] += differing
    report[what] += len(groups) - len(kept) - differing
    return list(kept.values())[::-1]
