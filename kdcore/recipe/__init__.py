"""Load, check, merge and display recipes, the YAML files that configure a run."""
