"""The values that best constant predictions reach, against their definitions in float64 NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from kdcore_testing.loss_checks import tiny
from kdcore_testing.signal_cases import Case, RecordingSignals, make_case

from kdcore import Head, Loss, ModelInfo, Signals, find_component

TEACHER = tiny(4)
SIZES = [(5, 2, 7), (3,), (1, 6)]


def make_loss(name: str, teacher: ModelInfo = TEACHER, **config: Any) -> Loss:
    cls = find_component("kdcore.losses", name).cls
    loss: Loss = cls(cls.Config(name=name, label=name, **config), teacher, tiny(2))
    return loss


def cases_of(loss: Loss) -> list[Case]:
    generator, requests = np.random.default_rng(3), loss.requests()
    infos = (tiny(2), TEACHER)
    cases = []
    for lengths in SIZES:
        labels = {"labels": generator.integers(0, 3, len(lengths))}
        cases.append(make_case((requests.student, requests.teacher), infos, lengths, generator, labels))
    return cases


def baseline(loss: Loss, cases: list[Case]) -> dict[str, float]:
    total: dict[str, torch.Tensor] = {}
    for case in cases:
        batch = case.batch
        teacher = RecordingSignals(batch, case.teacher) if loss.requests().teacher else None
        for name, value in loss.constant_sums(teacher, batch).items():
            total[name] = value + total[name] if name in total else value
    return loss.constant_baseline(total)


def teacher_rows(cases: list[Case], number: int, first: bool = False) -> np.ndarray:
    """Rows of the teacher's signal of that number, in the order of their names."""
    rows = []
    for case in cases:
        read = sorted(case.teacher, key=str)[number]
        states = case.teacher[read].numpy()
        if read[0] == "outputs":
            rows.append(states)
        else:
            rows.append(states[:, 0] if first else states[case.masked if read[0] == "logits" else case.real])
    return np.concatenate(rows)


@pytest.mark.parametrize(("name", "first"), [("hidden_mse", False), ("hidden_mse_cls", True)])
def test_the_best_constant_state_is_the_mean_of_the_teachers(name: str, first: bool) -> None:
    loss = make_loss(name, layers="uniform")
    cases = cases_of(loss)
    expected = sum(teacher_rows(cases, number, first).var(0).mean() for number in range(2))
    assert baseline(loss, cases) == {name: pytest.approx(expected, rel=1e-12)}


@pytest.mark.parametrize(("name", "first", "factor"), [("hidden_cosine", False, 1.0), ("hidden_pkd", True, 2.0)])
def test_the_best_constant_direction_is_the_mean_direction(name: str, first: bool, factor: float) -> None:
    loss = make_loss(name, layers="last")
    cases = cases_of(loss)
    rows = teacher_rows(cases, 0, first)
    directions = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    mean = directions.mean(0)
    expected = factor * (1 - directions @ (mean / np.linalg.norm(mean))).mean()
    found = baseline(loss, cases)
    assert found == {name: pytest.approx(expected, rel=1e-12)}
    others = np.random.default_rng(1).standard_normal((50, len(mean)))
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    assert found[name] < factor * (1 - directions @ others.T).mean(0).min()


def test_the_best_constant_of_masked_tokens_is_their_frequencies() -> None:
    loss = make_loss("masked_lm")
    cases = cases_of(loss)
    labels = np.concatenate([case.labels[case.masked] for case in cases])
    frequencies = np.unique(labels, return_counts=True)[1] / len(labels)
    assert baseline(loss, cases) == {"masked_lm": pytest.approx(-(frequencies * np.log(frequencies)).sum(), rel=1e-12)}


@pytest.mark.parametrize("config", [{}, {"temperature": 2.5}, {"head": "sequence_classes", "temperature": 2.0}])
def test_the_best_constant_of_soft_targets_is_the_mean_of_the_teachers_probabilities(config: dict[str, Any]) -> None:
    loss = make_loss("soft_targets", **config)
    cases, temperature = cases_of(loss), config.get("temperature", 1.0)
    logits = teacher_rows(cases, 0) / temperature
    theirs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)

    def value(constant: np.ndarray) -> float:
        return float(temperature**2 * (theirs * np.log(theirs / constant)).sum(1).mean())

    found = baseline(loss, cases)["soft_targets"]
    assert found == pytest.approx(value(theirs.mean(0)), rel=1e-9)
    for other in np.random.default_rng(1).dirichlet(np.full(theirs.shape[1], 5.0), 50):
        assert found < value(other)


def test_the_best_constant_of_a_regression_head_has_the_variance() -> None:
    info = ModelInfo("bert", 4, 8, 4, 2, 11, 512, heads=[Head.sequence_classes()])
    cls = find_component("kdcore.losses", "soft_targets").cls
    loss = cls(cls.Config(name="soft_targets", label="s", head="sequence_classes"), info, info)
    outputs = np.random.default_rng(2).standard_normal((6, 1)) + 3
    batch = cases_of(make_loss("masked_lm"))[0].batch
    sums: dict[str, torch.Tensor] = {}
    for part in (outputs[:4], outputs[4:]):
        signals = Signals(batch, {}, {}, {}, heads={"sequence_classes": torch.from_numpy(part)})
        for name, value in loss.constant_sums(signals, batch).items():
            sums[name] = value + sums[name] if name in sums else value
    assert loss.constant_baseline(sums)["soft_targets"] == pytest.approx(outputs.var(), rel=1e-9)
