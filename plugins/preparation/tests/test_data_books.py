from __future__ import annotations

import bz2
import gzip
from pathlib import Path
from typing import Any

import pytest
from kdcore_preparation.readers import file_corpus
from kdcore_preparation.readers.books import BooksCorpus

from kdcore.commands.main import main
from kdcore.errors import DataError
from kdcore.recipe.checking import check
from kdcore.recipe.yaml import Origin

FRENCH = (
    "Il était une fois une petite fille de village, la plus éclairée qu'on eût su voir; sa mère en était folle, "
    "et sa mère-grand plus folle encore. Cette bonne femme lui fit faire un petit chaperon rouge.\n"
)
ENGLISH = "“It was the best of times” – the café was Mrs. O’Brien’s, and cost £5.\n"
RUSSIAN = "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.\n"
JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n"


def read(path: Path, **settings: Any) -> tuple[dict[str, str], dict[str, int]]:
    corpus = BooksCorpus(BooksCorpus.Config(path=str(path), **settings))
    return {document.id: document.text for document in corpus.documents()}, dict(corpus.report)


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_each_file_of_a_tree_is_one_book(tmp_path: Path) -> None:
    write(tmp_path / "b/two.txt", b"Title\r\n\r\nChapter\r\nText.\r\n")
    write(tmp_path / "a/one.txt.gz", gzip.compress(b"One."))
    write(tmp_path / "empty.txt", b" \n")
    write(tmp_path / "cover.jpg", bytes(range(256)) * 20)
    assert read(tmp_path) == (
        {"a/one.txt.gz": "One.", "b/two.txt": "Title\n\nChapter\nText."},
        {"books read as utf-8": 3, "empty documents skipped": 1, "binary files skipped": 1},
    )


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        *((FRENCH, encoding) for encoding in ("utf-8", "utf-8-sig", "latin-1", "cp1252", "utf-16", "utf-32")),
        *((ENGLISH, encoding) for encoding in ("utf-8", "cp1252", "utf-16-le", "utf-16-be")),
        *((RUSSIAN, encoding) for encoding in ("utf-8", "koi8_r", "utf-16")),
        *((JAPANESE, encoding) for encoding in ("utf-8", "shift_jis", "euc_jp")),
    ],
)
def test_a_book_is_read_in_its_own_encoding(tmp_path: Path, text: str, encoding: str) -> None:
    path = write(tmp_path / "book.txt", (text * 40).encode(encoding))
    documents, report = read(path)
    assert documents == {"book.txt": (text * 40).strip()}
    ((words, count),) = report.items()
    assert words.startswith("books read as ")
    assert count == 1


def test_a_few_foreign_letters_in_a_long_english_book_are_found(tmp_path: Path) -> None:
    plain = "It was the age of wisdom, it was the age of foolishness.\n" * 2000
    path = write(tmp_path / "book.txt", (plain + "The café of Zoë.\n" + plain).encode("latin-1"))
    assert "The café of Zoë." in read(path)[0]["book.txt"]


def test_utf8_with_some_broken_bytes_stays_utf8_and_they_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "book.txt", (FRENCH * 5).encode() + b"\xff\xc3 end")
    documents, report = read(path)
    assert documents["book.txt"] == FRENCH * 5 + "\ufffd\ufffd end"
    assert report == {"books read as utf-8": 1, "characters that were broken or unknown replaced": 2}


def test_a_stated_encoding_is_taken_at_its_word(tmp_path: Path) -> None:
    path = write(tmp_path / "book.txt", RUSSIAN.encode("cp1251"))
    assert read(path, encoding="windows-1251")[0] == {"book.txt": RUSSIAN.strip()}


def test_an_unknown_encoding_is_refused() -> None:
    problems = check(
        BooksCorpus.Config, {"path": "x", "encoding": "utf-9"}, ("corpora", 0), lambda _: Origin(Path("d.yaml"))
    )
    assert isinstance(problems, list)
    assert "unknown encoding `utf-9`" in str(problems[0])


def test_a_named_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cover\.jpg: is binary data, not text"):
        read(write(tmp_path / "cover.jpg", bytes(range(256)) * 20))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_very_long_book_is_several_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    monkeypatch.setattr(file_corpus, "MAX_DOCUMENT_BYTES", 1000)
    words = [f"mère{number}" for number in range(500)]
    documents, report = read(write(tmp_path / "book.txt", " ".join(words).encode(encoding)))
    assert " ".join(documents.values()).split() == words
    assert list(documents)[:2] == ["book.txt", "book.txt#2"]
    assert max(map(len, documents.values())) <= 1010
    assert report["documents continued as another one, being very long"] == len(documents) - 1


def test_a_truncated_book_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"book\.gz: the compressed file is damaged or ends too early"):
        read(write(tmp_path / "book.gz", gzip.compress(FRENCH.encode() * 50)[:-20]))


ESPERANTO = (
    "Ĉiuj homoj estas denaske liberaj kaj egalaj laŭ digno kaj rajtoj. Ili posedas racion kaj konsciencon, kaj devus "
    "konduti unu al alia en spirito de frateco. Ĝi ŝanĝiĝis, ĵus kaj aŭdeble.\n"
)
MALTESE = "Il-bnedmin kollha jitwieldu ħielsa u ugwali fid-dinjità u d-drittijiet. Huma mogħnija bir-raġuni u ż-żejt.\n"
KOREAN = "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.\n"
CHINESE = "人人生而自由,在尊严和权利上一律平等。\n"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (JAPANESE, "iso2022_jp"),
        ("plain English first\n" * 5000 + JAPANESE, "iso2022_jp"),
        (JAPANESE + "丂\n", "iso2022_jp_1"),  # JIS X 0212
        (KOREAN, "iso2022_kr"),
        (CHINESE, "hz"),
    ],
)
def test_encodings_that_switch_by_escape_sequences_are_detected(tmp_path: Path, text: str, encoding: str) -> None:
    documents, report = read(write(tmp_path / "book.txt", (text * 3).encode(encoding)))
    assert documents == {"book.txt": (text * 3).strip()}
    ((words, _),) = report.items()
    assert words.startswith(f"books read as {encoding.split('_')[0]}")


def test_escape_sequences_of_an_unknown_encoding_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"book\.txt: has escape sequences of ISO 2022(?s:.)*set `encoding`"):
        read(write(tmp_path / "book.txt", b"text \x1b$)A\x0e<:;z\x0f text\n"))
    colours = b"a terminal's \x1b[31mred\x1b[0m words ~{ and } costs $5\n"
    assert read(write(tmp_path / "log.txt", colours))[1]["books read as utf-8"] == 1


@pytest.mark.parametrize("text", [ESPERANTO, MALTESE])
def test_the_encodings_that_fit_as_well_are_named(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "book.txt", (text * 40).encode("iso8859_3"))
    ((words, count),) = read(path)[1].items()
    assert count == 1
    assert "iso8859_3" in words.replace("-", "_").split(", perhaps ")[1].split(", ")
    assert read(path, encoding="iso8859_3") == ({"book.txt": (text * 40).strip()}, {"books read as iso8859-3": 1})


def test_certain_encodings_are_named_without_others(tmp_path: Path) -> None:
    for name, raw in {"a": ENGLISH.encode(), "b": ENGLISH.encode("utf-16"), "c": b"ASCII"}.items():
        write(tmp_path / name, raw)
    assert read(tmp_path)[1] == {"books read as utf-8": 2, "books read as utf-16": 1}


def test_western_text_is_not_taken_for_a_rarer_encoding(tmp_path: Path) -> None:
    text = "Il était une fois une petite fille, la plus éclairée qu'on eût su voir; sa mère en était folle.\n"
    assert read(write(tmp_path / "book.txt", (text * 40).encode("cp1252")))[0] == {"book.txt": (text * 40).strip()}


def test_the_text_before_damage_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (f"{word} volume\n" * 500 for word in ("first", "second"))
    damaged = bytearray(bz2.compress(second.encode()))
    damaged[1] ^= 4
    path = write(tmp_path / "book.bz2", bz2.compress(first.encode()) + damaged)
    for limit in (2**24, 1000):
        monkeypatch.setattr(file_corpus, "MAX_DOCUMENT_BYTES", limit)
        corpus, found = BooksCorpus(BooksCorpus.Config(path=str(path))), []
        with pytest.raises(DataError, match=r"book\.bz2: the compressed file is damaged"):  # noqa: PT012
            for document in corpus.documents():
                found.append(document.text)
        assert " ".join(found).split() == first.split()


def test_prepare_prints_the_share_of_each_encoding(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        write(tmp_path / "books" / f"{number}.txt", f"the student {number}\n".encode())
    write(tmp_path / "books" / "3.txt", (JAPANESE * 3).encode("iso2022_jp"))
    (tmp_path / "data.yaml").write_text(
        f"corpora: [{{name: books, path: books}}]\ntokenizer: {tokenizer_folder}\nheld_out: 0.3\n"
    )
    assert main(["prepare", str(tmp_path / "data.yaml"), str(tmp_path / "out"), "--workers", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "books: 3 books read as utf-8 (75.0%)" in lines
    assert "books: 1 books read as iso2022_jp (25.0%)" in lines
