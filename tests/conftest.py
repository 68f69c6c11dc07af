"""Fixtures that several tests share."""

from __future__ import annotations

import string
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT tokenizer of one letter a token (and some whole words), which can spell any ASCII text."""
    from transformers import BertTokenizer

    characters = string.ascii_lowercase + string.digits + string.punctuation
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "of", "and", "teacher", "student"]
    vocabulary = dict.fromkeys([*words, *characters, *(f"##{character}" for character in characters)])
    folder = tmp_path_factory.mktemp("tokenizer")
    BertTokenizer(vocab={word: index for index, word in enumerate(vocabulary)}).save_pretrained(folder)
    return folder


class FakePackages:
    """Installed packages made of nothing but metadata and modules, in a folder that is on `sys.path`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def install(
        self,
        name: str,
        entry_points: dict[str, str],
        modules: dict[str, str] | None = None,
        *,
        version: str = "1.0",
        requires: tuple[str, ...] = (),
    ) -> None:
        """Write one package: `entry_points` maps `group:name` to `module:attribute`, `modules` file names to code."""
        info = self.folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        lines += [f"Requires-Dist: {requirement}" for requirement in requires]
        (info / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")
        sections: dict[str, list[str]] = {}
        for key, value in entry_points.items():
            group, _, point = key.partition(":")
            sections.setdefault(group, []).append(f"{point} = {value}")
        text = "\n".join(f"[{group}]\n" + "\n".join(points) for group, points in sections.items())
        (info / "entry_points.txt").write_text(text + "\n", encoding="utf-8")
        for file, code in (modules or {}).items():
            (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / file).write_text(code, encoding="utf-8")


@pytest.fixture()
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakePackages]:
    """Packages that are installed for one test, in this process; others see them through PYTHONPATH."""
    made = FakePackages(tmp_path / "site")
    monkeypatch.syspath_prepend(made.folder)
    before = set(sys.modules)
    yield made
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(made.folder)):
            del sys.modules[name]
