"""`kdcore runs list` and what it reads from the folders of runs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kdcore.commands.main import main
from kdcore.training.run.run_status import run_folders, run_status


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")


def make_run(folder: Path, *, metrics: str = "", log: str = "", history: tuple[dict[str, object], ...] = ()) -> Path:
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text("training: {budget: {steps: 40}}\n", encoding="utf-8")
    if metrics:
        (folder / "metrics.jsonl").write_text(metrics, encoding="utf-8")
    if log:
        (folder / "train.log").write_text(log, encoding="utf-8")
    if history:
        (folder / "launch").mkdir()
        lines = [json.dumps({"time": 0, "job": "7", **event}) + "\n" for event in history]
        (folder / "launch" / "history.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


METRICS = (
    '{"step": 10, "train/loss": 2.5, "train/tokens_per_second": 1000.0}\n'
    '{"step": 10, "held_out/loss": 3.5, "held_out/hidden_mse": 1.0}\n'
    '{"step": 20, "train/loss": 1.5, "train/tokens_per_second": 2000.0}\n'
    '{"step": 30, "train/l'  # the process died while it wrote this
)


def test_numbers_come_from_the_last_whole_rows(tmp_path):
    run = make_run(tmp_path / "a" / "1", metrics=METRICS)
    for step in (9, 10, 1000000):
        (run / "checkpoints" / f"step-{step:07d}").mkdir(parents=True)
    (run / "checkpoints" / ".staging-step-2000000").mkdir()
    status = run_status(run)
    assert (status.step, status.loss, status.held_out, status.tokens_per_second) == (20, 1.5, 3.5, 2000.0)
    assert (status.saved_step, status.max_steps) == (1000000, 40)


def test_a_folder_without_numbers_has_none(tmp_path):
    status = run_status(make_run(tmp_path / "a" / "1"))
    assert (status.step, status.loss, status.saved_step, status.restarts) == (None, None, 0, 0)


START, REQUEUED = {"event": "start"}, {"event": "end", "code": 130, "requeued": True}
STATES = [
    ((), None, "stopped"),
    (({"event": "submitted"},), None, "queued"),
    (({"event": "submitted"}, START), None, "running"),
    ((START, REQUEUED), None, "queued"),
    ((START, {"event": "end", "code": 2, "requeued": False}), None, "failed"),
    ((START, {"event": "end", "code": 0, "requeued": False}), None, "finished"),
    ((START, {"event": "end", "code": 130, "requeued": False}), None, "stopped"),
    ((START, {"event": "stopping"}), None, "stopped"),
    ((START, {"event": "stopping"}), {}, "stopped"),
    ((START, {"event": "stopping"}), {"7": "PENDING"}, "queued"),
    (({"event": "submitted"},), {"7": "PENDING"}, "queued"),
    ((START,), {"7": "RUNNING"}, "running"),
    ((START,), {"7": "PENDING"}, "queued"),
    ((START,), {"8": "RUNNING"}, "lost"),
    ((START | {"local": True},), {}, "running"),
]


@pytest.mark.parametrize(("history", "queue", "state"), STATES)
def test_states(tmp_path, history, queue, state):
    assert run_status(make_run(tmp_path / "a" / "1", history=history), queue).state == state


def test_a_run_with_its_student_is_finished_whatever_happened(tmp_path):
    run = make_run(tmp_path / "a" / "1", history=(START, {"event": "end", "code": 1, "requeued": False}))
    (run / "exports" / "final").mkdir(parents=True)
    assert run_status(run, {}).state == "finished"


def test_a_run_that_exports_nothing_is_finished_when_its_log_says_so(tmp_path):
    assert run_status(make_run(tmp_path / "a" / "1", log="12:00 INFO step 40: finished\n")).state == "finished"


def test_a_run_whose_process_lives_is_running_and_one_whose_process_is_gone_has_stopped(tmp_path):
    run = make_run(tmp_path / "a" / "1")
    for pid, state in ((os.getpid(), "running"), (gone(), "stopped")):
        (run / ".lock").write_text(json.dumps({"host": socket.gethostname(), "pid": pid}), encoding="utf-8")
        assert run_status(run).state == state


def gone() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_restarts_are_counted_with_and_without_slurm(tmp_path):
    sent = make_run(tmp_path / "a" / "1", history=(START, REQUEUED, START, REQUEUED, START))
    log = "run x\nrun x, continued from step-0000010\n"
    assert (run_status(sent).restarts, run_status(make_run(tmp_path / "a" / "2", log=log)).restarts) == (2, 1)


def test_the_table_has_a_row_for_each_run(tmp_path, capsys):
    make_run(tmp_path / "runs" / "a" / "1", metrics=METRICS)
    make_run(tmp_path / "runs" / "b" / "seed=2", history=(START, {"event": "end", "code": 3, "requeued": False}))
    (tmp_path / "runs" / "notes").mkdir()
    assert main(["runs", "list", str(tmp_path / "runs")]) == 0
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["RUN", "STATE", "STEP", "LOSS"]
    assert first.split()[:7] == ["a/1", "stopped", "20", "of", "40", "1.5", "3.5"]
    assert "b/seed=2" in second
    assert "exit code 3" in second


def test_the_folder_of_a_sweep_lists_its_runs(tmp_path):
    runs = [make_run(tmp_path / "runs" / "a" / name) for name in ("seed=1", "seed=2")]
    make_run(tmp_path / "runs" / "a" / "other")
    sweep = tmp_path / "runs" / "sweeps" / "first"
    sweep.mkdir(parents=True)
    note = {"jobs": [{"folder": str(run)} for run in runs]}
    (sweep / "submission.json").write_text(json.dumps(note), encoding="utf-8")
    assert list(run_folders(sweep)) == runs
    assert len(list(run_folders(tmp_path / "runs"))) == 3


@pytest.mark.parametrize("note", ['{"jobs": [{"fold', "[]", '{"jobs": [{}]}', '{"jobs": null}'])
def test_a_damaged_note_of_a_sweep_is_told(tmp_path, capsys, note):
    (tmp_path / "submission.json").write_text(note, encoding="utf-8")
    assert main(["runs", "list", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "submission.json" in said
    assert "run.folder" in said


def test_a_folder_without_runs_is_told(tmp_path, capsys):
    assert main(["runs", "list", str(tmp_path / "nowhere")]) == 2
    assert "the folder contains no runs" in capsys.readouterr().err


def test_runs_are_listed_without_torch(tmp_path):
    make_run(tmp_path / "a" / "1", metrics=METRICS)
    code = (
        "import sys; from kdcore.commands.main import main; "
        f"assert main(['runs', 'list', {str(tmp_path)!r}]) == 0; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


QUEUE = """
import kdcore
class Queue(kdcore.JobQueue):
    def states(self):
        return {"7": "PENDING"}
"""


def test_states_of_jobs_come_from_the_queues_of_packages(tmp_path, packages, capsys):
    files = {"queue_a.py": QUEUE, "queue_b.py": QUEUE.replace('{"7": "PENDING"}', "1 / 0")}
    packages.install("kdcore-queues", {"kdcore.job_queues:good": "queue_a:Queue"}, files)
    packages.install("kdcore-worse", {"kdcore.job_queues:bad": "queue_b:Queue"})
    make_run(tmp_path / "runs" / "a" / "waits", history=(START,))
    make_run(tmp_path / "runs" / "b" / "gone", history=(START | {"job": "8"},))
    assert main(["runs", "list", str(tmp_path / "runs")]) == 0
    printed = capsys.readouterr()
    states = dict(line.split()[:2] for line in printed.out.splitlines()[1:])
    assert states == {"a/waits": "queued", "b/gone": "lost"}
    assert "warning: the queue `bad` is left out: division by zero" in printed.err
