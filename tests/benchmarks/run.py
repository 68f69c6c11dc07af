"""Run all benchmarks of training in sequence, each in a separate process: `make bench`.

Ratios are appended to docs/benchmarks/history.json.
"""

from __future__ import annotations

import datetime
import subprocess
import sys
from pathlib import Path

from history import HISTORY, append, current_commit, records

HERE = Path(__file__).parent
SCRIPTS = (
    ["bench_steps.py"],
    ["bench_peers.py"],
    ["bench_losses.py"],
    ["bench_loop.py", "--processes"],
    ["bench_start.py"],
)
RECORDED = ("bench_steps.py", "bench_losses.py")


def main() -> int:
    """Run all of them; a failed one does not stop the others."""
    failed = 0
    commit = current_commit()
    for script, *arguments in SCRIPTS:
        print(f"== {script}", flush=True)
        command = [sys.executable, str(HERE / script), *arguments]
        lines = []
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout or ():
                print(line, end="", flush=True)
                lines.append(line)
        failed += process.returncode != 0
        if script in RECORDED and process.returncode == 0:
            append(HISTORY, records(" ".join([script, *arguments]), lines, datetime.date.today(), commit))
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
