"""A job that is preempted, signalled while it starts, or cancelled."""

from __future__ import annotations

import pytest
from cluster import ACCOUNT, Cluster, until


def preempt(cluster: Cluster) -> None:
    """Send a job that needs all nodes at once, and wait for its end."""
    needs = ["--partition=high", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=2"]
    cluster.run("sbatch", "--wait", f"--account={ACCOUNT}", *needs, "--output=/dev/null", "--wrap=true")


@pytest.mark.parametrize("user_signal", [True, False], ids=["signalled by USR2", "signalled by TERM"])
def test_preempted_twice(cluster, sender, assert_undisturbed, user_signal):
    cluster.preempt_with_user_signal(user_signal)
    sent = sender.paced()
    for number in (1, 2):
        sent.started(number)
        sent.reached(15 * number + 1)
        preempt(cluster)
    assert sent.ended()["code"] == 0
    assert len(sent.starts) == 3
    # Each start resumed at the step of the signal, not at an earlier checkpoint.
    assert 0 < sent.starts[1]["step"] < sent.starts[2]["step"]
    assert {start["step"] % 20 for start in sent.starts[1:]} != {0}
    assert_undisturbed(sent)


def test_a_signal_during_start_up_only_delays(cluster, sender, assert_undisturbed):
    sent = sender.paced(seconds=0)
    sent.started(1)
    until(sent.processes, 60, "kdcore has been started", lambda: sent.log)
    assert sent.step == 0
    cluster.run("scancel", "--signal=USR2", sent.job)
    assert sent.ended()["code"] == 0
    first, last = [event["code"] for event in sent.history if event["event"] == "end"]
    assert first in (130, 1)  # 1 if a process has lost its peer before the signal reached itself
    assert last == 0
    assert_undisturbed(sent)


def test_a_cancelled_job_saves_and_stays_away(cluster, sender):
    sent = sender.paced(nodes=1)
    sent.reached(5)
    cluster.run("scancel", sent.job)
    jobs = ("squeue", "--noheader", "--job", sent.job)
    until(lambda: not cluster.run(*jobs, check=False).strip(), 60, "the job has left the queue", lambda: sent.log)
    (checkpoint,) = (sent.folder / "checkpoints").glob("step-*")
    assert int(checkpoint.name.removeprefix("step-")) >= 5
    listed = sender.kdcore("runs", "list", "runs").stdout
    assert "stopped" in listed
