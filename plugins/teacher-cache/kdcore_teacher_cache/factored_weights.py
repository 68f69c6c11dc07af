"""The last product of a teacher's vocabulary predictions, stored once for factored predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdcore import FactoredLogits, atomic_write

FACTORED = ("factored-weight.npy", "factored-bias.npy")


def write_factored_weights(folder: Path, factored: FactoredLogits) -> None:
    """Write weight and bias in float32."""
    for name, tensor in zip(FACTORED, (factored.weight, factored.bias), strict=True):
        if tensor is not None:
            with atomic_write(folder / name) as file:
                np.save(file, tensor.detach().float().cpu().numpy(), allow_pickle=False)


def read_factored_weights(folder: Path) -> tuple[Tensor, Tensor | None]:
    """Return the weight (V, d), and the bias (V,) or None."""
    weight, bias = (
        torch.from_numpy(np.load(folder / name, allow_pickle=False)) if (folder / name).is_file() else None
        for name in FACTORED
    )
    assert weight is not None, "listed in the manifest"
    return weight, bias
