"""`deberta` in whole runs: distilled, resumed, fine-tuned, and loaded again from its exports."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

import kdcore

Folder = Callable[..., Path]
RECIPE = """\
run: {{name: test, id: 1, folder: {runs}}}
seed: 3
teacher: {{name: deberta, path: {teacher}}}
student:
  name: deberta
  config: {{num_hidden_layers: 2, hidden_dropout_prob: 0.1, attention_probs_dropout_prob: 0.1}}
  initialize: {{from: teacher, blocks: [0, 2]}}
task:
  name: {task}
losses: {losses}
optimizer: {{name: adamw, lr: 2.0e-3}}
scheduler: {{name: exponential, warmup_steps: 2, decay_rate: 0.9, decay_step: 20}}
training: {{budget: {{steps: 12}}, batch_size: 8}}
validation: {{every: 4}}
checkpoints: {{every: 4}}
logging: {{every: 1}}
tracking: [jsonl]
"""
TEXTS = "masked_lm\n  data: {{tokenizer: {teacher}, sequence_length: 32, held_out: 0.2, corpora: [{corpus}]}}"
CORPUS = "{{name: text, path: {texts}, documents: lines}}"
DISTILLATION = (
    "{hidden_mse: {layers: [[1, 0], [3, 1]]}, attention_kl: {layers: [[1, 0], [3, 1]]}, masked_lm: {weight: 0.1}}"
)


@pytest.fixture
def recipe(deberta_folder: Folder, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a recipe that distils a v3 student of two blocks."""
    monkeypatch.setenv("KDCORE_CACHE", str(tmp_path / "cache"))
    teacher = deberta_folder("v3")
    task = TEXTS.format(teacher=teacher, corpus=CORPUS.format(texts=texts))
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(runs=tmp_path / "runs", teacher=teacher, task=task, losses=DISTILLATION))
    return path


def values_of(run: Path, name: str) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row[name] for row in rows if name in row]


def loaded(cls: Any, folder: Path) -> Any:
    network, report = cls.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"], report["missing_keys"]
    return network.eval()


def test_a_student_learns_resumes_and_is_exported(recipe: Path) -> None:
    whole = kdcore.train(recipe, ["run.id=whole"]).folder
    for name in ("held_out/hidden_mse", "held_out/attention_kl"):
        values = values_of(whole, name)
        assert values[-1] < 0.9 * values[0], name
    kdcore.train(recipe, ["run.id=parts", "training.budget.steps=8"])
    resumed = kdcore.train(recipe, ["run.id=parts"]).folder
    exports = [load_file(run / "exports" / "final" / "model.safetensors") for run in (whole, resumed)]
    assert exports[0].keys() == exports[1].keys()
    assert all(torch.equal(tensor, exports[1][name]) for name, tensor in exports[0].items())
    export = whole / "exports" / "final"
    assert json.loads((export / "config.json").read_text())["model_type"] == "deberta-v2"
    loaded(AutoModel, export)
    loaded(AutoModelForMaskedLM, export)


def test_gradient_checkpointing_changes_no_weight(recipe: Path) -> None:
    common = ["student.config.hidden_dropout_prob=0", "student.config.attention_probs_dropout_prob=0"]
    plain, recomputed = (
        kdcore.train(
            recipe,
            [
                *common,
                "training.budget.steps=3",
                f"run.id=checkpointing-{value}",
                f"training.gradient_checkpointing={value}",
            ],
        )
        for value in ("false", "true")
    )
    one, other = (load_file(run.folder / "exports" / "final" / "model.safetensors") for run in (plain, recomputed))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-5, atol=1e-6)


def test_a_student_is_fine_tuned_with_classes(recipe: Path, deberta_folder: Folder, tmp_path: Path) -> None:
    words = [f"{first}{second}" * (1 + index % 2) for index, first in enumerate("abcdefghij") for second in "klmnop"]
    rows = [{"text": word, "label": "long" if len(word) > 2 else "short"} for word in words]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = [
        "run.id=classes",
        f"task={{name: sequence_classification, data: {{train: {data}, text: text, label: label, max_length: 16, "
        "labels: [short, long], split: {validation: 0.2}}}",
        "losses={hidden_mse: null, attention_kl: null, masked_lm: null, classification: {}}",
    ]
    export = kdcore.train(recipe, overrides).folder / "exports" / "final"
    network = loaded(AutoModelForSequenceClassification, export)
    assert sorted(network.config.id2label.values()) == ["long", "short"]
