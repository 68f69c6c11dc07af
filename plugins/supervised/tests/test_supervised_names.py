"""The public names of kdcore_supervised, as its README lists them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import kdcore_supervised

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_every_public_name_can_be_imported_and_is_in_the_readme() -> None:
    table = README.partition("## Names for other packages")[2]
    listed = {name for row in re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE) for name in re.findall(r"\w+", row)}
    assert listed == set(kdcore_supervised.__all__)
    for name in kdcore_supervised.__all__:
        assert getattr(kdcore_supervised, name) is not None
    assert not hasattr(kdcore_supervised, "no_such_name")


def test_importing_the_package_imports_neither_torch_nor_scikit_learn() -> None:
    code = "import sys, kdcore_supervised; print(*sorted({'torch', 'sklearn', 'numpy', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
