"""Shards of the source system, with the masks drawn in them, as batches of a training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from kdcore_preparation import DataRecipe

from kdcore.tasks.masked_lm import MaskedLM

LENGTH, PREDICTIONS = 24, 4
CLS, SEP, MASK = 2, 3, 4


def write_shard(path: Path, rows: int, seed: int) -> list[tuple[list[int], dict[int, int]]]:
    """A shard as the source writes it; for each sequence what the model sees, and the labels by their places."""
    import h5py

    random = np.random.default_rng(seed)
    columns = {name: np.zeros((rows, LENGTH), np.int32) for name in ("input_ids", "input_mask", "segment_ids")}
    columns |= {name: np.zeros((rows, PREDICTIONS), np.int32) for name in ("masked_lm_positions", "masked_lm_ids")}
    expected = []
    for row in range(rows):
        length = int(random.integers(8, LENGTH + 1))
        tokens = [CLS, *random.integers(5, 40, length - 2).tolist(), SEP]
        places = sorted(
            random.choice(np.arange(1, length - 1), int(random.integers(1, PREDICTIONS + 1)), replace=False).tolist()
        )
        labels = {place: tokens[place] for place in places}
        for place in places:
            tokens[place] = MASK if random.random() < 0.8 else int(random.integers(5, 40))
        columns["input_ids"][row, :length] = tokens
        columns["input_mask"][row, :length] = 1
        columns["masked_lm_positions"][row, : len(places)] = places
        columns["masked_lm_ids"][row, : len(places)] = list(labels.values())
        expected.append((tokens, labels))
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            file[name] = values
    return expected


def batch_of(task: MaskedLM, split: str, epoch: int) -> list[tuple[list[int], dict[int, int]]]:
    samples = np.arange(task.num_samples(split))  # type: ignore[arg-type]
    batch = task.batch(split, samples, np.full(len(samples), epoch))  # type: ignore[arg-type]
    width = batch.input_ids.shape[1]
    labels: list[dict[int, int]] = [{} for _ in samples]
    for flat, label in zip(batch.masked_index.tolist(), batch.masked_labels.tolist(), strict=True):
        labels[flat // width][flat % width] = label
    rows = [row[:length].tolist() for row, length in zip(batch.input_ids, batch.lengths.tolist(), strict=True)]
    return list(zip(rows, labels, strict=True))


def test_masks_of_the_sources_shards_reach_the_model_as_they_were_drawn(tmp_path: Path, tokenizer_folder: Path) -> None:
    pytest.importorskip("h5py")
    shards = tmp_path / "shards"
    shards.mkdir()
    train = [
        *write_shard(shards / "train_shard_0.hdf5", 600, 0),
        *write_shard(shards / "train_shard_1.hdf5", 30, 1),
    ]
    held_out = write_shard(shards / "test_shard_0.hdf5", 20, 2)
    recipe = DataRecipe(
        corpora=[{"name": "hdf5", "path": str(shards)}], tokenizer=str(tokenizer_folder), sequence_length=32
    )
    task = MaskedLM(MaskedLM.Config(data=recipe.model_dump(mode="json"), masking="static"), 1, tmp_path / "cache")
    assert batch_of(task, "train", 0) == train
    assert batch_of(task, "train", 5) == train
    assert batch_of(task, "held_out", 0) == held_out

    dynamic = MaskedLM(MaskedLM.Config(data=recipe.model_dump(mode="json")), 1, tmp_path / "cache")
    originals = [[labels.get(place, token) for place, token in enumerate(tokens)] for tokens, labels in train]
    for (seen, labels), original in zip(batch_of(dynamic, "train", 0), originals, strict=True):
        restored = [labels.get(place, token) for place, token in enumerate(seen)]
        assert restored == original, "masks are drawn over the original text, not over the stored masks"
