"""kdcore's public names: other packages are built on them, so that none changes unnoticed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import kdcore_preparation
import pytest

import kdcore


def test_the_public_names_are_those_of_the_snapshot():
    snapshot = Path(__file__).with_name("public_names.txt").read_text(encoding="utf-8").split()
    assert sorted(kdcore.__all__) == snapshot, "a public name has changed: other packages may need it"


def test_every_public_name_can_be_imported():
    for name in kdcore.__all__:
        assert getattr(kdcore, name) is not None
    assert set(kdcore.__all__) <= set(dir(kdcore))


def test_type_checkers_see_the_same_names_in_the_same_homes():
    tree = ast.parse(Path(kdcore.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == kdcore._HOMES


def test_a_name_that_kdcore_does_not_have_is_an_attribute_error():
    assert not hasattr(kdcore, "NoSuchName")


@pytest.mark.parametrize("name", ["DataRecipe", "input_files", "open_input"])
def test_a_name_that_has_moved_still_works_and_warns(name: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"`kdcore.{name}` is deprecated: use `kdcore_preparation.{name}`"):
        assert getattr(kdcore, name) is getattr(kdcore_preparation, name)
    with pytest.warns(DeprecationWarning, match=name):
        getattr(kdcore, name)


def test_importing_kdcore_imports_nothing_of_weight():
    code = "import kdcore, sys; print(*sorted(name for name in sys.modules if name.startswith('kdcore')), sep=',')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "kdcore"
