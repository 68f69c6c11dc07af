"""`kdcore summary --layers`, compared with transformers, NumPy and SciPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kdcore_evaluation.probes.cka import debiased_cka, dominant_dimensions
from kdcore_evaluation.probes.layer_comparison import error_groups
from kdcore_evaluation.run.layer_report import LAYERS, read_layers
from scipy.spatial.distance import jensenshannon
from scipy.stats import ortho_group
from transformers import AutoModelForMaskedLM

import kdcore
from kdcore import load_recipe
from kdcore.commands.main import main
from kdcore.training.run.build import make_plan


def hsic_1(first: np.ndarray, second: np.ndarray) -> float:
    """HSIC_1 of Song et al. (2012), equation 5, from Gram matrices."""
    n = len(first)
    k, m = first @ first.T, second @ second.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    ones = np.ones(n)
    total = (k * m).sum() + ones @ k @ ones * (ones @ m @ ones) / ((n - 1) * (n - 2))
    return float(total - 2 / (n - 2) * (ones @ k @ m @ ones)) / (n * (n - 3))


def reference_cka(first: np.ndarray, second: np.ndarray) -> float:
    return hsic_1(first, second) / np.sqrt(hsic_1(first, first) * hsic_1(second, second))


def biased_cka(first: np.ndarray, second: np.ndarray) -> float:
    first, second = first - first.mean(0), second - second.mean(0)
    norms = [np.linalg.norm(a.T @ b) ** 2 for a, b in ((first, second), (first, first), (second, second))]
    return float(norms[0] / np.sqrt(norms[1] * norms[2]))


def cka(first: np.ndarray, second: np.ndarray) -> float:
    return float(debiased_cka([torch.from_numpy(first)], [torch.from_numpy(second)]).all[0, 0])


@pytest.fixture
def features() -> tuple[np.ndarray, np.ndarray]:
    """Dependent features of 60 tokens: (60, 7) and (60, 90), far from 0."""
    generator = np.random.default_rng(2)
    first = generator.normal(size=(60, 7)) + 3
    return first, first @ generator.normal(size=(7, 90)) + generator.normal(size=(60, 90)) - 5


def test_cka_equals_the_estimate_from_gram_matrices(features: tuple[np.ndarray, np.ndarray]) -> None:
    first, second = features
    expected = reference_cka(first, second)
    assert 0.3 < expected < 0.95
    assert cka(first, second) == pytest.approx(expected, rel=1e-10)
    blocks = [[torch.from_numpy(one) for one in (first, second)], [torch.from_numpy(one) for one in (second, first)]]
    assert debiased_cka(*blocks).all == pytest.approx(np.array([[expected, 1], [1, expected]]), rel=1e-10)


def test_cka_does_not_depend_on_rotation_scale_and_shift(features: tuple[np.ndarray, np.ndarray]) -> None:
    first, second = features
    turned = second @ ortho_group.rvs(90, random_state=3) * 17 + 4
    assert cka(first, turned) == pytest.approx(cka(first, second), rel=1e-9)
    assert cka(second, turned) == pytest.approx(1, rel=1e-9)


def test_independent_features_have_no_similarity_in_contrast_to_the_biased_estimate() -> None:
    generator = np.random.default_rng(4)
    pairs = [(generator.normal(size=(40, 80)), generator.normal(size=(40, 80))) for _ in range(200)]
    values = np.array([cka(*pair) for pair in pairs])
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(len(values))
    assert abs(values).max() < 0.3
    assert min(biased_cka(*pair) for pair in pairs) > 0.5


def test_constant_states_have_no_similarity() -> None:
    states = torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
    assert np.isnan(debiased_cka([states], [torch.ones(50, 2)]).all).all()


def test_dominant_dimensions_are_left_out(features: tuple[np.ndarray, np.ndarray]) -> None:
    """A single shared dimension determines the similarity of otherwise independent states."""
    generator = np.random.default_rng(5)
    first, second = generator.normal(size=(2, 400, 6))
    shared = generator.normal(size=400) * 50
    first[:, 2], second[:, 4] = shared, -shared
    states = [torch.from_numpy(one).float() for one in (first, second)]
    assert [dominant_dimensions(one).nonzero().flatten().tolist() for one in states] == [[2], [4]]
    found = debiased_cka(states[:1], states[1:])
    assert found.all[0, 0] > 0.99
    expected = reference_cka(np.delete(first, 2, 1), np.delete(second, 4, 1))
    assert found.without_dominant[0, 0] == pytest.approx(expected, abs=1e-6)
    assert abs(expected) < 0.1
    assert not dominant_dimensions(torch.from_numpy(features[0])).any()


def test_groups_divide_at_their_lowest_values() -> None:
    values = {"student": np.array([1.0, 2.0, 4.0, 8.0]), "teacher": np.array([0.0, 0.0, 2.0, 1.0])}
    groups = error_groups(values, np.array([0.0, 9.9, 10.0, 5000.0]), (0, 10, 100, 1000))
    assert [(one.lowest, one.highest, one.count) for one in groups] == [(0, 10, 2), (10, 100, 1), (1000, None, 1)]
    assert [one.values for one in groups] == [
        {"student": 1.5, "teacher": 0.0},
        {"student": 4.0, "teacher": 2.0},
        {"student": 8.0, "teacher": 1.0},
    ]


@pytest.fixture
def trained(small_recipe: Path, tmp_path: Path) -> Path:
    """A finished run with more than 2,000 tokens of held-out text, in which letters differ in frequency."""
    generator = np.random.default_rng(6)
    shares = 2.0 ** -np.arange(12)
    letters = generator.choice(list("abcdefghijkl"), (200, 40), p=shares / shares.sum())
    text = "\n".join("".join(row[: generator.integers(5, 40)]) for row in letters)
    (tmp_path / "letters.txt").write_text(text, encoding="utf-8")
    corpus = "task.data.corpora=[{name: text, path: letters.txt, documents: lines}]"
    pairs = "losses.hidden_mse.layers=[[1, 0], [3, 1]]"
    return kdcore.train(small_recipe, [corpus, "task.data.held_out=0.5", pairs]).folder


def outputs_of(model: str | Path, run: Path) -> dict[str, Any]:
    """States, attention and losses of a model by transformers, on the batches of validation."""
    task = make_plan(load_recipe(run / "recipe.yaml")).task
    network = AutoModelForMaskedLM.from_pretrained(model, attn_implementation="eager").eval()
    samples = np.arange(task.num_samples("held_out"))
    batch = task.batch("held_out", samples, np.zeros_like(samples))
    mask = torch.arange(batch.input_ids.shape[1]) < torch.from_numpy(batch.lengths)[:, None]
    with torch.no_grad():
        out = network(
            input_ids=batch.input_ids, attention_mask=mask.long(), output_hidden_states=True, output_attentions=True
        )
    losses = torch.nn.functional.cross_entropy(
        out.logits.flatten(0, 1)[batch.masked_index], batch.masked_labels, reduction="none"
    )
    ids, _ = task.sequences("held_out", samples)  # type: ignore[misc]
    return {
        "states": [one[mask].double().numpy() for one in out.hidden_states],
        "attention": [one.numpy() for one in out.attentions],
        "losses": losses.numpy(),
        "masked_ids": batch.masked_labels.numpy(),
        "ids": ids[:, : mask.shape[1]][mask.numpy()],
        "positions": np.nonzero(mask.numpy())[1],
        "lengths": batch.lengths,
        "task": task,
    }


def test_the_report_of_a_run(trained: Path, teacher_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", str(trained)]) == 0
    assert "CKA" not in capsys.readouterr().out
    assert not (trained / LAYERS).exists()
    assert main(["summary", str(trained), "--layers"]) == 0
    table = capsys.readouterr().out
    report = read_layers(trained)
    assert report is not None
    teacher = outputs_of(teacher_folder, trained)
    students = {
        name: outputs_of(trained / "exports" / export, trained)
        for name, export in (("student", "final"), ("initial", "initial"))
    }
    assert report.tokens == len(teacher["ids"]) >= 2000
    assert report.teacher_blocks == ["embeddings", 0, 1, 2, 3]
    assert report.student_blocks == ["embeddings", 0, 1]
    assert report.pairs == [(1, 0), (3, 1)]
    for name, own in students.items():
        expected = [[reference_cka(t, s) for s in own["states"]] for t in teacher["states"]]
        assert np.array(report.cka[name]) == pytest.approx(np.array(expected), abs=2e-5)
        kept = [
            [one[:, one.var(0) <= 10 * np.sort(one.var(0))[15]] for one in side["states"]] for side in (teacher, own)
        ]
        expected = [[reference_cka(t, s) for s in kept[1]] for t in kept[0]]
        assert np.array(report.cka_without_dominant[name]) == pytest.approx(np.array(expected), abs=2e-5)
        for heads, (theirs, ours) in zip(report.heads, [(1, 0), (3, 1)], strict=True):
            assert (heads.teacher, heads.student) == (theirs, ours)
            assert heads.divergence[name] == pytest.approx(divergences(teacher, own, theirs, ours), abs=1e-5)
    assert "CKA of 3 and 1" in table
    assert f"{report.cka['student'][4][2]:.3f} (before training: {report.cka['initial'][4][2]:.3f})" in table
    check_errors(report, teacher, students)
    assert sum(line.startswith("CKA, teacher's") for line in table.splitlines()) == 5


def divergences(teacher: dict[str, Any], student: dict[str, Any], theirs: int, ours: int) -> np.ndarray:
    """Mean Jensen-Shannon divergence of each head by SciPy, over the real queries."""
    pair = teacher["attention"][theirs], student["attention"][ours]
    found = []
    for row, length in enumerate(teacher["lengths"]):
        first, second = (one[row, :, :length, :length].astype(np.float64) for one in pair)
        found.append(jensenshannon(first, second, base=2, axis=2) ** 2)
    return np.concatenate(found, axis=1).mean(1)


def check_errors(report: Any, teacher: dict[str, Any], students: dict[str, dict[str, Any]]) -> None:
    """Compare the errors with those of transformers' outputs, grouped in plain Python."""
    ids, lengths = teacher["task"].sequences("train", np.arange(teacher["task"].num_samples("train")))
    words = [word for row, length in zip(ids, lengths, strict=True) for word in row[:length]]
    target = teacher["states"][4]
    variance = ((target - target.mean(0)) ** 2).sum(1).mean()
    errors = {name: ((own["states"][2] - target) ** 2).sum(1) / variance for name, own in students.items()}
    losses = {"teacher": teacher["losses"], **{name: own["losses"] for name, own in students.items()}}
    assert [(one.measure, one.by) for one in report.errors] == [
        (measure, by) for measure in ("masked_lm", "state") for by in ("frequency", "position")
    ]
    expected = {"masked_lm": (losses, teacher["masked_ids"]), "state": (errors, teacher["ids"])}
    for one in report.errors:
        values, tokens = expected[one.measure]
        assert one.overall == pytest.approx({name: each.mean() for name, each in values.items()}, rel=1e-4)
        assert sum(group.count for group in one.groups) == len(tokens)
        if one.by == "frequency":
            rates = np.array([words.count(token) / len(words) * 1e6 for token in tokens])
            for group in one.groups:
                inside = (rates >= group.lowest) & (rates < (group.highest or np.inf))
                assert group.count == inside.sum()
                assert group.values == pytest.approx(
                    {name: each[inside].mean() for name, each in values.items()}, rel=1e-4
                )
        elif one.measure == "state":
            for group in one.groups:
                inside = (teacher["positions"] >= group.lowest) & (teacher["positions"] < (group.highest or np.inf))
                assert group.values == pytest.approx(
                    {name: each[inside].mean() for name, each in values.items()}, rel=1e-4
                )


def test_without_enough_held_out_text_the_option_is_refused(
    small_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = kdcore.train(small_recipe).folder
    capsys.readouterr()
    assert main(["summary", str(run), "--layers"]) == 2
    assert "expected at least 2,000" in capsys.readouterr().err
    assert not (run / LAYERS).exists()


@pytest.mark.parametrize("text", ["", "{", '{"format": 2}', "[" * 9000, '{"format": 1, "export": 3}'])
def test_a_damaged_file_is_left_out_with_a_warning(text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_layers(tmp_path) is None
    assert not caplog.records
    (tmp_path / LAYERS).write_text(text, encoding="utf-8")
    assert read_layers(tmp_path) is None
    assert str(tmp_path / LAYERS) in caplog.text
