"""`kdcore evaluate` with real fine-tunings and probes of a small student: every number against a plain computation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from kdcore_evaluation.run.results import ResultRow, read_rows

import kdcore
from kdcore.commands.main import main

SUITE = """\
name: tiny
tasks:
  mood:
    data:
      train: mood.csv
      text: text
      label: mood
      labels: [sad, glad]
      split: {{validation: 0.2, test: 0.2}}
      max_length: 32
    metric: f1
learning_rates: [1e-2]
batch_sizes: [8]
seeds: [1]
budget: {{steps: 6}}
recipe: {{validation: {{every: 3}}}}
references: [random]
probes:
  cost: {{batch_size: 2, sequence_length: 16}}
  masked_lm: {{data: {data}, sequences: 8}}
  agreement: {{data: {data}, sequences: 8, neighbours: 2}}
  linear: {{texts: 40}}
  retrieval: {{data: {data}, passages: 50}}
"""


@pytest.fixture(scope="module")
def evaluated(
    tmp_path_factory: pytest.TempPathFactory, teacher_folder: Path, corpus_file: Path, cache_folder: Path
) -> Path:
    """A student of two blocks, and its measurements."""
    folder = tmp_path_factory.mktemp("evaluated")
    os.environ["KDCORE_CACHE"] = str(cache_folder)
    data = f"{{tokenizer: '{teacher_folder}', sequence_length: 48, held_out: 0.1, corpora: "
    data += f"[{{name: text, path: '{corpus_file}', documents: lines}}]}}"
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"run: {{name: small, folder: {folder / 'runs'}}}\nteacher: {{path: {teacher_folder}}}\n"
        "student: {config: {num_hidden_layers: 2}, initialize: {from: teacher, blocks: uniform}}\n"
        f"task: {{name: masked_lm, data: {data}}}\nlosses: {{hidden_mse: {{layers: last}}}}\n"
        "training: {budget: {steps: 2}, batch_size: 8}\ntracking: [jsonl]\n",
        encoding="utf-8",
    )
    assert kdcore.train(recipe).finished
    (folder / "suite.yaml").write_text(SUITE.format(data=data), encoding="utf-8")
    generator = np.random.default_rng(0)
    moods = [("sad", "abc"), ("glad", "xyz")]
    lines = []
    for _ in range(80):
        mood, letters = moods[generator.integers(2)]
        lines.append(f"{' '.join(generator.choice(list(letters), 6))},{mood}")
    (folder / "mood.csv").write_text("text,mood\n" + "\n".join(lines) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "kdcore", "evaluate", "runs/small/1", "--on", "suite.yaml", "--processes", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "mood f1" in done.stdout
    return folder


LABELS_SUITE = """\
name: spans
tasks:
  names:
    data: {{train: names.conll, labels: [per], split: {{validation: 0.2, test: 0.2}}, max_length: 16}}
  topics:
    data:
      {{train: topics.jsonl, text: text, label: topics, labels: [a, b], multi_label: true, split: {{validation: 0.3}}}}
learning_rates: [1e-2]
batch_sizes: [8]
seeds: [1]
budget: {{steps: 4}}
probes:
  linear: {{texts: 20}}
"""


def test_spans_and_lists_of_classes_are_evaluated(
    teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pyarrow import parquet
    from seqeval.metrics import f1_score
    from sklearn.metrics import f1_score as f1_of_sets

    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(1)
    rows = "".join(f"{'good B-per' if draw.random() < 0.5 else 'of O'}\n{number} O\n\n" for number in range(60))
    (tmp_path / "names.conll").write_text(rows, encoding="utf-8")
    records = [{"text": f"good {number}", "topics": [["a"], [], ["a", "b"]][number % 3]} for number in range(60)]
    (tmp_path / "topics.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    (tmp_path / "suite.yaml").write_text(LABELS_SUITE.format(), encoding="utf-8")
    assert main(["evaluate", str(teacher_folder), "--on", "suite.yaml"]) == 0
    shown = capsys.readouterr()
    assert "linear" not in shown.err, "no linear probe fits such labels"
    assert "names f1" in shown.out
    assert "topics f1_micro: constant-labels baseline" in shown.out
    found = read_rows(tmp_path / "evaluations" / "spans")
    cells = tmp_path / "evaluations" / "spans" / "cells"
    for row in found:
        table = parquet.read_table(cells / row.cell / "predictions" / f"{row.split}.parquet").to_pydict()
        if row.task == "names" and row.metric == "f1":
            assert row.main
            assert row.value == pytest.approx(f1_score(table["label"], table["prediction"]))
            assert row.chance == 0.0
        if row.metric == "f1_micro":
            sets = [
                np.array([[name in own for name in "ab"] for own in table[side]]) for side in ("label", "prediction")
            ]
            assert row.value == pytest.approx(f1_of_sets(*sets, average="micro", zero_division=0.0))
            assert row.chance is not None
            assert 0.5 < row.chance < 1
    assert {(row.task, row.split) for row in found if row.main} == {
        ("names", "validation"),
        ("names", "test"),
        ("topics", "validation"),
    }


@pytest.fixture(scope="module")
def rows(evaluated: Path) -> list[ResultRow]:
    return read_rows(evaluated / "evaluations" / "tiny")


def value(rows: list[ResultRow], metric: str, role: str = "student", **wanted: object) -> float:
    wanted |= {"metric": metric, "role": role}
    (row,) = [row for row in rows if all(getattr(row, name) == wish for name, wish in wanted.items())]
    return row.value


def test_scores_are_those_of_the_stored_predictions(evaluated: Path, rows: list[ResultRow]) -> None:
    from pyarrow import parquet

    tuned = [row for row in rows if row.kind == "finetune"]
    assert {(row.role, row.split) for row in tuned} == {
        (role, split) for role in ("student", "random") for split in ("validation", "test")
    }
    for row in tuned:
        stored = evaluated / "evaluations" / "tiny" / "cells" / row.cell / "predictions" / f"{row.split}.parquet"
        table = parquet.read_table(stored).to_pylist()
        outcomes = Counter((one["label"], one["prediction"]) for one in table)
        right = outcomes["sad", "sad"] + outcomes["glad", "glad"]
        both = 2 * outcomes["glad", "glad"] + outcomes["glad", "sad"] + outcomes["sad", "glad"]
        expected = {"accuracy": right / len(table), "f1": 2 * outcomes["glad", "glad"] / both if both else 0.0}
        assert row.examples == len(table)
        assert row.main == (row.metric == "f1")
        if row.metric in expected:
            assert row.value == pytest.approx(expected[row.metric])
        labels = Counter(one["label"] for one in table)
        assert row.chance == pytest.approx(max(labels.values()) / len(table))


def test_a_row_holds_what_repeats_it(evaluated: Path, rows: list[ResultRow]) -> None:
    row = next(row for row in rows if row.kind == "finetune" and row.role == "student")
    assert {"kdcore", "torch", "transformers", "python"} <= json.loads(row.versions).keys()
    assert (row.learning_rate, row.batch_size, row.seed) == (1e-2, 8, 1)
    recipe = json.loads(row.recipe)
    assert recipe["optimizer"]["lr"] == 1e-2
    assert recipe["student"]["initialize"]["from"] == str(evaluated / "runs" / "small" / "1" / "exports" / "final")
    again = evaluated / "again.yaml"
    again.write_text(json.dumps({"run": {"name": "again", "folder": str(evaluated)}, **recipe}), encoding="utf-8")
    assert kdcore.load_recipe(again).components().student.name == "transformers"
    cell = evaluated / "evaluations" / "tiny" / "cells" / row.cell
    assert not (cell / "checkpoints").exists()
    assert not (cell / "exports").exists()


def test_what_is_finished_is_not_measured_again(
    evaluated: Path, rows: list[ResultRow], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = evaluated / "evaluations" / "tiny" / "cells"
    before = {path: path.stat().st_mtime_ns for path in cells.glob("*/result.json")}
    monkeypatch.chdir(evaluated)
    assert main(["evaluate", "runs/small/1", "--on", "suite.yaml", "seeds=[1]"]) == 0
    assert "7 of 7 trials are already finished" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in cells.glob("*/result.json")} == before
    assert read_rows(evaluated / "evaluations" / "tiny") == rows


@torch.no_grad()
def test_probes_of_text_are_a_plain_computation(
    evaluated: Path, rows: list[ResultRow], teacher_folder: Path, cache_folder: Path
) -> None:
    from transformers import AutoModel, AutoModelForMaskedLM

    from kdcore.tasks.masked_lm import MaskedLM

    export = evaluated / "runs" / "small" / "1" / "exports" / "final"
    recipe = kdcore.load_recipe(evaluated / "recipe.yaml")
    task = MaskedLM(recipe.components().task.config, 0, cache_folder)
    count = min(8, task.num_samples("held_out"))
    batch = task.batch("held_out", np.arange(count), np.zeros(count, dtype=np.int64))
    ids, mask = batch.input_ids, batch.attention_mask
    assert mask is not None
    logits = AutoModelForMaskedLM.from_pretrained(export)(input_ids=ids, attention_mask=mask).logits
    chances = torch.log_softmax(logits.double(), -1).flatten(0, 1)[batch.masked_index]
    expected = -chances.gather(1, batch.masked_labels[:, None]).mean().item()
    assert value(rows, "masked_lm_loss") == pytest.approx(expected, rel=1e-5)

    tokens, lengths = task.data.split("held_out").rows(np.arange(count))
    embedded = []
    for source in (teacher_folder, export):
        model = AutoModel.from_pretrained(source).eval()
        states = [model(input_ids=torch.tensor(row[None, :n].astype(np.int64))).last_hidden_state[0].mean(0)
                  for row, n in zip(tokens, lengths, strict=True)]  # fmt: skip
        embedded.append(torch.nn.functional.normalize(torch.stack(states), dim=1))
    assert value(rows, "cosine") == pytest.approx((embedded[0] * embedded[1]).sum(1).mean().item(), rel=1e-4)
    assert 0 <= value(rows, "same_neighbours") <= 1


@torch.no_grad()
def test_a_suite_without_tasks_probes_random_weights(
    evaluated: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoConfig, AutoModelForMaskedLM

    from kdcore.tasks.masked_lm import MaskedLM

    probes = (evaluated / "suite.yaml").read_text(encoding="utf-8").partition("probes:")[2].partition("  linear")[0]
    suite = f"name: probes\nreferences: [random]\nprobes:{probes}"
    (evaluated / "probes.yaml").write_text(suite, encoding="utf-8")
    monkeypatch.chdir(evaluated)
    assert main(["evaluate", "runs/small/1", "--on", "probes.yaml"]) == 0
    rows = read_rows(evaluated / "evaluations" / "probes")
    task = MaskedLM(kdcore.load_recipe(evaluated / "recipe.yaml").components().task.config, 0, cache_folder)
    count = min(8, task.num_samples("held_out"))
    batch = task.batch("held_out", np.arange(count), np.zeros(count, dtype=np.int64))
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(evaluated / "runs" / "small" / "1" / "exports" / "final")
    model = AutoModelForMaskedLM.from_config(config).eval()
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    chances = torch.log_softmax(logits.double(), -1).flatten(0, 1)[batch.masked_index]
    expected = -chances.gather(1, batch.masked_labels[:, None]).mean().item()
    assert value(rows, "masked_lm_loss", role="random") == pytest.approx(expected, rel=1e-5)
    assert {row.kind for row in rows if row.role == "random"} == {"masked_lm", "agreement"}
    assert {row.kind for row in rows if row.role == "student"} == {"masked_lm", "agreement", "cost"}
    assert value(rows, "cosine", role="random") < value(rows, "cosine")


@torch.no_grad()
def test_the_linear_probe_is_a_logistic_regression_on_mean_embeddings(evaluated: Path, rows: list[ResultRow]) -> None:
    from kdcore_evaluation.run.suite import Suite
    from kdcore_supervised.data.labelled import read_labelled
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler
    from transformers import AutoModel, AutoTokenizer

    suite = kdcore.load_config(evaluated / "suite.yaml", Suite)
    export = evaluated / "runs" / "small" / "1" / "exports" / "final"
    model, tokenizer = AutoModel.from_pretrained(export).eval(), AutoTokenizer.from_pretrained(export)
    parts = {part.name: part for part in read_labelled(suite.tasks["mood"].data, Counter())}

    def features(name: str) -> np.ndarray:
        texts = parts[name].texts[0]
        return np.stack([model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in texts])

    train = features("train")
    chosen = np.sort(np.random.default_rng(0).permutation(len(train))[:40])
    labels = parts["train"].labels
    assert labels is not None
    scaler = StandardScaler().fit(train[chosen])
    fitted = LogisticRegression(max_iter=1000).fit(scaler.transform(train[chosen]), labels[chosen])
    accuracy = (fitted.predict(scaler.transform(features("test"))) == parts["test"].labels).mean()
    assert value(rows, "accuracy", kind="linear", split="test") == pytest.approx(accuracy)


def test_scores_of_probes_have_intervals_over_their_texts(evaluated: Path, rows: list[ResultRow]) -> None:
    from kdcore_evaluation.run.scores import measurements, sample_of
    from pyarrow import parquet

    folder = evaluated / "evaluations" / "tiny"
    own = [row for row in rows if row.role == "student"]
    found = measurements(own, 0, dict.fromkeys(own, folder))
    stored = {(row.kind, row.metric): row for row in own}
    for kind, metric in (("linear", "f1"), ("retrieval", "reciprocal_rank")):
        (one,) = [one for one in found if (one.column.kind, one.column.metric) == (kind, metric)]
        assert one.predictions is not None
        items = one.predictions.item_scores(metric, one.value)
        assert items is not None
        assert items.values.mean() == pytest.approx(one.value)
        assert len(items.values) == stored[kind, metric].examples
    linear = parquet.read_table(folder / "cells" / stored["linear", "f1"].cell / "predictions" / "test.parquet")
    names = linear.to_pydict()
    assert np.mean([a == b for a, b in zip(names["label"], names["prediction"], strict=True)]) == pytest.approx(
        value(rows, "accuracy", kind="linear", split="test")
    )
    assert not any(sample_of([one]).texts for one in found if one.column.kind == "cost")


def test_costs_are_counted_and_measured(evaluated: Path, rows: list[ResultRow]) -> None:
    from transformers import AutoModel

    export = evaluated / "runs" / "small" / "1" / "exports" / "final"
    parameters = sum(parameter.numel() for parameter in AutoModel.from_pretrained(export).parameters())
    assert value(rows, "parameters") == parameters
    assert value(rows, "bytes_on_disk") == (export / "model.safetensors").stat().st_size
    assert value(rows, "sequences_per_second") > 0
    assert 0 <= value(rows, "memory_bytes") < 1e9


def test_the_page_of_a_real_run_holds_its_scores(
    evaluated: Path, rows: list[ResultRow], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(evaluated)
    assert main(["compare", "runs", "--by", "run", "--html", "page.html"]) == 0
    page = (evaluated / "page.html").read_text(encoding="utf-8")
    score = value(rows, "f1", kind="finetune", split="test", role="student")
    assert f'<data value="{score!r}">{score:.3f}</data>' in page
    printed = capsys.readouterr().out
    assert "† cosine to the teacher: by construction in favour of hidden_mse" in printed
    assert "small/1" in printed
    assert "random weights (bert, 2 blocks of 32)" in printed
