"""Names of components that several packages have: what is installed later changes no command and no stored run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import golden
import pytest
import yaml

import kdcore
from kdcore.commands.main import main, main_train
from kdcore.recipe.loading import load_recipe
from kdcore.registry import losses

TWIN = """
from kdcore import Command, ComponentConfig, Corpus, CorpusConfig, Loss, LossConfig, Scheduler

class L(Loss):
    class Config(LossConfig):
        '''No keys.'''
    def requests(self): raise AssertionError("the twin is used")
    def counts(self, batch): raise AssertionError("the twin is used")
    def forward(self, student, teacher, batch): raise AssertionError("the twin is used")

class R(Corpus):
    class Config(CorpusConfig):
        '''No keys.'''
    def files(self): raise AssertionError("the twin is used")
    def documents(self): raise AssertionError("the twin is used")

class S(Scheduler):
    class Config(ComponentConfig):
        '''No keys.'''
    def factor(self, progress): return 0.5

class C(Command):
    help = "a twin"
    def run(self, arguments):
        print("NAME")
        return 0
"""


def install_twin(packages: Any, name: str) -> None:
    """Install a package with the names of built-in components, of those of our packages, and one of its own."""
    module = name.replace("-", "_")
    points = {
        "kdcore.losses:twin": "L",
        "kdcore.losses:masked_lm": "L",
        "kdcore.losses:hidden_mse": "L",
        "kdcore.corpora:text": "R",
        "kdcore.schedulers:half": "S",
        "kdcore.schedulers:linear": "S",
        "kdcore.commands:train": "C",
        "kdcore.commands:recipe": "C",
        "kdcore.commands:evaluate": "C",
    }
    code = {f"{module}.py": TWIN.replace("NAME", name)}
    packages.install(name, {point: f"{module}:{cls}" for point, cls in points.items()}, code)


def stored(run: Path) -> Any:
    return yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))


def test_packages_with_the_same_names_change_no_command_and_no_recipe(
    small_recipe: Path, packages: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("kdtwin-a", "kdtwin-b"):
        install_twin(packages, name)
    run = tmp_path / "runs" / "small" / "1"
    assert main_train([str(small_recipe), "losses.masked_lm={weight: 0.1}"]) == 0, capsys.readouterr().err
    assert main(["recipe", "check", str(small_recipe)]) == 0
    assert main(["export", str(run), str(tmp_path / "out")]) == 0
    assert "twin" not in capsys.readouterr().out
    recipe = stored(run)
    assert recipe["losses"]["hidden_mse"]["name"] == "kdcore-hidden-mse:hidden_mse"
    assert recipe["losses"]["masked_lm"] == {"weight": 0.1}, "it is built in"
    assert [one["name"] for one in recipe["task"]["data"]["corpora"]] == ["kdcore-preparation:text"]
    assert recipe["tracking"] == ["jsonl"]

    assert main(["kdtwin-a:train"]) == 0
    assert capsys.readouterr().out == "kdtwin-a\n"
    assert losses.get("kdtwin-b:hidden_mse").__module__ == "kdtwin_b"
    assert main(["--help"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["kdtwin-b:train", "from", "the", "package", "kdtwin-b", "1.0"] in lines


def test_names_in_errors_and_metrics_are_those_of_the_recipe(small_recipe: Path) -> None:
    loaded = load_recipe(small_recipe, ["losses.hidden_mse.name=kdcore-hidden-mse:hidden_mse"]).components()
    assert loaded.losses["hidden_mse"].config.name == "hidden_mse"


def test_a_run_resumes_by_the_old_and_by_the_pinned_names(
    small_recipe: Path, packages: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    install_twin(packages, "kdtwin-a")
    half = ["scheduler={name: half}", "training.budget.steps=2"]
    assert main_train([str(small_recipe), *half]) == 0, capsys.readouterr().err
    run = tmp_path / "runs" / "small" / "1"
    assert stored(run)["scheduler"] == {"name": "kdtwin-a:half"}
    longer = ["training.budget.steps=3"]
    assert main_train([str(small_recipe), *half, *longer]) == 0, capsys.readouterr().err
    assert "continued from" in (run / "train.log").read_text(encoding="utf-8")

    # A run of an older version has stored the plain name.
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("kdtwin-a:half", "half"), encoding="utf-8")
    pinned = [half[0].replace("half", "kdtwin-a:half"), "training.budget.steps=4"]
    assert main_train([str(small_recipe), *pinned]) == 0, capsys.readouterr().err
    assert stored(run)["scheduler"] == {"name": "kdtwin-a:half"}

    install_twin(packages, "kdtwin-b")
    assert main_train([str(small_recipe), *half, "training.budget.steps=5"]) == 2
    assert "scheduler `half` is ambiguous" in capsys.readouterr().err
    assert main_train([str(recipe), "training.budget.steps=5"]) == 0, capsys.readouterr().err
    other = [half[0].replace("half", "kdtwin-b:half"), "training.budget.steps=6"]
    assert main_train([str(small_recipe), *other]) == 2
    error = capsys.readouterr().err
    assert "scheduler.name: differs from the recipe that the run was started with" in error
    assert "(found 'kdtwin-b:half', expected 'kdtwin-a:half')" in error


def test_a_run_of_version_0_1_resumes_beside_a_package_with_the_same_names(
    packages: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_twin(packages, "kdtwin-a")
    monkeypatch.setenv("KDCORE_CACHE", str(tmp_path / "cache"))
    run = golden.copy_golden("fp32-zero0", tmp_path)
    assert "name: kdcore-hidden-mse:" not in (run / "recipe.yaml").read_text(encoding="utf-8")
    kdcore.train(run / "recipe.yaml")
    assert "continued from step-0000004" in (run / "train.log").read_text(encoding="utf-8")
    assert stored(run)["losses"]["hidden_mse"]["name"] == "kdcore-hidden-mse:hidden_mse"
    weights = golden.tensors_of(run / "exports" / "final" / "model.safetensors")
    expected = golden.tensors_of(golden.STORED / "expected" / "fp32-zero0" / "model.safetensors")
    for name, tensor in expected.items():
        if not name.endswith("key.bias"):  # its gradient is rounding only
            assert weights[name] == pytest.approx(tensor, rel=1e-4, abs=1e-5), name
