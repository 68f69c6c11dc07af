"""A package that cannot be imported, or is built for another kdcore, disables no command and no other package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdcore.commands.main import main, main_train
from kdcore.registry import ALL


@pytest.mark.parametrize(
    ("requires", "cause"),
    [((), "No module named 'no_such_module_anywhere'"), (("kdcore>=9",), "is built for kdcore>=9")],
)
def test_every_command_of_the_core_works_beside_a_package_that_does_not(
    small_recipe: Path,
    packages: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    requires: tuple[str, ...],
    cause: str,
) -> None:
    points = {f"{group}:unusable": "unusable:X" for group in ALL} | {"kdcore.commands:recipe unusable": "unusable:X"}
    code = {"unusable.py": "import no_such_module_anywhere\n"}
    packages.install("kdcore-unusable", points, code, requires=requires)
    recipe, run = str(small_recipe), str(tmp_path / "runs" / "small" / "1")

    assert main_train([recipe]) == 0
    assert main(["--help"]) == 0
    for command in (
        ["recipe", "check", recipe],
        ["recipe", "show", recipe],
        ["recipe", "schema"],
        ["plugins", "list"],
        ["checkpoint", "verify", run],
        ["runs", "list", "runs"],
        ["debug", "batch", run, "3"],
    ):
        capsys.readouterr()
        assert main(command) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert main(["export", run, str(tmp_path / "out")]) == 0
    assert cause in capsys.readouterr().err, "the option is left out with a warning"
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert main(["summary", run]) == 0
    assert cause in capsys.readouterr().err, "the rows are left out with a warning"

    assert main(["recipe", "check", recipe, "losses.unusable={}"]) == 2
    assert cause in capsys.readouterr().err
    assert main(["unusable"]) == 2
    assert cause in capsys.readouterr().err
