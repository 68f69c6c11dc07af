"""Apply settings of torch that change how numbers are rounded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.deterministic

from kdcore.recipe.schema import TrainingSettings

_WORKSPACES = "CUBLAS_WORKSPACE_CONFIG"
_debugging: Any = torch.utils.deterministic


@contextmanager
def numerics(settings: TrainingSettings, device: torch.device) -> Iterator[None]:
    """Apply `training.tf32` and `training.deterministic`; enter the context before anything runs on the device."""
    precision, fills = torch.get_float32_matmul_precision(), _debugging.fill_uninitialized_memory
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    tf32 = settings.precision != "fp32" if settings.tf32 is None else settings.tf32
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
    if settings.deterministic:
        os.environ.setdefault(_WORKSPACES, ":4096:8")  # required by cuBLAS, which reads it at its first product
        torch.use_deterministic_algorithms(True)
        _debugging.fill_uninitialized_memory = False  # only helps to find mistakes, and takes time
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        _debugging.fill_uninitialized_memory = fills
