"""docs/trust.md: nothing that comes from a run folder is executed, unless the command line allows it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

import kdcore
from kdcore.commands.main import main
from kdcore.recipe.imports import is_of_a_run

CODE = 'from pathlib import Path\n\nPath({marker!r}).write_text("ran")\n'
HARMLESS = "VALUE = 1\n"
COMMANDS: dict[str, list[str]] = {
    "recipe check": ["recipe", "check", "{run}/recipe.yaml"],
    "summary": ["summary", "{run}"],
    "export": ["export", "{run}", "exported"],
    "debug batch": ["debug", "batch", "{run}", "1"],
    "profile": ["profile", "{run}/recipe.yaml", "--steps", "1"],
    "evaluate": ["evaluate", "{run}", "--on", "suite.yaml"],
}


@pytest.fixture
def stored(
    small_recipe: Path, tmp_path: Path, write_mood_suite: Callable[[Path, str], None]
) -> tuple[Path, Path, Path]:
    """A finished run with `imports:`, its imported file, and the file that code in it would write."""
    code, marker = tmp_path / "code.py", tmp_path / "RAN"
    code.write_text(HARMLESS, encoding="utf-8")
    write_mood_suite(tmp_path, "seeds: [1]\nbudget: {steps: 1}\nprobes: {cost: {}}\n")
    assert main(["train", str(small_recipe), "imports=[code.py]", "training.budget.steps=1"]) == 0
    # What somebody might have put there before the folder was handed on.
    code.write_text(CODE.format(marker=str(marker)), encoding="utf-8")
    return tmp_path / "runs" / "small" / "1", code, marker


@pytest.mark.parametrize(
    "command",
    [pytest.param(one, marks=pytest.mark.processes if one == "evaluate" else ()) for one in COMMANDS],
)
def test_imports_of_a_run_folder_are_skipped_with_a_warning_or_allowed(
    stored: tuple[Path, Path, Path],
    command: str,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    run, code, marker = stored
    arguments = [word.format(run=run) for word in COMMANDS[command]]
    with caplog.at_level(logging.WARNING, logger="kdcore"):
        assert main(arguments) == 0, capfd.readouterr().err
    assert not marker.exists()
    words = caplog.text + capfd.readouterr().err
    lines = (run / "recipe.yaml").read_text(encoding="utf-8").splitlines()
    line = "" if command == "evaluate" else f":{lines.index('imports:') + 1}"
    assert f"{run}/recipe.yaml{line}: imports: skipped {code}" in words
    assert "`--allow-imports` runs such files" in words
    if command == "export":
        arguments[2] = "exported again"
    assert main([*arguments, "--allow-imports"]) == 0
    assert marker.exists() or command == "evaluate"  # its children ran it


def test_train_runs_the_imports_of_the_recipe_that_it_is_given(stored: tuple[Path, Path, Path]) -> None:
    run, _, marker = stored
    assert main(["train", str(run / "recipe.yaml"), "run.id=2"]) == 0
    assert marker.exists()


def test_an_override_states_imports_on_the_command_line(stored: tuple[Path, Path, Path]) -> None:
    run, code, marker = stored
    assert main(["recipe", "check", str(run / "recipe.yaml"), f"imports=[{code}]"]) == 0
    assert marker.exists()


def test_a_users_recipe_runs_its_imports_and_not_those_of_a_run_that_it_extends(
    stored: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    run, code, marker = stored
    own = tmp_path / "own.yaml"
    own.write_text(f"extends: {run}/recipe.yaml\n", encoding="utf-8")
    assert kdcore.load_recipe(own).allowed_imports == []
    kdcore.load_recipe(own).components()
    assert not marker.exists()
    own.write_text(f"extends: {run}/recipe.yaml\nimports: [{code}]\n", encoding="utf-8")
    assert kdcore.load_recipe(own).allowed_imports == [str(code)]
    kdcore.load_recipe(own).components()
    assert marker.exists()


def test_a_link_to_the_recipe_of_a_run_is_the_recipe_of_a_run(stored: tuple[Path, Path, Path], tmp_path: Path) -> None:
    run, _, marker = stored
    (tmp_path / "link.yaml").symlink_to(run / "recipe.yaml")
    assert main(["recipe", "check", str(tmp_path / "link.yaml")]) == 0
    assert not marker.exists()


@pytest.mark.parametrize("mark", ["checkpoints", "exports", "environment.json", "metrics.jsonl", "train.log"])
def test_the_recipe_of_a_run_is_known_by_what_lies_beside_it(tmp_path: Path, mark: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("{}", encoding="utf-8")
    assert not is_of_a_run(recipe)
    (tmp_path / mark).mkdir()
    assert is_of_a_run(recipe)
    assert not is_of_a_run(tmp_path / "other.yaml")


def test_a_component_of_a_skipped_file_gets_a_hint(
    small_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = small_recipe.read_text(encoding="utf-8").replace("hidden_mse: {layers: last}", "of_a_file: {}")
    (tmp_path / "recipe.yaml").write_text(text + "imports: [code.py]\n", encoding="utf-8")
    (tmp_path / "code.py").write_text("1 / 0\n", encoding="utf-8")
    (tmp_path / "metrics.jsonl").write_text("", encoding="utf-8")
    assert main(["recipe", "check", str(tmp_path / "recipe.yaml")]) == 2
    printed = capsys.readouterr().err
    assert "unknown loss `of_a_file`" in printed
    assert "if a file under `imports:` registers it, run the command with `--allow-imports`" in printed


def test_custom_code_of_a_model_is_not_trusted_by_the_recipe_of_a_run(
    small_recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = small_recipe.read_text(encoding="utf-8").replace("teacher: {path", "teacher: {trust_remote_code: true, path")
    for name in ("own.yaml", "recipe.yaml"):
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "train.log").write_text("", encoding="utf-8")

    def trusts(name: str, **options: bool) -> bool | None:
        (teacher,) = kdcore.load_recipe(tmp_path / name, **options).components().teachers.values()
        trusted: bool | None = teacher.config.trust_remote_code
        return trusted

    assert trusts("own.yaml") is True
    assert trusts("recipe.yaml", allow_imports=True) is True
    assert caplog.text == ""
    assert trusts("recipe.yaml") is None
    assert "recipe.yaml:3: teacher.trust_remote_code: left out, because the recipe is that of a run" in caplog.text
