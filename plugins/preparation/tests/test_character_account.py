"""The account of characters, compared with independent counts of the files."""

from __future__ import annotations

import bz2
import json
import random
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kdcore_preparation import CharacterAccount, CharacterStage, clean_text, decode_utf8
from kdcore_preparation.readers import file_corpus, json_lines, parquet

from kdcore.data.base import Corpus
from kdcore.errors import DataError
from kdcore.registry import corpora

PIECES = [
    "word",
    "Ünïcödé",
    "日本語",
    "👩‍🚀",
    "e\u0301",
    "q\u0308\u0323",
    "\u1112\u1161\u11ab",
    "\t",
    "  ",
    "\u2028",
    "\x85",
    "\x00",
    "\ufeff",
]
PIECES += ["\x1b", "\ufffd", "«a»", '"', "\\", "{{x}}", "\u200b", "\ufdd0", "\r", "\x0b"]


def texts(count: int, seed: int = 0) -> list[str]:
    """Texts of odd characters, without newlines; some are empty or white space."""
    choice = random.Random(seed)
    return ["".join(choice.choices(PIECES, k=choice.randrange(12))) for _ in range(count)]


def corpus_of(name: str, **settings: Any) -> Corpus:
    cls = corpora.get(name)
    corpus: Corpus = cls(cls.Config(**settings))
    return corpus


def read(corpus: Corpus) -> list[str]:
    """Read all documents; the account must balance at each. A text that is cut is counted at its first document."""
    found: list[str] = []
    account = corpus.characters
    for document in corpus.documents():
        found.append(document.text)
        assert account.imbalances() == []
        assert [*account.values()][-1].passed >= sum(map(len, found))
    assert account.imbalances() == []
    assert [*account.values()][-1].passed == sum(map(len, found))
    return found


def expected_clean(text: str) -> dict[str, Any]:
    """Count what cleaning does to a text, one character at a time."""
    counts: Counter[str] = Counter()
    result: list[str] = []
    place = 0
    while place < len(text):
        character = text[place]
        if text[place : place + 2] == "\r\n":
            result.append("\n")
            counts["ends before"] += 2
            counts["ends"] += 1
            place += 1
        elif character in "\r\v\f\x1c\x1d\x1e\x85\u2028\u2029":
            result.append("\n")
            counts["ends before"] += 1
            counts["ends"] += 1
        elif (unicodedata.category(character) == "Cc" and character not in "\t\n") or character in "\ufeff\ufdd0":
            counts["controls"] += 1
        else:
            result.append(character)
        place += 1
    joined = "".join(result)
    composed = unicodedata.normalize("NFC", joined)
    counts["nfc"] += len(composed) - len(joined)
    start, end = 0, len(composed)
    while start < end and composed[start].isspace():
        start += 1
    while end > start and composed[end - 1].isspace():
        end -= 1
    counts["ends of text"] += len(composed) - (end - start)
    return dict(counts)


def summed(counts: list[dict[str, Any]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return total


def assert_cleaned(stage: CharacterStage, originals: list[str]) -> None:
    expected = summed([expected_clean(text) for text in originals])
    assert stage.received == sum(map(len, originals))
    assert stage.dropped["control characters"] == expected["controls"]
    assert stage.dropped["white space at the ends"] == expected["ends of text"]
    assert stage.rewritten.get("line ends", [0, 0]) == [expected["ends before"], expected["ends"]]
    before, after = stage.rewritten.get("Unicode normal form C", (0, 0))
    assert after - before == expected["nfc"]


def test_a_stage_is_balanced_only_if_everything_is_counted() -> None:
    account = CharacterAccount()
    first, second = account.stage("first"), account.stage("second")
    first.received += 10
    first.drop("tags", 3)
    first.rewrite("entities", 5, 1)
    assert (first.net_change, first.remainder) == (-4, 3)
    first.passed += 3
    assert first.remainder == 0
    assert account.imbalances() == ["first passed on 3 characters, but second received 0"]
    second.received += 3
    assert account.imbalances() == ["second: 3 of 3 characters are unaccounted for"]
    second.passed += 3
    second.refuse("redirects", 7)
    assert account.imbalances() == ["first passed on 3 characters, but second received 10"]


def test_accounts_of_parts_add_up_and_are_cleared_in_place() -> None:
    account, other = CharacterAccount(), CharacterAccount()
    stage = account.stage("clean")
    for one in (stage, other.stage("clean")):
        one.received += 9
        one.drop("tags", 2)
        one.rewrite("line ends", 4, 2)
        one.passed += 5
    account.add(other)
    assert (stage.received, stage.passed, stage.dropped, stage.rewritten) == (
        18,
        10,
        {"tags": 4},
        {"line ends": [8, 4]},
    )
    account.clear()
    assert account.stage("clean") is stage
    assert (stage.received, stage.passed, stage.dropped, stage.rewritten) == (0, 0, {}, {})
    assert other.stage("clean").received == 9


def test_cleaning_and_decoding_count_each_character() -> None:
    report: Counter[str] = Counter()
    for text in [*texts(2000), "a\r\nb\r\rc", " \u00a0x\u3000", "\r\n"]:
        stage = CharacterStage()
        cleaned = clean_text(text, report, stage)
        assert (stage.remainder, stage.passed) == (0, len(cleaned))
        assert_cleaned(stage, [text])
    stage = CharacterStage()
    clean_text("a\ud800b\udfff", report, stage)
    assert (stage.received, stage.passed, stage.rewritten) == (4, 4, {"halves of surrogate pairs": [2, 2]})
    stage = CharacterStage()
    decode_utf8("ä\ufffd".encode() + b"x\xffy\xc3", report, stage)
    assert (stage.received, stage.passed, stage.rewritten) == (6, 6, {"broken UTF-8": [2, 2]})


@pytest.mark.parametrize("part_bytes", [2**25, 700])
def test_text_of_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_bytes: int) -> None:
    monkeypatch.setattr(file_corpus, "PART_BYTES", part_bytes)
    monkeypatch.setattr(file_corpus, "MAX_DOCUMENT_BYTES", 120)
    lines = [*texts(300), "long " * 100, "long\u3000" * 60]
    content = b"\xef\xbb\xbf" + "\n".join(lines).encode()
    (tmp_path / "a.txt").write_bytes(content)
    corpus = corpus_of("text", path=str(tmp_path / "a.txt"))
    found = read(corpus)
    assert corpus.characters["decode"].received == len(content.decode())
    assert corpus.characters["decode"].dropped == {"byte order mark": 1}
    assert corpus.characters["clean"].passed == sum(map(len, found))
    if part_bytes > 700:
        short = [f"{line}\n" for line in lines[:-2]]
        expected = summed([expected_clean(line) for line in short])
        assert corpus.characters["clean"].dropped["control characters"] == expected["controls"]


@pytest.mark.parametrize("part_bytes", [2**25, 700, 90])
def test_text_of_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_bytes: int) -> None:
    monkeypatch.setattr(file_corpus, "PART_BYTES", part_bytes)
    choice = random.Random(3)
    blanks = ["\n", " \n", "\t\r\n"]
    blocks, skipped = [], 0
    for number, text in enumerate(texts(300)):
        block = f"line {number} {text}\nsecond line\n"
        separators = [choice.choice(blanks) for _ in range(choice.randrange(1, 4))]
        blocks.append(block + "".join(separators))
        skipped += sum(map(len, separators))
    content = "\n \n" + "".join(blocks)
    (tmp_path / "a.txt").write_bytes(content.encode())
    corpus = corpus_of("text", path=str(tmp_path / "a.txt"), documents="blank_lines")
    read(corpus)
    stage = corpus.characters["decode"]
    assert (stage.received, stage.dropped) == (len(content), {"blank lines": skipped + 3})


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
def test_books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    monkeypatch.setattr(file_corpus, "MAX_DOCUMENT_BYTES", 1000)
    content = "\r\n".join(texts(300)) if encoding != "cp1252" else "Grüße aus Köln \r\n" * 300
    (tmp_path / "a.txt").write_bytes(content.encode(encoding))
    (tmp_path / "blank.txt").write_bytes("  \n".encode(encoding))
    corpus = corpus_of("books", path=str(tmp_path), encoding=None if encoding.startswith("utf-") else encoding)
    found = read(corpus)
    marks = 2 if encoding in ("utf-8-sig", "utf-16", "utf-32") else 0
    stage = corpus.characters["decode"]
    assert stage.received == len(content) + 3 + marks
    assert stage.dropped == Counter({"byte order mark": marks} if marks else {})
    assert corpus.characters["clean"].passed == sum(map(len, found))
    assert corpus.characters["clean"].received == len(content) + 3


def test_broken_bytes_of_books(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xc3\xa9 " * 50 + b"\xff\xfe")
    corpus = corpus_of("books", path=str(tmp_path / "a.txt"), encoding="utf-8")
    assert read(corpus) == ["café " * 50 + "\ufffd\ufffd"]
    assert corpus.characters["decode"].rewritten == {"broken or unknown characters": [2, 2]}


def test_json_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_corpus, "MAX_DOCUMENT_BYTES", 400)
    originals = [*texts(300), "long " * 200]
    lines, literals = [], 0
    for number, text in enumerate(originals):
        literal = json.dumps(text, ensure_ascii=number % 2 == 0)
        literals += len(literal) - 2
        other = ['{"text": "no", "n": [1, {"text": 2}]}', '"}"', "1e5", "null", '"\\"text\\": \\"no\\""'][number % 5]
        first = f'"Text": "first {number}", ' if number % 7 == 0 else ""
        lines.append(f' {{{first}"a": {other} ,"t\\u0065xt" :{literal}, "z":{other}}}\t')
    lines += ["", '{"text": null}', "   "]
    content = "\ufeff" + "\n".join(lines) + "\n"
    path = tmp_path / "a.jsonl"
    path.write_text(content, encoding="utf-8", newline="")
    corpus = corpus_of("jsonl", path=str(path))
    read(corpus)
    account = corpus.characters
    assert account["decode"].received == len(content)
    assert account["JSON"].received == len(content) - 1
    assert account["JSON"].rewritten["escapes"][1] - account["JSON"].rewritten["escapes"][0] == (
        sum(map(len, originals)) - literals
    )
    assert account["JSON"].dropped == {
        "other fields and syntax": sum(len(line) + 1 for line in lines[:-3]) - literals,
        "blank lines": 1 + 4,
        "records whose text is null": 15,
    }
    assert_cleaned(account["clean"], originals)


def test_json_lines_that_cannot_be_used_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "MAX_RECORD_BYTES", 100)
    path = tmp_path / "a.jsonl"
    bad = ["{", '{"body": "x"}', "[1]", '{"text": 5}', json.dumps({"text": "é " * 100}, ensure_ascii=False)]
    path.write_text("\n".join(['{"text": "one"}', *bad, '{"text": "two"}']) + "\n")
    corpus = corpus_of("jsonl", path=str(path))
    with pytest.raises(DataError, match="and 4 more like it"):
        read(corpus)
    stage = corpus.characters["JSON"]
    assert corpus.characters.imbalances() == []
    assert (stage.received, stage.passed) == (len(path.read_text()), 6)
    assert stage.dropped["records that cannot be used"] == sum(len(line) + 1 for line in bad)


def test_parquet_and_saved_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import pyarrow
    from pyarrow import parquet as files

    monkeypatch.setattr(file_corpus, "MAX_DOCUMENT_BYTES", 200)
    monkeypatch.setattr(parquet, "PART_BYTES", 1000)
    originals = [*texts(300), "long " * 100, None]
    files.write_table(pyarrow.table({"text": originals}), tmp_path / "a.parquet", row_group_size=40)
    datasets.Dataset.from_dict({"text": originals}).save_to_disk(tmp_path / "saved")
    for name, path in (("parquet", tmp_path / "a.parquet"), ("huggingface", tmp_path / "saved")):
        corpus = corpus_of(name, path=str(path))
        found = read(corpus)
        assert_cleaned(corpus.characters["clean"], [text or "" for text in originals])
        cleaned = clean_text("long " * 100, Counter())
        pieces = [text for text in found if text.startswith("long")]
        assert len(pieces) == 3
        assert corpus.characters["cut"].dropped == {"white space at cuts": len(cleaned) - sum(map(len, pieces))}


def test_a_compressed_file_has_the_account_of_its_content(tmp_path: Path) -> None:
    content = ("\n".join(texts(300))).encode()
    (tmp_path / "a.txt").write_bytes(content)
    (tmp_path / "a.txt.bz2").write_bytes(bz2.compress(content))
    accounts = []
    for name in ("a.txt", "a.txt.bz2"):
        corpus = corpus_of("text", path=str(tmp_path / name))
        read(corpus)
        accounts.append(corpus.characters)
    assert [(stage.received, stage.passed, stage.dropped) for stage in accounts[0].values()] == [
        (stage.received, stage.passed, stage.dropped) for stage in accounts[1].values()
    ]


def sequences(corpus: Corpus) -> Iterator[int]:
    for group in corpus.documents():
        yield int(group.lengths.sum())


def test_shards_of_tokens_are_counted_in_tokens(tmp_path: Path) -> None:
    import h5py
    import numpy as np

    lengths = np.array([5, 16, 2])
    with h5py.File(tmp_path / "train_shard_0.hdf5", "w") as file:
        file["input_ids"] = np.full((3, 16), 7)
        file["input_mask"] = (np.arange(16) < lengths[:, None]).astype("int8")
        file["segment_ids"] = np.zeros((3, 16), "int8")
        file["masked_lm_positions"] = np.zeros((3, 2))
        file["masked_lm_ids"] = np.zeros((3, 2))
    corpus = corpus_of("hdf5", path=str(tmp_path))
    assert list(sequences(corpus)) == [23]
    stage = corpus.characters["tokens"]
    assert (stage.received, stage.passed, stage.remainder) == (23, 23, 0)
