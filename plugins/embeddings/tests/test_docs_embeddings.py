"""docs/embeddings.md against the code."""

from __future__ import annotations

import re
from pathlib import Path

from kdcore_embeddings.data.texts import TextData
from kdcore_embeddings.task import Embeddings

PAGE = (Path(__file__).parents[3] / "docs" / "embeddings.md").read_text(encoding="utf-8")


def test_every_key_is_in_a_table() -> None:
    listed = set(re.findall(r"^\| `task\.([\w.]+)` \|", PAGE, re.MULTILINE))
    expected = {f"data.{name}" for name in TextData.model_fields}
    assert listed == expected | set(Embeddings.Config.model_fields) - {"name", "data"}
