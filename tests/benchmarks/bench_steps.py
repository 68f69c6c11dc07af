"""A training step against a plain loop of transformers: speed, share of the matrix-multiply limit, peak memory.

    python tests/benchmarks/bench_steps.py [--objectives hidden_mse ...] [--sequences 8] [--repeats 3] [--compiled]

Ratios only: absolute times of a shared CPU mean nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from measuring import MatrixMultiply, PeakMemory, interleaved, ratio, single_thread
from workload import OBJECTIVES, Workload, check_equal, make_batch, step_flops


def compare(
    objective: str, padding: float, sequences: int, repeats: int, small: bool, compiled: bool
) -> dict[str, float | str]:
    """One row of the table."""
    workload = Workload(objective, small)
    ours, plain = workload.ours(), workload.plain()
    batch = make_batch(sequences, padding, workload.config.vocab_size)
    equality = check_equal(workload, ours, plain, batch)
    limit = MatrixMultiply(sequences * 128)
    variants = {"plain": lambda: plain.step(batch), "ours": lambda: ours.step(batch), "limit": limit}
    if compiled:
        side = workload.ours(compiled=True)
        check_equal(workload, side, plain, batch)
        variants["compiled"] = lambda: side.step(batch)
    timings = interleaved(variants, repeats)
    flops = step_flops(batch, objective == "soft_targets")
    per_second = limit.flops / min(timings["limit"].seconds)
    middle, low, high = ratio(timings, "plain", "ours")
    row: dict[str, float | str] = {
        "objective": objective,
        "padding": round(1 - batch.num_tokens / batch.input_ids.numel(), 3),
        "speed": round(middle, 2),
        "lowest": round(low, 2),
        "highest": round(high, 2),
        "mfu": round(flops / timings["ours"].median / per_second, 3),
        "plain_mfu": round(flops / timings["plain"].median / per_second, 3),
        "spread": round(timings["ours"].spread, 2),
        "equality": equality,
    }
    if compiled:
        row["compiled"] = round(ratio(timings, "ours", "compiled")[0], 3)
    return row


def memory(objective: str, padding: float, sequences: int, side: str, small: bool) -> None:
    """Print the peak of a process that takes two steps."""
    workload = Workload(objective, small)
    taken = workload.ours() if side == "ours" else workload.plain()
    batch = make_batch(sequences, padding, workload.config.vocab_size)
    PeakMemory.reset()
    before = PeakMemory.read()["now"]
    for _ in range(2):
        taken.step(batch)
    found = PeakMemory.read()
    print(json.dumps({"peak": found["peak"], "models": before}))


def peak(objective: str, padding: float, sequences: int, side: str, small: bool) -> float:
    """The same in a process of its own, in MB."""
    command = [sys.executable, str(Path(__file__)), "--memory", side, "--objectives", objective]
    command += ["--padding", str(padding), "--sequences", str(sequences), *(["--small"] if small else [])]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(json.loads(output.splitlines()[-1])["peak"])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES), choices=list(OBJECTIVES))
    parser.add_argument("--padding", nargs="+", type=float, default=[0.0, 0.3])
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--memory-sequences", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="tiny models, to try the benchmark itself")
    parser.add_argument("--compiled", action="store_true", help="also compare with `training.compile`")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--memory", choices=("ours", "plain"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    single_thread()
    if arguments.memory:
        memory(arguments.objectives[0], arguments.padding[0], arguments.sequences, arguments.memory, arguments.small)
        return
    for objective in arguments.objectives:
        for padding in arguments.padding:
            row = compare(
                objective, padding, arguments.sequences, arguments.repeats, arguments.small, arguments.compiled
            )
            if not arguments.no_memory:
                ours, plain = (
                    peak(objective, padding, arguments.memory_sequences, side, arguments.small)
                    for side in ("ours", "plain")
                )
                row["memory"] = round(ours / plain, 2)
                row["memory_mb"] = f"{ours:.0f} of {plain:.0f}"
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
