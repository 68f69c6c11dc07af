"""Options that packages add to `kdcore export`: what they write is published with the export or not at all."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

import kdcore
from kdcore.commands.main import main

STAMP = """
import json
from kdcore import ExportOption, InputError

class Stamp(ExportOption):
    '''Write a file with a text into the export.'''

    def add_arguments(self, parser):
        parser.add_argument("--stamp", metavar="TEXT", help="text of stamp.json")

    def apply(self, folder, arguments):
        if arguments.stamp is None:
            return
        written = sorted(path.name for path in folder.iterdir())
        (folder / "stamp.json").write_text(json.dumps({"text": arguments.stamp, "found": written}))
        if arguments.stamp == "mistake":
            raise InputError("this text cannot be stamped", key="--stamp")
        if arguments.stamp == "fault":
            raise KeyError("fault")
        if arguments.stamp == "disk":
            raise OSError(5, "Input/output error", str(folder / "stamp.json"))
"""


def without(line: str) -> str:
    """The package with another line in the place of its argument."""
    return STAMP.replace('parser.add_argument("--stamp", metavar="TEXT", help="text of stamp.json")', line)


@pytest.fixture
def fake_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose export is two small files, so that no model is needed."""
    from kdcore.training.run import export

    def export_run(run: Path, folder: Path, step: int | None, *, allow_imports: bool | None = None) -> Path:
        assert not folder.exists() or not any(folder.iterdir())
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text("{}", encoding="utf-8")
        (folder / "model.safetensors").write_bytes(b"weights")
        return folder

    monkeypatch.setattr(export, "export_run", export_run)
    return tmp_path / "run"


def below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def export(run: Path, target: Path, *more: str) -> int:
    target.parent.mkdir(exist_ok=True)
    return main(["export", str(run), str(target), *more])


def test_an_option_changes_the_export_of_a_real_run_before_it_is_published(
    packages, small_recipe: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForMaskedLM

    packages.install("kdcore-stamp", {"kdcore.export_options:stamp": "stamp_a:Stamp"}, {"stamp_a.py": STAMP})
    run = kdcore.train(small_recipe, ["training.budget.steps=1"]).folder
    assert export(run, tmp_path / "plain" / "out") == 0
    assert export(run, tmp_path / "stamped" / "out", "--stamp", "hello") == 0
    plain, stamped = tmp_path / "plain" / "out", tmp_path / "stamped" / "out"
    assert below(stamped) == sorted([*below(plain), "stamp.json"])
    found = (stamped / "stamp.json").read_text(encoding="utf-8")
    assert '"text": "hello"' in found
    for file in below(plain):
        assert f'"{file}"' in found, "the option gets the whole export"
        assert (plain / file).read_bytes() == (stamped / file).read_bytes()
    assert AutoModelForMaskedLM.from_pretrained(stamped).config.num_hidden_layers == 2
    assert below(tmp_path / "stamped") == ["out", *(f"out/{file}" for file in below(stamped))]


def test_help_shows_the_option(packages, capsys: pytest.CaptureFixture[str]) -> None:
    packages.install("kdcore-stamp", {"kdcore.export_options:stamp": "stamp_b:Stamp"}, {"stamp_b.py": STAMP})
    assert main(["export", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--stamp TEXT text of stamp.json" in shown
    assert main(["plugins", "show", "stamp"]) == 0
    assert capsys.readouterr().out.startswith("export option stamp (kdcore-stamp 1.0, stamp_b:Stamp)")


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("mistake", 2, "error: --stamp: this text cannot be stamped\n"),
        ("fault", 2, "error: export option `stamp` of kdcore-stamp 1.0 (stamp_c:Stamp) failed: KeyError: 'fault' ("),
        ("disk", 1, "out: stamp of kdcore-stamp 1.0 cannot write: [Errno 5] Input/output error: "),
    ],
)
def test_a_failing_option_leaves_nothing(
    packages, fake_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, code: int, message: str
) -> None:
    packages.install("kdcore-stamp", {"kdcore.export_options:stamp": "stamp_c:Stamp"}, {"stamp_c.py": STAMP})
    assert export(fake_run, tmp_path / "there" / "out", "--stamp", text) == code
    assert message in capsys.readouterr().err
    assert below(tmp_path / "there") == []


def test_options_are_applied_by_name(packages, fake_run: Path, tmp_path: Path) -> None:
    line = "option = '--%s'; parser.add_argument(option)"
    body = "log = folder / 'log'; log.write_text((log.read_text() if log.exists() else '') + '%s '); return"
    for name in ("second", "first"):
        code = without(line % name).replace("if arguments.stamp is None:", body % name + "\n        if 0:")
        packages.install(f"kdcore-{name}", {f"kdcore.export_options:{name}": f"{name}_d:Stamp"}, {f"{name}_d.py": code})
    assert export(fake_run, tmp_path / "there" / "out") == 0
    assert (tmp_path / "there" / "out" / "log").read_text(encoding="utf-8") == "first second "


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("import no_such_module_anywhere", "No module named 'no_such_module_anywhere'"),
        ("parser.add_argument('--checkpoint')", "conflicting option string: --checkpoint"),
        ("parser.add_argument('--stamp', required=True)", "the following arguments are required: --stamp"),
        ("parser.add_argument('third')", "the following arguments are required: third"),
        ("parser.set_defaults(checkpoint=3)", "it changes the default of checkpoint"),
    ],
)
def test_an_option_that_does_not_fit_is_left_out_with_a_warning(
    packages, fake_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, cause: str
) -> None:
    packages.install("kdcore-bad", {"kdcore.export_options:bad": "stamp_e:Stamp"}, {"stamp_e.py": without(line)})
    packages.install("kdcore-stamp", {"kdcore.export_options:stamp": "stamp_f:Stamp"}, {"stamp_f.py": STAMP})
    assert export(fake_run, tmp_path / "out", "--stamp", "hello") == 0
    warning = capsys.readouterr().err
    assert warning.startswith("warning: left out: export option `bad` of kdcore-bad 1.0 (stamp_e:Stamp) cannot be ")
    assert cause in warning
    assert below(tmp_path / "out") == ["config.json", "model.safetensors", "stamp.json"]


def test_the_option_of_the_documentation_does_what_the_page_promises(packages, fake_run: Path, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(\"\"\"`kdcore export.*?)^```$", page, re.MULTILINE | re.DOTALL)
    packages.install("kdcore-x", {"kdcore.export_options:licence": "licence:LicenceOption"}, {"licence.py": code})
    assert export(fake_run, tmp_path / "one", "--licence", "MIT") == 0
    assert (tmp_path / "one" / "README.md").read_text(encoding="utf-8") == "\nLicence: MIT\n"
    assert export(fake_run, tmp_path / "two") == 0
    assert below(tmp_path / "two") == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("content", [["notes.txt"], ["config.json"]])
def test_a_folder_that_is_not_empty_is_refused_and_kept(
    fake_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Sequence[str]
) -> None:
    (tmp_path / "out").mkdir()
    for name in content:
        (tmp_path / "out" / name).write_text("mine", encoding="utf-8")
    assert export(fake_run, tmp_path / "out") == 2
    assert f"error: {tmp_path / 'out'}: the folder exists and is not empty" in capsys.readouterr().err
    assert [(tmp_path / "out" / name).read_text(encoding="utf-8") for name in content] == ["mine"]


def test_an_empty_folder_is_filled(fake_run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert export(fake_run, tmp_path / "out") == 0
    assert below(tmp_path / "out") == ["config.json", "model.safetensors"]
