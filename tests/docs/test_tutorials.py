"""The tutorials, done step by step in an empty folder: files are written and commands run in the order of the page.

`make test-docs`. A block is a file if the text before it starts with the file's name in backticks. Lines of a console
block without `$` have to be in the output of the command before them. Blocks with the word `fragment` behind their
language, or the comment `# part of a recipe`, are left out.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TUTORIALS = ROOT / "docs" / "tutorials"
# A tutorial that uses a file of another one comes after it, in the same folder.
PAGES = ["first-student.md", "sentence-encoder.md", "tagger.md", "paper-recipe.md", "slurm.md"]
NEEDED = {"slurm.md": {"first-student.md": "first.yaml"}}
BLOCK = re.compile(r"(?P<before>[^\n]*)\n\n^```(?P<info>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"`([\w./-]+\.\w+)`(?:, [^`]*)?:$")
FINISHED = {"first-student.md": "runs/first/2/exports/final",
            "sentence-encoder.md": "runs/sentences/1/exports/final", "tagger.md": "runs/tagger/1/exports/best",
            "paper-recipe.md": "runs/minilm/1/exports/final", "slurm.md": "runs/local/1/exports/final"}  # fmt: skip


def steps(page: str) -> list[tuple[str, str]]:
    """Read a page as pairs of a file's name and its text, or of an empty name and a console block."""
    found = []
    for match in BLOCK.finditer((TUTORIALS / page).read_text(encoding="utf-8")):
        language, _, mark = match["info"].partition(" ")
        if mark == "fragment" or "# part of a recipe" in match["text"]:
            continue
        name = FILE.search(match["before"])
        assert (language == "console") != bool(name), f"neither a file nor commands: {match['before']}"
        found.append((name[1] if name else "", match["text"]))
    return found


def run_console(text: str, folder: Path, environment: dict[str, str]) -> None:
    output = ""
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if not line.startswith("$ "):
            assert line in output, f"{line!r} is not in the output:\n{output}"
            continue
        words = shlex.split(line.removeprefix("$ "))
        if words[:2] == ["pip", "install"]:
            continue  # everything is installed
        ran = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=3600)
        output = ran.stdout + ran.stderr
        assert ran.returncode == 0, f"{line}\n{output}"


@pytest.mark.parametrize("page", PAGES)
def test_a_tutorial_leads_to_a_student(page: str, tmp_path: Path) -> None:
    environment = os.environ | {"KDCORE_CACHE": str(tmp_path / "cache")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    for other, file in NEEDED.get(page, {}).items():
        (tmp_path / file).write_text(dict(steps(other))[file], encoding="utf-8")
    for name, text in steps(page):
        if name:
            (tmp_path / name).write_text(text, encoding="utf-8")
        else:
            run_console(text, tmp_path, environment)
    assert (tmp_path / FINISHED[page] / "model.safetensors").is_file()


def test_every_tutorial_is_done() -> None:
    assert {file.name for file in TUTORIALS.glob("*.md")} == set(PAGES)
