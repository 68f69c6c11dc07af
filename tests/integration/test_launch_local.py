"""`kdcore launch --local`: a job on this machine, in several processes, that starts again after a crash."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes

CRASH = """
import os
import signal
import time
from pathlib import Path

from kdcore import Loss, LossConfig, Requests, Signals, register_loss


@register_loss("crash_once")
class CrashOnce(Loss):
    class Config(LossConfig):
        pass

    def __init__(self, config, teacher, student):
        super().__init__(config)
        self.steps = 0

    def requests(self):
        return Requests(student=Signals.hidden([1]))

    def counts(self, batch):
        return {"crash_once": batch.num_tokens}

    def forward(self, student, teacher, batch):
        self.steps += self.training
        crashed = Path("crashed")
        if self.steps == 5 and os.environ["RANK"] == "1" and not crashed.exists():
            crashed.touch()
            deadline = time.monotonic() + 60
            while not list(Path("runs").rglob("step-0000002")) and time.monotonic() < deadline:
                time.sleep(0.1)  # checkpoints are written in the background
            os.kill(os.getpid(), signal.SIGKILL)
        return {"crash_once": student.tokens(1).square().sum()}
"""


@pytest.mark.sample
def test_a_crashed_job_starts_again_and_comes_back_finished(small_recipe: Path, tmp_path: Path):
    (tmp_path / "crash.py").write_text(CRASH, encoding="utf-8")
    overrides = ["imports=[crash.py]", "losses={crash_once: {}}", "checkpoints.every=2", "profile.processes_per_node=2"]
    command = [sys.executable, "-m", "kdcore", "launch", str(small_recipe), "--local", "--wait", *overrides]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "small" / "1"
    assert f"run      {run}" in done.stdout
    assert (run / "exports" / "final" / "model.safetensors").is_file()
    events = [json.loads(line) for line in (run / "launch" / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    saved = events[2]["step"]
    assert saved in (2, 4)  # the checkpoint of step 4 may not be complete yet when the process dies in step 5
    assert [(event["event"], event.get("code"), event.get("step")) for event in events] == [
        ("submitted", None, None),
        ("start", None, 0),
        ("end", 1, saved),
        ("start", None, saved),
        ("end", 0, 6),
    ]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4, 5, 6]


def test_a_local_job_outlives_the_command_and_saves_when_it_is_ended(small_recipe: Path, tmp_path: Path):
    command = [sys.executable, "-m", "kdcore", "launch", str(small_recipe), "--local", "training.budget.steps=100000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    process = int(done.stdout.split("process ")[1].split(":")[0])
    run = tmp_path / "runs" / "small" / "1"
    deadline = time.monotonic() + 120
    try:
        while not (run / "metrics.jsonl").exists() or '"step": 5' not in (run / "metrics.jsonl").read_text():
            assert time.monotonic() < deadline, (run / "launch" / f"{process}_0_log.out").read_text(encoding="utf-8")
            time.sleep(0.1)
    finally:
        os.kill(process, signal.SIGTERM)
    history = run / "launch" / "history.jsonl"
    while '"code": 130' not in history.read_text(encoding="utf-8"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert list((run / "checkpoints").glob("step-*"))
