"""Train a tokenizer on the text of a data recipe."""

from __future__ import annotations

import io
import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from kdcore import DataError, atomic_directory, load_tokenizer, lock_of, locked
from kdcore_preparation.readers.cleaning import cut_text

TokenizerKind = Literal["unigram", "bpe", "wordpiece", "byte_level_bpe"]
KINDS: tuple[TokenizerKind, ...] = get_args(TokenizerKind)

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SENTENCEPIECE_MODEL = "sentencepiece.model"

LINE_CHARACTERS = 1000
"""Longer lines are cut at white space: SentencePiece skips lines of more than 4192 bytes."""

# The result of SentencePiece depends on the number of threads, so the same number is used on every machine.
_SENTENCEPIECE_THREADS = 16
_MOST_CHARACTERS = 1000  # single characters in a WordPiece vocabulary, as in BERT's own
_FEWEST_OCCURRENCES = 2
_LONGEST_WORD = 500
"""Longest word, in characters, that WordPiece splits into tokens, instead of BERT's 100, because Thai and Japanese have
longer runs without spaces. The time per word grows with the third power of its length."""


@dataclass(frozen=True)
class TrainedTokenizer:
    """The result of training a tokenizer.

    Attributes:
        folder: the folder, for `AutoTokenizer` and for the key `tokenizer` of data recipes.
        vocabulary: number of tokens, special tokens included.
        characters: characters of text that were read.
        sampled: number of characters in the sample that the vocabulary was trained on.
        tokens_a_word: tokens per word (separated by white space), measured on all or part of the sample.
        unknown: fraction of unknown tokens, measured on the same text.
    """

    folder: Path
    vocabulary: int
    characters: int
    sampled: int
    tokens_a_word: float
    unknown: float


def train_tokenizer(
    texts: Iterable[str],
    folder: str | Path,
    *,
    kind: TokenizerKind,
    vocabulary: int,
    lowercase: bool = False,
    sample_megabytes: int = 200,
) -> TrainedTokenizer:
    """Train a tokenizer with the special tokens of an encoder.

    The same texts result in the same tokenizer, regardless of the number of cores. The texts are read once, in order.
    To bound memory, the tokenizer is trained on a random sample of their lines.

    Args:
        texts: texts whose paragraphs are separated by newlines.
        folder: folder to write; it appears when it is complete.
        kind: SentencePiece's `unigram` or `bpe`, BERT's `wordpiece`, or the byte-level BPE of GPT-2 and RoBERTa, which
            can represent all text and so has no unknown tokens.
        vocabulary: number of tokens, special tokens included.
        lowercase: whether to convert text to lower case; `wordpiece` then also strips accents, like BERT's uncased
            vocabularies.
        sample_megabytes: maximum size of the sample in millions of characters.

    Raises:
        DataError: the text is empty or too small for the vocabulary, or the folder is not empty.
    """
    folder = Path(folder)
    check_free(folder)
    sample = _Sample(sample_megabytes * 1_000_000)
    for text in texts:
        sample.add(text)
    lines = sample.lines()
    if not lines:
        raise DataError("the corpora contain no text to train a tokenizer on")
    target = Path(os.path.abspath(folder))
    with locked(lock_of(target)):
        check_free(folder)  # another process may have written it since
        with atomic_directory(target, finished="tokenizer.json") as staging:
            if kind == "wordpiece":
                tokenizer = _wordpiece(lines, vocabulary, lowercase)
            elif kind == "byte_level_bpe":
                tokenizer = _byte_level_bpe(lines, vocabulary, lowercase)
            else:
                (staging / SENTENCEPIECE_MODEL).write_bytes(_sentencepiece(lines, kind, vocabulary, lowercase))
                tokenizer = load_tokenizer(str(staging / SENTENCEPIECE_MODEL))
            tokenizer.save_pretrained(staging)
            tokens_a_word, unknown = _quality(tokenizer, lines)
    return TrainedTokenizer(folder, len(tokenizer), sample.characters, sample.kept, tokens_a_word, unknown)


def check_free(folder: Path) -> None:
    """Check that the folder is empty; called first, because reading the text may take hours.

    Raises:
        DataError: it is not a folder, or not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise _in_the_way(folder)


def _in_the_way(folder: Path) -> DataError:
    return DataError("is not empty", where=str(folder), hint="choose another folder")


class _Sample:
    """Collect all lines of a text, or a random sample of at most `limit` characters."""

    def __init__(self, limit: int) -> None:
        self.characters = 0
        self.kept = 0
        self._limit = limit
        self._share = 1.0
        self._random = random.Random(0)
        self._lines: list[tuple[float, str]] = []

    def add(self, text: str) -> None:
        """Keep lines at random; drop half of the kept lines whenever there are too many."""
        for line in _lines(text):
            self.characters += len(line)
            number = self._random.random()
            if number >= self._share:
                continue
            self._lines.append((number, line))
            self.kept += len(line)
            while self.kept > self._limit and len(self._lines) > 1:
                self._share /= 2
                self._lines = [entry for entry in self._lines if entry[0] < self._share]
                self.kept = sum(len(line) for _, line in self._lines)

    def lines(self) -> list[str]:
        """Return the kept lines, in order."""
        return [line for _, line in self._lines]


def _lines(text: str) -> Iterator[str]:
    for line in text.split("\n"):
        yield from (piece for piece in cut_text(line, LINE_CHARACTERS) if not piece.isspace())


def _sentencepiece(lines: list[str], kind: str, vocabulary: int, lowercase: bool) -> bytes:
    import sentencepiece

    pad, unknown, cls, sep, mask = SPECIAL_TOKENS
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type=kind,
            vocab_size=vocabulary,
            normalization_rule_name="nmt_nfkc_cf" if lowercase else "nmt_nfkc",
            num_threads=_SENTENCEPIECE_THREADS,
            pad_id=0, pad_piece=pad, unk_id=1, unk_piece=unknown, bos_id=2, bos_piece=cls, eos_id=3, eos_piece=sep,
            control_symbols=[mask],
            minloglevel=2,
        )  # fmt: skip
    except (RuntimeError, OSError) as error:
        raise _explained(str(error), vocabulary) from error
    return model.getvalue()


def _explained(message: str, vocabulary: int) -> DataError:
    if most := re.search(r"too high.*<= (\d+)", message):
        return _too_large(vocabulary, int(most[1]))
    if fewest := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return _too_small(vocabulary, int(fewest[1]))
    return DataError(f"SentencePiece cannot be trained on this text: {message}", hint="use more text")


def _too_large(vocabulary: int, most: int) -> DataError:
    return DataError(
        f"the text is too small for a vocabulary of {vocabulary:,} tokens",
        allowed=f"at most {most}",
        hint="lower the vocabulary, or use more text",
    )


def _too_small(vocabulary: int, fewest: int) -> DataError:
    return DataError(
        f"a vocabulary of {vocabulary:,} tokens is too small for the characters of the text",
        allowed=f"more than {fewest}",
    )


def _wordpiece(lines: list[str], vocabulary: int, lowercase: bool) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    # The vocabulary contains composed letters; the other normalizer alone does not compose decomposed text.
    normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.BertNormalizer(lowercase=lowercase)])
    characters: Counter[str] = Counter()
    for line in lines:
        characters.update(normalizer.normalize_str(line))
    by_number = sorted(characters, key=lambda character: (-characters[character], character))
    alphabet = sorted([character for character in by_number if not character.isspace()][:_MOST_CHARACTERS])
    # The trainer numbers single characters in an arbitrary order, and equally frequent pairs by those numbers.
    # Characters that are passed as special tokens get fixed numbers; the first run only finds out which of them occur
    # inside words.
    single = set(_train_wordpiece(lines, normalizer, alphabet, [], 0)) - set(SPECIAL_TOKENS)
    fixed = sorted(single, key=lambda piece: (len(piece) > 1, piece))
    if vocabulary < len(fixed) + len(SPECIAL_TOKENS):
        raise _too_small(vocabulary, len(fixed) + len(SPECIAL_TOKENS))
    pieces = _train_wordpiece(lines, normalizer, alphabet, fixed, vocabulary)
    if len(pieces) < vocabulary:
        raise _too_large(vocabulary, len(pieces))
    _, unknown, _, _, mask = SPECIAL_TOKENS
    backend = Tokenizer(models.WordPiece(pieces, unk_token=unknown, max_input_chars_per_word=_LONGEST_WORD))
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = _around(backend)
    # Not the class BertTokenizer, which does not read the normalizer of its file.
    return _fast(backend, mask, ["input_ids", "token_type_ids", "attention_mask"])


def _around(backend: Any) -> Any:
    """Return the post-processor that puts [CLS] and [SEP] around texts; the second text of a pair has type 1."""
    from tokenizers import processors

    _, _, cls, sep, _ = SPECIAL_TOKENS
    ids = [(token, backend.token_to_id(token)) for token in (cls, sep)]
    return processors.TemplateProcessing(
        single=f"{cls} $A {sep}", pair=f"{cls} $A {sep} $B:1 {sep}:1", special_tokens=ids
    )


def _train_wordpiece(
    lines: list[str], normalizer: Any, alphabet: list[str], fixed: list[str], vocabulary: int
) -> dict[str, int]:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    backend = Tokenizer(models.WordPiece(unk_token=SPECIAL_TOKENS[1]))
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary,
        min_frequency=_FEWEST_OCCURRENCES,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        special_tokens=[*SPECIAL_TOKENS, *fixed],
        show_progress=False,
    )
    backend.train_from_iterator(lines, trainer)
    learnt: dict[str, int] = backend.get_vocab()
    return dict(sorted(learnt.items(), key=lambda entry: entry[1]))


def _byte_level_bpe(lines: list[str], vocabulary: int, lowercase: bool) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    pad, unknown, cls, sep, mask = SPECIAL_TOKENS
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    fewest = len(alphabet) + len(SPECIAL_TOKENS)
    if vocabulary < fewest:
        raise _too_small(vocabulary, fewest - 1)
    backend = Tokenizer(models.BPE(unk_token=unknown))
    steps = [normalizers.NFC(), *([normalizers.Lowercase()] if lowercase else [])]
    backend.normalizer = normalizers.Sequence(steps)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    # The mask replaces a token, which includes the space before it, as in RoBERTa.
    special = [pad, unknown, cls, sep, AddedToken(mask, lstrip=True, special=True, normalized=False)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=_FEWEST_OCCURRENCES,
        initial_alphabet=alphabet,
        special_tokens=special,
        show_progress=False,
    )
    backend.train_from_iterator(lines, trainer)
    if backend.get_vocab_size() < vocabulary:
        raise _too_large(vocabulary, backend.get_vocab_size())
    backend.post_processor = _around(backend)
    return _fast(backend, special[-1], ["input_ids", "attention_mask"])


def _fast(backend: Any, mask: Any, inputs: list[str]) -> Any:
    """Return a `transformers` tokenizer for a backend, with the special tokens."""
    from transformers import PreTrainedTokenizerFast

    pad, unknown, cls, sep, _ = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=pad,
        unk_token=unknown,
        cls_token=cls,
        sep_token=sep,
        mask_token=mask,
        model_input_names=inputs,
        clean_up_tokenization_spaces=False,
    )


def _quality(tokenizer: Any, lines: list[str], characters: int = 1_000_000) -> tuple[float, float]:
    """Measure tokens per word and the fraction of unknown tokens, on lines spread over the sample."""
    step = max(1, sum(len(line) for line in lines) // characters)
    some = lines[::step]
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(some, add_special_tokens=False)
    tokens = sum(len(encoding.ids) for encoding in encodings)
    unknown = sum(encoding.ids.count(tokenizer.unk_token_id) for encoding in encodings)
    return tokens / sum(len(line.split()) for line in some), unknown / max(tokens, 1)
