"""Texts per second of kdcore against the trainer of sentence-transformers: equal students, texts, vectors and batches.

The student is that of `study_sentence_encoders.py`: 3 blocks of the packaged MiniLM-L6 and a linear map to 768
components, in fp32 on one thread. Both learn given vectors of made-up texts of very different lengths by the cosine,
with AdamW, as their users start them, and draw texts in random order; the trainer of sentence-transformers pads the
texts of a batch, kdcore computes them without padding. A third arm is kdcore with batches of similar length. Runs
alternate. Timed is the loop after its first steps, without start and export: all of its CPU time, and the wall-clock
time.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_sentence_encoders.py [--steps 40] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import processor
from pyarrow import Table, parquet
from sentence_transformers import SentenceTransformerTrainer
from study_sentence_encoders import (
    ARMS,
    BATCH,
    BY_LENGTH,
    EMBED,
    KDCORE,
    MAX_LENGTH,
    Study,
    in_a_process,
    located_minilm,
)

from kdcore.training.loop.trainer import Trainer

SKIPPED = 4  # steps, in which optimizers make their state


def write_study(folder: Path, steps: int, median: float, spread: float) -> Study:
    """Write texts of log-normal lengths, at most as long as the models read, and random vectors."""
    random = np.random.default_rng(0)
    lines = (located_minilm() / "vocab.txt").read_text(encoding="utf-8").splitlines()
    words = [word for word in lines if word.isascii() and word.isalpha()]
    lengths = np.clip(random.lognormal(np.log(median), spread, steps * BATCH), 3, MAX_LENGTH - 2).astype(int)
    texts = [" ".join(random.choice(words, length)) for length in lengths]
    vectors = random.standard_normal((len(texts), 768), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    (folder / "texts.json").write_text(json.dumps({"texts": texts}), encoding="utf-8")
    (folder / "texts.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    columns = {"id": [str(n) for n in range(len(texts))], "text": texts, "vector": list(vectors)}
    parquet.write_table(Table.from_pydict(columns), folder / "vectors.parquet")
    return Study(folder, folder, folder)


def timed(study: Study, arm: str, seed: int, found: Any) -> None:
    """Train, and put CPU and wall-clock seconds of a step."""
    times: list[tuple[float, float]] = []

    def noting(step: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any, **keys: Any) -> Any:
            times.append((time.process_time(), time.perf_counter()))
            return step(*arguments, **keys)

        return noted

    Trainer._train_step = noting(Trainer._train_step)  # type: ignore[method-assign]
    SentenceTransformerTrainer.training_step = noting(SentenceTransformerTrainer.training_step)
    ARMS[arm](study, arm, seed, 1e-4)
    first, last = times[SKIPPED], times[-1]
    found.put([(end - start) / (len(times) - 1 - SKIPPED) for start, end in zip(first, last, strict=True)])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--median", type=float, default=12.0, help="median length in words")
    parser.add_argument("--spread", type=float, default=0.8, help="standard deviation of the logarithm of the lengths")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{processor()}; torch {torch.__version__}, sentence-transformers {version('sentence-transformers')}",
        flush=True,
    )
    context = multiprocessing.get_context("fork")
    seconds: dict[str, list[list[float]]] = {KDCORE: [], EMBED: [], BY_LENGTH: []}
    with tempfile.TemporaryDirectory() as folder:
        study = write_study(Path(folder), options.steps, options.median, options.spread)
        in_a_process(Study.make_start, study)
        for seed in range(options.rounds):
            for arm, own in seconds.items():
                queue = context.SimpleQueue()
                process = context.Process(target=timed, args=(study, arm, seed, queue))
                process.start()
                process.join()
                if process.exitcode:
                    raise SystemExit(f"{arm} failed with exit code {process.exitcode}")
                own.append(queue.get())
                speeds = [round(BATCH / value, 1) for value in own[-1]]
                row = {"arm": arm, "round": seed, "texts_per_cpu_second": speeds[0], "texts_per_second": speeds[1]}
                print(json.dumps(row), flush=True)
    for arm in (EMBED, BY_LENGTH):
        for place, kind in enumerate(("CPU", "wall-clock")):
            ratios = [theirs[place] / ours[place] for ours, theirs in zip(seconds[KDCORE], seconds[arm], strict=True)]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            print(f"{kind} time of {arm}: {spread} times that of {KDCORE}")


if __name__ == "__main__":
    main()
