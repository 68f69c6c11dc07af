"""Run `kdcore` in this process as if some packages were not installed.

    python without_packages.py NAME,NAME... FILE ARGUMENT...

NAME is a package as Python imports it. `kdcore ARGUMENT...` runs and sets the exit code; then the path of every module
that was loaded is written into FILE, one on each line.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any


class Hiding:
    """An import finder that finds what another one finds, some packages and their metadata excepted."""

    def __init__(self, finder: Any, hidden: set[str]) -> None:
        self._finder = finder
        self._hidden = hidden

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return None if name.partition(".")[0] in self._hidden else self._finder.find_spec(name, path, target)

    def find_distributions(self, *context: Any) -> Iterable[metadata.Distribution]:
        find = getattr(self._finder, "find_distributions", lambda *_: ())
        return (each for each in find(*context) if each.name.replace("-", "_") not in self._hidden)

    def invalidate_caches(self) -> None:
        getattr(self._finder, "invalidate_caches", lambda: None)()


def main(hidden: str, file: str, *arguments: str) -> int:
    names = set(hidden.split(","))
    sys.meta_path[:] = [Hiding(finder, names) for finder in sys.meta_path]
    assert not names & set(sys.modules), "a package to be hidden is loaded already"
    from kdcore.commands.main import main as kdcore

    code = kdcore(arguments)
    loaded = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    Path(file).write_text("\n".join(filter(None, loaded)), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
