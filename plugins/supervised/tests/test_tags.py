"""Tags and spans against seqeval, an independent implementation, and against sequences written by hand."""

from __future__ import annotations

import numpy as np
import pytest
from kdcore_supervised.span_metrics import SpanScores
from kdcore_supervised.tags import TaggedSpan, TagScheme, output_tags, spans_of, tag_problem, tags_of
from seqeval.metrics import accuracy_score, classification_report, f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB1, IOB2, IOBES, Entities

TYPES = ("person", "geo-loc", "B")
STRICT = {"bio": IOB2, "bioes": IOBES, "iob1": IOB1}


def random_tags(seed: int, scheme: TagScheme, count: int = 200) -> list[list[str]]:
    """Any tags in any order: most sequences are invalid."""
    draw = np.random.default_rng(seed)
    tags = output_tags(TYPES, scheme)
    weights = np.array([len(tags)] + [1] * (len(tags) - 1), dtype=float)
    return [draw.choice(tags, draw.integers(1, 15), p=weights / weights.sum()).tolist() for _ in range(count)]


def random_spans(seed: int, length: int) -> list[TaggedSpan]:
    draw = np.random.default_rng(seed)
    spans, place = [], 0
    while place < length:
        end = min(length, place + int(draw.integers(1, 4)))
        if draw.random() < 0.6:
            spans.append(TaggedSpan(place, end, str(draw.choice(TYPES))))
        place = end
    return spans


@pytest.mark.parametrize("scheme", ["bio", "bioes", "iob1"])
def test_spans_of_any_tags_are_those_of_seqeval(scheme: TagScheme) -> None:
    for tags in random_tags(1, scheme, 500):
        expected = [TaggedSpan(start, end + 1, type_) for type_, start, end in get_entities(tags)]
        assert spans_of(tags) == expected, tags


@pytest.mark.parametrize("scheme", ["bio", "bioes", "iob1"])
def test_tags_of_spans_are_valid_for_seqeval_and_are_read_back(scheme: TagScheme) -> None:
    for seed in range(200):
        spans = random_spans(seed, 12)
        tags = tags_of(spans, 12, scheme)
        assert all(tag_problem(tag, TYPES, scheme) is None for tag in tags)
        assert spans_of(tags) == spans
        strict = Entities([tags], scheme=STRICT[scheme]).entities[0]
        assert [(one.start, one.end, one.tag) for one in strict] == spans


def test_tags_written_by_hand() -> None:
    spans = [TaggedSpan(0, 1, "a"), TaggedSpan(1, 3, "a"), TaggedSpan(4, 7, "b")]
    assert tags_of(spans, 8, "bio") == ["B-a", "B-a", "I-a", "O", "B-b", "I-b", "I-b", "O"]
    assert tags_of(spans, 8, "bioes") == ["S-a", "B-a", "E-a", "O", "B-b", "I-b", "E-b", "O"]
    assert tags_of(spans, 8, "iob1") == ["I-a", "B-a", "I-a", "O", "I-b", "I-b", "I-b", "O"]
    assert spans_of(["I-a", "I-b", "O", "E-a", "I-a"]) == [
        TaggedSpan(0, 1, "a"),
        TaggedSpan(1, 2, "b"),
        TaggedSpan(3, 4, "a"),
        TaggedSpan(4, 5, "a"),
    ]
    assert output_tags(["a", "b"], "iob1") == ("O", "B-a", "I-a", "B-b", "I-b")


@pytest.mark.parametrize("scheme", ["bio", "bioes"])
def test_scores_are_those_of_seqeval(scheme: TagScheme) -> None:
    true, predicted = random_tags(2, scheme), []
    for tags, other in zip(true, random_tags(3, scheme), strict=True):
        keep = np.random.default_rng(len(tags)).random(len(tags)) < 0.7
        predicted.append(
            [one if kept else two for one, two, kept in zip(tags, (other * len(tags))[: len(tags)], keep, strict=True)]
        )
    scores = SpanScores([*TYPES, "absent"])
    for own, theirs in zip(true, predicted, strict=True):
        scores.add(spans_of(own), spans_of(theirs), len(own))
    found = scores.values()
    assert 0.2 < found["f1"] < 0.9
    assert found["precision"] == pytest.approx(precision_score(true, predicted))
    assert found["recall"] == pytest.approx(recall_score(true, predicted))
    assert found["f1"] == pytest.approx(f1_score(true, predicted))
    valid = [[tags_of(spans_of(tags), len(tags), "bio") for tags in side] for side in (true, predicted)]
    assert found["accuracy"] == pytest.approx(accuracy_score(*valid))
    report = classification_report(true, predicted, output_dict=True)
    for name in TYPES:
        for metric, theirs in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
            assert found[f"{metric}_{name}"] == pytest.approx(report[name][theirs])
    assert (found["precision_absent"], found["recall_absent"], found["f1_absent"]) == (0.0, 0.0, 0.0)


def test_scores_without_any_span_are_0() -> None:
    scores = SpanScores(["a"])
    scores.add([], [], 0)
    assert set(scores.values().values()) == {0.0}
