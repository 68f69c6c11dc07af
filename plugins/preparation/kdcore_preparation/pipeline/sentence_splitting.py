"""Where sentences end."""

from __future__ import annotations

import re

# The segmenter takes some white space for one byte long and stops in the middle of it.
_WIDE_WHITE_SPACE = {code: " " for code in range(0x80, 0x3001) if chr(code).isspace()}
_PARAGRAPH = re.compile(r"[^\n]*\n+|[^\n]+")


def split_sentences(text: str) -> list[str]:
    """Cut a text into sentences. Nothing is lost: joined together they are the text again.

    A sentence keeps the white space behind it. Paragraphs, which newlines separate, are never joined, so a heading or
    an item of a list is a sentence of its own. Where it is unclear whether a full stop ends a sentence, it does not
    (the abbreviations known are those of English). It takes about a hundredth of the time that tokenising takes.

    Returns:
        Sentences, none of them empty; no sentence for an empty text.
    """
    sentences: list[str] = []
    for paragraph in _PARAGRAPH.findall(text):
        sentences += _split_paragraph(paragraph)
    return sentences


def _split_paragraph(paragraph: str) -> list[str]:
    import sentencex

    try:
        found: list[str] = sentencex.segment("en", paragraph.translate(_WIDE_WHITE_SPACE))
    except BaseException as error:
        # A mistake of the segmenter's own (Rust calls it a panic, which is no Exception) is no reason to stop after
        # hours of work: a long sentence does less harm.
        if type(error).__name__ != "PanicException":
            raise
        return [paragraph]
    sentences: list[str] = []
    end = 0
    for sentence in found:
        start, end = end, end + len(sentence)
        if sentences and sentence.isspace():
            sentences[-1] += paragraph[start:end]
        else:
            sentences.append(paragraph[start:end])
    return sentences if end == len(paragraph) else [paragraph]
