"""Prepared data accounts for its text: characters by stage, unknown and repeated text, and where duplicates went."""

from __future__ import annotations

import bz2
import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from kdcore_preparation import prepare
from kdcore_preparation.commands.prepare import summary
from kdcore_preparation.inspection import describe
from kdcore_preparation.pipeline.prepare import DataRecipe
from kdcore_preparation.readers.books import BooksCorpus
from kdcore_preparation.readers.wikipedia.wikipedia_corpus import WikipediaCorpus

from kdcore import Corpus, CorpusConfig, Document, Manifest, PreparedData, load_tokenizer

TAIL = " of the teacher and the student, who were on their way."


def recipe(path: Path, tokenizer: Path, **keys: Any) -> DataRecipe:
    defaults = {"corpora": [{"name": "text", "path": str(path)}], "sequence_length": 32, "held_out": 0.1}
    return DataRecipe(tokenizer=str(tokenizer), **{**defaults, **keys})


def story(number: int) -> str:
    return f"Story {number}{TAIL}"


def numbers_in(data: PreparedData, split: Any) -> list[int]:
    """Read the number of each document from its rows."""
    tokenizer = load_tokenizer(str(data.tokenizer_folder))
    rows, lengths = data.split(split).rows(np.arange(len(data.split(split))))
    texts = [
        tokenizer.decode(row[:length], skip_special_tokens=True) for row, length in zip(rows, lengths, strict=True)
    ]
    found = [re.search(r"story([\d ]+)of", text.replace("s t o r y", "story")) for text in texts]
    return [int(match[1].replace(" ", "")) for match in found if match]


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four hundred stories, three times each: as they are, in capitals, and with other punctuation and spaces."""
    choice = random.Random(1)
    lines = [story(number) for number in range(400)]
    lines += [line.upper() for line in lines] + [line.replace(" ", "  ").rstrip(".") + "…" for line in lines]
    lines += lines[:50]
    choice.shuffle(lines)
    path = tmp_path_factory.mktemp("stories") / "stories.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("workers", [1, 2])
def test_documents_of_the_same_content_are_never_in_different_splits(
    stories: Path, tmp_path: Path, tokenizer_folder: Path, workers: int
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for part in range(3):  # the same stories under other names
        (other / f"{part}.txt").write_text("\n".join(story(number) for number in range(part, 400, 3)))
    entries = [{"name": "text", "path": str(stories)}, {"name": "text", "path": str(other)}]
    data = prepare(recipe(stories, tokenizer_folder, corpora=entries), tmp_path / "out", workers=workers)
    train, held_out = Counter(numbers_in(data, "train")), Counter(numbers_in(data, "held_out"))
    assert not train.keys() & held_out.keys()
    assert train.keys() | held_out.keys() == set(range(400))
    assert 15 < len(held_out) < 70
    for split, counts in (("train", train), ("held_out", held_out)):
        entry = data.manifest.splits[split]  # type: ignore[index]
        assert entry.documents == sum(counts.values())
        assert entry.repeated_documents == entry.documents - len(counts)
    assert any(f"{split}: " in problem and "repeat another one" in problem for problem in data.manifest.problems or ())


def test_all_copies_of_a_document_move_to_a_split_that_would_stay_empty(tmp_path: Path, tokenizer_folder: Path) -> None:
    for part in range(3):
        (tmp_path / f"{part}.txt").write_text("\n".join([story(1), story(2).upper(), story(2), story(3)]))
    data = prepare(recipe(tmp_path, tokenizer_folder, held_out=1e-9), tmp_path / "out", workers=1)
    train, held_out = numbers_in(data, "train"), numbers_in(data, "held_out")
    assert len(set(held_out)) == 1
    assert not set(train) & set(held_out)
    assert sorted([*train, *held_out]) == [1] * 3 + [2] * 6 + [3] * 3
    data.verify()


def test_copies_of_one_document_alone_cannot_be_held_out(tmp_path: Path, tokenizer_folder: Path) -> None:
    (tmp_path / "a.txt").write_text(f"{story(1)}\n{story(1).upper()}\n")
    with pytest.raises(Exception, match="2 documents differ in case, white space and punctuation at most") as caught:
        prepare(recipe(tmp_path, tokenizer_folder), tmp_path / "out", workers=1)
    assert "set held_out to 0" in str(caught.value)
    assert prepare(recipe(tmp_path, tokenizer_folder, held_out=0), tmp_path / "out", workers=1).fingerprint


def assert_accounted(manifest: Manifest) -> None:
    """Compare every stage with the next one."""
    passed_to_splits = 0
    for stages in manifest.characters:
        before = None
        for stage in stages.values():
            change = sum(after - earlier for earlier, after in stage.rewritten.values())
            assert stage.received + change == sum(stage.dropped.values()) + stage.passed
            assert before is None or stage.received == before
            before = stage.passed
        passed_to_splits += before or 0
    assert passed_to_splits == sum(entry.text_characters or 0 for entry in manifest.splits.values())


@pytest.mark.parametrize("remove_duplicates", [False, True])
def test_the_manifest_accounts_for_every_character_of_the_files(
    tmp_path: Path, tokenizer_folder: Path, remove_duplicates: bool
) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    contents = {
        "a.txt": "\ufeffFirst line\r\n\r\nZu\u0308rich\x00\nsame text\n  same  text \n\u200b\n",
        "b.txt": "\n".join(story(number) for number in range(50)),
        "c.txt": "same text\nsecond\u2028line\n",
    }
    for name, content in contents.items():
        (texts / name).write_bytes(content.encode())
    data = prepare(recipe(texts, tokenizer_folder, remove_duplicates=remove_duplicates), tmp_path / "out", workers=2)
    assert_accounted(data.manifest)
    (stages,) = data.manifest.characters
    assert list(stages) == ["decode", "clean", "documents", "selection"]
    assert stages["decode"].received == sum(map(len, contents.values()))
    assert stages["decode"].dropped == {"byte order mark": 1}
    assert stages["clean"].dropped["control characters"] == 1
    assert stages["clean"].rewritten == {
        "Unicode normal form C": [len("Zu\u0308rich\n"), len("Zürich\n")],
        "line ends": [5, 3],
    }
    # A zero-width space has no tokens; two of three equal texts are duplicates.
    duplicates = {"duplicates": len("same  text") + len("same text")} if remove_duplicates else {}
    assert stages["selection"].dropped == {**duplicates, "documents without tokens": 1}
    reopened = PreparedData.open(data.folder).manifest
    assert reopened.characters == data.manifest.characters


def test_the_account_is_the_same_for_any_number_of_workers(
    stories: Path, tmp_path: Path, tokenizer_folder: Path
) -> None:
    (tmp_path / "texts").mkdir()
    for number in range(4):
        (tmp_path / "texts" / f"{number}.txt").write_bytes(stories.read_bytes()[number * 9000 :])
    found = []
    for workers in (1, 3):
        data = prepare(recipe(tmp_path / "texts", tokenizer_folder), tmp_path / f"out {workers}", workers=workers)
        assert_accounted(data.manifest)
        found.append((data.folder / "manifest.json").read_bytes())
    assert found[0] == found[1]


class Plain(Corpus):
    """A reader of another package, without an account; its texts need cleaning."""

    Config = CorpusConfig

    def files(self) -> Mapping[str, Path]:
        return {}

    def documents(self) -> Iterator[Document]:
        for number in range(40):
            yield Document(str(number), f" {story(number)}\x00\n")
        yield Document("blank", " \n ")


def test_of_a_reader_without_an_account_only_the_preparation_is_counted(tmp_path: Path, tokenizer_folder: Path) -> None:
    data = prepare(recipe(tmp_path, tokenizer_folder), tmp_path / "out", corpora=[Plain(CorpusConfig())], workers=1)
    assert_accounted(data.manifest)
    (stages,) = data.manifest.characters
    assert list(stages) == ["documents", "selection"]
    assert stages["documents"].received == sum(len(story(number)) + 3 for number in range(40)) + 3
    assert stages["documents"].dropped == {"white space at the ends": 83, "control characters": 40}


def test_prepare_and_inspect_print_the_account(tmp_path: Path, tokenizer_folder: Path) -> None:
    (tmp_path / "a.txt").write_bytes(("\n".join(map(story, range(90))) + "\r\n\x01Zu\u0308rich\n").encode())
    data = prepare(recipe(tmp_path, tokenizer_folder), tmp_path / "out", workers=1)
    for lines in (list(summary(data.manifest)), list(describe(data, 1))):
        text = "\n".join(line.strip() for line in lines)
        size = len((tmp_path / "a.txt").read_bytes().decode())
        assert "characters of text\n" in text
        assert re.search(rf"^decode +{size:,} +0 +0 +{size:,}$", text, re.MULTILINE)
        (row,) = re.findall(r"^clean +([-\d,]+) +([-\d,]+) +([-\d,]+) +([-\d,]+)$", text, re.MULTILINE)
        received, dropped, changed, passed = (int(cell.replace(",", "")) for cell in row)
        assert (received, received + dropped + changed) == (size, passed)
        assert re.search(r"^control characters +-1$", text, re.MULTILINE)
        assert re.search(r"^line ends: 2 -> 1 +-1$", text, re.MULTILINE)


def test_an_account_that_does_not_hold_is_a_problem_of_the_data(tmp_path: Path, tokenizer_folder: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(map(story, range(90))))
    data = prepare(recipe(tmp_path, tokenizer_folder), tmp_path / "out", workers=1)
    manifest = json.loads((data.folder / "manifest.json").read_text())
    manifest["characters"][0]["clean"]["dropped"]["white space at the ends"] -= 5
    from kdcore_preparation.inspection import problems

    changed = Manifest.model_validate({key: value for key, value in manifest.items() if key != "sha256"})
    found = list(problems(changed, {"train": 0.0, "held_out": 0.0}))
    assert any("clean: 5 of " in problem and "unaccounted for" in problem for problem in found)
    assert not any("unaccounted" in problem for problem in data.manifest.problems or ())


THAI = """ภาษาไทยเป็นภาษาที่มีระดับเสียงของคำแน่นอน
ผู้คนจำนวนมากในกรุงเทพมหานคร เดินทางด้วยรถไฟฟ้า BTS ทุกวัน
the student of the teacher
แม่น้ำเจ้าพระยาไหลผ่านเมืองหลวง the river"""


def test_unknown_text_is_measured_in_characters(tmp_path: Path, tokenizer_folder: Path) -> None:
    """One [UNK] replaces a whole phrase of Thai, so that the fraction of tokens hides most of the loss."""
    (tmp_path / "a.txt").write_text("\n".join([THAI] * 3), encoding="utf-8")
    data = prepare(recipe(tmp_path, tokenizer_folder, held_out=0), tmp_path / "out", workers=1)
    backend = load_tokenizer(str(tokenizer_folder)).backend_tokenizer
    lost = visible = 0
    for line in [*THAI.split("\n")] * 3:
        visible += len(line.replace(" ", ""))
        encoding = backend.encode(line, add_special_tokens=False)
        spans = zip(encoding.tokens, encoding.offsets, strict=True)
        lost += sum(end - start for token, (start, end) in spans if token == "[UNK]")
    entry = data.manifest.splits["train"]
    assert (entry.unknown_characters, entry.visible_characters) == (lost, visible)
    assert lost / visible > 0.5
    assert entry.unknown_tokens / entry.tokens < 0.3
    (problem,) = [one for one in data.manifest.problems or () if "unknown" in one]
    assert f"train: {lost / visible:.1%} of the characters are unknown to the tokenizer" in problem
    shown = "\n".join(describe(data, 1))
    assert f"{lost / visible:.3%} of the characters unknown" in shown


FORTUNES = Path("/usr/share/games/fortunes")
# A file or folder of each of Debian's packages of fortunes, by language.
LANGUAGES = {
    "bg": "bg", "brasil": "pt", "cs": "cs", "de": "de", "eo": "eo", "es": "es", "fortunes": "en", "ga": "ga",
    "it": "it", "pl": "pl", "ru": "ru", "tang300": "zh",
}  # fmt: skip


def fortunes() -> list[Path]:
    """The texts of Debian's packages of fortunes that are installed, in up to a dozen languages."""
    found = sorted(FORTUNES.rglob("*"))
    return [path for path in found if path.is_file() and not path.is_symlink() and path.suffix != ".dat"]


def test_the_characters_of_fortunes_in_many_languages_are_accounted_for(tmp_path: Path) -> None:
    """The texts have various encodings, and contain control characters left in them by people."""
    paths = fortunes()
    languages = {language for name, language in LANGUAGES.items() if (FORTUNES / name).exists()}
    if len(languages) < 10:
        pytest.skip(f"needs Debian's packages fortunes, fortunes-de, ... in ten languages (found {sorted(languages)})")
    for number, path in enumerate(paths):
        (tmp_path / f"{number}-{path.name}").write_bytes(path.read_bytes())
    corpus = BooksCorpus(BooksCorpus.Config(path=str(tmp_path)))
    yielded = 0
    of_language: Counter[str] = Counter()
    for document in corpus.documents():
        yielded += len(document.text)
        relative = paths[int(document.id.partition("-")[0])].relative_to(FORTUNES)
        of_language[LANGUAGES.get(relative.parts[0], "other")] += len(document.text)
        assert corpus.characters.imbalances() == [], document.id
    assert of_language.keys() - {"other"} == languages
    stages = corpus.characters
    assert stages["clean"].passed == yielded
    contents = [path.read_bytes() for path in paths]
    valid = [content.decode() for content in contents if is_utf8(content)]
    assert stages["decode"].received >= sum(map(len, valid))
    if len(valid) == len(contents):
        assert stages["decode"].received == sum(map(len, valid))


def is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_the_characters_of_a_piece_of_wikipedia_are_accounted_for() -> None:
    try:
        files = metadata.files("gensim") or []
    except metadata.PackageNotFoundError:
        pytest.skip("needs the package gensim")
    (piece,) = [file.locate() for file in files if file.name.startswith("enwiki-latest-pages-articles1")]
    corpus = WikipediaCorpus(WikipediaCorpus.Config(path=str(piece)))
    yielded = 0
    for document in corpus.documents():
        yielded += len(document.text)
        assert corpus.characters.imbalances() == [], document.id
    stages = list(corpus.characters.values())
    assert stages[-1].passed == yielded
    with bz2.open(str(piece)) as stream:
        texts = [each.text or "" for _, each in ElementTree.iterparse(stream) if each.tag.endswith("}text")]
    assert stages[0].received == sum(map(len, texts))
