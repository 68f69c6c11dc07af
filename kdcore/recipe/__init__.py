"""Recipes: the YAML files that say what is trained, and how."""
