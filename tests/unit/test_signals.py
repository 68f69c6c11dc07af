"""What is asked for, and how answers are read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdcore import Batch, Requests, Signals
from kdcore.signals import AttentionTap


def ragged_batch() -> Batch:
    lengths = np.array([3, 1, 2])
    real = np.arange(3) < lengths[:, None]
    return Batch(
        input_ids=torch.arange(9).reshape(3, 3),
        attention_mask=torch.from_numpy(real),
        lengths=lengths,
        token_index=torch.from_numpy(np.flatnonzero(real)),
        masked_index=torch.tensor([1, 6]),
        masked_labels=torch.tensor([7, 8]),
    )


@pytest.mark.parametrize(
    ("request_", "depth"),
    [
        (Signals.hidden([]), 0),
        (Signals.hidden(["embeddings"]), 0),
        (Signals.hidden([2, 0]), 3),
        (Signals.attention(["query"], [4]) | Signals.hidden([1]), 5),
        (Signals.predictions("masked"), 12),
    ],
)
def test_a_request_knows_how_deep_it_reaches(request_: object, depth: int) -> None:
    assert request_.depth(12) == depth  # type: ignore[attr-defined]


def test_requests_of_several_losses_add_up() -> None:
    one = Requests(teacher=Signals.hidden([1]), columns=frozenset({"sample_ids"}))
    other = Requests(teacher=Signals.hidden([3]), student=Signals.predictions("all"))
    both = one | other
    assert both.teacher.hidden_blocks == {1, 3}
    assert both.student.prediction_positions == {"all"}
    assert both.columns == {"sample_ids"}
    assert not Requests().teacher


def test_only_real_tokens_are_read() -> None:
    states = torch.arange(18.0).reshape(3, 3, 2)
    signals = Signals(ragged_batch(), {0: states}, {}, {})
    expected = [states[0, 0], states[0, 1], states[0, 2], states[1, 0], states[2, 0], states[2, 1]]
    torch.testing.assert_close(signals.tokens(0), torch.stack(expected))
    torch.testing.assert_close(signals.first(0), states[:, 0])


def test_heads_come_with_mask_rows_and_scale() -> None:
    batch = ragged_batch()
    tap = AttentionTap(*(torch.randn(3, 2, 3, 4) for _ in range(3)), mask=torch.ones(3, 1, 3, 3).bool(), scale=0.5)
    (chunk,) = Signals(batch, {}, {1: tap}, {}).heads("value", 1)
    assert chunk.states is tap.value
    assert chunk.rows is batch.attention_mask
    assert (chunk.mask is tap.mask, chunk.scale) == (True, 0.5)
