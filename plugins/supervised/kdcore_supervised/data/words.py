"""Split running text into words, to which character spans are aligned."""

from __future__ import annotations

import re
import sys
import unicodedata
from functools import lru_cache
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

_WITHOUT_SPACES = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Letters of scripts without spaces between words: Thai, Lao, Burmese, Khmer, Japanese and Chinese."""


def word_bounds(text: str) -> NDArray[np.int32]:
    """Return (words, 2): start and end of each word of a text, in characters.

    A word is a run of letters, digits, underscores and combining marks, or a single other character that is not white
    space. Each letter of a script without spaces between words is a word, so that a span can begin at any letter.
    """
    return np.array([match.span() for match in _pattern().finditer(text)], dtype=np.int32).reshape(-1, 2)


@lru_cache(maxsize=1)
def _pattern() -> re.Pattern[str]:
    marks = _combining_marks()
    alone = f"[{_WITHOUT_SPACES}][{marks}]*"
    return re.compile(rf"{alone}|(?:(?![{_WITHOUT_SPACES}])[\w{marks}])+|[^\s]")


def _combining_marks() -> str:
    """Return the ranges of combining marks for a character class; `re` does not count them as letters."""
    codes = [code for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code))[0] == "M"]
    runs = [list(run) for _, run in groupby(enumerate(codes), lambda pair: pair[1] - pair[0])]
    return "".join(f"{chr(run[0][1])}-{chr(run[-1][1])}" for run in runs)
