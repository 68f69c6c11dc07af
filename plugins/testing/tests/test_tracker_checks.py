"""`check_tracker` passes the trackers of kdcore, and names the fault of a wrong one."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from kdcore_testing import check_tracker
from tensorboardX.proto.event_pb2 import Event, SessionLog

from kdcore import Tracker, read_metrics

Values = list[tuple[int, str, float]]


def rows_of_jsonl(run: Path) -> Values:
    rows = read_metrics(run)
    return [(row["step"], name, value) for row in rows for name, value in row.items() if name != "step"]


def scalars_of_tensorboard(run: Path) -> Values:
    """Read event files as TensorBoard does: in the order of their names, each start purges later steps before it."""
    values: Values = []
    for file in sorted((run / "tensorboard").iterdir()):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            if event.session_log.status == SessionLog.START:
                values = [one for one in values if one[0] < event.step]
            values += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    return values


def test_trackers_of_kdcore_pass() -> None:
    check_tracker("jsonl", read=rows_of_jsonl)
    check_tracker("tensorboard", read=scalars_of_tensorboard)
    check_tracker(Lines, read=lines)
    check_tracker(Lines)


class Lines(Tracker):
    """JSON lines, as they should be; the others below are wrong."""

    def __init__(self, config: Any, run_folder: Path) -> None:
        super().__init__(config, run_folder)
        self.path = run_folder / "lines"
        self.path.touch()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            for name, value in metrics.items():
                file.write(json.dumps([step, name, value]) + "\n")

    def rewind(self, step: int) -> None:
        kept = [line for line in self.path.read_text(encoding="utf-8").splitlines() if json.loads(line)[0] <= step]
        self.path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def close(self) -> None:
        pass


def lines(run: Path) -> Values:
    return [tuple(json.loads(line)) for line in (run / "lines").read_text(encoding="utf-8").splitlines()]


class Changing(Lines):
    def log(self, step: int, metrics: Any) -> None:
        super().log(step, metrics)
        metrics["step"] = step


class Strict(Lines):
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        json.dumps(dict(metrics), allow_nan=False)
        super().log(step, metrics)


class SkipsNaN(Lines):
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        super().log(step, {name: value for name, value in metrics.items() if value == value})


class OnlyNew(Lines):
    def __init__(self, config: Any, run_folder: Path) -> None:
        super().__init__(config, run_folder / "new")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        pass


class Once(Lines):
    def __init__(self, config: Any, run_folder: Path) -> None:
        (run_folder / "once").mkdir()
        super().__init__(config, run_folder)


class Keeping(Lines):
    def rewind(self, step: int) -> None:
        pass


class Restarting(Lines):
    def rewind(self, step: int) -> None:
        self.path.write_text("", encoding="utf-8")


class Unflushed(Lines):
    def __init__(self, config: Any, run_folder: Path) -> None:
        super().__init__(config, run_folder)
        self.rows: list[tuple[int, Mapping[str, float]]] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.rows.append((step, metrics))
        for one in self.rows[:-1]:
            super().log(*one)
        self.rows = self.rows[-1:]


class ClosedTwice(Lines):
    opened = False

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        super().log(step, metrics)
        self.opened = True

    def close(self) -> None:
        if not self.opened:
            raise ValueError("no file is open")


class NotAfterRewind(Lines):
    rewound = False

    def rewind(self, step: int) -> None:
        super().rewind(step)
        self.rewound = True

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self.rewound:
            raise ValueError("the file is closed")
        super().log(step, metrics)


@pytest.mark.parametrize(
    ("tracker", "words"),
    [
        (Changing, r"`log` changes the metrics that it is given: .*'step': 1"),
        (Strict, "`log` fails for the values nan, inf: ValueError"),
        (SkipsNaN, "after `close`, `train/loss` = nan of step 2 is not recorded"),
        (OnlyNew, "the constructor fails: FileNotFoundError"),
        (Once, "the constructor fails in the folder of an interrupted run: FileExistsError"),
        (
            Keeping,
            r"after `rewind\(2\)` and further rows, `train/loss` = 0.25 of step 3 is recorded, but was discarded",
        ),
        (Restarting, r"after `rewind\(2\)` and further rows, `train/loss` = 0.5 of step 1 is not recorded"),
        (Unflushed, "after `close`, `train/loss` = 0.125 of step 4 is not recorded"),
        (ClosedTwice, "`close` fails if nothing was logged: ValueError: no file is open"),
        (NotAfterRewind, "`log` fails for the values 0.375 after `rewind`: ValueError: the file is closed"),
    ],
)
def test_the_fault_of_a_wrong_tracker_is_named(tracker: type[Tracker], words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check_tracker(tracker, read=lines)
