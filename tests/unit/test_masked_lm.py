"""Masks: their shares, and that seed, epoch and sample alone decide them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from kdcore import DataError, Encoder, Model, ModelInfo, SignalRequest, load_recipe, open_data
from kdcore.data.shards import PreparedData
from kdcore.tasks.masked_lm import MaskedLM
from kdcore.training.run.build import make_plan


@pytest.fixture
def task(small_recipe: Path) -> MaskedLM:
    task = make_plan(load_recipe(small_recipe)).task
    assert isinstance(task, MaskedLM)
    return task


def original(task: MaskedLM, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return task.data.split("train").rows(samples)


def test_a_sample_is_masked_alike_in_any_batch(task: MaskedLM) -> None:
    samples = np.arange(6)
    together = task.batch("train", samples, np.full(6, 3))
    for sample in samples:
        alone = task.batch("train", np.array([sample]), np.array([3]))
        length = alone.input_ids.shape[1]
        assert torch.equal(together.input_ids[sample, :length], alone.input_ids[0])


def test_each_epoch_masks_anew(task: MaskedLM) -> None:
    samples = np.arange(6)
    first, second = (task.batch("train", samples, np.full(6, epoch)).masked_index for epoch in (0, 1))
    assert first.tolist() != second.tolist()


def test_15_percent_are_predicted_and_80_10_10_of_them_hidden_replaced_kept(task: MaskedLM) -> None:
    samples = np.arange(task.num_samples("train"))
    rows, lengths = original(task, samples)
    tokens = predicted = hidden = kept = 0
    for epoch in range(30):
        batch = task.batch("train", samples, np.full(len(samples), epoch))
        given = batch.input_ids.reshape(-1)[batch.masked_index]
        tokens += int((lengths - 2).sum())
        predicted += batch.num_masked
        hidden += int((given == task.data.mask_id).sum())
        kept += int((given == batch.masked_labels).sum())
        labels = rows[:, : batch.input_ids.shape[1]].reshape(-1)[batch.masked_index.numpy()]
        assert labels.tolist() == batch.masked_labels.tolist()
        untouched = np.delete(np.arange(batch.input_ids.numel()), batch.masked_index.numpy())
        before = rows[:, : batch.input_ids.shape[1]].reshape(-1)
        assert (batch.input_ids.reshape(-1).numpy()[untouched] == before[untouched]).all()
    # About 5 standard deviations of the binomial around the expected share.
    assert predicted / tokens == pytest.approx(0.15, abs=5 * (0.15 * 0.85 / tokens) ** 0.5)
    assert hidden / predicted == pytest.approx(0.8, abs=5 * (0.16 / predicted) ** 0.5)
    by_chance = 0.1 / (task.data.vocab_size - len(task.data.special_ids))
    assert kept / predicted == pytest.approx(0.1 + by_chance, abs=5 * (0.09 / predicted) ** 0.5)


def test_special_tokens_and_padding_are_never_predicted(task: MaskedLM) -> None:
    samples = np.arange(task.num_samples("train"))
    for epoch in range(5):
        batch = task.batch("train", samples, np.full(len(samples), epoch))
        assert not np.isin(batch.masked_labels.numpy(), task.data.special_ids).any()
        assert np.isin(batch.masked_index.numpy(), batch.token_index.numpy()).all()


def test_a_batch_is_no_longer_than_its_longest_sequence_and_has_no_mask_if_all_are_equal(task: MaskedLM) -> None:
    lengths = task.data.split("train").lengths
    same = np.flatnonzero(lengths == np.bincount(lengths).argmax())[:2]
    assert len(same) == 2
    batch = task.batch("train", same, np.zeros(2, dtype=np.int64))
    assert batch.attention_mask is None
    assert batch.input_ids.shape == (2, lengths[same[0]])
    shortest = np.array([same[0], lengths.argmin()])
    ragged = task.batch("train", shortest, np.zeros(2, dtype=np.int64))
    assert ragged.attention_mask is not None
    assert ragged.attention_mask.sum(1).tolist() == ragged.lengths.tolist() == lengths[shortest].tolist()
    assert ragged.num_tokens == ragged.lengths.sum()


class DescribedModel(Model):
    """A model of which nothing is known but its description and perhaps its vocabulary."""

    source = "somewhere"

    def __init__(
        self, vocab_size: int = 1000, max_length: int = 512, vocabulary: Mapping[str, int] | None = None
    ) -> None:
        self.info = ModelInfo("bert", 2, 8, 2, 4, vocab_size, max_length)
        self._vocabulary = vocabulary

    def load_teacher(self, request: SignalRequest) -> Encoder:
        raise NotImplementedError

    def build_student(self, request: SignalRequest) -> Encoder:
        raise NotImplementedError

    def vocabulary(self) -> Mapping[str, int] | None:
        return self._vocabulary


def test_data_that_does_not_fit_the_models_is_refused(task: MaskedLM) -> None:
    task.check(DescribedModel(), None)
    with pytest.raises(DataError, match=r"the student's \(found \d+ tokens, expected at most 5\)"):
        task.check(DescribedModel(vocab_size=5), None)
    with pytest.raises(DataError, match=r"the teacher \(found up to 48 tokens, expected at most 16\)"):
        task.check(DescribedModel(), DescribedModel(max_length=16))


def test_ids_that_a_new_student_never_reads_are_told(task: MaskedLM, caplog: pytest.LogCaptureFixture) -> None:
    def warnings() -> list[str]:
        return [message for message in caplog.messages if "held_out: only" not in message]  # the data is small

    new = DescribedModel(vocab_size=task.data.vocab_size + 1000)
    task.check(new, None)
    assert not warnings(), "what it starts from has as many"
    new.source = None  # type: ignore[assignment]
    task.check(new, None)
    (message,) = warnings()
    assert f"student.config.vocab_size={task.data.vocab_size}`" in message
    caplog.clear()
    rounded = DescribedModel(vocab_size=task.data.vocab_size + 64)
    rounded.source = None  # type: ignore[assignment]
    task.check(rounded, None)
    assert not warnings()


def test_data_of_another_vocabulary_is_refused_with_the_first_token_that_differs(
    task: MaskedLM, tokenizer_folder: Path
) -> None:
    own: dict[str, int] = AutoTokenizer.from_pretrained(task.data.tokenizer_folder).get_vocab()
    task.check(DescribedModel(vocabulary=own), DescribedModel(vocabulary=own))
    first, second = (next(token for token, number in own.items() if number == wanted) for wanted in (7, 9))
    swapped = own | {first: 9, second: 7}
    with pytest.raises(DataError) as refused:
        task.check(DescribedModel(), DescribedModel(vocabulary=swapped))
    assert f"the teacher's: id 7 is `{first}` in the data and `{second}` in the teacher" in str(refused.value)
    longer = own | {"more": len(own)}
    with pytest.raises(DataError, match=rf"student's: id {len(own)} is unused in the data and `more` in the student"):
        task.check(DescribedModel(vocabulary=longer), None)


def test_prepared_data_is_found_again_as_folder_or_recipe(task: MaskedLM, tmp_path: Path, small_recipe: Path) -> None:
    assert open_data(str(task.data.folder), tmp_path).fingerprint == task.fingerprint
    again = make_plan(load_recipe(small_recipe)).task
    assert again.fingerprint == task.fingerprint
    assert PreparedData.open(task.data.folder).fingerprint == task.fingerprint
