"""The task `token_classification`: texts with labelled spans, which are predicted as a tag for each word."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field

from kdcore import (
    Batch,
    ComponentConfig,
    DataError,
    FinishedRun,
    Head,
    Split,
    TaskOutputs,
    tokenizer_fingerprint,
)
from kdcore_supervised.data.labelled_problems import problem_of_unknown_text, problems_of_part
from kdcore_supervised.data.labelled_tokens import TokenizedTexts
from kdcore_supervised.data.tagged import TaggedData, TaggedPart, TaggedText, read_tagged
from kdcore_supervised.data.word_windows import WordWindows, lost_spans, tokenize_words
from kdcore_supervised.labelled_task import (
    PARTS,
    LabelledTask,
    log_parts,
    no_labels,
    score_rows,
    warn_of_overlap,
    warn_of_problems,
)
from kdcore_supervised.span_metrics import SPAN_METRICS, SpanMetric, SpanScores
from kdcore_supervised.tags import IGNORED, TaggedSpan, tags_of


@dataclass(frozen=True)
class _TaggedSequences:
    """One split: its texts, their sequences, and the label of each token; None without labelled texts."""

    texts: list[TaggedText]
    windows: WordWindows
    labels: np.ndarray | None


class TokenClassification(LabelledTask):
    """Train on texts with labelled spans. A sample is a text, or a window of a text longer than `max_length`.

    The tag of a word is predicted at its first subword. Validation computes precision, recall and F1 of whole spans,
    over all types and for each type, and the accuracy of tags, on all words of all held-out texts.
    """

    class Config(ComponentConfig):
        """Keys of the task `token_classification`."""

        data: TaggedData
        metric: SpanMetric = Field("f1", description="Score that selects the best student.")

    config: Config

    columns: ClassVar = {"sample_ids": "sequence", "labels": "token", "word_starts": "token"}

    def __init__(self, config: Config, seed: int, cache: Path) -> None:
        super().__init__(config, seed, cache)
        report: Counter[str] = Counter()
        parts = read_tagged(config.data, report)
        self._classes = config.data.classes
        self._splits = {split: self._sequences(parts, split, report) for split in PARTS}
        if not self.num_samples("train"):
            raise DataError(
                "the training texts contain no words",
                key="task.data",
                hint="name files whose texts have words; texts without any are left out",
            )
        self._log_texts(parts, report)

    @classmethod
    def heads(cls, config: ComponentConfig) -> tuple[Head, ...]:
        """Return the head `token_classes` with the recipe's tags."""
        assert isinstance(config, cls.Config)
        return (Head.token_classes(config.data.classes),)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of tokens, labels, tags and tokenizer, independent of where the files are stored."""
        digest = hashlib.sha256(tokenizer_fingerprint(self.tokenizer).encode())
        digest.update(repr(self._classes).encode())
        for held in self._splits.values():
            digest.update(held.windows.tokens.fingerprint().encode())
            digest.update(held.windows.first.tobytes())
            digest.update(b"" if held.labels is None else held.labels.tobytes())
        return digest.hexdigest()

    @property
    def metric(self) -> str:
        """The recipe's metric."""
        return self.config.metric

    def tokens(self, split: Split) -> TokenizedTexts:
        """Return the sequences of a split."""
        return self._splits[split].windows.tokens

    def batch(self, split: Split, samples: np.ndarray, epochs: np.ndarray) -> Batch:
        """Return the sequences of these samples, which are the same in every epoch.

        Columns: `sample_ids` (B,); `word_starts` (B, L) bool, true on the first subword of each word; and, if the split
        has labels, `labels` (B, L) int64, -100 for tokens without a label.
        """
        held = self._splits[split]
        tokens = held.windows.tokens
        columns = {"word_starts": torch.from_numpy(tokens.padded(held.windows.first, samples, False))}
        if held.labels is not None:
            columns["labels"] = torch.from_numpy(tokens.padded(held.labels, samples, IGNORED))
        return self._batch(split, samples, columns)

    def scores(self, split: Split, outputs: TaskOutputs) -> dict[str, float]:
        """Compute precision, recall and F1 of spans, over all types and for each type, and the accuracy of tags.

        Raises:
            DataError: the split has no labels.
        """
        if not self._labelled(split):
            raise no_labels(split)
        return self._scores(split, self._decoded(split, outputs))

    def baselines(self, split: Split) -> dict[str, float]:
        """Return the scores of predicting no spans; empty without labels."""
        return {} if not self._labelled(split) else self._scores(split, [[] for _ in self._splits[split].texts])

    def write_predictions(self, folder: Path, split: Split, outputs: TaskOutputs) -> None:
        """Write a Parquet file with a row for each text.

        Columns: `id`, `words`, `label` (a tag for each word, if the split is labelled), `prediction` (a tag for each
        word), `spans` (the predicted spans: `start` and `end` in characters of `text`, and `label`), `text`, and
        `outputs` (for each word, or null if the word has no token).
        """
        import pyarrow
        from pyarrow import parquet

        held, scheme = self._splits[split], self.config.data.output_scheme
        predicted = self._decoded(split, outputs)
        columns: dict[str, list[Any]] = {"id": [], "text": [], "words": [], "label": [], "prediction": []}
        columns |= {"spans": [], "outputs": []}
        of_words = held.windows.of_words(outputs)
        for text, spans, alignment, own in zip(held.texts, predicted, held.windows.alignments, of_words, strict=True):
            columns["id"].append(text.id)
            columns["text"].append(text.text)
            columns["words"].append([text.text[start:end] for start, end in text.bounds])
            columns["label"].append(None if text.spans is None else tags_of(text.spans, len(text.bounds), scheme))
            columns["prediction"].append(tags_of(spans, len(text.bounds), scheme))
            columns["spans"].append(
                [
                    {
                        "start": int(text.bounds[one.start, 0]),
                        "end": int(text.bounds[one.end - 1, 1]),
                        "label": one.type,
                    }
                    for one in spans
                ]
            )
            every: list[Any] = [None] * len(text.bounds)
            for word, output in zip(alignment.words, own, strict=True):
                every[word] = output.astype(np.float32)
            columns["outputs"].append(every)
        if not self._labelled(split):
            del columns["label"]
        parquet.write_table(pyarrow.table(columns), folder / f"{PARTS[split]}.parquet")

    def summary_rows(self, run: FinishedRun) -> dict[str, str]:
        """Return a row for each score over all types."""
        return score_rows(run, SPAN_METRICS.__contains__)

    def _sequences(self, parts: Sequence[TaggedPart], split: Split, report: Counter[str]) -> _TaggedSequences:
        names = ("train", "unlabelled") if split == "train" else (PARTS[split],)
        texts = [text for part in parts if part.name in names for text in part.texts]
        data, number = self.config.data, {tag: index for index, tag in enumerate(self._classes)}
        windows = tokenize_words(self.tokenizer, texts, data.max_length, report)
        tags: list[list[int]] = []
        for text, alignment in zip(texts, windows.alignments, strict=True):
            own = alignment.tags(text.spans or (), data.output_scheme)
            tags.append([IGNORED if text.spans is None else number[tag] for tag in own])
            if not len(alignment.words):
                report[f"texts of `{PARTS[split]}` without words left out"] += 1
            if lost := lost_spans(alignment, text.spans or (), data.output_scheme):
                report[f"spans of `{PARTS[split]}` that no tokens express"] += lost
        report[f"texts longer than {data.max_length} tokens (task.data.max_length) cut into windows"] += (
            windows.windowed
        )
        report[f"words longer than {data.max_length} tokens shortened"] += windows.shortened
        labels = None
        if any(text.spans is not None for text in texts):
            labels = windows.labels(tags, self._inside() if data.label_all_tokens else None)
        return _TaggedSequences(texts, windows, labels)

    def _inside(self) -> dict[int, int]:
        """Convert the class of a word to the class of its other subwords: B becomes I, other classes are unchanged."""
        number = {tag: index for index, tag in enumerate(self._classes)}
        return {IGNORED: IGNORED} | {
            index: number[f"I-{tag.partition('-')[2]}"] if tag.startswith("B-") else index
            for tag, index in number.items()
        }

    def _labelled(self, split: Split) -> bool:
        return self._splits[split].labels is not None

    def _decoded(self, split: Split, outputs: TaskOutputs) -> list[list[TaggedSpan]]:
        """Return the predicted spans of each text, in words, from the outputs of its sequences."""
        windows = self._splits[split].windows
        return [
            alignment.spans([self._classes[index] for index in own.argmax(1)])
            for alignment, own in zip(windows.alignments, windows.of_words(outputs), strict=True)
        ]

    def _scores(self, split: Split, predicted: Sequence[Sequence[TaggedSpan]]) -> dict[str, float]:
        scores = SpanScores(self.config.data.types)
        for text, spans in zip(self._splits[split].texts, predicted, strict=True):
            if text.spans is not None:
                scores.add(text.spans, spans, len(text.bounds))
        return scores.values()

    def _log_texts(self, parts: Sequence[TaggedPart], report: Counter[str]) -> None:
        """Log the sizes of the parts, repairs, windows and overlap between parts."""
        log_parts(parts, report)
        trained = {text.clean for part in parts if part.name == "train" for text in part.texts}
        for part in parts:
            labelled = all(text.spans is not None for text in part.texts)
            labels = [tuple(text.spans or ()) for text in part.texts] if labelled else None
            cleaned = [text.clean for text in part.texts]
            warn_of_problems(part.name, problems_of_part(cleaned, labels, (), trained=part.name == PARTS["train"]))
        for split, held in self._splits.items():
            warn_of_problems(PARTS[split], problem_of_unknown_text(held.windows.tokens.unknown))
        for part in parts:
            if part.name in ("validation", "test"):
                shared = [text.clean for text in part.texts if text.clean in trained]
                warn_of_overlap(part.name, len(shared), next(iter(shared), None))
