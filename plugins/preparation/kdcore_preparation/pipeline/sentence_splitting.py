"""Split text into sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator

# The segmenter treats some white space as one byte long and stops in the middle of it.
_WIDE_WHITE_SPACE = {code: " " for code in range(0x80, 0x3001) if chr(code).isspace()}
_PARAGRAPH = re.compile(r"[^\n]*\n+|[^\n]+")
# Longer paragraphs are cut before they are segmented: without spaces the segmenter takes quadratic time.
_PIECE_CHARACTERS = 4000
_CERTAIN_END = re.compile(r"""[。！？][。！？!?"'”’」』）)】》〉]*\s*|[!?।](?=[^\W\d_])""")


def split_sentences(text: str) -> list[str]:
    """Split a text into sentences whose concatenation is the text.

    A sentence includes the white space after it. Paragraphs, separated by newlines, are never joined, so a heading or
    list item is a separate sentence. An ambiguous full stop does not end a sentence (only English abbreviations are
    known). A paragraph of more than 4,000 characters is first split after marks such as `。`, even within quotations.
    Splitting takes about 1% of the time needed for tokenising.

    Returns:
        Sentences, none of them empty; an empty list for an empty text.
    """
    sentences: list[str] = []
    for paragraph in _PARAGRAPH.findall(text):
        for piece in _pieces(paragraph):
            sentences += _split_piece(piece)
    return sentences


def _pieces(paragraph: str) -> Iterator[str]:
    """Cut a paragraph at sentence ends into pieces of a few thousand characters, where possible."""
    start = 0
    while len(paragraph) - start > _PIECE_CHARACTERS:
        end = _CERTAIN_END.search(paragraph, start + _PIECE_CHARACTERS)
        if end is None:
            break
        yield paragraph[start : end.end()]
        start = end.end()
    if start < len(paragraph):
        yield paragraph[start:]


def _split_piece(piece: str) -> list[str]:
    import sentencex

    try:
        found: list[str] = sentencex.segment("en", piece.translate(_WIDE_WHITE_SPACE))
    except BaseException as error:
        # A bug in the segmenter (a Rust panic, which does not derive from Exception) must not abort hours of work: keep
        # the text as one long sentence.
        if type(error).__name__ != "PanicException":
            raise
        return [piece]
    sentences: list[str] = []
    end = 0
    for sentence in found:
        start, end = end, end + len(sentence)
        if sentences and sentence.isspace():
            sentences[-1] += piece[start:end]
        else:
            sentences.append(piece[start:end])
    return sentences if end == len(piece) else [piece]
