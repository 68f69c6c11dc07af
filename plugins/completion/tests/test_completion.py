"""Completion in a real bash: what Tab offers for a line as typed so far."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kdcore_completion.recipe_words import recipe_words

import kdcore
from kdcore.commands.main import main

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
ASK = """
eval "$(kdcore completion bash)"
while IFS= read -r COMP_LINE; do
    COMP_POINT=${#COMP_LINE} COMP_TYPE=9 COMPREPLY=()
    function=$(complete -p "${COMP_LINE%% *}" | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
    "$function" "${COMP_LINE%% *}"
    (IFS=$'\\t'; echo "${COMPREPLY[*]}")
done
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("completion")
    (folder / "mine.yaml").write_text("seed: 1\n", encoding="utf-8")
    (folder / "notes.txt").write_text("\n", encoding="utf-8")
    return folder


def complete(project: Path, *lines: str) -> list[list[str]]:
    """Return what bash offers for each line, sorted, without the space that follows a finished word."""
    environment = os.environ | {"KDCORE_CACHE": str(project / "cache")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-c", ASK], input="\n".join(lines) + "\n", cwd=project, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [sorted(word.strip() for word in line.split("\t") if word) for line in done.stdout.splitlines()]


def test_commands_subcommands_and_options(project: Path) -> None:
    first, near, own, added, option = complete(
        project, "kdcore ", "kdcore compl", "kdcore plugins s", "kdcore recipe im", "kdcore-train mine.yaml --sm"
    )
    names = {name for name in kdcore.component_names("kdcore.commands") if " " not in name}
    assert set(first) == names
    assert near == ["completion"]
    assert own == ["show"]
    assert added == ["import"]
    assert option == ["--smoke"]


def test_names_of_components_and_recipe_files(project: Path) -> None:
    shown, files, shipped = complete(
        project, "kdcore plugins show hidden_p", "kdcore-train mi", "kdcore train kdcore:quick"
    )
    assert shown == ["hidden_pkd"]
    assert files == ["mine.yaml"]
    assert shipped == ["quickstart.yaml"]  # bash treats `kdcore:` as a separate word


def test_keys_and_values_of_recipes(project: Path) -> None:
    key, value, component, nested, none = complete(
        project,
        "kdcore-train mine.yaml training.pre",
        "kdcore-train mine.yaml training.precision=",
        "kdcore train mine.yaml seed=2 optimizer.name=lam",
        "kdcore train mine.yaml losses.hidden_mse.layers=un",
        "kdcore train mine.yaml training.nothing",
    )
    assert key == ["training.precision="]
    assert value == ["bf16", "fp16", "fp32"]
    assert component == ["lamb"]
    assert nested == ["uniform"]
    assert none == []


def test_words_are_stored_until_the_packages_change(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDCORE_CACHE", str(project / "words"))
    schema = {"properties": {"a": {"$ref": "#/$defs/b"}}, "$defs": {"b": {"properties": {"c": {"enum": ["d", 2]}}}}}
    monkeypatch.setattr("kdcore_completion.recipe_words._schema", lambda: schema)
    stored = {"": ["kdcore:x.yaml"], "seed": []}
    first = recipe_words()
    assert first["a.c"] == ["2", "d"]
    assert "kdcore:quickstart.yaml" in first[""]
    (file,) = (project / "words").glob("completion-*.json")
    file.write_text(json.dumps(stored), encoding="utf-8")
    assert recipe_words() == stored
    file.write_text("{", encoding="utf-8")
    assert recipe_words() == first


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_code_of_each_shell_calls_the_program(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert "kdcore-complete" in capsys.readouterr().out


def test_an_unknown_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "csh"]) == 2
    assert "bash" in capsys.readouterr().err
