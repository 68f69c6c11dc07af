"""docs/ against the code: keys, defaults, examples, commands, exit codes."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest

from kdcore import errors
from kdcore.commands.main import _parse
from kdcore.commands.subcommands import split_arguments
from kdcore.recipe.fields import key_table
from kdcore.recipe.loading import REGISTRIES, load_recipe
from kdcore.recipe.schema import SECTION_DEFAULTS, RecipeSettings
from kdcore.registry import commands

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "recipes.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
WHOLE, *PARTS = EXAMPLES


def cells(page: str) -> dict[str, list[str]]:
    """Table rows by their first cell, if that is code."""
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in page.splitlines() if line[:1] == "|"]
    return {row[0].strip("`"): row[1:] for row in rows if row[0].startswith("`")}


def commands_on(page: str) -> list[list[str]]:
    """What follows `$` in a console block, or is code within a text, and starts with kdcore."""
    blocks = re.findall(r"^```console(?: fragment)?\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    whole = [re.sub(r"\\\n\s*", "", block) for block in blocks]  # a backslash continues a line
    lines = [line.removeprefix("$ ").partition(" > ")[0] for block in whole for line in block.splitlines()]
    text = re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)
    lines += re.findall(r"`(kdcore(?:-train)? [^`]+)`", text)
    return [shlex.split(line) for line in lines if line.startswith(("kdcore ", "kdcore-train "))]


def test_every_core_key_is_on_the_page_with_its_default():
    rows = cells(PAGE)
    keys = [
        row
        for row in key_table(RecipeSettings)
        if row[0] not in REGISTRIES or row[0] in ("tracking", "callbacks", "stages")
    ]
    assert len(keys) > 20
    for key, _, default, _ in keys:
        if default == "see below" or any(other.startswith(f"{key}.") for other, *_ in keys if ".every." not in other):
            continue  # a map whose keys have rows of their own
        if ".every." in key:
            assert f"`{key.rpartition('.')[2]}`" in PAGE.partition("An interval is")[2].partition("```")[0], key
            continue
        assert key in rows, key
        if default != "null":
            assert rows[key][1].strip("`") == default.replace("'", ""), key
    known = {key for key, *_ in keys} | {"extends"}
    stated = {key for key in rows if key.partition(".")[0] in {"extends", *RecipeSettings.model_fields}}
    sections = {
        "teacher",
        "teachers.LABEL",
        "student",
        "task",
        "losses.LABEL",
        "optimizer",
        "scheduler",
        "tracking.N",
        "callbacks.N",
        "stages.N",
    }
    assert stated - sections <= known, "a key that no longer exists"


def test_every_section_is_on_the_page_with_its_default_name():
    rows = cells(PAGE)
    for section in REGISTRIES:
        row = next(rows[key] for key in rows if key.partition(".")[0] == section)
        default = SECTION_DEFAULTS.get(section)
        if default is not None:
            assert row[-1] == f"`{default}`"


@pytest.fixture
def whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(WHOLE, encoding="utf-8")
    code = re.findall(
        r"^```python\n(.*?)^```$", (DOCS / "plugins.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    (transforms,) = (block for block in code if "register_transform" in block)
    (tmp_path / "my_transforms.py").write_text(transforms, encoding="utf-8")
    (tmp_path / "cluster.yaml").write_text("seed: 1\n", encoding="utf-8")
    return tmp_path / "recipe.yaml"


def test_the_whole_example_is_accepted(whole):
    components = load_recipe(whole).components()
    assert set(components.losses) == {"hidden_mse", "masked_lm"}


@pytest.mark.parametrize("part", PARTS, ids=range(len(PARTS)))
def test_every_part_is_accepted_in_the_place_of_the_whole_ones(whole, part):
    assert "# part of a recipe" in part
    (whole.parent / "part.yaml").write_text(part, encoding="utf-8")
    both = "extends: [recipe.yaml, part.yaml]\n" if "extends:" in part else f"extends: recipe.yaml\n{part}"
    (whole.parent / "both.yaml").write_text(both, encoding="utf-8")
    assert load_recipe(whole.parent / "both.yaml").components()


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.name)
def test_every_command_on_a_page_is_one(page, whole, capsys):
    text = page.read_text(encoding="utf-8")
    found = commands_on(text)
    assert len(found) >= len(re.findall(r"^\$ kdcore", text, re.MULTILINE))
    for program, *arguments in found:
        name = "train" if program == "kdcore-train" else arguments.pop(0)
        name, arguments = split_arguments(name, arguments)
        command = commands.get(name)()
        if not arguments:
            continue  # its name alone, in a sentence
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        try:
            parsed = _parse(parser, arguments)
        except SystemExit:
            pytest.fail(f"{name} {arguments}: {capsys.readouterr().err}")
        if getattr(parsed, "recipe", None) == "recipe.yaml":
            load_recipe(whole, parsed.overrides)


def test_every_exit_code_is_on_the_page():
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)}
    assert codes == {0} | {value for name, value in vars(errors).items() if name.startswith("EXIT_")}


def test_what_may_change_on_resume_is_on_the_page():
    from kdcore.training.run import run_folder

    sentence = PAGE.partition("these keys may change:")[2].partition("All other changes")[0]
    assert set(re.findall(r"`([\w.]+)`", sentence)) == set(run_folder._FREE_ON_RESUME)


def test_what_the_page_on_checkpoints_says_of_resuming_and_of_messages_is_so():
    """What may change, and the beginnings of messages, are those of the code."""
    from kdcore.training.run import run_folder

    page = (DOCS / "checkpoints.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.endswith("| freely |"))
    free = set(run_folder._FREE_ON_RESUME) - {"training.budget"}
    assert set(re.findall(r"`([\w.]+)`", row)) == free
    code = "".join(path.read_text(encoding="utf-8") for path in Path(run_folder.__file__).parents[1].rglob("*.py"))
    messages = re.findall(r"^\| `([^`]+)`", page.partition("## What to do when")[2], re.MULTILINE)
    assert len(messages) == 9
    for message in messages:
        assert all(part.strip() in code for part in message.split("...")), message
