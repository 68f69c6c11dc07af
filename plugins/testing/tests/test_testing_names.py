"""Public names of kdcore_testing and their deprecated aliases."""

from __future__ import annotations

import re
from pathlib import Path

import kdcore_testing
import pytest

import kdcore.testing

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_readme_lists_every_public_name() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE)) == set(kdcore_testing.__all__)


@pytest.mark.parametrize("name", kdcore_testing.__all__)
def test_the_old_name_of_a_check_still_works_and_warns(name: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"`kdcore.testing.{name}` is deprecated: use `kdcore_testing.{name}`"):
        assert getattr(kdcore.testing, name) is getattr(kdcore_testing, name)


def test_an_old_import_statement_warns_at_its_own_line() -> None:
    with pytest.warns(DeprecationWarning, match="check_loss") as caught:
        exec(compile("from kdcore.testing import check_loss", "their_test.py", "exec"), {})
    assert [(each.filename, each.lineno) for each in caught] == [("their_test.py", 1)]


def test_a_name_that_never_was_a_check_is_an_attribute_error() -> None:
    assert not hasattr(kdcore.testing, "check_nothing")


def test_the_example_of_the_readme_passes() -> None:
    code = README.partition("```python\n")[2].partition("```")[0]
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    value = names["test_value"]
    assert callable(value)
    value()
