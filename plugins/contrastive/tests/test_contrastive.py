"""`contrastive` against its definition in float64 NumPy, and its memory."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from kdcore_contrastive.contrastive import Contrastive
from kdcore_contrastive.memory import Memory
from kdcore_testing import check_loss, compute_loss

import kdcore

SAMPLES = 40
IDS = np.array([7, 0, 39])


def unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True))


def draw(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


STUDENT, TEACHER = {"hidden": [draw(3, 4, 6, seed=1)]}, {"hidden": [draw(3, 4, 8, seed=2)]}
STATE: dict[str, np.ndarray] = {
    "embed_student.weight": draw(5, 6, seed=3),
    "embed_teacher.weight": draw(5, 8, seed=4),
    "memory.embeddings": unit(draw(2, SAMPLES, 5, seed=5)).astype(np.float32),
}
OWN = unit(STUDENT["hidden"][0][:, 0] @ STATE["embed_student.weight"].T)
THEIRS = unit(TEACHER["hidden"][0][:, 0] @ STATE["embed_teacher.weight"].T)


def value(config: dict[str, Any], parameters: dict[str, Any] | None = None, **columns: Any) -> float:
    return compute_loss(
        "contrastive",
        {"samples": SAMPLES, "embedding_size": 5} | config,
        student=STUDENT,
        teacher=TEACHER,
        sample_ids=IDS,
        parameters=STATE | (parameters or {}),
        **columns,
    )["contrastive"]


def reference(others: np.ndarray, means: tuple[float, float] | None, temperature: float = 0.07) -> float:
    """`others` (B, K) are the negatives' ids; `means` are Z / n, or None for those of the batch."""
    memory = STATE["memory.embeddings"].astype(np.float64)
    total = 0.0
    for direction, (anchors, rows) in enumerate(((OWN, memory[1]), (THEIRS, memory[0]))):
        powers = [
            np.exp(np.append(rows[others[b]] @ anchors[b], OWN[b] @ THEIRS[b]) / temperature) for b in range(len(IDS))
        ]
        z = SAMPLES * (np.mean(powers) if means is None else means[direction])
        for one in powers:
            p = one / z
            noise = others.shape[1] / SAMPLES
            d = p / (p + noise)
            total -= (np.log(d[-1]) + np.log(1 - d[:-1]).sum()) / 2
    return float(total / len(IDS))


def negatives(count: int, labels: np.ndarray | None = None, classes: np.ndarray | None = None) -> np.ndarray:
    memory = Memory(SAMPLES, 5, 0.5)
    if classes is not None:
        memory.classes.copy_(torch.from_numpy(classes))
    return memory.draw(torch.from_numpy(IDS), None if labels is None else torch.from_numpy(labels), count).numpy()


@pytest.mark.parametrize("count", [3, 30])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_it_is_the_definition_with_z_of_the_first_batch(count: int, temperature: float) -> None:
    found = value({"negatives": count, "temperature": temperature})
    assert found == pytest.approx(reference(negatives(count), None, temperature), rel=1e-6)  # Z is kept in float32


def test_it_is_the_definition_with_z_of_an_earlier_batch() -> None:
    means = 3.0, 0.25
    found = value({"negatives": 30}, {"memory.log_mean": np.log(means)})
    assert found == pytest.approx(reference(negatives(30), means), rel=1e-6)


def test_all_other_samples_are_negatives_by_default_where_they_are_few() -> None:
    assert value({}) == pytest.approx(reference(negatives(SAMPLES - 1), None), rel=1e-6)


def test_negatives_are_other_samples_evenly() -> None:
    others = negatives(60_000)
    for sample, row in zip(IDS, others, strict=True):
        counts = np.bincount(row, minlength=SAMPLES)
        assert counts[sample] == 0
        expected = 60_000 / (SAMPLES - 1)
        assert np.abs(np.delete(counts, sample) - expected).max() < 5 * np.sqrt(expected)
    assert np.corrcoef(others)[0, 1] < 0.02


def test_with_labels_negatives_are_of_other_classes_evenly() -> None:
    classes = np.arange(SAMPLES) % 3
    classes[20:25] = -1  # not seen yet
    labels = classes[IDS]
    others = negatives(30_000, labels, classes)
    for label, row in zip(labels, others, strict=True):
        assert label not in classes[row]
        assert set(row) == set(np.flatnonzero(classes != label))
    found = value({"negatives": 30, "other_classes": True}, {"memory.classes": classes}, labels=labels)
    assert found == pytest.approx(reference(negatives(30, labels, classes), None), rel=1e-6)


def test_other_classes_request_labels() -> None:
    with pytest.raises(AssertionError, match="requests the column `labels`"):
        value({"other_classes": True})


def test_more_samples_than_the_memory_has_places_are_told() -> None:
    with pytest.raises(
        kdcore.InputError, match="the memory of `contrastive` has 40 rows, but the data has sample 40"
    ) as caught:
        compute_loss(
            "contrastive", {"samples": SAMPLES}, student=STUDENT, teacher=TEACHER, sample_ids=np.array([1, 40, 2])
        )
    assert "number of training samples" in str(caught.value)


def test_more_negatives_than_other_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="must be less than `samples`, 40"):
        Contrastive.Config(name="contrastive", label="mine", samples=SAMPLES, negatives=40)


@pytest.mark.parametrize("config", [{"negatives": 50}, {"negatives": 50, "other_classes": True}], ids=str)
def test_what_must_hold_for_every_objective_holds(config: dict[str, Any]) -> None:
    check_loss("contrastive", {"samples": 256, **config})
    narrow = kdcore.ModelInfo("bert", 2, 4, 2, 2, 11, 512)
    check_loss("contrastive", {"samples": 256, **config}, student=narrow, large=False)


# The memory


def make(**config: Any) -> Contrastive:
    torch.manual_seed(0)
    student, teacher = (kdcore.ModelInfo("bert", 1, size, 2, size // 2, 11, 512, False) for size in (6, 8))
    keys = {"samples": SAMPLES, "negatives": 10, "embedding_size": 5} | config
    return Contrastive(Contrastive.Config(name="contrastive", label="mine", **keys), teacher, student)


def run(loss: Contrastive, ids: np.ndarray, seed: int = 1) -> torch.Tensor:
    nothing = torch.zeros(0, dtype=torch.int64)
    batch = kdcore.Batch(
        input_ids=torch.zeros(len(ids), 4, dtype=torch.int64),
        attention_mask=None,
        lengths=np.full(len(ids), 4),
        token_index=torch.arange(4 * len(ids)),
        masked_index=nothing,
        masked_labels=nothing,
        columns={"sample_ids": torch.from_numpy(ids), "labels": torch.from_numpy(ids % 3)},
    )
    own, theirs = (
        kdcore.Signals(batch, {0: torch.from_numpy(draw(len(ids), 4, width, seed=seed)).float()}, {}, {})
        for width in (6, 8)
    )
    found: torch.Tensor = loss(own, theirs, batch)["contrastive"]
    return found


def test_a_row_moves_towards_the_new_embedding_and_others_stay() -> None:
    loss = make(momentum=0.75)
    before = loss.memory.embeddings.numpy().astype(np.float64)
    run(loss, IDS)
    for side, (width, embed) in enumerate(((6, loss.embed_student), (8, loss.embed_teacher))):
        new = unit(draw(3, 4, width, seed=1)[:, 0] @ embed.weight.detach().double().numpy().T)
        expected = before[side].copy()
        expected[IDS] = unit(0.75 * expected[IDS] + 0.25 * new)
        np.testing.assert_allclose(loss.memory.embeddings[side].numpy(), expected, atol=1e-6)


def test_a_sample_that_is_in_a_batch_twice_is_written_once_with_its_last_embedding() -> None:
    twice, once = make(), make()
    run(twice, np.array([4, 9, 4]))
    last = copy.deepcopy(once)
    run(last, np.array([8, 9, 4]))  # the same states, under another name the first time
    torch.testing.assert_close(twice.memory.embeddings[:, [4, 9]], last.memory.embeddings[:, [4, 9]])


def test_z_is_estimated_once_and_negatives_change_from_step_to_step() -> None:
    loss = make()
    assert loss.memory.log_mean.isinf().all()
    run(loss, IDS, seed=1)
    first, others = loss.memory.log_mean.clone(), loss.memory.draw(torch.from_numpy(IDS), None, 10)
    run(loss, IDS, seed=2)
    assert torch.equal(loss.memory.log_mean, first)
    assert not torch.equal(loss.memory.draw(torch.from_numpy(IDS), None, 10), others)


def test_validation_changes_nothing_and_always_draws_the_same() -> None:
    loss = make(other_classes=True).eval()
    held_out = np.array([100, 3, 5])  # numbers of another split, which may be larger
    for _ in range(2):  # before anything is known, and after training steps
        before = copy.deepcopy(loss.state_dict())
        with torch.no_grad():
            values = {run(loss, held_out).item() for _ in range(2)}
        assert len(values) == 1
        assert np.isfinite(values.pop())
        for name, tensor in loss.state_dict().items():
            assert torch.equal(tensor, before[name]), name
        run(loss.train(), IDS)
        loss.eval()


def test_a_resumed_loss_goes_on_exactly() -> None:
    loss = make(other_classes=True)
    run(loss, IDS)
    torch.manual_seed(99)
    again = Contrastive(loss.config, *(kdcore.ModelInfo("bert", 1, d, 2, d // 2, 11, 512, False) for d in (8, 6)))
    again.load_state_dict(copy.deepcopy(loss.state_dict()))
    for seed in (2, 3):
        assert run(loss, IDS[:2], seed) == run(again, IDS[:2], seed)
    for name, tensor in loss.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_memory_stays_float32_where_weights_are_cast(dtype: torch.dtype) -> None:
    loss = make()
    before = {name: buffer.clone() for name, buffer in loss.named_buffers()}
    torch.nn.ModuleDict({"mine": loss}).to(dtype)
    assert loss.embed_student.weight.dtype == dtype
    for name, buffer in loss.named_buffers():
        assert buffer.dtype == before[name].dtype
        assert torch.equal(buffer, before[name])
    assert run(loss, IDS).dtype == torch.float32


def test_both_sides_embeddings_are_learned() -> None:
    loss = make()
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.05)
    values = []
    for _ in range(30):
        found = run(loss, np.arange(20)) / 20
        optimizer.zero_grad()
        found.backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in loss.parameters())
        optimizer.step()
        values.append(found.item())
    assert np.mean(values[-5:]) < 0.8 * values[0]
