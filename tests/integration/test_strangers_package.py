"""A package that somebody else writes from the public names alone, built and installed by pip."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "NAME"
version = "0.3"
dependencies = ["REQUIREMENT"]

[project.entry-points."kdcore.losses"]
stranger_mse = "MODULE.parts:StrangerMSE"

[project.entry-points."kdcore.schedulers"]
stranger_constant = "MODULE.parts:StrangerConstant"

[project.entry-points."kdcore.corpora"]
stranger_lines = "MODULE.parts:StrangerLines"
"""

PARTS = '''
from collections.abc import Iterator, Mapping
from pathlib import Path

from kdcore import (
    ComponentConfig, Corpus, Document, Loss, LossConfig, PathString, Progress, Requests, Scheduler, Signals,
)


class StrangerMSE(Loss):
    """Mean squared error of the last hidden states."""

    class Config(LossConfig):
        """Its keys."""

        scale: float = 1.0

    def __init__(self, config, teacher, student):
        super().__init__(config)
        self.blocks = (teacher.num_layers - 1, student.num_layers - 1)
        self.width = student.hidden_size

    def requests(self):
        return Requests(teacher=Signals.hidden([self.blocks[0]]), student=Signals.hidden([self.blocks[1]]))

    def counts(self, batch):
        return {"hidden": batch.num_tokens * self.width}

    def forward(self, student, teacher, batch):
        difference = student.tokens(self.blocks[1]).float() - teacher.tokens(self.blocks[0]).float()
        return {"hidden": self.config.scale * difference.square().sum()}


class StrangerConstant(Scheduler):
    """The same learning rate throughout."""

    class Config(ComponentConfig):
        """Its keys."""

        factor: float = 1.0

    def factor(self, progress: Progress) -> float:
        return self.config.factor


class StrangerLines(Corpus):
    """One document a line."""

    class Config(ComponentConfig):
        """Its keys."""

        path: PathString

    def files(self) -> Mapping[str, Path]:
        return {"lines": Path(self.config.path)}

    def documents(self) -> Iterator[Document]:
        for number, line in enumerate(Path(self.config.path).read_text().splitlines()):
            yield Document(str(number), line)
'''


@dataclass(frozen=True)
class Installation:
    """A folder of packages beside those of the environment."""

    site: Path

    def install(self, project: Path, name: str, requirement: str = "kdcore>=0.1,<0.2", parts: str = PARTS) -> None:
        """Write a project and let pip build and install it."""
        module = name.replace("-", "_")
        (project / module).mkdir(parents=True)
        text = PROJECT.replace("NAME", name).replace("REQUIREMENT", requirement).replace("MODULE", module)
        (project / "pyproject.toml").write_text(text, encoding="utf-8")
        (project / module / "__init__.py").touch()
        (project / module / "parts.py").write_text(parts, encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
        subprocess.run([*command, "--upgrade", "--target", str(self.site), str(project)], check=True)

    def kdcore(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `kdcore` where the packages are installed."""
        command = [sys.executable, "-m", "kdcore.commands.main", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(self.site)}
        return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    return Installation(tmp_path / "site")


def test_it_is_listed_shown_checked_and_part_of_the_schema(installation, tmp_path):
    installation.install(tmp_path / "project", "stranger-parts")
    rows = [line.split() for line in installation.kdcore("plugins", "list").stdout.splitlines()]
    for kind, name in [("loss", "stranger_mse"), ("scheduler", "stranger_constant"), ("corpus", "stranger_lines")]:
        assert [kind, name, "stranger-parts", "0.3"] in rows
    assert "scale" in installation.kdcore("plugins", "show", "stranger_mse").stdout
    check = installation.kdcore("plugins", "check")
    assert "loss stranger_mse of stranger-parts 0.3: ok" in check.stdout
    assert "corpus stranger_lines of stranger-parts 0.3: ok" in check.stdout
    schema = json.loads(installation.kdcore("recipe", "schema").stdout)
    assert "scale" in schema["$defs"]["kdcore.losses:stranger-parts:stranger_mse"]["properties"]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "run: {name: stranger}\nteacher: {path: nowhere}\nstudent: {}\ntask: {name: masked_lm, data: nowhere}\n"
        "losses: {stranger_mse: {scale: 2}}\nscheduler: {name: stranger_constant}\n"
        "training: {budget: {steps: 1}, batch_size: 1}\n",
        encoding="utf-8",
    )
    assert installation.kdcore("recipe", "check", str(recipe)).returncode == 0


def test_broken_doubled_and_outdated_ones_are_told_apart_and_harm_nobody(installation, tmp_path):
    installation.install(tmp_path / "broken", "stranger-broken", parts="import a_module_that_nobody_has\n")
    installation.install(tmp_path / "old", "stranger-old", requirement="kdcore<0.1")
    listed = installation.kdcore("plugins", "list").stdout
    assert "built for kdcore<0.1; in 2 packages, write stranger-old:stranger_mse" in listed
    check = installation.kdcore("plugins", "check")
    assert check.returncode == 2
    assert "No module named 'a_module_that_nobody_has'" in check.stdout
    assert "stranger-old 0.3, which is built for kdcore<0.1; this is kdcore" in check.stdout
    assert "loss masked_lm of kdcore" in check.stdout
    strangers = [line for line in check.stdout.splitlines() if " of stranger-" in line and ": " in line[-10:]]
    assert [line.rpartition(": ")[2] for line in strangers] == ["BROKEN"] * 6
