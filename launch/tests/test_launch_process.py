"""The process between SLURM and kdcore, with a scripted kdcore."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import kdcore_launch
import pytest

import kdcore

KDCORE = """
import os
import signal
import sys

for number in (signal.SIGUSR2, signal.SIGTERM):
    if "ready" in sys.argv:
        signal.signal(number, lambda number, frame: sys.exit(130))
print("rank", os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ["LOCAL_RANK"], flush=True)
print("error: " + sys.argv[1], file=sys.stderr, flush=True)
if sys.argv[1] == "wait":
    signal.pause()
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts one process; `kdcore` is the script above."""
    package = tmp_path / "site" / "kdcore"
    package.mkdir(parents=True)
    for path in Path(kdcore.__file__).parent.iterdir():
        if path.name != "__main__.py":
            (package / path.name).symlink_to(path)
    (package / "__main__.py").write_text(KDCORE, encoding="utf-8")
    records = tmp_path / "records"
    records.mkdir()

    def run(*arguments: str, rank: int = 0, world_size: int = 1) -> subprocess.Popen[str]:
        slurm = {"SLURM_PROCID": str(rank), "SLURM_NTASKS": str(world_size), "SLURM_LOCALID": "0"}
        paths = os.pathsep.join([str(tmp_path / "site"), str(Path(kdcore_launch.__file__).parents[1])])
        command = [sys.executable, "-m", "kdcore_launch.process", str(records), *arguments]
        environment = {**os.environ, **slurm, "SLURMD_NODENAME": "node7", "PYTHONPATH": paths}
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path
        )

    return run


def record(tmp_path: Path, rank: int = 0) -> str:
    return (tmp_path / "records" / str(rank)).read_text(encoding="utf-8")


@pytest.mark.parametrize("code", [0, 1, 2, 3])
def test_kdcores_exit_code_is_kept_and_noted(start, tmp_path, code):
    process = start(str(code))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert record(tmp_path) == f"{code} node7"
    assert "rank 0 1 0" in output


def test_a_killed_process_is_noted_as_shells_do(start, tmp_path):
    process = start("killed")
    process.communicate(timeout=60)
    assert process.returncode == 137
    assert record(tmp_path) == "137 node7"


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
@pytest.mark.parametrize("ready", [["ready"], []], ids=["kdcore saves", "kdcore still starts"])
def test_a_signal_reaches_kdcore_and_ends_in_130(start, tmp_path, number, ready):
    process = start("wait", *ready)
    assert process.stdout.readline() == "rank 0 1 0\n"  # kdcore has been started
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert record(tmp_path) == "130 node7"


def test_what_a_signal_forestalls_is_not_started(tmp_path):
    code = "import os, signal, sys; from kdcore import Supervisor\nwith Supervisor() as supervisor:\n"
    code += "    os.kill(os.getpid(), signal.SIGTERM); sys.exit(supervisor.run(['touch', 'started']))"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 130
    assert not (tmp_path / "started").exists()


def test_what_other_processes_say_goes_to_a_file(start, tmp_path):
    process = start("0", rank=3, world_size=4)
    output, _ = process.communicate(timeout=60)
    assert output == ""
    assert "error: 0" in (tmp_path / "records" / "3.log").read_text(encoding="utf-8")


def test_a_failed_process_waits_for_the_others_to_fail_before_slurm_kills_them(start, tmp_path):
    first = start("2", rank=0, world_size=2)
    while not (tmp_path / "records" / "0").exists():
        time.sleep(0.01)
    assert first.poll() is None
    second = start("2", rank=1, world_size=2)
    assert (first.wait(60), second.wait(60)) == (2, 2)
