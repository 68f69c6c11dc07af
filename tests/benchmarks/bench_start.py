"""How long a start takes: commands that need no model, and from `kdcore-train` to the first step.

    python tests/benchmarks/bench_start.py

Wall-clock and CPU seconds; the data is prepared by a first start that is not measured.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_loop import write_recipe
from workload import Workload


def timed(command: list[str]) -> tuple[float, float, str]:
    """Wall-clock seconds, CPU seconds and stderr of a command."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - started, cpu, result.stderr


def main() -> None:
    """Measure and print."""
    kdcore = [sys.executable, "-m", "kdcore.commands.main"]
    for arguments in (["--help"], ["plugins", "list"]):
        runs = [timed([*kdcore, *arguments]) for _ in range(3)]
        wall, cpu = min(run[0] for run in runs), min(run[1] for run in runs)
        print(json.dumps({"command": " ".join(arguments), "wall": round(wall, 2), "cpu": round(cpu, 2)}), flush=True)
    workload = Workload("hidden_mse")
    with tempfile.TemporaryDirectory() as name:
        os.environ["KDCORE_CACHE"] = name
        recipe = write_recipe(Path(name), workload.teacher_folder, 1, 2)
        for run in ("first", "second"):
            _, cpu, log = timed([*kdcore, "train", str(recipe), f"run.id={run}"])
        line = re.search(r"started in .*", log)
        print(json.dumps({"start": line.group() if line else "", "cpu_of_the_whole_run": round(cpu, 1)}), flush=True)


if __name__ == "__main__":
    main()
