"""docs/api-stability.md against the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import kdcore

PAGE = (Path(__file__).parents[2] / "docs" / "api-stability.md").read_text(encoding="utf-8")


def rows(section: str) -> list[list[str]]:
    """Return the cells of a section's table, without its head."""
    text = PAGE.partition(f"## {section}\n")[2].partition("\n## ")[0]
    table = [line for line in text.splitlines() if line[:1] == "|"]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[2:]]


def test_the_versions_of_the_plugin_api_are_those_that_are_supported() -> None:
    assert tuple(int(row[0]) for row in rows("Plugin API versions")) == kdcore.PLUGIN_APIS


def test_provisional_names_are_public() -> None:
    names = [name for row in rows("Provisional") for name in re.findall(r"`(\w+)`", row[0])]
    assert len(names) > 10
    assert set(names) <= set(kdcore.__all__)


def test_every_deprecated_name_of_kdcore_is_listed_and_warns() -> None:
    listed = [name for row in rows("Deprecation") for name in re.findall(r"`kdcore\.(\w+)`", row[0])]
    assert set(listed) - {"testing"} == {*kdcore._MOVED, *kdcore._RENAMED}
    for name in set(listed) - {"testing"}:
        with pytest.warns(DeprecationWarning, match=f"`kdcore.{name}` is deprecated: use `"):
            assert getattr(kdcore, name) is not None
