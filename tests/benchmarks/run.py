"""All benchmarks of training, one after the other, each in a process of its own: `make bench`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SCRIPTS = (
    ["bench_steps.py"],
    ["bench_peers.py"],
    ["bench_losses.py"],
    ["bench_loop.py", "--processes"],
    ["bench_start.py"],
)


def main() -> int:
    """Run all of them; what one says does not keep the others from running."""
    failed = 0
    for script, *arguments in SCRIPTS:
        print(f"== {script}", flush=True)
        failed += subprocess.run([sys.executable, str(HERE / script), *arguments], check=False).returncode != 0
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
