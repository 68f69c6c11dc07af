"""Keep the random numbers of other code separate from a run's random numbers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


class RandomStream:
    """A stream of random numbers for Python, NumPy and torch that starts as a copy of the current one.

    Drawing from this stream or seeding it does not change the run's dropout. Generators keep their states on the host,
    so this never waits for a device.
    """

    def __init__(self, device: torch.device) -> None:
        """Start the stream; it includes the generators of the CPU and of the run's `device`."""
        self._device = device
        self._module: Any = None if device.type == "cpu" else torch.get_device_module(device)
        self._states = self._present()

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Draw from this stream within the context, then restore the states of the run."""
        run = self._present()
        self._restore(self._states)
        try:
            yield
        finally:
            self._states = self._present()
            self._restore(run)

    def _present(self) -> tuple[Any, ...]:
        device = None if self._module is None else self._module.get_rng_state(self._device)
        return random.getstate(), np.random.get_state(), torch.get_rng_state(), device

    def _restore(self, states: tuple[Any, ...]) -> None:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if self._module is not None:
            self._module.set_rng_state(states[3], self._device)
