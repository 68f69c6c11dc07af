"""Distribute numbered pieces of work over forked processes."""

from __future__ import annotations

import gc
import os
import signal
import traceback
from collections.abc import Callable, Iterable
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from kdcore import InfrastructureError, KdcoreError, kill_with_parent, plugin_faults

SECONDS_BETWEEN_TICKS = 0.25


def run_in_processes(
    work: Callable[[int, int], None],
    items: Iterable[int],
    processes: int,
    *,
    in_child: Callable[[], None],
    tick: Callable[[], None],
) -> None:
    """Call `work(item, worker)` for each item in forked processes.

    Arguments need not be picklable, because processes are forked. The processes are terminated when this process ends,
    even if by SIGKILL, and all of them end when one fails.

    Args:
        work: function that processes one item; `worker` is the number of the process, from 0.
        items: items in processing order.
        processes: number of processes.
        in_child: function called first in each process.
        tick: function called in this process a few times per second.

    Raises:
        InfrastructureError: a process was killed.
        Exception: raised by `work`.
    """
    waiting = iter(items)
    context = get_context("fork")
    workers: dict[Connection, BaseProcess] = {}
    busy: set[Connection] = set()

    def give(pipe: Connection) -> None:
        item = next(waiting, None)
        if item is None:
            busy.discard(pipe)
        else:
            busy.add(pipe)
            pipe.send(item)

    try:
        for number in range(processes):
            ours, theirs = context.Pipe()
            process: BaseProcess = context.Process(
                target=_serve, args=(work, theirs, number, os.getpid(), in_child), daemon=True
            )
            process.start()
            theirs.close()
            workers[ours] = process
            give(ours)
        while busy:
            for pipe in connection.wait(list(busy), timeout=SECONDS_BETWEEN_TICKS):
                assert isinstance(pipe, Connection)
                _raise_what_happened(pipe, workers[pipe])
                give(pipe)
            tick()
    finally:
        for pipe, process in workers.items():
            process.kill()
            process.join()
            pipe.close()


def _raise_what_happened(pipe: Connection, process: BaseProcess) -> None:
    try:
        error = pipe.recv()
    except EOFError:
        process.join()
        code = process.exitcode or 0
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        raise InfrastructureError(
            f"a worker process ended {how}, perhaps out of memory: run the command again with fewer workers to resume"
        ) from None
    if error is not None:
        raise error


def _serve(
    work: Callable[[int, int], None], pipe: Connection, number: int, parent: int, in_child: Callable[[], None]
) -> None:
    _end_with(parent)
    for theirs in (signal.SIGINT, signal.SIGUSR2):  # the parent receives these signals too, and ends its workers
        signal.signal(theirs, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.freeze()  # excludes the parent's objects from garbage collection, so that their memory stays shared
    in_child()
    while True:
        item = pipe.recv()
        try:
            with plugin_faults():
                work(item, number)
        except Exception as error:
            pipe.send(_for_the_parent(error))
        else:
            pipe.send(None)


def _for_the_parent(error: Exception) -> Exception:
    import pickle

    if error.__cause__ is not None or not isinstance(error, KdcoreError | OSError):
        error.add_note("".join(traceback.format_exception(error)))  # the worker's traceback
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # pickling an exception of any class may fail: keep the text
        return RuntimeError("".join(traceback.format_exception(error)))
    return error


def _end_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, even by SIGKILL."""
    kill_with_parent()
    if os.getppid() != parent:
        os._exit(1)
