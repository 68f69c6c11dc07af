"""Record ratios of benchmarks in docs/benchmarks/history.json, which `make docs` plots."""

from __future__ import annotations

import datetime
import json
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HISTORY = ROOT / "docs" / "benchmarks" / "history.json"
_RATIO = re.compile(r"([\d.]+) \(([\d.]+) to ([\d.]+)\)")


def records(command: str, output: Iterable[str], date: datetime.date, commit: str) -> list[dict[str, Any]]:
    """Convert the JSON lines of `bench_steps.py` or `bench_losses.py`; other lines are ignored.

    Args:
        command: the script, with its arguments.
        output: lines that the script printed.
        date: date of the measurement.
        commit: commit that was measured.

    Returns:
        One record for each objective, fraction of padding and loop that kdcore is compared with: how many times as fast
        kdcore is, median and range.
    """
    found = []
    for line in output:
        row = json.loads(line) if line.startswith("{") else {}
        name = row.get("objective") or row.get("loss")
        ratios = {"plain": [row["speed"], row["lowest"], row["highest"]]} if "speed" in row else {}
        for against in ("bare", "plain"):
            if match := _RATIO.fullmatch(str(row.get(against, ""))):
                ratios[against] = [float(number) for number in match.groups()]
        for against, (ratio, lowest, highest) in ratios.items():
            about = {"date": str(date), "commit": commit, "command": command, "name": name, "against": against}
            values = {"padding": round(row["padding"], 1), "ratio": ratio, "lowest": lowest, "highest": highest}
            found.append(about | values)
    return found


def append(file: Path, added: list[dict[str, Any]]) -> None:
    """Append records to a history, one on each line."""
    rows = [*json.loads(file.read_text(encoding="utf-8")), *added]
    file.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n", encoding="utf-8")


def current_commit() -> str:
    """Return the abbreviated commit of the working tree, followed by `+` if files differ from it."""
    command = ["git", "describe", "--always", "--exclude", "*", "--abbrev=7", "--dirty=+"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
