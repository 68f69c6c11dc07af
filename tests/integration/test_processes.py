"""`--processes 2` with real processes: they end together, with one exit code and each message once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes

# Things that happen to a run in the middle of a step, at the same place each time.
EVENTFUL = """
import os
import signal

from kdcore import Loss, LossConfig, Requests, Signals, register_loss


@register_loss("eventful")
class Eventful(Loss):
    class Config(LossConfig):
        pass

    def __init__(self, config, teacher, student):
        super().__init__(config)
        self.steps = 0

    def requests(self):
        return Requests(student=Signals.hidden([1]))

    def counts(self, batch):
        return {"eventful": batch.num_tokens}

    def forward(self, student, teacher, batch):
        self.steps += self.training
        event, rank = os.environ.get("EVENT"), os.environ["RANK"]
        total = student.tokens(1).square().sum()
        if self.steps == 3 and event == "interrupt" and rank == "0":
            os.kill(os.getppid(), signal.SIGINT)
        if self.steps == 3 and event == "kill" and rank == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return {"eventful": total * float("nan") if event == "nan" and self.training else total}
"""

# Records on which addresses the processes of a run listen, during a step.
LISTENING = """
import json
import os
from pathlib import Path

import psutil

from kdcore import Loss, LossConfig, Requests, Signals, register_loss


@register_loss("listening")
class Listening(Loss):
    class Config(LossConfig):
        pass

    def __init__(self, config, teacher, student):
        super().__init__(config)

    def requests(self):
        return Requests(student=Signals.hidden([1]))

    def counts(self, batch):
        return {"listening": batch.num_tokens}

    def forward(self, student, teacher, batch):
        sockets = psutil.Process().net_connections(kind="tcp")
        addresses = [socket.laddr for socket in sockets if socket.status == psutil.CONN_LISTEN]
        if self.training:
            rank, port = os.environ.get("RANK", "0"), os.environ.get("MASTER_PORT")
            Path(f"listening-{rank}.json").write_text(json.dumps({"addresses": addresses, "port": port}))
        return {"listening": student.tokens(1).square().sum()}
"""


@pytest.fixture
def train(small_recipe: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Trains `small_recipe` in two processes."""
    (small_recipe.parent / "eventful.py").write_text(EVENTFUL, encoding="utf-8")

    def run(*overrides: str, event: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "kdcore.commands.main", "train", str(small_recipe), *overrides]
        environment = {**os.environ, "EVENT": event}
        return subprocess.run(
            [*command, "--processes", "2"], env=environment, capture_output=True, text=True, timeout=300
        )

    return run


EVENTS = ("imports=[eventful.py]", "losses={eventful: {}}", "training.budget.steps=40")


def errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert "Traceback" not in done.stderr, done.stderr
    return [line for line in done.stderr.splitlines() if line.startswith("error: ")]


@pytest.mark.sample
def test_wrong_input_is_told_once_and_ends_with_2(train, tmp_path):
    done = train("losses.hidden_mse.layers=[[9, 1]]")
    assert done.returncode == 2
    (error,) = errors(done)
    assert "block 9 does not exist" in error
    assert not (tmp_path / "runs").exists()


def test_failed_training_is_told_once_and_ends_with_3(train):
    done = train(*EVENTS, event="nan")
    assert done.returncode == 3
    (error,) = errors(done)
    assert "at step 1 these values are not finite: loss, eventful" in error


def test_a_killed_process_is_the_machines_failure_and_ends_with_1(train):
    done = train(*EVENTS, event="kill")
    assert done.returncode == 1
    assert "error: process 1 was killed by signal SIGKILL" in errors(done)


@pytest.mark.sample
def test_an_interrupted_run_ends_with_130_and_the_next_start_continues_it(train, tmp_path):
    done = train(*EVENTS, event="interrupt")
    assert done.returncode == 130, done.stderr
    assert errors(done) == []
    run = tmp_path / "runs" / "small" / "1"
    stopped = (run / "checkpoints" / "latest").read_text(encoding="utf-8")
    assert 0 < int(stopped.removeprefix("step-")) < 40
    assert [path.name for path in (run / "exports").iterdir()] == ["initial"]
    again = train(*EVENTS)
    assert again.returncode == 0, again.stderr
    assert f"continued from {stopped}" in (run / "train.log").read_text(encoding="utf-8")
    assert (run / "checkpoints" / "latest").read_text(encoding="utf-8") == "step-0000040"
    assert (run / "exports" / "final" / "model.safetensors").is_file()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_on_one_machine_listens_on_the_loopback_interface_only(small_recipe, tmp_path, processes):
    (tmp_path / "listening.py").write_text(LISTENING, encoding="utf-8")
    command = [sys.executable, "-m", "kdcore.commands.main", "train", str(small_recipe), "imports=[listening.py]"]
    command += ["losses={listening: {}}"] + (["--processes", "2"] if processes == 2 else [])
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = [json.loads((tmp_path / f"listening-{rank}.json").read_text("utf-8")) for rank in range(processes)]
    hosts = {host for record in found for host, _ in record["addresses"]}
    assert hosts == {"127.0.0.1"}
    if processes == 2:
        assert int(found[0]["port"]) in {port for _, port in found[0]["addresses"]}, "the store of process 0"
