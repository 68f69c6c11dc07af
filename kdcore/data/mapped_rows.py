"""Rows of many memory-mapped arrays, gathered at once."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class MappedRows:
    """Gather rows of many arrays of the same type and width; rows are numbered consecutively across all arrays.

    NumPy needs a few microseconds per indexed array, and a random batch touches hundreds of files. Therefore all arrays
    are viewed as one array from the first mapped address to the last. Rows are copied from it by address, as blocks of
    bytes, which is faster than copying elements. Memory between the arrays may be unmapped and is never read.

    Args:
        arrays: contiguous arrays of shape (rows, width).
    """

    def __init__(self, arrays: Sequence[NDArray[Any]]) -> None:
        self._arrays = [array for array in arrays if len(array)]  # keeps their memory mapped
        if not self._arrays:
            return
        self._dtype, self._width = self._arrays[0].dtype, self._arrays[0].shape[1]
        item, row_bytes = self._dtype.itemsize, self._dtype.itemsize * self._width
        addresses = np.array([array.ctypes.data for array in self._arrays], np.int64)
        ends = addresses + [array.nbytes for array in self._arrays]
        base, span = int(addresses.min()), int(ends.max() - addresses.min())
        self._windows: NDArray[Any] = np.ndarray(
            ((span - row_bytes) // item + 1,),
            np.dtype((np.void, row_bytes)),
            memoryview((ctypes.c_char * span).from_address(base)),
            strides=(item,),
        )
        self._windows.flags.writeable = False
        starts = np.cumsum([0, *map(len, self._arrays)])
        self._borders = starts[1:-1]
        self._shifts = (addresses - base) // item - starts[:-1] * self._width

    def take(self, numbers: NDArray[np.int64]) -> NDArray[Any]:
        """Copy rows (n, width) by their numbers (n,). The caller ensures that n > 0 and that the numbers are valid."""
        places = numbers * self._width
        places += self._shifts[self._borders.searchsorted(numbers, side="right")]
        rows: NDArray[Any] = self._windows[places].view(self._dtype).reshape(-1, self._width)
        return rows
