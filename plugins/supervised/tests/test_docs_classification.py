"""docs/classification.md against the code: examples, keys, metrics, tasks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import pytest
from kdcore_supervised.data.glue import GLUE
from kdcore_supervised.metrics import Metric
from kdcore_supervised.sequence_classification import SequenceClassification
from ruamel.yaml import YAML

from kdcore.models.architectures import ARCHITECTURES
from kdcore.recipe.fields import key_table
from kdcore.recipe.loading import load_recipe

PAGE = (Path(__file__).parents[3] / "docs" / "classification.md").read_text(encoding="utf-8")
WHOLE, *PARTS = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(WHOLE, encoding="utf-8")
    return tmp_path


def test_the_whole_example_is_accepted(folder: Path) -> None:
    assert set(load_recipe(folder / "recipe.yaml").components().losses) == {"classification"}


@pytest.mark.parametrize("part", PARTS, ids=range(len(PARTS)))
def test_every_part_is_accepted_in_the_place_of_the_whole_ones(folder: Path, part: str) -> None:
    assert "# part of a recipe" in part
    yaml = YAML(typ="safe")
    (folder / "both.yaml").write_text(json.dumps(yaml.load(WHOLE) | yaml.load(part)), encoding="utf-8")
    assert load_recipe(folder / "both.yaml").components()


def test_every_key_is_on_the_page_with_its_default() -> None:
    rows = {}
    for line in PAGE.splitlines():
        if line.startswith("| `task."):
            key, _, default, _ = (cell.strip() for cell in line.strip("|").split("|"))
            rows[key.strip("`")] = default.strip("`")
    for key, _, default, _ in key_table(SequenceClassification.Config):
        if key.startswith("data.huggingface."):
            assert f"`{key.rpartition('.')[2]}`" in PAGE
        elif f"task.{key}.folder" not in rows and f"task.{key}.validation" not in rows and key != "data":
            assert f"task.{key}" in rows, key
            if default in ("128", "0.0", "false"):
                assert rows[f"task.{key}"] == default, key


def test_metrics_tasks_and_architectures_are_on_the_page() -> None:
    for name in (*get_args(Metric), *GLUE, *ARCHITECTURES):
        assert f"`{name}`" in PAGE, name
    judged = {metric: [task.folder for task in GLUE.values() if task.metric == metric] for metric in get_args(Metric)}
    for metric in ("matthews", "f1", "pearson"):
        assert f"`{metric}` ({', '.join(judged[metric])})" in PAGE.replace("\n", " "), metric
