"""Check the requirements on tasks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from kdcore import Batch, Head, HeadLevel, Split, StoredData, Task, TaskOutputs, find_component


def check_task(name: str | type[Task], config: Mapping[str, Any], *, cache: Path) -> None:
    """Check the requirements on every task with the given data.

    1. It has training samples. Its fingerprint is the same for a new task and for a resumed task on the same data.
    2. A batch is consistent: lengths, mask and `token_index` describe the same tokens; masked positions are real tokens
       with one label each; it has the columns that the task declares, with one row per sequence, or at level `token`
       with one value per position.
    3. A batch depends only on seed, samples and epochs: repeated calls, a new task and a different order yield the same
       sequences.
    4. `AutoTokenizer` loads the tokenizer that it saves.
    5. If it has a `metric`, it also has a head and the column `sample_ids`. Outputs of its head are scored with that
       metric, predictions are written for each split, and `lengths` equal the lengths in its batches. If the column
       `labels` contains labels of whole sequences, correct outputs have the highest score.
    6. If it has `sequences`, they have the same lengths as in its batches, and repeated calls return the same ones.

    Args:
        name: registered name, or class.
        config: its keys in a recipe, without `name`; paths are absolute.
        cache: folder of prepared data.

    Raises:
        AssertionError: a requirement is violated; the message names it.
    """
    cls: type[Task] = find_component("kdcore.tasks", name).cls if isinstance(name, str) else name

    def new() -> Task:
        return cls(cls.Config.model_validate(dict(config)), 1, cache)

    task, other = new(), new()
    assert task.fingerprint == other.fingerprint, "two tasks over the same data have different fingerprints"
    stored = StoredData(task.fingerprint, task.data_folder)
    resumed = cls.resumed(cls.Config.model_validate(dict(config)), 1, cache, stored)
    assert resumed.fingerprint == task.fingerprint, "a task resumed on its stored data has a different fingerprint"
    assert task.num_samples("train") > 0, "there are no training samples"
    splits: tuple[Split, ...] = ("train", "held_out") if task.metric is None else ("train", "held_out", "test")
    for split in splits:
        samples = np.arange(min(task.num_samples(split), 8))
        if not len(samples):
            continue
        epochs = samples % 3
        batch = task.batch(split, samples, epochs)
        _check_consistent(batch, len(samples))
        _check_columns(cls, batch, split)
        lengths = task.lengths(split)
        if lengths is not None:
            assert np.array_equal(lengths[samples], batch.lengths), (
                f"`lengths` of `{split}` differ from those of a batch"
            )
        rows = _rows(batch, cls.columns or {})
        order = np.random.default_rng(0).permutation(len(samples))
        for what, again, asked in (
            ("in a second call", task, np.arange(len(samples))),
            ("with a new task", other, np.arange(len(samples))),
            ("in another order", task, order),
            ("without the other sequences", task, np.arange(1)),
        ):
            found = _rows(again.batch(split, samples[asked], epochs[asked]), cls.columns or {})
            assert found == [rows[row] for row in asked], f"{what}, samples of `{split}` give different sequences"
        _check_unmasked(task, split, samples, batch.lengths)
    _check_tokenizer(task)
    if task.metric is not None:
        heads = cls.heads(task.config)
        assert heads, "the task has a `metric`, but `heads` returns none"
        _check_scores(task, heads[0])


def _check_consistent(batch: Batch, size: int) -> None:
    assert batch.num_sequences == size, f"a batch of {size} samples has {batch.num_sequences} sequences"
    length = batch.input_ids.shape[1]
    real = np.arange(length) < batch.lengths[:, None]
    if batch.attention_mask is None:
        assert real.all(), "`attention_mask` is None, but some of `lengths` are shorter than the batch"
    else:
        assert np.array_equal(batch.attention_mask.numpy(), real), (
            "`attention_mask` and `lengths` describe different tokens"
        )
    index = batch.token_index.numpy()
    assert np.array_equal(index, np.flatnonzero(real)), "`token_index` and `lengths` describe different tokens"
    masked = batch.masked_index.numpy()
    assert np.isin(masked, index).all(), "`masked_index` contains padding"
    assert len(np.unique(masked)) == len(masked), "`masked_index` contains a position twice"
    assert batch.masked_labels.shape == batch.masked_index.shape, "`masked_labels` does not have one label per position"
    for column, values in batch.columns.items():
        assert len(values) == size, f"the column `{column}` has {len(values)} rows for {size} sequences"


def _rows(batch: Batch, levels: Mapping[str, HeadLevel]) -> list[tuple[list[int], dict[int, int], dict[str, Any]]]:
    """Return the tokens, the labels by position and the columns of each sequence."""
    width = batch.input_ids.shape[1]
    labels: list[dict[int, int]] = [{} for _ in range(batch.num_sequences)]
    for flat, label in zip(batch.masked_index.tolist(), batch.masked_labels.tolist(), strict=True):
        labels[flat // width][flat % width] = label
    return [
        (
            batch.input_ids[row, : int(length)].tolist(),
            labels[row],
            {
                column: (values[row][: int(length)] if levels.get(column) == "token" else values[row]).tolist()
                for column, values in batch.columns.items()
            },
        )
        for row, length in enumerate(batch.lengths)
    ]


def _check_unmasked(task: Task, split: Split, samples: np.ndarray, lengths: np.ndarray) -> None:
    found, again = task.sequences(split, samples), task.sequences(split, samples)
    if found is None or again is None:
        assert found is again, f"`sequences` of `{split}` gives something only sometimes"
        return
    ids, own = found
    assert ids.ndim == 2, f"`sequences` of `{split}` gives ids of shape {ids.shape}, not (B, L)"
    assert len(ids) == len(samples), f"`sequences` of `{split}` gives {len(ids)} rows for {len(samples)} samples"
    assert own.tolist() == lengths.tolist(), f"`sequences` of `{split}` has other lengths than `batch`"
    assert (ids == again[0]).all(), f"`sequences` of `{split}` gives other ids the second time"


def _check_tokenizer(task: Task) -> None:
    from transformers import AutoTokenizer

    with TemporaryDirectory() as folder:
        task.save_tokenizer(Path(folder))
        try:
            AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise AssertionError(f"`AutoTokenizer` cannot load the saved tokenizer: {error}") from error


def _check_columns(cls: type[Task], batch: Batch, split: Split) -> None:
    if cls.columns is None:
        return
    unknown = sorted(set(batch.columns) - set(cls.columns))
    assert not unknown, f"a batch of `{split}` has the column `{unknown[0]}`, which `columns` does not declare"
    for name, column in batch.columns.items():
        if cls.columns[name] == "token":
            assert column.shape[:2] == batch.input_ids.shape, (
                f"the column `{name}` of level `token` has the shape {tuple(column.shape)}, "
                f"expected {tuple(batch.input_ids.shape)}"
            )


def _check_scores(task: Task, head: Head) -> None:
    splits: tuple[Split, ...] = ("held_out", "test")
    for split in splits:
        total = task.num_samples(split)
        if not total:
            continue
        batch = task.batch(split, np.arange(total), np.zeros(total, dtype=np.int64))
        assert "sample_ids" in batch.columns, "the task has a `metric`, but batches lack the column `sample_ids`"
        found = batch.columns["sample_ids"].tolist()
        assert found == list(range(total)), "the column `sample_ids` does not have the indices of the samples"
        outputs = _outputs(head, batch.lengths)
        if split == "held_out":
            scores = task.scores(split, outputs)
            assert task.metric in scores, f"`scores` has no `{task.metric}`, only {sorted(scores)}"
            if (
                head.level == "sequence"
                and "labels" in batch.columns
                and head.problem_type != "multi_label_classification"
            ):
                _check_right_outputs(task, head, batch.columns["labels"].numpy())
        with TemporaryDirectory() as folder:
            task.write_predictions(Path(folder), split, outputs)
            assert any(Path(folder).iterdir()), f"`write_predictions` does not write a file for `{split}`"


def _outputs(head: Head, lengths: np.ndarray) -> TaskOutputs:
    """Draw outputs of a head for sequences of these lengths."""
    generator = np.random.default_rng(0)
    if head.level == "sequence":
        return generator.standard_normal((len(lengths), head.num_outputs), dtype=np.float32)
    return [generator.standard_normal((int(length), head.num_outputs), dtype=np.float32) for length in lengths]


def _check_right_outputs(task: Task, head: Head, labels: np.ndarray) -> None:
    right = np.eye(len(head.labels))[labels] if head.labels else labels[:, None]
    assert task.metric is not None
    score = task.scores("held_out", right.astype(np.float32))[task.metric]
    assert np.isclose(score, 1.0), f"correct outputs have {task.metric} {score:g}"
    assert score >= task.scores("held_out", -right.astype(np.float32))[task.metric]
