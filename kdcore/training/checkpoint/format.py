"""Validate, select and atomically commit the files of checkpoints. Does not import torch.

RUN/checkpoints/latest                        name of the newest checkpoint
RUN/checkpoints/step-0000500/manifest.json    size and sha256 of every other file in it
RUN/checkpoints/step-0000500/state.json       state of the training loop
RUN/checkpoints/.staging-step-0001000/        being written; renamed when complete on disk
RUN/.has-checkpoints                          marks a run that has written checkpoints
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import stat
from collections.abc import Callable, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from kdcore.errors import InputError, first_line
from kdcore.training.engine import ENGINE_FOLDER
from kdcore.training.engine.pickled_names import foreign_names
from kdcore.utils.atomic import atomic_write, commit_directory, restore_replaced, staging_folder, sync_folder
from kdcore.utils.stored import FiniteNumber, StoredCount, read_json_object, read_small_file

logger = logging.getLogger("kdcore")

STATE = "state.json"
_MANIFEST = "manifest.json"
_LATEST = "latest"
_MARK = ".has-checkpoints"
_REMOVED = ".removed-"
_NAME = re.compile(r"step-([0-9]{7,18})")
_FILE = re.compile(
    rf"{re.escape(STATE)}|process-[0-9]{{1,6}}\.(?:json|pt|safetensors)|{ENGINE_FOLDER}/[A-Za-z0-9_.-]{{1,200}}\.pt"
)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LARGEST_SIZE = 1 << 60
_SHOWN = 80
_FORMAT = 2


@dataclass(frozen=True)
class TrainingState:
    """State of the training loop.

    Attributes:
        step: steps done.
        seconds: training time when the checkpoint was written, according to process 0's clock.
        done_seconds: training time that all processes last agreed on; all actions due by then have been performed.
        world_size: number of processes that wrote the checkpoint.
        zero_stage: ZeRO stage at which the checkpoint was written.
        milestone: whether the checkpoint is kept permanently.
        best_score: the best score so far, or None; the student with this score has been exported.
        stage: the run's stage, counted from 0.
        initial: held-out values before training; empty if the run did not validate then.
        watched: best value so far of the metric for early stopping, by its name.
        waited: number of validations since that value was reached.
    """

    step: StoredCount
    seconds: FiniteNumber
    done_seconds: FiniteNumber
    world_size: Annotated[StoredCount, Field(ge=1)]
    zero_stage: StoredCount
    milestone: bool = False
    best_score: float | None = None
    stage: StoredCount = 0
    initial: dict[str, FiniteNumber] = field(default_factory=dict)
    watched: dict[str, FiniteNumber] = field(default_factory=dict)
    waited: StoredCount = 0


@dataclass(frozen=True)
class FileEntry:
    """A file in the manifest.

    Attributes:
        size: size in bytes.
        sha256: SHA-256 of its content, in hexadecimal digits.
    """

    size: int
    sha256: str


class _DamagedError(Exception):
    """A manifest that cannot be trusted; the message gives the reason."""


class _NewerError(_DamagedError):
    """A manifest of a format that this version of kdcore does not read."""


def checkpoint_folder(run_folder: Path, step: int) -> Path:
    """Return the folder of the checkpoint of a step."""
    return run_folder / "checkpoints" / f"step-{step:07d}"


def step_of(folder: Path) -> int:
    """Return the step of a checkpoint, parsed from the name of its folder."""
    return int(folder.name.removeprefix("step-"))


def all_checkpoints(run_folder: Path) -> list[Path]:
    """List the folders of all checkpoints, including damaged ones, from the first step to the last."""
    found = (path for path in (run_folder / "checkpoints").glob("step-*") if _NAME.fullmatch(path.name))
    return sorted(found, key=step_of)


def pointed_to(run_folder: Path) -> str | None:
    """Read the name of the newest checkpoint from the pointer; None if the pointer is missing or invalid."""
    try:
        name = _read_text(run_folder / "checkpoints" / _LATEST).strip()
    except (OSError, UnicodeDecodeError):
        return None
    return name if _NAME.fullmatch(name) else None


def read_json(path: Path) -> dict[str, Any]:
    """Read a file with a JSON object.

    Raises:
        InputError: the file cannot be read, or does not contain a JSON object.
    """
    try:
        content = json.loads(_read_text(path), object_pairs_hook=_without_duplicates)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot be read: {first_line(error)}", where=str(path)) from error
    if not isinstance(content, dict):
        raise InputError(f"does not contain a JSON object (found {type(content).__name__})", where=str(path))
    return content


def read_state(folder: Path) -> TrainingState:
    """Read the loop's state in a checkpoint. Unknown keys are ignored.

    Raises:
        InputError: the file cannot be read, or a value is missing or has the wrong type.
    """
    return read_json_object(folder / STATE, TrainingState)


def read_intact_state(folder: Path) -> TrainingState:
    """Read the loop's state after comparing its file with the manifest.

    Raises:
        InputError: the file or the manifest is damaged.
    """
    expected = read_manifest(folder)[STATE]
    state = read_state(folder)
    if describe_file(folder / STATE) != expected:
        raise InputError("is corrupt: its checksum differs from that in the manifest", where=str(folder / STATE))
    return state


def read_format(folder: Path) -> int:
    """Read the format number of a checkpoint.

    Raises:
        InputError: the manifest is missing or damaged, or has a newer format.
    """
    return _trusted(folder).format


def read_manifest(folder: Path) -> dict[str, FileEntry]:
    """List every file of a checkpoint except the manifest, by its path within the folder.

    Raises:
        InputError: the manifest is missing or damaged, or has a newer format.
    """
    return _trusted(folder).files


def problems_of(folder: Path) -> list[str]:
    """List the problems with the files of a checkpoint, comparing each with its checksum; empty if it is intact."""
    try:
        manifest = _manifest(folder).files
    except _DamagedError as error:
        return [f"{_MANIFEST} {error}"]

    def check(item: tuple[str, FileEntry]) -> str | None:
        name, expected = item
        try:
            status = (folder / name).lstat()
            if not stat.S_ISREG(status.st_mode):
                return f"{name} is {'a link' if stat.S_ISLNK(status.st_mode) else 'special'} (expected a regular file)"
            if status.st_size != expected.size:
                return f"{name} has the wrong size (found {status.st_size:,} bytes, expected {expected.size:,})"
            found = describe_file(folder / name).sha256
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
        if found != expected.sha256:
            return f"{name} is corrupt (found sha256 {found[:12]}..., expected {expected.sha256[:12]}...)"
        return None

    with ThreadPoolExecutor(4) as pool:  # hashing and reading release the GIL
        problems = [problem for problem in pool.map(check, manifest.items()) if problem is not None]
    problems += _strangers(folder, {*manifest, _MANIFEST})
    if not problems:
        try:
            step = read_state(folder).step
            if step != step_of(folder):
                problems.append(f"{STATE}: step: differs from the folder's (found {step}, expected {step_of(folder)})")
        except InputError as error:
            problems += [f"{STATE}: {': '.join(filter(None, (each.key, each.what)))}" for each in error.problems]
    return problems


def foreign_files(folder: Path) -> list[str]:
    """Describe each file of a checkpoint that refers to a class or function that kdcore never stores.

    Only the names in each file are read, and nothing is executed. Neither training nor exporting would execute such
    code, but a file that refers to it was not written by a run: it was added later, with a matching manifest.

    Raises:
        InputError: the manifest is missing or damaged, or has a newer format.
    """
    texts = []
    for name, entry in _trusted(folder).files.items():
        path = folder / name
        try:
            status = path.lstat()
            if path.suffix != ".pt" or not stat.S_ISREG(status.st_mode) or status.st_size != entry.size:
                continue
            texts += [f"{name} refers to {foreign}, which kdcore never writes" for foreign in foreign_names(path)[:1]]
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            texts.append(f"{name} cannot be read: {first_line(error)}")
    return texts


def refuse_foreign(folder: Path) -> None:
    """Reject a checkpoint with foreign files.

    Raises:
        InputError: there are foreign files; the message names each of them.
    """
    texts = foreign_files(folder)
    if texts:
        raise InputError(
            f"the checkpoint contains data that kdcore did not write: {'; '.join(texts)}",
            where=str(folder),
            hint="do not use it; restore a copy from a source that you trust",
        )


def _strangers(folder: Path, known: Set[str]) -> list[str]:
    """List the files and links in a checkpoint that its manifest does not list, except hidden files."""
    found = []
    for place, folders, names in os.walk(folder):
        links = [name for name in folders if Path(place, name).is_symlink()]
        for path in (Path(place, name).relative_to(folder) for name in sorted([*names, *links])):
            if path.as_posix() not in known and not path.name.startswith("."):
                found.append(f"{path.as_posix()} is not listed in {_MANIFEST}")
    return found


def require_good(folder: Path) -> None:
    """Reject a checkpoint that is damaged or contains foreign content.

    Raises:
        InputError: files are damaged or foreign; the message names each one and its problem.
    """
    _refuse_newer(folder)
    problems = problems_of(folder)
    if problems:
        raise InputError(
            f"the checkpoint is damaged: {'; '.join(problems)}",
            where=str(folder),
            hint="use another one: `kdcore checkpoint verify RUN` lists the good ones",
        )
    refuse_foreign(folder)


def latest_checkpoint(run_folder: Path) -> Path | None:
    """Find the newest good checkpoint, verified by its checksums; None if none was ever written.

    The pointer names the newest checkpoint. If the pointer is missing or this checkpoint is damaged, a warning is
    logged and the next older checkpoint is tried.

    Raises:
        InputError: all checkpoints of a run are lost or damaged, or the selected checkpoint has a newer format or
            foreign content.
    """
    found = all_checkpoints(run_folder)
    name = pointed_to(run_folder)
    if not found and name is None and not (run_folder / _MARK).exists():
        return None
    limit = step_of(Path(name)) if name else None
    wrong = []
    # Steps beyond the pointer were abandoned on purpose: try them last.
    within = [path for path in found if limit is None or step_of(path) <= limit]
    for folder in [*reversed(within), *reversed(found[len(within) :])]:
        _refuse_newer(folder)
        problems = problems_of(folder)
        if problems:
            wrong.append(f"checkpoint {folder.name} is damaged: {'; '.join(problems)}")
            continue
        if name is None:
            wrong.insert(0, f"the file {_LATEST}, which names the newest checkpoint, is missing or damaged")
        elif name != folder.name and name not in [path.name for path in found]:
            wrong.insert(0, f"checkpoint {name}, which the file {_LATEST} names, is missing")
        for text in wrong:
            logger.warning(f"{run_folder / 'checkpoints'}: {text}")
        refuse_foreign(folder)
        if wrong:
            logger.warning(f"{run_folder / 'checkpoints'}: using {folder.name} instead, the newest good checkpoint")
        return folder
    raise InputError(
        "; ".join(wrong) or "the run has written checkpoints, but none are left",
        where=str(run_folder / "checkpoints"),
        hint="restore a good copy of a checkpoint, or start another run with `run.id=NEW`",
    )


def describe_file(path: Path, *, sync: bool = False) -> FileEntry:
    """Return size and hash of a file; with `sync`, first flush it to disk.

    Raises:
        OSError: the file cannot be read or flushed to disk.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if sync:
            os.fsync(file.fileno())
        return FileEntry(os.fstat(file.fileno()).st_size, digest)


def make_staging(folder: Path) -> Path:
    """Create an empty staging folder for a checkpoint, including the engine's folder."""
    staging = staging_folder(folder)
    if staging.is_symlink():  # rmtree keeps links, so the checkpoint would be written to the link's target
        staging.unlink()
    shutil.rmtree(staging, ignore_errors=True)
    (staging / ENGINE_FOLDER).mkdir(parents=True)
    return staging


def commit(
    folder: Path, state: TrainingState, files: Mapping[str, FileEntry], keep: int, check: Callable[[], None]
) -> None:
    """Commit a complete checkpoint by renaming its staging folder, then remove old checkpoints.

    If this is interrupted at any point, a good checkpoint still exists, either the new one or an earlier one.

    Args:
        folder: the checkpoint's folder.
        state: the loop's state.
        files: files that the processes have written and flushed, by path within the folder.
        keep: number of checkpoints to keep, besides milestones.
        check: function that raises an error if this run may no longer write here; called right before the rename.

    Raises:
        OSError: the disk fails.
        KdcoreError: raised by `check`.
    """
    staging = staging_folder(folder)
    if folder.exists() and is_milestone(folder):  # rewritten at the same step with a later clock
        state = replace(state, milestone=True)
    _write(staging / STATE, json.dumps(asdict(state), indent=2) + "\n")
    manifest = {**files, STATE: describe_file(staging / STATE)}
    _write(staging / _MANIFEST, _dump(manifest, _FORMAT))
    commit_directory(staging, folder, replace=True, check=check)
    _write(folder.with_name(_LATEST), folder.name)
    sync_folder(folder.parent)
    run_folder = folder.parent.parent
    if not (run_folder / _MARK).exists():
        _write(
            run_folder / _MARK, "This run has written checkpoints. If all are lost, it does not restart from step 0.\n"
        )
        sync_folder(run_folder)
    _let_go(run_folder, state.step, keep)


def clean_up(run_folder: Path) -> None:
    """Clean up after a run that was killed while writing a checkpoint. Call it only while holding the run lock."""
    folder = run_folder / "checkpoints"
    restore_replaced(folder)
    for removed in folder.glob(f"{_REMOVED}*"):
        shutil.rmtree(removed, ignore_errors=True)


def size_of(folder: Path) -> int:
    """Return the size of a checkpoint in bytes according to its manifest; 0 if the manifest is damaged."""
    try:
        return sum(entry.size for entry in _manifest(folder).files.values())
    except _DamagedError:
        return 0


def is_milestone(folder: Path) -> bool:
    """Return whether a checkpoint is kept permanently; True if its state cannot be read."""
    try:
        return read_state(folder).milestone
    except InputError:
        return True


def _let_go(run_folder: Path, step: int, keep: int) -> None:
    """Remove all checkpoints newer than `step`. Of the others, keep only milestones and the newest `keep`.

    Newer checkpoints belong to steps that the run will repeat.
    """
    found = all_checkpoints(run_folder)
    later = [path for path in found if step_of(path) > step]
    old = [path for path in found if step_of(path) <= step][:-keep]
    for folder in later + [path for path in old if not is_milestone(path)]:
        removed = folder.with_name(_REMOVED + folder.name)  # a partly removed folder must not look like a checkpoint
        os.replace(folder, removed)
        shutil.rmtree(removed, ignore_errors=True)


@dataclass(frozen=True)
class _CheckpointManifest:
    format: int
    files: dict[str, FileEntry]


def _trusted(folder: Path) -> _CheckpointManifest:
    """Read the manifest.

    Raises:
        InputError: the manifest is missing or damaged, or has a newer format.
    """
    try:
        return _manifest(folder)
    except _DamagedError as error:
        raise InputError(f"{_MANIFEST} {error}", where=str(folder)) from error


def _refuse_newer(folder: Path) -> None:
    """Reject a checkpoint of a newer format, because falling back to an older one would lose steps."""
    try:
        _manifest(folder)
    except _NewerError as error:
        raise InputError(f"{_MANIFEST} {error}", where=str(folder), hint="upgrade kdcore") from error
    except _DamagedError:
        return


def _manifest(folder: Path) -> _CheckpointManifest:
    path = folder / _MANIFEST
    try:
        if path.is_symlink():
            raise _DamagedError("is a link (expected a regular file)")
        text = _read_text(path)
    except FileNotFoundError as error:
        raise _DamagedError("is missing") from error
    except OSError as error:
        raise _DamagedError(f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise _DamagedError("is corrupt") from error
    try:
        content = json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise _DamagedError(f"is corrupt: {first_line(error)}") from error
    number = content.get("format") if isinstance(content, dict) else None
    if type(number) is not int or number < 1:
        raise _DamagedError("is corrupt: it has no format number")
    if number > _FORMAT:
        raise _NewerError(f"has an unsupported format (found {number}, expected at most {_FORMAT})")
    entries = content.get("files")
    if not isinstance(entries, dict):
        raise _DamagedError("is corrupt: it lists no files")
    files = {name: _entry(name, entry) for name, entry in entries.items()}
    if STATE not in files:
        raise _DamagedError(f"is corrupt: it does not list {STATE}")
    if text != _dump(files, number):  # the text includes a hash of its entries
        raise _DamagedError("is corrupt")
    return _CheckpointManifest(number, files)


def _entry(name: str, entry: Any) -> FileEntry:
    """Check one entry of a manifest."""
    shown = repr(name[:_SHOWN])
    if not _FILE.fullmatch(name):
        raise _DamagedError(f"names {shown}, which is not a checkpoint file")
    if not isinstance(entry, dict) or entry.keys() != {"size", "sha256"}:
        raise _DamagedError(f"has no size and sha256 for {shown}")
    size, digest = entry["size"], entry["sha256"]
    if type(size) is not int or not 0 <= size <= _LARGEST_SIZE:
        raise _DamagedError(f"has no size in bytes for {shown} (found {str(size)[:_SHOWN]})")
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise _DamagedError(f"has no sha256 for {shown} (found {str(digest)[:_SHOWN]})")
    return FileEntry(size, digest)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"duplicate key {twice[:_SHOWN]!r}")
    return content


def _dump(files: Mapping[str, FileEntry], number: int) -> str:
    entries = {name: asdict(files[name]) for name in sorted(files)}
    digest = hashlib.sha256(json.dumps(entries).encode()).hexdigest()
    return json.dumps({"format": number, "files": entries, "sha256_of_files": digest}, indent=2) + "\n"


def _read_text(path: Path) -> str:
    """Read a file that contains JSON or a name.

    Raises:
        OSError: the file cannot be read, is not a regular file, or is larger than any file that a run writes.
        UnicodeDecodeError: the file is not text.
    """
    return read_small_file(path).decode()


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())
