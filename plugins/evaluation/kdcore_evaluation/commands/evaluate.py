"""`kdcore evaluate`: measure exported students on labelled tasks and by probes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdcore import Command, InputError, add_allow_imports, get_command, is_override, load_config

if TYPE_CHECKING:
    from kdcore_evaluation.run.evaluator import Launch


class EvaluateCommand(Command):
    """Measure exported students with a suite of fine-tuning tasks and probes.

    Pass run folders, folders of runs, Hugging Face model folders or hub models. Run the same command again to continue
    a stopped evaluation: finished trials are not repeated. `key=value` changes the suite, such as `seeds=[1]`.

    The results are rows in results.parquet and results.jsonl of the output folder, from which `kdcore compare` makes
    tables and a page.

    Exit codes: 0 finished, 1 machine failure, 2 wrong input, 3 a fine-tuning run failed, 130 interrupted.
    """

    help = "measure exported students with a suite of tasks and probes"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument(
            "places",
            metavar="RUN_OR_FOLDER",
            nargs="+",
            help="run folders, folders of runs, model folders, hub names; and key=value for the suite",
        )
        parser.add_argument("--on", metavar="SUITE", required=True, help="the suite's file, or kdcore:suites/NAME.yaml")
        parser.add_argument("--output", metavar="FOLDER", type=Path, help="default: evaluations/SUITE")
        parser.add_argument(
            "--exports",
            metavar="NAME,...",
            help="exports of a run to measure: final, best, budget-0.5, or all; default: best, or final",
        )
        parser.add_argument(
            "--processes", metavar="N", type=int, default=1, help="number of parallel fine-tuning runs; default: 1"
        )
        parser.add_argument(
            "--profile", metavar="FILE", help="submit the fine-tuning runs with `kdcore launch`, and wait"
        )

        add_allow_imports(parser)

    def run(self, arguments: argparse.Namespace) -> int:
        """Measure, and print a table."""
        from kdcore_evaluation.run.suite import Suite

        words: list[str] = arguments.places
        overrides = [word for word in words if is_override(word)]
        places = [word for word in words if word not in overrides]
        if not places:
            raise InputError("no run or model is given", hint="run kdcore evaluate RUN --on SUITE")
        if arguments.processes < 1:
            raise InputError(f"must be at least 1 (found {arguments.processes})", where="--processes")
        exports = _names(arguments.exports)
        suite = load_config(arguments.on, Suite, overrides)
        launch = _launch(arguments.profile) if arguments.profile is not None else None

        from kdcore import cache_folder, run_state
        from kdcore_evaluation.report.table_formats import terminal
        from kdcore_evaluation.run.evaluated_models import find_models
        from kdcore_evaluation.run.evaluator import Evaluator
        from kdcore_evaluation.run.scores import score_table

        models = find_models(places, exports, suite.references, _report, allow_imports=arguments.allow_imports)
        folder: Path = arguments.output or Path("evaluations") / suite.name
        evaluator = Evaluator(suite, folder, cache_folder(), _report)
        evaluation = evaluator.run(models, arguments.processes, launch, lambda run: run_state(run) == "finished")
        if evaluation.rows:
            print(terminal(score_table(evaluation.rows, evaluation.folder)))
        print(f"rows: {folder / 'results.parquet'}, {folder / 'results.jsonl'}")
        return evaluation.exit_code


def _report(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _names(text: str | None) -> list[str] | None:
    if text is None:
        return None
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names:
        raise InputError("no export is named", where="--exports", allowed="final, best, budget-0.5, ... or all")
    return names


def _launch(profile: str) -> Launch:
    """Return a function that trains recipes as one job array and waits until all jobs have finished."""
    from kdcore_evaluation.run.pool import run_and_wait

    get_command("launch")  # if it is missing, the error names the package

    def launch(recipes: Sequence[Path]) -> int:
        return run_and_wait(["-m", "kdcore", "launch", *map(str, recipes), "--profile", profile, "--wait"])

    return launch
