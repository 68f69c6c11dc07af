"""Whether every character is accounted for: Debian's fortunes in many languages, and a piece of Wikipedia.

    apt-get install fortunes fortunes-{bg,br,cs,de,eo,es,ga,it,pl,ru,zh}
    python tests/benchmarks/study_accounting.py

Reads the text of each installed package with the reader `books`, which detects encodings, and the piece of Wikipedia in
the package gensim with `wikipedia`. After each document the account must be balanced; the tables show where characters
went. The exit code is 1 if a character is missing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from kdcore_preparation.inspection import stage_table
from kdcore_preparation.readers.books import BooksCorpus
from kdcore_preparation.readers.wikipedia.wikipedia_corpus import WikipediaCorpus

from kdcore import Corpus

LANGUAGES = ("bg", "br", "cs", "de", "eo", "es", "ga", "it", "pl", "ru", "zh")
PACKAGES = ("fortunes", *(f"fortunes-{language}" for language in LANGUAGES))
DUMP = ("gensim", "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2")


def fortunes_of(package: str) -> list[Path]:
    """List the texts of an installed package, without indices and second names."""
    done = subprocess.run(["dpkg-query", "-L", package], capture_output=True, text=True, check=False)
    paths = [Path(line) for line in done.stdout.splitlines() if "/games/fortunes/" in line]
    return [path for path in paths if path.is_file() and not path.is_symlink() and path.suffix != ".dat"]


def dump() -> Path | None:
    """Find the piece of Wikipedia."""
    try:
        files = metadata.files(DUMP[0]) or []
    except metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if str(file).endswith(DUMP[1])), None)


def read(corpus: Corpus) -> tuple[int, int]:
    """Read all documents: their number, and how often the account was not balanced after one."""
    documents = faults = characters = 0
    for document in corpus.documents():
        documents += 1
        characters += len(document.text)
        faults += bool(corpus.characters.imbalances())
    return documents, faults + (characters != list(corpus.characters.values())[-1].passed)


def main() -> int:
    """Print a table for each language."""
    faults = 0
    with tempfile.TemporaryDirectory() as folder:
        for package in PACKAGES:
            texts = fortunes_of(package)
            if not texts:
                print(f"{package}: not installed")
                continue
            root = Path(folder, package)
            root.mkdir()
            for number, text in enumerate(texts):
                os.symlink(text, root / f"{number:03d}-{text.name}")
            faults += show(package, BooksCorpus(BooksCorpus.Config(path=str(root))))
    piece = dump()
    if piece is not None:
        faults += show("Wikipedia", WikipediaCorpus(WikipediaCorpus.Config(path=str(piece))))
    return int(bool(faults))


def show(name: str, corpus: Corpus) -> int:
    documents, faults = read(corpus)
    remainder = sum(abs(stage.remainder) for stage in corpus.characters.values())
    print(f"\n{name}: {documents:,} documents, remainder {remainder}, not balanced after {faults} documents")
    print(*stage_table(corpus.characters.entries()), sep="\n")
    return faults + remainder


if __name__ == "__main__":
    sys.exit(main())
