"""A JSON Schema of recipes with every component that is installed, so that editors complete and check as one types.

It says what may stand in a recipe, not what has to: with `extends`, most files are parts. `kdcore recipe check` tells
what is missing.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from kdcore.errors import KdcoreError
from kdcore.recipe.schema import SECTION_DEFAULTS, RecipeSettings
from kdcore.registry import ALL, Entry

Schema = dict[str, Any]

SECTIONS = {
    "teacher": "kdcore.models",
    "student": "kdcore.models",
    "task": "kdcore.tasks",
    "optimizer": "kdcore.optimizers",
    "scheduler": "kdcore.schedulers",
}


def recipe_json_schema() -> tuple[Schema, list[str]]:
    """The schema, and what is wrong with the components that had to be left out."""
    definitions: Schema = {}
    skipped: list[str] = []
    for group, registry in ALL.items():
        if registry.needs_config:
            for entry in registry.entries():
                try:
                    # A package's name chooses where several have the component.
                    cls = registry.get(f"{entry.distribution}:{entry.name}")
                    section = _closed(cls.Config, f"{group}.{entry.distribution}.{entry.name}", definitions)
                except KdcoreError as error:
                    skipped.append(str(error))
                except Exception as error:  # a config whose schema pydantic cannot tell
                    skipped.append(f"{registry.kind} `{entry.name}` of {entry.package}: {error}")
                else:
                    definitions[_name_of(entry)] = _named(section, entry, cls)
    schema = _closed(RecipeSettings, "recipe", definitions)
    properties = schema["properties"]
    properties["extends"] = {
        "description": "Recipes that this one builds on, relative to this file; kdcore:NAME is one that kdcore ships.",
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    }
    for key, group in SECTIONS.items():
        properties[key] = _any_of(group, SECTION_DEFAULTS.get(key))
    properties["losses"] = {
        "type": "object",
        "description": "Label, then loss; the label is the loss's name unless `name` says another.",
        "properties": {name: _any_of("kdcore.losses", name) for name in ALL["kdcore.losses"].names()},
        "additionalProperties": _any_of("kdcore.losses", None),
    }
    names = {"type": "string", "enum": ALL["kdcore.trackers"].names()}
    properties["tracking"] = {"type": "array", "items": {"anyOf": [names, _any_of("kdcore.trackers", None)]}}
    whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "kdcore recipe"}
    resolved: Schema = _resolve({**whole, "$defs": definitions}, definitions)
    return resolved, skipped


def _name_of(entry: Entry) -> str:
    return f"{entry.group}:{entry.distribution}:{entry.name}"


def _closed(model: type[BaseModel], prefix: str, definitions: Schema) -> Schema:
    """The schema of one model; what it refers to goes to `definitions` under names of its own."""
    schema = model.model_json_schema(ref_template=f"#/$defs/{prefix}.{{model}}")
    for name, inner in schema.pop("$defs", {}).items():
        definitions[f"{prefix}.{name}"] = inner
    return schema


def _named(section: Schema, entry: Entry, cls: type[Any]) -> Schema:
    """A component's section: its config's keys, and the `name` that chooses it."""
    properties = {key: value for key, value in section.get("properties", {}).items() if key not in ("name", "label")}
    name = {"enum": [entry.name, f"{entry.distribution}:{entry.name}"], "description": f"From {entry.package}."}
    about = (cls.__doc__ or "").strip().partition("\n")[0]
    return {**section, "description": about, "properties": {"name": name, **properties}, "required": ["name"]}


def _any_of(group: str, default: str | None) -> Schema:
    """Any component of a group, or null to remove what an extended recipe says; one needs no `name`."""
    return {"x-kdcore-components": group, "x-kdcore-default": default}


def _resolve(schema: Any, definitions: Schema) -> Any:
    """Put references to components where a field is marked as one, and drop what partial files cannot keep."""
    if isinstance(schema, list):
        return [_resolve(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "x-kdcore-components" in schema:
        group, default = schema["x-kdcore-components"], schema.get("x-kdcore-default")
        found = [name for name in definitions if name.startswith(f"{group}:")]
        options: list[Schema] = []
        for name in found:
            own = {"$ref": f"#/$defs/{name}"}
            options.append(own if name.endswith(f":{default}") else {**own, "required": ["name"]})
        return {"anyOf": [*options, {"type": "null"}]}
    return {
        key: _resolve(value, definitions)
        for key, value in schema.items()
        if not (key == "required" and isinstance(value, list))
    }
