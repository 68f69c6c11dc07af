"""Line breaks in folders, names and profiles never reach a batch script, where they would be commands."""

from __future__ import annotations

from pathlib import Path

import pytest
from kdcore_launch.job import Job
from kdcore_launch.profile import Profile
from kdcore_launch.sbatch import Submission

from kdcore import InputError
from kdcore.commands.main import main

DRY = ["launch", "small.yaml", "--profile", "laptop", "--dry-run"]
INJECTED = "touch INJECTED"
OVERRIDES = {
    "run.folder": 'run.folder="./x\\ntouch INJECTED #"',
    "run.name": 'run.name="x\\ntouch INJECTED #"',
    "run.id": 'run.id="x\\rtouch INJECTED #"',
    "partition": 'profile.partition="x\\ntouch INJECTED #"',
    "account": 'profile.account="x\\ntouch INJECTED #"',
    "qos": 'profile.qos="x\\u2028touch INJECTED #"',
    "constraint": 'profile.constraint="x\\ntouch INJECTED #"',
    "memory": 'profile.memory="1\\ntouch INJECTED #"',
    "time": 'profile.time="1:00:00\\ntouch INJECTED #"',
    "sbatch": 'profile.sbatch=["--comment=x\\ntouch INJECTED #"]',
    "srun": 'profile.srun=["--comment=x\\ntouch INJECTED #"]',
    "python": 'profile.python="/x\\ntouch INJECTED #"',
    "container": 'profile.container={image: "x\\ntouch INJECTED #"}',
    "mounts": 'profile.container={image: x, mounts: ["x\\ntouch INJECTED #"]}',
}


@pytest.mark.parametrize("key", OVERRIDES)
def test_a_line_break_is_an_input_error(small_recipe: Path, capsys: pytest.CaptureFixture[str], key: str) -> None:
    assert main([*DRY, OVERRIDES[key]]) == 2
    printed = capsys.readouterr()
    assert INJECTED not in "".join(line for line in printed.out.splitlines() if line.startswith(INJECTED))
    assert key in printed.err
    assert "control character" in printed.err or "printed" in printed.err or key in ("memory", "time")
    assert not any(line.startswith(INJECTED) for line in (printed.out + printed.err).splitlines())


def test_the_message_about_a_run_name_with_a_line_break_says_so(
    small_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ('"\\n"', '"a\\nb"'):
        assert main(["recipe", "check", str(small_recipe), f"run.name={name}"]) == 2
        assert "it contains a character that cannot be printed" in capsys.readouterr().err


def test_no_submission_has_a_folder_with_a_line_break(tmp_path: Path) -> None:
    folder = tmp_path / "a\ntouch INJECTED"
    job = Job(tmp_path, ("train", "x"), Profile())
    for places in (
        {"folder": folder, "working_folder": tmp_path},
        {"folder": tmp_path, "working_folder": folder},
    ):
        with pytest.raises(InputError, match="it contains a line break"):
            Submission(**places, name="x", jobs=[job], code=None, parallel=1)
    with pytest.raises(InputError, match="it contains a line break"):
        Submission(tmp_path, "x", [Job(folder, ("train", "x"), Profile())], None, 1, tmp_path)
    assert Submission(tmp_path, "x", [job], None, 1, tmp_path).name == "x"
