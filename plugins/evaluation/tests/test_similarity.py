"""Agreement of two encoders, against definitions in SciPy."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from kdcore_evaluation.probes import similarity
from kdcore_evaluation.probes.similarity import compare, rank_correlation
from kdcore_evaluation.probes.similarity_rows import SimilarityRows
from scipy import stats


class Bag:
    """An encoder whose state of a token is a row of a table."""

    def __init__(self, table: torch.Tensor) -> None:
        self.table = table
        self.devices: list[str] = []

    def to(self, device: torch.device | str) -> Bag:
        self.devices.append(str(device))
        return self

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        assert self.devices[-1] == str(input_ids.device) == str(attention_mask.device)
        return SimpleNamespace(last_hidden_state=self.table[input_ids])


def test_rank_correlation_is_the_textbook_one() -> None:
    first = np.array([0.1, 0.9, 0.4, 0.7])
    second = np.array([10.0, 30.0, 40.0, 20.0])
    differences = np.array([1, 4, 2, 3]) - np.array([1, 3, 4, 2])
    assert rank_correlation(first, second) == pytest.approx(1 - 6 * (differences**2).sum() / (4 * 15))


def test_padding_does_not_count_and_scaling_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(50, 6, generator=generator)
    rows = np.random.default_rng(0).integers(0, 50, (40, 9))
    lengths = np.random.default_rng(1).integers(2, 10, 40)
    agreement = compare(Bag(table), Bag(3 * table), rows, lengths)
    assert agreement.cosine == pytest.approx(1.0)
    assert agreement.rank_correlation == pytest.approx(1.0)
    padded = rows.copy()
    for row, length in zip(padded, lengths, strict=True):
        row[length:] = 0
    other = torch.randn(50, 6, generator=generator)
    one, two = (compare(Bag(table), Bag(other), version, lengths) for version in (rows, padded))
    assert one.cosine == pytest.approx(two.cosine)
    assert one.rank_correlation == pytest.approx(two.rank_correlation)
    assert abs(one.rank_correlation) < 0.3


def test_both_encoders_compute_on_the_gpu_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device replaces a GPU; its numbers are not read."""
    monkeypatch.setattr(similarity, "fastest_device", lambda: torch.device("meta"))
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: torch.rand(tensor.shape))
    one, two = (Bag(torch.zeros(50, 6, device="meta")) for _ in range(2))
    agreement = compare(one, two, np.zeros((40, 9), dtype=np.int64), np.full(40, 9))
    assert agreement.sequences == 40
    assert one.devices == two.devices == ["meta", "cpu"]


def summarised(texts: int) -> tuple[dict[str, str], np.ndarray]:
    """Rows of a run, and the cosine of each text by NumPy."""
    draw = np.random.default_rng(1)
    rows, lengths = draw.integers(0, 50, (texts, 9)), np.full(texts, 9)
    tables = [torch.randn(50, 6, generator=torch.Generator().manual_seed(0))]
    tables += [tables[0] + torch.randn(50, 6, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    pooled = [table.numpy()[rows].mean(1) for table in tables[:2]]
    first, second = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in pooled)
    task: Any = SimpleNamespace(
        num_samples=lambda split: texts,
        sequences=lambda split, samples: (rows, lengths),
        teacher_sequences=lambda split, samples: None,
    )
    models = {name: Bag(table) for name, table in zip(("teacher", "student", "initial"), tables, strict=True)}
    run: Any = SimpleNamespace(task=task, **models)
    return SimilarityRows().rows(run), (first * second).sum(1)


def test_the_summary_shows_intervals_over_texts() -> None:
    rows, cosines = summarised(60)
    number, bounds = r"-?\d\.\d{3}", r"\[(-?\d\.\d{3}), (-?\d\.\d{3})\]"
    found = re.fullmatch(
        rf"mean cosine ({number}) {bounds} to the teacher's; before training: {number} {bounds}", rows["embeddings"]
    )
    assert found is not None, rows
    assert float(found[1]) == pytest.approx(cosines.mean(), abs=6e-4)
    error = float(stats.sem(cosines))
    expected = stats.t.interval(0.95, 59, cosines.mean(), error)
    assert [float(found[2]), float(found[3])] == pytest.approx(expected, abs=0.25 * error)
    assert re.fullmatch(
        rf"rank correlation {number} {bounds}, all pairs of 60 texts; before training: {number} {bounds}",
        rows["similarities"],
    )


def test_a_few_texts_have_no_interval() -> None:
    rows, cosines = summarised(29)
    assert rows["embeddings"].startswith(f"mean cosine {cosines.mean():.3f} to the teacher's; ")
    assert "[" not in rows["similarities"]
