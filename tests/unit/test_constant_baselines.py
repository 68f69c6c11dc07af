"""The values that best constant predictions reach, against their definitions in float64 NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from kdcore_testing.loss_checks import tiny
from kdcore_testing.signal_cases import Case, RecordingSignals, make_case

from kdcore import Batch, Head, Loss, ModelInfo, Signals, find_component

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


def teacher_rows(cases: list[Case], number: int, first: bool = False, everywhere: bool = False) -> np.ndarray:
    """Rows of the teacher's signal of that number, in the order of their names."""
    rows = []
    for case in cases:
        read = sorted(case.teacher, key=str)[number]
        states = case.teacher[read].numpy()
        if read[0] == "outputs":
            rows.append(states)
        else:
            chosen = case.masked if read[0] == "logits" and not everywhere else case.real
            rows.append(states[:, 0] if first else states[chosen])
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


def masked_batch(rows: list[list[int]], masked: list[list[int]], hidden: int = 4) -> Batch:
    """A batch of token ids with predicted columns in each row; the model sees `hidden` there."""
    longest = max(map(len, rows))
    ids = np.array([row + [0] * (longest - len(row)) for row in rows])
    real = np.array([[column < len(row) for column in range(longest)] for row in rows])
    predicted = np.array([[column in own for column in range(longest)] for own in masked])
    return Batch(
        input_ids=torch.from_numpy(np.where(predicted, hidden, ids)),
        attention_mask=torch.from_numpy(real),
        lengths=real.sum(1),
        token_index=torch.from_numpy(np.flatnonzero(real)),
        masked_index=torch.from_numpy(np.flatnonzero(predicted)),
        masked_labels=torch.from_numpy(ids[predicted]),
    )


def masked_baseline(*batches: Batch, vocab_size: int) -> float:
    info = ModelInfo("bert", 2, 8, 2, 4, vocab_size, 512)
    cls = find_component("kdcore.losses", "masked_lm").cls
    loss: Loss = cls(cls.Config(name="masked_lm", label="masked_lm"), None, info)
    parts = [loss.constant_sums(None, batch) for batch in batches]
    return loss.constant_baseline({name: sum(part[name] for part in parts) for name in parts[0]})["masked_lm"]


def test_the_constant_of_masked_tokens_has_the_frequencies_of_the_other_tokens() -> None:
    """[CLS] is 1, [SEP] is 2; of the tokens that are not predicted, 7 occurs three times, 8 twice, 9 and 5 once."""
    batches = [
        masked_batch([[1, 7, 8, 7, 9, 2], [1, 8, 6, 2]], [[2], [2]]),
        masked_batch([[1, 7, 8, 5, 7, 2]], [[4]]),
    ]
    assert sorted(id_ for batch in batches for id_ in batch.masked_labels.tolist()) == [6, 7, 8]
    counts, discount = {7: 3, 8: 2, 9: 1, 5: 1}, (2 + 1) / (2 + 2 * 1 + 2)
    total = sum(counts.values())
    spread = discount * len(counts) / total / 10  # what is taken from seen tokens is shared by all ten
    chances = {token: (counts.get(token, 0) - discount) / total + spread for token in (7, 8)} | {6: spread}
    expected = -np.mean([np.log(chances[token]) for token in (6, 7, 8)])
    assert masked_baseline(*batches, vocab_size=10) == pytest.approx(expected, rel=1e-12)
    whole = [max(counts.get(token, 0) - discount, 0) / total + spread for token in range(10)]
    assert sum(whole) == pytest.approx(1.0), "a distribution"


def test_a_few_masked_tokens_do_not_make_their_constant_too_low() -> None:
    """Near the entropy of the source for 200 predicted tokens, whose own frequencies have a much lower entropy."""
    draw = np.random.default_rng(0)
    source = 1 / np.arange(1, 2001)
    source /= source.sum()
    entropy = -(source * np.log(source)).sum()
    rows = [[1, *(5 + draw.choice(2000, 98, p=source)).tolist(), 2] for _ in range(200)]
    batch = masked_batch(rows, [[int(draw.integers(1, 99))] for _ in rows])
    own = np.unique(batch.masked_labels.numpy(), return_counts=True)[1] / 200
    found = masked_baseline(batch, vocab_size=2005)
    assert -(own * np.log(own)).sum() < entropy - 1
    assert found == pytest.approx(entropy, abs=0.4)


def test_masked_tokens_without_others_have_no_constant() -> None:
    batch = masked_batch([[1, 7, 2]], [[1]])
    loss = make_loss("masked_lm")
    assert loss.constant_baseline(loss.constant_sums(None, batch)) == {}


@pytest.mark.parametrize(
    "config", [{}, {"positions": "all", "temperature": 2.5}, {"head": "sequence_classes", "temperature": 2.0}]
)
def test_the_constant_of_soft_targets_is_the_mean_probability_of_the_other_half(config: dict[str, Any]) -> None:
    """Sequences are halved by the parity of their numbers."""
    loss = make_loss("soft_targets", **config)
    cases, temperature = cases_of(loss), config.get("temperature", 1.0)
    logits = teacher_rows(cases, 0, everywhere=config.get("positions") == "all") / temperature
    theirs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    halves = np.array([row % 2 for case in cases for row in rows_of(case, config)])
    assert len(halves) == len(theirs)
    values = []
    for own, half in zip(theirs, halves, strict=True):
        constant = theirs[halves != half].mean(0)
        values.append(temperature**2 * (own * np.log(own / constant)).sum())
    assert baseline(loss, cases)["soft_targets"] == pytest.approx(np.mean(values), rel=1e-9)


def rows_of(case: Case, config: dict[str, Any]) -> list[int]:
    """Numbers of the sequences that the scored positions of a case are part of."""
    if "head" in config:
        return list(range(case.batch.num_sequences))
    index = case.batch.token_index if config.get("positions") == "all" else case.batch.masked_index
    return [position // case.batch.input_ids.shape[1] for position in index.tolist()]


def test_the_halves_of_soft_targets_are_those_of_the_samples() -> None:
    """Batches of one sequence each have the constant of one batch of all."""
    info = ModelInfo("bert", 4, 8, 4, 2, 11, 512, heads=[Head.sequence_classes(("a", "b", "c"))])
    cls = find_component("kdcore.losses", "soft_targets").cls
    loss: Loss = cls(cls.Config(name="soft_targets", label="s", positions="classes"), info, info)
    logits = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def found(*parts: list[int]) -> float:
        total: dict[str, torch.Tensor] = {}
        for part in parts:
            batch = masked_batch([[1, 7, 2]] * len(part), [[1]] * len(part))
            batch = batch.of_samples("held_out", np.array(part), np.zeros(len(part), np.int64))
            signals = Signals(batch, {}, {}, {}, heads={"sequence_classes": logits[part]})
            for name, value in loss.constant_sums(signals, batch).items():
                total[name] = value + total[name] if name in total else value
        return loss.constant_baseline(total).get("soft_targets", math.nan)

    assert found([0], [1], [2], [3]) == pytest.approx(found([0, 1, 2, 3]), rel=1e-12)
    assert math.isnan(found([0, 2])), "no other half"


def test_a_few_soft_targets_do_not_make_their_constant_too_low() -> None:
    """Peaked predictions that are independent of the text: their mean over other positions describes them no better
    than that over very many does, whereas their own mean would."""
    draw = np.random.default_rng(0)
    info = ModelInfo("bert", 4, 8, 4, 2, 1000, 512)
    cls = find_component("kdcore.losses", "soft_targets").cls
    loss: Loss = cls(cls.Config(name="soft_targets", label="s"), info, info)
    tokens = draw.integers(0, 1000, 100)
    logits = np.full((100, 1000), -3.0)
    logits[np.arange(100), tokens] = 8.0
    batch = masked_batch([[1, 7, 2]] * 100, [[1]] * 100)
    signals = Signals(batch, {}, {}, {"masked": torch.from_numpy(logits)})
    found = loss.constant_baseline(loss.constant_sums(signals, batch))["soft_targets"]
    theirs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    own = (theirs * np.log(theirs / theirs.mean(0))).sum(1).mean()
    uniform = (theirs * np.log(theirs * 1000)).sum(1).mean()
    assert own < 0.75 * uniform
    assert found > uniform


def test_the_constant_of_a_regression_head_is_the_mean_of_the_other_half() -> None:
    info = ModelInfo("bert", 4, 8, 4, 2, 11, 512, heads=[Head.sequence_classes()])
    cls = find_component("kdcore.losses", "soft_targets").cls
    loss = cls(cls.Config(name="soft_targets", label="s", head="sequence_classes"), info, info)
    outputs = np.random.default_rng(2).standard_normal((6, 1)) + 3
    sums: dict[str, torch.Tensor] = {}
    for part in (outputs[:4], outputs[4:]):
        batch = masked_batch([[1, 7, 2]] * len(part), [[1]] * len(part))
        signals = Signals(batch, {}, {}, {}, heads={"sequence_classes": torch.from_numpy(part)})
        for name, value in loss.constant_sums(signals, batch).items():
            sums[name] = value + sums[name] if name in sums else value
    even, odd = outputs[::2], outputs[1::2]
    expected = np.concatenate([even - odd.mean(), odd - even.mean()]) ** 2
    assert loss.constant_baseline(sums)["soft_targets"] == pytest.approx(expected.mean(), rel=1e-9)
