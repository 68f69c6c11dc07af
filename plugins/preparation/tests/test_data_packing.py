from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kdcore_preparation.pipeline.sequence_packing import Layout, Packer

from kdcore.data.tokenizers import SpecialIds

CLS, SEP, PAD = 2, 3, 0
IDS = SpecialIds(pad=PAD, cls=CLS, sep=SEP, mask=4, unk=1, all=(0, 1, 2, 3, 4))

Sentence = list[int]
Document = list[Sentence]


def pack(layout: Layout, calls: list[list[Document]], seed: int = 0) -> list[list[int]]:
    """Pack documents given as lists of sentences, some in each call; return sequences without padding."""
    packer = Packer(layout, IDS, np.random.default_rng(seed))
    sequences = []
    for documents in [*calls, None]:
        if documents is None:
            rows, lengths = packer.finish()
        else:
            tokens = [token for document in documents for sentence in document for token in sentence]
            document_ends = np.cumsum([sum(map(len, document)) for document in documents])
            sentence_ends = np.cumsum([len(sentence) for document in documents for sentence in document])
            rows, lengths = packer.add(np.array(tokens, np.int32), document_ends, sentence_ends)
        assert rows.shape == (len(lengths), layout.sequence_length)
        assert all((row[length:] == PAD).all() for row, length in zip(rows, lengths, strict=True))
        sequences += [row[:length].tolist() for row, length in zip(rows, lengths, strict=True)]
    return sequences


def numbered(sizes: list[list[int]]) -> list[Document]:
    """Return documents of sentences of these sizes, in which all tokens differ."""
    tokens = itertools.count(5)
    return [[[next(tokens) for _ in range(size)] for size in document] for document in sizes]


calls = st.lists(
    st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=5), min_size=1, max_size=5), min_size=1, max_size=3
).map(lambda sizes: [numbered(each) for each in sizes])
layouts = st.builds(
    Layout,
    sequence_length=st.integers(8, 24),
    packing=st.sampled_from(["document", "full"]),
    sentences=st.booleans(),
    short_sequences=st.sampled_from([0.0, 0.3, 1.0]),
)


@given(calls=calls, layout=layouts)
@settings(max_examples=300, deadline=None)
def test_each_token_is_in_one_sequence_once_and_in_order(calls: list[list[Document]], layout: Layout) -> None:
    sequences = pack(layout, calls)
    for sequence in sequences:
        assert sequence[0] == CLS
        assert sequence[-1] == SEP
        assert 3 <= len(sequence) <= layout.sequence_length
        assert SEP not in (sequence[1], sequence[-2]), "a separator with nothing to separate"
    expected = [token for call in calls for document in call for sentence in document for token in sentence]
    assert [token for sequence in sequences for token in sequence[1:-1] if token != SEP] == expected


@given(calls=calls, layout=layouts)
@settings(max_examples=150, deadline=None)
def test_it_does_not_matter_how_many_documents_come_at_once(calls: list[list[Document]], layout: Layout) -> None:
    documents = numbered([[len(sentence) for sentence in document] for call in calls for document in call])
    assert pack(layout, [documents]) == pack(layout, [[document] for document in documents])


@given(calls=calls, layout=layouts)
@settings(max_examples=150, deadline=None)
def test_sequences_keep_to_documents_or_separate_them(calls: list[list[Document]], layout: Layout) -> None:
    documents = numbered([[len(sentence) for sentence in document] for call in calls for document in call])
    document_of = {token: n for n, document in enumerate(documents) for sentence in document for token in sentence}
    for sequence in pack(layout, [documents]):
        pieces = [list(group) for separator, group in itertools.groupby(sequence[1:], SEP.__eq__) if not separator]
        owners = [{document_of[token] for token in piece} for piece in pieces]
        assert all(len(owner) == 1 for owner in owners)
        assert len(set.union(*owners)) == len(owners), "one document, and a separator inside it"
        assert layout.packing == "full" or len(owners) == 1


@given(calls=calls, layout=layouts)
@settings(max_examples=150, deadline=None)
def test_a_sentence_that_fits_a_sequence_is_not_cut(calls: list[list[Document]], layout: Layout) -> None:
    documents = numbered([[len(sentence) for sentence in document] for call in calls for document in call])
    sequence_of = {
        token: number
        for number, sequence in enumerate(pack(replace(layout, sentences=True), [documents]))
        for token in sequence
    }
    for sentence in itertools.chain.from_iterable(documents):
        if len(sentence) <= layout.room:
            assert len({sequence_of[token] for token in sentence}) == 1


def pack_slowly(documents: list[Document], length: int) -> list[list[int]]:
    """Sequences within documents, one token at a time."""
    sequences: list[list[int]] = []
    for document in documents:
        fresh = True
        for token in itertools.chain.from_iterable(document):
            if fresh or len(sequences[-1]) == length - 1:
                sequences.append([CLS])
            fresh = False
            sequences[-1].append(token)
    return [[*sequence, SEP] for sequence in sequences]


@pytest.mark.parametrize("length", [8, 9, 128])
def test_packing_within_documents_is_what_a_token_by_token_computation_gives(length: int) -> None:
    random = np.random.default_rng(0)
    sizes = [1, 2, length - 3, length - 2, length - 1, 2 * (length - 2), *random.integers(1, 1000, 30).tolist()]
    documents = numbered([[size] for size in sizes])
    assert pack(Layout(length), [documents]) == pack_slowly(documents, length)


def test_full_sequences_waste_no_place_but_in_the_last_one() -> None:
    documents = numbered([[size] for size in range(1, 60)])
    sequences = pack(Layout(16, "full"), [documents])
    # One position may stay empty if there is no room for both a separator and a token of the next document.
    assert all(len(sequence) >= 15 for sequence in sequences[:-1])


def test_full_sentences_fill_sequences_as_far_as_whole_sentences_go() -> None:
    documents = numbered([[4, 4, 4], [4, 20], [3]])
    one, other, last = documents
    sequences = pack(Layout(12, "full", sentences=True), [documents])
    assert sequences == [
        [CLS, *one[0], *one[1], SEP],
        [CLS, *one[2], SEP, *other[0], SEP],
        [CLS, *other[1][:10], SEP],
        [CLS, *other[1][10:], SEP],
        [CLS, *last[0], SEP],
    ]


def test_about_the_asked_share_of_sequences_is_short_and_their_lengths_are_spread_evenly() -> None:
    (document,) = numbered([[200_000]])
    sizes = np.array([len(sequence) - 2 for sequence in pack(Layout(66, short_sequences=0.25), [[document]])])
    short = sizes[sizes < 64]
    assert 0.22 < len(short) / len(sizes) < 0.28
    assert short.min() == 2
    assert 30 < short.mean() < 36


def test_short_sequences_are_drawn_by_the_seed_alone() -> None:
    (document,) = numbered([[2000]])
    layout = Layout(32, short_sequences=0.5)
    assert pack(layout, [[document]], seed=1) == pack(layout, [[document]], seed=1)
    assert pack(layout, [[document]], seed=1) != pack(layout, [[document]], seed=2)


def test_no_documents_give_no_sequence() -> None:
    assert pack(Layout(16), []) == pack(Layout(16, "full"), []) == []
