"""Size and names of the source tree: the core stays small, and a name has one meaning."""

from __future__ import annotations

import ast
import io
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAX_CODE_LINES = 16_174
MAX_MODULES = 13
BUILT_INS_OF_TWO_REGISTRIES = {"masked_lm.py"}
"""A loss and a task of this name."""
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def modules(*folders: str) -> Iterator[Path]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not {"tests", "templates"} & set(path.relative_to(ROOT).parts):
                yield path


def code_lines(text: str) -> int:
    """Count lines with code: blank lines, comments and docstrings (also those of attributes) are not counted."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def test_lines_of_code_are_counted_without_documentation() -> None:
    documentation = '"""A module."""\n\nLIMIT = (\n    1,\n)  # items\n"""Its unit."""\n\n# A comment.\n'
    assert code_lines(documentation) == 3
    assert code_lines('print("""a\nb""")\n\n\nclass Empty:\n    """Nothing."""\n') == 2 + 1


def test_the_core_is_small() -> None:
    counts = {path.relative_to(ROOT): code_lines(path.read_text(encoding="utf-8")) for path in modules("kdcore")}
    total = sum(counts.values())
    print(f"kdcore: {total:,} code lines")
    assert total <= MAX_CODE_LINES, "move what is not engine to a package, or use a library"


def test_a_folder_of_the_core_holds_few_modules() -> None:
    found: defaultdict[Path, int] = defaultdict(int)
    for path in modules("kdcore"):
        found[path.parent.relative_to(ROOT)] += path.name != "__init__.py"
    assert {str(folder): count for folder, count in found.items() if count > MAX_MODULES} == {}


def test_a_file_name_is_used_once() -> None:
    """Interfaces of registries are `base.py`; modules in `commands` are named after their commands."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for path in modules("kdcore", "plugins", "launch"):
        if path.name not in {"__init__.py", "__main__.py", "base.py"} and path.parent.name != "commands":
            found[path.name].append(str(path.relative_to(ROOT)))
    twice = {name: paths for name, paths in found.items() if len(paths) > 1}
    assert set(twice) <= BUILT_INS_OF_TWO_REGISTRIES, twice


def test_a_type_name_is_used_once() -> None:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for path in modules("kdcore", "plugins", "launch"):
        for name, line in type_names(ast.parse(path.read_text(encoding="utf-8"))):
            found[name.lstrip("_")].append(f"{path.relative_to(ROOT)}:{line}")
    assert {name: places for name, places in found.items() if len(places) > 1} == {}


def type_names(module: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield the classes of a module, nested ones included, and its aliases of types, with their lines.

    `Config` is nested in every component.
    """
    for node in ast.walk(module):
        if isinstance(node, ast.ClassDef) and node.name != "Config":
            yield node.name, node.lineno
    for node in module.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name[0].isupper() and not name.isupper():
                yield name, node.lineno
