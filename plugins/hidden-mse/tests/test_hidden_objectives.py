"""All objectives of this package against float64 NumPy, and for the faults of the authors' code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from kdcore_testing import check_loss, compute_loss

import kdcore

Arrays = dict[str, list[np.ndarray]]
RAGGED = np.arange(5) < np.array([5, 2, 4])[:, None]
FULL = np.ones((3, 5), dtype=bool)


def states(blocks: int, width: int = 8, seed: int = 0) -> Arrays:
    generator = np.random.default_rng(seed)
    return {"hidden": [generator.standard_normal((3, 5, width)) for _ in range(blocks)]}


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def reference(name: str, student: np.ndarray, teacher: np.ndarray, real: np.ndarray) -> float:
    """One pair of blocks, all (B, L, d); the student already has the teacher's width."""
    s, t = (
        (student[:, 0], teacher[:, 0]) if name in ("hidden_mse_cls", "hidden_pkd") else (student[real], teacher[real])
    )
    if name in ("hidden_mse", "hidden_mse_cls"):
        return float(np.mean((s - t) ** 2))
    if name == "hidden_pkd":
        return float(np.mean(np.sum((unit(s) - unit(t)) ** 2, axis=-1)))
    return float(np.mean(1 - np.sum(s * t, axis=-1) / np.linalg.norm(s, axis=-1) / np.linalg.norm(t, axis=-1)))


PAIRWISE = ["hidden_mse", "hidden_mse_cls", "hidden_cosine", "hidden_pkd"]


@pytest.mark.parametrize("real", [FULL, RAGGED], ids=["full", "ragged"])
@pytest.mark.parametrize("layers", ["last", "uniform", [(3, 0), (1, 0), (-1, 1)]], ids=str)
@pytest.mark.parametrize("name", PAIRWISE)
def test_a_pairwise_objective_is_its_definition_summed_over_pairs(name: str, layers: Any, real: np.ndarray) -> None:
    student, teacher = states(2, seed=1), states(4, seed=2)
    found = compute_loss(name, {"layers": layers}, student=student, teacher=teacher, attention_mask=real)
    pairs = {"last": [(3, 1)], "uniform": [(1, 0), (3, 1)]}.get(str(layers), layers)
    expected = sum(reference(name, student["hidden"][s], teacher["hidden"][t], real) for t, s in pairs)
    assert found[name] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", PAIRWISE)
def test_a_narrower_student_is_mapped_by_a_learned_map_a_pair(name: str) -> None:
    student, teacher = states(2, width=4, seed=1), states(4, seed=2)
    maps = [np.random.default_rng(seed).standard_normal((8, 4)) for seed in (3, 4)]
    found = compute_loss(
        name,
        {"layers": "uniform"},
        student=student,
        teacher=teacher,
        attention_mask=RAGGED,
        parameters={f"project.maps.{pair}": one for pair, one in enumerate(maps)},
    )
    expected = sum(
        reference(name, student["hidden"][s] @ maps[s].T, teacher["hidden"][t], RAGGED) for t, s in [(1, 0), (3, 1)]
    )
    assert found[name] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", PAIRWISE)
def test_widths_that_differ_are_an_error_where_no_map_is_wanted(name: str) -> None:
    with pytest.raises(kdcore.InputError, match=r"hidden sizes differ \(student 4, teacher 8\)"):
        compute_loss(name, {"layers": "last", "projection": "none"}, student=states(2, width=4), teacher=states(4))


def test_patient_kd_leaves_the_last_pair_to_other_losses() -> None:
    student, teacher = states(3, seed=1), states(6, seed=2)
    found = compute_loss("hidden_pkd", student=student, teacher=teacher)["hidden_pkd"]
    expected = sum(
        reference("hidden_pkd", student["hidden"][s], teacher["hidden"][t], FULL) for t, s in [(1, 0), (3, 1)]
    )
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("real", [FULL, RAGGED], ids=["full", "ragged"])
@pytest.mark.parametrize("width", [8, 4])
@pytest.mark.parametrize("project", ["student", "teacher"])
def test_concat_maps_all_blocks_of_one_side_at_once(project: str, width: int, real: np.ndarray) -> None:
    student, teacher = states(2, width, seed=1), states(4, seed=2)
    own = np.concatenate(student["hidden"], axis=-1)[real]
    theirs = np.concatenate([teacher["hidden"][1], teacher["hidden"][3]], axis=-1)[real]
    mapped, kept = (own, theirs) if project == "student" else (theirs, own)
    weight = np.random.default_rng(3).standard_normal((kept.shape[1], mapped.shape[1]))
    found = compute_loss(
        "hidden_mse_concat",
        {"project": project},
        student=student,
        teacher=teacher,
        attention_mask=real,
        parameters={"weight": weight},
    )
    assert found["hidden_mse_concat"] == pytest.approx(np.mean((mapped @ weight.T - kept) ** 2), rel=1e-12)


@pytest.mark.parametrize("project", ["student", "teacher"])
def test_concat_starts_from_the_plain_difference(project: str) -> None:
    student, teacher = states(2, seed=1), states(4, seed=2)
    found = compute_loss(
        "hidden_mse_concat", {"project": project}, student=student, teacher=teacher, attention_mask=RAGGED
    )
    pairs = [(1, 0), (3, 1)]
    expected = np.mean([reference("hidden_mse", student["hidden"][s], teacher["hidden"][t], RAGGED) for t, s in pairs])
    assert found["hidden_mse_concat"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "config"),
    [(name, {"layers": "uniform"}) for name in PAIRWISE]
    + [("hidden_mse_concat", {}), ("hidden_mse_concat", {"project": "teacher"})],
)
def test_what_must_hold_for_every_objective_holds(name: str, config: dict[str, Any]) -> None:
    own: dict[str, Any] = {"maps_teacher": config.get("project") == "teacher"}
    check_loss(name, config | {"layers": "last"}, **own)
    check_loss(name, config, large=False, **own)
    narrow = kdcore.ModelInfo("bert", 2, 4, 2, 2, 11, 512, True)
    check_loss(name, config, student=narrow, large=False, **own)


# Known faults of the authors' code


@pytest.mark.parametrize("name", [*PAIRWISE, "hidden_mse_concat"])
def test_fault_1_with_several_layers_every_pair_counts(name: str) -> None:
    """In that code, only the last pair is kept, or a list that is too long is truncated silently."""
    student, teacher = states(2, seed=1), states(4, seed=2)
    before = compute_loss(name, {"layers": "uniform"}, student=student, teacher=teacher)[name]
    for block in (0, 1):
        moved = {"hidden": [value + 1.0 * (number == block) for number, value in enumerate(student["hidden"])]}
        after = compute_loss(name, {"layers": "uniform"}, student=moved, teacher=teacher)[name]
        assert abs(after - before) > 1e-3, f"block {block} of the student does not count"
    with pytest.raises(kdcore.InputError, match="multiple"):
        compute_loss(name, {"layers": "uniform"}, student=student, teacher=states(5))


@pytest.mark.parametrize("name", ["hidden_mse_cls", "hidden_pkd"])
def test_fault_2_the_first_token_of_every_sequence_is_compared_and_no_other(name: str) -> None:
    """In that code, batch-first states are transposed, so that index 0 is the first sequence with all its tokens."""
    student, teacher = states(2, seed=1), states(4, seed=2)
    before = compute_loss(name, {"layers": "last"}, student=student, teacher=teacher)[name]

    def after(sequence: int, position: int) -> float:
        last = student["hidden"][-1].copy()
        last[sequence, position] += 1.0
        moved = {"hidden": [*student["hidden"][:-1], last]}
        return compute_loss(name, {"layers": "last"}, student=moved, teacher=teacher)[name]

    assert all(after(sequence, 0) != before for sequence in range(3))
    assert all(after(0, position) == before for position in range(1, 5))


def test_fault_5_the_map_over_concatenated_states_is_a_trained_and_saved_part_of_the_loss() -> None:
    """In that code, it is re-created for each shard, unknown to the optimizer and missing in validation."""
    from kdcore_hidden_mse.concat import HiddenMSEConcat

    info = kdcore.ModelInfo("bert", 2, 4, 2, 2, 11, 512, True)
    config = HiddenMSEConcat.Config(name="hidden_mse_concat", label="hidden_mse_concat")
    loss = HiddenMSEConcat(config, info, info)
    assert [name for name, _ in loss.named_parameters()] == ["weight"]
    batch = kdcore.Batch(
        input_ids=torch.zeros(2, 3, dtype=torch.int64),
        attention_mask=None,
        lengths=np.array([3, 3]),
        token_index=torch.arange(6),
        masked_index=torch.zeros(0, dtype=torch.int64),
        masked_labels=torch.zeros(0, dtype=torch.int64),
    )
    generator = torch.Generator().manual_seed(0)
    own, theirs = (
        kdcore.Signals(batch, {block: torch.randn(2, 3, 4, generator=generator) for block in (0, 1)}, {}, {})
        for _ in range(2)
    )
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    values = []
    for _ in range(20):
        value = loss(own, theirs, batch)["hidden_mse_concat"] / loss.counts(batch)["hidden_mse_concat"]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.8 * values[0], "the map is optimised"
    again = HiddenMSEConcat(config, info, info)
    again.load_state_dict(loss.state_dict())
    with torch.no_grad():
        (expected,), (found,) = loss.eval()(own, theirs, batch).values(), again.eval()(own, theirs, batch).values()
    assert found == expected, "validation and a resumed run see the map that was trained"


@pytest.mark.parametrize("name", [*PAIRWISE, "hidden_mse_concat"])
def test_fault_6_half_precision_states_are_summed_in_float32(name: str) -> None:
    """In that code, the sum is computed in fp16, whose maximum is 65,504, and divided afterwards."""
    student = {"hidden": [np.full((3, 5, 8), 200.0, dtype=np.float16)]}
    teacher = {"hidden": [np.full((3, 5, 8), -200.0, dtype=np.float16)]}
    with np.errstate(over="ignore"):
        faulty = np.sum((student["hidden"][0] - teacher["hidden"][0]) ** 2, dtype=np.float16)
    assert np.isinf(faulty)
    found = compute_loss(name, {"layers": "last"}, student=student, teacher=teacher)[name]
    expected = {"hidden_cosine": 2.0, "hidden_pkd": 4.0}.get(name, 400.0**2)
    assert found == pytest.approx(expected, rel=1e-5)
