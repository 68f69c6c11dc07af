"""Write kdcore/known_packages.json: which of this repository's packages provides which name.

kdcore reads the file when a recipe asks for a name that no installed package has. Run `python plugins/index.py` after
an entry point of a plugin or of `launch` has changed; a test fails while the file is out of date.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INDEX = ROOT / "kdcore" / "known_packages.json"
API_GROUP = "kdcore.plugin_api"


def index() -> str:
    """Return the index as JSON: the package of each name by group, and kdcore's names for those used in papers."""
    found: dict[str, dict[str, str]] = {}
    for file in sorted([*ROOT.glob("plugins/*/pyproject.toml"), ROOT / "launch" / "pyproject.toml"]):
        if file.exists():
            content = tomllib.loads(file.read_text(encoding="utf-8"))
            project = content["project"]
            for group, names in project.get("entry-points", {}).items():
                if group.startswith("kdcore.") and group != API_GROUP:
                    found.setdefault(group, {}).update(dict.fromkeys(names, project["name"]))
            for group, names in content.get("tool", {}).get("kdcore", {}).get("names-of-papers", {}).items():
                found.setdefault(f"{group} of papers", {}).update(names)
    return json.dumps(found, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    INDEX.write_text(index(), encoding="utf-8")
