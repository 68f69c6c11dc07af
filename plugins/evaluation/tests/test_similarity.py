"""Agreement of two encoders, against SciPy's definition written out."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from kdcore_evaluation.probes import similarity
from kdcore_evaluation.probes.similarity import compare, rank_correlation


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
