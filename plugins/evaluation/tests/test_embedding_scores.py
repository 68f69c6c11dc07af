"""Scores of embeddings by `kdcore evaluate`, against the evaluators of sentence-transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kdcore_evaluation.probes.embedding_scores import classification_values, correlation_values
from kdcore_evaluation.run.evaluated_models import find_models
from kdcore_evaluation.run.results import ResultRow, read_rows
from kdcore_evaluation.run.scores import score_table
from kdcore_evaluation.run.suite import Suite
from kdcore_evaluation.run.trials import make_trials
from scipy.stats import spearmanr

from kdcore import load_config
from kdcore.commands.main import main

SUITE = """\
name: sentences
seeds: []
probes:
  cost: {batch_size: 2, sequence_length: 16, latency: [1, 3]}
  embeddings:
    tasks:
      scored: {path: pairs.jsonl, texts: [a, b], score: score}
      labelled: {path: pairs.csv, texts: [a, b], label: same}
      searched: {path: groups.jsonl, query: q, positive: p}
"""
WORDS = ["the", "teacher", "of", "student", "and", "abc", "efg"]
TEXTS = [" ".join(WORDS[(i * k + k // 3) % 7] for i in range(1, 2 + k % 17)) + f" {k}" for k in range(70)]
DRAW = np.random.default_rng(0)
PAIRS: list[dict[str, Any]] = [
    {
        "a": TEXTS[n],
        "b": TEXTS[(n * 3 + 1) % 70],
        "score": float(DRAW.integers(0, 6)),
        "same": int(DRAW.integers(0, 2)),
        "note": "x",
    }
    for n in range(70)
]
GROUPS: list[dict[str, Any]] = [{"q": TEXTS[n % 50], "p": f"{TEXTS[(n * 11 + 3) % 70]} of"} for n in range(60)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, teacher_folder: Path) -> Path:
    """A sentence encoder with pooling by the first token, prompts and 24 tokens; texts; and the evaluation of it."""
    folder = tmp_path_factory.mktemp("sentences")
    shutil.copytree(teacher_folder, folder / "model")

    def write(name: str, content: Any) -> None:
        path = folder / "model" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")

    kinds = {"": "Transformer", "1_Pooling": "Pooling"}
    types = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    write("modules.json", [{"idx": n, "name": str(n), **one} for n, one in enumerate(types)])
    write("sentence_bert_config.json", {"max_seq_length": 24, "do_lower_case": False})
    write("1_Pooling/config.json", {"word_embedding_dimension": 32, "pooling_mode_cls_token": True})
    write(
        "config_sentence_transformers.json",
        {
            "prompts": {"query": "of ", "document": "the ", "pair": "and "},
            "default_prompt_name": "pair",
            "similarity_fn_name": "dot",
        },
    )
    for name, rows in (("pairs", [*PAIRS, {**PAIRS[0], "a": " "}]), ("groups", GROUPS)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    lines = [f"{pair['a']},{pair['b']},{'true' if pair['same'] else 'False'},x" for pair in PAIRS]
    (folder / "pairs.csv").write_text("a,b,same,note\n" + "\n".join(lines), encoding="utf-8")
    (folder / "suite.yaml").write_text(SUITE, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[ResultRow]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["evaluate", "model", "--on", "suite.yaml"]) == 0
    return read_rows(folder / "evaluations" / "sentences")


def test_scores_are_those_of_sentence_transformers(folder: Path, rows: list[ResultRow]) -> None:
    library = pytest.importorskip("sentence_transformers")
    evaluation = pytest.importorskip("sentence_transformers.sentence_transformer.evaluation")
    model = library.SentenceTransformer(str(folder / "model"), device="cpu")
    first, second = ([pair[side] for pair in PAIRS] for side in "ab")
    plain: dict[str, Any] = {"show_progress_bar": False, "write_csv": False}
    scored = evaluation.EmbeddingSimilarityEvaluator(
        first, second, [pair["score"] / 5 for pair in PAIRS], main_similarity="cosine", **plain
    )(model)
    same = [pair["same"] for pair in PAIRS]
    labelled = evaluation.BinaryClassificationEvaluator(first, second, same, similarity_fn_names=["cosine"], **plain)(
        model
    )
    queries = {text: text for text in dict.fromkeys(group["q"] for group in GROUPS)}
    corpus = {text: text for text in dict.fromkeys(group["p"] for group in GROUPS)}
    relevant: dict[str, set[str]] = {}
    for group in GROUPS:
        relevant.setdefault(group["q"], set()).add(group["p"])
    searched = evaluation.InformationRetrievalEvaluator(
        queries, corpus, relevant, **plain, precision_recall_at_k=[1, 10], map_at_k=[10],
        score_functions={"dot": library.util.dot_score}, query_prompt_name="query", corpus_prompt_name="document",
    )(model)  # fmt: skip
    found = {(row.task, row.metric): row.value for row in rows if row.kind == "embeddings"}
    expected = {
        ("scored", "spearman"): scored["spearman_cosine"],
        ("labelled", "accuracy"): labelled["cosine_accuracy"],
        ("labelled", "average_precision"): labelled["cosine_ap"],
        ("searched", "ndcg_at_10"): searched["dot_ndcg@10"],
        ("searched", "mrr_at_10"): searched["dot_mrr@10"],
        ("searched", "recall_at_1"): searched["dot_recall@1"],
        ("searched", "recall_at_10"): searched["dot_recall@10"],
    }
    assert found == pytest.approx(expected, abs=1e-6)
    assert {row.examples for row in rows if row.task == "searched"} == {len(queries)}


def test_scores_are_in_the_table_with_intervals_over_texts(
    folder: Path, rows: list[ResultRow], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = score_table(rows, folder / "evaluations" / "sentences")
    (scores,) = table.groups.values()
    by_title = {column.title: score for column, score in scores.items()}
    for title in ("scored Spearman", "labelled accuracy", "searched nDCG@10", "searched recall@10"):
        assert by_title[title].interval is not None, title
        assert by_title[title].texts in (50, 70)
    assert by_title["labelled average precision"].interval is None, "it is not a mean over texts"
    latency = by_title["latency of 1"].mean
    assert 0 < latency < 1
    monkeypatch.chdir(folder)
    assert main(["evaluate", "model", "--on", "suite.yaml"]) == 0
    shown = capsys.readouterr()
    assert "4 of 4 trials are already finished" in shown.err
    assert "scored: 1 pairs with an empty text left out" in shown.err
    assert "searched nDCG@10" in shown.out
    assert f"{latency * 1e3:.1f} ms" in shown.out


def test_other_modules_behind_the_same_encoder_are_another_trial(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    suite = load_config(folder / "suite.yaml", Suite)
    texts = dict.fromkeys(("embeddings scored", "embeddings labelled", "embeddings searched"), "content")
    shutil.copytree(folder / "model", tmp_path / "other")
    pooling = {"word_embedding_dimension": 32, "pooling_mode_max_tokens": True}
    (tmp_path / "other/1_Pooling/config.json").write_text(json.dumps(pooling), encoding="utf-8")
    models = [find_models([str(path)], None, [], print) for path in (folder / "model", tmp_path / "other")]
    first, second = ({trial.task: trial.id for trial in make_trials(suite, own, {}, texts)} for own in models)
    assert {task for task, name in first.items() if name != second[task]} == {"scored", "labelled", "searched"}
    assert first[None] == second[None], "the encoder's cost is the same"


def test_values_of_a_correlation_are_those_of_the_jackknife() -> None:
    draw = np.random.default_rng(2)
    cosines, scores = draw.integers(0, 9, 30) / 9.0, draw.integers(0, 5, 30).astype(float)  # with ties
    value, values = correlation_values(cosines, scores)["spearman"]
    assert value == pytest.approx(spearmanr(cosines, scores).statistic)
    without = np.array([spearmanr(np.delete(cosines, n), np.delete(scores, n)).statistic for n in range(30)])
    assert values is not None
    np.testing.assert_allclose(values, value + 29 * (without.mean() - without))
    assert correlation_values(np.ones(30), scores)["spearman"] == (0.0, None)


def test_equal_cosines_are_not_separated_by_a_threshold() -> None:
    labels = np.array([1.0, 0, 1, 0, 0])
    assert classification_values(np.ones(5), labels)["accuracy"][0] == 3 / 5  # all of one class
    accuracy, correct = classification_values(np.array([0.9, 0.8, 0.8, 0.1, 0.2]), labels)["accuracy"]
    assert accuracy == 4 / 5
    assert correct is not None
    assert correct.mean() == accuracy


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("score: score", "score: scor", ["probes.embeddings.tasks.scored", "pairs.jsonl", "no column `scor`"]),
        ("score: score", "score: note", ["line 1 has 'x' under `note` (expected a finite number)"]),
        ("label: same", "label: note", ["line 2 has 'x' under `note` (expected 0 or 1)"]),
        ("path: pairs.csv", "path: none.csv", ["none.csv", "probes.embeddings.tasks.labelled"]),
        ("score: score", "score: b", ["names a column twice (a, b, b)"]),
        (", score: score", "", ["needs `texts` and `score`, `texts` and `label`, or `query` and `positive`"]),
        ("positive: p", "positive: q", ["contains no groups to train on", "whose positive document is the query"]),
    ],
)
def test_mistakes_are_named(
    old: str, new: str, words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(folder)
    (folder / "wrong.yaml").write_text(SUITE.replace(old, new), encoding="utf-8")
    assert main(["evaluate", "model", "--on", "wrong.yaml", "--output", str(tmp_path / "none")]) == 2
    message = capsys.readouterr().err
    for word in words:
        assert word in message, message
    assert "Traceback" not in message
