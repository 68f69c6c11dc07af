"""Components that running code registers instead of a package."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from kdcore import registry
from kdcore.errors import PluginError
from kdcore.recipe.schema import ComponentConfig
from kdcore.schedulers.base import Scheduler


def constant(value: float) -> type[Scheduler]:
    class Constant(Scheduler):
        class Config(ComponentConfig):
            pass

        def factor(self, progress):
            return value

    return Constant


@pytest.fixture
def schedulers() -> registry.Registry:
    return registry.Registry("kdcore.schedulers", "scheduler", "kdcore.schedulers.base:Scheduler")


def test_a_registered_class_is_found_by_its_name(schedulers):
    cls = schedulers.register("mine")(constant(1.0))
    assert schedulers.get("mine") is cls
    assert "mine" in schedulers.names()


def test_running_the_same_code_again_replaces_what_it_registered(schedulers):
    schedulers.register("mine")(constant(1.0))
    second = schedulers.register("mine")(constant(2.0))
    assert schedulers.get("mine") is second


def test_what_another_recipes_file_registers_does_not_count(schedulers):
    with registry.registering_from("/a.py"):
        first = schedulers.register("mine")(constant(1.0))
    with registry.registering_from("/b.py"):
        second = schedulers.register("mine")(constant(2.0))
    assert schedulers.get("mine", sources=["/a.py"]) is first
    assert schedulers.get("mine", sources=["/b.py"]) is second
    with pytest.raises(PluginError, match="is ambiguous: provided by"):
        schedulers.get("mine", sources=["/a.py", "/b.py"])


def test_a_registered_class_precedes_the_installed_one_of_that_name(schedulers):
    mine = schedulers.register("linear")(constant(1.0))
    assert schedulers.get("linear") is mine
    assert schedulers.get("kdcore:linear").__name__ == "Linear"


def test_a_class_of_another_kind_cannot_be_registered(schedulers):
    with pytest.raises(PluginError, match="does not derive from"):
        schedulers.register("mine")(dict)
    assert "mine" not in schedulers.names()


@pytest.mark.parametrize("name", ["", "package:name"])
def test_a_name_that_could_never_be_asked_for_cannot_be_registered(schedulers, name):
    with pytest.raises(PluginError, match="is not a valid name for a scheduler"):
        schedulers.register(name)(constant(1.0))


def test_the_index_of_known_packages_is_what_the_script_writes():
    root = Path(__file__).parents[2]
    script = runpy.run_path(str(root / "plugins" / "index.py"))
    assert script["INDEX"].read_text(encoding="utf-8") == script["index"](), "run `python plugins/index.py`"


def test_the_registry_needs_nothing_but_packaging():
    code = "import kdcore.registry, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "pydantic", "ruamel", "numpy"} & set(done.stdout.split())
