"""Resume with every precision, ZeRO stage and pair of process counts, and compare with the undisturbed run.

Each undisturbed run writes a checkpoint at half of its steps. A copy of its folder is cut back to that checkpoint, as a
killed run leaves it, and resumed. The same number of processes must reproduce the run bit for bit. Another number adds
the same numbers in another order, so it must agree within the tolerances below; dropout is off there, because each
process draws its own.

    make test-resume                                     # the whole matrix
    make test-resume PYTEST_ARGUMENTS="-m sample"        # what continuous integration runs
    pytest tests/resume -k bf16-1-2to1                   # one row
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

STEPS, HALF = 8, 4
# Relative, and for weights of about 0.1 absolute. bf16 keeps 8 bits, so that one rounding is 0.4%.
LOSS_TOLERANCE = {"fp32": 1e-5, "bf16": 5e-3}
WEIGHT_TOLERANCE = {"fp32": 1e-5, "bf16": 1e-3}
ALLOWED = [("fp32", 0), ("fp32", 1), ("fp32", 2), ("bf16", 1), ("bf16", 2)]
PROCESSES = [(1, 1), (1, 2), (2, 1), (2, 2)]
# What continuous integration runs of the matrix: every pair of counts once, both precisions, every stage.
SAMPLE = {("fp32", 0, 1, 1), ("fp32", 1, 1, 2), ("bf16", 1, 2, 1), ("bf16", 2, 2, 2)}
CASES = [
    pytest.param(*case, id="{}-{}-{}to{}".format(*case), marks=[pytest.mark.sample] if case in SAMPLE else [])
    for case in ((*allowed, *processes) for allowed in ALLOWED for processes in PROCESSES)
]


def _losses(run: Path, kind: str) -> np.ndarray:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return np.array([row[kind] for row in rows if kind in row])


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape, (found, expected)
    return float(np.abs(found / expected - 1).max())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int, int, bool], Path]:
    """Finished runs by precision, ZeRO stage, processes and dropout, each trained when it is first needed."""
    return {}


@pytest.fixture
def train(small_recipe: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(processes: int, *overrides: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "kdcore.commands.main", "train", str(small_recipe), *overrides]
        command += ["--processes", str(processes)] if processes > 1 else []
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    return run


def _settings(precision: str, stage: int, *, dropout: bool) -> list[str]:
    return [
        f"training.precision={precision}",
        f"training.zero_stage={stage}",
        f"training.budget.steps={STEPS}",
        "training.micro_batch_size=2",
        f"student.config.hidden_dropout_prob={0.1 if dropout else 0.0}",
        "losses.masked_lm={weight: 0.1}",
        f"checkpoints.every={HALF}",
        "logging.every=3",
    ]


def _cut_back(run: Path, target: Path) -> None:
    """Copy a finished run as it was when it was killed after its last row of metrics: one checkpoint, no export."""
    shutil.copytree(run, target, ignore=shutil.ignore_patterns("exports", f"step-{STEPS:07d}", ".lock"))
    (target / "checkpoints" / "latest").write_text(f"step-{HALF:07d}", encoding="utf-8")
    recipe = target / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8")
    recipe.write_text(text.replace(str(run.parents[1]), str(target.parents[1])), encoding="utf-8")


@pytest.mark.parametrize(("precision", "stage", "before", "after"), CASES)
def test_a_resumed_run_equals_the_undisturbed_one(
    train: Callable[..., subprocess.CompletedProcess[str]],
    undisturbed: dict[tuple[str, int, int, bool], Path],
    report: Callable[..., None],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    precision: str,
    stage: int,
    before: int,
    after: int,
) -> None:
    settings = _settings(precision, stage, dropout=before == after)
    key = (precision, stage, before, before == after)
    if key not in undisturbed:
        folder = tmp_path_factory.mktemp("undisturbed")
        done = train(before, *settings, f"run.folder={folder}")
        assert done.returncode == 0, done.stderr
        undisturbed[key] = folder / "small" / "1"
    run = tmp_path / "resumed" / "small" / "1"
    _cut_back(undisturbed[key], run)
    done = train(after, *settings, f"run.folder={tmp_path / 'resumed'}")
    assert done.returncode == 0, done.stderr
    assert f"step-{HALF:07d}" in (run / "train.log").read_text(encoding="utf-8")

    expected_losses, losses = _losses(undisturbed[key], "train/loss"), _losses(run, "train/loss")
    expected_held_out, held_out = _losses(undisturbed[key], "held_out/loss"), _losses(run, "held_out/loss")
    weights = [load_file(folder / "exports" / "final" / "model.safetensors") for folder in (undisturbed[key], run)]
    assert weights[0].keys() == weights[1].keys()
    # A key's bias moves no score, so that its gradient is rounding noise, which Adam scales up to whole steps.
    names = [name for name in weights[0] if not name.endswith("attention.self.key.bias")]
    moved = max(float(np.abs(weights[1][name] - weights[0][name]).max()) for name in names)
    figures = (_relative(losses, expected_losses), _relative(held_out, expected_held_out), moved)
    same = before == after
    verdict = "bit for bit" if same else f"within {LOSS_TOLERANCE[precision]:g}"
    report(precision, str(stage), f"{before} -> {after}", *(f"{figure:.1e}" for figure in figures), verdict)
    if same:
        assert losses.tolist() == expected_losses.tolist()
        assert held_out.tolist() == expected_held_out.tolist()
        for name, expected in weights[0].items():
            np.testing.assert_array_equal(weights[1][name], expected, err_msg=name)
    else:
        assert max(figures[:2]) <= LOSS_TOLERANCE[precision]
        assert moved <= WEIGHT_TOLERANCE[precision]


@pytest.mark.parametrize("processes", [1, 2])
def test_bf16_at_stage_0_is_refused_with_the_reason(
    train: Callable[..., subprocess.CompletedProcess[str]], report: Callable[..., None], processes: int
) -> None:
    done = train(processes, *_settings("bf16", 0, dropout=False))
    assert done.returncode == 2, done.stderr
    assert "training.zero_stage" in done.stderr
    assert "allowed: 1, 2" in done.stderr
    report("bf16", "0", f"{processes} -> any", "-", "-", "-", "refused: exports would be rounded to bf16")
