"""Look up peak rates of matrix products of GPUs, without sparsity, from their data sheets."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch


class _Peaks(NamedTuple):
    """TFLOP/s; None for a precision that the matrix units do not support."""

    fp16: float
    bf16: float | None
    tf32: float | None
    fp32: float


_PEAKS = {
    r"B200": _Peaks(2250, 2250, 1125, 75),
    r"H100 PCIe": _Peaks(756, 756, 378, 51.2),
    r"(H100|H200) NVL": _Peaks(835, 835, 417.5, 60),
    r"H100|H200|H800|GH200": _Peaks(989.4, 989.4, 494.7, 66.9),
    r"A100|A800": _Peaks(312, 312, 156, 19.5),
    r"A40": _Peaks(149.7, 149.7, 74.8, 37.4),
    r"A30": _Peaks(165, 165, 82, 10.3),
    r"A10": _Peaks(125, 125, 62.5, 31.2),
    r"L40S": _Peaks(362, 362, 183, 91.6),
    r"L40": _Peaks(181, 181, 90.5, 90.5),
    r"L4": _Peaks(121, 121, 60, 30.3),
    r"V100-SXM\w*": _Peaks(125, None, None, 15.7),
    r"V100-PCIE": _Peaks(112, None, None, 14),
    r"T4": _Peaks(65, None, None, 8.1),
    r"MI300X": _Peaks(1307.4, 1307.4, 653.7, 163.4),
}
"""Peak rates by a part of the device's name; the first match applies."""


def data_sheet_peak(name: str, dtype: torch.dtype, *, tf32: bool = False) -> float | None:
    """Return the peak operations per second of a GPU; None if it is not in the table or the precision is not supported.

    Args:
        name: the name that CUDA reports, such as `NVIDIA A100-SXM4-80GB`.
        dtype: precision of the matrices.
        tf32: whether products of float32 matrices may use TF32.
    """
    for pattern, peaks in _PEAKS.items():
        if re.search(rf"(?<!\w)({pattern})(?!\w)", name):
            column = {torch.float16: peaks.fp16, torch.bfloat16: peaks.bf16}
            found = column.get(dtype, (peaks.tf32 if tf32 else None) or peaks.fp32)
            return None if found is None else found * 1e12
    return None
