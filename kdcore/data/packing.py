"""A document's tokens as sequences `[CLS] ... [SEP]` that never cross its ends."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SPECIAL_TOKENS_A_SEQUENCE = 2


def pack_document(
    tokens: NDArray[np.int32], sequence_length: int, *, cls_id: int, sep_id: int, pad_id: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Cut a document into sequences; every token is in exactly one of them, in order.

    All sequences but the last are full; the last one is as short as what is left, and is kept however short it is.

    Args:
        tokens: (tokens,) ids without special tokens.
        sequence_length: tokens a row, [CLS] and [SEP] included.
        cls_id: starts each sequence.
        sep_id: ends each sequence.
        pad_id: fills the last row.

    Returns:
        Rows (sequences, sequence_length) and their lengths (sequences,), special tokens included; no row for no token.
    """
    room = sequence_length - SPECIAL_TOKENS_A_SEQUENCE
    sequences = -(-tokens.size // room)
    rows = np.full((sequences, sequence_length), pad_id, dtype=np.int32)
    lengths = np.full(sequences, sequence_length, dtype=np.int32)
    if not sequences:
        return rows, lengths
    full = sequences - 1
    rest = tokens.size - full * room
    rows[:, 0] = cls_id
    rows[:full, 1:-1] = tokens[: full * room].reshape(full, room)
    rows[:full, -1] = sep_id
    rows[full, 1 : 1 + rest] = tokens[full * room :]
    rows[full, 1 + rest] = sep_id
    lengths[full] = rest + SPECIAL_TOKENS_A_SEQUENCE
    return rows, lengths
