"""Read texts for scoring embeddings: pairs with a score or a label, and queries with their documents."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from kdcore_preparation import RecordMistakes, clean_text
from numpy.typing import NDArray
from pydantic import Field, model_validator

from kdcore import ComponentConfig, DataError, PathString
from kdcore_embeddings.data.records import read_files
from kdcore_embeddings.data.texts import TextData, read_texts

_LABELS = {"0": 0.0, "1": 1.0, "false": 0.0, "true": 1.0}


@dataclass(frozen=True)
class TextPairs:
    """Pairs of texts with the value that their similarity should predict.

    Attributes:
        first: n texts.
        second: n texts.
        values: (n,) float64: scores, or labels 0 and 1.
        labelled: whether values are labels.
    """

    first: list[str]
    second: list[str]
    values: NDArray[np.float64]
    labelled: bool

    def fingerprint(self) -> str:
        """Return the SHA-256 of the content."""
        return _digest([*self.first, *self.second, repr(self.values.tolist()), str(self.labelled)])


@dataclass(frozen=True)
class TextQueries:
    """Queries, and the documents that are searched for each query; all texts differ.

    Attributes:
        queries: n texts.
        documents: m texts.
        relevant: for each query, the indices of its relevant documents, at least one.
    """

    queries: list[str]
    documents: list[str]
    relevant: list[set[int]]

    def fingerprint(self) -> str:
        """Return the SHA-256 of the content."""
        return _digest([*self.queries, *self.documents, repr([sorted(own) for own in self.relevant])])


class EmbeddingTexts(ComponentConfig):
    """A file of texts for scoring embeddings: pairs with scores, pairs with labels, or queries with their documents."""

    path: PathString = Field(description="File, folder or glob: csv, tsv, jsonl or parquet.")
    texts: list[str] | None = Field(
        None, min_length=2, max_length=2, description="Columns of the two texts of a pair; needs `score` or `label`."
    )
    score: str | None = Field(None, description="Column of the similarity score of a pair (STS).")
    label: str | None = Field(None, description="Column of the label of a pair: 1 or true if its texts are equivalent.")
    query: str | None = Field(None, description="Column of queries (retrieval).")
    positive: str | None = Field(None, description="Column of the document that belongs to the query.")

    @model_validator(mode="after")
    def _one_kind(self) -> EmbeddingTexts:
        named = [name for name in ("texts", "score", "label", "query", "positive") if getattr(self, name) is not None]
        if named not in (["texts", "score"], ["texts", "label"], ["query", "positive"]):
            raise ValueError("needs `texts` and `score`, `texts` and `label`, or `query` and `positive`")
        columns = [*(self.texts or []), *(name for name in (self.score, self.label) if name is not None)]
        if len(set(columns)) < len(columns):
            raise ValueError(f"names a column twice ({', '.join(columns)})")
        return self

    def read(self, report: Counter[str]) -> TextPairs | TextQueries:
        """Read the texts; texts that are left out are counted in `report`.

        Raises:
            DataError: files or columns are missing, records are malformed, or nothing can be scored.
        """
        return self._read_pairs(self.texts, report) if self.texts is not None else self._read_queries(report)

    def _read_pairs(self, texts: list[str], report: Counter[str]) -> TextPairs:
        column = self.score or self.label or ""
        first: list[str] = []
        second: list[str] = []
        values: list[float] = []
        for records in read_files(self.path, (*texts, column), report):
            mistakes = RecordMistakes(records.where)
            sides = [records.columns[name] for name in texts]
            for record, (one, other, stated) in enumerate(zip(*sides, records.columns[column], strict=True)):
                if not all(text is None or isinstance(text, str) for text in (one, other)):
                    mistakes.add(records.place(record), f"has no text under `{texts[0]}` or `{texts[1]}`")
                    continue
                value = _number(stated) if self.score is not None else _LABELS.get(_spelled(stated))
                if value is None:
                    expected = "a finite number" if self.score is not None else "0 or 1"
                    mistakes.add(records.place(record), f"has {stated!r} under `{column}` (expected {expected})")
                    continue
                pair = [clean_text(text or "", report) for text in (one, other)]
                report["pairs with an empty text left out"] += not all(pair)
                if all(pair):
                    first.append(pair[0])
                    second.append(pair[1])
                    values.append(value)
            mistakes.raise_if_any(hint="name columns of texts and values")
        if len(set(values)) < 2:
            same = f", all with the value {values[0]:g}" if values else ""
            what = f"nothing can be scored (found {len(values):,} pairs{same})"
            raise DataError(what, where=self.path, hint=f"use pairs that differ in `{column}`")
        return TextPairs(first, second, np.array(values), self.label is not None)

    def _read_queries(self, report: Counter[str]) -> TextQueries:
        data = TextData(train=self.path, query=self.query, positive=self.positive)
        part, _ = read_texts(data, report)
        queries: dict[str, set[int]] = {}
        documents: dict[str, int] = {}
        for query, document in zip(part.texts[::2], part.texts[1::2], strict=True):
            queries.setdefault(query, set()).add(documents.setdefault(document, len(documents)))
        return TextQueries(list(queries), list(documents), list(queries.values()))


def _spelled(value: Any) -> str:
    return str(int(value) if isinstance(value, float) and value in (0, 1) else value).strip().lower()


def _number(value: Any) -> float | None:
    """Return a finite number; None for other values."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def _digest(parts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode("utf-8", errors="replace")
        digest.update(f"{len(content)} ".encode() + content)
    return digest.hexdigest()
