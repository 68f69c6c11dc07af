from __future__ import annotations

import itertools

import numpy as np
import pytest

from kdcore.data.splitting import Splitter
from kdcore.errors import DataError


def split(names: list[str], share: float, seed: int = 0) -> dict[str, list[int]]:
    splitter = Splitter(share, seed)
    placed: dict[str, list[int]] = {"train": [], "held_out": []}
    settled = [splitter.place(name, np.array([number], np.int32)) for number, name in enumerate(names)]
    for name, tokens in itertools.chain(*(list(each) for each in settled), splitter.finish()):
        placed[name].append(int(tokens[0]))
    return placed


def test_each_document_is_in_exactly_one_split() -> None:
    for count in range(2, 60):
        placed = split([str(number) for number in range(count)], 0.3)
        assert sorted(placed["train"] + placed["held_out"]) == list(range(count))
        assert placed["train"]
        assert placed["held_out"]


def test_the_share_is_about_what_was_asked_for() -> None:
    placed = split([str(number) for number in range(20_000)], 0.02)
    assert 300 < len(placed["held_out"]) < 500


def test_a_documents_split_depends_on_its_name_and_the_seed_alone() -> None:
    names = [str(number) for number in range(1000)]
    once, reverse, other = split(names, 0.1), split(names[::-1], 0.1), split(names, 0.1, seed=1)
    assert {names[number] for number in once["held_out"]} == {names[::-1][number] for number in reverse["held_out"]}
    assert set(once["held_out"]) != set(other["held_out"])


@pytest.mark.parametrize("share", [1e-9, 0.5])
def test_both_splits_get_a_document_however_few_there_are(share: float) -> None:
    for seed in range(20):
        placed = split(["a", "b"], share, seed)
        assert len(placed["train"]) == len(placed["held_out"]) == 1


def test_the_document_nearest_to_the_share_is_the_one_held_out() -> None:
    names = [str(number) for number in range(50)]
    (alone,) = split(names, 1e-9)["held_out"]
    assert alone in split(names, 0.1)["held_out"]
    assert split(names[::-1], 1e-9)["held_out"] == [49 - alone]


def test_nothing_is_held_out_with_a_share_of_zero() -> None:
    assert split(["a", "b", "c"], 0.0) == {"train": [0, 1, 2], "held_out": []}
    assert split(["a"], 0.0) == {"train": [0], "held_out": []}


def test_a_single_document_cannot_be_split() -> None:
    with pytest.raises(DataError, match=r"single document(.|\n)*set held_out to 0"):
        split(["a"], 0.1)


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_no_document_at_all_is_an_error(share: float) -> None:
    with pytest.raises(DataError, match="hold no text"):
        split([], share)
