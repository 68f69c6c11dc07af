"""A real cluster, and what is sent to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from cluster import ACCOUNT, Cluster, missing, until

# Makes each step last a little, so that something can happen in the middle of a run; it moves nothing.
PACE = """
import os
import time

from kdcore import Loss, LossConfig, Requests, Signals, register_loss


@register_loss("pace")
class Pace(Loss):
    class Config(LossConfig):
        seconds: float = 0.1

    def __init__(self, config, teacher, student):
        super().__init__(config)

    def requests(self):
        return Requests(student=Signals.hidden([1]))

    def counts(self, batch):
        return {"pace": batch.num_tokens}

    def forward(self, student, teacher, batch):
        time.sleep(self.config.seconds * self.training)
        return {"pace": 0.0 * student.tokens(1).square().sum()}
"""


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Three nodes, for all tests of a process."""
    reason = missing()
    if reason is not None:
        pytest.skip(f"no test cluster: {reason}")
    with tempfile.TemporaryDirectory(prefix="kdcore-slurm-") as folder:
        made = Cluster(Path(folder))
        try:
            made.up()
            yield made
        finally:
            made.down()


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics, without how fast it went."""
    path = run / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    return [{name: row[name] for name in row if not name.endswith(("per_second", "seconds"))} for row in rows]


class Sent:
    """A run that was sent to the cluster."""

    def __init__(self, job: str, folder: Path, cluster: Cluster) -> None:
        self.job = job
        self.folder = folder
        self.cluster = cluster

    @property
    def history(self) -> list[dict[str, Any]]:
        """What kdcore-launch has noted, of this job."""
        path = self.folder / "launch" / "history.jsonl"
        events = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [event for event in events if event["job"] == self.job]

    @property
    def starts(self) -> list[dict[str, Any]]:
        """The starts of the job."""
        return [event for event in self.history if event["event"] == "start"]

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics, without how fast it went."""
        return metrics_of(self.folder)

    @property
    def step(self) -> int:
        """The last step in the metrics."""
        return max((row["step"] for row in self.metrics), default=0)

    @property
    def log(self) -> str:
        """The job's log."""
        logs = sorted((self.folder / "launch").glob("*_log.out"))
        return "\n".join(log.read_text(encoding="utf-8", errors="replace")[-8000:] for log in logs)

    def started(self, times: int, seconds: float = 180) -> None:
        """Wait for a start of the job."""
        self._until(lambda: len(self.starts) >= times, seconds, f"start {times} of the job")

    def reached(self, step: int, seconds: float = 180) -> None:
        """Wait for a step."""
        self._until(lambda: self.step >= step, seconds, f"step {step}")

    def ended(self, seconds: float = 300) -> dict[str, Any]:
        """Wait for the end for good; gives its event."""
        return until(lambda: self.end, seconds, "the job is over", lambda: self.log)

    @property
    def end(self) -> dict[str, Any] | None:
        """The event of its end for good."""
        last = self.history[-1]
        return last if last["event"] == "end" and not last["requeued"] else None

    def _until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        until(lambda: condition() or self.end, seconds, what, lambda: self.log)
        assert condition(), f"the job has ended before {what}\n{self.log}"

    def processes(self) -> dict[int, int]:
        """The numbers of kdcore's processes of this run, by rank."""
        array, _, task = self.job.partition("_")
        names = {b"SLURM_ARRAY_JOB_ID": array, b"SLURM_ARRAY_TASK_ID": task} if task else {b"SLURM_JOB_ID": array}
        wanted = {name: value.encode() for name, value in names.items()}
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                command = (path / "cmdline").read_bytes().split(b"\0")
                environment = dict(part.split(b"=", 1) for part in (path / "environ").read_bytes().split(b"\0") if part)
            except (OSError, ValueError):
                continue
            if command[1:3] == [b"-m", b"kdcore"] and environment.items() >= wanted.items():
                found[int(environment[b"RANK"])] = int(path.name)
        return found


class Sender:
    """Runs `kdcore launch` beside the small recipe."""

    def __init__(self, recipe: Path, cluster: Cluster) -> None:
        self.recipe = recipe
        self.cluster = cluster
        self.folder = recipe.parent
        (self.folder / "pace.py").write_text(PACE, encoding="utf-8")

    def profile(self, **keys: Any) -> Path:
        """A profile for two processes on two nodes; `keys` change it."""
        settings = {"partition": "low", "account": ACCOUNT, "nodes": 2, "cpus_per_process": 2, "time": 20}
        settings |= {"stop_before_end": 60, "snapshot": False, **keys}
        path = self.folder / "profile.yaml"
        path.write_text(json.dumps(settings), encoding="utf-8")
        return path

    def kdcore(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of kdcore."""
        command = [sys.executable, "-m", "kdcore", *arguments]
        environment = {**os.environ, **self.cluster.environment}
        return subprocess.run(
            command, env=environment, cwd=self.folder, capture_output=True, text=True, timeout=600, check=False
        )

    def send(self, *overrides: str, recipe: str | None = None, **keys: Any) -> Sent:
        """Send a run."""
        name = next((text.removeprefix("run.id=") for text in overrides if text.startswith("run.id=")), "1")
        done = self.kdcore("launch", recipe or str(self.recipe), "--profile", str(self.profile(**keys)), *overrides)
        assert done.returncode == 0, done.stderr
        job = done.stdout.split("job ")[1].split(":")[0]
        return self.sent(job, self.folder / "runs" / "small" / name)

    def sent(self, job: str, folder: Path) -> Sent:
        """A job by its number, and the folder of its records."""
        return Sent(job, folder, self.cluster)

    def paced(self, *overrides: str, seconds: float = 0.1, **keys: Any) -> Sent:
        """Send a run of 60 steps that take at least so long each, with a checkpoint every 20."""
        losses = f"losses={{hidden_mse: {{layers: last}}, pace: {{seconds: {seconds}}}}}"
        return self.send(
            "imports=[pace.py]", losses, "training.budget.steps=60", "checkpoints.every=20", *overrides, **keys
        )


@pytest.fixture(scope="session")
def undisturbed_runs() -> dict[int, list[dict[str, Any]]]:
    """Metrics of runs that nothing happened to, by number of nodes; filled as tests ask."""
    return {}


@pytest.fixture
def assert_undisturbed(sender: Sender, undisturbed_runs: dict[int, list[dict[str, Any]]]) -> Callable[..., None]:
    """Holds a run against one that nothing happened to: the same numbers, each step once."""

    def check(sent: Sent, nodes: int = 2) -> None:
        if nodes not in undisturbed_runs:
            plain = sender.paced("run.id=undisturbed", seconds=0, nodes=nodes)
            assert plain.ended()["code"] == 0
            assert len(plain.starts) == 1
            undisturbed_runs[nodes] = plain.metrics
        assert [row["step"] for row in sent.metrics if "train/loss" in row] == list(range(1, 61))
        assert sent.metrics == undisturbed_runs[nodes]

    return check


@pytest.fixture(scope="session")
def read_metrics() -> Callable[[Path], list[dict[str, Any]]]:
    """Reads the rows of a run's metrics, without how fast it went."""
    return metrics_of


@pytest.fixture
def sender(small_recipe: Path, cluster: Cluster) -> Sender:
    """Sends the small recipe to the cluster."""
    return Sender(small_recipe, cluster)
