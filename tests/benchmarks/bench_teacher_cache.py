"""A step with a cached teacher against the same step with a live one: CPU time, reading and memory.

    python tests/benchmarks/bench_teacher_cache.py [--objectives hidden_mse ...] [--sequences 16] [--repeats 5]
    python tests/benchmarks/bench_teacher_cache.py --effects RECIPE [key=value ...]
    python tests/benchmarks/bench_teacher_cache.py --sweep RECIPE [key=value ...]

A BERT-base teacher, a student of 6 x 768, length 128. `--effects` trains a recipe with the live teacher and with each
way of storing its signals, and prints how losses differ at the first step, held-out before training and held-out of the
trained student. `--sweep` trains a recipe four times with `cache: auto` and four times with the live teacher, and
prints the ratio of their CPU times, caching included. All runs are in one process, so that its start does not count.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kdcore_teacher_cache.cached_teacher import CachedTeacher
from kdcore_teacher_cache.caching import SignalRecorder, cache_signals
from measuring import PeakMemory, interleaved, ratio, single_thread
from workload import LENGTH, OBJECTIVES, Side, Workload, make_batch, sizes

from kdcore import Batch, Model, RecipeTeacher, Requests, Task, TransformersModel
from kdcore.commands.main import main as kdcore_command
from kdcore.recipe.schema import TEACHER, ComponentConfig
from kdcore.registry import losses as registered_losses
from kdcore.registry import optimizers
from kdcore.training.engine.module import DistillationModule
from kdcore.training.engine.teachers import FrozenTeachers

WAYS: dict[str, list[str]] = {
    "fp32": [],
    "bf16": ["--values", "bf16"],
    "fp16": ["--values", "fp16"],
    "int8": ["--values", "int8"],
    "top_k": ["--predictions", "top_k"],
    "random_sampling": ["--predictions", "random_sampling"],
}


class RandomTexts(Task):
    """Sequences of random tokens, a third of whose positions are padding."""

    distinct_epochs = 1

    def __init__(self, samples: int, vocab_size: int) -> None:
        super().__init__(ComponentConfig(), 0, Path())
        whole = make_batch(samples, 0.3, vocab_size)
        self._tokens, self._lengths = whole.input_ids.numpy(), whole.lengths
        self._masked = np.zeros(self._tokens.size, bool)
        self._masked[whole.masked_index.numpy()] = True
        self._masked = self._masked.reshape(self._tokens.shape)

    @property
    def fingerprint(self) -> str:
        """Name the seeds."""
        return "random"

    def check(self, student: Model, teacher: Model | None) -> None:
        """Accept all models."""

    def num_samples(self, split: str) -> int:
        """Return the number of training sequences."""
        return len(self._tokens) if split == "train" else 0

    def batch(self, split: str, samples: np.ndarray, epochs: np.ndarray) -> Batch:
        """Return sequences, equal in every epoch."""
        tokens, lengths, masked = self._tokens[samples], self._lengths[samples], self._masked[samples]
        real = np.arange(tokens.shape[1]) < lengths[:, None]
        return Batch(
            input_ids=torch.from_numpy(tokens),
            attention_mask=torch.from_numpy(real),
            lengths=lengths,
            token_index=torch.from_numpy(np.flatnonzero(real)),
            masked_index=torch.from_numpy(np.flatnonzero(masked)),
            masked_labels=torch.from_numpy(tokens[masked]),
        )

    def draw_number(self, number: int, sequences: int) -> Batch:
        """Return one of the batches of consecutive samples."""
        samples = np.arange(number * sequences, (number + 1) * sequences, dtype=np.int64)
        return self.draw("train", samples, np.zeros_like(samples))

    def save_tokenizer(self, folder: Path) -> None:
        """Save nothing."""


def side_of(workload: Workload, described: Model, frozen: FrozenTeachers) -> tuple[Side, Requests]:
    """Build a step with given teachers."""
    start = {
        "initialize": {"from": str(workload.student_folder), "blocks": "first"},
        "config": {"num_hidden_layers": 6},
    }
    student = TransformersModel(TransformersModel.Config.model_validate(start), "student", described)
    keys = OBJECTIVES[workload.objective]
    cls = registered_losses.get(keys["name"])
    loss = cls(cls.Config(label="loss", **keys), described.info, student.info)
    requests = loss.requests()
    module = DistillationModule(student.build_student(requests.student), {"loss": loss})

    def compute(batch: Batch) -> torch.Tensor:
        answers = frozen(batch, {TEACHER: requests.teacher})
        counts = module.counts(batch)
        sums = module(batch, answers, ["loss"])
        return torch.stack([value / counts[term] for term, value in sums.items()]).sum()

    optimizer = optimizers.get("adamw")
    built = optimizer(optimizer.Config(lr=1e-4)).build([{"params": list(module.parameters()), "weight_decay": 0.01}])
    return Side(compute, {}, built, module, ()), requests


def measure(objective: str, sequences: int, repeats: int, small: bool) -> dict[str, Any]:
    """Time both sides, reading and caching; `four_runs` are those of one epoch, caching included, against live ones."""
    workload = Workload(objective, small)
    task = RandomTexts(2 * sequences, workload.config.vocab_size)
    model = TransformersModel(TransformersModel.Config(path=str(workload.teacher_folder)), "teacher", None)
    keys = OBJECTIVES[objective]
    cls = registered_losses.get(keys["name"])
    request = cls(cls.Config(label="loss", **keys), model.info, model.info).requests().teacher
    teacher = RecipeTeacher(TEACHER, "transformers", model, {"train": request, "held_out": request})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "cache")
        recorder = SignalRecorder(task, teacher, batch_size=sequences)
        cache_signals(recorder, folder, progress=lambda done, total: None)
        again = (Path(name, str(number)) for number in count())
        stored = CachedTeacher(CachedTeacher.Config(cache=str(folder)), TEACHER, None)
        encoder = stored.load_teacher(request)
        live, _ = side_of(workload, model, FrozenTeachers({TEACHER: model.load_teacher(request)}, {}))
        cached, _ = side_of(workload, model, FrozenTeachers({TEACHER: encoder}, {}))
        batches = [task.draw_number(number, sequences) for number in range(2)]
        for batch in batches:
            assert torch.equal(live.loss(batch), cached.loss(batch)), "the losses of identical batches differ"
        variants = {
            "live": lambda: [live.step(batch) for batch in batches],
            "cached": lambda: [cached.step(batch) for batch in batches],
            "reading": lambda: [encoder(batch, request) for batch in batches],
            "caching": lambda: cache_signals(recorder, next(again), progress=lambda done, total: None),
        }
        timings = interleaved(variants, repeats)
        found, low, high = ratio(timings, "live", "cached")
        seconds = {side: timing.median for side, timing in timings.items()}
        size = sum(path.stat().st_size for path in folder.glob("*.arrow"))
    return {
        "objective": objective,
        "live_seconds": round(seconds["live"] / 2, 3),
        "cached_seconds": round(seconds["cached"] / 2, 3),
        "ratio": [round(one, 3) for one in (found, low, high)],
        "reading_share": round(seconds["reading"] / seconds["cached"], 4),
        "caching_seconds": round(seconds["caching"] / 2, 3),
        "four_runs": round((4 * seconds["cached"] + seconds["caching"]) / (4 * seconds["live"]), 3),
        "bytes_per_token": round(size / sum(batch.num_tokens for batch in batches)),
        "losses": "bit-equal",
    }


def memory(side: str, sequences: int, small: bool) -> None:
    """Print the peak of a process that takes two steps with one side."""
    workload = Workload("hidden_mse", small)
    task = RandomTexts(sequences, workload.config.vocab_size)
    model = TransformersModel(TransformersModel.Config(path=str(workload.teacher_folder)), "teacher", None)
    cls = registered_losses.get("hidden_mse")
    request = cls(cls.Config(label="loss", name="hidden_mse"), model.info, model.info).requests().teacher
    teacher = RecipeTeacher(TEACHER, "transformers", model, {"train": request, "held_out": request})
    with tempfile.TemporaryDirectory() as name:
        if side == "cached":
            cache_signals(
                SignalRecorder(task, teacher, batch_size=sequences), Path(name, "c"), progress=lambda *_: None
            )
            encoder: Any = CachedTeacher(CachedTeacher.Config(cache=str(Path(name, "c"))), TEACHER, None).load_teacher(
                request
            )
        else:
            encoder = model.load_teacher(request)
        step, _ = side_of(workload, model, FrozenTeachers({TEACHER: encoder}, {}))
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        PeakMemory.reset()
        for _ in range(2):
            step.step(task.draw_number(0, sequences))
        print(json.dumps({side: round(PeakMemory.read()["peak"])}))


def effects(recipe: str, overrides: list[str]) -> None:
    """Print how losses with each way of storing, and of another seed, differ from those with the live teacher."""
    with tempfile.TemporaryDirectory() as name:
        stated = [recipe, *overrides, f"run.folder={name}/runs", "tracking=[jsonl]", "logging.every=1"]
        live = losses(stated, Path(name), "live")
        print_differences("another seed", live, losses([*stated, "seed=1"], Path(name), "seed"))
        for way, options in WAYS.items():
            run_here(["teacher", "cache", recipe, f"{name}/{way}", *overrides, *options])
            size = sum(path.stat().st_size for path in Path(name, way).glob("*.arrow"))
            print(f"{way}: {size / 1e6:.1f} MB")
            print_differences(way, live, losses([*stated, f"teacher.cache={name}/{way}"], Path(name), way))


def print_differences(way: str, live: Mapping[str, list[float]], found: Mapping[str, list[float]]) -> None:
    """Print a row for each loss."""
    for label in sorted(live):
        parts = [other / own - 1 for own, other in zip(live[label], found[label], strict=True)]
        texts = ", ".join(f"{part:+.1e}" for part in parts)
        print(f"{way:>15} {label:<28} step 1, held out before, after: {texts}", flush=True)


def losses(arguments: list[str], folder: Path, run: str) -> dict[str, list[float]]:
    """Train; return the value of each loss at the first step, and held-out ones before and after training."""
    run_here(["train", *arguments, f"run.id={run}"])
    (metrics,) = folder.glob(f"runs/*/{run}/metrics.jsonl")
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    first = next(row for row in rows if "train/loss" in row)
    held_out = [row for row in rows if "held_out/loss" in row]
    labels = [name.partition("/")[2] for name in first if f"held_out/{name.partition('/')[2]}" in held_out[0]]
    labels = [label for label in labels if f"train/{label}" in first]
    return {
        label: [first[f"train/{label}"], held_out[0][f"held_out/{label}"], held_out[-1][f"held_out/{label}"]]
        for label in labels
    }


def run_here(arguments: list[str]) -> None:
    """Run a command of kdcore in this process, which saves its start."""
    if code := kdcore_command(arguments):
        sys.exit(code)


def sweep(recipe: str, overrides: list[str], runs: int) -> None:
    """Print CPU and wall time of runs that share an automatic cache, caching included, and of live runs."""
    with tempfile.TemporaryDirectory() as name:
        os.environ["KDCORE_CACHE"] = f"{name}/cache"
        stated = ["train", recipe, *overrides, f"run.folder={name}/runs"]
        run_here([*stated, "training.budget={steps: 1}", "run.id=first"])  # prepares data, and imports what is needed
        found: dict[str, list[tuple[float, float]]] = {"live": [], "cached": []}
        for number in range(runs):
            for side, own in (("live", []), ("cached", ["teacher.cache=auto"])):
                own = [*own, f"optimizer.lr={(number + 1) * 1e-4}", f"run.id={side}-{number}"]
                before, started = time.process_time(), time.monotonic()
                run_here([*stated, *own])
                found[side].append((time.process_time() - before, time.monotonic() - started))
        sums = {side: [sum(one) for one in zip(*values, strict=True)] for side, values in found.items()}
        row: dict[str, Any] = {
            f"{side}_cpu_seconds": [round(cpu, 1) for cpu, _ in values] for side, values in found.items()
        }
        row["cpu_ratio"], row["wall_ratio"] = (
            round(cached / live, 3) for cached, live in zip(sums["cached"], sums["live"], strict=True)
        )
        print(json.dumps(row), flush=True)


def main() -> None:
    """Measure what the arguments select, and print one JSON object per line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objectives", nargs="+", choices=sorted(OBJECTIVES), default=["hidden_mse", "soft_targets"])
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="small models, to try out the benchmark")
    parser.add_argument("--memory", choices=["live", "cached"], help=argparse.SUPPRESS)
    parser.add_argument("--effects", nargs="+", metavar="RECIPE", help="recipe and overrides to train")
    parser.add_argument("--sweep", nargs="+", metavar="RECIPE", help="recipe and overrides to train four times each")
    arguments = parser.parse_args()
    single_thread()
    if arguments.effects:
        effects(arguments.effects[0], arguments.effects[1:])
        return
    if arguments.sweep:
        sweep(arguments.sweep[0], arguments.sweep[1:], 4)
        return
    if arguments.memory:
        memory(arguments.memory, arguments.sequences, arguments.small)
        return
    print(json.dumps({"length": LENGTH, "sequences": arguments.sequences, **sizes(arguments.small)}))
    for objective in arguments.objectives:
        print(json.dumps(measure(objective, arguments.sequences, arguments.repeats, arguments.small)), flush=True)
    for side in ("live", "cached"):
        small = ["--small"] if arguments.small else []
        options = ["--memory", side, "--sequences", str(arguments.sequences), *small]
        subprocess.run([sys.executable, __file__, *options], check=True)


if __name__ == "__main__":
    main()
