"""Build the JSON Schema of recipes with all installed components, for completion and checks in editors.

The schema does not enforce required keys, because a file with `extends` may be partial. `kdcore recipe check` reports
missing keys.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from kdcore.errors import KdcoreError
from kdcore.recipe.schema import SECTION_DEFAULTS, CompositeSettings, RecipeSettings, TeacherKeys
from kdcore.registry import ALL, Entry

Schema = dict[str, Any]

SECTIONS = {
    "teacher": "kdcore.models",
    "student": "kdcore.models",
    "task": "kdcore.tasks",
    "optimizer": "kdcore.optimizers",
    "scheduler": "kdcore.schedulers",
}
_TEACHERS, _STUDENTS = "teacher", "student"
"""Prefixes of the definitions of teachers and students: the core adds a key to the keys of their models."""


def recipe_json_schema() -> tuple[Schema, list[str]]:
    """Build the schema, and return it with the errors of the components that were skipped."""
    definitions: Schema = {}
    skipped: list[str] = []
    for group, registry in ALL.items():
        if registry.needs_config:
            for entry in registry.entries():
                try:
                    # The package's name resolves a component that several packages provide.
                    cls = registry.get(f"{entry.distribution}:{entry.name}")
                    section = _closed(cls.Config, f"{group}.{entry.distribution}.{entry.name}", definitions)
                except KdcoreError as error:
                    skipped.append(str(error))
                except Exception as error:  # pydantic cannot generate a schema for the config
                    skipped.append(f"{registry.kind} `{entry.name}` of {entry.package}: {error}")
                else:
                    definitions[_name_of(entry)] = _named(section, entry, cls)
                    if group == SECTIONS["student"]:
                        for prefix, added in ((_TEACHERS, _cache_key()), (_STUDENTS, _FROM)):
                            definitions[f"{prefix}:{_name_of(entry)}"] = _with_key(definitions[_name_of(entry)], added)
    schema = _closed(RecipeSettings, "recipe", definitions)
    properties = schema["properties"]
    properties["extends"] = {
        "description": "Base recipes, relative to this file; kdcore:NAME is a recipe shipped with kdcore.",
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    }
    for key, group in SECTIONS.items():
        properties[key] = _any_of(group, SECTION_DEFAULTS.get(key))
    properties["losses"] = {
        "type": "object",
        "description": "Losses by label; the label is also the loss's name unless `name` is given.",
        "properties": {name: _any_of("kdcore.losses", name) for name in ALL["kdcore.losses"].names()},
        "additionalProperties": _any_of("kdcore.losses", None),
    }
    composite = _closed(CompositeSettings, "composite", definitions)
    properties["teachers"] = {
        "type": "object",
        "description": "Several teachers by label: models, or the average or concatenation of others.",
        "additionalProperties": {"anyOf": [composite, _any_of(_TEACHERS, SECTION_DEFAULTS["teachers"])]},
    }
    properties["teacher"] = _any_of(_TEACHERS, SECTION_DEFAULTS["teacher"])
    properties["student"] = _any_of(_STUDENTS, SECTION_DEFAULTS["student"])
    for key, group in (("tracking", "kdcore.trackers"), ("callbacks", "kdcore.callbacks")):
        names = {"type": "string", "enum": ALL[group].names()} if ALL[group].names() else {"type": "string"}
        properties[key] = {"type": "array", "items": {"anyOf": [names, _any_of(group, None)]}}
    properties["stages"] = {**properties["stages"], "items": _any_of("kdcore.transforms", None)}
    whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "kdcore recipe"}
    resolved: Schema = _resolve({**whole, "$defs": definitions}, definitions)
    return resolved, skipped


def _name_of(entry: Entry) -> str:
    return f"{entry.group}:{entry.distribution}:{entry.name}"


def _closed(model: type[BaseModel], prefix: str, definitions: Schema) -> Schema:
    """Return the schema of one model; add its nested definitions to `definitions` under prefixed names."""
    schema = model.model_json_schema(ref_template=f"#/$defs/{prefix}.{{model}}")
    for name, inner in schema.pop("$defs", {}).items():
        definitions[f"{prefix}.{name}"] = inner
    return schema


def _named(section: Schema, entry: Entry, cls: type[Any]) -> Schema:
    """Return the schema of a component's section: the keys of its config and `name`."""
    properties = {key: value for key, value in section.get("properties", {}).items() if key not in ("name", "label")}
    bare = [entry.name] if ALL[entry.group].providers(entry.name) == [entry] else []
    name = {"enum": [*bare, f"{entry.distribution}:{entry.name}"], "description": f"From {entry.package}."}
    about = (cls.__doc__ or "").strip().partition("\n")[0]
    return {**section, "description": about, "properties": {"name": name, **properties}, "required": ["name"]}


_ABOUT_FROM = "Label of the teacher that provides the student's missing configuration; default: the first."
_FROM: Schema = {"from": {"type": "string", "description": _ABOUT_FROM}}


def _cache_key() -> Schema:
    schema: Schema = TeacherKeys.model_json_schema()["properties"]
    return schema


def _with_key(section: Schema, key: Schema) -> Schema:
    """Add the core's key to the section of a model."""
    return {**section, "properties": {**key, **section["properties"]}}


def _any_of(group: str, default: str | None) -> Schema:
    """Return a placeholder that stands for any component of a group, or for null, which removes an inherited value.

    The section of the component `default` may omit `name`.
    """
    return {"x-kdcore-components": group, "x-kdcore-default": default}


def _resolve(schema: Any, definitions: Schema) -> Any:
    """Replace placeholders by references and drop `required`, which partial files cannot satisfy."""
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
            implied = default in definitions[name]["properties"]["name"]["enum"]
            options.append(own if implied else {**own, "required": ["name"]})
        if not options:  # only files under `imports:` provide such components
            options = [{"type": "object"}]
        return {"anyOf": [*options, {"type": "null"}]}
    return {
        key: _resolve(value, definitions)
        for key, value in schema.items()
        if not (key == "required" and isinstance(value, list))
    }
