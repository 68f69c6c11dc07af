"""Retrieval of second halves, and values of single texts, against their definitions in plain code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from kdcore_evaluation.probes.probing import run_probe
from kdcore_evaluation.probes.retrieval import halves, passages_of, ranks
from kdcore_evaluation.probes.similarity import rank_correlation, rank_correlation_values
from kdcore_evaluation.run.item_scores import StoredValues
from kdcore_evaluation.run.outcomes import read_outcome, write_outcome
from scipy.stats import spearmanr

from kdcore import open_data


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one two three four", ("one two", "three four")),
        ("a bcdefghijkl", ("a bcde", "fghijkl")),  # the white space is far from the middle
        ("一二三四五六", ("一二三", "四五六")),
        ("ab\ncd", ("ab", "cd")),
        ("x", ("", "x")),
    ],
)
def test_a_text_is_cut_at_the_white_space_nearest_to_its_middle(text: str, expected: tuple[str, str]) -> None:
    assert halves(text) == expected


def test_ranks_are_those_of_sorted_cosines() -> None:
    draw = np.random.default_rng(0)
    queries, candidates = draw.normal(size=(2, 20, 5))
    candidates *= draw.uniform(0.1, 10, (20, 1))  # the length of an embedding does not matter
    expected = []
    for number, query in enumerate(queries):
        cosines = [query @ own / np.linalg.norm(query) / np.linalg.norm(own) for own in candidates]
        expected.append(sorted(range(20), key=lambda index: -cosines[index]).index(number) + 1)
    assert ranks(queries, candidates).tolist() == expected
    assert len(set(expected)) > 5


def test_a_collapsed_encoder_finds_nothing() -> None:
    same = np.tile([1.0, -2.0, 0.5], (30, 1))
    assert ranks(same, same).tolist() == [30] * 30, "ties do not count as found"
    assert ranks(np.zeros((4, 3)), np.zeros((4, 3))).tolist() == [4] * 4


def test_jackknife_values_have_the_correlation_as_mean_and_its_error() -> None:
    draw = np.random.default_rng(1)
    points = draw.normal(size=(25, 3))
    first = points @ points.T
    second = first + draw.normal(size=(25, 25)) * 0.5
    second = second + second.T
    above = np.triu_indices(25, 1)
    values = rank_correlation_values(first, second)
    assert values.mean() == pytest.approx(rank_correlation(first[above], second[above]), abs=1e-12)
    without = []
    for text in range(25):
        kept = [index for index in range(25) if index != text]
        pairs = [(i, j) for i in kept for j in kept if i < j]
        without.append(spearmanr([first[pair] for pair in pairs], [second[pair] for pair in pairs]).statistic)
    error = np.sqrt(24 / 25 * ((np.array(without) - np.mean(without)) ** 2).sum())  # Efron and Stein 1981
    assert values.std(ddof=1) / np.sqrt(25) == pytest.approx(error, rel=1e-9)


def test_stored_values_are_read_for_their_own_score_only(tmp_path: Path) -> None:
    import pyarrow

    items = {"held_out": pyarrow.table({"id": [3, 5, 8], "recall_at_1": [1.0, 0.0, 0.5]})}
    write_outcome(tmp_path, {"measured": [{"metric": "recall_at_1"}], "items": items})
    assert "items" not in json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert read_outcome(tmp_path) is not None
    path = tmp_path / "predictions" / "held_out.parquet"
    found = StoredValues(path, "data").item_scores("recall_at_1", 0.5)
    assert found is not None
    assert found.values.tolist() == [1.0, 0.0, 0.5]
    other = StoredValues(path, "other data").item_scores("recall_at_1", 0.5)
    assert other is not None
    assert other.texts != found.texts, "numbers of other data are other texts"
    assert StoredValues(path, "data").item_scores("recall_at_1", 0.6) is None, "values of another score"
    assert StoredValues(path, "data").item_scores("reciprocal_rank", 0.5) is None, "no such column"
    path.write_bytes(b"damaged")
    assert StoredValues(path, "damaged").item_scores("recall_at_1", 0.5) is None
    assert StoredValues(tmp_path / "none.parquet", "").item_scores("recall_at_1", 0.5) is None


@torch.no_grad()
def test_retrieval_is_a_plain_computation(teacher_folder: Path, corpus_file: Path, cache_folder: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    corpora = [{"name": "text", "path": str(corpus_file), "documents": "lines"}]
    data = {"tokenizer": str(teacher_folder), "sequence_length": 16, "held_out": 0.3, "corpora": corpora}
    prepared = open_data(data, cache_folder)
    rows, lengths = prepared.split("held_out").rows(np.arange(len(prepared.split("held_out"))))
    model, tokenizer = (one.from_pretrained(teacher_folder) for one in (AutoModel, AutoTokenizer))
    texts, seen = {}, set()
    for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        sides = halves(tokenizer.decode(row[1 : length - 1]))
        if length >= 8 and all(sides) and not seen & {(0, sides[0]), (1, sides[1])}:
            seen |= {(0, sides[0]), (1, sides[1])}
            texts[number] = sides
    assert len(texts) > 20

    def embedded(text: str) -> np.ndarray:
        state = model.eval()(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        return (state / state.norm()).double().numpy()

    queries, candidates = (np.stack([embedded(sides[side]) for sides in texts.values()]) for side in (0, 1))
    order = np.argsort(-(queries @ candidates.T), axis=1)
    places = [order[row].tolist().index(row) + 1 for row in range(len(texts))]
    outcome = run_probe("retrieval", {"data": data, "passages": 5000}, str(teacher_folder), None, cache_folder)
    values = {one["metric"]: one for one in outcome["measured"]}
    assert values["recall_at_1"]["value"] == pytest.approx(np.mean([place == 1 for place in places]))
    assert values["reciprocal_rank"]["value"] == pytest.approx(np.mean([1 / place for place in places]))
    assert {one["examples"] for one in outcome["measured"]} == {len(texts)}
    table = outcome["items"]["held_out"].to_pydict()
    assert table["id"] == list(texts)
    assert table["reciprocal_rank"] == pytest.approx([1 / place for place in places])
    some = passages_of(prepared, 5)[2]
    assert len(some) == 5
    assert set(some.tolist()) <= set(texts)
