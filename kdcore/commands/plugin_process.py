"""Import the components of one package in a separate process, for `kdcore plugins check`.

The arguments are `group=package:name`. The process prints and flushes one line of JSON per argument. If importing a
component terminates the process, the first missing line identifies that component.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from kdcore.commands.subcommands import placement_fault
from kdcore.errors import KdcoreError
from kdcore.registry import ALL


def main(arguments: Sequence[str]) -> None:
    """Import each component and print its fault, or null."""
    # Output of plugins during their import goes to stderr, so that stdout contains only results.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for argument in arguments:
        group, _, name = argument.partition("=")
        print(json.dumps({"fault": fault(group, name)}), file=answers, flush=True)


def fault(group: str, name: str) -> str | None:
    """Return the fault of a component, or None."""
    try:
        cls = ALL[group].get(name)
    except KdcoreError as error:
        return str(error)
    if ALL[group].needs_config:
        try:
            cls.Config.model_json_schema()
        except Exception as error:
            return f"the schema of its Config cannot be generated: {error}"
    return placement_fault(name.rpartition(":")[2]) if group == "kdcore.commands" else None


if __name__ == "__main__":
    main(sys.argv[1:])
