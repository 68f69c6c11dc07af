"""docs/optimizers-and-schedulers.md against the registries and the docstrings of components."""

from __future__ import annotations

import re
from pathlib import Path

from kdcore.optimizers.base import OptimizerConfig
from kdcore.registry import Registry, optimizers, schedulers
from kdcore.schedulers.warmup import WarmupConfig

PAGE = (Path(__file__).parents[2] / "docs" / "optimizers-and-schedulers.md").read_text(encoding="utf-8")
BEFORE, AFTER = PAGE.split("\n## Schedules\n")


def rows(part: str) -> dict[str, list[str]]:
    lines = [line for line in part.splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): row[1:] for row in cells}


def own(registry: Registry) -> list[str]:
    return [entry.name for entry in registry.entries() if entry.distribution == "kdcore"]


def keys(cell: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", cell))


def test_every_optimizer_is_on_the_page_with_its_keys_and_stages() -> None:
    table = rows(BEFORE)
    assert set(table) == set(own(optimizers))
    for name, (stated, _, stages) in table.items():
        cls = optimizers.get(name)
        assert keys(stated) == set(cls.Config.model_fields) - set(OptimizerConfig.model_fields), name
        assert stages == ("0, 1, 2" if cls.elementwise else "0"), name


def test_every_schedule_is_on_the_page_with_its_keys() -> None:
    table = rows(AFTER)
    shared = {key: table.pop(key) for key in WarmupConfig.model_fields}
    assert set(table) == set(own(schedulers))
    for name, (stated, *_) in table.items():
        assert keys(stated) == set(schedulers.get(name).Config.model_fields) - set(shared), name
    for key, (default, _) in shared.items():
        value = WarmupConfig.model_fields[key].default
        assert default.strip("`") == ("null" if value is None else str(value)), key
