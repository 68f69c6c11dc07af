"""kdcore's public names: other packages are built on them, so that none changes unnoticed."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


# Types that a package does not name: parts of a loaded recipe and of `ScoreMaps`, aliases of literals and arrays.
OPAQUE = {
    "Components",
    "Node",
    "Origin",
    "RecipeSettings",
    "SettingsT",
    "_Chunk",
    "Ids",
    "NDArray",
    "RowType",
    "State",
    "TrainingSettings",
}


def annotations_of(public: Any) -> Iterator[tuple[Any, str]]:
    """Yield the annotations of a function, or of the constructor and public methods of a class, as text."""
    functions = [public] if inspect.isfunction(public) else []
    if inspect.isclass(public):
        for name, value in vars(public).items():
            function = getattr(value, "__func__", getattr(value, "fget", value))
            if inspect.isfunction(function) and (name == "__init__" or name[0] != "_"):
                functions.append(function)
    for function in functions:
        yield from ((function, str(text)) for text in function.__annotations__.values())


def is_own_type(word: str, module: Any) -> bool:
    """Return whether a word of an annotation is a class or an alias of kdcore; also if the module only imports it for
    type checkers."""
    if not hasattr(module, word):
        return word[0].isupper() and not hasattr(builtins, word) and word != "Config"
    value = getattr(module, word)
    if inspect.isclass(value):
        return value.__module__.startswith("kdcore")
    return word[0].isupper() and not inspect.ismodule(value) and not hasattr(typing, word)


def test_types_in_public_signatures_are_public():
    private = {}
    for name in kdcore.__all__:
        for owner, text in annotations_of(getattr(kdcore, name)):
            words = re.sub(r"'[^']*'", "", text) if text.startswith("Literal") else text
            for word in re.findall(r"(?<![\w.])[A-Za-z_]\w*", words):
                if is_own_type(word, sys.modules[owner.__module__]) and word not in {*kdcore.__all__, *OPAQUE}:
                    private[word] = name
    assert private == {}


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
