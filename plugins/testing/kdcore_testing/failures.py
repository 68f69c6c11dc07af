"""Report what fails in a check."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def failing_as(what: str) -> Iterator[None]:
    """Replace an exception in the block by an AssertionError that starts with `what`."""
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
