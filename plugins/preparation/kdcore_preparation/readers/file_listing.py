"""List the files below a folder or matching a glob; links are followed, and skipped entries are counted."""

from __future__ import annotations

import errno
import glob
import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from kdcore import DataError

_DeviceAndInode = tuple[int, int]


class InputFiles(dict[str, Path]):
    """Mapping from names to files, sorted by name.

    Attributes:
        left_out: counts of the entries that were left out, by kind, with an example of each kind. Files with several
            names are also counted here, although they are read under each name.
    """

    def __init__(self, files: Mapping[str, Path], left_out: Counter[str]) -> None:
        super().__init__(sorted(files.items()))
        self.left_out = left_out


def find_files(path: str) -> InputFiles:
    """Find the files of a path, folder or glob; see `input_files`.

    Raises:
        DataError: the path does not exist, cannot be read or contains no files.
    """
    place = Path(path)
    try:
        status = os.stat(place)
    except ValueError as error:
        raise DataError("is not a path: it contains NUL or half of a surrogate pair", where=repr(path)) from error
    except OSError as error:
        if not glob.has_magic(path) or os.path.islink(place):
            raise _unusable(place, error) from error
        fixed = _fixed_part(place)
        search = _Search(fixed)
        if os.path.isdir(fixed):
            search.match(fixed, place.parts[len(fixed.parts) :])
        what = "no file matches the pattern"
    else:
        if stat.S_ISREG(status.st_mode):
            return InputFiles({_as_utf8(place.name): place}, Counter())
        if not stat.S_ISDIR(status.st_mode):
            raise DataError("is neither a file nor a folder", where=path, allowed="files, folders, globs")
        try:
            os.scandir(place).close()
        except OSError as error:
            raise _unusable(place, error) from error
        search = _Search(place)
        search.match(place, ("**",), count_hidden=True)
        what = "the folder contains no files"
    left_out = search.left_out()
    if not search.found:
        but = "".join(f", but {count} {entry}" for entry, count in left_out.items())
        raise DataError(
            what + but, where=path, hint="pass a text file, a folder of text files or a glob such as texts/*.txt"
        )
    return InputFiles(search.found, left_out)


class _Search:
    """Files that have been found below a folder."""

    def __init__(self, root: Path) -> None:
        self.found: dict[str, Path] = {}
        self._root = root
        self._left: dict[str, set[str]] = {}
        self._identities: dict[str, _DeviceAndInode] = {}

    def match(self, folder: Path, pattern: tuple[str, ...], *, count_hidden: bool = False) -> None:
        """Collect the files that match a pattern below a folder.

        Args:
            folder: the folder.
            pattern: names with wildcards; `**` matches any number of folders, and the last name matches files.
            count_hidden: whether hidden entries count as left out; otherwise they do not match.

        A folder that has several names because of links is searched only under the first name.
        """
        searched: dict[tuple[_DeviceAndInode, tuple[str, ...]], Path] = {}
        pending: list[tuple[Path, tuple[str, ...], tuple[_DeviceAndInode, ...]]] = []
        pending.append((folder, pattern, (_identity(os.stat(folder)),)))
        while pending:
            folder, pattern, above = pending.pop()
            if (above[-1], pattern) in searched:
                if searched[above[-1], pattern] != folder:
                    self._leave_out("links to a folder that is read already not followed", folder)
                continue
            searched[above[-1], pattern] = folder
            first, rest = pattern[0], pattern[1:]
            folders: list[tuple[Path, tuple[str, ...], tuple[_DeviceAndInode, ...]]] = []
            if first == "**" and rest:
                folders.append((folder, rest, above))
            for entry in self._entries(folder, first, count_hidden):
                status = self._status(entry)
                if status is None:
                    continue
                if not stat.S_ISDIR(status.st_mode):
                    if not rest:
                        self._take(entry, status)
                elif first == "**" or rest:
                    if glob.has_magic(first) and _identity(status) in above:
                        self._leave_out("links to a folder that contains them not followed", entry)
                    else:
                        folders.append((entry, pattern if first == "**" else rest, (*above, _identity(status))))
            pending += reversed(folders)

    def left_out(self) -> Counter[str]:
        """Count the entries that were left out, by description."""
        first_names: dict[_DeviceAndInode, str] = {}
        for name, identity in sorted(self._identities.items()):
            if first_names.setdefault(identity, name) != name:
                self._leave_out("files read again under another name", self.found[name])
        return Counter({f"{what} (the first: {min(names)})": len(names) for what, names in self._left.items()})

    def _entries(self, folder: Path, name: str, count_hidden: bool) -> Iterator[Path]:
        if name != "**" and not glob.has_magic(name):
            if os.path.lexists(folder / name):
                yield folder / name
            return
        try:
            with os.scandir(folder) as entries:
                names = sorted(entry.name for entry in entries)
        except OSError:
            self._leave_out("unreadable files and folders left out", folder)
            return
        pattern = "*" if name == "**" else name
        for one in names:
            if one.startswith(".") and not pattern.startswith("."):
                if count_hidden:
                    self._leave_out("hidden files and folders left out", folder / one)
            elif fnmatchcase(one, pattern):
                yield folder / one

    def _status(self, entry: Path) -> os.stat_result | None:
        try:
            return os.stat(entry)
        except OSError as error:
            dangling = error.errno in (errno.ENOENT, errno.ELOOP)
            self._leave_out("dangling links left out" if dangling else "unreadable files and folders left out", entry)
            return None

    def _take(self, file: Path, status: os.stat_result) -> None:
        name = self._name(file)
        if name in self.found:
            if self.found[name] != file:
                self._leave_out("files left out that have the escaped name of another one", file)
        elif not stat.S_ISREG(status.st_mode):
            self._leave_out("entries that are neither files nor folders left out", file)
        elif not os.access(file, os.R_OK):
            self._leave_out("unreadable files and folders left out", file)
        else:
            self.found[name] = file
            self._identities[name] = _identity(status)

    def _leave_out(self, what: str, entry: Path) -> None:
        self._left.setdefault(what, set()).add(self._name(entry))

    def _name(self, entry: Path) -> str:
        return _as_utf8(entry.relative_to(self._root).as_posix())


def _as_utf8(name: str) -> str:
    r"""Escape bytes of a name that are not UTF-8, as in `caf\xe9.txt`, for output to JSON and terminals."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _identity(status: os.stat_result) -> _DeviceAndInode:
    return status.st_dev, status.st_ino


def _unusable(path: Path, error: OSError) -> DataError:
    if error.errno == errno.ELOOP or (error.errno == errno.ENOENT and path.is_symlink()):
        return DataError(f"is a dangling link (to {os.readlink(path)})", where=str(path), hint="repair the link")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return DataError("no such file or folder", where=str(path))
    return DataError(f"cannot be read: {error.strerror}", where=str(path))


def _fixed_part(pattern: Path) -> Path:
    fixed = Path()
    for part in pattern.parts:
        if glob.has_magic(part):
            break
        fixed /= part
    return fixed
