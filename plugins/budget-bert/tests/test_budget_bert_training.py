"""`budget_bert` in whole runs: distilled from a BERT, trained without a teacher, resumed, and read again."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertForMaskedLM

import kdcore

Train = Callable[..., Path]


@pytest.fixture
def train(bert_folder: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Train a narrow pre-LN student of the BERT, with overrides for each test, and return the run's folder."""
    monkeypatch.setenv("KDCORE_CACHE", str(tmp_path / "cache"))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"""\
run: {{name: test, id: 1, folder: {tmp_path / "runs"}}}
seed: 3
teacher: {{path: {bert_folder}}}
student:
  name: budget_bert
  config: {{norm_position: pre, embedding_norm: false, num_hidden_layers: 2, hidden_size: 16}}
task:
  name: masked_lm
  data:
    tokenizer: {bert_folder}
    sequence_length: 32
    held_out: 0.2
    corpora:
      - {{name: text, path: {texts}, documents: lines}}
losses:
  hidden_mse: {{layers: [[1, 0], [3, 1]]}}
optimizer: {{name: adamw, lr: 5.0e-3}}
scheduler: {{name: exponential, warmup_steps: 2, decay_rate: 0.9, decay_step: 20}}
training: {{budget: {{steps: 30}}, batch_size: 8}}
validation: {{every: 1000}}
checkpoints: {{every: 1000}}
logging: {{every: 1}}
tracking: [jsonl]
""",
        encoding="utf-8",
    )
    return lambda *overrides: kdcore.train(recipe, list(overrides)).folder


def values_of(run: Path, name: str) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row[name] for row in rows if name in row]


def test_a_narrower_pre_ln_student_learns_from_a_bert_through_projections(train: Train) -> None:
    run = train()
    held_out = values_of(run, "held_out/loss")
    assert held_out[-1] < 0.8 * held_out[0]
    export = run / "exports" / "final"
    assert (export / "modeling_budget_bert.py").is_file()
    assert json.loads((export / "config.json").read_text())["norm_position"] == "pre"
    assert len(AutoTokenizer.from_pretrained(export)) == 60

    again = train(
        "run.id=again", f"student.initialize={{from: {export}}}", "training.budget.steps=3", "optimizer.lr=0.0"
    )
    before, after = (load_file(folder / "exports/final/model.safetensors") for folder in (run, again))
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items()), "an export is read exactly"

    losses = (
        "losses={hidden_mse: null, minilm_v2: {layers: [[1, 0]], relation_heads: 2}, soft_targets: {temperature: 2.0}}"
    )
    keys = ["run.id=onwards", f"teacher={{name: budget_bert, path: {export}}}", "student.config.num_hidden_layers=1"]
    with pytest.raises(kdcore.InputError, match="head"):
        train(*keys, losses)
    onwards = train(*keys, "losses.hidden_mse.layers=[[1, 0]]")
    held_out = values_of(onwards, "held_out/loss")
    assert held_out[-1] < 0.8 * held_out[0]


@pytest.mark.parametrize("form", ["pre", "post"])
def test_masked_language_modelling_from_random_weights_beats_counting_tokens(
    form: str, train: Train, texts: Path
) -> None:
    """The held-out loss is below the entropy of single tokens: the student has learnt more than their frequencies."""
    run = train(
        "teacher=null",
        "losses={hidden_mse: null, masked_lm: {}}",
        "student.config={num_attention_heads: 4, intermediate_size: 48, vocab_size: 60, hidden_dropout_prob: 0.0, "
        f"max_position_embeddings: 40, norm_position: {form}, norm: rms_norm, embedding_norm: true, hidden_size: 32}}",
        "training.budget.steps=150",
        "training.batch_size=32",
    )
    counts: Counter[str] = Counter()
    for word in texts.read_text(encoding="utf-8").split():
        counts.update([word[0], *(f"##{letter}" for letter in word[1:])])
    shares = [count / counts.total() for count in counts.values()]
    held_out = values_of(run, "held_out/loss")
    entropy = -sum(share * math.log(share) for share in shares)
    assert held_out[0] > math.log(60) - 0.5
    assert held_out[-1] < 0.9 * entropy


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_is_the_run(precision: str, train: Train) -> None:
    common = [f"training.precision={precision}", "losses.minilm_v2={relation_heads: 4}"]
    whole = train(*common, "training.budget.steps=6", "run.id=whole")
    train(*common, "training.budget.steps=3", "run.id=stopped")
    stopped = train(*common, "training.budget.steps=6", "run.id=stopped")
    assert values_of(stopped, "train/loss") == values_of(whole, "train/loss")
    weights, resumed = (load_file(run / "exports/final/model.safetensors") for run in (whole, stopped))
    torch.testing.assert_close(resumed, weights, rtol=0, atol=0)


def test_a_copied_post_ln_student_of_a_bert_ends_as_a_bert(train: Train) -> None:
    run = train(
        "student.config={norm_position: post, norm: layer_norm, embedding_norm: true, hidden_size: 32}",
        "student.initialize={from: teacher, blocks: uniform}",
        "losses={hidden_mse: {layers: last}, soft_targets: {}}",
    )
    held_out = values_of(run, "held_out/loss")
    assert held_out[-1] < 0.8 * held_out[0]
    network, report = AutoModelForMaskedLM.from_pretrained(run / "exports" / "final", output_loading_info=True)
    assert type(network) is BertForMaskedLM
    assert not report["missing_keys"]


def test_a_student_that_cannot_copy_is_told_the_line_and_nothing_is_written(train: Train, tmp_path: Path) -> None:
    keys = ["student.config={norm_position: pre, num_hidden_layers: 2}", "student.initialize={from: teacher}"]
    with pytest.raises(kdcore.InputError) as refused:
        train(*keys)
    for word in ("student.config.norm_position", '"post" in the source', "or remove `initialize`"):
        assert word in str(refused.value)
    assert not (tmp_path / "runs").exists()
