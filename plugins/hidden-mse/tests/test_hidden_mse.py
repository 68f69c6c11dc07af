"""`hidden_mse` against its definition in float64 NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from kdcore_hidden_mse.hidden_mse import HiddenMSE

import kdcore

LENGTHS = np.array([5, 2, 4])


def info(num_layers: int, hidden_size: int) -> kdcore.ModelInfo:
    return kdcore.ModelInfo("bert", num_layers, hidden_size, 2, hidden_size // 2, 100, 64)


def batch(length: int = 5) -> kdcore.Batch:
    real = np.arange(length) < LENGTHS[:, None]
    empty = torch.zeros(0, dtype=torch.int64)
    return kdcore.Batch(
        input_ids=torch.zeros(real.shape, dtype=torch.int64),
        attention_mask=torch.from_numpy(real),
        lengths=LENGTHS,
        token_index=torch.from_numpy(np.flatnonzero(real)),
        masked_index=empty,
        masked_labels=empty,
    )


def states(blocks: list[Any], width: int, seed: int, length: int = 5) -> dict[Any, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {block: generator.standard_normal((3, 5, width))[:, :length] for block in blocks}


def signals(own: kdcore.Batch, hidden: dict[Any, np.ndarray], dtype: torch.dtype = torch.float64) -> kdcore.Signals:
    return kdcore.Signals(own, {block: torch.tensor(value, dtype=dtype) for block, value in hidden.items()}, {}, {})


def value(loss: HiddenMSE, student: dict[Any, np.ndarray], teacher: dict[Any, np.ndarray]) -> float:
    own = batch()
    total = loss(signals(own, student), signals(own, teacher), own)["hidden_mse"]
    return total.item() / loss.counts(own)["hidden_mse"]


def make(layers: Any, student: kdcore.ModelInfo, teacher: kdcore.ModelInfo, **keys: Any) -> HiddenMSE:
    config = HiddenMSE.Config(name="hidden_mse", label="hidden_mse", layers=layers, **keys)
    return HiddenMSE(config, teacher, student)


@pytest.mark.parametrize("layers", ["last", "uniform", [(5, 2), (1, 2)], [("embeddings", "embeddings"), (-1, -1)]])
def test_it_is_the_mean_squared_difference_over_real_tokens_summed_over_pairs(layers: Any) -> None:
    loss = make(layers, info(3, 8), info(6, 8))
    asked = loss.requests()
    student = states(sorted(asked.student.hidden_blocks, key=str), 8, seed=1)
    teacher = states(sorted(asked.teacher.hidden_blocks, key=str), 8, seed=2)
    real = np.arange(5) < LENGTHS[:, None]
    expected = sum(((student[s] - teacher[t])[real] ** 2).mean() for t, s in loss.pairs)
    assert value(loss, student, teacher) == pytest.approx(expected, rel=1e-12)


def test_a_narrower_student_is_mapped_to_the_teachers_width() -> None:
    loss = make("last", info(3, 4), info(6, 8))
    student, teacher = states([2], 4, seed=1), states([5], 8, seed=2)
    (weight,) = loss.parameters()
    real = np.arange(5) < LENGTHS[:, None]
    mapped = student[2][real] @ weight.detach().double().numpy().T
    assert value(loss, student, teacher) == pytest.approx(((mapped - teacher[5][real]) ** 2).mean(), rel=1e-12)


def test_widths_that_differ_are_an_error_when_no_projection_is_wanted() -> None:
    with pytest.raises(kdcore.InputError, match=r"hidden sizes differ \(student 4, teacher 8\)"):
        make("last", info(3, 4), info(6, 8), projection="none")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_teacher_against_itself_is_zero_and_sums_are_float32(dtype: torch.dtype) -> None:
    loss = make("uniform", info(3, 8), info(3, 8))
    own, hidden = batch(), states([0, 1, 2], 8, seed=1)
    total = loss(signals(own, hidden, dtype), signals(own, hidden, dtype), own)["hidden_mse"]
    assert total.item() == 0
    assert total.dtype == torch.float32


def test_fp16_states_of_the_sources_batch_do_not_overflow() -> None:
    """The source sums in fp16, whose maximum is 65,504."""
    loss = make("last", info(3, 8), info(6, 8))
    own = batch()
    large = {2: np.full((3, 5, 8), 200.0)}
    total = loss(signals(own, large, torch.float16), signals(own, {5: np.zeros((3, 5, 8))}, torch.float16), own)
    assert total["hidden_mse"].item() == pytest.approx(11 * 8 * 200.0**2)


def test_further_padding_changes_nothing() -> None:
    loss = make("last", info(3, 8), info(6, 8))
    student, teacher = states([2], 8, seed=1), states([5], 8, seed=2)
    wider = [{block: np.pad(own, ((0, 0), (0, 3), (0, 0)), constant_values=9.0) for block, own in side.items()}
             for side in (student, teacher)]  # fmt: skip
    long = batch(length=8)
    padded = loss(signals(long, wider[0]), signals(long, wider[1]), long)["hidden_mse"].item()
    assert padded / loss.counts(long)["hidden_mse"] == pytest.approx(value(loss, student, teacher), rel=1e-12)


def test_it_says_what_it_reads() -> None:
    asked = make([(1, 0), (5, 2)], info(3, 8), info(6, 8)).requests()
    assert asked.teacher == kdcore.Signals.hidden([1, 5])
    assert asked.student == kdcore.Signals.hidden([0, 2])


def test_a_recipe_without_teacher_is_told() -> None:
    config = HiddenMSE.Config(name="hidden_mse", label="mine")
    with pytest.raises(kdcore.InputError, match="the recipe has none"):
        HiddenMSE(config, None, info(3, 8))
