"""kdcore's public names: other packages are built on them, so that none changes unnoticed."""

from __future__ import annotations

import ast
import inspect
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


def test_the_table_names_the_module_that_defines_each_name_and_nothing_else():
    tree = ast.parse(Path(kdcore.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    *imports, version = tree.body
    assert ast.unparse(version) == "__version__: str"
    for node in imports:
        assert isinstance(node, ast.ImportFrom)
        assert node.level == 1
        for alias in node.names:
            assert alias.asname == alias.name, f"type checkers do not export {alias.name} without `as {alias.name}`"
            found = getattr(kdcore, alias.name)
            if inspect.isclass(found) or inspect.isfunction(found):
                assert found.__module__ == f"kdcore.{node.module}"


def test_a_name_that_kdcore_does_not_have_is_an_attribute_error():
    assert not hasattr(kdcore, "NoSuchName")


@pytest.mark.parametrize("name", ["DataRecipe", "input_files", "open_input"])
def test_a_name_that_has_moved_still_works_and_warns(name: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"`kdcore.{name}` is deprecated: use `kdcore_preparation.{name}`"):
        assert getattr(kdcore, name) is getattr(kdcore_preparation, name)
    with pytest.warns(DeprecationWarning, match=name):
        getattr(kdcore, name)


def test_a_name_that_has_changed_still_works_and_warns() -> None:
    with pytest.warns(
        DeprecationWarning, match="`kdcore.MachineError` is deprecated: use `kdcore.InfrastructureError`"
    ):
        assert kdcore.MachineError is kdcore.InfrastructureError


def test_importing_kdcore_imports_nothing_of_weight():
    code = "import kdcore, sys; print(*sorted(name for name in sys.modules if name.startswith('kdcore')), sep=',')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "kdcore"


def test_dir_lists_the_public_names_without_importing_them():
    code = "import kdcore, sys; assert 'train' in dir(kdcore); assert 'kdcore.commands' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
