"""`kdcore prepare`: prepare raw text into a folder."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

from kdcore import Command, add_overrides

if TYPE_CHECKING:
    from kdcore import Manifest
    from kdcore_preparation.pipeline.preparation_progress import PreparationProgress


_SECONDS_BETWEEN_LINES = 30.0


class PrepareCommand(Command):
    """Read, clean, tokenise, pack and split raw text, and write it to a folder for `task.data`.

    FOLDER appears when it is complete. Until then, intermediate files are in .FOLDER.preparing next to it. To resume an
    interrupted preparation, even after SIGKILL, run the command again. The result is identical, byte for byte,
    regardless of interruptions and the number of workers.

    If text is damaged, everything readable is prepared, the damage is listed, and the exit code is 2 (0 with
    --keep-going).

    To prepare with several processes that share FOLDER, such as the tasks of a SLURM array, run in each

        kdcore prepare DATA.yaml FOLDER --task I/N        I = 1 ... N

    Task I of N prepares its part and exits with 0. The task that finishes last also assembles FOLDER. If a task failed,
    start it again, or run `kdcore prepare DATA.yaml FOLDER` once without --task to prepare the rest.
    """

    help = "prepare raw text for training"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare DATA.yaml, FOLDER, --workers, --task, --keep-going, overrides."""
        parser.add_argument("recipe", metavar="DATA.yaml", help="data recipe: corpora, tokenizer, sequence length")
        parser.add_argument("folder", metavar="FOLDER", help="output folder; it appears only when it is complete")
        parser.add_argument("--workers", metavar="N", type=_workers, help="number of processes; default: one per core")
        parser.add_argument(
            "--task", metavar="I/N", type=_task, help="prepare the I-th of N parts in parallel with other processes"
        )
        parser.add_argument("--keep-going", action="store_true", help="exit with 0 even if text is damaged")
        add_overrides(parser)

    def run(self, arguments: argparse.Namespace) -> int:
        """Prepare and print a summary."""
        from kdcore import load_config
        from kdcore_preparation.pipeline.prepare import DataRecipe, prepare, prepare_share, refuse_damaged

        recipe = load_config(arguments.recipe, DataRecipe, arguments.overrides)
        with _Display() as display:
            if arguments.task is None:
                prepared = prepare(
                    recipe, arguments.folder, progress=display, workers=arguments.workers, keep_going=True
                )
            else:
                task, tasks = arguments.task
                done, left = prepare_share(
                    recipe, arguments.folder, task, tasks, progress=display, workers=arguments.workers
                )
                if done is None:
                    print(f"task {task} of {tasks} is done; pieces of text left for other tasks: {left}")
                    return 0
                prepared = done
        for line in summary(prepared.manifest):
            print(line)
        if display.speed:
            print(display.speed)
        print(f"prepared in {prepared.folder}")
        if not arguments.keep_going:
            refuse_damaged(prepared, "`--keep-going` accepts the damage")
        return 0


def summary(manifest: Manifest) -> Iterator[str]:
    """Describe what was prepared, and what was left out and why."""
    from kdcore_preparation.inspection import account_table, corpus_label
    from kdcore_preparation.readers.books import READ_AS

    for split, entry in manifest.splits.items():
        sentences = "" if entry.sentences is None else f"{entry.sentences:,} sentences, "
        counts = f"{entry.documents:,} documents, {sentences}{entry.sequences:,} sequences, {entry.tokens:,} tokens"
        yield f"{split}: {counts}"
    for number, report in enumerate(manifest.reports):
        books = sum(count for what, count in report.items() if what.startswith(READ_AS))
        for what, count in report.items():
            fraction = f" ({count / books:.1%})" if what.startswith(READ_AS) else ""
            yield f"{corpus_label(manifest, number)}: {count:,} {what}{fraction}"
    yield from account_table(manifest)
    yield from (f"problem: {problem}" for problem in manifest.problems or ())


class _Display:
    """Show a progress bar on a terminal, or print progress regularly elsewhere; print the speed at the end."""

    def __init__(self) -> None:
        from kdcore_preparation.pipeline.preparation_progress import Speed

        self._bar: Any = None
        self._described = Speed()
        self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
        self._first: PreparationProgress | None = None
        self._start = 0.0
        self.speed = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, progress: PreparationProgress) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first, self._start = progress, now
        tokens, seconds = progress.tokens - self._first.tokens, now - self._start
        if tokens > 0 and seconds > 0:
            self.speed = f"{tokens:,} tokens in {seconds:,.0f} seconds: {tokens / seconds:,.0f} tokens/s"
        line = self._described.describe(progress)
        if sys.stderr.isatty():
            self._draw(progress)
        elif now >= self._next_line:
            self._next_line = now + _SECONDS_BETWEEN_LINES
            print(line, file=sys.stderr, flush=True)

    def _draw(self, progress: PreparationProgress) -> None:
        if self._bar is None or progress.bytes < self._bar.n:  # the next pass reads all text again
            from tqdm import tqdm

            if self._bar is not None:
                self._bar.close()
            self._bar = tqdm(total=progress.total_bytes, initial=progress.bytes, unit="B", unit_scale=True)
        self._bar.set_postfix_str(f"{progress.documents:,} documents", refresh=False)
        self._bar.update(progress.bytes - self._bar.n)


def _workers(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes (expected 1 or more)")
    return int(text)


def _task(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    task, tasks = (int(number) for number in found.groups()) if found else (0, 0)
    if not 1 <= task <= tasks:
        raise argparse.ArgumentTypeError(f"{text!r} is not a task (expected I/N with I from 1 to N, such as 3/8)")
    return task, tasks
