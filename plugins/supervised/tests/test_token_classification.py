"""Tagging through the real engine: scores, exports, predictions, resume and mistakes."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kdcore_supervised.token_classification import TokenClassification
from kdcore_testing import check_task
from pyarrow import parquet
from safetensors.numpy import load_file
from seqeval.metrics import f1_score, precision_score, recall_score

import kdcore
from kdcore import DataError
from kdcore.commands.main import main
from kdcore.commands.summary import summarise
from kdcore.training.run.run import RunResult

NAMES = {"per": ["good", "fine"], "loc": ["bad", "sad"]}
"""The first and the second word of a span of each type; no other word begins with one of their letters."""
CLASSES = ["O", "B-per", "I-per", "B-loc", "I-loc"]


def sentences(count: int, seed: int) -> list[tuple[list[str], list[str]]]:
    """Words of random letters, and spans of one or two names."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        words, tags = [], []
        for _ in range(draw.integers(2, 9)):
            if draw.random() < 0.35:
                type_ = ["per", "loc"][draw.integers(2)]
                size = int(draw.integers(1, 3))
                words += NAMES[type_][:size]
                tags += [f"B-{type_}", f"I-{type_}"][:size]
                words.append("of")
                tags.append("O")
            else:
                words.append("".join(draw.choice(list("kmpqrv"), 2)))
                tags.append("O")
        found.append((words, tags))
    return found


def write_conll(path: Path, texts: list[tuple[list[str], list[str]]]) -> Path:
    rows = ("".join(f"{word}\t{tag}\n" for word, tag in zip(*text, strict=True)) for text in texts)
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tagged")
    write_conll(folder / "train.conll", sentences(64, 1))
    write_conll(folder / "validation.conll", sentences(21, 2))
    (folder / "test.txt").write_text("kk\ngood\n\nof\n", encoding="utf-8")
    return folder


@pytest.fixture
def recipe(
    tmp_path: Path, teacher_folder: Path, data_folder: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    monkeypatch.setenv("KDCORE_CACHE", str(cache_folder))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tag.yaml"
    path.write_text(
        f"""\
run: {{name: tag, id: 1}}
seed: 3
student:
  config: {{num_hidden_layers: 2, hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}}
  initialize: {{from: {teacher_folder}, blocks: uniform}}
task:
  name: token_classification
  data:
    train: {data_folder}/train.conll
    validation: {data_folder}/validation.conll
    test: {data_folder}/test.txt
    labels: [per, loc]
    max_length: 24
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


def column(run: Path, name: str) -> dict[int, float]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return {row["step"]: row[name] for row in rows if name in row}


def test_a_tagger_is_scored_exported_and_predicts(train: Callable[..., RunResult], data_folder: Path) -> None:
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    result = train("training.budget.steps=150", "validation.every=50", "checkpoints.every=200")
    run = result.folder
    scores = json.loads((run / "predictions" / "scores.json").read_text(encoding="utf-8"))
    assert scores["export"] == "exports/best"
    logged = column(run, "held_out/f1")
    assert scores["scores"]["f1"] == max(list(logged.values())[1:]) > 0.9
    assert logged[0] < 0.5
    # Scores of stored predictions by seqeval.
    table = parquet.read_table(run / "predictions" / "validation.parquet").to_pydict()
    true = [tags for _, tags in sentences(21, 2)]
    assert table["label"] == true
    assert table["words"] == [words for words, _ in sentences(21, 2)]
    for name, metric in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
        assert scores["scores"][name] == pytest.approx(metric(true, table["prediction"]))
        for type_ in ("per", "loc"):
            own = [[tag if tag.endswith(type_) else "O" for tag in tags] for tags in true]
            theirs = [[tag if tag.endswith(type_) else "O" for tag in tags] for tags in table["prediction"]]
            assert scores["scores"][f"{name}_{type_}"] == pytest.approx(metric(own, theirs))
    # Stored outputs against the export as its user loads it, on texts that fit into a sequence.
    best = run / "exports" / "best"
    model, report = AutoModelForTokenClassification.from_pretrained(best, output_loading_info=True)
    assert not report["missing_keys"]
    assert [model.config.id2label[index] for index in range(5)] == CLASSES
    assert model.config.label2id == {label: index for index, label in enumerate(CLASSES)}
    tokenizer, compared = AutoTokenizer.from_pretrained(best), 0
    for words, outputs in zip(table["words"], table["outputs"], strict=True):
        tokens = tokenizer(words, is_split_into_words=True, return_tensors="pt")
        if tokens["input_ids"].shape[1] <= 24:
            with torch.no_grad():
                logits = model.eval()(**tokens).logits[0].numpy()
            ids = tokens.word_ids(0)
            first = [place for place, word in enumerate(ids) if word is not None and word != ids[place - 1]]
            np.testing.assert_allclose(np.array(outputs), logits[first], rtol=1e-4, atol=1e-5)
            compared += 1
    assert 0 < compared < 21, "some texts are windows"
    # Spans in characters are those of the tags.
    for text, spans, words, tags in zip(
        *(table[name] for name in ("text", "spans", "words", "prediction")), strict=True
    ):
        covered = sum(len(text[span["start"] : span["end"]].split()) for span in spans)
        assert covered == sum(tag != "O" for tag in tags)
        assert text == " ".join(words)
    test = parquet.read_table(run / "predictions" / "test.parquet").to_pydict()
    assert test["words"] == [["kk", "good"], ["of"]]
    assert "label" not in test
    card = (best / "README.md").read_text(encoding="utf-8")
    assert "| predicts (`token_classes`) | O, B-per, I-per, B-loc, I-loc |" in card
    assert "| held-out f1 |" in card
    rows = {line.split("  ")[0]: line for line in summarise(run).splitlines()}
    assert rows["held-out f1"].endswith("; without the text: 0.0000")
    outside = np.mean([tag == "O" for tags in true for tag in tags])
    assert rows["held-out accuracy"].endswith(f"; without the text: {outside:.4f}")


@pytest.mark.processes
def test_training_and_scores_do_not_depend_on_processes(train: Callable[..., RunResult], recipe: Path) -> None:
    one = train("run.id=one").folder
    assert main(["train", str(recipe), "run.id=two", "training.micro_batch_size=2", "--processes", "2"]) == 0
    two = one.with_name("two")
    for name in ("train/loss", "held_out/loss", "held_out/f1", "held_out/accuracy"):
        np.testing.assert_allclose(list(column(two, name).values()), list(column(one, name).values()), rtol=1e-4)
    own, other = (parquet.read_table(run / "predictions" / "validation.parquet").to_pydict() for run in (one, two))
    assert own["prediction"] == other["prediction"]


def test_a_run_that_resumes_from_a_checkpoint_repeats_its_steps(train: Callable[..., RunResult]) -> None:
    run = train().folder
    names = ("train/loss", "held_out/loss", "held_out/f1")
    first = [column(run, name) for name in names]
    weights = load_file(run / "exports" / "final" / "model.safetensors")
    shutil.rmtree(run / "checkpoints" / "step-0000006")
    (run / "checkpoints" / "latest").write_text("step-0000003", encoding="utf-8")
    train()
    assert [column(run, name) for name in names] == first
    for name, tensor in load_file(run / "exports" / "final" / "model.safetensors").items():
        np.testing.assert_array_equal(tensor, weights[name])


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A small random BERT of 4 blocks with a head for the tags."""
    from transformers import AutoTokenizer, BertConfig, BertForTokenClassification

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
    config = BertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        initializer_range=0.2,
        id2label=dict(enumerate(CLASSES)),
        label2id={label: index for index, label in enumerate(CLASSES)},
        **sizes,
    )
    torch.manual_seed(9)
    folder = tmp_path_factory.mktemp("tagger")
    BertForTokenClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


SOFT = "soft_targets: {head: token_classes, column: word_starts, temperature: 2.0}"


def test_a_student_learns_from_a_taggers_classes_states_and_attention(
    train: Callable[..., RunResult], tagger: Path
) -> None:
    losses = f"losses={{{SOFT}, hidden_mse: {{layers: uniform}}, attention_kl: {{}}, classification: {{weight: 0.5}}}}"
    teacher = [f"teacher.path={tagger}", "student.initialize.from=teacher"]
    result = train(*teacher, losses, "training.budget.steps=20", "optimizer.lr=1e-3", "validation.every=20")
    for name in ("soft_targets", "hidden_mse", "attention_kl", "classification"):
        values = list(column(result.folder, f"train/{name}").values())
        assert len(values) == 20
        assert np.isfinite(values).all()
    held = column(result.folder, "held_out/soft_targets")
    assert held[20] < 0.8 * held[0]


def test_texts_without_labels_are_distilled_by_soft_targets_alone(
    train: Callable[..., RunResult], tagger: Path, data_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = [json.dumps({"text": " ".join(words)}) for words, _ in sentences(40, 7)]
    (tmp_path / "more.jsonl").write_text("\n".join(lines), encoding="utf-8")
    teacher = [f"teacher.path={tagger}", "student.initialize.from=teacher", "training.budget.steps=20"]
    more = [f"task.data.unlabelled={tmp_path}/more.jsonl", "task.data.text=text"]
    alone = [*more, "task.data.train=null", "validation.every=20"]
    result = train(*teacher, *alone, f"losses={{{SOFT}, classification: null}}", "optimizer.lr=1e-3", "run.id=soft")
    held = column(result.folder, "held_out/soft_targets")
    assert held[20] < 0.8 * held[0]
    assert "f1" in result.held_out
    with pytest.raises(kdcore.InputError, match=r"losses.classification(?s:.)*labels"):
        train(*teacher, *alone, "run.id=none")
    # Next to unlabelled texts, only the labelled ones count for the loss that reads labels.
    both = train(*teacher, *more, f"losses={{{SOFT}, classification: {{weight: 0.5}}}}", "run.id=both")
    assert np.isfinite(list(column(both.folder, "train/classification").values())).all()


def of(tmp_path: Path, tokenizer_folder: Path, **data: Any) -> TokenClassification:
    data = {"labels": ["per", "loc"], "tokenizer": str(tokenizer_folder)} | data
    return TokenClassification(TokenClassification.Config.model_validate({"data": data}), 1, tmp_path)


def test_labels_of_batches_and_their_counts(tmp_path: Path, tokenizer_folder: Path, data_folder: Path) -> None:
    (tmp_path / "more.jsonl").write_text('{"text": "kk good"}', encoding="utf-8")
    task = of(
        tmp_path, tokenizer_folder, train=f"{data_folder}/train.conll", unlabelled=f"{tmp_path}/more.jsonl", text="text"
    )
    total = task.num_samples("train")
    batch = task.batch("train", np.arange(total), np.zeros(total, dtype=np.int64))
    labels, starts = batch.columns["labels"], batch.columns["word_starts"]
    assert labels.shape == starts.shape == batch.input_ids.shape
    texts = sentences(64, 1)
    assert total == 65
    for row, (_, tags) in enumerate(texts):
        assert [CLASSES[label] for label in labels[row][starts[row]]] == tags
        assert (labels[row][~starts[row]] == -100).all()
    assert int(starts[64].sum()) == 2
    assert (labels[64] == -100).all()
    every = of(tmp_path, tokenizer_folder, train=f"{data_folder}/train.conll", label_all_tokens=True)
    assert every.fingerprint != of(tmp_path, tokenizer_folder, train=f"{data_folder}/train.conll").fingerprint


def test_problems_of_tagged_texts_are_reported(
    tmp_path: Path, tokenizer_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_conll(tmp_path / "train.conll", [(["Ann", "sleeps"], ["B-PER", "O"])] * 12)
    write_conll(tmp_path / "held.conll", [(["龘", "sleeps"], ["O", "O"]), (["the", "of"], ["O", "O"])])
    with caplog.at_level(logging.WARNING, "kdcore"):
        of(
            tmp_path,
            tokenizer_folder,
            train=str(tmp_path / "train.conll"),
            validation=str(tmp_path / "held.conll"),
            labels=["PER"],
        )
    messages = [record.getMessage().removeprefix("labelled texts: ") for record in caplog.records]
    assert "train: 11 of 12 texts repeat another one" in messages
    assert "validation: only 2 texts: results on so few are hardly reproducible" in messages
    assert "validation: no text has a label" in messages
    assert any("validation: " in one and "unknown to the tokenizer" in one for one in messages)


def test_scores_of_windows_and_the_baseline(tmp_path: Path, tokenizer_folder: Path, data_folder: Path) -> None:
    path = f"{data_folder}/validation.conll"
    task = of(tmp_path, tokenizer_folder, train=path, validation=path, max_length=8)
    assert task.num_samples("held_out") > 21
    batch = task.batch("held_out", np.arange(task.num_samples("held_out")), np.zeros(1))
    labels = batch.columns["labels"].numpy()
    outputs = [
        np.eye(5, dtype=np.float32)[np.maximum(labels[row, : batch.lengths[row]], 0)] for row in range(len(labels))
    ]
    assert set(task.scores("held_out", outputs).values()) == {1.0}
    true = [tags for _, tags in sentences(21, 2)]
    outside = sum(tag == "O" for tags in true for tag in tags) / sum(map(len, true))
    baselines = task.baselines("held_out")
    assert baselines["accuracy"] == pytest.approx(outside)
    assert baselines["f1"] == baselines["recall_per"] == 0.0
    wrong = [one[:, [0, 3, 4, 1, 2]] for one in outputs]  # every span of the other type
    assert task.scores("held_out", wrong)["f1"] == 0.0
    with pytest.raises(DataError, match=r"the split `test` has no labels, so predictions cannot be scored"):
        of(tmp_path, tokenizer_folder, train=path, test=f"{data_folder}/test.txt").scores("test", [])


def test_it_does_what_every_task_must_do(tmp_path: Path, tokenizer_folder: Path, data_folder: Path) -> None:
    files = {"train": f"{data_folder}/train.conll", "validation": f"{data_folder}/validation.conll"}
    data = {"labels": ["per", "loc"], "tokenizer": str(tokenizer_folder), "test": f"{data_folder}/test.txt", **files}
    check_task("token_classification", {"data": data}, cache=tmp_path)


MISTAKES: list[tuple[list[str], list[str]]] = [
    (["task.data.labels=[per]"], ["task.data.labels", "has the tag 'B-loc' of the unknown type 'loc'", "train.conll"]),
    (
        ["task.data.train=RAGGED"],
        ["task.data.conll", "ragged.conll", "line 2 has 3 columns (expected 2, as in line 1)"],
    ),
    (["task.data.invalid_tags=refuse", "task.data.train=INVALID"], ["line 1 has tags that are invalid in the scheme"]),
    (["task.metric=pearson"], ["task.metric", "f1"]),
    (["losses={soft_targets: {head: token_classes}}"], ["losses.soft_targets", "the recipe has none"]),
    (["losses={soft_targets: {head: token_classes}}", "teacher.path=PLAIN"], ["which the teacher does not have"]),
    (
        ["losses={soft_targets: {head: token_classes}}", "teacher.path=TAGGER", "task.data.labels=[loc, per]"],
        ["losses.soft_targets", "O, B-per, I-per, B-loc, I-loc", "O, B-loc, I-loc, B-per, I-per"],
    ),
    (
        ["losses={soft_targets: {head: token_classes}}", "teacher.path=TAGGER", "task.data.labels=[per, loc, org]"],
        ["of classes, but the teacher has 5 and the student 7"],
    ),
    (["losses={soft_targets: {column: word_starts}}", "teacher.path=TAGGER"], ["losses.soft_targets.column", "head"]),
    (["task.data.max_length=100", "task.data.train=LONG"], ["expected at most 64", "lower task.data.max_length"]),
    (
        ["task.data.train=EMPTY", "task.data.tokens=tokens", "task.data.tags=tags"],
        ["task.data: the training texts contain no words"],
    ),
    (
        [
            *("task.data.train=EMPTY", "task.data.validation=EMPTY", "task.data.test=null"),
            *("task.data.tokens=tokens", "task.data.tags=tags"),
        ],
        ["task.data: the training texts contain no words"],
    ),
]


@pytest.mark.parametrize(("overrides", "words"), MISTAKES, ids=range(len(MISTAKES)))
def test_a_mistake_ends_with_code_2_before_anything_is_written(
    overrides: list[str],
    words: list[str],
    recipe: Path,
    tagger: Path,
    teacher_folder: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "ragged.conll").write_text("a O\nb x O\n", encoding="utf-8")
    (tmp_path / "invalid.conll").write_text("a I-per\n", encoding="utf-8")
    (tmp_path / "long.conll").write_text("the O\n" * 90, encoding="utf-8")
    (tmp_path / "empty.jsonl").write_text('{"tokens": [], "tags": []}\n', encoding="utf-8")
    places = {"RAGGED": "ragged.conll", "INVALID": "invalid.conll", "LONG": "long.conll", "EMPTY": "empty.jsonl"}
    places |= {"TAGGER": str(tagger), "PLAIN": str(teacher_folder)}
    for name, place in places.items():
        overrides = [override.replace(name, place) for override in overrides]
    assert main(["train", str(recipe), *overrides]) == 2
    error = capfd.readouterr().err
    for word in words:
        assert word in error, error
    assert not (tmp_path / "runs").exists()
