"""SLURM as a few scripts on the PATH: their arguments are recorded, and their answers are set in advance."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from kdcore.commands.main import main

os.environ.setdefault("OMP_NUM_THREADS", "1")

SCRIPT = """#!/bin/sh
echo "$(basename "$0") $*" >> {folder}/calls
answer={folder}/answer-$(basename "$0")
if [ -f "$answer.sh" ]; then . "$answer.sh"; fi
exit 0
"""


class FakeSlurm:
    """Programs of SLURM that do nothing but answer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        for name in ("sbatch", "srun", "scontrol", "squeue", "sinfo", "sacctmgr"):
            program = folder / name
            program.write_text(SCRIPT.format(folder=folder), encoding="utf-8")
            program.chmod(program.stat().st_mode | stat.S_IXUSR)
        self.answer("sbatch", "echo Submitted batch job 7")

    def answer(self, program: str, script: str) -> None:
        """What a program does, as lines of shell."""
        (self.folder / f"answer-{program}.sh").write_text(script + "\n", encoding="utf-8")

    def remove(self, program: str) -> None:
        """As if it were not installed."""
        (self.folder / program).unlink()

    def calls(self, program: str) -> list[str]:
        """The arguments that a program was called with."""
        path = self.folder / "calls"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return [line.removeprefix(f"{program} ") for line in lines if line.startswith(f"{program} ")]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """SLURM's programs, before all others on the PATH."""
    fake = FakeSlurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{fake.folder}{os.pathsep}/usr/bin{os.pathsep}/bin")
    for name in list(os.environ):
        if name.startswith(("SLURM_", "SUBMITIT_")):
            monkeypatch.delenv(name)
    return fake


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a recipe and a profile; nothing in it is ever trained."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(
        "run: {name: hidden, id: 1}\n"
        "student: {config: {model_type: bert}}\n"
        "task: {name: masked_lm, data: data}\n"
        "losses: {masked_lm: {}}\n"
        "training: {budget: {steps: 5}, batch_size: 8}\n",
        encoding="utf-8",
    )
    (folder / "profile.yaml").write_text(
        "partition: gpu\naccount: lab\nnodes: 2\ngpus_per_node: 4\ncpus_per_process: 6\nmemory: 100G\ntime: 2-12:00\n"
        "constraint: a100\nsbatch: [--exclusive, --mail-type=END]\nsetup: [module load cuda]\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def kdcore(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command in this process: exit code, output, errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def write_history() -> Callable[..., None]:
    """Writes what kdcore-launch would have noted about a run."""

    def write(run: Path, *events: dict[str, object]) -> None:
        (run / "launch").mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps({"job": "7", "time": 0.0, **event}) + "\n" for event in events)
        (run / "launch" / "history.jsonl").write_text(text, encoding="utf-8")

    return write
