"""A job that loses a process, a node or SLURM's own daemon comes back finished, as if nothing had happened."""

from __future__ import annotations

import os
import signal

from cluster import until


def test_a_process_that_is_killed_brings_the_others_down_and_the_job_back(sender, assert_undisturbed):
    sent = sender.paced()
    until((sent.folder / "checkpoints" / "step-0000020").is_dir, 180, "a checkpoint is complete", lambda: sent.log)
    os.kill(sent.processes()[1], signal.SIGKILL)
    assert sent.ended()["code"] == 0
    assert [start["step"] for start in sent.starts] == [0, 20]  # back to the newest checkpoint
    assert [event["code"] for event in sent.history if event["event"] == "end"] == [1, 0]
    assert_undisturbed(sent)


def test_a_lost_node_leaves_an_orphan_that_can_do_no_harm(cluster, sender, assert_undisturbed):
    sent = sender.paced(seconds=1.5, nodes=1)
    sent.reached(5)
    (lost,) = sent.starts[0]["hosts"]
    (orphan,) = sent.processes().values()
    cluster.kill_node(lost)
    try:
        sent.started(2, 120)
        assert sent.starts[1]["hosts"] != [lost]
        assert os.path.exists(f"/proc/{orphan}"), "SLURM lost sight of the process, but it continues"
        until(lambda: not os.path.exists(f"/proc/{orphan}"), 120, "the orphan has noticed", lambda: sent.log)
        record = sent.folder / "launch" / "records" / f"{sent.job}-0" / "0"
        until(record.is_file, 20, "how it ended is noted", lambda: sent.log)
        assert record.read_text(encoding="utf-8").split()[0] == "1"  # it has ended by itself and was not killed
        assert sent.ended(240)["code"] == 0
        assert len(sent.starts) == 2  # the orphan's end did not put the job back once more
    finally:
        cluster.start_node(lost)
    assert_undisturbed(sent, nodes=1)


def test_a_lost_step_daemon_is_noticed(cluster, sender, assert_undisturbed):
    sent = sender.paced()
    sent.reached(5)
    process = sent.processes()[1]
    daemon = parent_of(parent_of(process))  # kdcore, the process that hands it signals, SLURM's step daemon
    os.kill(daemon, signal.SIGKILL)
    os.kill(process, signal.SIGKILL)
    assert sent.ended(240)["code"] == 0
    assert len(sent.starts) == 2
    assert_undisturbed(sent)


def test_a_run_that_comes_no_further_is_given_up(cluster, sender):
    sent = sender.send(nodes=1, restarts={"without_progress": 1})
    for _ in range(2):
        (process,) = until(sent.processes, 60, "kdcore has been started", lambda: sent.log).values()
        os.kill(process, signal.SIGKILL)
        until(lambda gone=process: not os.path.exists(f"/proc/{gone}"), 10, "it has ended")
    assert sent.ended()["code"] == 1
    assert len(sent.starts) == 2
    assert "stopped after 2 starts without a checkpoint newer than step 0" in sent.log


def parent_of(process: int) -> int:
    """The process that started another."""
    with open(f"/proc/{process}/stat", encoding="utf-8") as file:
        return int(file.read().rpartition(")")[2].split()[1])
