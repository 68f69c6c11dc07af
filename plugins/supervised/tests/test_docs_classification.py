"""docs/classification.md and docs/token-classification.md against the code: examples, keys, metrics, tasks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import pytest
from kdcore_supervised.data.glue import GLUE
from kdcore_supervised.metrics import Metric
from kdcore_supervised.sequence_classification import SequenceClassification
from kdcore_supervised.span_metrics import SPAN_METRICS
from kdcore_supervised.token_classification import TokenClassification
from ruamel.yaml import YAML

from kdcore import Task
from kdcore.recipe.fields import key_table
from kdcore.recipe.loading import load_recipe

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "classification.md").read_text(encoding="utf-8")
TAGGING = (DOCS / "token-classification.md").read_text(encoding="utf-8")
PAGES: dict[str, tuple[str, type[Task]]] = {
    "classification": (PAGE, SequenceClassification),
    "token-classification": (TAGGING, TokenClassification),
}
EXAMPLES = {name: re.findall(r"^```yaml\n(.*?)^```$", page, re.M | re.S) for name, (page, _) in PAGES.items()}
PARTS = [(name, part) for name, (_, *parts) in EXAMPLES.items() for part in parts]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", PAGES)
def test_the_whole_example_is_accepted(folder: Path, name: str) -> None:
    (folder / "recipe.yaml").write_text(EXAMPLES[name][0], encoding="utf-8")
    assert set(load_recipe(folder / "recipe.yaml").components().losses) == {"classification"}


@pytest.mark.parametrize(("name", "part"), PARTS, ids=range(len(PARTS)))
def test_every_part_is_accepted_in_the_place_of_the_whole_ones(folder: Path, name: str, part: str) -> None:
    assert "# part of a recipe" in part
    yaml = YAML(typ="safe")
    whole = yaml.load(EXAMPLES[name][0]) | yaml.load(part)
    (folder / "both.yaml").write_text(json.dumps(whole), encoding="utf-8")
    assert load_recipe(folder / "both.yaml").components()


@pytest.mark.parametrize("name", PAGES)
def test_every_key_is_on_the_page_with_its_default(name: str) -> None:
    page, task = PAGES[name]
    rows = {}
    for line in page.splitlines():
        if line.startswith("| `task."):
            key, _, default, _ = (cell.strip() for cell in line.strip("|").split("|"))
            rows[key.strip("`")] = default.strip("`")
    for key, _, default, _ in key_table(task.Config):
        if key.startswith("data.huggingface."):
            assert f"`{key.rpartition('.')[2]}`" in PAGE
        elif key != "data" and not any(row.startswith(f"task.{key}.") for row in rows):
            assert f"task.{key}" in rows, key
            if default not in ("null", "required", "see below"):
                assert rows[f"task.{key}"] == default, key


def test_metrics_and_tasks_are_on_the_page() -> None:
    for name in (*get_args(Metric), *GLUE):
        assert f"`{name}`" in PAGE, name
    judged = {metric: [task.folder for task in GLUE.values() if task.metric == metric] for metric in get_args(Metric)}
    for metric in SPAN_METRICS:
        assert f"`{metric}`" in TAGGING, metric
    for metric in ("matthews", "f1", "pearson"):
        assert f"`{metric}` ({', '.join(judged[metric])})" in PAGE.replace("\n", " "), metric
