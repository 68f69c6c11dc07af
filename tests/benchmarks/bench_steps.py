"""A training step against two plain loops of transformers: speed, share of the matrix-multiply limit, peak memory.

    python tests/benchmarks/bench_steps.py [--objectives hidden_mse ...] [--sequences 8] [--repeats 3] [--compiled]

`bare` loops over encoders without heads and applies the head to masked positions only, where the loss needs it; `plain`
loops over `BertForMaskedLM`. The first line names the processor. Ratios only: absolute times of a shared CPU mean
nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from measuring import MatrixMultiply, PeakMemory, interleaved, processor, ratio, single_thread
from workload import OBJECTIVES, Workload, check_equal, make_batch, step_flops


def compare(
    objective: str, padding: float, sequences: int, repeats: int, small: bool, compiled: bool
) -> dict[str, float | str]:
    """One row of the table."""
    workload = Workload(objective, small)
    ours, plain, bare = workload.ours(), workload.plain(), workload.plain(bare=True)
    batch = make_batch(sequences, padding, workload.config.vocab_size)
    equality = check_equal(workload, ours, plain, batch)
    limit = MatrixMultiply(sequences * 128)
    check_equal(workload, bare, plain, batch)
    variants = {
        "plain": lambda: plain.step(batch),
        "ours": lambda: ours.step(batch),
        "bare": lambda: bare.step(batch),
        "limit": limit,
    }
    if compiled:
        side = workload.ours(compiled=True)
        check_equal(workload, side, plain, batch)
        variants["compiled"] = lambda: side.step(batch)
    timings = interleaved(variants, repeats)
    flops = step_flops(batch, objective == "soft_targets")
    per_second = limit.flops / min(timings["limit"].seconds)
    against = {name: "{:.2f} ({:.2f} to {:.2f})".format(*ratio(timings, name, "ours")) for name in ("bare", "plain")}
    row: dict[str, float | str] = {
        "objective": objective,
        "padding": round(1 - batch.num_tokens / batch.input_ids.numel(), 3),
        **against,
        "mfu": round(flops / timings["ours"].median / per_second, 3),
        "plain_mfu": round(flops / timings["plain"].median / per_second, 3),
        "spread": round(timings["ours"].spread, 2),
        "equality": equality,
    }
    if compiled:
        row["compiled"] = round(ratio(timings, "ours", "compiled")[0], 3)
    return row


def memory(objective: str, padding: float, sequences: int, side: str, small: bool) -> None:
    """Print the peak of a process that takes two steps, and what of it every variant needs, in MB.

    Fixed are the process with its libraries, the weights of both models, and the student's gradients and moments.
    """
    libraries = PeakMemory.read()["now"]
    workload = Workload(objective, small)
    taken = workload.ours() if side == "ours" else workload.plain(bare=side == "bare")
    batch = make_batch(sequences, padding, workload.config.vocab_size)
    PeakMemory.reset()
    for _ in range(2):
        taken.step(batch)
    peak = PeakMemory.read()["peak"]
    weights = sum(value.nbytes for model in taken.teachers for value in model.parameters())
    trained = sum(value.nbytes for value in taken.student.parameters())
    print(json.dumps({"peak": peak, "fixed": libraries + (weights + 4 * trained) / 2**20}))


def peak_and_fixed(objective: str, padding: float, sequences: int, side: str, small: bool) -> tuple[float, float]:
    """The same in a separate process."""
    command = [sys.executable, str(Path(__file__)), "--memory", side, "--objectives", objective]
    command += ["--padding", str(padding), "--sequences", str(sequences), *(["--small"] if small else [])]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = json.loads(output.splitlines()[-1])
    return found["peak"], found["fixed"]


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
    parser.add_argument("--memory", choices=("ours", "bare", "plain"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    single_thread()
    if arguments.memory:
        memory(arguments.objectives[0], arguments.padding[0], arguments.sequences, arguments.memory, arguments.small)
        return
    print(json.dumps({"processor": processor()}), flush=True)
    for objective in arguments.objectives:
        for padding in arguments.padding:
            row = compare(
                objective, padding, arguments.sequences, arguments.repeats, arguments.small, arguments.compiled
            )
            if not arguments.no_memory:
                found = {
                    side: peak_and_fixed(objective, padding, arguments.memory_sequences, side, arguments.small)
                    for side in ("ours", "bare", "plain")
                }
                peak, fixed = found.pop("ours")
                for side, (other_peak, other_fixed) in found.items():
                    row[f"memory_{side}"] = round(peak / other_peak, 2)
                    row[f"beyond_fixed_{side}"] = round((peak - fixed) / (other_peak - other_fixed), 2)
                    row[f"mb_{side}"] = f"{peak:.0f} of {other_peak:.0f}, fixed {fixed:.0f} and {other_fixed:.0f}"
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
