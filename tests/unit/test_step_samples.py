"""Which process trains on which samples, in either order."""

from __future__ import annotations

import numpy as np
import pytest

from kdcore.errors import DataError
from kdcore.training.loop.sampling import StepSamples


def drawn(order: str, processes: int, steps: int, *, first: int = 0, samples: int = 22) -> list[list[list[int]]]:
    """Samples of each process at each step: [step][process]. Batches of 8, micro-batches of 2."""
    dealer = StepSamples(samples, 1, 8, 2, processes, order)  # type: ignore[arg-type]
    return [
        [[s for part, _ in dealer.micro_batches(step, rank) for s in part.tolist()] for rank in range(processes)]
        for step in range(first, steps)
    ]


def test_the_global_order_is_the_same_for_any_number_of_processes() -> None:
    alone = [sorted(step[0]) for step in drawn("global", 1, 6)]
    for processes in (2, 4):
        assert [sorted(np.concatenate(step).tolist()) for step in drawn("global", processes, 6)] == alone


@pytest.mark.parametrize("order", ["global", "per_process"])
def test_a_run_that_begins_in_the_middle_of_an_epoch_goes_on_with_the_same_samples(order: str) -> None:
    assert drawn(order, 2, 9, first=4) == drawn(order, 2, 9)[4:]


def test_each_process_draws_from_a_share_of_its_own_and_sees_all_of_it_every_epoch() -> None:
    steps = drawn("per_process", 2, 11)  # 4 samples a step of a share of 11: 4 epochs
    for rank, share in enumerate((range(11), range(11, 22))):
        seen = [sample for step in steps for sample in step[rank]]
        assert len(seen) == 44
        for epoch in range(4):
            assert sorted(seen[11 * epoch : 11 * epoch + 11]) == list(share)
        assert seen[:11] != seen[11:22]


def test_shares_of_unequal_size_have_epochs_of_their_own() -> None:
    dealer = StepSamples(7, 1, 4, 2, 2, "per_process")
    epochs = [
        [int(epoch) for step in range(3) for _, part in dealer.micro_batches(step, rank) for epoch in part]
        for rank in (0, 1)
    ]
    assert epochs == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1]]


def test_one_process_has_the_same_order_either_way() -> None:
    assert drawn("global", 1, 5) == drawn("per_process", 1, 5)


def test_fewer_sequences_than_processes_cannot_be_shared_out() -> None:
    with pytest.raises(DataError, match=r"at least one sequence per process \(found 3, expected 4\)"):
        StepSamples(3, 1, 8, 2, 4, "per_process")
