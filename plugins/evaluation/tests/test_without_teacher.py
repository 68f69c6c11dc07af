"""`kdcore compare --train-without-teacher`: the same student, trained without its teacher."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from pyarrow import parquet
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score
from transformers import AutoTokenizer, BertForSequenceClassification

import kdcore
from kdcore.commands.main import main

RECIPE = """\
run: {name: moods, id: 1}
seed: 3
teacher: {path: teacher}
student: {config: {num_hidden_layers: 1}, initialize: {from: teacher}}
task:
  name: sequence_classification
  data:
    {train: mood.csv, text: text, label: mood, labels: [sad, glad], split: {validation: 0.2, test: 0.4}, max_length: 32}
losses: {soft_targets: {positions: classes}, classification: {weight: 0.5}}
training: {budget: {steps: 3}, batch_size: 8}
tracking: [jsonl]
"""


@pytest.fixture
def moods(tmp_path: Path, teacher_folder: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run of a student whose teacher is a classifier."""
    monkeypatch.setenv("KDCORE_CACHE", str(cache_folder))
    monkeypatch.chdir(tmp_path)
    labels = {"id2label": {0: "sad", 1: "glad"}, "label2id": {"sad": 0, "glad": 1}}
    torch.manual_seed(1)
    BertForSequenceClassification.from_pretrained(teacher_folder, **labels).save_pretrained(tmp_path / "teacher")
    AutoTokenizer.from_pretrained(teacher_folder).save_pretrained(tmp_path / "teacher")
    lines = [f"{'abc' if number % 2 else 'xyz'} {number},{'glad' if number % 3 else 'sad'}" for number in range(90)]
    (tmp_path / "mood.csv").write_text("text,mood\n" + "\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return kdcore.train("recipe.yaml").folder


def test_the_same_student_is_trained_without_its_teacher(moods: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", "runs/moods", "--by", "run", "--train-without-teacher", "--format", "json"]
    assert main(command) == 0
    captured = capsys.readouterr()
    assert "No run trains the same student" not in captured.err
    trained = moods.with_name("1-without-teacher")
    stored = yaml.safe_load((trained / "recipe.yaml").read_text(encoding="utf-8"))
    ours = yaml.safe_load((moods / "recipe.yaml").read_text(encoding="utf-8"))
    assert "teacher" not in stored
    assert [section["weight"] for section in stored["losses"].values()] == [0.5]
    for key in ("seed", "task", "training", "tracking"):
        assert stored[key] == ours[key]
    first, second = (load_file(run / "exports" / "initial" / "model.safetensors") for run in (moods, trained))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=0)

    scores = {one["group"][0]: one for one in json.loads(captured.out)["scores"] if one["column"]["kind"] != "cost"}
    table = parquet.read_table(trained / "predictions" / "test.parquet").to_pydict()
    expected = accuracy_score(table["label"], table["prediction"])
    assert scores["without teacher: moods/1-without-teacher"]["mean"] == pytest.approx(expected)
    assert "moods/1" in scores

    assert main(["compare", "runs/moods", "--format", "json"]) == 0
    groups = [one["group"][0] for one in json.loads(capsys.readouterr().out)["scores"]]
    assert {"soft_targets + classification", "without teacher: classification", "majority class"} <= set(groups)

    before = (trained / "metrics.jsonl").stat().st_mtime_ns
    assert main(command) == 0
    assert (trained / "metrics.jsonl").stat().st_mtime_ns == before, "a finished one is not trained again"
    assert not moods.with_name("1-without-teacher-without-teacher").exists()
    refused(moods, capsys)


def test_a_teacher_that_is_a_plain_folder_predicts_the_same_texts(
    moods: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "runs/moods", "--format", "json"]) == 0
    groups = {one["group"][0] for one in json.loads(capsys.readouterr().out)["scores"]}
    assert not any(name.startswith("teacher") for name in groups)
    assert main(["summary", str(moods), "--predict-with-teacher"]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("accuracy (test)")]

    folder = moods.parents[2] / "teacher"
    table = parquet.read_table(moods / "predictions" / "test.parquet").to_pydict()
    texts = (moods.parents[2] / "mood.csv").read_text(encoding="utf-8").splitlines()[1:]
    chosen = [texts[int(one) - 1].rpartition(",")[0] for one in table["id"]]
    tokens = AutoTokenizer.from_pretrained(folder)(chosen, padding=True, return_tensors="pt")
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        predicted = model(**tokens).logits.argmax(1)
    expected = accuracy_score(table["label"], [model.config.id2label[int(one)] for one in predicted])
    assert f"; teacher: {expected:.3f}" in row

    assert main(["compare", "runs/moods", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)["scores"]
    name = "teacher " + "/".join(folder.parts[-2:])
    (score,) = [one for one in found if one["group"] == [name] and one["column"]["kind"] == "predictions"]
    assert score["mean"] == pytest.approx(expected)
    sizes = {one["group"][0]: one["mean"] for one in found if one["column"]["metric"] == "relative_size"}
    assert sizes[name] == 1.0


def refused(moods: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If a run has no such student, the command ends with exit code 2 before anything is trained."""
    trained, path = moods.with_name("1-without-teacher"), moods / "recipe.yaml"
    shutil.move(trained, moods.parents[2] / "kept")
    recipe = path.read_text(encoding="utf-8")

    def compare(words: str) -> None:
        capsys.readouterr()
        assert main(["compare", "runs/moods", "--train-without-teacher"]) == 2
        assert words in capsys.readouterr().err
        assert not trained.exists()

    stated = yaml.safe_load(recipe)
    stated["losses"] = {label: one for label, one in stated["losses"].items() if label != "classification"}
    path.write_text(yaml.safe_dump(stated), encoding="utf-8")
    compare("no loss of the run can be trained without a teacher")
    path.write_text(recipe + "imports: [somewhere.py]\n", encoding="utf-8")
    compare("files under `imports:`")
    path.write_text(recipe, encoding="utf-8")
    shutil.rmtree(moods / "exports" / "initial")
    compare("was not exported")
    shutil.rmtree(moods / "predictions")
    compare("no run has a teacher and predictions")
