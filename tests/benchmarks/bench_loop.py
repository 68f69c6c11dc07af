"""What engine, monitors and loop cost around a bare step, and what a second process brings.

    python tests/benchmarks/bench_loop.py [--steps 16] [--processes]

The loop is the real one: `kdcore-train` on made-up text, whose every second step is followed by a bare step (the same
models and micro-batches, forward, backward and a fused AdamW) in the same process, so that both meet the same machine.
With `--processes` the same recipe runs in one and in two processes on as many cores; that needs a quiet machine.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import single_thread
from workload import Workload


def write_recipe(folder: Path, teacher: Path, steps: int, batch_size: int) -> Path:
    """A recipe of the workload on random words, in `folder`."""
    generator = random.Random(1)
    words = ["".join(generator.choices("abcdefgh", k=generator.randint(2, 7))) for _ in range(400)]
    lines = [" ".join(generator.choices(words, k=generator.randint(60, 400))) for _ in range(200)]
    (folder / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set(words))]
    (teacher / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    (teacher / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}', encoding="utf-8")
    recipe = folder / "bench.yaml"
    recipe.write_text(
        f"""\
run: {{name: bench, id: 1, folder: {folder}/runs}}
teacher: {{path: {teacher}}}
student:
  config: {{num_hidden_layers: 6}}
  initialize: {{from: teacher, blocks: uniform}}
task:
  name: masked_lm
  data:
    tokenizer: {teacher}
    sequence_length: 128
    held_out: 0.02
    corpora: [{{name: text, path: {folder}/text.txt, documents: lines}}]
losses: {{hidden_mse: {{layers: last}}}}
optimizer: {{name: adamw, lr: 1.0e-4}}
training: {{budget: {{steps: {steps}}}, batch_size: {batch_size}}}
validation: {{every: never}}
checkpoints: {{every: {steps + 1}, export_at_end: false}}
logging: {{every: 2}}
tracking: [jsonl, tensorboard]
""",
        encoding="utf-8",
    )
    return recipe


def overhead(recipe: Path) -> dict[str, Any]:
    """Share of a step's CPU time that is not the bare step's."""
    import kdcore
    from kdcore.registry import optimizers
    from kdcore.training.loop.trainer import Trainer

    whole: list[float] = []
    bare: list[float] = []
    made: dict[str, Any] = {}
    train_step, loop_began = Trainer._train_step, [0.0]

    def bare_step(trainer: Any, batches: Any, counts: Any, progress: Any) -> None:
        if not made:
            made["module"] = copy.deepcopy(trainer.engine.module)
            cls = optimizers.get("adamw")
            made["optimizer"] = cls(cls.Config(lr=1e-4)).build([{"params": list(made["module"].parameters())}])
        module = made["module"]
        requests = module.requests(["hidden_mse"]).teachers
        for batch in batches.micro_batches:
            sums = module(batch, trainer.teachers(batch, requests), ["hidden_mse"])
            sum(value / counts[term] for term, value in sums.items()).backward()
        made["optimizer"].step()
        made["optimizer"].zero_grad(set_to_none=True)

    def timed_step(trainer: Any, batches: Any, counts: Any, progress: Any) -> None:
        if trainer.step % 2:
            train_step(trainer, batches, counts, progress)
            return
        # What the loop has done since the last bare step, which is a whole pass of it, ends here.
        now = time.process_time()
        if loop_began[0]:
            whole.append((now - loop_began[0]) / 2)
        bare_step(trainer, batches, counts, progress)
        bare.append(time.process_time() - now)
        loop_began[0] = time.process_time()
        train_step(trainer, batches, counts, progress)

    Trainer._train_step = timed_step  # type: ignore[method-assign]
    try:
        kdcore.train(recipe)
    finally:
        Trainer._train_step = train_step  # type: ignore[method-assign]
    skipped = 1  # the first pass of each kind makes the optimizers' state
    ratios = [one / other for one, other in zip(whole[skipped:], bare[1 + skipped :], strict=False)]
    return {
        "overhead": round(statistics.median(ratios) - 1, 4),
        "lowest": round(min(ratios) - 1, 4),
        "highest": round(max(ratios) - 1, 4),
        "passes": len(ratios),
    }


def tokens_per_second(recipe: Path, processes: int, run: str) -> float:
    """Read them from the log of a separate run, without the first row."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "kdcore.commands.main", "train", str(recipe), f"run.id={run}"]
    if processes > 1:
        command += ["--processes", str(processes)]
    subprocess.run(command, check=True, capture_output=True, env=environment)
    rows = (recipe.parent / "runs" / "bench" / run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(row) for row in rows]
    return statistics.median([row["train/tokens_per_second"] for row in found if "train/loss" in row][1:])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--small", action="store_true", help="tiny models, to try the benchmark itself")
    parser.add_argument("--processes", action="store_true", help="also compare two processes with one")
    arguments = parser.parse_args()
    single_thread()
    workload = Workload("hidden_mse", arguments.small)
    with tempfile.TemporaryDirectory() as name:
        os.environ["KDCORE_CACHE"] = name
        recipe = write_recipe(Path(name), workload.teacher_folder, arguments.steps, arguments.batch_size)
        print(json.dumps(overhead(recipe)), flush=True)
        if arguments.processes:
            one, two = (tokens_per_second(recipe, count, f"p{count}") for count in (1, 2))
            print(json.dumps({"two_processes": round(two / one, 2)}), flush=True)


if __name__ == "__main__":
    main()
