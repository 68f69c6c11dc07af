"""The split of a document depends only on its content and the seed."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from kdcore_preparation.pipeline.duplicates import content_keys, count_repeated
from kdcore_preparation.pipeline.held_out import point_to_move, points_of, points_of_contents, refuse_single_content

from kdcore.errors import DataError


def held_out(texts: list[str], share: float, seed: int = 0) -> set[str]:
    points = points_of_contents(content_keys(texts), seed)
    return {text for text, point in zip(texts, points, strict=True) if point < share}


def test_the_share_is_about_what_was_asked_for() -> None:
    assert 300 < len(held_out([str(number) for number in range(20_000)], 0.02)) < 500


def test_a_documents_split_depends_on_its_content_and_the_seed_alone() -> None:
    names = [str(number) for number in range(1000)]
    assert held_out(names, 0.1) & set(names[:500]) == held_out(names[:500], 0.1)
    assert held_out(names, 0.1) < held_out(names, 0.2)
    assert held_out(names, 0.1) != held_out(names, 0.1, seed=1)


def test_what_cannot_be_written_as_utf8_has_a_place_too() -> None:
    assert 0 <= points_of(0, ["\ud800"], 0)[0] < 1
    assert len(set(content_keys(["\ud800", "\ud801"]).tolist())) == 2


def test_nothing_moves_where_both_splits_have_documents_or_nothing_is_held_out() -> None:
    assert point_to_move({"train": 1, "held_out": 1}, [0.4], 0.5) is None
    assert point_to_move({"train": 1, "held_out": 0}, [0.1], 0.0) is None


@pytest.mark.parametrize("empty", ["train", "held_out"])
def test_the_documents_nearest_to_the_share_move_to_a_split_that_would_stay_empty(empty: str) -> None:
    documents = {"train": 5, "held_out": 5, empty: 0}
    assert point_to_move(documents, [0.5, None, 0.3, 0.4], 0.2) == 0.3
    assert point_to_move(documents, [0.1, None, 0.3, 0.16], 0.2) == 0.16


def test_a_single_document_cannot_be_split() -> None:
    with pytest.raises(DataError, match=r"single document(.|\n)*set held_out to 0"):
        point_to_move({"train": 1, "held_out": 0}, [0.1], 0.1)


def test_documents_of_a_single_content_cannot_be_split() -> None:
    refuse_single_content({"train": 4, "held_out": 1})
    with pytest.raises(DataError, match=r"4 documents differ in case(.|\n)*set held_out to 0"):
        refuse_single_content({"train": 0, "held_out": 4})


def test_groups_of_sequences_are_not_moved() -> None:
    with pytest.raises(DataError, match=r"selects sequences for the split `held_out`(.|\n)*raise held_out"):
        point_to_move({"train": 7, "held_out": 0}, [None], 0.1)


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_no_document_at_all_is_an_error(share: float) -> None:
    with pytest.raises(DataError, match="contain no text"):
        point_to_move({"train": 0, "held_out": 0}, [None], share)


def test_a_point_is_64_bits_of_a_hash_of_seed_corpus_and_name() -> None:
    digest = hashlib.blake2b(b"7\x002:a", digest_size=8).digest()
    assert points_of(2, ["a"], 7).tolist() == [int.from_bytes(digest, "big") / 2**64]


def test_points_are_spread_evenly_and_independent_of_the_seed() -> None:
    keys = content_keys([str(number) for number in range(50_000)])
    first, second = points_of_contents(keys, 0), points_of_contents(keys, 1)
    counts = np.histogram2d(first, second, bins=10, range=[[0, 1], [0, 1]])[0]
    # 500 are expected in each of 100 cells, with a standard deviation of 22.
    assert counts.min() > 380
    assert counts.max() < 620
    consecutive = points_of_contents(np.arange(50_000, dtype=np.uint64), 0)
    assert np.histogram(consecutive, bins=10, range=(0, 1))[0].min() > 4500


SAME = [
    ("It is late.", "IT IS LATE!"),
    ("one\ntwo  three", "one two three"),
    ("“Straße” — he said…", "'STRASSE' - he said..."),
    ("a\u00a0b\u3000c", "a b c"),
    ("これは、本です。", "これは本です"),
    ("¿Qué? «Sí»", "Qué Sí"),
    ("co-operate\u200b", "cooperate"),
    ("مرحبا، كيف؟", "مرحبا كيف"),
]
OTHER = [("one two", "two one"), ("résumé", "resume"), ("...", "!!!"), ("a1", "a2"), ("々", "本"), ("½", "1")]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_case_white_space_and_punctuation_do_not_count_as_content(one: str, other: str) -> None:
    first, second = content_keys([one, other]).tolist()
    assert first == second


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_anything_else_counts_as_content(one: str, other: str) -> None:
    first, second = content_keys([one, other]).tolist()
    assert first != second


def test_a_key_is_64_bits_of_a_hash_of_the_folded_text_whatever_texts_are_around() -> None:
    """Stored keys and splits depend on it."""
    contents = {"It’s late!": "itslate", "本。Ä": "本ä", "": "", "...": "...", "。": "。", "A\u0130 b": "ai\u0307b"}
    expected = [
        int.from_bytes(hashlib.blake2b(one.encode(), digest_size=8).digest(), "big") for one in contents.values()
    ]
    assert content_keys(list(contents)).tolist() == expected
    assert [content_keys([one]).tolist()[0] for one in contents] == expected


def test_repeated_keys_are_counted() -> None:
    random = np.random.default_rng(0)
    keys = [random.integers(0, 2**64, size, np.uint64) for size in (1000, 0, 500)]
    keys.append(np.concatenate([keys[0][:300], keys[0][:100], random.integers(0, 2**64, 10, np.uint64)]))
    assert count_repeated(keys) == 400
    assert count_repeated([]) == 0
