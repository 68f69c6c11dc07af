"""Files that torch writes, with the errors that the disk gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


class _File:
    """Keeps the first error instead of raising it.

    torch's writer in C++ answers an exception in the middle of an archive with one about its own position in it.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)
        self.error: OSError | None = None

    def write(self, data: memoryview) -> int:
        if self.error is None:
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[self._file.write(rest) :]
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        self._file.close()


def write_tensors(content: Any, path: Path) -> None:
    """Do what `torch.save` does.

    Raises:
        OSError: the disk refuses.
    """
    file = _File(path)
    try:
        torch.save(content, file)  # type: ignore[arg-type]
    finally:
        file.close()
    if file.error is not None:
        raise file.error
