"""Collapse of students at validation: built cases, effective rank against NumPy, and what is reported."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from kdcore import Head
from kdcore.training.loop.collapse import collapse_findings, dead_units, effective_rank, rank_ratio, relative_spread
from kdcore.training.loop.events import collapse_warning
from kdcore.training.loop.predictions import largest_class

Generator = np.random.Generator


def rank_by_numpy(states: np.ndarray) -> float:
    centred = states - states.mean(0)
    values = np.linalg.svd(centred / centred.std(0), compute_uv=False)
    shares = values / values.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


@pytest.mark.parametrize(("rows", "width"), [(50, 12), (12, 50), (400, 64), (64, 64)])
def test_the_effective_rank_is_that_of_the_singular_values_in_float64(rows: int, width: int) -> None:
    generator = np.random.default_rng(rows)
    states = generator.standard_normal((rows, width)) @ generator.standard_normal((width, width)) + 3
    states *= np.geomspace(1e-3, 1e3, width)
    assert effective_rank(torch.from_numpy(states)) == pytest.approx(rank_by_numpy(states), rel=1e-6)
    assert effective_rank(torch.from_numpy(states)) <= min(rows - 1, width)


def test_the_effective_rank_of_known_states() -> None:
    generator = np.random.default_rng(0)
    line = 2 + generator.standard_normal((40, 1)) * generator.standard_normal(16)
    assert effective_rank(torch.from_numpy(line)) == pytest.approx(1, abs=1e-3)
    axes = np.concatenate([np.eye(8), -np.eye(8)])  # singular values are equal
    assert effective_rank(torch.from_numpy(axes)) == pytest.approx(8, rel=1e-9)
    assert effective_rank(torch.full((40, 16), 3.3)) == 0
    padded = np.concatenate([axes, np.full((16, 4), 7.0)], axis=1)  # constant dimensions do not count
    assert effective_rank(torch.from_numpy(padded)) == pytest.approx(8, rel=1e-9)
    assert dead_units(torch.from_numpy(padded)) == pytest.approx(4 / 12)


def test_the_rank_does_not_depend_on_the_scale_and_the_mean_of_dimensions() -> None:
    states = np.random.default_rng(1).standard_normal((60, 10))
    moved = states * np.geomspace(1e-4, 1e4, 10) + 100 * np.geomspace(1e-4, 1e4, 10)
    assert effective_rank(torch.from_numpy(moved)) == pytest.approx(rank_by_numpy(states), rel=1e-6)


# Built students. Each returns the pooled states of student and teacher (N, d_s), (N, d_t).


def teacher_of(generator: Generator, rows: int, width: int) -> np.ndarray:
    """States whose variance falls along the dimensions of a random basis, as those of trained encoders do."""
    factors = generator.standard_normal((rows, width)) * np.arange(1, width + 1) ** -0.5
    return factors @ np.linalg.qr(generator.standard_normal((width, width)))[0] + generator.standard_normal(width)


def topics_of(generator: Generator, rows: int, width: int) -> np.ndarray:
    """States of texts on six topics, with heavy tails."""
    centres = generator.standard_normal((6, width))
    return centres[generator.integers(6, size=rows)] + generator.standard_t(4, (rows, width)) + 5


def constant_output(generator: Generator, teacher: np.ndarray) -> np.ndarray:
    return np.tile(generator.standard_normal(teacher.shape[1]), (len(teacher), 1))


def rank_one(generator: Generator, teacher: np.ndarray) -> np.ndarray:
    return generator.standard_normal(teacher.shape[1]) + teacher[:, :1] * generator.standard_normal(teacher.shape[1])


def dead_half(generator: Generator, teacher: np.ndarray) -> np.ndarray:
    states = teacher.copy()
    states[:, generator.permutation(teacher.shape[1])[: teacher.shape[1] // 2]] = 0.7
    return states


def teachers_mean(generator: Generator, teacher: np.ndarray) -> np.ndarray:
    """The mean, and noise that has nothing to do with the text."""
    return teacher.mean(0) + 0.05 * generator.standard_normal(teacher.shape)


def mean_and_little_noise(generator: Generator, teacher: np.ndarray) -> np.ndarray:
    return teacher.mean(0) + 1e-3 * generator.standard_normal(teacher.shape)


def mean_and_little_of_the_teacher(generator: Generator, teacher: np.ndarray) -> np.ndarray:
    return teacher.mean(0) + 1e-4 * teacher


def good(generator: Generator, teacher: np.ndarray) -> np.ndarray:
    return teacher + 0.3 * (teacher - teacher.mean(0)).std() * generator.standard_normal(teacher.shape)


def anisotropic(generator: Generator, teacher: np.ndarray) -> np.ndarray:
    """A few dominant dimensions, so that the mean cosine of two texts is above 0.95 (arXiv 2109.04404)."""
    states = good(generator, teacher)
    states[:, :2] += 20 * np.linalg.norm(states, axis=1).mean()
    return states


def narrow(generator: Generator, teacher: np.ndarray) -> np.ndarray:
    width = teacher.shape[1] // 3
    return teacher @ generator.standard_normal((teacher.shape[1], width)) / width**0.5


def decaying(generator: Generator, teacher: np.ndarray) -> np.ndarray:
    """A spectrum that falls faster than the teacher's."""
    basis = np.linalg.svd(teacher - teacher.mean(0), full_matrices=False)
    return teacher.mean(0) + (basis[0] * basis[1] * np.arange(1, len(basis[1]) + 1) ** -0.3) @ basis[2]


def rescaled(generator: Generator, teacher: np.ndarray) -> np.ndarray:
    return good(generator, teacher) * np.exp(generator.standard_normal(teacher.shape[1]))


def findings_of(student: np.ndarray, teacher: np.ndarray) -> dict[str, str]:
    """Judge a student as validation does, with the loss `hidden_mse` where the widths are equal."""
    values, constants = {}, {}
    if student.shape == teacher.shape:
        values["hidden_mse"] = float(((student - teacher) ** 2).mean())
        constants["hidden_mse"] = float(teacher.var(0).mean())
    checks = {"texts": float(len(student))}
    for side, states in (("student", student), ("teacher", teacher)):
        tensor = torch.from_numpy(states.astype(np.float32))
        checks |= {f"{side}_rank": effective_rank(tensor), f"{side}_dead_units": dead_units(tensor)}
        checks |= {f"{side}_width": float(states.shape[1]), f"{side}_spread": relative_spread(tensor)}
    found = collapse_findings(values, constants, checks, {}, None)
    ratio = (checks["student_rank"] - 1) / (min(checks["teacher_rank"], checks["student_width"]) - 1)
    explained = f"{1 - values['hidden_mse'] / constants['hidden_mse']:7.3f}" if values else "      -"
    numbers = f"rank ratio {ratio:6.3f}, spread {checks['student_spread']:9.2e}, explained {explained}, "
    numbers += f"dead units {checks['student_dead_units']:4.2f}"
    print(f"{len(student):5} x {student.shape[1]:3}: {numbers}: {', '.join(found) or 'healthy'}")  # shown by pytest -s
    return found


Case = Callable[[Generator, np.ndarray], np.ndarray]
NEARLY_CONSTANT: list[Case] = [mean_and_little_noise, mean_and_little_of_the_teacher]
COLLAPSED: list[Case] = [constant_output, rank_one, dead_half, teachers_mean, *NEARLY_CONSTANT]
HEALTHY: list[Case] = [good, anisotropic, narrow, decaying, rescaled]
CHOSEN_ON, OTHERS = [(teacher_of, 512, 128)], [(topics_of, 200, 48), (topics_of, 1000, 250), (topics_of, 90, 192)]
"""Data, texts and widths that the thresholds were chosen on, and others; the last has fewer texts than dimensions."""

Setting = tuple[Callable[[Generator, int, int], np.ndarray], int, int]


def draws(settings: list[Setting]) -> Iterator[tuple[Generator, np.ndarray]]:
    for data, rows, width in settings:
        for seed in range(3):
            generator = np.random.default_rng([seed, rows, width])
            yield generator, data(generator, rows, width)


@pytest.mark.parametrize("settings", [CHOSEN_ON, OTHERS], ids=["chosen on", "others"])
@pytest.mark.parametrize("case", COLLAPSED)
def test_collapsed_students_are_found(case: Case, settings: list[Setting]) -> None:
    for generator, teacher in draws(settings):
        assert findings_of(case(generator, teacher), teacher)


@pytest.mark.parametrize("settings", [CHOSEN_ON, OTHERS], ids=["chosen on", "others"])
@pytest.mark.parametrize("case", HEALTHY)
def test_healthy_students_are_not(case: Case, settings: list[Setting]) -> None:
    for generator, teacher in draws(settings):
        student = case(generator, teacher)
        judged = student if case not in (anisotropic, rescaled) else student[:, :-1]  # the loss compares a projection
        assert findings_of(judged, teacher) == {}
        if case is anisotropic:
            directions = student / np.linalg.norm(student, axis=1, keepdims=True)
            assert (directions @ directions.T).mean() > 0.95


@pytest.mark.parametrize("case", NEARLY_CONSTANT)
def test_states_of_full_rank_around_one_vector_are_found_without_a_constant_loss(case: Case) -> None:
    """Their mean cosine is 1 and their rank as high as the teacher's."""
    for generator, teacher in draws([*CHOSEN_ON, *OTHERS]):
        student = case(generator, teacher)
        directions = student / np.linalg.norm(student, axis=1, keepdims=True)
        assert (directions @ directions.T).mean() > 0.999
        assert list(findings_of(student[:, :-1], teacher)) == ["student_spread"]


def test_the_relative_spread_is_a_median_of_dimensions() -> None:
    states = 2 + np.random.default_rng(3).standard_normal((50, 9)) * np.geomspace(1e-3, 1e3, 9)
    expected = np.median(states.var(0) / (states.var(0) + states.mean(0) ** 2))
    assert relative_spread(torch.from_numpy(states)) == pytest.approx(expected, rel=1e-9)
    assert relative_spread(torch.from_numpy(states * np.geomspace(1, 1e4, 9))) == pytest.approx(expected, rel=1e-9)
    assert relative_spread(torch.full((40, 16), 3.3)) == relative_spread(torch.zeros(40, 16)) == 0


@pytest.mark.parametrize(("classes", "texts"), [(3, 60), (7, 500)])
def test_one_predicted_class_and_a_majority_score_are_found(classes: int, texts: int) -> None:
    generator = np.random.default_rng(classes)
    head, outputs = Head.sequence_classes([f"class {number}" for number in range(classes)]), {}
    outputs["collapsed"] = generator.standard_normal((texts, classes)) * 0.1 + np.eye(classes)[1]
    outputs["healthy"] = generator.standard_normal((texts, classes))
    shares = {name: largest_class(head, own) for name, own in outputs.items()}
    assert shares["collapsed"] == {"largest_class": 1.0}
    expected = max(np.mean(outputs["healthy"].argmax(1) == number) for number in range(classes))
    assert shares["healthy"] == {"largest_class": pytest.approx(expected)}
    collapsed, healthy = ({**full_rank(texts), **shares[name]} for name in ("collapsed", "healthy"))
    assert collapse_findings({}, {}, collapsed, {}, None) == {"largest_class": "all predictions are of one class"}
    baseline = {"accuracy": 0.43}
    assert collapse_findings({"accuracy": 0.5}, {}, healthy, baseline, "accuracy") == {}
    found = collapse_findings({"accuracy": 0.43}, {}, healthy, baseline, "accuracy")
    assert found["accuracy"] == "accuracy 0.4300 is not above its text-free baseline, 0.4300"


@pytest.mark.parametrize(("texts", "baseline"), [(31, 0.9), (500, 1.0)], ids=["few texts", "labels of one class"])
def test_predictions_are_not_judged_where_the_best_ones_look_the_same(texts: int, baseline: float) -> None:
    checks = full_rank(texts) | {"largest_class": 1.0}
    values = {"accuracy": baseline, "f1": 0.0}
    for metric, baselines in (("accuracy", {"accuracy": baseline}), ("f1", {"accuracy": baseline, "f1": 0.0})):
        assert collapse_findings(values, {}, checks, baselines, metric) == {}


def full_rank(texts: int) -> dict[str, float]:
    """Checks of a student whose states are those of its teacher."""
    both = {f"{side}_rank": 30.0 for side in ("student", "teacher")}
    for side in ("student", "teacher"):
        both |= {f"{side}_width": 64.0, f"{side}_dead_units": 0.0}
    return both | {"texts": float(texts)}


def test_predictions_of_tokens_numbers_and_several_labels() -> None:
    tokens = [np.eye(3)[[0, 0, 1]], np.eye(3)[[0]]]
    assert largest_class(Head.token_classes(["O", "B", "I"]), tokens) == {"largest_class": 0.75}
    assert largest_class(Head.sequence_classes(), np.zeros((4, 1))) == {}
    several = Head.sequence_classes(["a", "b"], "multi_label_classification")
    assert largest_class(several, np.zeros((4, 2))) == {}


def test_a_teacher_that_has_collapsed_itself_and_a_narrow_student() -> None:
    checks = {"student_rank": 1.0, "student_width": 8.0, "teacher_rank": 1.5}
    assert rank_ratio(checks) is None
    assert rank_ratio(checks | {"student_rank": 7.0, "teacher_rank": 300.0}) == pytest.approx(6 / 7)
    assert rank_ratio({"student_rank": 3.0, "student_width": 8.0}) is None, "without a teacher"


def test_a_warning_states_numbers_and_advice() -> None:
    checks = {"texts": 40.0, "student_rank": 1.2, "student_width": 64.0, "student_dead_units": 0.0}
    checks |= {"teacher_rank": 30.0, "teacher_width": 64.0, "teacher_dead_units": 0.0}
    findings = collapse_findings({"a": 2.0, "loss": 2.0}, {"a": 1.5, "loss": 1.5}, checks, {}, None)
    assert list(findings.values()) == [
        "the effective rank of the pooled states (40 texts, few texts) is 1.2, the teacher's is 30.0",
        "a 2 is no better than a constant prediction, 1.5",
    ]
    values = {"a": 0.9912, "b": 0.989, "c": 0.5}
    (finding,) = collapse_findings(values, dict.fromkeys(values, 1.0), {}, {}, None).values()
    assert finding == "a 0.9912 is no better than a constant prediction, 1", "less than 0.01 is explained"
    assert "; ".join(findings.values()) in collapse_warning(findings.values())
    assert "optimizer.lr" in collapse_warning(findings.values())
    assert collapse_findings({}, {}, checks | {"texts": 31.0}, {}, None) == {}, "too few texts for a rank"
