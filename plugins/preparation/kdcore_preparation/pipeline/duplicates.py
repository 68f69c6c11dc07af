"""Find documents with the same text by their hashes.

Two kinds of equality are distinguished. Texts that differ only in white space are duplicates, which a recipe may
remove. Texts that differ only in case, white space and punctuation have the same content and are always placed in the
same split.
"""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from kdcore_preparation.pipeline.code_points import code_points, text_of

_SHARE_BITS = 5  # keys are sorted in 32 pieces, because sorting takes three times their memory
_DELETED = (string.punctuation + string.whitespace).encode()
# White space and punctuation of many scripts beyond ASCII; letters and number signs are not included.
_MARKS = re.compile(
    "[\u00a0\u00a1\u00ab\u00ad\u00b7\u00bb\u00bf\u0387\u055a-\u055f\u0589\u05be\u060c\u061b\u061f\u0640\u06d4\u0964\u0965"
    "\u1361-\u1368\u2000-\u206f\u3000-\u3003\u3008-\u3020\u3030\u30fb\ufe30-\ufe4f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40"
    "\uff5b-\uff65]"
)
_CONTENT = np.ones(0x110000, np.bool_)
"""Whether each code point is content: neither white space nor punctuation."""
_CONTENT[[*_DELETED, *map(ord, _MARKS.findall("".join(map(chr, range(0x10000)))))]] = False


def text_key(text: str) -> int:
    """Hash a text to 64 bits, ignoring differences in white space.

    Among a hundred million texts, the probability of a collision is 3 in 10,000.
    """
    normalised = " ".join(text.split()).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(normalised, digest_size=8).digest(), "big")


def content_keys(texts: Sequence[str]) -> NDArray[np.uint64]:
    """Hash texts to 64 bits, ignoring case, white space and punctuation.

    A text that consists only of white space and punctuation is hashed unchanged.

    Args:
        texts: texts without NUL characters, which cleaning removes.

    Returns:
        (texts,) keys.
    """
    plain = iter(_contents([text for text in texts if text.isascii()]))
    others = iter(_contents([text for text in texts if not text.isascii()]))
    digests = []
    for text in texts:
        content = next(plain if text.isascii() else others) or text.encode("utf-8", "surrogatepass")
        digests.append(hashlib.blake2b(content, digest_size=8).digest())
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)


def content_key(text: str) -> int:
    """Return the key that `content_keys` computes for one text."""
    return int(content_keys([text.replace("\0", "")])[0])


def _contents(texts: Sequence[str]) -> list[bytes]:
    """Return the bytes of each text to hash. All texts are folded at once, because there may be many short ones."""
    folded = "\0".join(texts).casefold()
    if folded.isascii():
        return folded.encode().translate(None, _DELETED).split(b"\0")
    points = code_points(folded)
    return text_of(points[_CONTENT[points]]).encode("utf-8", "surrogatepass").split(b"\0")


def count_repeated(keys: Sequence[NDArray[np.uint64]]) -> int:
    """Count the keys that are equal to an earlier one; memory-mapped arrays are read piece by piece."""
    return sum(len(piece) - len(np.unique(piece)) for piece in _shares(keys))


def _shares(keys: Sequence[NDArray[np.uint64]]) -> Iterator[NDArray[np.uint64]]:
    shift = np.uint64(64 - _SHARE_BITS)
    for share in range(2**_SHARE_BITS):
        yield np.concatenate([*(each[(each >> shift) == share] for each in keys), np.empty(0, np.uint64)])


def repeated(keys: Sequence[NDArray[np.uint64]]) -> list[NDArray[np.bool_]]:
    """Mark the documents that have the same text as an earlier one.

    Args:
        keys: arrays of the documents' keys, in reading order.

    Returns:
        For each array, (documents,) whether to remove the document.
    """
    everything = np.concatenate([*keys, np.empty(0, np.uint64)])
    again = np.zeros(len(everything), np.bool_)
    share_of = (everything >> np.uint64(64 - _SHARE_BITS)).astype(np.uint8)
    for share in range(2**_SHARE_BITS):
        here = np.flatnonzero(share_of == share)
        here = here[np.argsort(everything[here], kind="stable")]  # the first of several stays the first
        again[here[1:]] = everything[here[1:]] == everything[here[:-1]]
    return np.split(again, np.cumsum([len(each) for each in keys])[:-1])
