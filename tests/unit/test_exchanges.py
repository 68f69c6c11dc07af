"""What processes exchange about a step is exchanged while the step before it trains."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kdcore.training.loop.batches import TrainingBatches
from kdcore.training.runtime.distributed import DistributedContext

PROCESSES = DistributedContext(0, 1, torch.device("cpu"), None)


class Task:
    """A task whose batches are their samples."""

    def num_samples(self, split):
        return 100

    def order(self, epoch, generator, samples):
        return samples

    def lengths(self, split):
        return None

    def draw(self, split, samples, epochs, fraction):
        return SimpleNamespace(samples=samples)


@pytest.fixture
def drawn():
    """Batches, the first samples whose exchange has started, in order, and events of their starts."""
    task, started = Task(), []
    events = [threading.Event() for _ in range(8)]

    def exchange(batches):
        number = len(started)
        started.append(int(batches.micro_batches[0].samples[0]))
        events[number].set()
        return lambda: {"number": number}

    batches = TrainingBatches(task, 0, 4, 4, PROCESSES, whole=False, exchange=exchange)
    yield batches, started, events
    batches.close()


def test_the_exchange_of_a_step_starts_during_the_step_before_it(drawn):
    batches, started, events = drawn
    firsts = [int(np.concatenate([one for one, _ in batches.samples(step, 0)])[0]) for step in range(3)]
    for step in range(3):
        assert batches.step(step).totals() == {"number": step}
        assert events[step + 1].wait(30), "the next step was not requested"
        assert started[: step + 1] == firsts[: step + 1]


def test_a_step_that_is_drawn_again_follows_the_one_that_was_drawn_ahead(drawn):
    """Every process must start its exchanges in one order; the stage of a run changes between two draws of a step."""
    batches, started, events = drawn
    first = batches.step(0)
    batches.settle()
    assert len(started) == 2
    again = batches.step(0)
    assert again.totals() == {"number": 2}
    assert first.totals() == {"number": 0}
    assert events[3].wait(30)
    assert started[2:] == started[:2]
