"""Whether models and tokenised data speak the same vocabulary."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from kdcore.errors import DataError
from kdcore.models.base import Model

logger = logging.getLogger("kdcore")

_SPARE_IDS = 256
"""Rows of an embedding beyond the tokenizer's that pass as rounding up to what devices like."""


def check_fit(
    student: Model,
    teacher: Model | None,
    *,
    vocabulary: Callable[[], Mapping[str, int]],
    vocab_size: int,
    longest: int,
    where: str,
    shorter: str,
    own_tokenizer: str,
) -> None:
    """Compare lengths and vocabulary of tokenised data with both models.

    Args:
        student: the student.
        teacher: the teacher, None if no loss reads it.
        vocabulary: gives the token to id map of the data's tokenizer.
        vocab_size: of the data's tokenizer.
        longest: tokens of the longest sequence.
        where: the data, for messages.
        shorter: how to get shorter sequences.
        own_tokenizer: how to take the tokenizer of the model `{whose}`.

    Raises:
        DataError: sequences are too long, or ids mean other tokens to a model, which would pass unnoticed.
    """
    for whose, model in (("teacher", teacher), ("student", student)):
        if model is None:
            continue
        if vocab_size > model.info.vocab_size:
            raise DataError(
                f"the data's tokenizer has {vocab_size} tokens, the {whose} embeds {model.info.vocab_size}",
                where=where,
                key="task.data",
                hint=own_tokenizer.format(whose=whose),
            )
        if longest > model.info.max_length:
            raise DataError(
                f"sequences have up to {longest} tokens, the {whose} takes {model.info.max_length}",
                where=where,
                key="task.data",
                hint=shorter,
            )
    if teacher is None and student.source is None and student.info.vocab_size > vocab_size + _SPARE_IDS:
        logger.warning(
            f"the student embeds {student.info.vocab_size} ids, the data's tokenizer has {vocab_size}: "
            f"`student.config.vocab_size={vocab_size}` leaves out what is never read"
        )
    sources = {model.source: (whose, model) for whose, model in (("student", student), ("teacher", teacher)) if model}
    for whose, model in sources.values():
        _compare(vocabulary, whose, model.vocabulary(), where, own_tokenizer)


def _compare(
    vocabulary: Callable[[], Mapping[str, int]],
    whose: str,
    theirs: Mapping[str, int] | None,
    where: str,
    own_tokenizer: str,
) -> None:
    """Every id must mean the same token to data and weights; random weights mean nothing yet."""
    if theirs is None:
        return
    ours = vocabulary()
    different = [(number, token) for token, number in ours.items() ^ theirs.items()]
    if not different:
        return
    first = min(number for number, _ in different)

    def token(vocabulary: Mapping[str, int]) -> str:
        return next((f"`{token}`" for token, number in vocabulary.items() if number == first), "nothing")

    raise DataError(
        f"the data was made with another vocabulary than the {whose}'s: id {first} is {token(ours)} to the data "
        f"and {token(theirs)} to the {whose}",
        where=where,
        key="task.data",
        hint=own_tokenizer.format(whose=whose),
    )
