"""`kdcore compare`: compare runs in tables and on a page."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdcore import Command, InputError, atomic_write

if TYPE_CHECKING:
    from kdcore_evaluation.report.comparison import Results
    from kdcore_evaluation.run.compared_runs import ComparedRun

_FORMATS = ("terminal", "markdown", "csv", "json", "latex")


class CompareCommand(Command):
    """Compare runs: their scores with intervals, and differences between them, in tables and on a page with plots.

    Pass run folders, folders of runs, or output folders of `kdcore evaluate` to compare their runs. Scores are read
    from all folders below `evaluations`, or below the folders named by --results.

    --by and --over take keys of recipes, such as student.initialize.blocks, or these words:

    method   names of the losses, joined
    run      NAME/ID
    seed     the recipe's seed
    export   name of the export
    """

    help = "compare runs: tables, and a page with plots"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare RUN, --by, --over, --margin, --train-without-teacher, --format, --html, --results."""
        parser.add_argument("places", metavar="RUN", nargs="+", type=Path, help="runs, folders of runs, evaluations")
        parser.add_argument(
            "--by", metavar="KEY,...", default="method", help="keys that define the groups; default: method"
        )
        parser.add_argument("--over", metavar="KEY", default="seed", help="key of the repetitions; default: seed")
        parser.add_argument(
            "--margin",
            metavar="POINTS",
            type=float,
            help="also test whether scores fall below the teacher's by less than this margin; 1 point is 0.01",
        )
        parser.add_argument(
            "--train-without-teacher",
            action="store_true",
            help="first, train the student of each finished classification or tagging run again without its teacher",
        )
        parser.add_argument(
            "--format", choices=_FORMATS, default="terminal", help="format of the table; default: terminal"
        )
        parser.add_argument("--html", metavar="FILE", type=Path, help="write the comparison page to this file")
        parser.add_argument(
            "--results",
            metavar="FOLDER",
            type=Path,
            action="append",
            help="folder of evaluations; default: evaluations",
        )

    def run(self, arguments: argparse.Namespace) -> int:
        """Compare runs, print the table and write the page."""
        from kdcore_evaluation.report import table_formats as formats
        from kdcore_evaluation.report.comparison import compare_runs
        from kdcore_evaluation.report.learning import signs_of_collapse
        from kdcore_evaluation.report.page import page

        by = tuple(part.strip() for part in arguments.by.split(",") if part.strip())
        if not by:
            raise InputError("no key is given", where="--by", hint="name keys, such as --by method")
        if arguments.margin is not None and not 0 < arguments.margin < math.inf:
            raise InputError(f"must be a positive number (found {arguments.margin:g})", where="--margin")
        results, folders = find_results(arguments.places, arguments.results)
        runs = read_runs(folders)
        if arguments.train_without_teacher:
            runs = read_runs(list(dict.fromkeys([*folders, *_trained_without_teacher(runs)])))
        comparison = compare_runs(runs, results, by, arguments.over.strip(), arguments.margin)
        for run in comparison.runs:
            if signs := signs_of_collapse(run):
                found = "; ".join(sign.text for sign in signs)
                print(f"warning: {run.name}: may have collapsed or learned nothing: {found}", file=sys.stderr)
        for remark in comparison.remarks:
            print(f"remark: {remark}", file=sys.stderr)
        if arguments.html is not None:
            _write(arguments.html, page(comparison))
            print(f"page: {arguments.html}", file=sys.stderr)
        if arguments.format == "terminal":
            if text := comparison.text():
                print(text)
        elif comparison.table.columns:
            write = {"markdown": formats.markdown, "csv": formats.csv_text, "json": formats.json_text}
            print(write.get(arguments.format, formats.latex)(comparison.table))
        return 0


def _trained_without_teacher(runs: Sequence[ComparedRun]) -> list[Path]:
    from kdcore_evaluation.run.finished_scores import read_predictions
    from kdcore_evaluation.run.without_teacher import train_without_teacher

    taught = [run for run in runs if run.teacher is not None and read_predictions(run) is not None]
    if not taught:
        what, hint = "no run has a teacher and predictions of labelled texts", "let a distilled run finish first"
        raise InputError(what, where="--train-without-teacher", hint=hint)
    return train_without_teacher(taught)


def read_runs(folders: Sequence[Path]) -> list[ComparedRun]:
    """Read the runs. If there are other runs, a run with a damaged recipe is skipped with a warning.

    Raises:
        InputError: no run can be read.
    """
    from kdcore import run_state
    from kdcore_evaluation.run.compared_runs import read_run

    runs, errors = [], []
    for folder in folders:
        try:
            runs.append(read_run(folder, run_state(folder)))
        except InputError as error:
            errors.append(error)
    if not runs:
        raise InputError([problem for error in errors for problem in error.problems])
    for left_out in errors:
        print(f"warning: a run is left out: {left_out.problems[0]}", file=sys.stderr)
    return runs


def find_results(places: Sequence[Path], stated: Sequence[Path] | None) -> tuple[list[Results], list[Path]]:
    """Find evaluations and run folders, without duplicates."""
    from kdcore import run_folders
    from kdcore_evaluation.report.comparison import Results
    from kdcore_evaluation.run.results import JSON_LINES, read_rows

    evaluations = [place for place in places if (place / JSON_LINES).is_file()]
    searched = list(stated) if stated is not None else [Path("evaluations")]
    for folder in searched:
        found = [path.parent for path in sorted(folder.glob(f"**/{JSON_LINES}"))] if folder.is_dir() else []
        if stated is not None and not found:
            raise InputError(
                "the folder contains no results", where=str(folder), hint="run kdcore evaluate RUN --on SUITE"
            )
        evaluations += found
    results = [Results(path.absolute(), read_rows(path)) for path in dict.fromkeys(map(_absolute, evaluations))]
    runs: list[Path] = []
    for place in places:
        if (place / JSON_LINES).is_file():
            rows = next(one.rows for one in results if one.folder == _absolute(place))
            inside = [_absolute(place / row.run) for row in rows if row.run is not None]
            found = [path for path in dict.fromkeys(inside) if (path / "recipe.yaml").is_file()]
        else:
            found = [path for path in run_folders(place) if (path / "recipe.yaml").is_file()]
        if not found:
            what = "the folder contains no runs" if place.is_dir() else "no such folder"
            raise InputError(what, where=str(place), hint="pass run folders (runs/NAME/ID) or a folder of runs")
        runs += found
    return results, list(dict.fromkeys(map(_absolute, runs)))


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise InputError(f"the page cannot be written: {error.strerror}", where=str(path)) from error
