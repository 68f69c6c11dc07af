"""Tokenizers: loading them, telling them apart, encoding many documents at once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdcore.data.base import Document
from kdcore.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHUNK_CHARACTERS = 100_000
"""Longer documents are encoded in pieces: the encoder keeps about 150 bytes a token until a piece is done."""

BATCH_CHARACTERS = 2_000_000

_PARALLELISM = "TOKENIZERS_PARALLELISM"
_OFF_AFTER_USE = "False"  # told apart from the usual "false" that a user may have set
_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_after_fork)

_ROLES = ("pad", "cls", "sep", "mask")
_NEEDED_FOR = "kdcore needs [CLS] and [SEP] around each sequence, [PAD] for short ones and [MASK] for masked-LM"


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the tokens with a role, and of all that never stand for text.

    Attributes:
        pad: fills short sequences.
        cls: starts each sequence.
        sep: ends each sequence.
        mask: stands for a token to be predicted.
        unk: stands for what the vocabulary cannot spell; None where it can spell everything.
        all: every special token, sorted.
    """

    pad: int
    cls: int
    sep: int
    mask: int
    unk: int | None
    all: tuple[int, ...]


def load_tokenizer(name: str) -> Any:
    """Load a fast tokenizer from a folder, a SentencePiece `.model` file or the name of a model on a hub.

    Truncation and padding that its files ask for are switched off, for they would lose tokens.

    Returns:
        A `transformers` fast tokenizer; it can be saved with `save_pretrained` and loaded with `AutoTokenizer`.

    Raises:
        DataError: there is no tokenizer, no fast one, or it lacks a needed special token.
    """
    path = Path(name)
    if path.suffix == ".model" and path.is_file():
        from kdcore.data.sentencepiece_models import convert_sentencepiece

        tokenizer = convert_sentencepiece(path)
    else:
        tokenizer = _load_with_transformers(name)
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    # What transformers remembers of those settings, and of this machine, would be saved along and come back.
    for setting in (
        "max_length",
        "stride",
        "truncation_strategy",
        "pad_to_multiple_of",
        "is_local",
        "local_files_only",
    ):
        tokenizer.init_kwargs.pop(setting, None)
    special_ids(tokenizer, name)
    return tokenizer


def special_ids(tokenizer: Any, where: str | None = None) -> SpecialIds:
    """Ids of the special tokens.

    Raises:
        DataError: the tokenizer lacks a token for padding, start, end or mask.
    """
    ids = {role: getattr(tokenizer, f"{role}_token_id") for role in _ROLES}
    missing = [role for role in _ROLES if ids[role] is None]
    if missing:
        raise DataError(
            f"the tokenizer has no {', '.join(f'{role}_token' for role in missing)}",
            where=where,
            allowed=_NEEDED_FOR,
            hint="take the tokenizer of a BERT-like encoder, or add the tokens and save it again",
        )
    return SpecialIds(**ids, unk=tokenizer.unk_token_id, all=tuple(sorted(set(tokenizer.all_special_ids))))


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """SHA-256 over all that decides which ids a text becomes.

    It does not depend on how the files are formatted or on truncation and padding settings, so a teacher's tokenizer
    and the one saved with prepared data have the same fingerprint when they agree.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["truncation"] = content["padding"] = None
    content["roles"] = {role: getattr(tokenizer, f"{role}_token_id") for role in (*_ROLES, "unk")}
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", errors="surrogatepass")).hexdigest()


def encode_documents(tokenizer: Any, documents: Iterable[Document]) -> Iterator[tuple[Document, NDArray[np.int32]]]:
    """Yield each document with its token ids, without special tokens, none left out.

    The words of special tokens that a text happens to hold ("[MASK]") are encoded as ordinary text. Documents are
    encoded in batches by all processor cores.
    """
    ids = special_ids(tokenizer)
    # A unigram model knows its control pieces as words and may find them in a text, whatever it is told.
    forbidden = np.array([index for index in ids.all if index != ids.unk], dtype=np.int32)
    encode = partial(_encode_batch, _plain_backend(tokenizer), forbidden, ids.unk)
    waiting: list[tuple[Document, list[str]]] = []
    size = 0
    for document in documents:
        waiting.append((document, chunks(document.text)))
        size += len(document.text)
        if size >= BATCH_CHARACTERS:
            yield from encode(waiting)
            waiting, size = [], 0
    yield from encode(waiting)


def chunks(text: str, limit: int = CHUNK_CHARACTERS) -> list[str]:
    """Cut a text into pieces of at most `limit` characters, in front of white space where there is any.

    The white space stays with the word that follows, as in the pieces that byte-level and SentencePiece tokenizers
    know, so that the pieces' tokens are the text's.
    """
    pieces = []
    start = 0
    while len(text) - start > limit:
        window = text[start : start + limit + 1]
        end = max(window.rfind(" ", 1), window.rfind("\n", 1))
        end = limit if end < 1 else end
        pieces.append(window[:end])
        start += end
    pieces.append(text[start:])
    return pieces


def _encode_batch(
    backend: Tokenizer, forbidden: NDArray[np.int32], unk: int | None, waiting: list[tuple[Document, list[str]]]
) -> Iterator[tuple[Document, NDArray[np.int32]]]:
    texts = [piece for _, pieces in waiting for piece in pieces]
    with _all_cores():
        encodings = iter(backend.encode_batch_fast(texts, add_special_tokens=False))
    for document, pieces in waiting:
        encoded = [np.asarray(next(encodings).ids, dtype=np.int32) for _ in pieces]
        ids = encoded[0] if len(encoded) == 1 else np.concatenate(encoded)
        if unk is not None:
            ids[np.isin(ids, forbidden)] = unk
        yield document, ids


@contextmanager
def _all_cores() -> Iterator[None]:
    """Let the tokenizers library use its threads now, but not in processes that are forked later.

    There its threads do not exist: encoding would hang, which the library avoids with a warning at each fork unless the
    variable is set. What the user has set stays.
    """
    if _forked or os.environ.get(_PARALLELISM, _OFF_AFTER_USE) != _OFF_AFTER_USE:
        yield
        return
    os.environ[_PARALLELISM] = "true"
    try:
        yield
    finally:
        os.environ[_PARALLELISM] = _OFF_AFTER_USE


def _plain_backend(tokenizer: Any) -> Tokenizer:
    """A copy of the Rust tokenizer that neither truncates nor pads nor obeys special tokens inside a text."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend


def _load_with_transformers(name: str) -> Any:
    from transformers import AutoTokenizer

    if Path(name).is_file():
        raise DataError(
            "is a file, but no SentencePiece model",
            where=name,
            allowed="a folder with tokenizer files, a SentencePiece .model file, the name of a model on a hub",
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        raise DataError(
            f"no tokenizer could be loaded ({str(error).splitlines()[0]})",
            where=name,
            allowed="a folder with tokenizer files, a SentencePiece .model file, the name of a model on a hub",
            hint="without a network, download the tokenizer elsewhere and give its folder",
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(
            "has only a slow tokenizer, written in Python",
            where=name,
            hint="convert it to a fast one (a tokenizer.json) and give that folder",
        )
    # transformers makes up a tokenizer of five special tokens for a folder that holds none.
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise DataError(
            "holds no tokenizer files",
            where=name,
            allowed="a folder with a tokenizer.json, or a vocabulary of its own kind",
            hint="save the tokenizer there with save_pretrained",
        )
    return tokenizer
