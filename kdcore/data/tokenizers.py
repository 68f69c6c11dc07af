"""Load and fingerprint tokenizers."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcore.data.cleaned_text import with_cleaning, without_cleaning
from kdcore.errors import DataError, first_line
from kdcore.utils.lfs import refuse_pointers

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "*.model")
"""Patterns of the files that contain a vocabulary."""

_TEXTS = (
    "The Quick Fox",
    "\u00c9cole \u00e0 K\u00f6ln",
    "\uff26\uff35\uff2c\uff2c \u2163 \ufb01x",
    "\u4e2d\u6587\u5b57 text",
    "don't well-known 12.5% x_y",
    "two  spaces",
)
_SAMPLED_TOKENS = 400

_ROLES = ("pad", "cls", "sep", "mask")
_NEEDED_FOR = "kdcore needs [CLS] and [SEP] around each sequence, [PAD] for short ones and [MASK] for masked-LM"
_SOURCES = "a folder with tokenizer files, a SentencePiece .model file, the name of a model on a hub"
_WITHOUT_NETWORK = "without network access, download the tokenizer elsewhere and name its folder"
_LARGEST_VOCABULARY = 1 << 24


@dataclass(frozen=True)
class SpecialIds:
    """Ids of special tokens by role, and all ids that never represent text.

    Attributes:
        pad: id that pads short sequences.
        cls: id at the start of each sequence.
        sep: id at the end of each sequence.
        mask: id that replaces a token to be predicted.
        unk: id that replaces text outside the vocabulary; None for vocabularies that cover all text.
        all: ids of all special tokens, sorted.
    """

    pad: int
    cls: int
    sep: int
    mask: int
    unk: int | None
    all: tuple[int, ...]


def load_tokenizer(name: str) -> Any:
    """Load a fast tokenizer from a folder, a SentencePiece `.model` file or a model on a hub.

    Truncation and padding settings in its files are disabled, because truncation would lose tokens.

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
            "split_special_tokens",  # of exported classifiers
        ):
            tokenizer.init_kwargs.pop(setting, None)
        tokenizer.split_special_tokens = False
        special_ids(tokenizer, name)
        if vocabulary_size(tokenizer) > _LARGEST_VOCABULARY:
            largest = vocabulary_size(tokenizer) - 1
            what = f"the tokenizer's largest id is out of range (found {largest}, expected below {_LARGEST_VOCABULARY})"
            raise DataError(what, where=name)
    return tokenizer


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Convert errors caused by damaged tokenizer files to a DataError; the libraries raise many different types."""
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
        DataError: the tokenizer lacks a padding, start, end or mask token.
    """
    ids = {role: getattr(tokenizer, f"{role}_token_id") for role in _ROLES}
    missing = [role for role in _ROLES if ids[role] is None]
    if missing:
        raise DataError(
            f"the tokenizer has no {', '.join(f'{role}_token' for role in missing)}",
            where=where,
            allowed=_NEEDED_FOR,
            hint="use the tokenizer of a BERT-like encoder, or add the missing tokens and save the tokenizer",
        )
    return SpecialIds(**ids, unk=tokenizer.unk_token_id, all=tuple(sorted(set(tokenizer.all_special_ids))))


def vocabulary_size(tokenizer: Any) -> int:
    """Return the exclusive upper bound of all ids.

    It exceeds the number of tokens if a tokenizer skips ids.
    """
    ids: dict[str, int] = tokenizer.get_vocab()
    return max(len(tokenizer), max(ids.values()) + 1)


def fit_tokenizer_settings(folder: Path, max_length: int, *, token_types: bool) -> None:
    """Adapt a saved tokenizer to a model and its training text, for all versions of transformers since 4.57.

    Training text is cleaned, so normalizers that clean text are added, and the tokenizer class is set to one that reads
    normalizers from tokenizer.json. If `split_special_tokens` is set, the tokenizer also strips texts. transformers 5
    writes a class and a key for additional special tokens that earlier versions do not read.

    Args:
        folder: the model's folder with the tokenizer's files.
        max_length: the model's maximum sequence length in tokens.
        token_types: whether the model uses token types.
    """
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return
    settings = json.loads(path.read_text(encoding="utf-8"))
    if (file := folder / "tokenizer.json").is_file():
        _read_as_training(file, strip=bool(settings.get("split_special_tokens")))
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    settings["model_max_length"] = min(max_length, settings.get("model_max_length") or max_length)
    settings["model_input_names"] = ["input_ids", *(["token_type_ids"] if token_types else []), "attention_mask"]
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_as_training(path: Path, *, strip: bool) -> None:
    """Make a tokenizer.json clean raw text as in training; see `with_cleaning`."""
    content = json.loads(path.read_text(encoding="utf-8"))
    # White space next to an added token is not at the ends of a text.
    strip = strip and all(token["special"] for token in content["added_tokens"])
    path.write_text(json.dumps(with_cleaning(content, strip=strip), indent=2, ensure_ascii=False), encoding="utf-8")


def reading_difference(one: Any, other: Any) -> tuple[str, list[str], list[str]] | None:
    """Find text that two tokenizers with the same vocabulary tokenise differently.

    Normalizers and pre-tokenizers are compared by their results on sample texts, because equivalent settings can be
    written in several ways. The samples contain capital letters, accents, composed characters, punctuation and Chinese
    characters, and are in normal form C like all text. Then the tokens of vocabulary words are compared, because they
    depend on merges or scores.

    Returns:
        The text, and its pieces or tokens from each tokenizer; None if there is no difference or a tokenizer is slow.
    """
    if not (getattr(one, "is_fast", False) and getattr(other, "is_fast", False)):
        return None
    for text in _TEXTS:
        ours, theirs = (_pieces(tokenizer.backend_tokenizer, text) for tokenizer in (one, other))
        if ours != theirs:
            return text, ours, theirs
    tokens = sorted(one.get_vocab().keys() - {*one.all_special_tokens, *other.all_special_tokens})
    words = [one.convert_tokens_to_string([token]) for token in tokens[:: max(1, len(tokens) // _SAMPLED_TOKENS)]]
    for start in range(0, len(words), 2):
        text = unicodedata.normalize("NFC", "".join(words[start : start + 2]))
        ours, theirs = (tokenizer.tokenize(text, split_special_tokens=True) for tokenizer in (one, other))
        if ours != theirs:
            return text, ours, theirs
    return None


def _pieces(backend: Any, text: str) -> list[str]:
    """Apply normalizer and pre-tokenizer to a text."""
    normalized = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
    if backend.pre_tokenizer is None:
        return [normalized]
    return [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(normalized)]


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Compute the SHA-256 of everything that determines how cleaned text is tokenised.

    It does not depend on how the files are formatted, on truncation and padding settings, or on the cleaning that an
    export adds. A teacher's tokenizer and the one saved with prepared data therefore have the same fingerprint if they
    tokenise text in the same way.
    """
    content = without_cleaning(json.loads(tokenizer.backend_tokenizer.to_str()))
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
            hint="convert it to a fast one (a tokenizer.json) and use that folder",
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
