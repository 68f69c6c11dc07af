"""Components in packages outside of the core: messages about missing, broken and unfit packages, and old names."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def test_a_subcommand_of_a_missing_package_is_refused_with_the_pip_command(
    without: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    without("kdcore-budget-bert")
    assert main(["recipe", "import"]) == 2
    error = capsys.readouterr().err
    assert "unknown command `recipe import`" in error
    assert "`pip install kdcore-budget-bert`" in error


@pytest.mark.parametrize(
    ("recipe", "places", "package"),
    [
        ("how-to-distill-your-bert/att_kl.yaml", ["losses.attention_kl"], "kdcore-attention"),
        ("how-to-distill-your-bert/hidden_mse.yaml", ["losses.hidden_mse"], "kdcore-hidden-mse"),
        ("how-to-distill-your-bert/pear_col.yaml", ["losses.attention_pearson"], "kdcore-pearson"),
        ("minilm_v2/6x384.yaml", ["losses.minilm_v2"], "kdcore-minilm"),
        ("base/classification-6x768.yaml", ["task"], "kdcore-supervised"),
        ("fine-tuning/sequence_classification.yaml", ["task", "losses.classification"], "kdcore-supervised"),
    ],
)
def test_a_shipped_recipe_names_the_missing_package_at_every_place(
    recipe: str, places: list[str], package: str, without: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    without(package)
    assert main(["recipe", "check", f"kdcore:{recipe}"]) == 2
    problems = capsys.readouterr().err.split("error: ")
    named = [problem for problem in problems if f"`pip install {package}`" in problem]
    assert [problem.split(": ")[1] for problem in named] == places
    assert all(": unknown " in problem.splitlines()[0] for problem in named)


def test_a_suite_without_its_package_is_refused_with_the_pip_command(
    without: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    without("kdcore-evaluation")
    assert main(["evaluate", "runs/small/1", "--on", "kdcore:suites/quick.yaml"]) == 2
    assert "`pip install kdcore-evaluation`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("group", "name", "package"),
    [
        ("kdcore.corpora", "wikipedia", "kdcore-preparation"),
        ("kdcore.preparations", "raw_text", "kdcore-preparation"),
        ("kdcore.trackers", "wandb", "kdcore-wandb"),
        ("kdcore.models", "budget_bert", "kdcore-budget-bert"),
        ("kdcore.summary_rows", "similarity", "kdcore-evaluation"),
    ],
)
def test_a_component_of_a_missing_package_is_refused_with_the_pip_command(
    group: str, name: str, package: str, without: Callable[..., None]
) -> None:
    without(package)
    with pytest.raises(kdcore.PluginError, match=f"unknown .* `{name}`(.|\n)*`pip install {package}`"):
        registry.ALL[group].get(name)


def test_evaluation_that_is_newer_than_supervised_names_the_package_to_upgrade(
    packages: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    requires = ("kdcore>=0.1", "kdcore-supervised>=0.2,<0.3")
    commands = {f"kdcore.commands:{name}": "never_imported:X" for name in ("evaluate", "compare", "sweep")}
    packages.install("kdcore-evaluation", commands, version="0.2", requires=requires)
    for name in ("evaluate", "compare", "sweep"):
        assert main([name, "runs/small/1"]) == 2
        message, hint = capsys.readouterr().err.splitlines()
        comes = f"command `{name}` comes from kdcore-evaluation 0.2"
        assert message == f"error: {comes}, which needs kdcore-supervised<0.3,>=0.2 (found 0.1.0)"
        assert hint == '  Hint: Run `pip install "kdcore-supervised<0.3,>=0.2"`.'
    assert main(["--help"]) == 0
    assert "broken" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "component", "package", "place", "what"),
    [
        ("masked_lm: {}", "hidden_mse: {}", "losses:hidden_mse", "kdcore-hidden-mse", "5: losses.hidden_mse", "loss"),
        ("data: data", "data: {}", "preparations:raw_text", "kdcore-preparation", "3: task.data", "preparation"),
    ],
)
def test_a_package_for_a_newer_kdcore_is_named_at_its_line(
    old: str,
    new: str,
    component: str,
    package: str,
    place: str,
    what: str,
    packages: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    packages.install(package, {f"kdcore.{component}": "never_imported:X"}, version="0.3", requires=("kdcore>=0.3",))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace(old, new), encoding="utf-8")
    for command in (["recipe", "check", "recipe.yaml"], ["train", "recipe.yaml"]):
        assert main(command) == 2
        message, hint = capsys.readouterr().err.splitlines()
        built = f"of {package} 0.3 is built for kdcore>=0.3, but kdcore 0.1.0 is installed"
        name = component.partition(":")[2]
        assert message == f"error: {tmp_path}/recipe.yaml:{place}: {what} `{name}` {built}"
        assert hint == '  Hint: Run `pip install "kdcore>=0.3"`.'
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.yaml", "site"]


def test_recipe_check_reports_failed_imports_beside_unknown_names(
    packages: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    packages.install("kdbad", {"kdcore.losses:bad": "kdbad_x:X"}, {"kdbad_x.py": "import no_such_flash\n"})
    monkeypatch.chdir(tmp_path)
    losses = "masked_lm: {wieght: 2}\n  bad: {}\n  hiden_mse: {}"
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("masked_lm: {}", losses), encoding="utf-8")
    assert main(["recipe", "check", "recipe.yaml"]) == 2
    error = capsys.readouterr().err
    assert "recipe.yaml:6: losses.bad: loss `bad` of kdbad 1.0 (kdbad_x:X) cannot be imported" in error
    assert "recipe.yaml:7: losses.hiden_mse: unknown loss `hiden_mse`" in error
    assert "recipe.yaml:5: losses.masked_lm.wieght: unknown key" in error
    assert error.count("error: ") == 3


def test_recipe_check_reports_unknown_names_beside_wrong_keys_of_the_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = RECIPE.replace("masked_lm: {}", "hiden_mse: {}").replace("steps: 10", "stepps: 10")
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    assert main(["recipe", "check", "recipe.yaml"]) == 2
    error = capsys.readouterr().err
    assert "unknown loss `hiden_mse`" in error
    assert "unknown key `stepps`" in error


@pytest.mark.parametrize("broken", ["kdcore_supervised", "kdcore_preparation"])
def test_a_command_that_cannot_import_a_required_package_names_it(
    broken: str, packages: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a separate process, because these packages are already imported in this one."""
    packages.install("no-package", {}, {f"{broken}/__init__.py": "import no_such_module\n"})
    (tmp_path / "suite.yaml").write_text("name: tiny\n", encoding="utf-8")
    command = [sys.executable, "-m", "kdcore.commands.main", "evaluate", "teacher", "--on", "suite.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(packages.folder)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 2, done.stderr
    message, hint = done.stderr.splitlines()
    assert message.startswith("error: command `evaluate` of kdcore-evaluation 0.1.0 cannot import its dependencies: ")
    assert f"No module named 'no_such_module' ({packages.folder}/{broken}/__init__.py:1)" in message
    assert "`kdcore plugins check`" in hint


def test_the_old_public_name_warns_and_is_the_registered_class() -> None:
    with pytest.warns(DeprecationWarning, match=r"use `kdcore_supervised\.SequenceClassification`"):
        old = kdcore.SequenceClassification
    assert old is registry.tasks.get("sequence_classification")
    assert "SequenceClassification" not in kdcore.__all__


def test_the_old_public_name_without_its_package_names_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kdcore_supervised", None)
    with pytest.raises(AttributeError, match="pip install kdcore-supervised"):
        _ = kdcore.SequenceClassification
