"""Run checks one after the other, each in its own process, and record every result as soon as it is known.

Imports neither torch nor kdcore, so that a broken installation becomes a result as well.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OUT_OF_TIME = "not run: out of time"


@dataclass
class Findings:
    """What a check has measured so far; every change is on disk at once, so that a killed check loses nothing.

    Attributes:
        file: where the values are kept.
        values: measurements by name.
        failures: expectations that do not hold.
    """

    file: Path
    values: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def note(self, name: str, value: Any) -> None:
        """Keep a measurement, which JSON must be able to express."""
        self.values[name] = value
        self._write()

    def expect(self, holds: bool, failure: str) -> None:
        """Keep a sentence about an expectation that does not hold; the check continues."""
        if not holds:
            self.failures.append(failure)
            self._write()

    def _write(self) -> None:
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps({"values": self.values, "failures": self.failures}), encoding="utf-8")
        part.replace(self.file)


@dataclass(frozen=True)
class Setting:
    """How a check runs.

    Attributes:
        device: `cuda`, or `cpu` to try the check itself.
        small: tiny models and few cases.
        folder: an empty folder.
        findings: takes what the check finds.
    """

    device: str
    small: bool
    folder: Path
    findings: Findings


@dataclass(frozen=True)
class Check:
    """A check of a suite.

    Attributes:
        name: its name in results.
        seconds: after which it is killed.
        command: a process that writes its Findings to the file that is added as the last argument.
    """

    name: str
    seconds: float
    command: Sequence[str]


def run_checks(
    checks: Sequence[Check], seconds: float, facts: Mapping[str, Any], results: Path, environment: Mapping[str, str]
) -> bool:
    """Run checks and append one JSON line to `results` after each of them.

    Args:
        checks: in their order.
        seconds: limit of all checks together; a check that would begin after it is recorded as not run.
        facts: what every line states about the machine.
        results: the file.
        environment: of the processes.

    Returns:
        Whether all checks have run and passed.
    """
    end = time.monotonic() + seconds
    passed = True
    results.parent.mkdir(parents=True, exist_ok=True)
    with open(results, "a", encoding="utf-8") as file:
        for check in checks:
            left = end - time.monotonic()
            line = {"check": check.name, **facts}
            if left < min(1.0, check.seconds):
                line |= {"passed": None, "error": OUT_OF_TIME, "seconds": 0.0, "values": {}}
            else:
                line |= _run(check, min(left, check.seconds), environment)
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
            passed = passed and line["passed"] is True
            word = {True: "passed", False: "FAILED", None: "-"}[line["passed"]]
            print(f"{check.name}: {word} ({line['seconds']:.1f} s) {line['error'] or ''}".rstrip(), flush=True)
    return passed


def _run(check: Check, seconds: float, environment: Mapping[str, str]) -> dict[str, Any]:
    """Run one check and return what its line states beside the facts."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        file = Path(folder, "findings.json")
        process = subprocess.Popen(
            [*check.command, str(file)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,  # so that everything that it has started can be killed with it
        )
        error = None
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            error = f"killed after {seconds:.0f} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        found: dict[str, Any] = {"values": {}, "failures": []}
        with suppress(OSError, ValueError):
            found = json.loads(file.read_text(encoding="utf-8"))
        log.seek(0)
        lines = log.read().splitlines()
    if error is None and process.returncode:
        error = f"exit code {process.returncode}: {lines[-1] if lines else 'no output'}"
    problems = [*found["failures"], *([error] if error else [])]
    if problems:
        print("\n".join(lines[-40:]), file=sys.stderr, flush=True)
    return {
        "passed": not problems,
        "error": "; ".join(problems) or None,
        "seconds": round(time.monotonic() - started, 1),
        "values": found["values"],
    }
