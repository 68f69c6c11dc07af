"""Subcommands that packages add to commands of kdcore."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kdcore import registry
from kdcore.commands.main import main

SHOUT = """
from kdcore import Command

class Shout(Command):
    '''Print a word in capitals.'''

    help = "print a word in capitals"

    def add_arguments(self, parser):
        parser.add_argument("word")
        parser.add_argument("--times", type=int, default=1)

    def run(self, arguments):
        print(" ".join([arguments.word.upper()] * arguments.times))
        return 5
"""
BROKEN = "import no_such_module_anywhere\n"


def test_a_package_adds_a_subcommand_that_help_lists_without_importing_it(packages, capsys):
    packages.install("kdcore-shout", {"kdcore.commands:recipe shout": "shout_a:Shout"}, {"shout_a.py": SHOUT})
    assert main(["recipe", "--help"]) == 0
    assert "\n  shout      from the package kdcore-shout 1.0\n" in capsys.readouterr().out
    assert "shout_a" not in sys.modules
    assert main(["recipe", "shout", "hello", "--times", "2"]) == 5
    assert capsys.readouterr().out == "HELLO HELLO\n"


def test_a_subcommand_has_its_own_help_and_usage(packages, capsys):
    packages.install("kdcore-shout", {"kdcore.commands:recipe shout": "shout_b:Shout"}, {"shout_b.py": SHOUT})
    assert main(["recipe", "shout", "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: kdcore recipe shout [-h] [--times TIMES] word\n")
    assert "Print a word in capitals." in text
    assert main(["recipe", "shout"]) == 2
    assert "usage: kdcore recipe shout" in capsys.readouterr().err


def test_subcommands_do_not_appear_among_the_commands(packages, capsys):
    packages.install("kdcore-shout", {"kdcore.commands:recipe shout": "shout_c:Shout"}, {"shout_c.py": SHOUT})
    assert main(["--help"]) == 0
    assert "shout" not in capsys.readouterr().out


def test_an_unknown_subcommand_gets_near_names_and_all_of_its_group(packages, capsys):
    packages.install("kdcore-shout", {"kdcore.commands:recipe shout": "shout_d:Shout"}, {"shout_d.py": SHOUT})
    assert main(["recipe", "chekc"]) == 2
    error = capsys.readouterr().err
    assert "unknown command `recipe chekc`" in error
    assert "Hint: Did you mean `recipe check` or `recipe schema` or `recipe show`?" in error
    (allowed,) = [line for line in error.splitlines() if line.startswith("  allowed: ")]
    assert set(allowed.removeprefix("  allowed: ").split(", ")) >= {"recipe check", "recipe show", "recipe shout"}
    assert "train" not in allowed


def test_an_uninstalled_subcommand_is_answered_with_the_pip_command(monkeypatch, capsys):
    known = {"kdcore.commands": {"recipe whisper": "kdcore-whisper"}}
    monkeypatch.setattr(registry, "_known_packages", lambda: known)
    assert main(["recipe", "whisper", "--softly", "x"]) == 2
    assert "The package kdcore-whisper provides it: `pip install kdcore-whisper`." in capsys.readouterr().err


def test_a_broken_subcommand_is_named_and_its_group_goes_on_working(packages, capsys):
    packages.install("kdcore-bad", {"kdcore.commands:recipe shout": "shout_e:Shout"}, {"shout_e.py": BROKEN})
    assert main(["recipe", "--help"]) == 0
    assert "shout      from the package kdcore-bad 1.0" in capsys.readouterr().out
    assert main(["recipe", "shout", "hello"]) == 2
    error = capsys.readouterr().err
    assert "command `recipe shout` of kdcore-bad 1.0 (shout_e:Shout) cannot be imported" in error
    assert "no_such_module_anywhere" in error
    assert main(["recipe", "schema"]) == 0


def test_a_package_cannot_replace_a_subcommand_of_the_group(packages, tmp_path, capsys):
    packages.install("kdcore-bad", {"kdcore.commands:recipe check": "shout_f:Shout"}, {"shout_f.py": SHOUT})
    assert main(["recipe", "check", str(tmp_path / "missing.yaml")]) == 2
    assert "missing.yaml" in capsys.readouterr().err
    assert "shout_f" not in sys.modules


def test_two_packages_with_one_subcommand_are_chosen_by_package(packages, capsys):
    for letter in "ab":
        code = SHOUT.replace(".upper()", f".upper() + '-{letter}'")
        entry = {"kdcore.commands:recipe shout": f"shout_g{letter}:Shout"}
        packages.install(f"kdcore-{letter}", entry, {f"shout_g{letter}.py": code})
    assert main(["recipe", "shout", "x"]) == 2
    assert "allowed: kdcore-a:recipe shout, kdcore-b:recipe shout" in capsys.readouterr().err
    assert main(["kdcore-b:recipe", "shout", "x"]) == 5
    assert capsys.readouterr().out == "X-b\n"


def test_a_command_of_a_package_can_be_a_group(packages, capsys):
    group = SHOUT.replace('"print a word in capitals"', '"a group"\n    subcommands = ("loud",)')
    packages.install(
        "kdcore-shout",
        {"kdcore.commands:voice": "shout_h:Shout", "kdcore.commands:voice shout": "shout_i:Shout"},
        {"shout_h.py": group, "shout_i.py": SHOUT.replace("upper", "title")},
    )
    assert main(["voice", "loud"]) == 5
    assert capsys.readouterr().out == "LOUD\n"
    assert main(["voice", "shout", "hello"]) == 5
    assert capsys.readouterr().out == "Hello\n"
    assert main(["voice", "other"]) == 2
    assert "allowed: voice loud, voice shout" in capsys.readouterr().err


def test_a_command_without_subcommands_takes_any_first_argument(packages, capsys):
    packages.install("kdcore-shout", {"kdcore.commands:shout": "shout_j:Shout"}, {"shout_j.py": SHOUT})
    assert main(["shout", "recipe"]) == 5
    assert capsys.readouterr().out == "RECIPE\n"


def test_the_subcommand_of_the_documentation_works(packages, tmp_path, capsys):
    page = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text(encoding="utf-8")
    ((name, cls),) = re.findall(r'^"([^"]+)" = "kdcore_example.count:(\w+)"$', page, re.MULTILINE)
    (code,) = re.findall(r"^`kdcore_example/count.py`:\n\n```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    packages.install("kdcore-x", {f"kdcore.commands:{name}": f"count_a:{cls}"}, {"count_a.py": code})
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "run: {name: test}\nstudent: {}\ntask: {name: masked_lm, data: data}\nlosses: {masked_lm: {}}\n"
        "training: {budget: {steps: 10}, batch_size: 8}\n",
        encoding="utf-8",
    )
    assert main(["recipe", "count", str(recipe)]) == 0
    assert capsys.readouterr().out == "1\n"


def test_plugins_list_and_show_have_subcommands(packages, capsys):
    packages.install("kdcore-shout", {"kdcore.commands:recipe shout": "shout_k:Shout"}, {"shout_k.py": SHOUT})
    assert main(["plugins", "list"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["command", "recipe", "shout", "kdcore-shout", "1.0"] in rows
    assert "shout_k" not in sys.modules
    assert main(["plugins", "show", "recipe shout"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("command recipe shout (kdcore-shout 1.0, shout_k:Shout)\n\nPrint a word in capitals.\n")
    assert main(["plugins", "show", "recipe shuot"]) == 2
    assert "Did you mean the command `recipe shout`" in capsys.readouterr().err


CHECK_OF_FAKES = """
import sys
from kdcore.commands import plugins
entries = list(plugins._entries())
plugins._entries = lambda: iter([entry for entry in entries if entry.distribution.startswith("fake-")])
sys.exit(plugins._check())
"""


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("recipe shout", None),
        ("recipe check", "`kdcore recipe check` is a subcommand of `recipe` itself"),
        ("train shout", "`kdcore train` has no subcommands"),
        ("voice shout", "unknown command `voice`"),
        ("recipe shout loud", "its name has to be `GROUP SUBCOMMAND` (found `recipe shout loud`)"),
    ],
)
def test_plugins_check_reports_subcommands_that_cannot_be_reached(packages, name, fault):
    packages.install("fake-shout", {f"kdcore.commands:{name}": "shout_l:Shout"}, {"shout_l.py": SHOUT})
    environment = {**os.environ, "PYTHONPATH": str(packages.folder)}
    done = subprocess.run([sys.executable, "-c", CHECK_OF_FAKES], env=environment, capture_output=True, text=True)
    assert done.returncode == (2 if fault else 0), done.stderr
    line = done.stdout.splitlines()[0]
    assert line == f"command {name} of fake-shout 1.0: {'BROKEN' if fault else 'ok'}"
    assert (fault or "1 components, 0 broken") in done.stdout
