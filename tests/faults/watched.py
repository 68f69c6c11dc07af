"""Run `kdcore` and print, at its end, each class that a pickle made Python look up.

watched.py FILE ARGUMENTS...    FILE gets a line for each
"""

from __future__ import annotations

import sys
from pathlib import Path

found: set[str] = set()


def watch(event: str, arguments: tuple) -> None:
    if event == "pickle.find_class":
        found.add(f"{arguments[0]}.{arguments[1]}")


sys.addaudithook(watch)

from kdcore.commands.main import main  # noqa: E402

try:
    code = main(sys.argv[2:])
finally:
    Path(sys.argv[1]).write_text("".join(f"{name}\n" for name in sorted(found)), encoding="utf-8")
sys.exit(code)
