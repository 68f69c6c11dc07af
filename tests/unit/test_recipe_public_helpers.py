"""Helpers for packages that write recipes: checking of core keys, YAML on one line, names of components."""

from __future__ import annotations

import sys
from io import StringIO
from typing import Any

import pytest
from ruamel.yaml import YAML

import kdcore

VALID: dict[str, Any] = {
    "run": {"name": "test"},
    "student": {},
    "task": {"name": "masked_lm", "data": "data"},
    "losses": {"masked_lm": {}},
    "training": {"budget": {"steps": 10}, "batch_size": 8},
}


def test_a_valid_recipe_has_no_problems():
    assert kdcore.recipe_problems(VALID) == []


def test_every_mistake_of_core_keys_is_a_problem_with_its_key():
    training = {"budget": {"steps": 0}, "batch_size": "8", "precison": "fp16"}
    problems = kdcore.recipe_problems(VALID | {"training": training})
    keys = {problem.key for problem in problems}
    assert keys == {"training.budget.steps", "training.batch_size", "training.precison"}
    assert all(problem.where is None for problem in problems)


def test_keys_of_components_are_not_checked():
    assert kdcore.recipe_problems(VALID | {"optimizer": {"name": "nobody_has_it", "speed": 3}}) == []


@pytest.mark.parametrize(
    "value",
    ["plain", "two words", "1e5", "null", "a: b", "", "-", "é", True, 1, 1e-6, [1, "x"], {"a": {"b": [1, 2]}}, []],
)
def test_yaml_on_one_line_reads_as_the_same_value(value):
    text = kdcore.flow_yaml(value)
    assert "\n" not in text
    assert YAML(typ="safe", pure=True).load(StringIO(text)) == value
    if isinstance(value, str | bool | int | float) and not text.startswith('"'):
        assert kdcore.plain_scalar(text) == value


def test_null_values_of_maps_are_left_out():
    assert kdcore.flow_yaml({"a": None, "b": 1}) == "{b: 1}"


def test_names_of_components_are_found_without_importing_them(packages):
    code = {"never_here.py": "raise RuntimeError('imported')"}
    packages.install("kdcore-x", {"kdcore.trackers:paper": "never_here:Paper"}, code)
    names = kdcore.component_names("kdcore.trackers")
    assert {"jsonl", "tensorboard", "paper"} <= set(names)
    assert names == sorted(names)
    assert "never_here" not in sys.modules
