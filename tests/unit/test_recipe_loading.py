"""Recipes: core keys, names, contradictions, imports, components."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdcore.errors import InputError, PluginError, RecipeError
from kdcore.recipe.loading import load_config, load_recipe
from kdcore.recipe.paths import shipped_recipes
from kdcore.recipe.sweep import SweepFile, as_override
from kdcore.registry import schedulers

RECIPE = """\
run: {name: test, id: 1}
student: {config: {num_hidden_layers: 2}}
task: {name: masked_lm, data: data}
losses:
  masked_lm: {}
training:
  budget: {steps: 10}
  batch_size: 8
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE, encoding="utf-8")
    return file


def failure(file: Path, *overrides: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        load_recipe(file, overrides)
    return caught.value


def test_what_is_not_said_has_its_default(recipe):
    loaded = load_recipe(recipe)
    assert loaded.settings.run.id == "1"
    assert loaded.settings.training.precision == "fp32"
    assert loaded.settings.optimizer == {"name": "adamw"}
    assert loaded.settings.tracking == ["tensorboard", "jsonl"]
    assert "optimizer" not in loaded.data


def test_the_origin_of_every_value_is_known(recipe, monkeypatch, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    loaded = load_recipe(recipe, ["training.batch_size=4"])
    assert str(loaded.origin("training.budget.steps")) == f"{recipe}:7"
    assert str(loaded.origin("training.batch_size")) == "override `training.batch_size=4`"
    assert str(loaded.origin("training.precision")) == f"{recipe}:6", "of what is not stated: the section's"
    assert loaded.origin("task.data").folder == recipe.parent
    assert loaded.origin("training.batch_size").folder == elsewhere


def test_everything_that_is_wrong_is_told_at_once(recipe):
    error = failure(
        recipe, "training.precison=fp16", "seed=x", "losses.hiden_mes={}", "task.name=5", "optimizer.name=adamx"
    )
    assert {problem.key for problem in error.problems} == {
        "training.precison",
        "seed",
        "losses.hiden_mes",
        "task.name",
        "optimizer",
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [("seed", 7), ("run.name", "other"), ("training.budget", {"steps": 5}), ("tracking", ["jsonl"])],
)
def test_a_value_as_an_override_is_that_value(recipe, key, value):
    found = load_recipe(recipe, [as_override(key, value)]).data
    for part in key.split("."):
        found = found[part]
    assert found == value


def test_the_axes_of_a_sweep_file_are_written_as_overrides(tmp_path):
    (tmp_path / "sweep.yaml").write_text("axes: {seed: [1, 2], optimizer: [{lr: 0.1}, null]}\n", encoding="utf-8")
    axes = load_config(tmp_path / "sweep.yaml", SweepFile).override_axes
    assert axes == {"seed": ["1", "2"], "optimizer": ['{"lr": 0.1}', "null"]}
    with pytest.raises(InputError, match=r"axes\.run\.folder: `run\.folder` cannot be an axis"):
        _ = load_config(tmp_path / "sweep.yaml", SweepFile, ["axes={run.folder: [x]}"]).override_axes


def test_a_micro_batch_has_to_divide_the_batch(recipe):
    text = str(failure(recipe, "training.micro_batch_size=3"))
    assert "the batch size 8 is not a multiple of the micro-batch size 3" in text
    assert "allowed: 1, 2, 4, 8" in text


def test_a_loss_without_a_value_is_told_from_one_that_is_missing(recipe):
    recipe.write_text(RECIPE.replace("masked_lm: {}", "masked_lm:"), encoding="utf-8")
    text = str(failure(recipe))
    assert f"{recipe}:5: losses.masked_lm: an empty value removes the loss" in text
    assert "Write `{}`" in text


@pytest.mark.parametrize("label", ["a.b", "a/b", " "])
def test_a_label_is_usable_as_a_key_and_as_the_name_of_a_metric(recipe, label):
    recipe.write_text(RECIPE.replace("masked_lm: {}", f"'{label}': {{name: masked_lm}}"), encoding="utf-8")
    assert "is not a valid label for a loss" in str(failure(recipe))


@pytest.mark.parametrize("name", ["..", ".", "a/b", ""])
def test_the_name_of_a_run_cannot_lead_out_of_its_folder(recipe, name):
    assert "run.name" in str(failure(recipe, f"run.name='{name}'"))
    assert "run.id" in str(failure(recipe, f"run.id='{name}'"))


def test_a_file_under_imports_registers_components(recipe, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from kdcore import ComponentConfig, PathString, Scheduler, register_scheduler\n"
        "@register_scheduler('from_a_file')\n"
        "class FromAFile(Scheduler):\n"
        "    class Config(ComponentConfig):\n"
        "        table: PathString\n"
        "    def factor(self, progress):\n"
        "        return 1.0\n"
    )
    recipe.write_text(RECIPE + "imports: [mine.py]\nscheduler: {name: from_a_file, table: t.csv}\n")
    loaded = load_recipe(recipe)
    assert loaded.settings.imports == [str(tmp_path / "mine.py")]
    component = loaded.components().scheduler
    assert (component.name, component.cls.__name__, component.key) == ("from_a_file", "FromAFile", "scheduler")
    assert component.config.table == str(tmp_path / "t.csv")
    assert load_recipe(recipe).components().scheduler.cls is component.cls, "the file is run once"

    without = tmp_path / "without.yaml"
    without.write_text(RECIPE + "scheduler: {name: from_a_file, table: t.csv}\nimports: []\n")
    with pytest.raises(RecipeError, match="from_a_file"):
        load_recipe(without).components()


def test_what_one_recipes_file_registers_is_nothing_to_another(tmp_path, monkeypatch):
    monkeypatch.setattr(schedulers, "_registered", {})  # other tests must not see a second `linear`
    code = (
        "from kdcore import Scheduler, register_scheduler\n"
        "@register_scheduler('NAME')\n"
        "class Mine(Scheduler):\n"
        "    def factor(self, progress):\n"
        "        return 1.0\n"
    )
    for name, scheduler in (("first", "linear"), ("second", "shared"), ("third", "shared")):
        (tmp_path / f"{name}.py").write_text(code.replace("NAME", scheduler))
        (tmp_path / f"{name}.yaml").write_text(RECIPE + f"imports: [{name}.py]\nscheduler: {{name: {scheduler}}}\n")
    (tmp_path / "plain.yaml").write_text(RECIPE)
    assert load_recipe(tmp_path / "first.yaml").components().scheduler.cls.__name__ == "Mine"
    assert load_recipe(tmp_path / "plain.yaml").components().scheduler.cls.__name__ == "Linear"
    second, third = (load_recipe(tmp_path / f"{name}.yaml").components() for name in ("second", "third"))
    assert second.scheduler.cls is not third.scheduler.cls


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("x = 1\n1 / 0\n", r"ZeroDivisionError: division by zero \(line 2\)"),
        ("def f(:\n", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        (None, "does not exist"),
    ],
)
def test_a_file_under_imports_that_fails_is_told_with_its_cause(recipe, tmp_path, code, cause):
    if code is not None:
        (tmp_path / "broken.py").write_text(code)
    loaded = load_recipe(recipe, [f"imports=['{tmp_path}/broken.py']"])
    for _ in range(2):
        with pytest.raises(PluginError, match=cause):
            loaded.components()


def test_components_carry_their_checked_configs(recipe):
    components = load_recipe(recipe, ["losses.second={name: masked_lm, weight: 2}", "tracking=[jsonl]"]).components()
    assert components.teachers == {}
    assert list(components.losses) == ["masked_lm", "second"]
    second = components.losses["second"]
    assert (second.config.name, second.config.label, second.config.weight) == ("masked_lm", "second", 2.0)
    assert components.task.config.data == str(recipe.parent / "data")
    assert [(one.name, one.key) for one in components.trackers] == [("jsonl", "tracking.0")]


def test_mistakes_in_all_sections_are_told_at_once(recipe):
    loaded = load_recipe(recipe, ["optimizer.lrr=1", "losses.masked_lm.weight=-1", "task.data=null", "student.pth=x"])
    with pytest.raises(RecipeError) as caught:
        loaded.components()
    assert {problem.key for problem in caught.value.problems} == {
        "optimizer.lrr",
        "losses.masked_lm.weight",
        "task.data",
        "student.pth",
    }


def test_a_label_cannot_be_stated_twice(recipe):
    with pytest.raises(RecipeError, match="the label of a loss is its key"):
        load_recipe(recipe, ["losses.masked_lm.label=x"]).components()


def test_the_resolved_recipe_says_the_same_from_anywhere(recipe, tmp_path, tmp_path_factory, monkeypatch):
    child = tmp_path / "child" / "recipe.yaml"
    child.parent.mkdir()
    child.write_text("extends: ../recipe.yaml\nrun: {id: 7}\noptimizer: {lr: 5e-4}\n", encoding="utf-8")
    first = load_recipe(child, ["training.batch_size=4", "tracking=[{name: jsonl}]"])
    stored = tmp_path_factory.mktemp("run") / "recipe.yaml"
    stored.write_text(first.resolved_yaml(), encoding="utf-8")
    monkeypatch.chdir(stored.parent)
    second = load_recipe("recipe.yaml")
    assert second.components() == first.components()
    assert second.settings == first.settings
    assert second.settings.task["data"] == str(tmp_path / "data")


def test_the_annotated_recipe_is_a_recipe_too(recipe, tmp_path):
    first = load_recipe(recipe, ["run.name='5e-4 # x'", "training.deepspeed={a: [1, {b: null}], c: .inf}"])
    text = first.annotated_yaml()
    assert "batch_size: 8" in text
    assert "recipe.yaml:8\n" in text
    again = tmp_path / "again.yaml"
    again.write_text(text, encoding="utf-8")
    assert load_recipe(again).settings == first.settings


def test_every_shipped_recipe_is_right():
    for file in sorted(shipped_recipes().rglob("*.yaml")):
        if file.parent.name not in ("base", "suites") and file.name != "table.yaml":  # parts, and files of other kinds
            load_recipe(f"kdcore:{file.relative_to(shipped_recipes()).as_posix()}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("training: {budget: {steps: 1}, batch_size: 8, precision:2}", "r.yaml:1: training.precision:2: unknown key"),
        ("sed:", "r.yaml:1: sed: unknown key `sed`, which is empty"),
    ],
)
def test_an_empty_unknown_key_is_refused(tmp_path, text, words):
    (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "r.yaml")
    assert words in str(caught.value)
