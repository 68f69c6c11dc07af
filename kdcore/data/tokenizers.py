"""Load and fingerprint tokenizers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcore.errors import DataError, first_line
from kdcore.utils.lfs import refuse_pointers

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "*.model")
"""Patterns of the files that hold a vocabulary."""

_ROLES = ("pad", "cls", "sep", "mask")
_NEEDED_FOR = "kdcore needs [CLS] and [SEP] around each sequence, [PAD] for short ones and [MASK] for masked-LM"
_SOURCES = "a folder with tokenizer files, a SentencePiece .model file, the name of a model on a hub"
_WITHOUT_NETWORK = "without network access, download the tokenizer elsewhere and name its folder"
_LARGEST_VOCABULARY = 1 << 24


@dataclass(frozen=True)
class SpecialIds:
    """Ids of special tokens by role, and all ids that never represent text.

    Attributes:
        pad: pads short sequences.
        cls: starts each sequence.
        sep: ends each sequence.
        mask: replaces a token to be predicted.
        unk: replaces text outside the vocabulary; None for vocabularies that cover all text.
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

    Truncation and padding settings of its files are turned off, because they would lose tokens.

    Returns:
        A `transformers` fast tokenizer; it can be saved with `save_pretrained` and loaded with `AutoTokenizer`.

    Raises:
        DataError: the tokenizer is missing, is not a fast one, or lacks a required special token.
    """
    path = Path(name)
    refuse_pointers(path, TOKENIZER_FILES)
    with _readable(name):
        if path.suffix == ".model" and path.is_file():
            from kdcore.data.sentencepiece_models import convert_sentencepiece

            tokenizer = convert_sentencepiece(path)
        else:
            tokenizer = _load_with_transformers(name)
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        # transformers stores these settings, and traces of this machine, and would save and restore them.
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
        if vocabulary_size(tokenizer) > _LARGEST_VOCABULARY:
            largest = vocabulary_size(tokenizer) - 1
            what = f"the tokenizer's largest id is out of range (found {largest}, expected below {_LARGEST_VOCABULARY})"
            raise DataError(what, where=name)
    return tokenizer


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turn the errors of damaged tokenizer files into a DataError; the libraries raise every type for them."""
    try:
        yield
    except (DataError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # the panics of the library tokenizers are not Exceptions
        reason = f"key {error} is missing" if isinstance(error, KeyError) else first_line(error)
        raise DataError(
            f"the tokenizer cannot be loaded ({reason})", where=name, allowed=_SOURCES, hint=_WITHOUT_NETWORK
        ) from error


def special_ids(tokenizer: Any, where: str | None = None) -> SpecialIds:
    """Return the ids of the special tokens.

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
            hint="use the tokenizer of a BERT-like encoder, or add the tokens and save it again",
        )
    return SpecialIds(**ids, unk=tokenizer.unk_token_id, all=tuple(sorted(set(tokenizer.all_special_ids))))


def vocabulary_size(tokenizer: Any) -> int:
    """Return the number that every id is below.

    It exceeds the number of tokens where a tokenizer leaves ids out.
    """
    ids: dict[str, int] = tokenizer.get_vocab()
    return max(len(tokenizer), max(ids.values()) + 1)


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Compute the SHA-256 of everything that decides how text is tokenised.

    It does not depend on how the files are formatted or on truncation and padding settings, so a teacher's tokenizer
    and the one saved with prepared data have the same fingerprint when they agree.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["truncation"] = content["padding"] = None
    content["roles"] = {role: getattr(tokenizer, f"{role}_token_id") for role in (*_ROLES, "unk")}
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", errors="surrogatepass")).hexdigest()


def _load_with_transformers(name: str) -> Any:
    from transformers import AutoTokenizer

    if Path(name).is_file():
        raise DataError(
            "is a file, but not a SentencePiece model",
            where=name,
            allowed=_SOURCES,
        )
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(
            "has only a slow tokenizer, written in Python",
            where=name,
            hint="convert it to a fast one (a tokenizer.json) and name that folder",
        )
    # transformers invents a tokenizer of five special tokens for a folder without one.
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise DataError(
            "contains no tokenizer files",
            where=name,
            allowed="a folder with a tokenizer.json, or with the vocabulary files of its tokenizer class",
            hint="save the tokenizer there with save_pretrained",
        )
    return tokenizer
