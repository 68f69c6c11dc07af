"""A run that is longer than its job's time limit."""

from __future__ import annotations


def test_a_chain_of_time_outs(sender, assert_undisturbed):
    # SLURM looks every half minute and warns early: each start is signalled after 20 to 50 s, at 1.5 s a step.
    # On a busy machine that may not be enough to begin: such a start comes no further.
    patient = {"without_progress": 20}
    sent = sender.paced(seconds=1.5, nodes=1, time=1, stop_before_end=10, restarts=patient)
    assert sent.ended(500)["code"] == 0
    steps = [start["step"] for start in sent.starts]
    assert steps == sorted(steps)
    assert len(set(steps)) >= 3
    assert_undisturbed(sent, nodes=1)
