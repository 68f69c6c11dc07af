"""Implement `kdcore export`: write the student of a run as a Hugging Face folder."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from kdcore.commands.base import Command, ExportOption, add_allow_imports, add_options
from kdcore.errors import InfrastructureError, InputError, KdcoreError, PluginError
from kdcore.registry import Entry, describe_error, export_options


class ExportCommand(Command):
    """Write the student of a run's checkpoint as a Hugging Face folder in float32."""

    help = "write the student of a checkpoint as a Hugging Face folder"

    def __init__(self) -> None:
        self._options: list[tuple[Entry, ExportOption]] = []

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare RUN, FOLDER, --checkpoint, and the options that packages add."""
        parser.add_argument("run", metavar="RUN", type=Path, help="run folder, such as runs/NAME/ID")
        parser.add_argument("folder", metavar="FOLDER", type=Path, help="folder to write")
        parser.add_argument("--checkpoint", type=int, metavar="STEP", help="the checkpoint's step; default: the newest")
        add_allow_imports(parser)
        # An option of another package never displaces one of ours.
        for entry in sorted(export_options.entries(), key=lambda entry: entry.precedence):
            try:
                option: ExportOption = export_options.get(f"{entry.distribution}:{entry.name}")()
                add_options(option, entry, parser, ["RUN", "FOLDER"])
            except KdcoreError as error:  # a broken package must not keep others from exporting
                print(f"warning: left out: {error}", file=sys.stderr)
                continue
            self._options.append((entry, option))

    def run(self, arguments: argparse.Namespace) -> int:
        """Export the student, apply the packages' options, commit the folder, and print its path."""

        def finish(staging: Path) -> None:
            for entry, option in self._options:
                _apply(option, entry, staging, arguments)

        run, step, allowed = arguments.run, arguments.checkpoint, arguments.allow_imports
        print(f"exported to {export_to(arguments.folder, run, step, allow_imports=allowed, finish=finish)}")
        return 0


def export_to(
    folder: Path, run: Path, step: int | None, *, allow_imports: bool, finish: Callable[[Path], None] = lambda _: None
) -> Path:
    """Export the student of a run's checkpoint to a new folder, and return its absolute path.

    Args:
        folder: the folder to write.
        run: the run folder.
        step: the checkpoint's step; None for the newest.
        allow_imports: whether to run the files under `imports:` of the run's recipe.
        finish: called with the path of the complete export, which still has a temporary name.

    Raises:
        InputError: the folder is not empty, or the run has no such checkpoint.
        InfrastructureError: the folder cannot be written, for example because the disk is full.
    """
    from kdcore.training.run.export import export_run
    from kdcore.utils.atomic import atomic_directory
    from kdcore.utils.locks import lock_of, locked

    folder = Path(os.path.abspath(folder))
    _check_free(folder)
    with locked(lock_of(folder)):
        _check_free(folder)  # another process may have exported to it since
        with atomic_directory(folder, finished="config.json") as staging:
            export_run(run, staging, step, allow_imports=allow_imports)
            finish(staging)
    return folder


def _check_free(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError("the folder exists and is not empty", where=str(folder), hint="Choose a new folder.")


def _apply(option: ExportOption, entry: Entry, folder: Path, arguments: argparse.Namespace) -> None:
    try:
        option.apply(folder, arguments)
    except KdcoreError:
        raise
    except OSError as error:
        raise InfrastructureError(
            f"{arguments.folder}: {entry.name} of {entry.package} cannot write: {error}"
        ) from error
    except Exception as error:
        raise PluginError(
            f"export option `{entry.name}` of {entry.package} ({entry.value}) failed: {describe_error(error)}"
        ) from error
