"""Check that models and tokenised data have the same vocabulary."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from kdcore.data.tokenizers import reading_difference
from kdcore.errors import DataError
from kdcore.models.base import Model

logger = logging.getLogger("kdcore")

_SPARE_IDS = 256
"""Extra embedding rows that count as padding to a multiple that is fast on the device."""


def check_fit(
    student: Model | None,
    teacher: Model | None,
    *,
    vocabulary: Callable[[], Mapping[str, int]],
    vocab_size: int,
    longest: int,
    where: str,
    shorter: str,
    own_tokenizer: str,
    pad_id: int | None = None,
    tokenizer: Callable[[], Any] | None = None,
) -> None:
    """Check that the lengths and the vocabulary of tokenised data are compatible with both models.

    Args:
        student: the student; None to check the teacher's own view of the data.
        teacher: the teacher; None if no loss uses it, or if it has its own view.
        vocabulary: function that returns the token-to-id map of the data's tokenizer.
        vocab_size: vocabulary size of the data's tokenizer.
        longest: length of the longest sequence in tokens.
        where: folder of the data, for messages.
        shorter: hint on how to get shorter sequences.
        own_tokenizer: hint on how to use a model's tokenizer. Its placeholder `{whose}` is replaced by `teacher` or
            `student`.
        pad_id: padding id of the data's tokenizer; None if it does not pad.
        tokenizer: function that returns the data's tokenizer, to compare how it treats text.

    Raises:
        DataError: sequences are too long, the vocabulary of a model differs from the data's, its tokenizer treats text
            differently, or its positions depend on a different padding id.
    """
    for whose, model in (("teacher", teacher), ("student", student)):
        if model is None:
            continue
        if vocab_size > model.info.vocab_size:
            raise DataError(
                f"the data's vocabulary is larger than the {whose}'s (found {vocab_size} tokens, "
                f"expected at most {model.info.vocab_size})",
                where=where,
                key="task.data",
                hint=own_tokenizer.format(whose=whose),
            )
        if longest > model.info.max_length:
            raise DataError(
                f"sequences are too long for the {whose} (found up to {longest} tokens, "
                f"expected at most {model.info.max_length})",
                where=where,
                key="task.data",
                hint=shorter,
            )
        position_pad_id = model.info.position_pad_id
        if pad_id is not None and position_pad_id is not None and position_pad_id != pad_id:
            raise DataError(
                f"the {whose} computes positions from a different padding id (found {pad_id} in the data's tokenizer, "
                f"expected {position_pad_id})",
                where=where,
                key="task.data",
                hint=f"set student.config.pad_token_id={pad_id}, or choose a model_type whose positions do not depend "
                "on it"
                if model.source is None
                else f"{own_tokenizer.format(whose=whose)}, or correct pad_token_id in config.json of {model.source}",
            )
    spare = 0 if student is None else student.info.vocab_size - vocab_size
    if teacher is None and student is not None and student.source is None and spare > _SPARE_IDS:
        logger.warning(
            f"the student embeds {student.info.vocab_size} ids, but the data's tokenizer has only {vocab_size} tokens: "
            f"`student.config.vocab_size={vocab_size}` drops the unused rows"
        )
    sources = {model.source: (whose, model) for whose, model in (("student", student), ("teacher", teacher)) if model}
    for whose, model in sources.values():
        _compare(vocabulary, whose, model.vocabulary(), where, own_tokenizer)
        theirs = None if tokenizer is None else model.tokenizer()
        if tokenizer is not None and theirs is not None:
            _compare_reading(tokenizer(), whose, theirs, where, own_tokenizer)


def _compare_reading(ours: Any, whose: str, theirs: Any, where: str, own_tokenizer: str) -> None:
    """Raise a DataError if the tokenizers treat text differently, for example in casing or normalization."""
    difference = reading_difference(ours, theirs)
    if difference is not None:
        text, *pieces = difference
        ours, theirs = (" ".join(part) if len(part) < 20 else f"{len(part)} tokens" for part in pieces)
        raise DataError(
            f"the data's tokenizer treats text differently from the {whose}'s, although their vocabularies are equal: "
            f"`{text}` becomes `{ours}` in the data and `{theirs}` in the {whose}",
            where=where,
            key="task.data",
            hint=own_tokenizer.format(whose=whose),
        )


def _compare(
    vocabulary: Callable[[], Mapping[str, int]],
    whose: str,
    theirs: Mapping[str, int] | None,
    where: str,
    own_tokenizer: str,
) -> None:
    """Raise a DataError if trained weights use an id for a different token. Random weights have no vocabulary."""
    if theirs is None:
        return
    ours = vocabulary()
    different = [(number, token) for token, number in ours.items() ^ theirs.items()]
    if not different:
        return
    first = min(number for number, _ in different)

    def token(vocabulary: Mapping[str, int]) -> str:
        return next((f"`{token}`" for token, number in vocabulary.items() if number == first), "unused")

    raise DataError(
        f"the data's vocabulary differs from the {whose}'s: id {first} is {token(ours)} in the data "
        f"and {token(theirs)} in the {whose}",
        where=where,
        key="task.data",
        hint=own_tokenizer.format(whose=whose),
    )
