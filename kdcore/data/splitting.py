"""Which documents are held out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from kdcore.data.shards import Split
from kdcore.errors import DataError

Tokens = NDArray[np.int32]


class Splitter:
    """Assigns documents to splits as they come, by a hash of the seed and their name.

    A document's split does not depend on the other documents, with one exception: where the share is so small, or the
    documents so few, that one split would stay empty, the document nearest to it goes there. To know, the nearest one
    is held back until both splits have a document; it costs the memory of one document.

    Args:
        share: fraction of the documents to be held out; 0 holds out none.
        seed: another seed holds out other documents.
    """

    def __init__(self, share: float, seed: int) -> None:
        self._share = share
        self._seed = seed
        self._both = share == 0
        self._documents = 0
        self._waiting: tuple[Split, float, Tokens] | None = None

    def place(self, document_id: str, tokens: Tokens) -> Iterator[tuple[Split, Tokens]]:
        """Take a document; yield those whose split is settled now."""
        self._documents += 1
        point = self._point(document_id)
        split: Split = "held_out" if point < self._share else "train"
        if self._both:
            yield split, tokens
        elif self._waiting is None:
            self._waiting = (split, point, tokens)
        else:
            waiting_split, waiting_point, waiting_tokens = self._waiting
            if waiting_split != split:
                self._both = True
                self._waiting = None
                yield waiting_split, waiting_tokens
                yield split, tokens
            elif (point < waiting_point) == (split == "train"):
                self._waiting = (split, point, tokens)
                yield waiting_split, waiting_tokens
            else:
                yield split, tokens

    def finish(self) -> Iterator[tuple[Split, Tokens]]:
        """Yield what was held back.

        Raises:
            DataError: there are too few documents to fill the splits.
        """
        if not self._documents:
            raise DataError("the corpora hold no text", hint="look at the paths of the data recipe's `corpora`")
        if self._waiting is None:
            return
        if self._documents == 1:
            raise DataError(
                "the corpora hold a single document: none can be held out without leaving training empty",
                key="held_out",
                hint="set held_out to 0, or tell documents apart, e.g. by `documents: lines` of the corpus text",
            )
        split, _, tokens = self._waiting
        yield ("train" if split == "held_out" else "held_out"), tokens

    def _point(self, document_id: str) -> float:
        """A number in [0, 1) that is evenly spread over documents."""
        digest = hashlib.blake2b(f"{self._seed}\0{document_id}".encode("utf-8", "surrogatepass"), digest_size=8)
        return int.from_bytes(digest.digest(), "big") / 2**64
