"""A student learns from a teacher with another tokenizer: the whole way, with small models."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kdcore_preparation import train_tokenizer
from ruamel.yaml import YAML
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

import kdcore
from kdcore.commands.main import main
from kdcore.data.tokenizers import tokenizer_fingerprint
from kdcore.training.run.build import make_plan

LOSSES = {"hidden_mse": {"unit": "aligned"}, "minilm_v2": {"unit": "aligned"}, "hidden_mse_cls": {}, "masked_lm": {}}


@pytest.fixture
def recipe(small_recipe: Path, teacher_folder: Path, corpus_file: Path, tmp_path: Path) -> Path:
    """The small recipe with a student that has a byte-level BPE, and losses on units, sequences and masked tokens."""
    lines = corpus_file.read_text(encoding="utf-8").splitlines()
    train_tokenizer(lines, tmp_path / "own", kind="byte_level_bpe", vocabulary=300)
    yaml = YAML(typ="safe")
    content: dict[str, Any] = yaml.load(small_recipe)
    sizes = {"num_hidden_layers": 2, "vocab_size": 300, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    content["student"] = {"config": {"model_type": "bert", **sizes}}
    content["losses"] = LOSSES
    content["task"]["data"] |= {
        "tokenizer": str(tmp_path / "own"),
        "teacher_tokenizer": str(teacher_folder),
        "teacher_sequence_length": 64,
    }
    content["optimizer"] = {"name": "adamw", "lr": 5e-3}
    path = tmp_path / "two.yaml"
    yaml.dump(content, path)
    return path


def values(run: Path, name: str) -> list[float]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row[name] for line in lines if name in (row := json.loads(line))]


def test_the_student_learns_is_exported_with_its_own_tokenizer_and_is_compared_on_both_views(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = kdcore.train(recipe, ["training.budget.steps=40"])
    for name in ("hidden_mse", "hidden_mse_cls", "minilm_v2/value", "masked_lm"):
        held_out = values(result.folder, f"held_out/{name}")
        assert held_out[-1] < held_out[0], name
    assert result.export is not None
    exported = AutoTokenizer.from_pretrained(result.export)
    assert tokenizer_fingerprint(exported) == tokenizer_fingerprint(AutoTokenizer.from_pretrained(tmp_path / "own"))
    student, report = AutoModelForMaskedLM.from_pretrained(result.export, output_loading_info=True)
    assert not report["missing_keys"]
    assert student.config.vocab_size == 300
    capsys.readouterr()
    assert main(["summary", str(result.folder)]) == 0
    assert "rank correlation" in capsys.readouterr().out
    assert main(["debug", "batch", str(result.folder), "2"]) == 0


def test_the_constant_of_an_aligned_loss_is_the_variance_of_the_teachers_units(recipe: Path) -> None:
    result = kdcore.train(recipe, ["training.budget.steps=2"])
    made = make_plan(kdcore.load_recipe(result.folder / "recipe.yaml"))
    samples = np.arange(made.task.num_samples("held_out"))
    batch = made.task.draw("held_out", samples, np.zeros_like(samples)).teacher_view
    teacher = AutoModel.from_pretrained(made.recipe.data["teacher"]["path"]).eval()
    real = torch.arange(batch.input_ids.shape[1]) < torch.from_numpy(batch.lengths)[:, None]
    with torch.no_grad():
        states = teacher(input_ids=batch.input_ids, attention_mask=real.long()).last_hidden_state[real]
    assert batch.units is not None
    bounds = [*batch.units.starts.tolist(), len(batch.units.tokens)]
    units = [states[batch.units.tokens[first:last]].double().mean(0) for first, last in itertools.pairwise(bounds)]
    variance = torch.stack(units).var(0, correction=0).mean().item()
    assert values(result.folder, "constant/hidden_mse") == pytest.approx([variance] * 2, rel=1e-5)


def test_a_run_on_two_views_resumes_bit_for_bit(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = kdcore.train(recipe, ["run.id=whole", "training.budget.steps=6", "checkpoints.every=3"])
    stop = ["run.id=parts", "training.budget.steps=6", "checkpoints.every=3"]
    first = kdcore.train(recipe, stop)
    newest = sorted((first.folder / "checkpoints").glob("step-*"))[-1]
    assert newest.name == "step-0000006"
    shutil.rmtree(newest)
    shutil.rmtree(first.folder / "exports")
    again = kdcore.train(recipe, stop)
    assert whole.export is not None
    assert again.export is not None
    one, other = (load_file(export / "model.safetensors") for export in (whole.export, again.export))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
