"""Convert rows of signals to what a cache stores, and back."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcore import InputError

StoredType = Literal["fp32", "bf16", "fp16", "int8"]
"""How values are stored: `int8` has one float32 scale per row."""

ITEM_BYTES: dict[StoredType, int] = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
SCALE_BYTES = 4
NUMPY_TYPES: dict[StoredType, type[np.generic]] = {
    "fp32": np.float32,
    "bf16": np.uint16,  # NumPy has no bfloat16
    "fp16": np.float16,
    "int8": np.int8,
}
_LARGEST = 127


def encode(values: Tensor, kind: StoredType, name: str) -> tuple[NDArray[np.generic], NDArray[np.float32] | None]:
    """Convert rows (rows, ...) on the CPU to stored values (rows, width), and to scales (rows,) of int8.

    Raises:
        InputError: a value is too large for float16.
    """
    flat = values.flatten(1)
    if kind == "bf16":
        return flat.bfloat16().view(torch.int16).numpy().view(np.uint16), None
    numbers = flat.float().numpy()
    if kind == "fp32":
        return numbers, None
    if kind == "fp16":
        largest = float(np.abs(numbers).max(initial=0.0))
        if largest > np.finfo(np.float16).max:
            what = f"a value of the signal `{name}` is too large for fp16 (found {largest:g}, expected at most 65504)"
            raise InputError(what, where="--values", hint="use bf16")
        return numbers.astype(np.float16), None
    scales = np.abs(numbers).max(axis=1, initial=0.0) / np.float32(_LARGEST)
    divisors = np.where(scales == 0, np.float32(1), scales)
    return np.rint(numbers / divisors[:, None]).astype(np.int8), scales.astype(np.float32)


def decode(stored: NDArray[np.generic], kind: StoredType) -> Tensor:
    """Return stored rows as a tensor without a copy; rows of int8 are multiplied by their scales before."""
    return torch.from_numpy(stored.view(np.int16)).view(torch.bfloat16) if kind == "bf16" else torch.from_numpy(stored)
