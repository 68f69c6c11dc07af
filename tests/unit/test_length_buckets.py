"""Steps of similar lengths: little padding, every sample once an epoch, and the same however a run is split."""

from __future__ import annotations

import numpy as np
import pytest

from kdcore.training.loop.sampling import SampleOrder, StepSamples

LENGTHS = np.random.default_rng(0).lognormal(2.7, 0.7, 5003).astype(np.int64).clip(3, 128)
SIZE = 32


def steps(
    lengths: np.ndarray | None, processes: int = 1, micro: int = SIZE, count: int = 400
) -> list[list[np.ndarray]]:
    """The samples of each step's micro-batches, as they are dealt to the processes in turn."""
    samples = StepSamples(len(LENGTHS), 7, SIZE, micro, processes, "global", lengths)
    dealt = []
    for step in range(count):
        own = [[one for one, _ in samples.micro_batches(step, rank)] for rank in range(processes)]
        dealt.append([one for turn in zip(*own, strict=True) for one in turn])
    return dealt


def padding(batches: list[np.ndarray]) -> float:
    """Share of computed positions that are padding."""
    computed = sum(len(batch) * LENGTHS[batch].max() for batch in batches)
    return 1 - sum(LENGTHS[batch].sum() for batch in batches) / float(computed)


def test_little_padding_is_computed() -> None:
    mixed, similar = ([batch for step in steps(lengths) for batch in step] for lengths in (None, LENGTHS))
    assert padding(mixed) > 0.5
    assert padding(similar) < 0.1
    cut = [batch for step in steps(LENGTHS, micro=8) for batch in step]
    assert padding(cut) < padding(similar)


def test_every_epoch_has_every_sample_once() -> None:
    order = SampleOrder(len(LENGTHS), 7, lengths=LENGTHS, step_size=SIZE)
    for epoch in range(3):
        samples, epochs = order.take(epoch * len(LENGTHS), len(LENGTHS))
        assert sorted(samples) == list(range(len(LENGTHS)))
        assert (epochs == epoch).all()


def test_steps_come_in_random_order_and_epochs_differ() -> None:
    means = np.array([LENGTHS[step[0]].mean() for step in steps(LENGTHS, count=60)])
    assert abs(np.corrcoef(np.arange(60), means)[0, 1]) < 0.4
    order = SampleOrder(len(LENGTHS), 7, lengths=LENGTHS, step_size=SIZE)
    first, second = (set(order.take(epoch * len(LENGTHS) + SIZE, SIZE)[0]) for epoch in (0, 1))
    assert first != second


@pytest.mark.parametrize(("processes", "micro"), [(1, 4), (2, 16), (4, 2)])
def test_processes_and_micro_batches_change_no_step(processes: int, micro: int) -> None:
    for whole, split in zip(steps(LENGTHS), steps(LENGTHS, processes, micro), strict=True):
        assert np.concatenate(split).tolist() == whole[0].tolist()


def test_a_restart_goes_on_in_the_same_order() -> None:
    samples = StepSamples(len(LENGTHS), 7, SIZE, SIZE, 1, "global", LENGTHS)
    assert samples.micro_batches(390, 0)[0][0].tolist() == steps(LENGTHS)[390][0].tolist()


def test_fewer_samples_than_a_step_has_are_no_problem() -> None:
    order = SampleOrder(5, 1, lengths=np.arange(5), step_size=8)
    samples, epochs = order.take(0, 40)
    assert np.bincount(samples).tolist() == [8] * 5
    assert epochs.max() == 7
