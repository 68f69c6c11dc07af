"""Files and folders that are complete or absent, and what a process that is killed while it commits one leaves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kdcore.utils.atomic import atomic_directory, atomic_write, commit_directory, restore_replaced


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_is_replaced_at_the_end_and_kept_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "notes.json"
    with atomic_write(path) as file:
        file.write(b"first")
        assert not path.exists()
    with pytest.raises(TypeError), atomic_write(path) as file:
        file.write(b"second") and file.write("text")  # type: ignore[arg-type]
    assert path.read_bytes() == b"first"
    assert names(tmp_path) == {"notes.json"}


def test_two_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "notes.json"
    with atomic_write(path) as outer, atomic_write(path) as inner:
        outer.write(b"outer")
        inner.write(b"inner")
    assert path.read_bytes() == b"outer"


def test_a_folder_appears_at_the_end_without_what_an_earlier_attempt_has_left(tmp_path: Path) -> None:
    (tmp_path / "parent" / ".staging-export" / "old").mkdir(parents=True)
    folder = tmp_path / "parent" / "export"
    with atomic_directory(folder) as staging:
        (staging / "inner").mkdir()
        (staging / "inner" / "weights").write_bytes(b"1")
        assert not folder.exists()
    assert [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*"))] == ["inner", "inner/weights"]
    assert names(folder.parent) == {"export"}


def test_a_folder_that_is_there_is_replaced_only_on_request(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    for text, replace in (("first", False), ("second", True)):
        with atomic_directory(folder, replace=replace) as staging:
            (staging / "weights").write_text(text)
    with pytest.raises(OSError, match="not empty"), atomic_directory(folder) as staging:
        (staging / "weights").write_text("third")
    assert (folder / "weights").read_text() == "second"
    assert names(tmp_path) == {"export"}


def test_a_writer_that_may_not_commit_any_more_changes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "weights").write_text("first")

    def refuse() -> None:
        assert (tmp_path / ".staging-export" / "weights").read_text() == "second"
        raise RuntimeError("taken over")

    with pytest.raises(RuntimeError), atomic_directory(folder, replace=True, check=refuse) as staging:
        (staging / "weights").write_text("second")
    assert (folder / "weights").read_text() == "first"
    assert names(tmp_path) == {"export"}


def test_a_replacement_that_fails_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "export"
    with atomic_directory(folder) as staging:
        (staging / "weights").write_text("first")
    rename = os.replace

    def failing(source: Path, target: Path) -> None:
        if source.name.startswith(".staging-"):
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="No space"), atomic_directory(folder, replace=True) as staging:
        (staging / "weights").write_text("second")
    assert (folder / "weights").read_text() == "first"
    assert names(tmp_path) == {"export"}


def test_the_first_of_two_complete_folders_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for text in ("first", "second"):
        staging = tmp_path / f"work-{text}"
        staging.mkdir()
        (staging / "manifest.json").write_text(text)
        commit_directory(staging, folder, finished="manifest.json")
    assert (folder / "manifest.json").read_text() == "first"


@pytest.mark.parametrize("completed", [0, 1, 2])
def test_a_replacement_that_is_cut_off_leaves_one_of_both_folders(tmp_path: Path, completed: int) -> None:
    """The process ends after 0, 1 or 2 renames; no code of it runs afterwards."""
    folder, staging = tmp_path / "step", tmp_path / ".staging-step"
    for path, text in ((folder, "old"), (staging, "new")):
        path.mkdir()
        (path / "weights").write_text(text)
    child = os.fork()
    if child == 0:
        renames = 0
        rename = os.replace

        def counted(*arguments: Path) -> None:
            nonlocal renames
            if renames == completed:
                os._exit(9)
            rename(*arguments)
            renames += 1
            if renames == completed == 2:
                os._exit(9)

        os.replace = counted
        commit_directory(staging, folder, replace=True)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    restore_replaced(tmp_path)
    assert (folder / "weights").read_text() == ("new" if completed == 2 else "old")
    assert names(tmp_path) == {"step"}
