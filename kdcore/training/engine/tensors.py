"""Read and write files of torch tensors. Disk errors are reported, and reading never executes code."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from kdcore.errors import InputError, first_line
from kdcore.training.engine.pickled_names import DEEPSPEED, foreign_names


class _File:
    """Record the first write error instead of raising it.

    torch's C++ writer would replace the exception with one about its position in the archive.
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
        """Do nothing: the file is unbuffered."""

    def close(self) -> None:
        self._file.close()


def write_tensors(content: Any, path: Path) -> None:
    """Write a file like `torch.save`, but report disk errors.

    Raises:
        OSError: the disk fails.
    """
    file = _File(path)
    try:
        torch.save(content, file)  # type: ignore[arg-type]
    finally:
        file.close()
    if file.error is not None:
        raise file.error


@dataclass(frozen=True)
class OldTerm:
    """The key of a term in process files of format 1, which named the class `kdcore.training.module.Term`."""

    label: str
    name: str


def is_expanded(tensor: torch.Tensor) -> bool:
    """Return whether a dense tensor has more elements than its storage, such as the result of `Tensor.expand`."""
    return tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()


def read_tensors(path: Path, *, mmap: bool = False) -> Any:
    """Load a file written by `write_tensors` on the CPU. Only tensors, plain values and known classes are constructed.

    Args:
        path: the file.
        mmap: map the tensors into memory, so that each is read from disk when it is used.

    Raises:
        InputError: the file cannot be read, or contains other objects.
    """
    try:
        foreign = foreign_names(path)
        if foreign:
            raise InputError(
                f"refers to {foreign[0]}, which kdcore never writes (expected tensors and plain values)",
                where=str(path),
                hint="do not use this checkpoint; restore a copy from a source that you trust",
            )
        names = set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        with torch.serialization.safe_globals([each for name in names for each in _allowed(name)]):
            content = torch.load(path, weights_only=True, map_location="cpu", mmap=mmap)
        seen, inner = set(), [content]
        for item in inner:  # grows during the loop
            if isinstance(item, torch.Tensor) and is_expanded(item):
                raise ValueError(f"a tensor of shape {tuple(item.shape)} has more elements than are stored")
            if isinstance(item, (dict, list, tuple)) and id(item) not in seen:
                seen.add(id(item))
                inner += item.values() if isinstance(item, dict) else item
        return content
    except (
        *(OSError, EOFError, AttributeError, LookupError, OverflowError, TypeError, ValueError, RuntimeError),
        UnpicklingError,
    ) as error:
        raise InputError(f"cannot be read: {first_line(error)}", where=str(path)) from error


def _allowed(name: str) -> list[Any]:
    """Return the safe globals for a name in a file, in the form that torch accepts."""
    module, _, attribute = name.rpartition(".")
    if name in DEEPSPEED:
        return [(getattr(import_module(module), attribute), name)]
    if name == "kdcore.training.module.Term":
        return [(OldTerm, name)]
    if name == "numpy.dtype":
        return [(np.dtype, name), np.dtypes.UInt32DType]
    return [(np.ndarray if attribute == "ndarray" else np.empty(0).__reduce__()[0], name)]
