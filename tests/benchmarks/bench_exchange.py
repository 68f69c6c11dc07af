"""How long a step waits for what processes exchange about it, if every exchange takes 20 ms.

    python tests/benchmarks/bench_exchange.py [--steps 200]

Two processes take steps of 50 ms. Each exchange arrives 20 ms after all processes have started it. It is started in
front of the step that needs it, or one step ahead, as in training. Fails if the median of the latter exceeds 1 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import torch.distributed as dist

LIMIT = 1e-3
STEP_SECONDS, EXCHANGE_SECONDS = 0.05, 0.02


class SlowWork:
    """A collective whose result arrives late."""

    def __init__(self, work: Any) -> None:
        self.work, self.arrives = work, time.perf_counter() + EXCHANGE_SECONDS

    def wait(self) -> None:
        """Wait for the result."""
        self.work.wait()
        time.sleep(max(0.0, self.arrives - time.perf_counter()))


def waits(steps: int) -> dict[str, float]:
    """Median seconds that steps of this process waited."""
    from kdcore.training.loop.batches import TrainingBatches
    from kdcore.training.runtime.distributed import start_processes

    processes = start_processes()
    group, all_reduce = dist.new_group(backend="gloo"), dist.all_reduce
    dist.all_reduce = lambda *args, **keys: SlowWork(all_reduce(*args, **keys))
    task: Any = SimpleNamespace(
        num_samples=lambda split: 1000,
        order=lambda epoch, generator, samples: samples,
        lengths=lambda split: None,
        draw=lambda split, samples, epochs, fraction: samples,
    )

    def exchange(batches: Any) -> Any:
        finish = processes.begin_sum([float(len(batches.micro_batches[0]))], group)
        return lambda: {"samples": finish()[0]}

    found = {}
    for name, ahead in (("in front", False), ("ahead", True)):
        batches = TrainingBatches(task, 0, 8, 4, processes, whole=False, exchange=exchange if ahead else None)
        seconds = []
        for step in range(steps):
            began = time.perf_counter()
            drawn = batches.step(step)
            totals = drawn.totals() if ahead else exchange(drawn)()
            seconds.append(time.perf_counter() - began)
            assert totals == {"samples": 8.0}
            time.sleep(STEP_SECONDS)
        batches.close()
        processes.barrier()
        found[name] = statistics.median(seconds)
    return found


def main() -> int:
    """Start two processes, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    if "RANK" in os.environ:
        print(json.dumps(waits(arguments.steps)))
        return 0
    from kdcore.training.runtime.processes import held_port

    with held_port() as port:
        common = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [sys.executable, __file__, "--steps", str(arguments.steps)]
        both = [
            subprocess.Popen(command, env=common | {"RANK": rank, "LOCAL_RANK": rank}, stdout=subprocess.PIPE)
            for rank in "01"
        ]
        results = [json.loads(one.communicate()[0]) for one in both]
    medians = {name: max(result[name] for result in results) for name in results[0]}
    print(json.dumps({f"wait {name} (ms)": round(1000 * seconds, 2) for name, seconds in medians.items()}))
    return int(medians["ahead"] > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
