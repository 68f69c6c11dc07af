"""Record the job events of a run as JSON lines in `launch/history.jsonl` of the run folder.

`kdcore runs list` reads this file (`kdcore.read_history`). It is also used to enforce the limit on restarts.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from kdcore import read_history

LAUNCH = "launch"
_FILE = "history.jsonl"


def launch_folder(run_folder: Path) -> Path:
    """Return the folder of all files of a run's jobs."""
    return run_folder / LAUNCH


def append(run_folder: Path, event: str, job: str, **details: Any) -> None:
    """Append an event."""
    folder = launch_folder(run_folder)
    folder.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"event": event, "job": job, "time": round(time.time(), 3), **details})
    with (folder / _FILE).open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def restarts_without_progress(run_folder: Path, job: str, step: int) -> int:
    """Count a job's consecutive starts at this step or later, going back from the most recent one.

    Args:
        run_folder: the run folder.
        job: the job id.
        step: the step of the newest checkpoint.
    """
    starts = [event for event in read_history(run_folder) if event["event"] == "start" and event.get("job") == job]
    count = 0
    for event in reversed(starts):
        if event.get("step", 0) < step:
            break
        count += 1
    return count


def latest_job(run_folder: Path) -> str | None:
    """Return the id of a run's last job; None if it was never submitted."""
    jobs = [str(event["job"]) for event in read_history(run_folder) if event.get("job")]
    return jobs[-1] if jobs else None
