from __future__ import annotations

import numpy as np
import pytest

from kdcore.data.packing import pack_document

CLS, SEP, PAD = 2, 3, 0


def pack_slowly(tokens: list[int], length: int) -> list[list[int]]:
    """The same, one token at a time."""
    sequences: list[list[int]] = []
    for token in tokens:
        if not sequences or len(sequences[-1]) == length - 1:
            sequences.append([CLS])
        sequences[-1].append(token)
    return [[*sequence, SEP] for sequence in sequences]


@pytest.mark.parametrize("length", [8, 9, 128])
def test_packing_is_what_a_token_by_token_computation_gives(length: int) -> None:
    random = np.random.default_rng(0)
    sizes = [1, 2, length - 3, length - 2, length - 1, 2 * (length - 2), *random.integers(1, 1000, 30)]
    for size in sizes:
        tokens = random.integers(5, 30_000, size, dtype=np.int32)
        rows, lengths = pack_document(tokens, length, cls_id=CLS, sep_id=SEP, pad_id=PAD)
        expected = pack_slowly(tokens.tolist(), length)
        assert [row[:end].tolist() for row, end in zip(rows, lengths, strict=True)] == expected
        assert all((row[end:] == PAD).all() for row, end in zip(rows, lengths, strict=True))
        assert rows.shape == (len(expected), length)


def test_no_tokens_give_no_sequence() -> None:
    rows, lengths = pack_document(np.empty(0, np.int32), 16, cls_id=CLS, sep_id=SEP, pad_id=PAD)
    assert rows.shape == (0, 16)
    assert lengths.shape == (0,)
