"""Rerankers: a cross-encoder is distilled into another one with the shipped recipe, and CrossEncoder loads it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification

import kdcore
from kdcore import read_metrics


def test_the_export_of_a_reranker_is_a_cross_encoder(
    teacher_folder: Path, some_texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDCORE_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(1)
    teacher = BertForSequenceClassification.from_pretrained(teacher_folder, num_labels=1)
    teacher.classifier.weight.data.normal_(std=1.0)
    teacher.save_pretrained(tmp_path / "teacher")
    AutoTokenizer.from_pretrained(teacher_folder).save_pretrained(tmp_path / "teacher")
    pairs = [
        {"query": one, "document": other, "relevance": n % 3}
        for n, (one, other) in enumerate(zip(some_texts, some_texts[::-1], strict=True))
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    data = "{train: pairs.jsonl, split: {validation: 0.2}, text: [query, document], label: relevance, max_length: 40}"
    overrides = [f"teacher.path={tmp_path / 'teacher'}", f"task.data={data}", "run.id=1", "optimizer.lr=3e-3"]
    overrides += [
        "student.config={num_hidden_layers: 2, hidden_dropout_prob: 0.0}",
        "training={budget: {epochs: 20}, batch_size: 16}",
    ]
    overrides += ["validation.every={epochs: 10}", "checkpoints.every={epochs: 10}", "tracking=[jsonl]"]
    run = kdcore.train("kdcore:embeddings/reranker.yaml", overrides).folder
    held_out = [row["held_out/soft_targets"] for row in read_metrics(run) if "held_out/soft_targets" in row]
    assert held_out[-1] < 0.5 * held_out[0]
    export = run / "exports/final"
    assert json.loads((export / "config.json").read_text())["id2label"] == {"0": "LABEL_0"}
    library = pytest.importorskip("sentence_transformers")
    chosen = [(pair["query"], pair["document"]) for pair in pairs[:9]]
    loaded = library.CrossEncoder(str(export), device="cpu")
    assert loaded.tokenizer.model_max_length == 40
    found = loaded.predict(chosen, activation_fn=torch.nn.Identity())
    network, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(export),
        AutoTokenizer.from_pretrained(export),
    )
    with torch.no_grad():
        encoded = tokenizer(chosen, padding=True, truncation=True, max_length=40, return_tensors="pt")
        expected = network.eval()(**encoded).logits[:, 0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
