"""Losses on embeddings against float64 references, and the requirements on every loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from kdcore_embeddings.head import embedding_head
from kdcore_embeddings.regression import EmbeddingLoss
from kdcore_testing import check_loss, compute_loss

from kdcore import DataError, ModelInfo

HEAD = embedding_head(6, "mean", normalize=False)
MODEL = ModelInfo("bert", 2, 8, 4, 2, 11, 512, heads=(HEAD,))


def vectors(rows: int, width: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, width))


def outputs(embeddings: np.ndarray) -> dict[str, Any]:
    return {"outputs": {"embedding": embeddings}}


def unit(embeddings: np.ndarray) -> np.ndarray:
    return embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)


@pytest.mark.parametrize("distance", ["mse", "cosine"])
def test_requirements_on_the_regression(distance: str) -> None:
    check_loss(EmbeddingLoss, {"distance": distance}, student=MODEL, teacher=MODEL)


def test_values_of_the_regression() -> None:
    own, theirs = vectors(5), vectors(5, seed=1)
    value = compute_loss(EmbeddingLoss, student=outputs(own), teacher=outputs(theirs))
    np.testing.assert_allclose(value["embedding"], ((own - theirs) ** 2).mean(), rtol=1e-12)
    value = compute_loss(EmbeddingLoss, {"distance": "cosine"}, student=outputs(own), teacher=outputs(theirs))
    np.testing.assert_allclose(value["embedding"], (1 - (unit(own) * unit(theirs)).sum(-1)).mean(), rtol=1e-12)


@pytest.mark.parametrize("distance", ["mse", "cosine"])
def test_the_baseline_of_the_regression_is_the_best_constant(distance: str) -> None:
    theirs = vectors(7, seed=2)
    loss = EmbeddingLoss(EmbeddingLoss.Config(name="embedding", label="e", distance=distance), MODEL, MODEL)
    signals: Any = type("Given", (), {"outputs": lambda self, name: torch.from_numpy(theirs)})()
    batch: Any = None
    found = loss.constant_baseline(loss.constant_sums(signals, batch))["embedding"]
    side = theirs if distance == "mse" else unit(theirs)
    constant = side.mean(0)
    if distance == "mse":
        expected = ((side - constant) ** 2).mean()
    else:
        expected = (1 - side @ (constant / np.linalg.norm(constant))).mean()
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_embeddings_of_the_teacher_that_are_not_finite_are_named() -> None:
    theirs = vectors(5, seed=1)
    theirs[1, 2], theirs[3, 0] = np.nan, np.inf
    with pytest.raises(DataError, match=r"the teacher's embeddings of 2 of 5 texts are not finite"):
        compute_loss(EmbeddingLoss, student=outputs(vectors(5)), teacher=outputs(theirs))
