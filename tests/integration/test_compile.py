"""Compiled models: what is trained is the same, whatever the batches' shapes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

import kdcore
from kdcore.models.encoder import TransformersEncoder


@pytest.fixture
def losses(small_recipe: Path) -> Callable[..., list[float]]:
    def train(*overrides: str) -> list[float]:
        folder = kdcore.train(small_recipe, list(overrides)).folder
        rows = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        return [row["train/loss"] for row in rows if "train/loss" in row]

    return train


def test_a_compiled_run_ends_like_another_and_is_compiled_once(losses: Callable[..., list[float]]) -> None:
    torch._dynamo.reset()
    plain = losses("run.id=plain", "logging.every=1")
    counters.clear()
    compiled = losses("run.id=compiled", "logging.every=1", "training.compile=true")
    np.testing.assert_allclose(compiled, plain, rtol=1e-5)
    assert len(compiled) == 6
    assert not counters["graph_break"]
    # Parts of a block (attention's output, both halves of the feed-forward part) with and without gradient, and for a
    # single row of tokens and for batches without padding: no shape of a batch adds to it.
    assert 6 <= counters["stats"]["unique_graphs"] <= 12
    counters.clear()
    assert losses("run.id=compiled", "logging.every=1", "training.compile=true", "training.budget.steps=9")
    assert counters["stats"]["unique_graphs"] == 0, "another run of the same models compiles nothing"


def test_what_torch_cannot_compile_is_told_before_training(small_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Breaking(torch.nn.Module):
        def forward(self, states: torch.Tensor) -> torch.Tensor:
            torch._dynamo.graph_break()
            return states

    def compile_parts(encoder: TransformersEncoder) -> None:
        part = encoder.network.base_model.encoder.layer[0].output
        part.dropout = Breaking()
        part.compile(fullgraph=True)

    monkeypatch.setattr(TransformersEncoder, "compile_parts", compile_parts)
    with pytest.raises(kdcore.InputError, match="torch cannot compile the models: ") as caught:
        kdcore.train(small_recipe, ["training.compile=true"])
    assert "training.compile" in str(caught.value)
    assert "remove training.compile" in str(caught.value)
