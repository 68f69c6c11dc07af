"""The JSON Schema of recipes: everything that is installed is in it, and nothing else is accepted."""

from __future__ import annotations

import json
from typing import Any

from kdcore.commands.main import main
from kdcore.recipe.json_schema import recipe_json_schema

SCHEDULER = """
from typing import Annotated, Any
from pydantic import BaseModel, Field
from kdcore.recipe.schema import ComponentConfig, ComponentSection
from kdcore.schedulers.base import Scheduler

class Masking(ComponentConfig):
    depth: int = 1

class Steps(Scheduler):
    '''Falls in steps.'''

    class Config(ComponentConfig):
        at: list[int] = Field(description="Where it falls.")
        masking: Masking = Masking()
        reader: Annotated[dict[str, Any], ComponentSection("kdcore.corpora")] = Field(default_factory=dict)

    def factor(self, progress):
        return 1.0
"""


def references(schema: Any) -> set[str]:
    if isinstance(schema, dict):
        own = {schema["$ref"]} if "$ref" in schema else set()
        return own.union(*(references(value) for value in schema.values()))
    return set().union(*(references(item) for item in schema)) if isinstance(schema, list) else set()


def test_the_schema_has_every_section_and_points_at_nothing_that_is_missing():
    schema, skipped = recipe_json_schema()
    assert skipped == []
    assert {"extends", "run", "teacher", "losses", "training", "tracking"} <= set(schema["properties"])
    assert schema["additionalProperties"] is False
    assert {reference.removeprefix("#/$defs/") for reference in references(schema)} <= set(schema["$defs"])
    assert "x-kdcore" not in json.dumps(schema)


def test_third_party_components_are_in_the_schema(packages):
    packages.install("kdcore-steps", {"kdcore.schedulers:steps": "steps_c:Steps"}, {"steps_c.py": SCHEDULER})
    schema, _ = recipe_json_schema()
    steps = schema["$defs"]["kdcore.schedulers:kdcore-steps:steps"]
    assert steps["description"] == "Falls in steps."
    assert steps["properties"]["name"]["enum"] == ["steps", "kdcore-steps:steps"]
    assert steps["properties"]["at"]["description"] == "Where it falls."
    assert steps["additionalProperties"] is False
    options = schema["properties"]["scheduler"]["anyOf"]
    assert {"$ref": "#/$defs/kdcore.schedulers:kdcore-steps:steps", "required": ["name"]} in options
    assert {"$ref": "#/$defs/kdcore.schedulers:kdcore:linear"} in options, "the default needs no name"
    readers = steps["properties"]["reader"]["anyOf"]
    assert {"$ref": "#/$defs/kdcore.corpora:kdcore-preparation:text", "required": ["name"]} in readers
    masking = schema["$defs"]["kdcore.schedulers.kdcore-steps.steps.Masking"]
    assert masking["properties"]["depth"]["default"] == 1, "not to be confused with another package's Masking"


def test_broken_plugins_are_left_out_with_a_warning(packages, capsys):
    packages.install("kdcore-bad", {"kdcore.schedulers:bad": "bad_schema:X"}, {"bad_schema.py": "1 / 0"})
    assert main(["recipe", "schema"]) == 0
    output = capsys.readouterr()
    assert "kdcore.schedulers:kdcore-bad:bad" not in json.loads(output.out)["$defs"]
    assert output.err.startswith("warning: left out: scheduler `kdcore-bad:bad`")
    assert "ZeroDivisionError" in output.err


TRANSFORM = """
from pydantic import Field
from kdcore import Transform, TransformConfig

class Halve(Transform):
    '''Halves the student.'''

    class Config(TransformConfig):
        keep: int = Field(1, description="What stays.")

    def describe(self, student):
        return student

    def apply(self, student, generator):
        return student, {}
"""


def test_stages_are_transforms_with_the_fraction_of_the_budget(packages):
    schema, _ = recipe_json_schema()
    assert schema["properties"]["stages"]["items"] == {"anyOf": [{"type": "object"}, {"type": "null"}]}
    packages.install("kdcore-halve", {"kdcore.transforms:halve": "halve_t:Halve"}, {"halve_t.py": TRANSFORM})
    schema, skipped = recipe_json_schema()
    assert skipped == []
    halve = schema["$defs"]["kdcore.transforms:kdcore-halve:halve"]
    assert {"name", "at", "keep"} == set(halve["properties"])
    assert (halve["properties"]["at"]["exclusiveMinimum"], halve["properties"]["at"]["exclusiveMaximum"]) == (0, 1)
    reference = {"$ref": "#/$defs/kdcore.transforms:kdcore-halve:halve", "required": ["name"]}
    assert schema["properties"]["stages"]["items"]["anyOf"] == [reference, {"type": "null"}]


def test_installed_transforms_are_listed(packages, capsys):
    packages.install("kdcore-halve", {"kdcore.transforms:halve": "halve_t:Halve"}, {"halve_t.py": TRANSFORM})
    assert main(["plugins", "list"]) == 0
    assert any(
        line.split()[:3] == ["transform", "halve", "kdcore-halve"] for line in capsys.readouterr().out.split("\n")
    )
    assert main(["plugins", "show", "halve"]) == 0
    assert "Fraction of the budget after which the stage begins" in capsys.readouterr().out


def test_several_teachers_are_models_or_combinations_and_the_student_names_one():
    schema, _ = recipe_json_schema()
    composite, *models = schema["properties"]["teachers"]["additionalProperties"]["anyOf"]
    assert set(composite["properties"]) == {"average", "concat"}
    assert composite["additionalProperties"] is False
    (models,) = models
    assert models == schema["properties"]["teacher"]
    teacher, student = (
        schema["$defs"][option["$ref"].removeprefix("#/$defs/")]
        for section in ("teacher", "student")
        for option in schema["properties"][section]["anyOf"]
        if option.get("$ref", "").endswith("kdcore:transformers")
    )
    model = schema["$defs"]["kdcore.models:kdcore:transformers"]
    assert set(student["properties"]) - set(model["properties"]) == {"from"}
    assert set(teacher["properties"]) - set(model["properties"]) == {"cache"}
    assert "teacher" in schema["$defs"]["kdcore.losses:kdcore:soft_targets"]["properties"]
