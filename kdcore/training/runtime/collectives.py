"""Exchange Python objects and errors through collectives, so that processes fail and continue together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch.distributed as dist

from kdcore.errors import InfrastructureError, InputError, KdcoreError
from kdcore.training.runtime.distributed import DistributedContext

T = TypeVar("T")


def broadcast_from_main(processes: DistributedContext, decide: Callable[[], T]) -> T:
    """Broadcast the result of `decide` on process 0; a `KdcoreError` there is raised on every process.

    Raises:
        KdcoreError: raised by `decide`; an OSError becomes an InfrastructureError.
        InfrastructureError: another process has exited.
    """
    result: T | None = None
    error: BaseException | None = None
    if processes.is_main:
        try:
            result = decide()
        except KdcoreError as failure:
            error = failure
        except OSError as failure:
            error = InfrastructureError(f"{failure.filename or 'the disk'}: {failure.strerror}")
            error.__cause__ = failure
        except BaseException as failure:
            error = failure
    if processes.world_size > 1:
        message = [(result, _packed(error))]
        with _together():
            dist.broadcast_object_list(message, src=0, group=processes.host_group)
        if not processes.is_main:
            result, packed = message[0]
            if packed is not None:
                raise _unpacked(packed)
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def all_gather(processes: DistributedContext, value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """Gather the values of all processes on every process.

    Raises:
        InfrastructureError: another process has exited.
    """
    if processes.world_size == 1:
        return [value]
    values: list[T] = [value] * processes.world_size
    with _together():
        dist.all_gather_object(values, value, group=group or processes.host_group)
    return values


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo: a peer has closed its connection
        raise InfrastructureError(
            "another process of this run has exited; its error message names the cause"
        ) from error


def _packed(error: BaseException | None) -> tuple[type[KdcoreError], object] | None:
    """Convert an error to a form that can be sent: pickling loses parts of exceptions."""
    if error is None:
        return None
    if isinstance(error, InputError):
        return type(error), error.problems
    if isinstance(error, KdcoreError):
        return type(error), str(error)
    return InfrastructureError, "process 0 failed; its error message names the cause"


def _unpacked(packed: tuple[type[KdcoreError], object]) -> KdcoreError:
    cls, content = packed
    return cls(content)
