"""Run a single check in this process: `python tests/gpu/child.py DEVICE CHECK FINDINGS_FILE`."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import traceback
from pathlib import Path

from recording import Findings, Setting

MODULES = {
    "versions": "check_machine",
    "contexts": "check_machine",
    "attention": "check_attention",
    "training": "check_training",
    "resume": "check_training",
    "commands": "check_commands",
    "speed": "check_speed",
    "compile": "check_speed",
    "profile": "check_speed",
}
"""The module of each check, in which `check_NAME` is its function."""


def run_check(name: str, setting: Setting) -> None:
    """Run a check; an exception becomes a failure with its message.

    Args:
        name: of the check, and after a space its argument.
        setting: where its findings go.
    """
    name, _, argument = name.partition(" ")
    try:
        function = getattr(importlib.import_module(MODULES[name]), f"check_{name}")
        function(setting, *filter(None, [argument]))
    except Exception as error:
        traceback.print_exc()
        setting.findings.expect(False, f"{type(error).__name__}: {str(error)[:500]}")


def main() -> int:
    """Run the check."""
    device, name, file = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KDCORE_CACHE"] = os.path.join(folder, "cache")
        run_check(name, Setting(device, device == "cpu", Path(folder), Findings(Path(file))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
