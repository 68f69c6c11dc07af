"""Rotate the embeddings of a sentence encoder to their principal components, so that they can be truncated."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from kdcore import DataError, InputError, atomic_directory
from kdcore_embeddings.sentence_encoder import SentenceEncoder
from kdcore_embeddings.sentence_folder import read_sentence_folder

_NAME = "Rotation_Dense"


def rotate_embeddings(source: str | Path, texts: Sequence[str], folder: str | Path) -> None:
    """Write a copy of a sentence encoder whose embeddings are rotated to the principal components of some texts.

    The rotation does not change similarities. The principal components are computed from the second moments, without
    centring, and sorted in descending order, so that the first components preserve dot products best. The rotation is a
    Dense module, placed before a final Normalize module. The copy can be used as a teacher for `dimensions` of the loss
    `embedding` (`nested_teacher: true`).

    Args:
        source: folder of a sentence encoder.
        texts: representative texts; there must be more texts than components of an embedding.
        folder: the new folder.

    Raises:
        InputError: `source` is not the folder of a sentence encoder, `folder` exists, or there are too few texts.
    """
    target = Path(folder)
    if target.exists():
        raise InputError("the folder already exists", where=str(target), hint="remove it, or choose another one")
    stated = read_sentence_folder(str(source))
    if stated.truncate_dim is not None:
        raise InputError("embeddings are already truncated (`truncate_dim`)", where=str(source))
    if (stated.path / _NAME).exists():
        raise InputError("embeddings are already rotated", where=str(source))
    encoder = SentenceEncoder(str(stated.path))
    vectors = encoder.encode(list(dict.fromkeys(texts)), encoder.document_prompt).astype(np.float64)
    if len(vectors) <= vectors.shape[1]:
        raise DataError(
            f"too few different texts to find principal components (found {len(vectors):,}, expected more than the "
            f"{vectors.shape[1]:,} components of embeddings)",
            hint="give more texts",
        )
    _, basis = np.linalg.eigh(vectors.T @ vectors)  # columns in ascending order of their eigenvalues
    width = vectors.shape[1]
    dense = {"in_features": width, "out_features": width, "bias": False}
    modules = json.loads((stated.path / "modules.json").read_text(encoding="utf-8"))
    own = {"path": _NAME, "type": "sentence_transformers.models.Dense"}
    last = len(modules) - (stated.layers[-1].kind == "Normalize" if stated.layers else 0)
    modules = [*modules[:last], own, *modules[last:]]
    modules = [{**module, "idx": number, "name": str(number)} for number, module in enumerate(modules)]
    with atomic_directory(target) as staging:
        shutil.copytree(stated.path, staging, dirs_exist_ok=True)
        (staging / _NAME).mkdir()
        weights = {"linear.weight": torch.from_numpy(np.ascontiguousarray(basis[:, ::-1].T)).float()}
        save_file(weights, staging / _NAME / "model.safetensors")
        settings = dense | {"activation_function": "torch.nn.modules.linear.Identity"}
        for path, content in ((f"{_NAME}/config.json", settings), ("modules.json", modules)):
            (staging / path).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
