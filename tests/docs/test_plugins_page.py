"""A package that somebody else writes: the one of docs/plugins.md, built and installed by pip, used and broken."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

import kdcore
from kdcore.registry import ALL

PAGE = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
RECIPE, RECIPE_WITH_IMPORT = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
SAID = dict(re.findall(r"^\| ([^|`]+) \| `([^`]+)`", PAGE.partition("## When something is wrong")[2], re.MULTILINE))


@dataclass(frozen=True)
class Environment:
    """A separate virtual environment in which the packages of the running one can be imported."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def install(self, project: Path, name: str = "kdcore-example", **replace: str) -> None:
        """Write the page's package under a name, with some of its text replaced, and let pip build and install it."""
        for file, text in FILES.items():
            if file != "half.py":
                for before, after in [*replace.items(), ("kdcore_example", name.replace("-", "_"))]:
                    file, text = file.replace(before, after), text.replace(before, after)
                path = project / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text.replace("kdcore-example", name), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "--python", str(self.python), "install", "--quiet"]
        options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
        subprocess.run([*command, *options, str(project)], check=True)

    def kdcore(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `kdcore` in the environment."""
        command = [str(self.python), "-m", "kdcore.commands.main", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    def refused(self, *arguments: str) -> str:
        """Train what cannot be trained; gives the message."""
        before = sorted(os.listdir())
        done = self.kdcore("train", "recipe.yaml", *arguments)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        assert sorted(os.listdir()) == before, "nothing is written"
        return done.stderr


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    folder = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    # Not a plain path: what is installed as editable there is found by further .pth files.
    running = sysconfig.get_path("purelib")
    (site / "running.pth").write_text(f"import site; site.addsitedir({running!r})\n", encoding="utf-8")
    return Environment(folder)


@pytest.fixture
def recipe(tmp_path, teacher_folder, corpus_file, monkeypatch) -> Path:
    """The page's recipe with what it needs, in the working folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    shutil.copytree(teacher_folder, folder / "teacher")
    texts = corpus_file.read_text(encoding="utf-8").splitlines()
    lines = [json.dumps({"text": text}) for text in [*texts, ""]]
    (folder / "texts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("KDCORE_CACHE", str(tmp_path / "cache"))
    return folder / "recipe.yaml"


def test_it_is_listed_shown_checked_and_part_of_the_schema(environment, recipe, tmp_path):
    environment.install(tmp_path / "project")
    rows = [line.split() for line in environment.kdcore("plugins", "list").stdout.splitlines()]
    for kind, name in [("loss", "cosine_hidden"), ("scheduler", "constant"), ("corpus", "json_lines")]:
        assert [kind, name, "kdcore-example", "0.3.0"] in rows
    shown = environment.kdcore("plugins", "show", "cosine_hidden").stdout
    assert "One minus the cosine" in shown
    assert "Pairs of teacher and student blocks." in shown
    check = environment.kdcore("plugins", "check").stdout
    for what in ("loss cosine_hidden", "scheduler constant", "corpus json_lines"):
        assert f"{what} of kdcore-example 0.3.0: ok" in check
    schema = json.loads(environment.kdcore("recipe", "schema").stdout)
    assert "layers" in schema["$defs"]["kdcore.losses:kdcore-example:cosine_hidden"]["properties"]
    weighted = "task.data.corpora.0.weight=2"
    assert environment.kdcore("recipe", "check", "recipe.yaml", weighted).returncode == 0


@pytest.mark.sample
def test_it_trains_by_its_names(environment, recipe, tmp_path):
    environment.install(tmp_path / "project")
    done = environment.kdcore("train", "recipe.yaml", "logging.every=1")
    assert done.returncode == 0, done.stderr
    run = recipe.parent / "runs" / "example" / "1"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    held_out = [row["held_out/cosine_hidden"] for row in rows if "held_out/cosine_hidden" in row]
    assert 0 < held_out[-1] < held_out[0] < 2
    rates = [row["train/lr"] for row in rows if "train/lr" in row]
    assert rates == [0.0, *[1e-4] * 5], "the page's scheduler rises over a tenth of six steps"
    assert "kdcore-example" in json.loads((run / "environment.json").read_text(encoding="utf-8"))["packages"]
    (manifest,) = (tmp_path / "cache").glob("*/manifest.json")
    assert json.loads(manifest.read_text(encoding="utf-8"))["reports"] == [{"empty documents skipped": 1}]
    assert (run / "exports" / "final" / "model.safetensors").is_file()


def test_without_it_the_error_says_that_nothing_has_the_name(environment, recipe):
    error = environment.refused()
    assert SAID["no package provides the name"] in error
    assert "recipe.yaml:15: losses.cosine_hidden" in error


def test_two_packages_with_its_names_are_an_error_until_one_is_chosen(environment, recipe, tmp_path):
    environment.install(tmp_path / "project")
    environment.install(tmp_path / "copy", "kdcore-copy")
    assert "in 2 packages, use kdcore-copy:constant" in environment.kdcore("plugins", "list").stdout
    error = environment.refused()
    assert SAID["two other packages provide the same name"] in error
    assert "package kdcore-copy 0.3.0 and package kdcore-example 0.3.0" in error
    assert "allowed: kdcore-copy:cosine_hidden, kdcore-example:cosine_hidden" in error
    chosen = "losses.cosine_hidden.name=kdcore-copy:cosine_hidden", "scheduler.name=kdcore-example:constant"
    corpus = "task.data.corpora.0.name=kdcore-copy:json_lines"
    assert environment.kdcore("recipe", "check", "recipe.yaml", *chosen, corpus).returncode == 0


def test_broken_and_outdated_ones_are_told_apart_and_harm_nobody(environment, recipe, tmp_path):
    environment.install(tmp_path / "broken", "kdcore-broken", **{"import torch\n": "import nobody_has_it\n"})
    environment.install(tmp_path / "old", "kdcore-old", **{'2 = "': '0 = "'})
    assert "built for plugin API 0, but kdcore" in environment.kdcore("plugins", "list").stdout
    check = environment.kdcore("plugins", "check")
    assert check.returncode == 2
    assert "loss cosine_hidden of kdcore-broken 0.3.0: BROKEN" in check.stdout
    assert "No module named 'nobody_has_it'" in check.stdout
    assert "scheduler constant of kdcore-broken 0.3.0: ok" in check.stdout
    assert "scheduler constant of kdcore-old 0.3.0: BROKEN" in check.stdout
    assert "loss masked_lm of kdcore 0.1.0: ok" in check.stdout
    others = "losses.cosine_hidden=null", "losses.masked_lm={}", "scheduler.name=kdcore-broken:constant"
    corpus = "task.data.corpora.0.name=kdcore-broken:json_lines"
    assert environment.kdcore("recipe", "check", "recipe.yaml", *others, corpus).returncode == 0

    rest = "scheduler=null", corpus
    error = environment.refused("losses.cosine_hidden.name=kdcore-old:cosine_hidden", *rest)
    assert SAID["the package is for another version of kdcore"].partition("`")[0] in error
    assert f"built for plugin API 0, but kdcore {kdcore.__version__} supports 1 and 2" in error
    error = environment.refused("losses.cosine_hidden.name=kdcore-broken:cosine_hidden", *rest)
    assert SAID["the package fails while it is imported"] in error
    assert "No module named 'nobody_has_it'" in error
    assert "cosine.py:3" in error


def test_a_class_of_another_kind_is_told(environment, recipe, tmp_path):
    environment.install(tmp_path / "project", **{"class CosineHidden(Loss)": "class CosineHidden(torch.nn.Module)"})
    error = environment.refused()
    assert SAID["the class does not meet the requirements of its kind"] in error
    assert "CosineHidden does not derive from kdcore.Loss" in error


def test_a_file_without_a_package_will_do(environment, recipe, tmp_path):
    environment.install(tmp_path / "project")
    (recipe.parent / "half.py").write_text(FILES["half.py"], encoding="utf-8")
    (recipe.parent / "half.yaml").write_text(f"extends: recipe.yaml\n{RECIPE_WITH_IMPORT}", encoding="utf-8")
    done = environment.kdcore("recipe", "check", "half.yaml")
    assert done.returncode == 0, done.stderr


@pytest.mark.sample
def test_the_page_knows_every_kind():
    rows = re.findall(r"^\| ([\w ]+) \| `([\w.]+)` \| `(\w+)` \|", PAGE, re.MULTILINE)
    kinds = [(one.kind, one.group, one.interface.rpartition(":")[2]) for one in ALL.values()]
    assert rows == kinds
    for kind, _, base in rows:
        assert base in kdcore.__all__
        if kind in ("export option", "job queue"):  # only an installed package adds one
            continue
        assert f"`register_{kind}`" in PAGE
        assert f"register_{kind}" in kdcore.__all__


@pytest.mark.sample
def test_the_pages_code_uses_public_names_only():
    for file, text in FILES.items():
        if file.endswith(".py"):
            assert not re.search(r"kdcore\.\w|import kdcore$", text), file
            compile(text, file, "exec")
            assert max(map(len, text.splitlines())) <= 120, file
