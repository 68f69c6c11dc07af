"""What is said about jobs that ended without a word."""

from __future__ import annotations

import signal
import subprocess

import pytest
from kdcore_launch.waiting import wait_for

from kdcore import InfrastructureError


def test_slurm_is_not_asked_about_a_process_of_this_machine(slurm, tmp_path):
    slurm.answer("scontrol", "echo JobId=1 JobState=CANCELLED ExitCode=0:15")  # somebody's job of the same number
    process = subprocess.Popen(["sleep", "60"])
    process.send_signal(signal.SIGKILL)
    with pytest.raises(
        InfrastructureError, match=r"ended without recording an exit code \(its process does not exist\)"
    ):
        wait_for([(str(process.pid), tmp_path)], local=True)
    assert slurm.calls("scontrol") == []
    process.wait()  # `wait_for` has taken its end already
