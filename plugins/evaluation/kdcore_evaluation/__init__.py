"""Measure, compare and sweep distilled encoders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdcore_evaluation.report.comparison import Comparison

__all__ = ["compare"]


def compare(
    runs: Sequence[str | Path],
    *,
    by: Sequence[str] = ("method",),
    over: str = "seed",
    results: Sequence[str | Path] | None = None,
) -> Comparison:
    """Compare runs, like the command `kdcore compare`; `print` shows the table, and a notebook displays the page.

    Args:
        runs: run folders, folders of runs, or folders of evaluations.
        by: keys of recipes that define the groups, or `method`, `run`, `seed`, `export`.
        over: key of the repetitions.
        results: folders of evaluations; default: all folders below `evaluations`.

    Raises:
        InputError: a folder contains no run, or a key does not exist.
    """
    from kdcore_evaluation.commands.compare import find_results, read_runs
    from kdcore_evaluation.report.comparison import compare_runs

    stated = None if results is None else [Path(folder) for folder in results]
    found, folders = find_results([Path(run) for run in runs], stated)
    return compare_runs(read_runs(folders), found, tuple(by), over)
