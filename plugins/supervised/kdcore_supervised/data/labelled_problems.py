"""Likely problems of labelled texts, which are reported at the start of training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence

_FEW_TEXTS = 10
_MANY_REPEATED = 0.01
_MANY_UNKNOWN = 0.01


def problems_of_part(
    texts: Sequence[Hashable], labels: Sequence[Hashable] | None, classes: Sequence[str], *, trained: bool
) -> Iterator[str]:
    """List likely problems of one part of labelled data.

    Args:
        texts: the cleaned texts, or pairs.
        labels: the label of each text, in a form that can be compared; None without labels.
        classes: the classes, each of which should occur in the training part; empty for other labels.
        trained: whether this is the training part.
    """
    if len(texts) < _FEW_TEXTS:
        yield f"only {len(texts)} texts: results on so few are hardly reproducible"
    if repeated := len(texts) - len(set(texts)):
        if repeated > _MANY_REPEATED * len(texts):
            yield f"{repeated:,} of {len(texts):,} texts repeat another one"
        if labels is not None:
            labels_of = Counter(text for text, _ in set(zip(texts, labels, strict=True)))
            if differing := sum(count > 1 for count in labels_of.values()):
                yield f"number of texts that occur with different labels: {differing:,}"
    if labels and len(set(labels)) == 1:
        yield f"all texts have the label {labels[0]!r}" if labels[0] != () else "no text has a label"
    elif labels and trained and (missing := set(classes).difference(labels)):
        names = ", ".join(name for name in classes if name in missing)
        yield f"no text has the label {names}"


def problem_of_unknown_text(unknown: float) -> Iterator[str]:
    """Report the fraction of the characters inside [UNK] if it is large."""
    if unknown > _MANY_UNKNOWN:
        yield f"{unknown:.1%} of the characters are unknown to the tokenizer; was it trained on such text?"
