"""Implement `kdcore recipe`: check a recipe, show it resolved, or print the schema for editors."""

from __future__ import annotations

import argparse
import json
import sys

from kdcore.commands.base import Command, add_allow_imports, add_recipe_arguments
from kdcore.errors import InputError
from kdcore.recipe.loading import load_recipe


class RecipeCommand(Command):
    """Check and print recipes without training.

    check RECIPE [key=value ...]   list all mistakes in a recipe
    show RECIPE [key=value ...]    print the resolved recipe with the origin of each value
    schema                         print a JSON Schema of recipes with all installed components, for editors
    """

    help = "check a recipe, show it resolved, print a schema for editors"
    subcommands = ("check", "show", "schema")

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the action, RECIPE, overrides."""
        parser.add_argument("action", choices=self.subcommands)
        add_recipe_arguments(parser, optional=True)
        add_allow_imports(parser)

    def run(self, arguments: argparse.Namespace) -> int:
        """Run the action."""
        if arguments.action == "schema":
            if arguments.recipe is not None:
                raise InputError("`kdcore recipe schema` takes no recipe: the schema covers all recipes")
            return _schema()
        if arguments.recipe is None:
            raise InputError(f"`kdcore recipe {arguments.action}` needs a recipe file")
        recipe = load_recipe(
            arguments.recipe,
            arguments.overrides,
            allow_imports=arguments.allow_imports or None,
            check_names=arguments.action == "show",
        )
        if arguments.action == "show":
            print(recipe.annotated_yaml(), end="")
            return 0
        components = recipe.components()
        print(f"{recipe.path}: the recipe is valid (losses: {', '.join(components.losses)})")
        return 0


def _schema() -> int:
    from kdcore.recipe.json_schema import recipe_json_schema

    schema, skipped = recipe_json_schema()
    for problem in skipped:
        print(f"warning: left out: {problem}", file=sys.stderr)
    print(json.dumps(schema, indent=2))
    return 0
