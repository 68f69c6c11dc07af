"""Shut down gracefully: a signal during training sets a flag; after the step, the run writes a checkpoint and stops."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

from kdcore.errors import EXIT_INTERRUPTED
from kdcore.utils.subprocesses import STOP_SIGNALS

_GRACE_SECONDS = 5.0


class _Ending:
    """Handle signals outside of training: the first one raises KeyboardInterrupt, so that all cleanup runs."""

    def __init__(self) -> None:
        self.came = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        # Cleanup is not interrupted by a launcher's repeated signals, only by Ctrl-C.
        if not self.came or number == signal.SIGINT:
            self.came = True
            raise KeyboardInterrupt(signal.Signals(number).name)


@contextmanager
def ending_on_request() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM and SIGUSR2 within the context, as on SIGINT.

    The context is entered before heavy imports and covers the time before training (data, models) and after it. It has
    no effect outside the main thread, because Python handles signals only there.
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
    """Set `requested` on SIGINT, SIGTERM and SIGUSR2 within the context; a second SIGINT raises KeyboardInterrupt.

    `interrupted` is also set on SIGINT.

    Python handles signals only in the main thread; in other threads, `requested` is set only by code. Inside `paused`,
    the context may be left in a different thread from the one that entered it.

    Python cannot raise KeyboardInterrupt while the main thread hangs in a collective whose peer has exited. In that
    case another thread, which still receives signals, ends the process a few seconds later with exit code 130.
    """

    def __init__(self) -> None:
        self.requested = False
        self.interrupted = False
        self._previous: dict[signal.Signals, object] = {}
        self._over = threading.Event()

    def __enter__(self) -> Self:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._thread = threading.Thread(target=self._listen, name="kdcore-signals", daemon=True)
        self._install()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._uninstall()
        os.close(self._writer)  # the thread reads EOF and closes its side
        self._thread.join()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Restore other code's handlers within the context; on exit, the current thread handles signals, if it can."""
        self._uninstall()
        try:
            yield
        finally:
            self._install()

    def _install(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in STOP_SIGNALS:
            before = signal.signal(number, self._handle)
            self._previous[number] = before
            # A library may have swallowed the exception of an earlier signal.
            self.requested = self.requested or (isinstance(before, _Ending) and before.came)
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)

    def _uninstall(self) -> None:
        if not self._previous:
            return
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt(signal.Signals(number).name)
        self.requested = True
        self.interrupted |= number == signal.SIGINT

    def _listen(self) -> None:
        """Count stop signals like `_handle`; the second SIGINT must end the process even if it hangs."""
        asked = self.requested
        with os.fdopen(self._reader, "rb", buffering=0) as reader:
            while numbers := reader.read(64):
                for number in numbers:
                    if asked and number == signal.SIGINT and not self._over.wait(_GRACE_SECONDS):
                        os._exit(EXIT_INTERRUPTED)
                    asked = asked or number in STOP_SIGNALS
