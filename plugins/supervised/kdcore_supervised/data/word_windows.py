"""Tokenise texts with words: find the first subword of each word, and cut long texts into windows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from kdcore_preparation import clean_text, plain_backend, tokenizer_threads
from numpy.typing import NDArray

from kdcore import TaskOutputs
from kdcore_supervised.data.labelled_tokens import TokenizedTexts, visible_characters
from kdcore_supervised.data.tagged import TaggedText
from kdcore_supervised.tags import IGNORED, TaggedSpan, TagScheme, spans_of, tags_of

_CHUNK = 10_000


@dataclass(frozen=True)
class WordAlignment:
    """The words of a text that have a token; the first token of a word determines its prediction.

    Attributes:
        words: (kept,) index of each of these words.
        until: (kept,) for each of these words, the index one past the last word that begins inside one of its tokens;
            `words + 1` if there is none. Words that begin inside a token have no first token and belong to the same
            span.
        size: number of words in the text.
    """

    words: NDArray[np.int64]
    until: NDArray[np.int64]
    size: int

    def tags(self, spans: Sequence[TaggedSpan], scheme: TagScheme) -> list[str]:
        """Return the tag of each word with a token, so that `spans` can recover the spans as far as possible."""
        kept = []
        for span in spans:
            start, end = np.searchsorted(self.words, [span.start, span.end])
            if start < end:
                kept.append(TaggedSpan(int(start), int(end), span.type))
        return tags_of(kept, len(self.words), scheme)

    def spans(self, tags: Sequence[str]) -> list[TaggedSpan]:
        """Decode the tags of the words with a token; the returned spans count all words of the text."""
        return [
            TaggedSpan(int(self.words[span.start]), int(self.until[span.end - 1]), span.type) for span in spans_of(tags)
        ]


@dataclass(frozen=True)
class WordWindows:
    """The sequences of one split: texts, or windows of long ones.

    Attributes:
        tokens: the sequences with their special tokens.
        first: (tokens,) bool, true on the first token of each word.
        word: (tokens,) int64, for each token of a word, the index of the word among all words of its text that have a
            token; -1 for other tokens.
        texts: (n,) index of the text of each sequence, ascending.
        alignments: words with a token, for each text.
        windowed: number of texts that were cut into windows.
        shortened: number of words whose tokens do not fit into a window and were truncated.
    """

    tokens: TokenizedTexts
    first: NDArray[np.bool_]
    word: NDArray[np.int64]
    texts: NDArray[np.int64]
    alignments: list[WordAlignment]
    windowed: int
    shortened: int

    def labels(self, tags: Sequence[Sequence[int]], inside: Mapping[int, int] | None) -> NDArray[np.int64]:
        """Return the label of each token (tokens,), `IGNORED` for tokens without a label.

        Args:
            tags: class of each word with a token, for each text.
            inside: the class of the other tokens of a word, by the class of the word; None to ignore these tokens.
        """
        labels = np.full(len(self.word), IGNORED, dtype=np.int64)
        for sequence, text in enumerate(self.texts):
            here = slice(int(self.tokens.starts[sequence]), int(self.tokens.ends[sequence]))
            of_word = self.word[here]
            chosen = self.first[here] if inside is None else of_word >= 0
            own = np.asarray(tags[text], dtype=np.int64)[of_word[chosen]]
            if inside is not None:
                further = np.array([inside[label] for label in own.tolist()], dtype=np.int64)
                own = np.where(self.first[here][chosen], own, further)
            labels[here][chosen] = own
        return labels

    def of_words(self, outputs: TaskOutputs) -> list[NDArray[Any]]:
        """Combine the outputs (length, C) of sequences into outputs (kept, C) of each text's words with a token."""
        chosen: list[list[NDArray[Any]]] = [[] for _ in self.alignments]
        for sequence, text in enumerate(self.texts):
            here = slice(int(self.tokens.starts[sequence]), int(self.tokens.ends[sequence]))
            chosen[text].append(outputs[sequence][self.first[here]])
        width = outputs[0].shape[1] if len(outputs) else 0
        return [np.concatenate(own) if own else np.empty((0, width), np.float32) for own in chosen]


def tokenize_words(
    tokenizer: Any, texts: Sequence[TaggedText], max_length: int, report: Counter[str] | None = None
) -> WordWindows:
    """Tokenise texts, align tokens to words, and cut texts that are too long into windows.

    Texts are cleaned like raw text, word by word. A token belongs to the word that contains its first character other
    than white space. A text that is longer than `max_length`, special tokens included, is cut before words into
    sequences of similar length. Each word is in exactly one sequence. A text without tokens has no sequence.

    Args:
        tokenizer: a `transformers` fast tokenizer.
        texts: the texts.
        max_length: maximum number of tokens in a sequence, including special tokens.
        report: receives counts of the changes made by cleaning.
    """
    report = Counter() if report is None else report
    backend = plain_backend(tokenizer)
    before, after = _special_tokens(backend)
    limit = max_length - len(before) - len(after)
    rows: list[NDArray[np.int32]] = []
    first: list[NDArray[np.bool_]] = []
    word: list[NDArray[np.int64]] = []
    numbers: list[int] = []
    alignments: list[WordAlignment] = []
    windowed = shortened = visible = lost = 0
    for start in range(0, len(texts), _CHUNK):
        chunk = [_cleaned(text, report) for text in texts[start : start + _CHUNK]]
        with tokenizer_threads(True):
            encodings = backend.encode_batch([one.text for one in chunk], add_special_tokens=False)
        for number, (text, encoding) in enumerate(zip(chunk, encodings, strict=True), start=start):
            ids = np.array(encoding.ids, dtype=np.int32)
            offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
            of_token = _words_of(offsets, text)
            visible += visible_characters(text.text)
            for place in np.flatnonzero(ids == tokenizer.unk_token_id):
                lost += visible_characters(text.text[slice(*offsets[place])])
            begins = of_token > np.maximum.accumulate(np.concatenate([[-1], of_token[:-1]]))[: len(ids)]
            kept = of_token[begins]
            alignments.append(WordAlignment(kept, _until(kept, of_token, offsets, text), len(text.bounds)))
            of_kept = np.where(of_token >= 0, np.searchsorted(kept, of_token), -1)
            windows, cut = _windows(begins, limit)
            windowed += len(windows) > 1
            shortened += cut
            for window in windows:
                rows.append(np.concatenate([before, ids[window], after]))
                first.append(_padded(begins[window], before, after, False))
                word.append(_padded(of_kept[window], before, after, -1))
                numbers.append(number)
    tokens = TokenizedTexts(
        np.concatenate(rows) if rows else np.empty(0, np.int32),
        np.cumsum([len(row) for row in rows], dtype=np.int64),
        None,
        int(tokenizer.pad_token_id),
        0,
        lost / max(1, visible),
    )
    return WordWindows(
        tokens,
        np.concatenate(first) if first else np.empty(0, np.bool_),
        np.concatenate(word) if word else np.empty(0, np.int64),
        np.array(numbers, dtype=np.int64),
        alignments,
        windowed,
        shortened,
    )


def _cleaned(text: TaggedText, report: Counter[str]) -> TaggedText:
    """Clean the words of a text and the text between them; the words keep their indices."""
    if clean_text(f"|{text.text}|", Counter())[1:-1] == text.text:
        return text
    places = [0, *text.bounds.ravel().tolist(), len(text.text)]
    # The bars protect white space between words, which would be stripped.
    pieces = [clean_text(f"|{text.text[start:end]}|", report)[1:-1] for start, end in pairwise(places)]
    ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int32)
    return replace(text, text="".join(pieces), bounds=ends[:-1].reshape(-1, 2))


def _special_tokens(backend: Any) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the special tokens before and after a text."""
    encoding = backend.encode("a")
    special = np.array(encoding.special_tokens_mask, dtype=np.bool_)
    ids = np.array(encoding.ids, dtype=np.int32)
    inner = np.flatnonzero(~special)
    return ids[: inner[0]], ids[inner[-1] + 1 :]


def _words_of(offsets: NDArray[np.int64], text: TaggedText) -> NDArray[np.int64]:
    """Return the word of each token (tokens,), -1 for white space and for tokens outside words."""
    starts = offsets[:, 0].copy()
    spaces = [place for place, (start, end) in enumerate(offsets) if start < end and text.text[start].isspace()]
    for place in spaces:
        inside = text.text[starts[place] : offsets[place, 1]]
        starts[place] += len(inside) - len(inside.lstrip())
    if not len(text.bounds):
        return np.full(len(offsets), -1, dtype=np.int64)
    found = np.searchsorted(text.bounds[:, 0], starts, side="right") - 1
    valid = (found >= 0) & (starts < offsets[:, 1]) & (starts < text.bounds[found, 1])
    return np.where(valid, found, -1)


def _until(
    kept: NDArray[np.int64], of_token: NDArray[np.int64], offsets: NDArray[np.int64], text: TaggedText
) -> NDArray[np.int64]:
    """Return, for each kept word, the index one past the last word that begins inside one of its tokens."""
    until = kept + 1
    if len(kept) == len(text.bounds):
        return until
    has_token = np.zeros(len(text.bounds), dtype=np.bool_)
    has_token[kept] = True
    for token in np.flatnonzero(of_token >= 0):
        place = int(np.searchsorted(kept, of_token[token]))
        covered = int(np.searchsorted(text.bounds[:, 0], offsets[token, 1], side="left"))
        while until[place] < covered and not has_token[until[place]]:
            until[place] += 1
    return until


def _windows(begins: NDArray[np.bool_], limit: int) -> tuple[list[slice], int]:
    """Cut tokens into windows of at most `limit` tokens that begin with a word; also return the number of cut words."""
    total = len(begins)
    if not total:
        return [], 0
    if total <= limit:
        return [slice(0, total)], 0
    edges = np.append(np.flatnonzero(begins), total)
    windows, cut, start = [], 0, 0
    while start < total:
        left = total - start
        target = start + -(-left // -(-left // limit))
        fitting = edges[(edges > start) & (edges <= start + limit)]
        if len(fitting):
            near = fitting[fitting <= target]
            end = int(near[-1]) if len(near) else int(fitting[0])
            windows.append(slice(start, end))
        else:
            windows.append(slice(start, start + limit))
            end = int(edges[edges > start][0])
            cut += 1
        start = end
    return windows, cut


def _padded(values: NDArray[Any], before: NDArray[Any], after: NDArray[Any], fill: Any) -> NDArray[Any]:
    return np.pad(values, (len(before), len(after)), constant_values=fill)


def lost_spans(alignment: WordAlignment, spans: Sequence[TaggedSpan], scheme: TagScheme) -> int:
    """Count the spans that cannot be read back from the tags of the words with a token."""
    if len(alignment.words) == alignment.size:
        return 0
    return len(set(spans) - set(alignment.spans(alignment.tags(spans, scheme))))
