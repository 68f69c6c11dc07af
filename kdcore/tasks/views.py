"""Build the teacher's batch of the same text, and the units of both batches, for a teacher with another tokenizer."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from kdcore.data.shards import NO_UNIT, TeacherView
from kdcore.signals import Batch, Units


def teacher_batch(
    view: TeacherView, real: NDArray[np.bool_], hidden: NDArray[np.bool_], mask_id: int
) -> tuple[Units, Batch]:
    """Build the units of the student's batch, and the teacher's batch with its units.

    The teacher sees no text that is hidden from the student: if a token of the student is hidden, all of the teacher's
    tokens in the same unit are replaced by its mask token. These tokens are the teacher's masked positions.

    Args:
        view: the teacher's tokens of the batch's sequences.
        real: (B, L) whether a position of the student's batch is not padding.
        hidden: (B, L) whether the student's input differs from the text.
        mask_id: id of the teacher's mask token.
    """
    longest = int(view.lengths.max())
    tokens = view.tokens[:, :longest].astype(np.int64)
    their_real = np.arange(longest) < view.lengths[:, None]
    own, theirs = view.student_units[:, : real.shape[1]].astype(np.int64), view.units[:, :longest].astype(np.int64)
    counts = np.where(theirs == NO_UNIT, 0, theirs + 1).max(axis=1)
    total, starts = int(counts.sum()), (np.cumsum(counts) - counts)[:, None]
    own, theirs = (np.where(side == NO_UNIT, total, side + starts) for side in (own, theirs))
    concealed = np.zeros(total + 1, np.bool_)
    concealed[own[hidden]] = True
    concealed[total] = False  # tokens without a unit
    masked = concealed[theirs]
    predicted = np.flatnonzero(masked)
    batch = Batch(
        input_ids=torch.from_numpy(np.where(masked, mask_id, tokens)),
        attention_mask=None if their_real.all() else torch.from_numpy(their_real),
        lengths=view.lengths.astype(np.int64),
        token_index=torch.from_numpy(np.flatnonzero(their_real)),
        masked_index=torch.from_numpy(predicted),
        masked_labels=torch.from_numpy(tokens.reshape(-1)[predicted]),
        units=_units(theirs[their_real], counts),
    )
    return _units(own[real], counts), batch


def _units(numbers: NDArray[np.int64], counts: NDArray[np.int64]) -> Units:
    """Group tokens by units, given each real token's unit in the batch and the units of each sequence."""
    order = np.argsort(numbers, kind="stable")
    starts = np.searchsorted(numbers[order], np.arange(int(counts.sum()) + 1))
    return Units(torch.from_numpy(order[: starts[-1]]), torch.from_numpy(starts[:-1]), counts)
