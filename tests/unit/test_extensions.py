"""A lock in the folder of torch's extensions: one that somebody holds is waited for, one that nobody holds is not."""

from __future__ import annotations

import threading
import time

import pytest
from torch.utils.file_baton import FileBaton

from kdcore.errors import MachineError
from kdcore.training import extensions
from kdcore.training.extensions import no_endless_wait


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """A tenth of a second of quiet is enough."""
    monkeypatch.setattr(extensions, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(extensions, "_QUIET_SECONDS", 0.1)


@pytest.fixture
def lock(tmp_path):
    path = tmp_path / "operator" / "lock"
    path.parent.mkdir()
    return path


def test_a_lock_that_nobody_holds_is_named(lock):
    lock.touch()
    with pytest.raises(MachineError, match=f"rm '{lock}'") as caught, no_endless_wait():
        FileBaton(str(lock)).wait()
    assert caught.value.exit_code == 1
    assert lock.exists()


def test_a_lock_that_is_held_is_waited_for(lock):
    """Here by this very process; whoever compiles has the file open."""
    holder = FileBaton(str(lock))
    assert holder.try_acquire()
    threading.Timer(0.6, holder.release).start()
    began = time.monotonic()
    with no_endless_wait():
        FileBaton(str(lock)).wait()
    assert time.monotonic() - began > 0.5


def test_a_lock_beside_which_something_changes_is_waited_for(lock):
    """Somebody who cannot be seen from here compiles: in a container, or on another machine."""
    lock.touch()

    def compile_something() -> None:
        for size in range(30):
            (lock.parent / "operator.o").write_bytes(bytes(size))
            time.sleep(0.02)
        lock.unlink()

    threading.Thread(target=compile_something).start()
    with no_endless_wait():
        FileBaton(str(lock)).wait()
    assert (lock.parent / "operator.o").stat().st_size == 29


def test_on_a_network_file_system_more_patience_is_had(lock, monkeypatch):
    lock.touch()
    monkeypatch.setattr(extensions, "_LOCAL_FILE_SYSTEMS", set())
    threading.Timer(0.6, lock.unlink).start()
    with no_endless_wait():
        FileBaton(str(lock)).wait()


def test_one_who_does_not_wait_for_a_lock_is_left_alone(lock):
    lock.touch()
    with no_endless_wait():
        time.sleep(0.3)
