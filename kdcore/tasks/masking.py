"""Draw masks for masked language modelling, vectorised in NumPy."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from kdcore.data.shards import Masks, PreparedData
from kdcore.progress import Fraction, check_points, value_at
from kdcore.recipe.schema import ComponentConfig
from kdcore.tasks.word_starts import WordStarts, icu_segmenter

_MASKING_STREAM = 1  # second word of the random key: other users of a seed use other streams


class Masking(ComponentConfig):
    """Select and replace the tokens to be predicted (Devlin et al. 2019, section 3.1), never special tokens."""

    probability: Fraction | list[tuple[Fraction, Fraction]] = Field(
        0.15,
        description="Probability that a token is predicted; or points [[fraction of the budget, probability], ...], "
        "interpolated linearly and constant before the first and after the last point. Validation uses the last one.",
    )
    mask: float = Field(0.8, ge=0, le=1, description="Fraction of predicted tokens that become the mask token.")
    random: float = Field(
        0.1, ge=0, le=1, description="Fraction of predicted tokens that become a random token; the rest are kept."
    )
    whole_word: bool = Field(False, description="Predict all tokens of a word or none of them.")
    segmenter: Literal["icu"] | None = Field(
        None,
        description="Dictionary that finds the words of Thai, Lao, Khmer and Burmese for `whole_word`; default: each "
        "token is a word.",
    )
    max_predictions: int | None = Field(
        None, gt=0, description="Maximum number of predicted tokens per sequence, chosen at random."
    )
    duplicates: int | None = Field(
        None,
        gt=0,
        description="Number of masks drawn for each sequence and used in turn; default: a new one each epoch.",
    )

    @model_validator(mode="after")
    def _shares(self) -> Masking:
        if self.mask + self.random > 1:
            raise ValueError(f"`mask` and `random` must add up to at most 1 (found {self.mask + self.random:g})")
        check_points("probability", self.probability)
        if self.segmenter is not None and not self.whole_word:
            raise ValueError("`segmenter` has no effect without `whole_word: true`")
        return self


class Masked(NamedTuple):
    """Masked sequences.

    Attributes:
        inputs: (B, L) token ids.
        predicted: (B, L) whether the original token is to be predicted.
    """

    inputs: np.ndarray
    predicted: np.ndarray


class MaskDrawer:
    """Draw masks as functions of seed, sample and epoch, independently of the rest of the batch.

    Args:
        masking: settings of the masks.
        data: the prepared data.
        seed: the recipe's seed.

    Raises:
        DataError: `whole_word` is set, and the tokenizer does not mark where words start.
        InputError: the segmenter is not installed.
    """

    def __init__(self, masking: Masking, data: PreparedData, seed: int) -> None:
        self._masking = masking
        self._seed = seed
        self._length = data.sequence_length
        self._mask_id = data.mask_id
        self._special = np.zeros(data.vocab_size, dtype=bool)
        self._special[list(data.special_ids)] = True
        self._ordinary_ids = np.flatnonzero(~self._special)
        segmenter = None if masking.segmenter is None else icu_segmenter()
        self._starts_word = WordStarts(data, segmenter) if masking.whole_word else None

    def draw(
        self,
        tokens: np.ndarray,
        real: np.ndarray,
        samples: np.ndarray,
        epochs: np.ndarray,
        stream: int,
        fraction: float = 1.0,
    ) -> Masked:
        """Mask sequences.

        Args:
            tokens: (B, L) ids.
            real: (B, L) True where a position is not padding.
            samples: (B,) indices of the samples.
            epochs: (B,) number of times that each sample has been seen.
            stream: number of the split, so that splits get different masks.
            fraction: fraction of the budget, for a scheduled probability.
        """
        masking = self._masking
        draws = np.empty((len(samples), 3, self._length))
        if masking.duplicates is not None:
            epochs = epochs % masking.duplicates
        for row, (sample, epoch) in enumerate(zip(samples.tolist(), epochs.tolist(), strict=True)):
            generator = np.random.Philox(key=[self._seed, _MASKING_STREAM], counter=[0, sample, epoch, stream])
            np.random.Generator(generator).random(out=draws[row])
        choose, replace, which = (draws[:, part, : tokens.shape[1]] for part in range(3))
        maskable = real & ~self._special[tokens]
        first = None if self._starts_word is None else self._first_of_word(tokens, maskable)
        if first is not None:
            choose = np.take_along_axis(choose, first, axis=1)
        predicted = (choose < value_at(masking.probability, fraction)) & maskable
        if masking.max_predictions is not None:
            predicted = at_most(masking.max_predictions, predicted, choose, first)
        random_ids = self._ordinary_ids[(which * len(self._ordinary_ids)).astype(np.int64)]
        inputs = np.where(predicted & (replace < masking.mask), self._mask_id, tokens)
        is_random = predicted & (replace >= masking.mask) & (replace < masking.mask + masking.random)
        return Masked(np.where(is_random, random_ids, inputs), predicted)

    def too_long(self, tokens: np.ndarray, real: np.ndarray) -> np.ndarray:
        """Return (B,) whether each sequence (B, L) contains a word with more tokens than may be predicted."""
        maskable = real & ~self._special[tokens]
        if self._starts_word is None or self._masking.max_predictions is None:
            return np.zeros(len(tokens), dtype=bool)
        words = self._first_of_word(tokens, maskable) + tokens.shape[1] * np.arange(len(tokens))[:, None]
        sizes = np.bincount(words[maskable], minlength=tokens.size).reshape(tokens.shape)
        found: np.ndarray = sizes.max(axis=1) > self._masking.max_predictions
        return found

    def _first_of_word(self, tokens: np.ndarray, maskable: np.ndarray) -> np.ndarray:
        """Return the position of the first token of each token's word (B, L)."""
        assert self._starts_word is not None
        starts = self._starts_word(tokens) | ~maskable
        starts[:, 1:] |= ~maskable[:, :-1]
        return np.maximum.accumulate(np.where(starts, np.arange(tokens.shape[1]), 0), axis=1)


def stored_masks(tokens: np.ndarray, masks: Masks) -> Masked:
    """Apply stored masks to sequences (B, L)."""
    inputs, predicted = tokens.copy(), np.zeros(tokens.shape, dtype=bool)
    rows, columns = np.nonzero(masks.positions)
    places = masks.positions[rows, columns]
    inputs[rows, places] = masks.inputs[rows, columns]
    predicted[rows, places] = True
    return Masked(inputs, predicted)


def at_most(limit: int, predicted: np.ndarray, choose: np.ndarray, first: np.ndarray | None) -> np.ndarray:
    """Drop words (or tokens) at random until at most `limit` tokens of each sequence are to be predicted.

    Args:
        limit: maximum number of predicted tokens of a sequence.
        predicted: (B, L) whether a token is to be predicted.
        choose: (B, L) random number of each token; words with the smallest numbers are kept.
        first: (B, L) position of the first token of each token's word; None if single tokens are masked.
    """
    if not (predicted.sum(axis=1) > limit).any():
        return predicted
    batch, length = predicted.shape
    places = np.broadcast_to(np.arange(length), predicted.shape)
    order = np.argsort(np.where(predicted, choose, np.inf), axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, places, axis=1)
    if first is None:
        return predicted & (rank < limit)
    words = first + length * np.arange(batch)[:, None]
    sizes = np.bincount(words[predicted], minlength=batch * length)
    # Tokens of a word have the same number, so they follow one another in the order.
    ends = np.take_along_axis(rank, first, axis=1) + sizes[words]
    kept: np.ndarray = predicted & (ends <= limit)
    return kept
