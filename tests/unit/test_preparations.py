"""`task.data`: a prepared folder, a data recipe, or a data recipe's file, and the packages that read data recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdcore import InputError, RecipeError, load_preparation, load_recipe, open_data
from kdcore.commands.main import main
from kdcore.recipe.json_schema import recipe_json_schema
from kdcore.recipe.yaml import read_yaml

COPIED = """
from kdcore import ComponentConfig, PathString, Preparation, PreparedData, register_preparation


@register_preparation("copied")
class Copied(Preparation):
    '''Data that another program has prepared.'''

    class Config(ComponentConfig):
        folder: PathString
        calls: PathString

    def describe(self):
        return "a copied folder"

    def find(self, cache):
        self._note("find")
        return None

    def prepare(self, cache, *, progress):
        self._note("prepare")
        progress("half of it is done")
        return PreparedData.open(self.config.folder)

    def _note(self, call):
        with open(self.config.calls, "a") as calls:
            calls.write(call + "\\n")
"""


def refusal(recipe: Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, overrides).components()
    return [str(problem) for problem in caught.value.problems]


def test_a_registered_preparation_makes_the_data(
    small_recipe: Path, tmp_path: Path, cache_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = load_recipe(small_recipe).data["task"]["data"]
    prepared = open_data(data, cache_folder)
    (tmp_path / "copied.py").write_text(COPIED, encoding="utf-8")
    section = f"task.data={{name: copied, folder: {prepared.folder}, calls: calls}}"
    assert main(["train", str(small_recipe), "imports=[copied.py]", section]) == 0
    assert (tmp_path / "calls").read_text(encoding="utf-8").split() == ["find", "prepare"]
    log = capsys.readouterr().err
    assert "preparing data: a copied folder" in log
    assert "preparing data: half of it is done" in log
    more = ["imports=[copied.py]", section, "training.budget.steps=8"]
    assert main(["train", str(small_recipe), *more]) == 0
    assert (tmp_path / "calls").read_text(encoding="utf-8").split() == ["find", "prepare"] * 2, (
        "resumed on the same data"
    )
    stored = read_yaml(tmp_path / "runs/small/1/recipe.yaml").plain()["task"]["data"]
    assert stored == {"name": "copied", "folder": str(prepared.folder), "calls": str(tmp_path / "calls")}


def test_the_default_preparation_is_never_stored(small_recipe: Path) -> None:
    recipe = load_recipe(small_recipe)
    unnamed = recipe.resolved_yaml()
    assert "raw_text" not in unnamed
    assert load_recipe(small_recipe, ["task.data.name=raw_text"]).resolved_yaml() == unnamed


def test_paths_in_a_data_recipe_are_relative_to_its_file(small_recipe: Path, tmp_path: Path) -> None:
    here, there = tmp_path / "a", tmp_path / "there" / "a"
    there.parent.mkdir()
    corpora = "[{name: text, path: a}]"
    recipe = load_recipe(small_recipe, [f"task.data.corpora={corpora}"])
    recipe.components()
    assert recipe.data["task"]["data"]["corpora"] == [{"name": "text", "path": str(here)}]
    (tmp_path / "there" / "data.yaml").write_text(f"tokenizer: t\ncorpora: {corpora}\n", encoding="utf-8")
    recipe = load_recipe(small_recipe, ["task.data=there/data.yaml"])
    recipe.components()
    assert recipe.data["task"]["data"] == str(tmp_path / "there" / "data.yaml"), "the recipe keeps the file's path"
    (corpus,) = load_preparation(tmp_path / "there" / "data.yaml").config.corpora
    assert corpus["path"] == str(there)


def test_mistakes_in_a_data_recipe_carry_line_and_key(small_recipe: Path, tmp_path: Path) -> None:
    (long,) = refusal(small_recipe, "task.data.sequence_length=7")
    assert "task.data.sequence_length: must be greater than or equal to 8" in long
    (unknown,) = refusal(small_recipe, "task.data.corpora.0.paht=x")
    assert "task.data.corpora.0.paht: unknown key `paht`" in unknown
    file = tmp_path / "data.yaml"
    file.write_text("tokenizer: t\nseqence_length: 8\ncorpora:\n  - {name: text}\n  - {name: txt}\n", encoding="utf-8")
    problems = refusal(small_recipe, "task.data=data.yaml")
    starts = [f"{file}:4: task.data.corpora.0", f"{file}:5: task.data.corpora.1", f"{file}:2: task.data.seqence_length"]
    assert len(problems) == 3
    assert all(any(problem.startswith(start) for problem in problems) for start in starts), problems
    file.write_text("tokenizer: [", encoding="utf-8")
    (broken,) = refusal(small_recipe, "task.data=data.yaml")
    assert broken.startswith(f"{file}:1: task.data: ")


def test_a_name_that_no_package_has_is_refused(small_recipe: Path) -> None:
    (problem,) = refusal(small_recipe, "task.data.name=raw_txt")
    assert "task.data: unknown preparation `raw_txt`" in problem
    assert "Did you mean `raw_text`?" in problem
    with pytest.raises(RecipeError, match="allowed: tokenizer, sequence_length, held_out, corpora"):
        load_recipe(small_recipe, ["task.data.name=null"])
    (problem,) = refusal(small_recipe, "task.data.corpora.0.name=tex")
    assert problem.count("Did you mean `text`?") == 1
    (problem,) = refusal(small_recipe, "task.data.name=3")
    assert "task.data: expected text as `name`, found the number 3" in problem


def test_a_preparation_that_cannot_be_imported_is_named_with_what_to_do(small_recipe: Path, packages: Any) -> None:
    entry = {"kdcore.preparations:raw_text": "broken_preparation:RawText"}
    packages.install("kdcore-preparation", entry, {"broken_preparation.py": "import no_such_parser\n"})
    (problem,) = refusal(small_recipe)
    assert "small.yaml:9: task.data: preparation `raw_text` of kdcore-preparation 1.0" in problem
    assert "cannot be imported: ModuleNotFoundError: No module named 'no_such_parser'" in problem
    assert "kdcore-preparation needs the module `no_such_parser`: install the package that contains it" in problem


def test_the_schema_knows_data_recipes() -> None:
    schema, skipped = recipe_json_schema()
    assert skipped == []
    own = "kdcore.preparations:kdcore-preparation:raw_text"
    assert {"corpora", "tokenizer", "sequence_length", "name"} <= set(schema["$defs"][own]["properties"])
    data = schema["$defs"]["kdcore.tasks:kdcore:masked_lm"]["properties"]["data"]["anyOf"]
    assert {"type": "string"} in data
    assert {"$ref": f"#/$defs/{own}"} in [option for branch in data for option in branch.get("anyOf", ())], "no `name`"


def test_a_folder_is_opened_without_a_preparation(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        open_data(str(tmp_path / "nothing"), tmp_path)
