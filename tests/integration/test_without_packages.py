"""The core by itself: it trains on prepared folders, and errors name the package that is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from kdcore_preparation import DataRecipe, prepare

RUNNER = Path(__file__).parents[1] / "without_packages.py"
ROOT = RUNNER.parents[1]
OTHER_PACKAGES = {
    folder.name for folder in ROOT.glob("*/*/kdcore_*") if folder.is_dir() and folder.name != "kdcore_hidden_mse"
} | {folder.name for folder in ROOT.glob("launch/kdcore_*")}
NOT_REQUIRED = {"mwparserfromhell", "sentencex", "charset_normalizer", "sklearn", "scipy", "datasets", "h5py"}
PIP = "pip install kdcore-preparation"

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(small_recipe: Path, tmp_path: Path) -> Run:
    """Run `kdcore ...` without any of our packages but kdcore-hidden-mse; modules that it loads go to `modules`."""

    def start(*arguments: str) -> subprocess.CompletedProcess[str]:
        hidden = ",".join(sorted(OTHER_PACKAGES | NOT_REQUIRED))
        command = [sys.executable, str(RUNNER), hidden, str(tmp_path / "modules"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), timeout=300)

    return start


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_run_on_a_prepared_folder_loads_the_core_and_its_method_only(
    run: Run, small_recipe: Path, teacher_folder: Path, corpus_file: Path, tmp_path: Path
) -> None:
    corpora = [{"name": "text", "path": str(corpus_file), "documents": "lines"}]
    data = DataRecipe(tokenizer=str(teacher_folder), sequence_length=48, held_out=0.1, corpora=corpora)
    prepare(data, tmp_path / "prepared", workers=1)

    done = run("train", str(small_recipe), f"task.data={tmp_path / 'prepared'}")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (tmp_path / "runs/small/1/metrics.jsonl").read_text().splitlines()]
    assert max(row["step"] for row in rows) == 6
    assert (tmp_path / "runs/small/1/exports/final/model.safetensors").is_file()

    loaded = [Path(line) for line in (tmp_path / "modules").read_text(encoding="utf-8").splitlines()]
    ours = {file for file in loaded if file.is_relative_to(ROOT) and "site-packages" not in file.parts} - {RUNNER}
    folders = {ROOT / "kdcore", ROOT / "plugins" / "hidden-mse" / "kdcore_hidden_mse"}
    assert {file for file in ours if not any(file.is_relative_to(folder) for folder in folders)} == set()
    assert all(any(file.is_relative_to(folder) for file in ours) for folder in folders)


@pytest.mark.parametrize("where", ["recipe", "file"])
def test_a_data_recipe_is_refused_at_check_time(run: Run, small_recipe: Path, tmp_path: Path, where: str) -> None:
    (tmp_path / "data.yaml").write_text("sequence_length: 48\ncorpora: [{name: text, path: a}]\n", encoding="utf-8")
    error = error_of(run("recipe", "check", str(small_recipe), *(["task.data=data.yaml"] if where == "file" else [])))
    line = f"{small_recipe}:9" if where == "recipe" else f"{tmp_path / 'data.yaml'}:1"
    assert f"error: {line}: task.data: this section is read by the preparation `raw_text`, which is not inst" in error
    assert PIP in error


@pytest.mark.parametrize("command", ["prepare", "data", "tokenizer"])
def test_commands_name_the_package_that_brings_them(run: Run, command: str) -> None:
    error = error_of(run(command, "a", "b"))
    assert f"unknown command `{command}`" in error
    assert PIP in error


def test_the_schema_needs_no_package(run: Run) -> None:
    done = run("recipe", "schema")
    assert done.returncode == 0
    assert done.stderr == ""
    assert "kdcore.losses:kdcore-hidden-mse:hidden_mse" in json.loads(done.stdout)["$defs"]


def test_names_that_have_moved_say_where_to() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(RUNNER.parent)!r}); from without_packages import Hiding\n"
        "sys.meta_path[:] = [Hiding(finder, {'kdcore_preparation'}) for finder in sys.meta_path]\n"
        "import kdcore\n"
        "assert not hasattr(kdcore, 'open_input')\n"
        "kdcore.DataRecipe"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    expected = "AttributeError: `kdcore.DataRecipe` is now `kdcore_preparation.DataRecipe`: " + PIP
    assert done.stderr.strip().splitlines()[-1] == expected
