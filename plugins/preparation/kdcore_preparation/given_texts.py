"""Build a data recipe for texts in memory or for a file of text."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

from kdcore import InputError, atomic_write
from kdcore_preparation.readers.file_listing import find_files
from kdcore_preparation.readers.input_files import COMPRESSED_ENDINGS

logger = logging.getLogger("kdcore")

_READERS = {".jsonl": ("jsonl", "field"), ".json": ("jsonl", "field"), ".parquet": ("parquet", "column")}


def corpora_for(data: Path | Iterable[Any], cache: Path, column: str, max_texts: int) -> list[dict[str, Any]]:
    """Return the section `corpora` for texts, or for a file or folder, whose reader is chosen by file suffix.

    Args:
        data: a path, texts, or a table with a column of texts.
        cache: folder of prepared data, in which the texts are stored.
        column: column of a table or Parquet file, or key of JSON Lines.
        max_texts: number of texts to read from an iterable without a length.

    Raises:
        InputError: there is no text, the column does not exist, or the files are of several kinds or are not text.
    """
    if not isinstance(data, Path):
        path = store_texts(texts_of(data, column, max_texts), cache)
        return [{"name": "jsonl", "path": str(path)}]
    if not data.exists():
        raise InputError("the data is neither a file nor a folder", where=str(data))
    reader, key = _reader_of(data)
    return [{"name": reader, "path": str(data), **({key: column} if key else {})}]


def _reader_of(data: Path) -> tuple[str, str]:
    """Choose a reader and its key for the column by the suffix of a file, or of all files in a folder."""
    if (data / "config.json").is_file() and any(any(data.glob(pattern)) for pattern in ("*.safetensors", "*.bin")):
        raise InputError("this is a model, not text", where=str(data), hint="pass the folder with the text")
    found: dict[tuple[str, str], str] = {}
    for name in find_files(str(data)):
        suffixes = [suffix for suffix in map(str.lower, Path(name).suffixes) if suffix not in COMPRESSED_ENDINGS]
        suffix = suffixes[-1] if suffixes else ""
        if suffix in (".csv", ".tsv"):
            raise InputError(
                "CSV and TSV tables are not read as text, because they usually contain labels or ids as well",
                where=str(data / name if data.is_dir() else data),
                hint="save the column of texts as a text file or as JSON Lines, or use a recipe to train on labels",
            )
        found.setdefault(_READERS.get(suffix, ("text", "")), name)
    if len(found) > 1:
        examples = ", ".join(f"{reader}: {name}" for (reader, _), name in sorted(found.items()))
        hint = "pass a folder with files of one kind, or use a data recipe with several corpora"
        raise InputError(f"the folder contains files of several kinds (found {examples})", where=str(data), hint=hint)
    return next(iter(found))


def texts_of(data: Any, column: str, max_texts: int) -> Iterator[Any]:
    """Iterate over texts, or over the column of a table; an iterable without a length yields at most `max_texts`."""
    columns = getattr(data, "column_names", getattr(data, "columns", None))
    if columns is not None and column not in columns:
        splits = isinstance(columns, Mapping)
        what = "the data has several splits" if splits else f"the data has no column `{column}`"
        hint = 'select one, such as data["train"]' if splits else "name the text's column with `column=`"
        raise InputError(what, allowed=list(columns), hint=hint)
    if hasattr(data, "__len__"):
        yield from data if columns is None else data[column]
        return
    texts = iter(data)
    yield from (text if columns is None else text[column] for text in islice(texts, max_texts))
    if next(texts, None) is not None:
        logger.warning(f"only the first {max_texts:,} texts are used; `max_texts` sets this limit")


def store_texts(texts: Iterable[Any], cache: Path) -> Path:
    """Write texts to a JSON Lines file in the cache, named after a hash of its content.

    Raises:
        InputError: there is no text, or one of them is not a str.
    """
    folder = cache / "texts"
    folder.mkdir(parents=True, exist_ok=True)
    digest, filled = sha256(), 0
    temporary = folder / f"incoming-{os.urandom(8).hex()}.jsonl"
    with atomic_write(temporary) as file:
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(f"text {number} is not a str (found {repr(text)[:60]})")
            line = json.dumps({"text": text}).encode() + b"\n"
            digest.update(line)
            file.write(line)
            filled += bool(text.strip())
        if not filled:
            raise InputError("the data contains no text")
    final = folder / f"{digest.hexdigest()[:32]}.jsonl"
    os.replace(temporary, final)
    return final
