"""Check the requirements on trackers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from kdcore import Tracker, find_component
from kdcore_testing.failures import failing_as

Values = Iterable[tuple[int, str, float]]
"""Recorded values: step, name of the metric, value."""

_BEFORE: dict[int, dict[str, float]] = {
    1: {"train/loss": 0.5, "train/lr": 1e-4},
    2: {"train/loss": math.nan, "validation/loss": math.inf},
    3: {"train/loss": 0.25},
    4: {"train/loss": 0.125},
}
_RESUMED_FROM = 2
_AFTER: dict[int, dict[str, float]] = {3: {"train/loss": 0.375}, 5: {"train/loss": -math.inf, "train/lr": 0.0}}


def check_tracker(
    name: str | type[Tracker],
    config: Mapping[str, Any] | None = None,
    *,
    read: Callable[[Path], Values] | None = None,
) -> None:
    """Check the requirements on every tracker.

    1. `log` accepts any step and any metrics, including NaN and infinite values, and does not change the metrics.
    2. `close` works after rows have been logged, and also if no row was logged.
    3. A new tracker in the same run folder continues after `rewind`, even if the run was interrupted before its first
       row.
    4. With `read`: after `close`, the run folder contains each logged value once, in single precision or better,
       without the values that `rewind` discarded.

    Args:
        name: registered name, or class.
        config: its keys in a recipe, without `name`.
        read: returns the values recorded in a run folder, as (step, name, value). Without it, 4. is not checked.

    Raises:
        AssertionError: a requirement is violated; the message names it.
    """
    cls: Any = find_component("kdcore.trackers", name).cls if isinstance(name, str) else name
    keys = cls.Config.model_validate(dict(config or {}))
    with TemporaryDirectory() as folder:
        run = Path(folder)
        _log_and_close(cls, keys, run, _BEFORE, None)
        _compare(read, run, _BEFORE, "after `close`")
        _log_and_close(cls, keys, run, _AFTER, _RESUMED_FROM)
        kept = {step: row for step, row in _BEFORE.items() if step <= _RESUMED_FROM}
        _compare(read, run, kept | _AFTER, f"after `rewind({_RESUMED_FROM})` and further rows")
    with TemporaryDirectory() as folder:
        run = Path(folder)
        _log_and_close(cls, keys, run, {}, None)
        _log_and_close(cls, keys, run, _AFTER, 0)
        _compare(read, run, _AFTER, "after a run without rows was resumed")


def _log_and_close(
    cls: Any, config: Any, run: Path, rows: Mapping[int, Mapping[str, float]], start: int | None
) -> None:
    with failing_as("the constructor fails" + ("" if start is None else " in the folder of an interrupted run")):
        tracker: Tracker = cls(config, run)
    if start is not None:
        with failing_as(f"`rewind({start})` fails"):
            tracker.rewind(start)
    given = {step: dict(row) for step, row in rows.items()}
    for step, row in given.items():
        values = ", ".join(str(value) for value in row.values())
        with failing_as(f"`log` fails for the values {values}" + ("" if start is None else " after `rewind`")):
            tracker.log(step, row)
    with failing_as("`close` fails" + ("" if rows else " if nothing was logged")):
        tracker.close()
    for step, row in given.items():
        assert row == rows[step], f"`log` changes the metrics that it is given: {dict(rows[step])} became {row}"


def _compare(
    read: Callable[[Path], Values] | None, run: Path, rows: Mapping[int, Mapping[str, float]], when: str
) -> None:
    if read is None:
        return
    # As text, because NaN is not equal to itself.
    found = sorted((step, name, str(np.float32(value))) for step, name, value in read(run))
    expected = sorted((step, name, str(np.float32(value))) for step, row in rows.items() for name, value in row.items())
    missing = [one for one in expected if one not in found]
    assert not missing, f"{when}, `{missing[0][1]}` = {missing[0][2]} of step {missing[0][0]} is not recorded"
    extra = [one for one in found if found.count(one) > expected.count(one)]
    assert not extra, f"{when}, `{extra[0][1]}` = {extra[0][2]} of step {extra[0][0]} is recorded, but was discarded"
