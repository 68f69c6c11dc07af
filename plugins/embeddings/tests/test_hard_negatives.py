"""Hard negatives, compared with a plain search, and `kdcore data mine`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kdcore_embeddings.data.texts import TextData, read_texts
from kdcore_embeddings.mining.hard_negatives import hard_negatives
from transformers import AutoTokenizer, BertForSequenceClassification

from kdcore.commands.main import main


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "manhattan"])
@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_negatives_are_those_of_a_search_written_out(similarity: str, margin: float) -> None:
    draw = np.random.default_rng(0)
    queries, documents = draw.standard_normal((40, 6)), draw.standard_normal((90, 6))
    documents[50:60] = documents[:10]  # equal scores
    positives = [2 * number for number in range(40)]
    excluded = [set(draw.choice(90, 5).tolist()) for _ in range(40)]

    def score(query: np.ndarray, document: np.ndarray) -> float:
        if similarity == "euclidean":
            return float(-((query - document) ** 2).sum())
        if similarity == "manhattan":
            return float(-np.abs(query - document).sum())
        product = float(query @ document)
        return product if similarity == "dot" else product / float(np.linalg.norm(query) * np.linalg.norm(document))

    found = hard_negatives(queries, documents, positives, excluded, count=7, margin=margin, similarity=similarity)
    sizes = set()
    for number, query in enumerate(queries):
        scores = [round(score(query, document), 5) for document in documents]
        own = scores[positives[number]]
        eligible = [
            index
            for index, value in enumerate(scores)
            if index != positives[number] and index not in excluded[number] and value <= own - margin * abs(own)
        ]
        expected = sorted(eligible, key=lambda index: (-scores[index], index))[:7]
        assert found[number].documents.tolist() == expected
        assert found[number].scores == pytest.approx([own, *(scores[index] for index in expected)], abs=1e-4)
        sizes.add(len(expected))
    assert 7 in sizes
    assert similarity == "dot" or len(sizes) > 1, "some queries have fewer"


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


@pytest.fixture
def pairs(tmp_path: Path, some_texts: list[str]) -> list[dict[str, Any]]:
    """Pairs of 30 queries, two of which have two documents."""
    found = [{"q": some_texts[n], "p": f"{some_texts[n]} of"} for n in range(30)]
    found += [{"q": some_texts[n], "p": some_texts[n + 30]} for n in range(2)]
    write(tmp_path / "pairs.jsonl", [*found, {"q": "", "p": "x"}])
    write(tmp_path / "more.jsonl", [{"text": text} for text in [*some_texts[40:60], some_texts[5], ""]])
    return found


@pytest.fixture
def reranker(teacher_folder: Path, tmp_path: Path) -> Path:
    torch.manual_seed(1)
    model = BertForSequenceClassification.from_pretrained(teacher_folder, num_labels=1)
    model.classifier.weight.data.normal_(std=1.0)
    model.save_pretrained(tmp_path / "reranker")
    AutoTokenizer.from_pretrained(teacher_folder, model_max_length=64).save_pretrained(tmp_path / "reranker")
    return tmp_path / "reranker"


def test_the_command_writes_groups_for_the_task(
    pairs: list[dict[str, Any]],
    tmp_path: Path,
    make_sentence_folder: Callable[..., Path],
    reranker: Path,
    some_texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    library = pytest.importorskip("sentence_transformers")
    monkeypatch.chdir(tmp_path)
    folder = make_sentence_folder(prompts={"query": "of ", "document": "the "})
    command = ["data", "mine", "pairs.jsonl", "--query", "q", "--positive", "p", "--teacher", str(folder)]
    command += ["--documents", "more.jsonl", "--negatives", "4", "--margin", "0.2"]
    assert main([*command, "--output", "mined.jsonl"]) == 0
    shown = capsys.readouterr()
    assert main([*command, "--output", "again.jsonl"]) == 0
    assert (tmp_path / "mined.jsonl").read_bytes() == (tmp_path / "again.jsonl").read_bytes()
    assert main([*command, "--output", "judged.jsonl", "--cross-encoder", str(reranker)]) == 0

    model = library.SentenceTransformer(str(folder), device="cpu")
    documents = list(dict.fromkeys([*(pair["p"] for pair in pairs), *some_texts[40:60], some_texts[5]]))
    vectors = model.encode(documents, prompt_name="document", normalize_embeddings=True)
    queries = model.encode([pair["q"] for pair in pairs], prompt_name="query", normalize_embeddings=True)
    expected = []
    for pair, scores in zip(pairs, queries @ vectors.T, strict=True):
        known = {other["p"] for other in pairs if other["q"] == pair["q"]} | {pair["q"]}
        limit = 0.8 * scores[documents.index(pair["p"])]
        eligible = [n for n, text in enumerate(documents) if text not in known and scores[n] <= limit]
        chosen = sorted(eligible, key=lambda n: -scores[n])[:4]
        expected.append((pair["q"], pair["p"], [documents[n] for n in chosen], [scores[n] for n in chosen]))
    rows = [json.loads(line) for line in (tmp_path / "mined.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = [one for one in expected if one[2]]
    assert [(row["query"], row["positive"], row["negatives"]) for row in rows] == [one[:3] for one in kept]
    for row, one in zip(rows, kept, strict=True):
        assert row["scores"][1:] == pytest.approx(one[3], abs=1e-5)
    judged = [json.loads(line) for line in (tmp_path / "judged.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row | {"scores": []} for row in judged] == [row | {"scores": []} for row in rows]
    texts = [(row["query"], text) for row in judged for text in (row["positive"], *row["negatives"])]
    logits = library.CrossEncoder(str(reranker), device="cpu").predict(texts, activation_fn=torch.nn.Identity())
    np.testing.assert_allclose([score for row in judged for score in row["scores"]], logits, atol=1e-5)
    assert np.std(logits) > 0.1
    short = sum(0 < len(one[2]) < 4 for one in expected)
    assert shown.out.splitlines() == [
        f"mined.jsonl: {len(kept)} groups written",
        f"mined.jsonl: {short} groups with fewer than 4 negatives",
        f"mined.jsonl: {len(pairs) - len(kept)} pairs left out without a negative",
    ]
    assert "1 groups without a query or a positive document left out" in shown.err
    assert "1 empty documents left out" in shown.err
    keys = {"query": "query", "positive": "positive", "negatives": "negatives", "scores": "scores"}
    part, _ = read_texts(TextData.model_validate({"train": "mined.jsonl", **keys}), Counter())
    assert len(part) == len(kept)


def test_mistakes_are_named(
    pairs: list[dict[str, Any]],
    tmp_path: Path,
    sentence_folder: Path,
    teacher_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "one.jsonl", [{"q": "a", "p": "b"}])
    (tmp_path / "there.jsonl").write_text("", encoding="utf-8")
    usual = ["--query", "q", "--positive", "p", "--teacher", str(sentence_folder)]
    cases = [
        (["pairs.jsonl", *usual, "--negatives", "0"], "--negatives must be at least 1 (found 0)"),
        (["pairs.jsonl", *usual, "--margin", "1"], "--margin must be at least 0 and below 1 (found 1)"),
        (["pairs.jsonl", *usual, "--output", "there.jsonl"], "there.jsonl: the file already exists"),
        (["pairs.jsonl", *usual, "--output", "a.csv"], "a.csv: --output: the name does not end with .jsonl"),
        (["pairs.jsonl", *usual[2:]], "has no column `query`"),
        (["none.jsonl", *usual], "none.jsonl"),
        (["one.jsonl", *usual], "none of 1 queries has a negative"),
        (["pairs.jsonl", *usual, "--documents", "one.jsonl"], "has no column `text`"),
        (["pairs.jsonl", *usual[:-1], str(tmp_path / "nowhere")], "nowhere"),
        (["pairs.jsonl", *usual, "--cross-encoder", str(teacher_folder)], "needs one output (found none with weights)"),
        (["pairs.jsonl", *usual, "--cross-encoder", str(tmp_path / "away")], "away: is not a cross-encoder"),
    ]
    for arguments, words in cases:
        output = [] if "--output" in arguments else ["--output", "new.jsonl"]
        assert main(["data", "mine", *arguments, *output]) == 2, arguments
        message = capsys.readouterr().err
        assert words in message, message
        assert "Traceback" not in message
        assert not (tmp_path / "new.jsonl").exists()
