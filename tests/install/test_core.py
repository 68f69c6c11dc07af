"""`pip install kdcore kdcore-hidden-mse` is enough to distil on a prepared folder."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kdcore_preparation import DataRecipe, prepare

NOT_REQUIRED = ["mwparserfromhell", "sentencex", "charset-normalizer", "scikit-learn", "scipy", "datasets", "h5py"]


@pytest.fixture(scope="module")
def installed(install: Callable[..., Any]) -> Any:
    return install("kdcore", "kdcore-hidden-mse")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, teacher_folder: Path, corpus_file: Path) -> Path:
    """A folder with a recipe and prepared data."""
    folder = tmp_path_factory.mktemp("project")
    corpora = [{"name": "text", "path": str(corpus_file), "documents": "lines"}]
    data = DataRecipe(tokenizer=str(teacher_folder), sequence_length=48, held_out=0.1, corpora=corpora)
    prepare(data, folder / "prepared", workers=1)
    (folder / "recipe.yaml").write_text(
        f"""\
run: {{name: small, id: 1}}
teacher: {{path: {teacher_folder}}}
student:
  config: {{num_hidden_layers: 2}}
  initialize: {{from: teacher, blocks: uniform}}
task: {{name: masked_lm, data: prepared}}
losses:
  hidden_mse: {{layers: last}}
training: {{budget: {{steps: 6}}, batch_size: 8, precision: fp32}}
validation: {{every: 3}}
checkpoints: {{every: 3}}
logging: {{every: 1}}
tracking: [jsonl]
""",
        encoding="utf-8",
    )
    return folder


def succeed(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def distributions(installed: Any, folder: Path) -> set[str]:
    """Names of what is installed, as Python's own metadata gives them."""
    code = "from importlib import metadata; print(*(one.name.lower() for one in metadata.distributions()))"
    return set(succeed(installed.run("python", "-c", code, cwd=folder)).stdout.replace("_", "-").split())


def test_only_what_the_core_needs_is_installed(installed: Any, project: Path) -> None:
    found = distributions(installed, project)
    assert {name for name in found if name.startswith("kdcore")} == {"kdcore", "kdcore-hidden-mse"}
    assert found.isdisjoint(NOT_REQUIRED)


def test_a_student_is_trained_resumed_exported_and_summarised(installed: Any, project: Path) -> None:
    checked = succeed(installed.run("kdcore", "recipe", "check", "recipe.yaml", cwd=project))
    assert checked.stderr == ""
    succeed(installed.run("kdcore-train", "recipe.yaml", "training.budget.steps=3", cwd=project))
    resumed = succeed(installed.run("kdcore-train", "recipe.yaml", cwd=project))
    run = project / "runs" / "small" / "1"
    assert "continued from step-0000003" in resumed.stderr
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4, 5, 6]
    held_out = {row["step"]: row["held_out/hidden_mse"] for row in rows if "held_out/hidden_mse" in row}
    assert 0 < held_out[6] < held_out[0]

    succeed(installed.run("kdcore", "export", run, "exported", cwd=project))
    code = "from transformers import AutoModelForMaskedLM as M; print(M.from_pretrained('exported').num_parameters())"
    parameters = int(succeed(installed.run("python", "-c", code, cwd=project)).stdout)
    summary = succeed(installed.run("kdcore", "summary", run, cwd=project)).stdout
    assert f"{held_out[0]:.4f} at the start, {held_out[6]:.4f} at the end" in summary
    assert "teacher 4, student 2" in summary
    assert 5_000 < parameters < 100_000
    assert "inference speed" not in summary, "a row of kdcore-evaluation"
    succeed(installed.run("kdcore", "checkpoint", "verify", run, cwd=project))
    listed = succeed(installed.run("kdcore", "runs", "list", "runs", cwd=project)).stdout
    assert "small/1" in listed
    assert "finished" in listed


def test_all_components_can_be_imported(installed: Any, project: Path) -> None:
    lines = succeed(installed.run("kdcore", "plugins", "check", cwd=project)).stdout.splitlines()
    assert lines[-1] == f"{len(lines) - 1} components, 0 broken"
    assert any(line.startswith("loss hidden_mse of kdcore-hidden-mse ") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "package"),
    [
        (["evaluate", "runs/small/1", "--on", "kdcore:suites/quick.yaml"], "kdcore-evaluation"),
        (["recipe", "import"], "kdcore-budget-bert"),
        (["recipe", "check", "kdcore:quickstart.yaml"], "kdcore-preparation"),
        (["recipe", "check", "kdcore:how-to-distill-your-bert/att_kl.yaml"], "kdcore-attention"),
        (["prepare", "data.yaml", "out"], "kdcore-preparation"),
        (["launch", "recipe.yaml"], "kdcore-launch"),
        (["plugins", "new", "kdcore-mine", "--kind", "loss"], "kdcore-testing"),
    ],
)
def test_what_other_packages_bring_is_refused_with_the_pip_command(
    installed: Any, project: Path, arguments: list[str], package: str
) -> None:
    done = installed.run("kdcore", *arguments, cwd=project)
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"`pip install {package}`" in done.stderr
    assert "Traceback" not in done.stderr
