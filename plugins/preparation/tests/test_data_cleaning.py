from __future__ import annotations

import random
import sys
import time
import unicodedata
from collections import Counter

import pytest
from kdcore_preparation.readers.character_account import CharacterStage
from kdcore_preparation.readers.cleaning import clean_text, cut_text, decode_utf8


def clean(text: str) -> tuple[str, dict[str, int]]:
    report: Counter[str] = Counter()
    return clean_text(text, report), dict(report)


def test_one_word_spelt_in_two_ways_becomes_one() -> None:
    assert clean("Zu\u0308rich") == ("Zürich", {"documents brought into Unicode normal form C": 1})
    assert clean("Zürich") == ("Zürich", {})


def test_what_only_looks_alike_stays() -> None:
    for text in ("½ ﬁ ｆｕｌｌ ² …", "soft\xadhyphen", "zero\u200bwidth", "\u202aleft\u202c", "no\xa0break"):
        assert clean(text) == (text, {})


@pytest.mark.parametrize("end", ["\r\n", "\r", "\v", "\f", "\x1c", "\x85", "\u2028", "\u2029"])
def test_every_kind_of_line_end_becomes_a_newline(end: str) -> None:
    assert clean(f"one{end}two") == ("one\ntwo", {})


def test_what_is_no_text_goes_and_is_counted() -> None:
    assert clean("a\0b\x07c\x1bd\x7fe\x80f\ufeffg\uffffh\ti") == ("abcdefgh\ti", {"control characters removed": 7})
    assert clean("a\ud800b\udfffc") == ("a\ufffdb\ufffdc", {"halves of surrogate pairs replaced": 2})


@pytest.mark.parametrize("marks", ["\u0301\u0323", "\u0f71\u0f72", "\u0f73\u0f73", "\U0001e8d0\U0001d165"])
@pytest.mark.parametrize("before", range(3))
def test_long_runs_of_combining_marks_are_shortened_and_counted(marks: str, before: int) -> None:
    report: Counter[str] = Counter()
    stage = CharacterStage()
    ends = "x" * (99 * before) + "a", "b"
    start = time.process_time()
    text = clean_text((marks * 80_000).join(ends), report, stage)
    assert time.process_time() - start < 3
    assert text == unicodedata.normalize("NFC", (marks * 500).join(ends))
    assert report["combining marks removed"] == stage.dropped["combining marks in long runs"] == 159_000
    assert stage.remainder == 0


def test_shorter_runs_of_combining_marks_stay() -> None:
    for length in (1, 30, 1000):
        text = ("e" + "\u0316" * length) * 20
        assert clean(text) == (text, {})
    assert clean("e" + "\u0316" * 1001) == ("e" + "\u0316" * 1000, {"combining marks removed": 1})


def test_every_code_point_is_kept_or_counted_and_the_result_is_final() -> None:
    sampled = random.Random(0).sample(range(sys.maxunicode + 1), 20_000)
    for code in (*range(0x3100), *range(0xD7F0, 0xE010), *range(0xFB00, 0x10010), *sampled):
        text, report = clean(f"x{chr(code)}y")
        if not report and chr(code) not in "\r\v\f\x1c\x1d\x1e\x85\u2028\u2029":
            assert text == f"x{chr(code)}y"
        assert clean(text) == (text, {})
        assert unicodedata.is_normalized("NFC", text)
        text.encode("utf-8")


def test_broken_bytes_are_replaced_and_counted() -> None:
    report: Counter[str] = Counter()
    assert decode_utf8("ä\ufffd".encode() + b"x\xffy\xc3", report) == "ä\ufffdx\ufffdy\ufffd"
    assert report == {"broken UTF-8 replaced": 2}


def test_a_text_is_cut_in_front_of_white_space_and_is_its_pieces() -> None:
    for text in ("", "a", "one two three", "x" * 55, " " * 55, "日本 " * 30, "a\nb" * 30):
        pieces = list(cut_text(text, 10))
        assert "".join(pieces) == text
        assert all(0 < len(piece) <= 10 for piece in pieces)
    assert list(cut_text("one two\nthree", 8)) == ["one two", "\nthree"]
    assert list(cut_text("one two", 7)) == ["one two"]
