"""Components that moved out of the core: what a user without their package is told, and old names with it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import kdcore
from kdcore import registry
from kdcore.commands.main import main

RECIPE = """\
run: {name: test}
student: {initialize: {from: no-model}}
task: {name: masked_lm, data: data}
losses:
  masked_lm: {}
training: {budget: {steps: 10}, batch_size: 8}
"""


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Hide installed packages from discovery: `without("kdcore-supervised")`."""

    def hide(*packages: str) -> None:
        found = registry._installed(registry._path_state())
        left = {
            group: [entry for entry in entries if entry.distribution not in packages]
            for group, entries in found.items()
        }
        monkeypatch.setattr(registry, "_installed", lambda state: left)

    return hide


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("name: masked_lm, data: data", "name: sequence_classification, data: {}", "recipe.yaml:3: task"),
        ("masked_lm: {}", "classification: {}", "recipe.yaml:5: losses.classification"),
    ],
)
def test_a_recipe_that_needs_a_missing_package_is_refused_with_the_pip_command(
    old: str,
    new: str,
    place: str,
    without: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    without("kdcore-supervised")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace(old, new), encoding="utf-8")
    for command in (["recipe", "check", "recipe.yaml"], ["train", "recipe.yaml"]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert f"{place}: unknown " in error
        assert "`pip install kdcore-supervised`" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.yaml"]


@pytest.mark.parametrize("command", ["evaluate", "compare", "sweep"])
def test_a_command_of_a_missing_package_is_refused_with_the_pip_command(
    command: str, without: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    without("kdcore-evaluation")
    assert main([command, "runs/small/1"]) == 2
    error = capsys.readouterr().err
    assert f"unknown command `{command}`" in error
    assert "`pip install kdcore-evaluation`" in error


def test_the_old_public_name_warns_and_is_the_registered_class() -> None:
    with pytest.warns(DeprecationWarning, match=r"use `kdcore_supervised\.SequenceClassification`"):
        old = kdcore.SequenceClassification
    assert old is registry.tasks.get("sequence_classification")
    assert "SequenceClassification" not in kdcore.__all__


def test_the_old_public_name_without_its_package_names_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kdcore_supervised", None)
    with pytest.raises(AttributeError, match="pip install kdcore-supervised"):
        _ = kdcore.SequenceClassification
