"""Store the vectors that an arbitrary encoder computes for the texts of a task; the teacher `vectors` reads them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from kdcore import DataError, InputError, atomic_write
from kdcore_embeddings.data.texts import TextData, read_texts

logger = logging.getLogger("kdcore")

_CHUNK = 1024


class Encodes(Protocol):
    """An object that computes vectors of texts, such as a `SentenceTransformer`."""

    def encode(self, texts: list[str], /) -> Any:
        """Return the vectors (n, C) of n texts, as any type that NumPy can convert to an array."""


def store_vectors(encoder: Encodes, data: Mapping[str, Any], path: str | Path) -> int:
    """Write the vectors of all texts of a task to a Parquet file, and return their number.

    A recipe reads the file with `teacher: {name: vectors, path: FILE}` of kdcore-teacher-cache.

    Args:
        encoder: encoder that computes the vectors.
        data: keys of the recipe's `task.data`, which must not define groups; paths are relative to the working folder.
        path: the file; its name must end with `.parquet`.

    Raises:
        InputError: the texts cannot be used or form groups, or the vectors have the wrong shape or are not finite.
    """
    import pyarrow
    from pyarrow import parquet

    path = Path(path)
    if path.suffix != ".parquet":
        raise InputError("the name does not end with .parquet", where=str(path))
    try:
        stated = TextData.model_validate(dict(data))
    except ValidationError as error:
        raise InputError(error.errors()[0]["msg"], key="data") from error
    if stated.width > 1:
        raise InputError("groups have no vectors of their own", key="data.query", hint="name `text`, not `query`")
    report: Counter[str] = Counter()
    parts = read_texts(stated, report)
    for what, count in report.items():
        if count:
            logger.info(f"texts: {count:,} {what}")
    texts = list(dict.fromkeys(text for part in parts for text in part.sources or part.texts))
    vectors = encoded(encoder, texts)
    columns = {"id": [str(number) for number in range(len(texts))], "text": texts, "vector": list(vectors)}
    with atomic_write(path) as file:
        parquet.write_table(pyarrow.table(columns), file)
    return len(texts)


def encoded(encoder: Encodes, texts: list[str]) -> NDArray[np.float32]:
    """Return an encoder's vectors (n, C) of texts.

    Raises:
        DataError: the vectors have the wrong shape or are not finite.
    """
    found = [
        _checked(encoder.encode(texts[n : n + _CHUNK]), texts[n : n + _CHUNK]) for n in range(0, len(texts), _CHUNK)
    ]
    widths = sorted({vectors.shape[1] for vectors in found})
    if len(widths) > 1:
        raise DataError(f"`encode` returned vectors of different widths (found {', '.join(map(str, widths))})")
    return np.concatenate(found)


def _checked(returned: Any, texts: list[str]) -> NDArray[np.float32]:
    vectors = np.asarray(returned, dtype=np.float32)
    if vectors.ndim != 2 or len(vectors) != len(texts):
        raise DataError(
            f"`encode` returned an array of shape {vectors.shape} (expected ({len(texts)}, C))",
            hint="`encode` takes a list of texts and returns a vector for each",
        )
    broken = np.flatnonzero(~np.isfinite(vectors).all(1))
    if broken.size:
        raise DataError(
            f"`encode` returned NaN or infinity for {broken.size:,} of {len(texts):,} texts, such as "
            f"{texts[int(broken[0])][:60]!r}"
        )
    return vectors
