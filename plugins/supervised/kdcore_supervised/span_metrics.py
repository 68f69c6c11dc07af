"""Precision, recall and F1 of predicted spans."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Literal, get_args

from kdcore_supervised.tags import TaggedSpan, tags_of

SpanMetric = Literal["f1", "precision", "recall", "accuracy"]
"""Scores of spans over all types; `accuracy` is the accuracy of the words' tags. Higher is better for all of them."""

SPAN_METRICS: tuple[SpanMetric, ...] = get_args(SpanMetric)


@dataclass
class SpanScores:
    """Counts of spans by type, from which scores are computed.

    A predicted span is correct if a true span has the same words and the same type. The accuracy of tags compares BIO
    tags of all words.

    Attributes:
        types: types of spans, each of which has its own scores.
        true, predicted, correct: numbers of spans by type.
        words: number of words.
        equal: number of words whose predicted tag is correct.
    """

    types: Collection[str]
    true: Counter[str] = field(default_factory=Counter)
    predicted: Counter[str] = field(default_factory=Counter)
    correct: Counter[str] = field(default_factory=Counter)
    words: int = 0
    equal: int = 0

    def add(self, true: Iterable[TaggedSpan], predicted: Iterable[TaggedSpan], words: int) -> None:
        """Count the spans of one text, whose number of words is `words`."""
        true, predicted = list(true), list(predicted)
        pairs = zip(tags_of(true, words, "bio"), tags_of(predicted, words, "bio"), strict=True)
        self.words += words
        self.equal += sum(one == other for one, other in pairs)
        own, theirs = set(true), set(predicted)
        self.true.update(span.type for span in own)
        self.predicted.update(span.type for span in theirs)
        self.correct.update(span.type for span in own & theirs)

    def values(self) -> dict[str, float]:
        """Return every `SpanMetric`, and `precision_TYPE`, `recall_TYPE` and `f1_TYPE`; 0 where undefined."""
        found = _scores("", self.correct.total(), self.predicted.total(), self.true.total())
        found["accuracy"] = self.equal / self.words if self.words else 0.0
        for name in self.types:
            found |= _scores(f"_{name}", self.correct[name], self.predicted[name], self.true[name])
        return found


def _scores(suffix: str, correct: int, predicted: int, true: int) -> dict[str, float]:
    return {
        f"precision{suffix}": correct / predicted if predicted else 0.0,
        f"recall{suffix}": correct / true if true else 0.0,
        f"f1{suffix}": 2 * correct / (predicted + true) if predicted + true else 0.0,
    }
