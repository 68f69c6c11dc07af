"""Tasks of mteb from local texts; that mteb scores them as kdcore does is tested with the other consumers."""

from __future__ import annotations

import sys

import pytest
from kdcore_embeddings import mteb_task

from kdcore import InputError


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(InputError, match="the package mteb cannot be imported") as caught:
        mteb_task("search", {"path": "pairs.jsonl", "query": "q", "positive": "p"})
    assert "pip install 'kdcore-embeddings[mteb]'" in str(caught.value)
