"""`kdcore plugins`: list, show, check."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kdcore.commands.main import main

SCHEDULER = """
from typing import Literal
from pydantic import Field
from kdcore.recipe.schema import ComponentConfig, PathString
from kdcore.schedulers.base import Scheduler

class Steps(Scheduler):
    '''Falls in steps.

    As others do.
    '''

    class Config(ComponentConfig):
        factor: float = Field(0.5, gt=0, description="What each step multiplies with.")
        at: list[int]
        mode: Literal["a", "b"] = "a"
        table: PathString | None = None

    def factor(self, progress):
        return 1.0
"""


def test_list_shows_packages_and_notes_and_imports_nothing(packages, capsys):
    code = {"never.py": "raise RuntimeError('imported')"}
    packages.install("kdcore-a", {"kdcore.schedulers:both": "never:X"}, code)
    packages.install("kdcore-b", {"kdcore.schedulers:both": "never:X"}, requires=("kdcore>=9",))
    assert main(["plugins", "list"]) == 0
    lines = [line.split(maxsplit=4) for line in capsys.readouterr().out.splitlines()]
    assert ["KIND", "NAME", "PACKAGE", "VERSION", "NOTES"] in lines
    assert ["scheduler", "both", "kdcore-a", "1.0", "in 2 packages, use kdcore-a:both"] in lines
    notes = "built for kdcore>=9, but kdcore 0.1.0 is installed; in 2 packages, use kdcore-b:both"
    assert ["scheduler", "both", "kdcore-b", "1.0", notes] in lines
    assert ["scheduler", "linear", "kdcore", lines[1][3]] in lines
    assert "never" not in sys.modules


def test_list_marks_shadowed_components(packages, capsys):
    points = {"kdcore.schedulers:linear": "never:X", "kdcore.losses:hidden_mse": "never:X"}
    packages.install("twin-a", points, {"never.py": "raise RuntimeError('imported')"})
    assert main(["plugins", "list"]) == 0
    lines = [line.split(maxsplit=4) for line in capsys.readouterr().out.splitlines()]
    assert ["scheduler", "linear", "twin-a", "1.0", "shadowed by kdcore, use twin-a:linear"] in lines
    assert ["loss", "hidden_mse", "twin-a", "1.0", "shadowed by kdcore-hidden-mse, use twin-a:hidden_mse"] in lines
    assert ["scheduler", "linear", "kdcore", lines[1][3]] in lines


def test_show_prints_the_docstring_and_every_key(packages, capsys):
    packages.install("kdcore-steps", {"kdcore.schedulers:steps": "steps_a:Steps"}, {"steps_a.py": SCHEDULER})
    assert main(["plugins", "show", "steps"]) == 0
    text = capsys.readouterr().out
    assert "scheduler steps (kdcore-steps 1.0, steps_a:Steps)" in text
    assert "Falls in steps.\n\nAs others do." in text
    rows = [line.split(maxsplit=3) for line in text.splitlines()]
    assert ["factor", "number", "0.5", "What each step multiplies with."] in rows
    assert ["at", "list", "of", "integer  required"] in rows
    assert any(line.split() == ["mode", "a", "|", "b", "a"] for line in text.splitlines())
    assert any(line.split() == ["table", "path", "|", "null", "null"] for line in text.splitlines())


def test_show_of_an_unknown_name_suggests_near_ones_of_all_kinds(capsys):
    assert main(["plugins", "show", "linaer"]) == 2
    assert "Did you mean the scheduler `linear` or the summary `layers`?" in capsys.readouterr().err
    assert main(["plugins", "show"]) == 2
    assert main(["plugins", "list", "linear"]) == 2


@pytest.fixture
def check(packages):
    def run() -> tuple[int, str]:
        environment = {**os.environ, "PYTHONPATH": str(packages.folder)}
        command = [sys.executable, "-c", CHECK_OF_FAKES]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.stderr == ""
        return done.returncode, done.stdout

    return run


# kdcore's own components are left out: they import torch, which takes seconds.
CHECK_OF_FAKES = """
import sys
from kdcore import registry
from kdcore.commands import plugins
entries = list(plugins._entries())
plugins._entries = lambda: iter([entry for entry in entries if entry.distribution.startswith("fake-")])
sys.exit(plugins._check())
"""


def test_check_of_what_works_ends_well(packages, check):
    packages.install("fake-steps", {"kdcore.schedulers:steps": "steps_b:Steps"}, {"steps_b.py": SCHEDULER})
    assert check() == (0, "scheduler steps of fake-steps 1.0: ok\n1 components, 0 broken\n")


def test_check_tells_each_broken_plugin_with_its_cause(packages, check):
    packages.install(
        "fake-many",
        {
            "kdcore.schedulers:dead": "many.dead:Steps",
            "kdcore.schedulers:fine": "many.fine:Steps",
            "kdcore.schedulers:import": "many.imports:Steps",
            "kdcore.schedulers:schema": "many.schema:Steps",
        },
        {
            "many/__init__.py": "",
            "many/dead.py": "import os, sys; print('last words', file=sys.stderr, flush=True); os._exit(9)",
            "many/fine.py": "print('plugins may print')\n" + SCHEDULER,
            "many/imports.py": "import nothing_of_that_name",
            "many/schema.py": SCHEDULER.replace("at: list[int]", "at: __import__('collections').abc.Callable = print"),
        },
    )
    packages.install("fake-new", {"kdcore.schedulers:new": "many.dead:Steps"}, requires=("kdcore>=9",), version="2.0")
    code, text = check()
    assert code == 2
    assert "scheduler fine of fake-many 1.0: ok" in text
    assert "scheduler dead of fake-many 1.0: BROKEN\n  its import ended the process" in text
    assert "with exit code 9: last words" in text
    assert "No module named 'nothing_of_that_name'" in text
    assert "the schema of its Config cannot be generated" in text
    assert "scheduler new of fake-new 2.0: BROKEN" in text
    assert "built for kdcore>=9" in text
    assert text.endswith("5 components, 4 broken\n")


@pytest.mark.parametrize(
    ("group", "near"),
    [
        ("kdcore.lossess", "kdcore.losses"),
        ("kdcore_losses", "kdcore.losses"),
        ("KDcore.Losses", None),
        ("kdcore.samplers", None),
        ("kdcore.plugin_apis", "kdcore.plugin_api"),
    ],
)
def test_check_reports_misspelt_groups(packages, check, group, near):
    points = {f"{group}:mine": "steps_c:Steps", "kdcore.schedulers:steps": "steps_c:Steps"}
    packages.install("fake-steps", points | {"fake_steps.suites:own": "steps_c:Steps"}, {"steps_c.py": SCHEDULER})
    code, text = check()
    assert code == 2
    lines = text.splitlines()
    assert lines[:3] == [
        "scheduler steps of fake-steps 1.0: ok",
        f"entry point group {group} of fake-steps 1.0: BROKEN",
        "  kdcore has no group of this name",
    ]
    hint = [line for line in lines if "Hint" in line]
    assert hint == ([f"  Hint: Did you mean `{near}`?"] if near else hint[:1])
    assert lines[-1] == "1 components, 0 broken, 1 unknown groups"
