"""Embeddings of teachers that compute nothing: cached ones, and vectors computed by another program."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import kdcore
from kdcore.commands.main import main

pytest.importorskip("kdcore_teacher_cache")
EMBEDDING = kdcore.Signals.head("embedding")


def write_recipe(folder: Path, teacher: str, source: Path, texts: list[str]) -> Path:
    (folder / "texts.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    path = folder / "recipe.yaml"
    path.write_text(
        f"""\
run: {{name: stored, id: 1}}
teacher: {teacher}
student:
  config: {{num_hidden_layers: 2, hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}}
  initialize: {{from: {source}, blocks: uniform}}
task: {{name: embeddings, data: {{train: texts.txt, held_out: 0.2}}}}
losses:
  embedding: {{distance: mse}}
optimizer: {{name: adamw, lr: 3.0e-3}}
training: {{budget: {{steps: 16}}, batch_size: 16}}
validation: {{every: 16}}
checkpoints: {{export_at_start: false}}
logging: {{every: 8}}
tracking: [jsonl]
""",
        encoding="utf-8",
    )
    return path


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDCORE_CACHE", str(cache_folder))
    monkeypatch.chdir(tmp_path)


def test_cached_embeddings_are_those_of_the_teacher(
    tmp_path: Path, sentence_folder: Path, teacher_folder: Path, some_texts: list[str]
) -> None:
    teacher = f"{{name: sentence_transformer, path: {sentence_folder}}}"
    path = write_recipe(tmp_path, teacher, teacher_folder, some_texts)
    assert main(["teacher", "cache", str(path), "cache"]) == 0
    task, live = kdcore.recipe_teachers(kdcore.load_recipe(path))
    _, stored = kdcore.recipe_teachers(kdcore.load_recipe(path, ["teacher.cache=cache"]))
    batch = task.draw("train", np.arange(16), np.full(16, 3)).teacher_view
    with torch.no_grad():
        expected = live["teacher"].model.load_teacher(EMBEDDING).eval()(batch, EMBEDDING)
    found = stored["teacher"].model.load_teacher(EMBEDDING)(batch, EMBEDDING)
    assert torch.equal(found.outputs("embedding"), expected.outputs("embedding"))


def test_a_cache_describes_a_sentence_transformer_and_differs_with_each_of_its_modules(
    tmp_path: Path, make_sentence_folder: Callable[..., Path], teacher_folder: Path, some_texts: list[str]
) -> None:
    folder = make_sentence_folder(prompts={"query": "of ", "document": "the "})
    path = write_recipe(tmp_path, f"{{name: sentence_transformer, path: {folder}}}", teacher_folder, some_texts)
    assert main(["teacher", "cache", str(path), "cache"]) == 0
    assert main(["teacher", "verify", "cache"]) == 0
    (tmp_path / "only.yaml").write_text(
        path.read_text(encoding="utf-8").replace(f"{{name: sentence_transformer, path: {folder}}}", "{cache: cache}"),
        encoding="utf-8",
    )
    task, teachers = kdcore.recipe_teachers(kdcore.load_recipe(tmp_path / "only.yaml"))
    live = kdcore.recipe_teachers(kdcore.load_recipe(path))[0]
    assert dict(task.batch_identity) == dict(live.batch_identity)
    batch = task.draw("train", np.arange(8), np.zeros(8, np.int64)).teacher_view
    encoder = teachers["teacher"].model.load_teacher(EMBEDDING)
    assert encoder(batch, EMBEDDING).outputs("embedding").shape == (8, 24)

    weights = folder / "2_Dense/pytorch_model.bin"
    torch.save({name: -value for name, value in torch.load(weights).items()}, weights)
    pooling = folder / "1_Pooling/config.json"
    content = json.loads(pooling.read_text(encoding="utf-8"))
    pooling.write_text(json.dumps({**content, "include_prompt": False}), encoding="utf-8")
    without = ["task.teacher_prompts={query: '', document: ''}"]
    with pytest.raises(kdcore.DataError) as caught:
        kdcore.recipe_teachers(kdcore.load_recipe(path, ["teacher.cache=cache", *without]))
    for name in ("2_Dense/pytorch_model.bin", "1_Pooling/config.json"):
        assert f"the teacher's file {name} differs" in str(caught.value)
    with pytest.raises(kdcore.InputError, match="include_prompt: false"):
        kdcore.recipe_teachers(kdcore.load_recipe(path, ["teacher.cache=auto"]))


def test_a_student_learns_vectors_from_elsewhere(tmp_path: Path, teacher_folder: Path, some_texts: list[str]) -> None:
    words = ["the", "teacher", "of", "student", "and"]
    records = [
        {"id": number, "text": text, "vector": [text.split().count(word) / 4 for word in words]}
        for number, text in enumerate(reversed(some_texts))
    ]
    (tmp_path / "vectors.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    path = write_recipe(tmp_path, "{name: vectors, path: vectors.jsonl}", teacher_folder, some_texts)
    run = kdcore.train(str(path)).folder
    held_out = [row["held_out/embedding"] for row in kdcore.read_metrics(run) if "held_out/embedding" in row]
    assert held_out[-1] < 0.7 * held_out[0]
    config = json.loads((Path(run) / "exports/final/config.json").read_text(encoding="utf-8"))
    assert config["num_hidden_layers"] == 2
    records[3]["text"] = "changed"
    (tmp_path / "vectors.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    with pytest.raises(kdcore.DataError, match="has no vector for 1 of"):
        kdcore.train(str(path), ["run.id=2"])
