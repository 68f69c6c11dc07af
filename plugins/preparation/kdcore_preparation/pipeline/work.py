"""Process the units of a preparation, distributed over processes."""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcore import Corpus, PreparedSplit, atomic_write, row_dtype, special_ids
from kdcore_preparation.pipeline.alignment import TeacherTokenizer
from kdcore_preparation.pipeline.data_recipe import DataRecipe
from kdcore_preparation.pipeline.document_batches import EncodedDocuments, read_batches, write_batch
from kdcore_preparation.pipeline.duplicates import repeated
from kdcore_preparation.pipeline.preparation_progress import Counters, PreparationProgress, ReportProgress
from kdcore_preparation.pipeline.sentence_splitting import split_sentences
from kdcore_preparation.pipeline.text_encoding import TextEncoder
from kdcore_preparation.pipeline.unit_records import Records, TokenisedUnit, WrittenUnit
from kdcore_preparation.pipeline.unit_writer import UnitWriter
from kdcore_preparation.pipeline.units import UnitReader, units_of
from kdcore_preparation.pipeline.workers import run_in_processes
from kdcore_preparation.readers.character_account import CharacterAccount

UNITS = "units"


class Work:
    """Process the units of a preparation in a folder that may contain finished units.

    To remove duplicates, all units are tokenised before any is written, because the repeated documents are not known
    until then. Otherwise, each unit is tokenised and written in one pass.

    Args:
        data: the recipe.
        corpora: the recipe's readers.
        tokenizer: the student's tokenizer.
        vocab_size: upper bound of ids.
        teacher_tokenizer: the teacher's tokenizer, if it differs from the student's.
        folder: folder of the shards; records of units are in a subfolder.
        workers: number of processes.
        progress: called regularly with the progress.
        lock: file descriptor for worker processes to close, so that they do not hold the lock after this process ends.

    Attributes:
        units: all units.
    """

    def __init__(
        self,
        data: DataRecipe,
        corpora: Sequence[Corpus],
        tokenizer: Any,
        vocab_size: int,
        teacher_tokenizer: Any | None,
        folder: Path,
        *,
        workers: int,
        progress: ReportProgress | None,
        lock: int,
    ) -> None:
        self.units = units_of(corpora)
        self._data = data
        self._corpora = corpora
        self._ids = special_ids(tokenizer)
        self._vocab_size = vocab_size
        self._folder = folder
        self._records = Records(folder / UNITS, folder)
        self._workers = workers
        self._progress = progress
        self._lock = lock
        split = split_sentences if data.layout.sentences else None
        all_cores = workers > 1
        self._teacher: TeacherTokenizer | None = None
        if teacher_tokenizer is not None:
            length = data.teacher_length(teacher_tokenizer)
            self._teacher = TeacherTokenizer(teacher_tokenizer, length, all_cores=all_cores)
        offsets = self._teacher is not None
        self._encoder = TextEncoder(tokenizer, split_sentences=split, all_cores=all_cores, offsets=offsets)
        self._repeated: list[NDArray[np.bool_]] = []
        self._counters = Counters(1, PreparationProgress())

    def run(self, numbers: Sequence[int]) -> None:
        """Do the remaining work on these units that is independent of other units."""
        if self._data.remove_duplicates:
            self._run(self._tokenise, numbers, self._records.tokenised)
        else:
            self._run(self._write, numbers, self._records.written)

    def left(self) -> int:
        """Count the units that are still to be run."""
        known = self._records.tokenised if self._data.remove_duplicates else self._records.written
        return sum(known(unit.number) is None for unit in self.units)

    def finish(self) -> list[WrittenUnit]:
        """Do all remaining work on all units, and return their records."""
        numbers = range(len(self.units))
        self.run(numbers)
        if self._data.remove_duplicates:
            self._repeated = repeated([np.load(self._records.path(number, "keys.npy")) for number in numbers])
            self._run(self._write, numbers, self._records.written)
        return [self._known(number) for number in numbers]

    def move(self, number: int, point: float) -> WrittenUnit:
        """Rewrite a unit with the documents of this point moved to the other split."""
        self._write(number, 0, moved=point)
        return self._known(number)

    def contents(self, split: PreparedSplit) -> list[NDArray[np.uint64]]:
        """Return the memory-mapped `content_keys` of the documents of a split, for each unit."""
        paths = [self._records.path(unit.number, f"{split}.npy") for unit in self.units]
        return [np.load(path, mmap_mode="r") for path in paths]

    def _known(self, number: int) -> WrittenUnit:
        record = self._records.written(number)
        if record is None:
            raise OSError(f"the files of unit {number} are missing")
        return record

    def _run(
        self,
        work: Callable[[int, int], None],
        numbers: Sequence[int],
        known: Callable[[int], TokenisedUnit | WrittenUnit | None],
    ) -> None:
        records = {number: known(number) for number in numbers}
        missing = [number for number, record in records.items() if record is None]
        processes = max(1, min(self._workers, len(missing)))
        self._counters = Counters(processes, self._done_before(records))
        self._report_progress()
        if processes == 1:
            gc.freeze()  # otherwise repeated garbage collection of all loaded objects takes a tenth of the time
            try:
                for number in missing:
                    work(number, 0)
            finally:
                gc.unfreeze()
        else:
            run_in_processes(work, missing, processes, in_child=self._in_child, tick=self._report_progress)
        self._report_progress()

    def _done_before(self, records: dict[int, TokenisedUnit | WrittenUnit | None]) -> PreparationProgress:
        documents = sequences = tokens = done = 0
        for number, record in records.items():
            if isinstance(record, TokenisedUnit):
                documents += record.documents
                tokens += record.tokens
            elif record is not None:
                documents += record.total("documents")
                sequences += record.total("sequences")
                tokens += record.total("tokens")
            done += 0 if record is None else self.units[number].bytes
        return PreparationProgress(
            documents, sequences, tokens, done, sum(self.units[number].bytes for number in records)
        )

    def _report_progress(self) -> None:
        if self._progress is not None:
            self._progress(self._counters.total())

    def _in_child(self) -> None:
        self._progress = None
        with suppress(OSError):
            os.close(self._lock)

    def _reader(self, number: int) -> UnitReader:
        unit = self.units[number]
        corpus = self._corpora[unit.corpus]
        return UnitReader(unit, corpus, self._encoder, self._data.seed, keys=self._data.remove_duplicates)

    def _tokenise(self, number: int, worker: int) -> None:
        reader, counter = self._reader(number), self._counters.begin(worker)
        dtype = row_dtype(self._vocab_size)
        keys: list[NDArray[np.uint64]] = []
        documents = tokens = 0
        with atomic_write(self._records.path(number, "tokens")) as file:
            for batch in reader.batches():
                write_batch(file, batch, dtype)
                if isinstance(batch, EncodedDocuments):
                    keys.append(batch.keys)
                    documents += len(batch)
                    tokens += batch.tokens.size
                counter.at(documents=documents, tokens=tokens, bytes_done=reader.bytes_done)
                self._report_progress()
        with atomic_write(self._records.path(number, "keys.npy")) as file:
            np.save(file, np.concatenate([*keys, np.empty(0, np.uint64)]))
        record = TokenisedUnit(
            documents=documents,
            tokens=tokens,
            report=reader.report,
            damages=reader.damages,
            characters=reader.characters.entries(),
        )
        self._records.write(number, record)
        counter.at(documents=documents, tokens=tokens, bytes_done=self.units[number].bytes)

    def _write(self, number: int, worker: int, *, moved: float | None = None) -> None:
        reader, counter = self._reader(number), self._counters.begin(worker)
        tokenised = self._records.tokenised(number) if self._data.remove_duplicates else None
        batches = reader.batches() if tokenised is None else read_batches(self._records.path(number, "tokens"))
        repeated_here = None if tokenised is None else self._repeated[number]
        with UnitWriter(
            self._folder,
            self.units[number],
            self._data,
            self._ids,
            self._vocab_size,
            dropped=repeated_here,
            moved=moved,
            teacher=self._teacher,
        ) as writer:
            for batch in batches:
                writer.add(batch)
                counter.at(**writer.totals(), bytes_done=reader.bytes_done)
                self._report_progress()
        report = reader.report if tokenised is None else Counter(tokenised.report)
        if repeated_here is not None and repeated_here.any():
            report["duplicates removed"] += int(repeated_here.sum())
        characters = reader.characters if tokenised is None else CharacterAccount.of(tokenised.characters)
        characters.stage("selection").add(writer.selection)
        for split, keys in writer.contents.items():
            with atomic_write(self._records.path(number, f"{split}.npy")) as file:
                np.save(file, np.concatenate([*keys, np.empty(0, np.uint64)]))
        record = WrittenUnit(
            shards=writer.shards,
            counts=writer.counts,
            report=report,
            damages=reader.damages if tokenised is None else tokenised.damages,
            characters=characters.entries(),
            nearest=writer.nearest,
        )
        self._records.write(number, record)
        counter.at(**writer.totals(), bytes_done=self.units[number].bytes)
