"""How long training stands still for a checkpoint, as a multiple of DeepSpeed's bare `save_checkpoint`.

The state is that of a 6x768 student with Adam's moments in float32 at ZeRO stage 0, one process. Both are timed in
turn, and the fastest of each are compared: what is slower was disturbed by something else. Before each, the disk has
taken all that was written. What is done in the background is waited for outside of the time, and told beside it.

    python tests/benchmarks/bench_checkpoint.py [ROUNDS]
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from kdcore.optimizers.adamw import AdamW
from kdcore.recipe.schema import Budget, TrainingSettings
from kdcore.training.checkpoint import Checkpoints
from kdcore.training.checkpoint_files import TrainingState
from kdcore.training.distributed import start_processes
from kdcore.training.engine import Engine

LIMIT = 1.2


def make_engine(processes) -> Engine:
    from transformers import BertConfig, BertForMaskedLM

    module = nn.Module()
    module.student = BertForMaskedLM(BertConfig(num_hidden_layers=6))
    settings = TrainingSettings(budget=Budget(steps=1), batch_size=1)
    reach = {name: frozenset({"loss"}) for name, _ in module.named_parameters()}
    engine = Engine(module, reach, AdamW(AdamW.Config()), settings, processes)
    optimizer = engine._engine.optimizer
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter) * 1e-3
    optimizer.step()  # Adam's moments exist from here on
    optimizer.zero_grad()
    return engine


def main(rounds: int) -> int:
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


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 9))
