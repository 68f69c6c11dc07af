"""Check kdcore on a GPU, or measure it there: `make test-gpu`, `make bench-gpu`.

    python tests/gpu/run.py test|bench [--results FOLDER]

Runs with any Python that has torch and what kdcore requires (docs/offline.md). kdcore and its packages are imported
from this clone; only their entry points must be installed. Without a GPU it prints one sentence and exits with 0.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from recording import Check, run_checks

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 230.0  # the limit is 4 minutes; the machine is examined before the first check
SUITES = {
    "test": {"versions": 40, "attention": 60, "training": 90, "resume": 70, "commands": 70, "contexts": 30},
    "bench": {
        "speed hidden_mse": 50,
        "profile": 50,
        "compile": 70,
        "speed soft_targets": 50,
        "speed minilm_v2_12": 50,
        "speed minilm_v2_48": 50,
        "speed attention_kl": 50,
    },
}
"""The checks of a suite in their order, and the seconds after which each is killed."""

EXAMINE = """
import json, sys
from importlib import metadata
def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
names = ("torch", "triton", "deepspeed", "transformers", "flash-attn", "numpy", "kdcore")
facts = {"versions": {"python": sys.version.split()[0]} | {name: version(name) for name in names}}
import torch
facts["versions"]["cuda"] = torch.version.cuda
facts["card"] = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
print(json.dumps(facts))
"""


def environment() -> dict[str, str]:
    """Return the variables of all processes: the packages of this clone come before installed ones."""
    folders = [ROOT, *sorted(file.parent for file in ROOT.glob("plugins/*/pyproject.toml")), ROOT / "launch"]
    folders += [ROOT / "tests" / "benchmarks", ROOT / "tests" / "gpu"]
    paths = [*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def examine() -> dict[str, Any] | str:
    """Return the facts about this machine, or the reason for which nothing can be checked."""
    done = subprocess.run(
        [sys.executable, "-c", EXAMINE], capture_output=True, text=True, check=False, env=environment()
    )
    if done.returncode:
        return f"torch cannot be imported by {sys.executable}"
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts if facts["card"] else "torch finds no GPU"


def commit() -> str | None:
    """Return the commit of this clone, with `+` if files differ from it; None outside of a clone."""
    done = subprocess.run(
        ["git", "describe", "--always", "--abbrev=12", "--dirty=+"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or None


def main() -> int:
    """Run a suite."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=list(SUITES))
    parser.add_argument("--results", type=Path, default=ROOT / "tests" / "gpu" / "results", metavar="FOLDER")
    arguments = parser.parse_args()
    facts = examine()
    if isinstance(facts, str):
        print(f"make {arguments.suite}-gpu: skipped, because {facts}.")
        return 0
    missing = [name for name in ("deepspeed", "kdcore") if facts["versions"][name] is None]
    if missing:
        print(f"not installed: {', '.join(missing)}. Hint: docs/offline.md describes how to install without a network.")
        return 1
    now = time.gmtime()
    facts |= {"suite": arguments.suite, "date": time.strftime("%Y-%m-%d", now), "commit": commit()}
    results = arguments.results / f"{arguments.suite}-{time.strftime('%Y%m%dT%H%M%S', now)}.jsonl"
    child = [sys.executable, str(ROOT / "tests" / "gpu" / "child.py"), "cuda"]
    checks = [Check(name, seconds, [*child, name]) for name, seconds in SUITES[arguments.suite].items()]
    passed = run_checks(checks, SECONDS, facts, results, environment())
    print(f"results: {results}")
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
