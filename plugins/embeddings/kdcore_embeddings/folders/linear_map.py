"""Fit the linear map of a student to the vectors of another encoder before training."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file

from kdcore import DataError, InputError, atomic_directory
from kdcore_embeddings.data.stored_vectors import Encodes, encoded
from kdcore_embeddings.head import EMBEDDING
from kdcore_embeddings.sentence_encoder import SentenceEncoder
from kdcore_embeddings.sentence_export import write_dense
from kdcore_embeddings.sentence_folder import read_sentence_folder

_Array = NDArray[np.float64]
_PENALTY = 0.01
"""Penalty on squared weights, relative to the mean variance of a component of the pooled states."""


def fit_linear_map(source: str | Path, teacher: Encodes, texts: Sequence[str], folder: str | Path) -> float:
    """Write a copy of an exported student whose linear map is the ridge regression of a teacher's vectors.

    The map between the student's hidden size and wider embeddings is initialised randomly, and a random map can
    degrade the pooled states of a trained encoder. A recipe starts from the copy with `student.initialize:
    {from: FOLDER, blocks: first}`.

    Args:
        source: folder of a student with a linear map, such as `exports/initial` of a run.
        teacher: encoder of the vectors to fit, such as a `SentenceEncoder` or a `SentenceTransformer`.
        texts: representative texts; there must be more different texts than components of the student's states.
        folder: the new folder.

    Returns:
        The fraction of the vectors' variance over the texts that the map explains.

    Raises:
        InputError: `source` is not an exported student with a linear map, `folder` exists, there are too few texts, or
            the teacher's vectors are not finite or differ in width.
    """
    target = Path(folder)
    if target.exists():
        raise InputError("the folder already exists", where=str(target), hint="remove it, or choose another one")
    stated = read_sentence_folder(str(source))
    head = stated.path / f"head_{EMBEDDING}.safetensors"
    dense = next((layer.folder for layer in stated.layers if layer.kind == "Dense"), None)
    if dense is None or not head.is_file():
        raise InputError("is not an exported student with a linear map", where=str(source))
    student = SentenceEncoder(str(stated.path), layers=False)
    different = list(dict.fromkeys(texts))
    states = student.encode(different, student.document_prompt).astype(np.float64)
    if len(states) <= states.shape[-1]:
        raise DataError(
            f"too few different texts to fit a linear map (found {len(states):,}, expected more than the "
            f"{states.shape[-1]:,} components of the student's states)",
            hint="give more texts",
        )
    vectors = encoded(teacher, different).astype(np.float64)
    with safe_open(head, "pt") as file:
        description, names = file.metadata(), sorted(file.keys())
        expected = file.get_tensor("dense.linear.weight").shape[0]
    assert names == ["dense.linear.bias", "dense.linear.weight"]
    if vectors.shape[1] != expected:
        raise InputError(
            f"the width of the teacher's vectors differs from the student's (found {vectors.shape[1]}, expected "
            f"{expected})",
            where=str(source),
        )
    weight, bias = _ridge(states, vectors)
    residuals = vectors - states @ weight.T - bias
    weights = {"weight": torch.from_numpy(weight).float().contiguous(), "bias": torch.from_numpy(bias).float()}
    with atomic_directory(target) as staging:
        shutil.copytree(stated.path, staging, dirs_exist_ok=True)
        write_dense(staging / dense.name, weights)
        save_file({f"dense.linear.{name}": value for name, value in weights.items()}, staging / head.name, description)
    return float(1 - np.square(residuals).sum() / np.square(vectors - vectors.mean(0)).sum())


def _ridge(states: _Array, vectors: _Array) -> tuple[_Array, _Array]:
    """Return weight (C, d) and bias (C,) of the map from states (n, d) to vectors (n, C)."""
    states_mean, vectors_mean = states.mean(0), vectors.mean(0)
    centred = states - states_mean
    products = centred.T @ centred
    products += np.eye(len(products)) * _PENALTY * np.trace(products) / len(products)
    weight = np.linalg.solve(products, centred.T @ (vectors - vectors_mean)).T
    return weight, vectors_mean - weight @ states_mean
