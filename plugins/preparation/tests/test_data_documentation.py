"""docs/data.md against the code: keys with their defaults, recipes, names."""

from __future__ import annotations

import re
from pathlib import Path

from kdcore_preparation.pipeline.data_recipe import DataRecipe
from kdcore_preparation.pipeline.prepare import staging_of
from ruamel.yaml import YAML

from kdcore.recipe.fields import key_table
from kdcore.recipe.loading import load_config
from kdcore.tasks.masked_lm import MaskedLM
from kdcore.tasks.masking import Masking

PAGE = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")


def rows(after: str) -> dict[str, str]:
    """First two cells of the table behind a line."""
    table = PAGE.partition(after)[2].partition("\n\n")[0]
    found = re.findall(r"^\| `([\w.]+)` \| (`[^`]*`|required) \|", table, re.MULTILINE)
    return {key: default.strip("`") for key, default in found}


def test_every_key_of_a_data_recipe_is_on_the_page_with_its_default() -> None:
    expected = {key: default.strip("'") for key, _, default, _ in key_table(DataRecipe) if "." not in key}
    assert rows("| key | default | meaning |\n") == expected


def test_every_key_of_masks_and_order_is_on_the_page_with_its_default() -> None:
    stated = rows("| key of `task` | default | meaning |\n")
    keys = {key: default.strip("'") for key, _, default, _ in key_table(MaskedLM.Config)}
    expected = {key: default for key, default in keys.items() if key == "order" or key.startswith("masking.")}
    assert stated == expected


def test_the_recipes_on_the_page_are_accepted(tmp_path: Path) -> None:
    data, task = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "data.yaml").write_text(data, encoding="utf-8")
    recipe = load_config(tmp_path / "data.yaml", DataRecipe)
    assert [corpus["name"] for corpus in recipe.corpora] == ["wikipedia", "books"]
    section = YAML(typ="safe").load(task)["task"]
    assert section.pop("name") == "masked_lm"
    config = MaskedLM.Config.model_validate(section)
    assert isinstance(config.masking, Masking)
    assert config.masking.max_predictions == 20


def test_the_unfinished_folder_has_the_name_on_the_page() -> None:
    assert f"`{staging_of(Path('prepared')).name}`" in PAGE
