"""`kdcore plugins new`: what it writes, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from kdcore_testing.scaffold.new_package import KINDS, MAX_NAME

from kdcore.commands.main import main


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def new(name: str, *kinds: str) -> int:
    return main(["plugins", "new", name, *(word for kind in kinds for word in ("--kind", kind))])


def test_it_writes_a_package_whose_component_has_the_packages_name(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert new("kdcore-last-cosine", "loss") == 0
    package = folder / "kdcore-last-cosine"
    files = sorted(str(path.relative_to(folder)) for path in package.rglob("*") if path.is_file())
    assert files == [
        "kdcore-last-cosine/README.md",
        "kdcore-last-cosine/kdcore_last_cosine/__init__.py",
        "kdcore-last-cosine/kdcore_last_cosine/loss.py",
        "kdcore-last-cosine/kdcore_last_cosine/py.typed",
        "kdcore-last-cosine/pyproject.toml",
        "kdcore-last-cosine/tests/test_last_cosine_loss.py",
    ]
    printed = capsys.readouterr().out.splitlines()
    assert set(files) <= set(printed)
    project = tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["dependencies"] == ["kdcore>=0.1"]
    assert project["optional-dependencies"] == {"test": ["pytest>=8.3", "kdcore-testing>=0.1"]}
    assert project["entry-points"] == {
        "kdcore.plugin_api": {"2": "kdcore_last_cosine"},
        "kdcore.losses": {"last_cosine": "kdcore_last_cosine.loss:LastCosineLoss"},
    }
    assert package.stat().st_mode == (package / "tests").stat().st_mode, "others can read it"


def test_several_kinds_share_a_package(folder: Path) -> None:
    assert new("mine", *KINDS, "loss") == 0
    text = (folder / "mine" / "pyproject.toml").read_text(encoding="utf-8")
    groups = tomllib.loads(text)["project"]["entry-points"]
    assert list(groups.pop("kdcore.plugin_api")) == ["2"]
    assert {group: list(points) for group, points in groups.items()} == {
        f"kdcore.{group}": ["mine"]
        for group in ("losses", "models", "tasks", "optimizers", "schedulers", "corpora", "trackers")
    }


@pytest.mark.parametrize("name", ["m", "kdcore-" + "m" * MAX_NAME])
def test_what_it_writes_is_in_the_style_that_it_asks_for(folder: Path, name: str) -> None:
    assert new(name, *KINDS) == 0
    for arguments in (["check", "--extend-select", "I,UP,B,SIM,RUF,PT,N"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *arguments, "--no-cache", str(folder / name)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_what_it_writes_imports_public_names_only(folder: Path) -> None:
    import ast

    import kdcore_preparation
    import kdcore_testing

    import kdcore

    public = {module.__name__: set(module.__all__) for module in (kdcore, kdcore_preparation, kdcore_testing)}
    assert new("mine", *KINDS) == 0
    for path in (folder / "mine").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kdcore"):
                assert {alias.name for alias in node.names} <= public[str(node.module)], path


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../mine", "lower-case letters"),
        ("Mine", "lower-case letters"),
        ("my method", "lower-case letters"),
        ("my--method", "lower-case letters"),
        ("7th", "lower-case letters"),
        ("kdcore-7th", "start with a letter"),
        ("m" * (MAX_NAME + 1), "at most"),
        ("kdcore", "is not a valid name for a package: it is used by kdcore itself"),
        ("json", "is not a valid name for a package: it is used by Python"),
        ("class", "is not a valid name for a package: it is used by Python"),
        ("numpy", "would shadow the installed module `numpy`"),
        ("kdcore-masked-lm", "a loss `masked_lm` is already installed by the package kdcore"),
    ],
)
def test_names_that_cannot_be_used_are_refused_and_nothing_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, words: str
) -> None:
    assert new(name, "loss") == 2
    assert words in capsys.readouterr().err
    assert list(folder.iterdir()) == []


def test_what_is_there_already_is_left_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "mine").mkdir()
    assert new("mine", "loss") == 2
    assert "already exists" in capsys.readouterr().err
    assert list(folder.rglob("*")) == [folder / "mine"]


def test_nothing_half_written_is_left_when_the_disk_fails(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    assert new("mine", "loss") == 1
    assert "No space left on device" in capsys.readouterr().err
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["new"], "requires the name of the package"),
        (["new", "mine"], "allowed: loss, model, task, optimizer, scheduler, corpus, tracker"),
        (["new", "mine", "--kind", "losses"], "invalid choice: 'losses'"),
        (["list", "--kind", "loss"], "unrecognized arguments: --kind loss"),
    ],
)
def test_arguments_that_make_no_sense_are_told(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main(["plugins", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert list(folder.iterdir()) == []


def test_the_help_explains_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "new", "--help"]) == 0
    text = capsys.readouterr().out
    assert "kdcore plugins new kdcore-my-method --kind loss" in text
    assert "--kind {loss,model,task,optimizer,scheduler,corpus,tracker}" in text


def test_it_needs_neither_torch_nor_transformers(folder: Path) -> None:
    code = (
        "import sys; from kdcore.commands.main import main; code = main(['plugins', 'new', 'mine', '--kind', 'loss']);"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules); sys.exit(code)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
