"""docs/cluster.md against the code."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest
from kdcore_launch.command import LaunchCommand
from kdcore_launch.profile import Container, Profile, Restarts, load_profile, shipped_profiles

from kdcore import InfrastructureError, InputError, TrainingError, read_axes

PAGE = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [line for line in PAGE.splitlines() if line.startswith("kdcore launch ")]


def test_every_shipped_profile_is_on_the_page():
    rows = set(re.findall(r"^\| `([\w-]+)` \|", PAGE.partition("## What happens")[0], re.MULTILINE))
    assert rows == {path.stem for path in shipped_profiles().glob("*.yaml")}


def test_the_profile_on_the_page_can_be_used_and_shows_the_defaults(tmp_path):
    (tmp_path / "mine.yaml").write_text(EXAMPLES[0], encoding="utf-8")
    profile = load_profile(str(tmp_path / "mine.yaml"))
    defaults = Profile()
    for key in ("stop_before_end", "snapshot", "restarts"):
        assert getattr(profile, key) == getattr(defaults, key)
    shown = set(re.findall(r"^\s*(\w+):", EXAMPLES[0], re.MULTILINE))
    listed = set(re.findall(r"(\w+)", PAGE.partition("Every key can be left out.")[2].partition("\n\n")[0]))
    for key in [*Profile.model_fields, *Restarts.model_fields]:
        assert key in shown | listed, key
    assert set(Container.model_fields) <= listed


def test_the_axes_on_the_page_can_be_used(tmp_path):
    (tmp_path / "axes.yaml").write_text(EXAMPLES[1], encoding="utf-8")
    assert read_axes([str(tmp_path / "axes.yaml")])["seed"] == ["1", "2", "3"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_on_the_page_is_understood(command):
    parser = argparse.ArgumentParser(exit_on_error=False)
    LaunchCommand().add_arguments(parser)
    parsed = parser.parse_intermixed_args(shlex.split(command)[2:])
    assert parsed.words or parsed.resume


def test_every_option_is_on_the_page():
    parser = argparse.ArgumentParser()
    LaunchCommand().add_arguments(parser)
    options = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
    assert [option for option in options if option not in PAGE and option != "--help"] == []


def test_the_exit_codes_on_the_page_are_kdcores():
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)}
    assert codes == {0, InfrastructureError.exit_code, InputError.exit_code, TrainingError.exit_code, 130}
