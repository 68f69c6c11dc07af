"""Public names of kdcore_preparation."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import kdcore_preparation

README = Path(__file__).parents[1] / "README.md"


def test_the_readme_lists_every_public_name() -> None:
    table = README.read_text(encoding="utf-8").partition("## Names for other packages")[2]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(listed) == sorted(kdcore_preparation.__all__)


def test_every_public_name_can_be_imported() -> None:
    for name in kdcore_preparation.__all__:
        assert getattr(kdcore_preparation, name) is not None
    assert not hasattr(kdcore_preparation, "no_such_name")


def test_importing_the_package_and_its_commands_imports_no_library_of_weight() -> None:
    modules = [f"kdcore_preparation.commands.{name}" for name in ("prepare", "data", "tokenizer")]
    code = f"import sys, {', '.join(modules)}; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "numpy", "pyarrow", "mwparserfromhell"} & set(done.stdout.split())
