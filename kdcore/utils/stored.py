"""Read JSON files that may be damaged or come from elsewhere; the types of their values are checked with pydantic."""

from __future__ import annotations

import errno
import logging
import os
import stat
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from kdcore.errors import DataError, Problem

logger = logging.getLogger("kdcore")

T = TypeVar("T")

EXPECTED = {
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "a map",
    "model_type": "a map",
    "model_attributes_type": "a map",
    "dataclass_type": "a map",
    "none_required": "null",
    "path_type": "a path",
}
"""Descriptions of the expected values for pydantic's error types."""

LARGEST_TEXT = 64 << 20
_SHOWN = 80


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("text without NUL")
    return text


StoredText = Annotated[str, AfterValidator(_without_nul)]
"""Text that can be part of a path."""
StoredCount = Annotated[int, Field(ge=0, lt=1 << 62)]
FiniteNumber = Annotated[float, Field(allow_inf_nan=False)]


def read_json_object(path: Path, schema: type[T], *, hint: str | None = None) -> T:
    """Read a file with one JSON value of a type that pydantic can check. Unknown keys are ignored.

    Raises:
        DataError: the file cannot be read, is not JSON, or a value is missing or of the wrong type; the message names
            each key.
    """
    try:
        text = read_small_file(path)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(path), hint=hint) from error
    return checked_json(text, schema, str(path), hint=hint)


def checked_json(text: str | bytes, schema: type[T], where: str, *, hint: str | None = None) -> T:
    """Parse JSON as a type; arguments and errors are the same as for `read_json_object`."""
    try:
        return TypeAdapter(schema).validate_json(text, strict=True)
    except ValidationError as error:
        problems = [_problem(details) for details in error.errors(include_url=False)]
        raise DataError(Problem(what, where, key or None, hint=hint) for key, what in problems) from error


def read_json_rows(path: Path, schema: Any, *, last_bytes: int | None = None) -> list[Any]:
    """Read JSON lines for a report; a file that cannot be read is skipped with a warning. See `load_json_rows`."""
    try:
        return load_json_rows(path, schema, last_bytes=last_bytes)
    except OSError as error:
        logger.warning(f"{path}: left out, because it cannot be read: {error.strerror}")
        return []


def load_json_rows(path: Path, schema: Any, *, last_bytes: int | None = None) -> list[Any]:
    """Load JSON lines. Bad rows are skipped with one warning, which names the first of them.

    Args:
        path: the file; if it does not exist, there are no rows.
        schema: the type of a row, as pydantic checks it.
        last_bytes: read only the rows in this many bytes at the end of the file; None to read all rows.

    Raises:
        OSError: the file exists and cannot be read.
    """
    try:
        with open_regular(path) as file:
            start = max(0, os.fstat(file.fileno()).st_size - (last_bytes or 1 << 62))
            file.seek(start)
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return []
    adapter = TypeAdapter(schema)
    rows, bad = [], []
    for number, line in enumerate(lines):
        if not line.strip() or (start and not number):  # reading may have started inside of a row
            continue
        try:
            rows.append(adapter.validate_json(line, strict=True))
        except ValidationError as error:
            bad.append((number, error))
    if bad:
        _warn(path, start, bad)
    return rows


def _warn(path: Path, start: int, bad: list[tuple[int, ValidationError]]) -> None:
    number, error = bad[0]
    before = 0
    if start:
        with open_regular(path) as file:
            before = file.read(start).count(b"\n")
    what = ": ".join(part for part in _problem(error.errors(include_url=False)[0]) if part)
    more = f", and {len(bad) - 1} more of its rows" if len(bad) > 1 else ""
    logger.warning(f"{path}:{before + number + 1}: skipped a damaged row{more} ({what})")


def open_regular(path: Path) -> Any:
    """Open a file for reading bytes; reject pipes and devices, because reading them might never end.

    Raises:
        OSError: the file cannot be opened, or is not a regular one.
    """
    # Without O_NONBLOCK, opening a pipe waits for a process that writes to it.
    try:
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")
    except ValueError as error:
        raise OSError(errno.EINVAL, "the path contains NUL", str(path)) from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return file


def read_small_file(path: Path) -> bytes:
    """Read a metadata file.

    Raises:
        OSError: the file cannot be read, is not a regular one, or is larger than any file that a run writes.
    """
    with open_regular(path) as file:
        content: bytes = file.read(LARGEST_TEXT + 1)
    if len(content) > LARGEST_TEXT:
        raise OSError(errno.EFBIG, f"larger than {LARGEST_TEXT >> 20} MiB", str(path))
    return content


def _problem(details: ErrorDetails) -> tuple[str, str]:
    """Return key and text of one of pydantic's errors."""
    key = ".".join(str(part) for part in details["loc"])
    kind = details["type"]
    if kind == "missing":
        return key, "is missing"
    if kind == "json_invalid":
        return key, "is not " + details["msg"].replace("Invalid JSON: ", "valid JSON: ", 1)
    expected = EXPECTED.get(kind) or str(details.get("ctx", {}).get("error") or details["msg"].lower())
    return key, f"has the wrong type (found {repr(details['input'])[:_SHOWN]}, expected {expected})"
