"""Read precomputed vectors of texts from Parquet or JSON Lines files with `id`, `text` and `vector`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcore import DataError, first_line

_COLUMNS = ("id", "text", "vector")


@dataclass(frozen=True, eq=False)
class Vectors:
    """Texts and their vectors.

    Attributes:
        path: the file.
        ids: names of the texts, all different.
        texts: the texts; a text that appears several times always has the same vector.
        values: (n, D) float32.
    """

    path: Path
    ids: Sequence[str]
    texts: Sequence[str]
    values: NDArray[np.float32]

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {text: row for row, text in enumerate(self.texts)}

    def rows(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return the row of each text.

        Raises:
            DataError: texts have no vector; the message shows the first one.
        """
        found = np.array([self._rows.get(text, -1) for text in texts], np.int64)
        missing = np.flatnonzero(found < 0)
        if missing.size:
            shown = texts[int(missing[0])]
            raise DataError(
                f"has no vector for {missing.size:,} of {len(texts):,} texts, such as {_short(shown)}",
                where=str(self.path),
                hint="the texts may have changed; compute vectors of exactly these texts",
            )
        return found


def read_vectors(path: str | Path) -> Vectors:
    """Read a `.parquet` or `.jsonl` file with the columns `id`, `text` and `vector`.

    Raises:
        DataError: the file is missing, damaged or empty; a column is missing, or occurs twice in a JSON record; vectors
            differ in width or are not finite; an id appears twice, or a text appears with two vectors. The message
            names the first such record.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError("no such file", where=str(path))
    if path.suffix == ".parquet":
        ids, texts, vectors = _parquet(path)
    elif path.suffix == ".jsonl":
        ids, texts, vectors = _json_lines(path)
    else:
        raise DataError("is not a file of vectors", where=str(path), allowed="names that end with .parquet or .jsonl")
    if not ids:
        raise DataError("contains no vectors", where=str(path))
    width = len(vectors[0])
    for number, vector in enumerate(vectors, start=1):
        if len(vector) != width or not width:
            raise DataError(f"record {number} has {len(vector)} values (expected {width or 1})", where=str(path))
    try:
        with np.errstate(over="ignore"):
            values = np.asarray(vectors, np.float32)
    except (OverflowError, TypeError, ValueError) as error:
        raise DataError(f"contains vectors that are not numbers ({first_line(error)})", where=str(path)) from error
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        raise DataError(f"the vector of record {int(finite.argmin()) + 1} is not finite", where=str(path))
    _refuse_repeated(path, ids, texts, values)
    return Vectors(path, ids, texts, values)


def _refuse_repeated(path: Path, ids: list[str], texts: list[str], values: NDArray[np.float32]) -> None:
    known, first = set[str](), dict[str, int]()
    for row, (name, text) in enumerate(zip(ids, texts, strict=True)):
        if name in known:
            raise DataError(f"the id {_short(name)} appears twice (record {row + 1})", where=str(path))
        known.add(name)
        if not np.array_equal(values[first.setdefault(text, row)], values[row]):
            what = f"the text {_short(text)} has two vectors (records {first[text] + 1} and {row + 1})"
            raise DataError(what, where=str(path))


def _parquet(path: Path) -> tuple[list[str], list[str], list[Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        _require(path, parquet.read_schema(path).names)
        table = parquet.read_table(path, columns=list(_COLUMNS))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"is damaged or not a Parquet file ({first_line(error)})", where=str(path)) from error
    ids, texts, vectors = (table.column(name) for name in _COLUMNS)
    if any(column.null_count for column in (ids, texts, vectors)):
        raise DataError("has records without an id, a text or a vector", where=str(path))
    rows = vectors.combine_chunks()
    try:
        kind = rows.type.value_type
        if not pyarrow.types.is_floating(kind) and not pyarrow.types.is_integer(kind):
            raise DataError("the column `vector` does not contain lists of numbers", where=str(path))
        rows = rows.cast(pyarrow.large_list(kind))  # fixed-size lists have no lengths
        flat = rows.flatten().to_numpy(zero_copy_only=False)
        lengths = np.asarray(rows.value_lengths())
    except (pyarrow.ArrowException, AttributeError) as error:
        raise DataError("the column `vector` does not contain lists of numbers", where=str(path)) from error
    listed = texts.to_pylist()
    if not all(isinstance(text, str) for text in listed):
        raise DataError("the column `text` does not contain texts", where=str(path))
    return [str(one) for one in ids.to_pylist()], listed, np.split(flat, np.cumsum(lengths)[:-1])


def _json_lines(path: Path) -> tuple[list[str], list[str], list[Any]]:
    ids, texts, vectors = list[str](), list[str](), list[Any]()
    for number, record in _records(path):
        if number == 1:
            _require(path, list(record))
        vector = record.get("vector")
        numbers = isinstance(vector, list) and all(type(one) in (int, float) for one in vector)
        if "id" not in record or not isinstance(record.get("text"), str) or not numbers:
            raise DataError(f"line {number} lacks an id, a text or a list of numbers as vector", where=str(path))
        ids.append(str(record["id"]))
        texts.append(record["text"])
        vectors.append(vector)
    return ids, texts, vectors


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                members = json.loads(line, object_pairs_hook=tuple)  # arrays are lists
                if not isinstance(members, tuple):
                    raise DataError(f"line {number} is not a JSON object", where=str(path))
                keys = [key for key, _ in members]
                for column in _COLUMNS:
                    if keys.count(column) > 1:
                        what = f"line {number} has the key `{column}` more than once, and only one value can be read"
                        raise DataError(what, where=str(path))
                yield number, dict(members)
        except (ValueError, RecursionError) as error:
            raise DataError(f"cannot be read ({first_line(error)})", where=str(path)) from error


def _require(path: Path, present: Sequence[str]) -> None:
    for column in _COLUMNS:
        if column not in present:
            raise DataError(f"has no column `{column}`", where=str(path), allowed=list(present))


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
