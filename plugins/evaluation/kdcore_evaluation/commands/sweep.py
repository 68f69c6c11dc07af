"""`kdcore sweep`: train the runs of a sweep file, and compare them on a page."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcore import (
    EXIT_INPUT,
    Command,
    InputError,
    SweepCell,
    SweepFile,
    add_overrides,
    as_override,
    get_command,
    load_config,
    load_recipe,
    make_sweep,
)

if TYPE_CHECKING:
    from kdcore_evaluation.report.comparison import Comparison
    from kdcore_evaluation.run.pool import ChildProcess
    from kdcore_evaluation.run.suite import Suite

_PAGE = "page.html"


class SweepCommand(Command):
    """Train every combination of a sweep file, measure the students with its suite, and compare them on a page.

    Run the same command again to continue a stopped sweep. `key=value` changes every recipe, and `suite.key=value`
    changes the suite. With --profile, all runs, including the fine-tuning runs, are submitted as jobs by
    `kdcore launch`. --smoke runs the small sweep that the file defines under `smoke`, which takes minutes.

    --plan trains nothing. It prints the number of runs and hours, and the smallest differences between groups that can
    be detected with the given seeds and test texts. These are based on the standard deviations of earlier results below
    `evaluations`.

    Exit codes: 0 finished, 1 machine failure, 2 wrong input, 3 training failed, 130 interrupted.
    """

    help = "train every run of a sweep file, evaluate and compare them"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare FILE, overrides, --profile, --processes, --smoke, --plan, --deviation."""
        parser.add_argument("sweep", metavar="FILE", help="sweep file, or kdcore:NAME for a sweep shipped with kdcore")
        add_overrides(parser)
        parser.add_argument("--processes", metavar="N", type=int, default=1, help="number of parallel runs; default: 1")
        parser.add_argument("--profile", metavar="PROFILE", help="submit them with `kdcore launch`, and wait")
        parser.add_argument("--smoke", action="store_true", help="run the small sweep defined by `smoke` in the file")
        parser.add_argument("--plan", action="store_true", help="only print runs, hours and detectable differences")
        parser.add_argument(
            "--deviation",
            metavar="SD",
            type=float,
            help="standard deviation of a score over seeds for --plan; default: from earlier results, or 0.01",
        )

    def run(self, arguments: argparse.Namespace) -> int:
        """Train, evaluate and compare."""
        from kdcore_evaluation.run.suite import Suite

        if arguments.deviation is not None and not 0 < arguments.deviation < math.inf:
            raise InputError(f"must be a positive number (found {arguments.deviation:g})", where="--deviation")
        if arguments.processes < 1:
            raise InputError(f"must be at least 1 (found {arguments.processes})", where="--processes")
        name = Path(arguments.sweep).stem + ("-smoke" if arguments.smoke else "")
        sweep = load_config(arguments.sweep, SweepFile)
        if arguments.smoke:
            sweep = _smaller(sweep, arguments.sweep)
        if sweep.recipes is None or sweep.suite is None:
            missing = "recipes" if sweep.recipes is None else "suite"
            raise InputError(f"`{missing}` is missing", where=arguments.sweep, hint="docs/evaluation.md has an example")
        own = [word for word in arguments.overrides if not word.startswith("suite.")]
        of_suite = [word.removeprefix("suite.") for word in arguments.overrides if word.startswith("suite.")]
        overrides = [*_overrides(sweep.overrides), *own]
        axes = sweep.override_axes
        cells = make_sweep(sweep.recipes, overrides, axes)
        imports = False
        for cell in cells:
            recipe = load_recipe(cell.recipe, cell.overrides)
            recipe.components()
            imports = imports or bool(recipe.allowed_imports)
        suite = [*_overrides(sweep.suite_overrides), *of_suite]
        checked = load_config(sweep.suite, Suite, suite)  # report its mistakes before days of training
        if arguments.plan:
            print(_plan(sweep, cells, checked, arguments.deviation))
            return 0
        if arguments.profile is not None:
            launched = [word for key, values in axes.items() for word in ("--sweep", f"{key}={','.join(values)}")]
            launched = ["launch", *sweep.recipes, *overrides, *launched, "--profile", arguments.profile, "--wait"]
        else:
            launched = []
        code = _train(cells, launched, arguments.processes)
        if code:
            return code
        folder = Path("evaluations") / name
        folders = [str(cell.folder) for cell in cells]
        options = ["--output", str(folder), "--processes", str(arguments.processes)]
        if imports:  # the imports come from the user's own recipes, so those in the runs' copies may be executed, too
            options += ["--allow-imports"]
        if arguments.profile is not None:
            options += ["--profile", arguments.profile]
        # The intermediate exports are the points of the plot of scores against the budget.
        code = _kdcore(["evaluate", *folders, *suite, "--on", sweep.suite, "--exports", "all", *options])
        if code:
            return code
        by = ["--by", ",".join(sweep.compare.by), "--over", sweep.compare.over]
        return _kdcore(["compare", *folders, *by, "--results", str(folder), "--html", str(folder / _PAGE)])


def _plan(sweep: SweepFile, cells: Sequence[SweepCell], suite: Suite, deviation: float | None) -> str:
    """Describe the differences that the sweep can detect, and its duration."""
    from kdcore_evaluation.report.sweep_plan import plan_text

    by, over = sweep.compare.by, sweep.compare.over
    own = len(sweep.recipes or ()) if {"method", "run"} & set(by) else 1
    groups = math.prod((len(values) for key, values in sweep.axes.items() if key in by and key != over), start=own)
    seeds = len(sweep.axes.get(over, [None]))
    return plan_text(cells, groups, seeds, over, suite, _earlier(over), deviation)


def _earlier(over: str) -> Comparison | None:
    """Compare the runs of all evaluations below `evaluations`; None if there are none."""
    from kdcore_evaluation.commands.compare import find_results, read_runs
    from kdcore_evaluation.report.comparison import compare_runs
    from kdcore_evaluation.run.results import JSON_LINES

    places = [path.parent for path in sorted(Path("evaluations").glob(f"**/{JSON_LINES}"))]
    try:
        results, folders = find_results(places, None)
        return compare_runs(read_runs(folders), results, ("method",), over) if folders else None
    except InputError:
        return None  # there are no results, or their runs were removed


def _smaller(sweep: SweepFile, where: str) -> SweepFile:
    small = sweep.smoke
    if small is None:
        raise InputError("the file has no key `smoke`, which defines the small sweep", where=where, key="smoke")
    return sweep.model_copy(
        update={
            "recipes": small.recipes or sweep.recipes,
            "axes": {**sweep.axes, **small.axes},
            "overrides": {**sweep.overrides, **small.overrides},
            "suite": small.suite or sweep.suite,
            "suite_overrides": {**sweep.suite_overrides, **small.suite_overrides},
        }
    )


def _overrides(keys: Mapping[str, Any]) -> list[str]:
    return [as_override(key, value) for key, value in keys.items()]


def _train(cells: Sequence[SweepCell], launched: Sequence[str], processes: int) -> int:
    """Train unfinished runs on this machine, or with the command `launched`; return an exit code."""
    from kdcore import run_state
    from kdcore_evaluation.run.pool import ChildProcess, run_children

    left = [cell for cell in cells if run_state(cell.folder) != "finished"]
    print(f"{len(cells)} runs, {len(cells) - len(left)} of them already finished", file=sys.stderr, flush=True)
    if not left:
        return 0
    if launched:
        get_command("launch")  # if it is missing, the error names the package
        return _kdcore(launched)
    codes: list[int] = []

    def ended(job: ChildProcess, code: int) -> bool:
        codes.append(code)
        print(f"run {job.name}: {'finished' if not code else f'failed with exit code {code}'}", file=sys.stderr)
        if code:
            print(job.log.read_text(encoding="utf-8", errors="replace")[-4000:], file=sys.stderr, flush=True)
        return code != EXIT_INPUT

    jobs = [
        ChildProcess(
            str(cell.folder),
            ["-m", "kdcore", "train", cell.recipe, *cell.overrides],
            cell.folder.with_name(f".{cell.folder.name}.log"),
        )
        for cell in left
    ]
    run_children(jobs, processes, ended)
    return next((code for code in codes if code), 0)


def _kdcore(arguments: Sequence[str]) -> int:
    from kdcore_evaluation.run.pool import run_and_wait

    return run_and_wait(["-m", "kdcore", *arguments])
