"""Every code block of the documentation and of the packages' READMEs runs in a test, or is marked as a fragment.

Blocks are run by the test of their page, or here: Python is executed, parts of recipes are merged with a whole one and
checked, TOML and JSON are parsed. Commands of `console` blocks of docs/ are parsed by test_docs.py, and those of the
tutorials are run. A block without a language is output, or a command of another program.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

import kdcore

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("plugins/*/README.md")), ROOT / "launch/README.md"]
LANGUAGES = {"", "console", "json", "python", "text", "toml", "yaml"}
OWN_TESTS = {
    "docs/classification.md": "plugins/supervised/tests/test_docs_classification.py",
    "docs/cluster.md": "launch/tests/test_launch_docs.py",
    "docs/data.md": "plugins/preparation/tests/test_data_documentation.py",
    "docs/evaluation.md": "plugins/evaluation/tests/test_docs_evaluation.py",
    "docs/plugins.md": "tests/docs/test_plugins_page.py",
    "docs/readers.md": "plugins/preparation/tests/test_data_readers.py",
    "docs/recipes.md": "tests/integration/test_docs.py",
    "docs/token-classification.md": "plugins/supervised/tests/test_docs_classification.py",
    "docs/tutorials/first-student.md": "tests/docs/test_tutorials.py",
    "docs/tutorials/paper-recipe.md": "tests/docs/test_tutorials.py",
    "docs/tutorials/sentence-encoder.md": "tests/docs/test_tutorials.py",
    "docs/tutorials/slurm.md": "tests/docs/test_tutorials.py",
    "docs/tutorials/tagger.md": "tests/docs/test_tutorials.py",
    "docs/writing-a-plugin.md": "tests/docs/test_writing_a_plugin.py",
    "docs/writing-a-task.md": "tests/docs/test_writing_a_task.py",
}
"""Pages whose blocks of YAML and Python are run by a test of their own."""


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """Return the blocks of a language that are not marked as fragments."""
    return re.findall(rf"^ *```{language}\n(.*?)^ *```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def with_blocks(language: str) -> list[Path]:
    return [page for page in PAGES if name_of(page) not in OWN_TESTS and blocks(page, language)]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_has_a_language_that_a_test_reads(page: Path) -> None:
    infos = re.findall(r"^ *```(?P<info>[^\n]*)\n.*?^ *```$", page.read_text(encoding="utf-8"), re.M | re.S)
    infos = [info for info in infos if not info.startswith("{")]  # directives of Sphinx
    assert {info.removesuffix(" fragment") for info in infos} <= LANGUAGES


@pytest.mark.parametrize(("page", "test"), OWN_TESTS.items())
def test_pages_with_a_test_of_their_own_are_read_by_it(page: str, test: str) -> None:
    assert (ROOT / page).is_file()
    assert Path(page).name in (ROOT / test).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", with_blocks("yaml"), ids=name_of)
def test_parts_of_recipes_are_accepted(page: Path, small_recipe: Path) -> None:
    folder = small_recipe.parent
    whole = small_recipe.read_text(encoding="utf-8")
    for text in blocks(page, "yaml"):
        (folder / "part.yaml").write_text(text, encoding="utf-8")
        (folder / "both.yaml").write_text("extends: [small.yaml, part.yaml]\n", encoding="utf-8")
        kdcore.load_recipe(folder / "both.yaml").components()
    assert small_recipe.read_text(encoding="utf-8") == whole


@pytest.mark.parametrize("page", with_blocks("python"), ids=name_of)
def test_python_runs(page: Path) -> None:
    for text in blocks(page, "python"):
        exec(compile(text, name_of(page), "exec"), {"__name__": "block"})


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_toml_and_json_can_be_parsed(page: Path) -> None:
    for text in blocks(page, "toml"):
        assert tomllib.loads(text)
    for text in blocks(page, "json"):
        assert all(json.loads(line) for line in text.splitlines())
