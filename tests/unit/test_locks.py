"""Lock files: which locks exclude each other, and when a lock is released."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdcore.errors import DataError
from kdcore.utils.locks import LocksUnsupportedError, acquire, lock_of, locked

HOLD = """
import sys, time
from pathlib import Path
from kdcore.utils.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def is_taken(path: Path, *, shared: bool = False) -> bool:
    try:
        with locked(path, shared=shared, wait=False, taken="another process is at work"):
            return False
    except DataError as error:
        return "another process is at work" in str(error)


def test_an_exclusive_lock_refuses_all_others_and_removes_its_file(tmp_path: Path) -> None:
    path = lock_of(tmp_path / "parent" / "data")
    with locked(path):
        assert is_taken(path)
        assert is_taken(path, shared=True)
    assert not is_taken(path)
    assert list((tmp_path / "parent").iterdir()) == []


def test_shared_locks_admit_each_other_only(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path, shared=True):
        assert not is_taken(path, shared=True)
        assert is_taken(path)
    assert not is_taken(path)


def test_a_lock_ends_with_a_killed_process_and_a_waiter_gets_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as holder:
        assert holder.stdout.readline() == "held\n"
        waiter = subprocess.Popen(command, **pipes)
        assert is_taken(path)
        holder.kill()
    with waiter:
        assert waiter.stdout.readline() == "held\n"
        assert is_taken(path)
        waiter.communicate("\n", timeout=60)
    assert not path.exists()


def test_a_forked_process_holds_the_lock_until_it_closes_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    reader, writer = os.pipe()
    descriptor = os.open(path, os.O_RDWR)
    assert acquire(descriptor)
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)  # until the parent closes its end
        os._exit(0)
    os.close(descriptor)
    other = os.open(path, os.O_RDWR)
    assert not acquire(other)
    os.close(writer)
    os.waitpid(child, 0)
    assert acquire(other)
    for each in (other, reader):
        os.close(each)


@pytest.mark.parametrize("shared", [False, True])
def test_a_lock_has_no_effect_on_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with (tmp_path / "lock").open("w") as file, pytest.raises(LocksUnsupportedError):
        acquire(file.fileno(), shared=shared)
    with locked(tmp_path / "lock", shared=shared, wait=False), locked(tmp_path / "lock", shared=shared, wait=False):
        pass


def test_the_lock_of_a_folder_lies_beside_it() -> None:
    assert lock_of(Path("prepared/data")) == Path("prepared/.data.lock")
