from __future__ import annotations

import hashlib

import pytest
from kdcore_preparation.pipeline.held_out import Nearest, document_to_move, points_of

from kdcore.errors import DataError


def held_out(names: list[str], share: float, seed: int = 0) -> set[str]:
    return {name for name, point in zip(names, points_of(0, names, seed), strict=True) if point < share}


def test_the_share_is_about_what_was_asked_for() -> None:
    assert 300 < len(held_out([str(number) for number in range(20_000)], 0.02)) < 500


def test_a_documents_split_depends_on_its_name_and_the_seed_alone() -> None:
    names = [str(number) for number in range(1000)]
    assert held_out(names, 0.1) & set(names[:500]) == held_out(names[:500], 0.1)
    assert held_out(names, 0.1) < held_out(names, 0.2)
    assert held_out(names, 0.1) != held_out(names, 0.1, seed=1)


def test_names_that_cannot_be_written_as_utf8_have_a_place_too() -> None:
    assert 0 <= points_of(0, ["\ud800"], 0)[0] < 1


def test_nobody_moves_where_both_splits_have_documents_or_none_shall_be_held_out() -> None:
    nearest = [Nearest(0.1, 0)]
    assert document_to_move({"train": 1, "held_out": 1}, nearest, 0.5) is None
    assert document_to_move({"train": 1, "held_out": 0}, nearest, 0.0) is None


@pytest.mark.parametrize("empty", ["train", "held_out"])
def test_the_document_nearest_to_the_share_moves_to_a_split_that_would_stay_empty(empty: str) -> None:
    documents = {"train": 5, "held_out": 5, empty: 0}
    nearest = [Nearest(0.3, 4), None, Nearest(0.1, 2), Nearest(0.2, 0)]
    assert document_to_move(documents, nearest, 0.2) == (2, 2)


def test_a_single_document_cannot_be_split() -> None:
    with pytest.raises(DataError, match=r"single document(.|\n)*set held_out to 0"):
        document_to_move({"train": 1, "held_out": 0}, [Nearest(0.1, 0)], 0.1)


def test_sequences_that_all_name_their_split_cannot_be_moved() -> None:
    with pytest.raises(DataError, match="none to `held_out`"):
        document_to_move({"train": 7, "held_out": 0}, [None], 0.1)


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_no_document_at_all_is_an_error(share: float) -> None:
    with pytest.raises(DataError, match="contain no text"):
        document_to_move({"train": 0, "held_out": 0}, [None], share)


def test_a_point_is_64_bits_of_a_hash_of_seed_corpus_and_name() -> None:
    digest = hashlib.blake2b(b"7\x002:a", digest_size=8).digest()
    assert points_of(2, ["a"], 7).tolist() == [int.from_bytes(digest, "big") / 2**64]
