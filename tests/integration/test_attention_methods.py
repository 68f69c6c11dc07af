"""Objectives on attention train real models, through `kdcore.train`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import kdcore

STEPS = 12


def train(recipe: Path, *overrides: str) -> list[dict[str, float]]:
    """The rows of the metrics, one a step."""
    always = ["losses.hidden_mse=null", f"training.budget.steps={STEPS}", "optimizer.lr=3.0e-3"]
    result = kdcore.train(recipe, [*always, *overrides])
    lines = (result.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if "train/loss" in row]


def falls(rows: list[dict[str, float]], name: str = "train/loss") -> bool:
    values = [row[name] for row in rows]
    assert np.isfinite(values).all()
    return np.mean(values[-3:]) < 0.9 * np.mean(values[:3])


@pytest.mark.parametrize("name", ["attention_kl", "attention_mse", "value_relation_kl", "minilm_v2"])
def test_a_student_learns_its_teachers_attention(name: str, small_recipe: Path) -> None:
    rows = train(small_recipe, f"losses.{name}={{layers: uniform}}")
    assert len(rows) == STEPS
    assert falls(rows)


def test_minilm_v2_trains_a_student_of_other_width_and_heads_that_starts_at_random(small_recipe: Path) -> None:
    text = small_recipe.read_text(encoding="utf-8")
    text = text.replace("  initialize: {from: teacher, blocks: uniform}\n", "")
    text = text.replace("config: {", "config: {hidden_size: 24, num_attention_heads: 2, intermediate_size: 48, ")
    small_recipe.write_text(text, encoding="utf-8")
    rows = train(small_recipe, "losses.minilm_v2={relation_heads: 8}")
    assert falls(rows)
    for row in rows:
        parts = [row[f"train/minilm_v2/{part}"] for part in ("query", "key", "value")]
        assert min(parts) > 0
        assert row["train/loss"] == pytest.approx(sum(parts), rel=1e-5)


def test_other_numbers_of_heads_are_refused_before_training_with_the_line_and_the_way_out(small_recipe: Path) -> None:
    with pytest.raises(kdcore.InputError) as error:
        train(small_recipe, "losses.attention_kl={}", "student.config.num_attention_heads=2", "student.initialize=null")
    assert "losses.attention_kl" in str(error.value)
    assert "minilm_v2" in str(error.value)
