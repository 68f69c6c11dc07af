"""A wheel that was built for kdcore 0.1 trains on this version, with at most deprecation warnings."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "golden" / "plugin-api-1"
CLASSES = """\
run: {name: classes, id: 1}
seed: 3
teacher: {name: veteran, path: TEACHER}
student: {name: veteran, config: {num_hidden_layers: 2}}
task: {name: veteran, data: moods.tsv, tokenizer: TEACHER}
losses:
  veteran: {layers: last}
  classification: {}
optimizer: {name: veteran, lr: 1.0e-2}
training: {budget: {steps: 4}, batch_size: 8}
validation: {every: 2}
tracking: [jsonl]
"""
WORDS = """\
run: {name: words, id: 1}
seed: 3
teacher: {path: TEACHER}
student: {config: {num_hidden_layers: 2}, initialize: {from: teacher, blocks: uniform}}
task:
  name: masked_lm
  data:
    tokenizer: TEACHER
    sequence_length: 32
    corpora: [{name: veteran, path: texts.jsonl, weight: 2}]
losses:
  veteran: {layers: last}
  masked_lm: {active: [0.5, 1.0]}
optimizer: {name: veteran, lr: 1.0e-3}
training: {budget: {steps: 4}, batch_size: 8}
validation: {every: never}
tracking: [jsonl]
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed wheel, in a folder for PYTHONPATH."""
    folder = tmp_path_factory.mktemp("veteran")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(SOURCE)], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        content.extractall(folder / "site")
    return folder / "site"


def kdcore(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `kdcore` with the wheel, and show deprecations."""
    environment = os.environ | {"PYTHONPATH": str(site), "KDCORE_CACHE": str(folder / "cache")}
    command = [sys.executable, "-W", "default::DeprecationWarning", "-m", "kdcore.commands.main", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def inputs(folder: Path) -> None:
    generator = random.Random(0)
    kinds = [("loud", "abcd"), ("calm", "efgh")] * 20
    moods = [f"{label}\t{' '.join(generator.choices(letters, k=5))}" for label, letters in kinds]
    (folder / "moods.tsv").write_text("\n".join(moods) + "\n", encoding="utf-8")
    texts = [f'{{"text": "{" ".join(generator.choices("abcdefgh", k=12))}"}}' for _ in range(60)]
    (folder / "texts.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8")


@pytest.mark.parametrize(("name", "recipe"), [("classes", CLASSES), ("words", WORDS)])
def test_it_trains(name: str, recipe: str, site: Path, tmp_path: Path, teacher_folder: Path) -> None:
    inputs(tmp_path)
    (tmp_path / "recipe.yaml").write_text(recipe.replace("TEACHER", str(teacher_folder)), encoding="utf-8")
    done = kdcore(site, tmp_path, "train", "recipe.yaml")
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if "Warning: " in line and "kdcore" in line]
    assert [line for line in warnings if "DeprecationWarning" not in line] == []
    run = tmp_path / "runs" / name / "1"
    assert (run / "exports" / "final" / "model.safetensors").is_file()
    assert "name: kdcore-veteran:veteran" in (run / "recipe.yaml").read_text(encoding="utf-8")


def test_its_command_and_its_errors_work(site: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(WORDS, encoding="utf-8")
    done = kdcore(site, tmp_path, "veteran", "recipe.yaml")
    assert (done.returncode, done.stdout) == (0, "veteran masked_lm\n"), done.stderr
    failed = kdcore(site, tmp_path, "veteran", "recipe.yaml", "fail")
    assert failed.returncode == 1
    assert "error: asked to fail" in failed.stderr
