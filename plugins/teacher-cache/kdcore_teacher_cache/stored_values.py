"""Convert rows of signals to their stored form, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcore import InputError
from kdcore_teacher_cache.signal_columns import SignalColumn, StoredType
from kdcore_teacher_cache.stored_predictions import drawn, from_drawn, from_largest, ids_dtype, largest

NUMPY_TYPES: dict[StoredType, type[np.generic]] = {
    "fp32": np.float32,
    "bf16": np.uint16,  # NumPy has no bfloat16
    "fp16": np.float16,
    "int8": np.int8,
}
_SCALES = ".scale"
_IDS = ".ids"
_LARGEST = 127


class StoredArray(NamedTuple):
    """One of the arrays that store a signal.

    Attributes:
        key: name of the array's column in a file.
        dtype: type of the values.
        shape: shape of one row.
    """

    key: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Return the size of a row."""
        return self.dtype.itemsize * int(np.prod(self.shape))


def arrays_of(column: SignalColumn, kind: StoredType) -> list[StoredArray]:
    """Return the arrays that store a signal."""
    if column.form == "full":
        values = StoredArray(column.name, np.dtype(NUMPY_TYPES[kind]), column.shape)
        scales = StoredArray(column.name + _SCALES, np.dtype(np.float32), (1,))
        return [values, scales] if kind == "int8" else [values]
    ids = StoredArray(column.name + _IDS, np.dtype(ids_dtype(column.shape[0])), (column.kept,))
    values = StoredArray(column.name, np.dtype(np.float32), (column.kept + 1,))
    return [ids, values] if column.form == "top_k" else [ids]


def encode(
    column: SignalColumn, values: Tensor, kind: StoredType, numbers: NDArray[np.float64] | None = None
) -> dict[str, NDArray[np.generic]]:
    """Convert rows (rows, ...) to stored arrays (rows, width) by key.

    Args:
        column: the signal.
        values: its rows.
        kind: how values are stored.
        numbers: (rows, kept) random numbers, uniform in [0, 1), for `random_sampling`.

    Raises:
        InputError: a value is too large for float16.
    """
    name = column.name
    if column.form == "top_k":
        ids, kept = largest(values, column.kept)
        return {name + _IDS: _as_ids(ids, column), name: kept.cpu().numpy()}
    if column.form == "random_sampling":
        assert numbers is not None
        return {name + _IDS: _as_ids(drawn(values, numbers), column)}
    flat = values.flatten(1).cpu()
    if kind == "bf16":
        return {name: flat.bfloat16().view(torch.int16).numpy().view(np.uint16)}
    numbers = flat.float().numpy()
    if kind == "fp32":
        return {name: numbers}
    largest_value = np.abs(numbers).max(axis=1, initial=0.0)
    if kind == "fp16":
        if (found := float(largest_value.max(initial=0.0))) > float(np.finfo(np.float16).max):
            what = f"a value of the signal `{name}` is too large for fp16 (found {found:g}, expected at most 65504)"
            raise InputError(what, where="--values", hint="use bf16")
        return {name: numbers.astype(np.float16)}
    scales = (largest_value / np.float32(_LARGEST)).astype(np.float32)
    divisors = np.where(scales == 0, np.float32(1), scales)
    return {name: np.rint(numbers / divisors[:, None]).astype(np.int8), name + _SCALES: scales[:, None]}


def decode(column: SignalColumn, arrays: Mapping[str, Tensor], kind: StoredType) -> Tensor:
    """Return the rows (rows, *shape) of a signal from its arrays, on their device."""
    name = column.name
    if column.form == "top_k":
        return from_largest(_ids(arrays[name + _IDS]), arrays[name], column.shape[0])
    if column.form == "random_sampling":
        return from_drawn(_ids(arrays[name + _IDS]), column.shape[0])
    if kind == "bf16":
        return arrays[name].view(torch.bfloat16)
    if kind == "int8":
        scales = arrays[name + _SCALES]
        return arrays[name] * scales.view(-1, *[1] * len(column.shape))
    return arrays[name]


def as_tensor(array: NDArray[np.generic]) -> Tensor:
    """Return an array as a tensor without a copy; unsigned integers become signed integers of the same size."""
    return torch.from_numpy(array.view(np.int16) if array.dtype == np.uint16 else array)


def _as_ids(ids: Tensor, column: SignalColumn) -> NDArray[np.generic]:
    return ids.cpu().numpy().astype(ids_dtype(column.shape[0]))


def _ids(stored: Tensor) -> Tensor:
    return stored.long() & 0xFFFF if stored.dtype == torch.int16 else stored.long()
