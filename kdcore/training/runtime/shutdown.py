"""Ending on request: during training a signal sets a flag, and the run stops at the next step with a checkpoint."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

from kdcore.errors import EXIT_INTERRUPTED

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)

_GRACE_SECONDS = 5.0


class _Ending:
    """Handles signals outside of training: the first one raises KeyboardInterrupt, so that everything is cleaned up."""

    def __init__(self) -> None:
        self.came = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        # What cleans up is not disturbed by the reminders of a launcher, only by somebody at the keyboard.
        if not self.came or number == signal.SIGINT:
            self.came = True
            raise KeyboardInterrupt(signal.Signals(number).name)


@contextmanager
def ending_on_request() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM and SIGUSR2 while entered, as on SIGINT.

    Entered before anything of weight is imported, it covers what comes before training (data, models) and after it. In
    a thread other than the main one, where Python handles no signals, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = _Ending()
    previous = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


class GracefulShutdown:
    """While entered, SIGINT, SIGTERM and SIGUSR2 only set `requested`; a second SIGINT ends the process now.

    It does so by KeyboardInterrupt. Python cannot raise that while the main thread waits in a collective whose peer is
    gone: then a thread, which does see signals, ends the process a few seconds later with exit code 130.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[signal.Signals, object] = {}
        self._over = threading.Event()

    def __enter__(self) -> Self:
        for number in STOP_SIGNALS:
            before = signal.signal(number, self._handle)
            self._previous[number] = before
            # A library may have swallowed the exception of a signal that came earlier.
            self.requested = self.requested or (isinstance(before, _Ending) and before.came)
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, name="kdcore-signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._writer)  # the thread reads the end and closes its side
        self._thread.join()
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt(signal.Signals(number).name)
        self.requested = True

    def _listen(self) -> None:
        """Count what asks to stop, as `_handle` does; the second SIGINT must end the process, whatever it waits in."""
        asked = self.requested
        with os.fdopen(self._reader, "rb", buffering=0) as reader:
            while numbers := reader.read(64):
                for number in numbers:
                    if asked and number == signal.SIGINT and not self._over.wait(_GRACE_SECONDS):
                        os._exit(EXIT_INTERRUPTED)
                    asked = asked or number in STOP_SIGNALS
