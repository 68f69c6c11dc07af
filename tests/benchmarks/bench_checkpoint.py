"""How long training pauses for a checkpoint, as a multiple of DeepSpeed's bare `save_checkpoint`.

The state is that of a 6x768 student with Adam's moments in float32 at ZeRO stage 0, one process. Both are timed in
turn, and the fastest of each are compared: what is slower was disturbed by something else. Before each, the disk has
taken all that was written. What is done in the background is waited for outside of the time, and printed beside it.

    python tests/benchmarks/bench_checkpoint.py [--rounds 9]

With `--demo`, what a checkpoint costs the demo: the recipe is trained with one every 20 steps, and the ten steps around
each are compared with the ten that follow. The difference, background included, is printed as a share of 100 steps.

    python tests/benchmarks/bench_checkpoint.py --demo [--rounds 20]
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdcore.optimizers.adamw import AdamW
from kdcore.recipe.schema import Budget, TrainingSettings
from kdcore.training.checkpoint.format import TrainingState
from kdcore.training.checkpoint.manager import Checkpoints
from kdcore.training.engine.engine import Engine
from kdcore.training.runtime.distributed import start_processes

LIMIT = 1.2
DEMO_LIMIT = 0.03
STEPS = 10


def make_engine(processes) -> Engine:
    from transformers import BertConfig, BertForMaskedLM

    module = nn.Module()
    module.student = BertForMaskedLM(BertConfig(num_hidden_layers=6))
    settings = TrainingSettings(budget=Budget(steps=1), batch_size=1)
    losses = {name: frozenset({"loss"}) for name, _ in module.named_parameters()}
    engine = Engine(module, losses, AdamW(AdamW.Config()), settings, processes)
    optimizer = engine._engine.optimizer
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter) * 1e-3
    optimizer.step()  # Adam's moments exist from here on
    optimizer.zero_grad()
    return engine


def standing_still(rounds: int) -> int:
    processes = start_processes()
    engine = make_engine(processes)
    state = TrainingState(1, 1.0, 1.0, 1, 0)
    bare, ours, background = [], [], []
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as place:
        folder = Path(place)
        with Checkpoints(folder / "run", 1, processes, lambda: None) as checkpoints:
            for number in range(rounds + 1):
                os.sync()
                began = time.perf_counter()
                engine._engine.save_checkpoint(str(folder / "bare"), tag="engine")
                saved_bare = time.perf_counter() - began
                shutil.rmtree(folder / "bare")
                os.sync()
                began = time.perf_counter()
                checkpoints.save(state, {}, engine)
                stood_still = time.perf_counter() - began
                checkpoints.wait()
                if number:  # the first of each also pays for what is done once
                    bare.append(saved_bare)
                    ours.append(stood_still)
                    background.append(time.perf_counter() - began - stood_still)
                del engine._engine.checkpoint_engine.save  # kdcore's writer, which would serve the bare save, too
        size = sum(path.stat().st_size for path in (folder / "run" / "checkpoints").rglob("*") if path.is_file())
    ratio = min(ours) / min(bare)
    print(f"state: {size / 1e6:,.0f} MB, {rounds} rounds")
    for name, values in (("DeepSpeed's save", bare), ("standing still", ours), ("then in the background", background)):
        print(f"{name}: fastest {min(values):.3f} s, median {statistics.median(values):.3f} s")
    print(f"ratio: {ratio:.2f} (at most {LIMIT})")
    return 0 if ratio <= LIMIT else 1


def cost_in_demo(rounds: int) -> int:
    import kdcore
    from kdcore.training.loop.trainer import Trainer

    moments: list[tuple[float, float]] = []  # wall clock and CPU at the start of each step
    train_step = Trainer._train_step

    def noted(*arguments: Any) -> None:
        moments.append((time.perf_counter(), time.process_time()))
        train_step(*arguments)

    Trainer._train_step = noted  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as folder:
        steps = 2 * STEPS * rounds + STEPS
        schedule = [f"training.budget.steps={steps}", f"checkpoints={{every: {2 * STEPS}, export_at_end: false}}"]
        kdcore.train("kdcore:quickstart.yaml", [*schedule, "validation.every=never", f"run.folder={folder}"])
    worst = 0.0
    for clock, name in enumerate(("wall clock", "CPU of all threads")):
        # A checkpoint comes after steps 20, 40, ...: in the middle of every second window of ten that begins at 5.
        starts = range(STEPS // 2, len(moments) - STEPS, STEPS)
        windows = [moments[start + STEPS][clock] - moments[start][clock] for start in starts]
        without, around = statistics.median(windows[0::2]), statistics.median(windows[1::2])
        share = (around - without) / (100 / STEPS * without)
        worst = max(worst, share)
        print(f"{name}: {around - without:.2f} s a checkpoint, {share:.2%} of 100 steps ({len(windows)} windows)")
    print(f"at most {DEMO_LIMIT:.0%}")
    return 0 if worst <= DEMO_LIMIT else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", action="store_true")
    parser.add_argument("--rounds", type=int)
    arguments = parser.parse_args()
    return cost_in_demo(arguments.rounds or 20) if arguments.demo else standing_still(arguments.rounds or 9)


if __name__ == "__main__":
    sys.exit(main())
