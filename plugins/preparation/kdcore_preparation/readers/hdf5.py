"""Shards from academic-budget-bert and NVIDIA's BERT scripts, which are already tokenised and masked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kdcore import DataError, Part, TokenizedSequences, first_line
from kdcore_preparation.readers.file_corpus import FileCorpus
from kdcore_preparation.readers.file_listing import InputFiles
from kdcore_preparation.readers.input_files import input_files

_ROWS = 512
_NVIDIA_NAME = re.compile(r"_(train|training|test|valid|validation)_\d+\.(?:hdf5|h5)$")
_SUFFIXES = (".hdf5", ".h5")
_DATASETS = ("input_ids", "input_mask", "segment_ids", "masked_lm_positions", "masked_lm_ids")


class Hdf5Corpus(FileCorpus):
    """Read sequences with pre-drawn masks from HDF5 shards; needs `pip install kdcore-preparation[hdf5]`.

    The masks are kept. `train_shard_*.hdf5` and NVIDIA's `*_training_*.hdf5` are for training, `test_shard_*.hdf5` and
    `*_test_*.hdf5` are held out; for files with other names, the data recipe's `held_out` decides. Next-sentence labels
    and second segments are ignored; sequences that have them are counted.
    """

    revision = 2

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._tokens = self.characters.stage("tokens")

    def files(self) -> Mapping[str, Path]:
        """List the shards, which are recognised by their names; other files in the folder are left out and counted."""
        found = input_files(self.config.path)
        shards = InputFiles({name: path for name, path in found.items() if path.suffix in _SUFFIXES}, found.left_out)
        if not shards:
            raise DataError(
                "the folder contains no HDF5 files",
                where=self.config.path,
                allowed="files such as train_shard_0.hdf5 and test_shard_0.hdf5",
            )
        others = [name for name in found if name not in shards]
        if others:
            shards.left_out[f"files that are not HDF5 left out (the first: {others[0]})"] += len(others)
        return shards

    def read(self, part: Part) -> Iterator[TokenizedSequences]:
        """Yield sequences in groups, named after the file and the first row."""
        path = self.path_of(part)
        split = _split(path.name)
        with _opened(path) as file:
            count = self._count(file, path)
            for start in range(0, count, _ROWS):
                end = min(start + _ROWS, count)
                try:
                    columns = {name: np.asarray(file[name][start:end], np.int32) for name in _DATASETS}
                except OSError as error:
                    if error.errno is not None:
                        raise
                    raise _damaged(path, error, f" between rows {start} and {end}") from error
                yield self._sequences(columns, path, f"{part.file}:{start}", start, split)
                self.bytes_read = part.bytes * end // count

    def _count(self, file: Any, path: Path) -> int:
        missing = [name for name in _DATASETS if name not in file]
        if missing:
            raise DataError(
                f"has no dataset {', '.join(f'`{name}`' for name in missing)}",
                where=str(path),
                allowed=_DATASETS,
                hint="only shards with pre-drawn masks can be read, such as shards from create_pretraining_data.py",
            )
        counts = {len(file[name]) for name in _DATASETS}
        if len(counts) > 1:
            raise DataError(f"is damaged: its datasets have {sorted(counts)} rows", where=str(path))
        count: int = counts.pop()
        if "next_sentence_labels" in file and count:
            self.report["next-sentence labels left out"] += count
        return count

    def _sequences(
        self,
        columns: dict[str, NDArray[np.int32]],
        path: Path,
        name: str,
        first: int,
        split: Literal["train", "held_out"] | None,
    ) -> TokenizedSequences:
        seen, mask = columns["input_ids"], columns["input_mask"]
        positions = columns["masked_lm_positions"].copy()
        lengths = mask.sum(axis=1, dtype=np.int32)
        width = seen.shape[1]
        # As in the programs that write such shards, positions after the first 0 are padding.
        positions[np.logical_or.accumulate(positions == 0, axis=1)] = 0
        wrong = (
            (mask != (np.arange(width) < lengths[:, None])).any(axis=1)
            | (positions < 0).any(axis=1)
            | (positions >= lengths[:, None]).any(axis=1)
        )
        if wrong.any():
            raise DataError(
                f"is damaged: in row {first + int(wrong.argmax())} mask and predictions do not match the sequence",
                where=str(path),
                allowed="input_mask of ones, then zeros; masked_lm_positions below its sum",
            )
        segments = int(((columns["segment_ids"] != 0) & (mask != 0)).any(axis=1).sum())
        if segments:
            self.report["sequences of two segments read as one"] += segments
        self._tokens.received += int(mask.sum())
        self._tokens.passed += int(lengths.sum())
        tokens = seen.copy()
        rows, places = np.nonzero(positions)
        tokens[rows, positions[rows, places]] = columns["masked_lm_ids"][rows, places]
        inputs = np.take_along_axis(seen, positions, axis=1)
        return TokenizedSequences(name, tokens, lengths, positions, inputs, split)


def _split(name: str) -> Literal["train", "held_out"] | None:
    """Return the split for a file name, such as `train_shard_7.hdf5` or `books_wiki_en_corpus_test_3.hdf5`."""
    if name.startswith("train"):
        return "train"
    if name.startswith(("test", "valid")):
        return "held_out"
    stated = _NVIDIA_NAME.search(name)
    return None if stated is None else "train" if stated[1].startswith("train") else "held_out"


def _opened(path: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise DataError(
            "the corpus `hdf5` needs the package `h5py`", hint="pip install 'kdcore-preparation[hdf5]'"
        ) from error
    try:
        return h5py.File(path, "r")
    except OSError as error:
        if error.errno is not None:
            raise DataError(f"cannot be read: {error.strerror}", where=str(path)) from error
        raise _damaged(path, error, "") from error


def _damaged(path: Path, error: Exception, where: str) -> DataError:
    return DataError(
        f"is damaged or not an HDF5 file{where} ({first_line(error)})",
        where=str(path),
        hint="write or download the shard again",
    )
