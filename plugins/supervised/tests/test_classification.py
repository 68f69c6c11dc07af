"""Fine-tuning and task-specific distillation through the real engine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import parquet

import kdcore
from kdcore.commands.main import main
from kdcore.commands.summary import summarise
from kdcore.training.run.run import RunResult

WORDS = {"con": ["bad", "sad", "worst"], "pro": ["good", "glad", "best"]}


def write_texts(path: Path, count: int, seed: int) -> Path:
    """Write sentences of very different lengths, one token per letter; one word determines the class."""
    draw = np.random.default_rng(seed)
    lines = ["text,label"]
    for number in range(count):
        label = ["con", "pro"][number % 2]
        words = ["".join(draw.choice(list("kmpqrv"), 2)) for _ in range(draw.integers(1, 12))]
        words.insert(int(draw.integers(0, len(words))), str(draw.choice(WORDS[label])))
        lines.append(f"{' '.join(words)},{label}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    write_texts(folder / "train.csv", 64, 1)
    write_texts(folder / "validation.csv", 21, 2)
    write_texts(folder / "test.csv", 10, 3)
    return folder


@pytest.fixture
def recipe(
    tmp_path: Path, teacher_folder: Path, data_folder: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A recipe that fine-tunes a student that starts from the small teacher."""
    monkeypatch.setenv("KDCORE_CACHE", str(cache_folder))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "classify.yaml"
    path.write_text(
        f"""\
run: {{name: classify, id: 1}}
seed: 3
student:
  config: {{num_hidden_layers: 2, hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}}
  initialize: {{from: {teacher_folder}, blocks: uniform}}
task:
  name: sequence_classification
  data:
    train: {data_folder}/train.csv
    validation: {data_folder}/validation.csv
    test: {data_folder}/test.csv
    text: text
    label: label
    labels: [con, pro]
    max_length: 48
losses:
  classification: {{}}
optimizer: {{name: adamw, lr: 3.0e-3}}
training: {{budget: {{steps: 6}}, batch_size: 8}}
validation: {{every: 2}}
checkpoints: {{every: 3}}
logging: {{every: 1}}
tracking: [jsonl]
""",
        encoding="utf-8",
    )
    return path


@pytest.fixture
def train(recipe: Path) -> Callable[..., RunResult]:
    def run(*overrides: str) -> RunResult:
        return kdcore.train(recipe, list(overrides))

    return run


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def column(run: Path, name: str) -> dict[int, float]:
    return {row["step"]: row[name] for row in rows_of(run) if name in row}


def exported_best(run: Path) -> list[int]:
    lines = (run / "train.log").read_text(encoding="utf-8").splitlines()
    return [int(line.partition("step ")[2].partition(":")[0]) for line in lines if line.endswith("exports/best")]


def improvements(scores: dict[int, float]) -> list[int]:
    steps, best = [], -1.0
    for step, score in scores.items():
        if step and score > best:
            steps.append(step)
            best = score
    return steps


def test_a_fine_tuned_student_is_scored_exported_and_predicts(
    train: Callable[..., RunResult], data_folder: Path
) -> None:
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    result = train("training.budget.steps=60", "validation.every=20", "checkpoints.every=100")
    run = result.folder
    assert result.export is not None
    accuracies = column(run, "held_out/accuracy")
    assert accuracies[60] == result.held_out["accuracy"] > 0.9
    assert exported_best(run) == improvements(accuracies)
    # Stored predictions against the export as its user loads it, and metrics against scikit-learn on them.
    lines = (data_folder / "validation.csv").read_text(encoding="utf-8").splitlines()[1:]
    texts, labels = zip(*(line.split(",") for line in lines), strict=True)
    table = parquet.read_table(run / "predictions" / "validation.parquet").to_pydict()
    assert table["label"] == list(labels)
    scores = json.loads((run / "predictions" / "scores.json").read_text(encoding="utf-8"))
    assert scores["export"] == "exports/best"
    best = run / "exports" / "best"
    model, report = AutoModelForSequenceClassification.from_pretrained(best, output_loading_info=True)
    assert not report["missing_keys"]
    assert model.config.label2id == {"con": 0, "pro": 1}
    tokens = AutoTokenizer.from_pretrained(best)(list(texts), padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model.eval()(**tokens).logits.numpy()
    np.testing.assert_allclose(np.array(table["outputs"]), logits, rtol=1e-4, atol=1e-5)
    assert table["prediction"] == [model.config.id2label[index] for index in logits.argmax(1)]
    own = [(label == "pro", prediction == "pro") for label, prediction in zip(labels, table["prediction"], strict=True)]
    for name, metric in (("accuracy", accuracy_score), ("f1", f1_score), ("matthews", matthews_corrcoef)):
        assert scores["scores"][name] == pytest.approx(metric(*zip(*own, strict=True)))
    assert scores["scores"]["accuracy"] == max(list(accuracies.values())[1:])
    assert parquet.read_table(run / "predictions" / "test.parquet").num_rows == 10
    card = (best / "README.md").read_text(encoding="utf-8")
    assert "| predicts (`sequence_classes`) | con, pro |" in card
    assert "| held-out accuracy |" in card
    assert "The pooler was not trained" not in card
    shown = summarise(run)
    assert "accuracy" in shown
    assert "majority-class baseline" in shown


@pytest.mark.processes
@pytest.mark.sample
def test_training_scores_and_predictions_do_not_depend_on_processes(
    train: Callable[..., RunResult], recipe: Path
) -> None:
    one = train("run.id=one").folder
    assert main(["train", str(recipe), "run.id=two", "training.micro_batch_size=2", "--processes", "2"]) == 0
    two = one.with_name("two")
    for name in ("train/loss", "held_out/loss", "held_out/accuracy"):
        np.testing.assert_allclose(list(column(two, name).values()), list(column(one, name).values()), rtol=1e-4)
    for part in ("validation", "test"):
        own, other = (parquet.read_table(run / "predictions" / f"{part}.parquet").to_pydict() for run in (one, two))
        assert own["id"] == other["id"]
        np.testing.assert_allclose(np.array(own["outputs"]), np.array(other["outputs"]), rtol=1e-3, atol=1e-5)


def test_the_best_is_exported_once_however_often_a_run_restarts(
    train: Callable[..., RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdcore_supervised.sequence_classification import SequenceClassification

    of_predictions = 0.0
    counted = iter([0.5, 0.3, 0.7, of_predictions, 0.6, of_predictions, 0.7, 0.8, of_predictions, 0.8, of_predictions])

    def scores(task: Any, split: str, outputs: np.ndarray) -> dict[str, float]:
        return {"accuracy": next(counted)}

    monkeypatch.setattr(SequenceClassification, "scores", scores)
    monkeypatch.setattr(SequenceClassification, "write_predictions", lambda *_: None)
    steps = "training.budget.steps"
    for end in (4, 6, 10):
        train(f"{steps}={end}", "validation.every=2", "checkpoints.every=2", "checkpoints.export_at_end=false")
    run = Path("runs/classify/1")
    assert list(column(run, "held_out/accuracy")) == [0, 2, 4, 6, 8, 10]
    assert exported_best(run) == [2, 4, 10]
    shutil.rmtree(run / "predictions")
    train(f"{steps}=10", "checkpoints.export_at_end=false")
    assert (run / "predictions").is_dir(), "predictions that a killed run did not come to are made up for"


@pytest.fixture(scope="module")
def fine_tuned(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A small random BERT of 4 blocks with a head for con and pro."""
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
    labels = {"id2label": {0: "con", 1: "pro"}, "label2id": {"con": 0, "pro": 1}}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, initializer_range=0.2, **sizes, **labels)
    torch.manual_seed(9)
    folder = tmp_path_factory.mktemp("fine-tuned")
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_student_learns_from_a_fine_tuned_teachers_classes_states_and_attention(
    train: Callable[..., RunResult], fine_tuned: Path
) -> None:
    losses = """losses={
      soft_targets: {positions: classes, temperature: 2.0}, hidden_mse: {layers: uniform}, attention_kl: {},
      contrastive: {samples: 64, negatives: 8, embedding_size: 8, other_classes: true},
      classification: {weight: 0.5}}"""
    teacher = [f"teacher.path={fine_tuned}", "student.initialize.from=teacher"]
    result = train(*teacher, losses, "training.budget.steps=20", "optimizer.lr=1e-3", "validation.every=20")
    for name in ("soft_targets", "hidden_mse", "attention_kl", "contrastive", "classification"):
        values = list(column(result.folder, f"train/{name}").values())
        assert len(values) == 20
        assert np.isfinite(values).all()
    held = column(result.folder, "held_out/soft_targets")
    assert held[20] < 0.8 * held[0]


def test_a_stage_without_class_losses_has_no_head_and_no_score(
    train: Callable[..., RunResult], fine_tuned: Path
) -> None:
    from transformers import AutoModel

    result = train(
        f"teacher.path={fine_tuned}",
        "student.initialize.from=teacher",
        "losses={hidden_mse: {layers: last}, classification: null}",
    )
    assert "accuracy" not in result.held_out
    assert not (result.folder / "predictions").exists()
    assert result.export is not None
    _, report = AutoModel.from_pretrained(result.export, output_loading_info=True)
    assert not report["missing_keys"]


def test_numbers_are_learned_too(train: Callable[..., RunResult], tmp_path: Path) -> None:
    lines = (f"{'good ' * (number % 5)}bad,{number % 5}" for number in range(40))
    (tmp_path / "scores.csv").write_text("text,label\n" + "\n".join(lines) + "\n", encoding="utf-8")
    files = f"train: {tmp_path}/scores.csv, validation: {tmp_path}/scores.csv"
    data = f"task.data={{{files}, test: null, labels: null, regression: true}}"
    result = train(data, "training.budget.steps=40", "validation.every=20")
    assert result.held_out["pearson"] > 0.8
    table = parquet.read_table(result.folder / "predictions" / "validation.parquet").to_pydict()
    assert table["label"][:5] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert table["prediction"] == [row[0] for row in table["outputs"]]


def test_lists_of_classes_are_learned_distilled_and_exported(train: Callable[..., RunResult], tmp_path: Path) -> None:
    from sklearn.metrics import f1_score
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    draw = np.random.default_rng(8)
    classes = {"bad": "con", "good": "pro"}
    lines = []
    for _ in range(60):
        words = [word for word in classes if draw.random() < 0.5]
        lines.append(json.dumps({"text": " ".join(["kk", *words, "mm"]), "label": [classes[word] for word in words]}))
    (tmp_path / "lists.jsonl").write_text("\n".join(lines), encoding="utf-8")
    files = {"train": f"{tmp_path}/lists.jsonl", "validation": f"{tmp_path}/lists.jsonl"}
    data = [f"task.data={json.dumps({**files, 'test': None, 'multi_label': True})}", "validation.every=30"]
    result = train(*data, "training.budget.steps=60", "run.id=multi")
    assert result.held_out["f1_micro"] > 0.9
    assert result.held_out["f1_macro"] > 0.9
    run = result.folder
    table = parquet.read_table(run / "predictions" / "validation.parquet").to_pydict()
    assert table["label"] == [json.loads(line)["label"] for line in lines]
    sides = [[[name in row for name in ("con", "pro")] for row in table[side]] for side in ("label", "prediction")]
    scores = json.loads((run / "predictions" / "scores.json").read_text(encoding="utf-8"))["scores"]
    assert scores["f1_micro"] == pytest.approx(f1_score(*map(np.array, sides), average="micro"))
    (shown,) = [line for line in summarise(run).splitlines() if line.startswith("held-out f1_micro")]
    most = np.array(sides[0]).mean(0).max()
    assert float(shown.rpartition(": ")[2]) >= 2 * most / (1 + np.array(sides[0]).mean() * 2) - 1e-4
    # The export, and its own loss, as its user loads them.
    best = run / "exports" / "best"
    model, report = AutoModelForSequenceClassification.from_pretrained(best, output_loading_info=True)
    assert not report["missing_keys"]
    assert model.config.problem_type == "multi_label_classification"
    texts = [json.loads(line)["text"] for line in lines]
    tokens = AutoTokenizer.from_pretrained(best)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        outputs = model.eval()(**tokens, labels=torch.tensor(sides[0], dtype=torch.float32))
    np.testing.assert_allclose(np.array(table["outputs"]), outputs.logits.numpy(), rtol=1e-4, atol=1e-5)
    step = max(column(run, "held_out/f1_micro"), key=column(run, "held_out/f1_micro").get)  # type: ignore[arg-type]
    assert column(run, "held_out/classification")[step] == pytest.approx(float(outputs.loss), rel=1e-4)
    teacher = [f"teacher.path={best}", "student.initialize.from=teacher", "student.config.num_hidden_layers=1"]
    losses = "losses={soft_targets: {positions: classes, temperature: 2.0}, classification: null}"
    distilled = train(*data, *teacher, losses, "training.budget.steps=60", "run.id=distilled")
    held = column(distilled.folder, "held_out/soft_targets")
    assert held[60] < 0.5 * held[0]
    assert distilled.held_out["f1_micro"] > 0.9


TEACHER = "teacher.path=FINE_TUNED"
SOFT = "losses={soft_targets: {positions: classes}}"
MISTAKES: list[tuple[list[str], list[str]]] = [
    (["losses={masked_lm: {}}"], ["losses.masked_lm", "`sequence_classification` masks no tokens", "masked_lm"]),
    (["losses={soft_targets: {}}", TEACHER], ["losses.soft_targets", "masks no tokens"]),
    (["task.data.labels=[con, neutral]"], ["task.data.labels", "records cannot be used", "line 3 is labelled 'pro'"]),
    (["task.data.text=words"], ["task.data.train", "has no column `words`", "allowed: text, label"]),
    (["task.metric=pearson"], ["classify.yaml:6: task", "`metric: pearson` cannot be used", "one of accuracy, f1"]),
    (["task.metric=best"], ["task.metric", "accuracy, f1, matthews, pearson, spearman"]),
    (["task.data={train: LONG, max_length: 100}"], ["expected at most 64", "lower task.data.max_length"]),
    (
        ["student={config: {model_type: bert, vocab_size: 200}, initialize: null}"],
        ["task.data.tokenizer", "no weights to take one from"],
    ),
    ([SOFT], ["losses.soft_targets", "the recipe has none"]),
    ([SOFT, "teacher.path=PLAIN"], ["losses.soft_targets", "which the teacher does not have", "fine-tuned"]),
    ([SOFT, TEACHER, "task.data.labels=[pro, con]"], ["losses.soft_targets", "the teacher's are con, pro", "pro, con"]),
    ([SOFT, TEACHER, "task.data.labels=[con, pro, no]"], ["of classes, but the teacher has 2 and the student 3"]),
    (["task.data.validation=UNLABELLED"], ["task.data.validation", "has no column `label`"]),
    (["task.data.train=EMPTY"], ["task.data", "`train` contains no texts"]),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "words"), MISTAKES, ids=range(len(MISTAKES)))
def test_a_mistake_is_told_before_anything_is_written(
    overrides: list[str],
    words: list[str],
    recipe: Path,
    fine_tuned: Path,
    teacher_folder: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "unlabelled.csv").write_text("text\ngood\n", encoding="utf-8")
    (tmp_path / "empty.csv").write_text("text,label\n", encoding="utf-8")
    (tmp_path / "long.csv").write_text(f"text,label\n{'the ' * 90},pro\n", encoding="utf-8")
    places = {"FINE_TUNED": fine_tuned, "PLAIN": teacher_folder, "UNLABELLED": "unlabelled.csv", "EMPTY": "empty.csv"}
    places["LONG"] = "long.csv"
    for name, place in places.items():
        overrides = [override.replace(name, str(place)) for override in overrides]
    assert main(["train", str(recipe), *overrides]) == 2
    error = capfd.readouterr().err
    for word in words:
        assert word in error, error
    assert not (tmp_path / "runs").exists()


def test_classification_on_masked_text_is_refused(small_recipe: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(small_recipe), "losses={classification: {}}"]) == 2
    error = capfd.readouterr().err
    assert "losses.classification: `classification` requires the head `sequence_classes`" in error
    assert "sequence_classification" in error
