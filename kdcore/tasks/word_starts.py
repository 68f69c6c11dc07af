"""Find the tokens that start a word, for whole-word masking."""

from __future__ import annotations

import json
import re
from bisect import bisect
from collections.abc import Callable
from typing import Any

import numpy as np

from kdcore.data.shards import PreparedData
from kdcore.errors import DataError, InputError

# How a token begins and ends: inside of a character or syllable, with a letter of a script with spaces, with Katakana,
# with a vowel that is written before its consonant, with a letter of Southeast Asia, with Hiragana, a Chinese character
# or punctuation of these scripts.
_INSIDE, _OTHER, _KATAKANA, _VOWEL, _SYLLABLE, _CHARACTER = range(-1, 5)
_RANGES = [
    (0x0E00, 0x0EFF, _SYLLABLE),  # Thai, Lao
    (0x1000, 0x109F, _SYLLABLE),  # Burmese
    (0x1780, 0x17FF, _SYLLABLE),  # Khmer
    (0x2018, 0x2018, _CHARACTER),  # quotation marks, except for the one that is also an apostrophe
    (0x201A, 0x201F, _CHARACTER),
    (0x3000, 0x309F, _CHARACTER),  # punctuation, Hiragana
    (0x30A1, 0x30FA, _KATAKANA),
    (0x30FB, 0x30FB, _CHARACTER),  # the middle dot between words
    (0x30FC, 0x30FF, _KATAKANA),
    (0x3105, 0x312F, _CHARACTER),  # Bopomofo
    (0x31F0, 0x31FF, _KATAKANA),
    (0x3400, 0x4DBF, _CHARACTER),  # Chinese characters
    (0x4E00, 0x9FFF, _CHARACTER),
    (0xF900, 0xFAFF, _CHARACTER),
    (0xFF01, 0xFF0F, _CHARACTER),  # full-width punctuation
    (0xFF1A, 0xFF20, _CHARACTER),
    (0xFF3B, 0xFF40, _CHARACTER),
    (0xFF5B, 0xFF65, _CHARACTER),
    (0xFF66, 0xFF9F, _KATAKANA),
    (0x20000, 0x3FFFF, _CHARACTER),
]
_RANGE_STARTS = [start for start, _, _ in _RANGES]
_VOWEL_BEFORE = re.compile("[\u0e40-\u0e44\u0ec0-\u0ec4]")
_AFTER_A_LETTER = re.compile("[\u0e2f-\u0e3a\u0e45-\u0e4e\u0eb0-\u0ebc\u0ec8-\u0ece\u102b-\u103e\u17b4-\u17d3]")
_BYTE = re.compile("<0x([0-9A-F]{2})>")

Segmenter = Callable[[str], list[int]]
"""Function that returns the positions where words of a text start."""


class WordStarts:
    """Find the tokens that start a word.

    The tokenizer's prefixes mark space-separated words. In scripts without spaces, each token of Chinese characters,
    Hiragana or full-width punctuation is a word, and consecutive tokens of Katakana form one word. Words of Thai, Lao,
    Khmer and Burmese are found by the segmenter; without a segmenter, each token starts a word, unless this would
    separate a letter from the vowels of its syllable. A word also starts wherever text in one of these scripts begins
    or ends.

    Args:
        data: the prepared data.
        segmenter: segments Thai, Lao, Khmer and Burmese; None to treat tokens as words.

    Raises:
        DataError: the tokenizer does not mark where words start.
    """

    def __init__(self, data: PreparedData, segmenter: Segmenter | None = None) -> None:
        file = data.tokenizer_folder / "tokenizer.json"
        content = json.loads(file.read_text(encoding="utf-8"))
        vocabulary = content["model"]["vocab"]
        pieces = vocabulary if isinstance(vocabulary, dict) else {piece: n for n, (piece, _) in enumerate(vocabulary)}
        continues, begins = _marks(content)
        if not continues and not begins:
            raise DataError(
                "the tokenizer does not mark where words start",
                where=str(file),
                key="task.masking.whole_word",
                allowed="WordPiece, SentencePiece and byte-level tokenizers",
                hint="remove `whole_word`",
            )
        to_bytes = _byte_level if "Ġ" in begins else _plain
        self._marked = np.ones(data.vocab_size, dtype=bool)
        self._first = np.full(data.vocab_size, _OTHER, np.int8)
        self._last = self._first.copy()
        self._segmenter = segmenter
        self._bytes: dict[int, bytes] = {}
        for piece, number in pieces.items():
            self._marked[number] = not piece.startswith(continues) if continues else piece.startswith(begins)
            if piece.isascii() and not _BYTE.fullmatch(piece):
                continue
            raw = to_bytes(piece.removeprefix(continues))
            self._first[number], self._last[number] = _scripts(raw)
            if segmenter is not None:
                self._bytes[number] = raw
        special = [token["id"] for token in content["added_tokens"]]
        self._marked[special] = True
        self._first[special] = self._last[special] = _OTHER

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        """Return whether each token starts a word (B, L), given ids (B, L)."""
        starts: np.ndarray = self._marked[tokens]
        first, last = self._first[tokens], self._last[tokens]
        if not (first.any() or last.any()):
            return starts
        known = np.where(last == _INSIDE, 0, np.arange(tokens.shape[1]))
        last = np.take_along_axis(last, np.maximum.accumulate(known, axis=1), axis=1)
        before, here = last[:, :-1], first[:, 1:]
        new = (before != here) & ((before != _OTHER) | (here != _OTHER)) | (here >= _SYLLABLE)
        starts[:, 1:] |= new & (here != _INSIDE) & ~((before == _VOWEL) & (here == _SYLLABLE))
        if self._segmenter is not None:
            self._segment(tokens, starts, (first == _SYLLABLE) | (first == _VOWEL) | (last == _SYLLABLE))
        return starts

    def _segment(self, tokens: np.ndarray, starts: np.ndarray, chosen: np.ndarray) -> None:
        """Correct the starts of words within runs of chosen tokens (B, L)."""
        assert self._segmenter is not None
        edges = np.diff(np.pad(chosen, ((0, 0), (1, 1))).astype(np.int8), axis=1)
        for row, begin, end in zip(*np.nonzero(edges == 1), np.nonzero(edges == -1)[1], strict=True):
            pieces = [self._bytes.get(number, b" ") for number in tokens[row, begin:end].tolist()]
            text = b"".join(pieces).decode("utf-8", "surrogateescape")
            sizes = [1 if "\udc80" <= character <= "\udcff" else len(character.encode()) for character in text]
            places = np.concatenate([[0], np.cumsum(sizes)])
            words = places[self._segmenter(re.sub("[\udc80-\udcff]", "\ufffd", text))]
            ends = np.cumsum([len(piece) for piece in pieces])
            inner = slice(begin + 1, end)
            starts[row, inner] = self._marked[tokens[row, inner]] | np.isin(ends[:-1], words)


def icu_segmenter() -> Segmenter:
    """Return ICU's segmenter, which has dictionaries for Thai, Lao, Khmer and Burmese.

    Raises:
        InputError: the package `icu4py` is not installed.
    """
    try:
        from icu4py.breakers import WordBreaker
    except ImportError as error:
        raise InputError(
            "the segmenter `icu` needs the package icu4py",
            key="task.masking.segmenter",
            hint='run `pip install "kdcore[icu]"`, or remove `segmenter`',
        ) from error
    return lambda text: [start for start, _ in WordBreaker(text, "th").segments()]


def _marks(content: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Return the prefix of tokens that continue a word, or the prefixes of tokens that start one."""
    model = content["model"]
    if model.get("continuing_subword_prefix"):
        return str(model["continuing_subword_prefix"]), ()
    around = json.dumps([content[part] for part in ("normalizer", "pre_tokenizer", "decoder")], ensure_ascii=False)
    if "▁" in around:
        return "", ("▁",)
    return "", (
        "Ġ",
        "Ċ",
        "ĉ",
    ) if '"ByteLevel"' in around else ()  # space, newline and tab, as that alphabet writes them


def _plain(piece: str) -> bytes:
    byte = _BYTE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()


def _byte_level(piece: str) -> bytes:
    """Return the bytes of a piece, where printable Latin-1 bytes represent themselves and others start at U+0100."""
    return bytes(_BYTE_OF.get(character, 0) for character in piece)


_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + n): byte for n, byte in enumerate(_OTHERS)}


def _scripts(raw: bytes) -> tuple[int, int]:
    """Return how a token of these bytes begins and ends."""
    whole = raw.lstrip(bytes(range(0x80, 0xC0)))
    padded = (whole + b"\x80" * count for count in range(4))  # the last character may be incomplete
    text = next((text for each in padded if (text := _decoded(each)) is not None), "?").strip()
    inside = len(whole) < len(raw)
    if not text:
        return (_INSIDE, _INSIDE) if inside else (_OTHER, _OTHER)
    first, last = _script(text[0]), _script(text[-1])
    if inside or _AFTER_A_LETTER.match(text):
        first = _INSIDE
    return (_SYLLABLE if first == _VOWEL else first), last


def _decoded(raw: bytes) -> str | None:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


def _script(character: str) -> int:
    if _VOWEL_BEFORE.match(character):
        return _VOWEL
    found = bisect(_RANGE_STARTS, ord(character)) - 1
    return _RANGES[found][2] if found >= 0 and ord(character) <= _RANGES[found][1] else _OTHER
