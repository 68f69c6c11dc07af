"""docs/evaluation.md against the code: commands, keys, defaults, the example of a sweep."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest
from kdcore_evaluation.commands.evaluate import is_override
from kdcore_evaluation.run.suite import Probes, Suite

from kdcore.recipe.loading import load_config, load_recipe
from kdcore.recipe.paths import shipped_recipes
from kdcore.recipe.sweep import SweepFile, make_sweep
from kdcore.registry import commands

PAGE = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text(encoding="utf-8")
LINES = [line.removeprefix("$ ") for block in re.findall(r"^```console\n(.*?)^```$", PAGE, re.M | re.S)
         for line in block.splitlines()]  # fmt: skip


def table(heading: str) -> dict[str, list[str]]:
    """Rows of the first table below a heading, by their first cell."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [[cell.strip().strip("`") for cell in line.strip("|").split(" | ")] for line in section.splitlines()
            if line.startswith("| `")]  # fmt: skip
    return {row[0]: row[1:] for row in rows}


@pytest.mark.parametrize("line", LINES)
def test_every_command_is_one(line: str) -> None:
    program, *words = shlex.split(line)
    name = "train" if program == "kdcore-train" else words.pop(0)
    parser = argparse.ArgumentParser()
    commands.get(name)().add_arguments(parser)
    parsed = parser.parse_intermixed_args(words)
    if name == "evaluate":
        overrides = [word for word in parsed.places if is_override(word)]
        assert load_config(parsed.on, Suite, overrides).name in parsed.on
    if name == "sweep":
        assert load_config(parsed.sweep, SweepFile).smoke is not None or not parsed.smoke


def test_every_key_of_a_suite_is_there_with_its_default() -> None:
    rows = table("Suites")
    assert set(rows) == set(Suite.model_fields)
    for name, field in Suite.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if name == "budget":
            default = {"epochs": default.epochs}
        if name == "probes":
            default = {}
        if not field.is_required():
            assert rows[name][0] == ("none" if default is None else str(default).replace("'", "")), name


def test_every_probe_and_its_keys_are_there() -> None:
    rows = table("Probes")
    assert set(rows) == set(Probes.model_fields)
    for name, row in rows.items():
        (model,) = [one for one in Probes.model_fields[name].annotation.__args__ if one is not type(None)]
        assert re.findall(r"\w+", row[0]) == list(model.model_fields)


def test_the_example_of_a_sweep_makes_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.M | re.S)
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    sweep = load_config("mine.yaml", SweepFile)
    assert sweep.recipes is not None
    overrides = [f"{key}={value}" for key, value in sweep.overrides.items()]
    cells = make_sweep(sweep.recipes, overrides, sweep.override_axes)
    assert [cell.folder.relative_to(tmp_path).as_posix() for cell in cells] == [
        f"runs/{name}/seed={seed}" for name in ("hidden_mse", "minilm_v2") for seed in (43, 44, 45)
    ]


def test_the_shipped_table_is_objectives_by_initialisations_by_seeds(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = load_config(shipped_recipes() / "how-to-distill-your-bert" / "table.yaml", SweepFile)
    assert sweep.recipes is not None
    assert sweep.smoke is not None
    cells = make_sweep(sweep.recipes, ["task.data=data"], sweep.override_axes)
    assert len(cells) == len(sweep.recipes) * 3 * 3 == 72
    random = [
        cell for cell in cells if load_recipe(cell.recipe, cell.overrides).data["student"].get("initialize") is None
    ]
    assert len(random) == 24
    assert len({cell.folder for cell in cells}) == 72
