"""Clean text before it is tokenised: normalise Unicode, and remove characters that are not text."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from functools import cache

from kdcore_preparation.readers.character_account import CharacterStage

# Other ways to end a line: Windows, old Macintosh, form feed, "next line", and Unicode's own separators.
_LINE_ENDS = re.compile("\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
# Control characters except tab and newline; byte order marks; noncharacters.
_NO_TEXT = re.compile("[\x00-\x08\x0e-\x1b\x1f\x7f-\x9f\ufeff\ufdd0-\ufdef\ufffe\uffff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_SUSPECT = re.compile(
    "[^\t\n\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufdcf\ufdf0-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)
_MOST_MARKS = 1000
_STEP = 100  # a run that is too long has at least ten marks at multiples of this

WHITE_SPACE_AT_THE_ENDS = "white space at the ends"


def clean_text(text: str, report: Counter[str], characters: CharacterStage | None = None) -> str:
    """Normalise a text; count the changes in `report` and the characters at a stage of an account.

    Text is converted to Unicode normal form C, so that each word has a single spelling; compatibility characters (½,
    full-width letters) are kept. Line ends become newlines. Control characters, byte order marks and noncharacters are
    removed; halves of surrogate pairs become U+FFFD. Combining marks after the first 1,000 of a run are removed,
    because the time for normalisation is quadratic in the length of a run. The text is stripped.
    """
    stage = CharacterStage() if characters is None else characters
    stage.received += len(text)
    if _SUSPECT.search(text):
        text = _without_suspects(text, report, stage)
    if len(text) > _MOST_MARKS and not text.isascii() and _some_of_a_long_run().search(text[::_STEP]):
        text = _with_bounded_runs(text, report, stage)
    if not unicodedata.is_normalized("NFC", text):
        before = len(text)
        text = unicodedata.normalize("NFC", text)
        report["documents brought into Unicode normal form C"] += 1
        stage.rewrite("Unicode normal form C", before, len(text))
    stripped = text.strip()
    if len(stripped) != len(text):
        stage.drop(WHITE_SPACE_AT_THE_ENDS, len(text) - len(stripped))
    stage.passed += len(stripped)
    return stripped


def decode_utf8(raw: bytes, report: Counter[str], characters: CharacterStage | None = None) -> str:
    """Decode UTF-8; each broken sequence of bytes becomes U+FFFD and is counted in `report`.

    In the account, a broken sequence counts as one character both before and after.
    """
    stage = CharacterStage() if characters is None else characters
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("utf-8", errors="replace")
        broken = text.count("\ufffd") - raw.count("\ufffd".encode())
        report["broken UTF-8 replaced"] += broken
        stage.rewrite("broken UTF-8", broken, broken)
    stage.received += len(text)
    stage.passed += len(text)
    return text


def cut_text(text: str, limit: int) -> Iterator[str]:
    """Cut a text into pieces of at most `limit` characters, before white space where possible.

    White space stays with the following word, as in byte-level and SentencePiece tokenizers, so that cutting does not
    change the tokens.
    """
    start = 0
    while len(text) - start > limit:
        end = max(text.rfind(" ", start + 1, start + limit + 1), text.rfind("\n", start + 1, start + limit + 1))
        end = end if end > start else start + limit
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def _without_suspects(text: str, report: Counter[str], stage: CharacterStage) -> str:
    before = len(text)
    text, ends = _LINE_ENDS.subn("\n", text)
    if ends:
        stage.rewrite("line ends", before - len(text) + ends, ends)
    text, controls = _NO_TEXT.subn("", text)
    if controls:
        report["control characters removed"] += controls
        stage.drop("control characters", controls)
    text, halves = _SURROGATE.subn("\ufffd", text)
    if halves:
        report["halves of surrogate pairs replaced"] += halves
        stage.rewrite("halves of surrogate pairs", halves, halves)
    return text


def _with_bounded_runs(text: str, report: Counter[str], stage: CharacterStage) -> str:
    bounded = _long_run().sub(r"\1", text)
    if len(bounded) != len(text):
        report["combining marks removed"] += len(text) - len(bounded)
        stage.drop("combining marks in long runs", len(text) - len(bounded))
    return bounded


@cache
def _some_of_a_long_run() -> re.Pattern[str]:
    return re.compile(f"{_marks()}{{{_MOST_MARKS // _STEP}}}")


@cache
def _long_run() -> re.Pattern[str]:
    return re.compile(f"(?<!{_marks()})({_marks()}{{{_MOST_MARKS}}}){_marks()}+")


@cache
def _marks() -> str:
    """Return the set of characters that normalisation may reorder; the planes from U+20000 on have none."""
    marks = (chr(code) for code in range(0x300, 0x20000))
    return f"[{''.join(mark for mark in marks if unicodedata.combining(unicodedata.normalize('NFD', mark)[0]))}]"
