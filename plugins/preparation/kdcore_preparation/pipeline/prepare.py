"""Prepare a data recipe into a folder, which is written atomically."""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any

from kdcore import (
    Alignment,
    Corpus,
    DataError,
    InfrastructureError,
    InputError,
    Manifest,
    PreparedData,
    PreparedSplit,
    Problem,
    SpecialTokens,
    SplitEntry,
    TeacherRows,
    commit_directory,
    lock_of,
    locked,
    row_dtype,
    special_ids,
    tokenizer_files,
    vocabulary_size,
    write_json,
    write_manifest,
)
from kdcore_preparation.inspection import problems
from kdcore_preparation.pipeline.data_recipe import (
    PREPARATION_REVISION,
    DataRecipe,
    Identity,
    build_corpora,
    identify,
    load_tokenizers,
    stated_keys,
    weight_of,
)
from kdcore_preparation.pipeline.duplicates import count_repeated
from kdcore_preparation.pipeline.held_out import point_to_move, refuse_single_content
from kdcore_preparation.pipeline.preparation_progress import PreparationProgress, ReportProgress
from kdcore_preparation.pipeline.unit_records import WrittenUnit
from kdcore_preparation.pipeline.unit_writer import HALF_EMPTY
from kdcore_preparation.pipeline.work import UNITS, Work
from kdcore_preparation.readers.character_account import CharacterAccount
from kdcore_preparation.readers.file_corpus import FileCorpus
from kdcore_preparation.readers.file_listing import InputFiles
from kdcore_preparation.readers.input_files import FileHashes
from kdcore_preparation.readers.named_counts import summarised

logger = logging.getLogger("kdcore")

__all__ = [
    "DataRecipe",
    "PreparationProgress",
    "ReportProgress",
    "build_corpora",
    "find_or_prepare",
    "folder_in",
    "prepare",
    "prepare_share",
    "refuse_damaged",
]

_PLAN = "plan.json"
_ASSEMBLING = "assembling"  # exists once the parts of an array have prepared all units
_FOLDER_NAME = 32  # characters of a fingerprint
_TAKEN = "another process is preparing this data"
_REPAIR = "repair the files, or prepare the data with `kdcore prepare --keep-going` and name its folder as `task.data`"


def find(data: DataRecipe, cache: str | Path) -> PreparedData | None:
    """Open the prepared data of a recipe in the cache folder; None if it has not been prepared there.

    Args:
        data: the recipe; paths in it are absolute.
        cache: the folder.

    Raises:
        DataError: the raw text, the tokenizer or a folder in the cache cannot be used, or text is damaged.
    """
    preparation, folder = _in_cache(data, Path(cache), None, None)
    if not (folder / PreparedData.MANIFEST).is_file():
        return None
    return refuse_damaged(preparation.whole(folder, wait=True), _REPAIR)


def find_or_prepare(
    data: DataRecipe, cache: str | Path, *, progress: ReportProgress | None = None, workers: int | None = None
) -> PreparedData:
    """Open the prepared data of a recipe in the cache folder; prepare it there first if needed.

    If several processes call this at the same time, one prepares the data and the others wait.

    Args:
        data: the recipe; paths in it are absolute.
        cache: the folder.
        progress: called regularly with the progress.
        workers: number of processes; default: one per core.

    Raises:
        DataError: the raw text, the tokenizer or a folder in the cache cannot be used, or text is damaged.
        InfrastructureError: the disk is full, or the cache cannot be written.
    """
    preparation, folder = _in_cache(data, Path(cache), workers, progress)
    return refuse_damaged(preparation.whole(folder, wait=True), _REPAIR)


def folder_in(cache: Path, fingerprint: str) -> Path:
    """Return the cache folder of the data with a fingerprint."""
    return cache / fingerprint[:_FOLDER_NAME]


def prepare(
    data: DataRecipe,
    folder: str | Path,
    *,
    progress: ReportProgress | None = None,
    corpora: Sequence[Corpus] | None = None,
    workers: int | None = None,
    keep_going: bool = False,
    wait: bool = False,
) -> PreparedData:
    """Prepare a recipe's data in a given folder. A folder that already holds this data is left unchanged.

    An interrupted preparation is resumed. The result depends only on the recipe and its files, not on interruptions or
    the number of workers.

    Args:
        data: the recipe; paths in it are absolute.
        folder: folder to write; it appears when it is complete.
        progress: called regularly with the progress.
        corpora: readers to use instead of the readers in the recipe.
        workers: number of processes; default: one per core.
        keep_going: whether to accept damaged text.
        wait: whether to wait for another process that is preparing the same folder, instead of raising an error.

    Raises:
        DataError: the raw text or the tokenizer cannot be used, the folder holds different content, or another process
            is preparing it. If text is damaged, the error is raised after everything readable has been prepared.
        InfrastructureError: the disk is full, or a worker process was killed.
    """
    corpora = build_corpora(data) if corpora is None else corpora
    prepared = _PreparationRun(data, corpora, FileHashes(None), workers, progress).whole(Path(folder), wait=wait)
    return prepared if keep_going else refuse_damaged(prepared, "`--keep-going` accepts the damage")


def prepare_share(
    data: DataRecipe,
    folder: str | Path,
    share: int,
    shares: int,
    *,
    progress: ReportProgress | None = None,
    corpora: Sequence[Corpus] | None = None,
    workers: int | None = None,
) -> tuple[PreparedData | None, int]:
    """Prepare one of several parts of the data in parallel with the others, possibly on machines that share the folder.

    The call that finishes last assembles the folder. If a call never finishes, `prepare` completes the rest.

    Args:
        data: the recipe, the same for all parts.
        folder: folder to write, the same for all parts.
        share: number of this part, from 1 to `shares`.
        shares: number of parts.
        progress: called regularly with the progress of this part.
        corpora: readers to use instead of the readers in the recipe.
        workers: number of processes; default: one per core.

    Returns:
        The data if this was the last part, otherwise None; and the number of units left for other parts. Damaged text
        does not raise an error here; see `refuse_damaged`.

    Raises:
        DataError: as for `prepare`, or another process is preparing the same part.
    """
    corpora = build_corpora(data) if corpora is None else corpora
    preparation = _PreparationRun(data, corpora, FileHashes(None), workers, progress)
    return preparation.share(Path(folder), share, shares)


def refuse_damaged(prepared: PreparedData, hint: str) -> PreparedData:
    """Raise a DataError that lists the damaged text, if any; otherwise return the data.

    Args:
        prepared: the data.
        hint: hint of the error.
    """
    damages = prepared.manifest.damages
    if damages:
        kept = f"everything readable is prepared, but {len(damages)} pieces of text could not be read completely"
        raise DataError([*(damage.problem() for damage in damages), Problem(kept, str(prepared.folder), hint=hint)])
    return prepared


def _in_cache(
    data: DataRecipe, cache: Path, workers: int | None, progress: ReportProgress | None
) -> tuple[_PreparationRun, Path]:
    """Load the components of a recipe, and return its folder in the cache."""
    hashes = FileHashes(cache)
    preparation = _PreparationRun(data, build_corpora(data), hashes, workers, progress)
    hashes.save()
    return preparation, folder_in(cache, preparation.identity.fingerprint)


class _PreparationRun:
    """A recipe with loaded readers and tokenizer, to be prepared in a folder."""

    def __init__(
        self,
        data: DataRecipe,
        corpora: Sequence[Corpus],
        hashes: FileHashes,
        workers: int | None,
        progress: ReportProgress | None,
    ) -> None:
        self.data = data
        self.corpora = corpora
        self.tokenizer, self.teacher_tokenizer = tokenizers = load_tokenizers(data)
        self.vocab_size = vocabulary_size(self.tokenizer)
        self.identity: Identity = identify(data, corpora, tokenizers, hashes)
        self.workers = workers or len(os.sched_getaffinity(0))
        self.progress = progress

    def whole(self, folder: Path, *, wait: bool) -> PreparedData:
        """Prepare everything that is missing."""
        folder = Path(os.path.abspath(folder))
        if not (folder / PreparedData.MANIFEST).is_file():
            try:
                with locked(lock_of(folder), wait=wait, taken=_TAKEN) as lock:
                    self._make(folder, lock)
            except OSError as error:
                self._blame_the_machine(folder, error)
        return self._open(folder)

    def share(self, folder: Path, share: int, shares: int) -> tuple[PreparedData | None, int]:
        """Prepare the units of one part, and assemble the folder if no units are left."""
        folder = Path(os.path.abspath(folder))
        if (folder / PreparedData.MANIFEST).is_file():
            return self._open(folder), 0
        try:
            with ExitStack() as stack:
                try:
                    lock = stack.enter_context(locked(lock_of(folder), shared=True, wait=False, taken=_TAKEN))
                except DataError:
                    if not _is_being_assembled(folder):
                        raise
                    return self.whole(folder, wait=True), 0
                staging = self._open_staging(folder, may_clear=False)
                own_lock = staging / f"share-{share}-of-{shares}.lock"
                with locked(own_lock, wait=False, taken=f"another process is preparing part {share} of {shares}"):
                    work = self._work(staging, lock)
                    work.run(range(share - 1, len(work.units), shares))
                    left = work.left()
                if not left:
                    (staging / _ASSEMBLING).touch()
        except OSError as error:
            self._blame_the_machine(folder, error)
            left = 0
        return (None, left) if left else (self.whole(folder, wait=True), 0)

    def _make(self, folder: Path, lock: int) -> None:
        if (folder / PreparedData.MANIFEST).is_file():
            return
        staging = self._open_staging(folder, may_clear=True)
        if not (staging / PreparedData.MANIFEST).is_file():
            try:
                work = self._work(staging, lock)
                records = self._finished_records(work)
            except InputError:
                shutil.rmtree(staging, ignore_errors=True)  # a restart would raise the same error
                raise
            self._assemble(staging, work, records)
        _remove_all_but_the_result(staging)
        commit_directory(staging, folder, finished=PreparedData.MANIFEST)

    def _open_staging(self, folder: Path, *, may_clear: bool) -> Path:
        """Open the folder of an unfinished preparation of the same data, or create a new one."""
        _refuse_other_content(folder)
        staging = staging_of(folder)
        plan = staging / _PLAN
        if plan.is_file():
            if plan.read_text(encoding="utf-8").strip().strip('"') == self.identity.fingerprint:
                return staging
            if not may_clear:
                raise DataError(
                    "contains an unfinished preparation of other data", where=str(staging), hint="remove it first"
                )
        if may_clear:
            shutil.rmtree(staging, ignore_errors=True)
        (staging / UNITS).mkdir(parents=True, exist_ok=True)
        write_json(plan, self.identity.fingerprint)
        return staging

    def _work(self, staging: Path, lock: int) -> Work:
        return Work(
            self.data,
            self.corpora,
            self.tokenizer,
            self.vocab_size,
            self.teacher_tokenizer,
            staging,
            workers=self.workers,
            progress=self.progress,
            lock=lock,
        )

    def _finished_records(self, work: Work) -> list[WrittenUnit]:
        """Finish all units, ensure that each split has at least one document, and return the records of the units."""
        records = work.finish()
        try:
            point = point_to_move(_documents(records), [record.nearest for record in records], self.data.held_out)
            if point is not None:
                for number, record in enumerate(records):
                    if record.nearest == point:
                        records[number] = work.move(number, point)
                refuse_single_content(_documents(records))
        except DataError as error:
            damages = [damage.problem() for record in records for damage in record.damages]
            raise DataError([*damages, *error.problems]) from error
        return records

    def _assemble(self, staging: Path, work: Work, records: list[WrittenUnit]) -> None:
        """Write everything except the rows.

        Raises:
            DataError: too few characters are aligned. The rows are kept, because they do not depend on the bound.
        """
        if self.teacher_tokenizer is not None:
            self._check_alignment(work, records)
        self.tokenizer.save_pretrained(staging / PreparedData.TOKENIZER)
        if self.teacher_tokenizer is not None:
            self.teacher_tokenizer.save_pretrained(staging / PreparedData.TEACHER_TOKENIZER)
        manifest = self._manifest(work, records)
        write_manifest(staging, manifest.model_copy(update={"tokenizer_files": tokenizer_files(staging)}))

    def _check_alignment(self, work: Work, records: list[WrittenUnit]) -> None:
        """Log what fraction of the characters is aligned between the two tokenizers.

        Raises:
            DataError: fewer characters are aligned than the recipe requires.
        """
        characters, lost, split = (
            sum(record.total(name) for record in records) for name in ("characters", "unaligned", "split_sequences")
        )
        fraction, bound = lost / max(1, characters), self.data.max_unaligned
        logger.info(
            f"alignment with the teacher's tokens: {lost:,} of {characters:,} characters ({fraction:.3%}) are not "
            f"aligned; {split:,} sequences were split to fit the teacher"
        )
        if fraction <= bound:
            return
        worst = max(range(len(records)), key=lambda number: records[number].total("unaligned"))
        unit = work.units[worst]
        raise DataError(
            f"corpora.{unit.corpus}: too many characters are not aligned between the tokens of `tokenizer` and "
            f"`teacher_tokenizer` (found {fraction:.2%} of {characters:,}, expected at most {bound:.2%}), most of them "
            f"in the part {unit.parts[0].name if unit.parts else 'without a name'}",
            key="max_unaligned",
            hint="one of the tokenizers drops characters that the other one keeps: clean the text, choose another "
            "tokenizer for the student, or raise max_unaligned",
        )

    def _manifest(self, work: Work, records: list[WrittenUnit]) -> Manifest:
        reports: list[Counter[str]] = [Counter() for _ in self.corpora]
        accounts = [CharacterAccount() for _ in self.corpora]
        for unit, record in zip(work.units, records, strict=True):
            reports[unit.corpus].update(record.report)
            accounts[unit.corpus].add(CharacterAccount.of(record.characters))
        for report, corpus in zip(reports, self.corpora, strict=True):
            if not isinstance(corpus, FileCorpus) and isinstance(files := corpus.files(), InputFiles):
                report.update(files.left_out)  # built-in readers count these entries themselves
        splits: dict[PreparedSplit, SplitEntry] = {}
        short: dict[PreparedSplit, float] = {}
        for split in PreparedData.SPLITS:
            counts: Counter[str] = Counter()
            for record in records:
                counts.update(record.counts[split])
            short[split] = counts.pop(HALF_EMPTY, 0) / max(1, counts["sequences"])
            if self.data.layout.sentences:
                counts.setdefault("sentences", 0)
            alignment = None
            if self.teacher_tokenizer is not None:
                alignment = Alignment(**{name: counts.pop(name, 0) for name in Alignment.model_fields})
            if "text_characters" in counts:
                counts["repeated_documents"] = count_repeated(work.contents(split))
            shards = [shard for record in records for shard in record.shards[split]]
            splits[split] = SplitEntry(**counts, shards=shards, alignment=alignment)
        manifest = Manifest(
            format_version=PreparedData.FORMAT_VERSION,
            kdcore_version=metadata.version("kdcore"),
            fingerprint=self.identity.fingerprint,
            recipe=self.data.model_dump(mode="json"),
            inputs=self.identity.inputs,
            tokenizer_fingerprint=self.identity.tokenizer_fingerprint,
            vocab_size=self.vocab_size,
            special_tokens=_special_tokens(self.tokenizer),
            sequence_length=self.data.sequence_length,
            dtype=row_dtype(self.vocab_size),
            reports=[summarised(report) for report in reports],
            splits=splits,
            weights=[weight_of(corpus) for corpus in self.corpora],
            damages=[damage for record in records for damage in record.damages],
            stated=sorted(stated_keys(self.data)),
            readers=self.identity.readers,
            preparation=PREPARATION_REVISION,
            teacher=self._teacher_rows(),
            characters=[
                {name: entry for name, entry in account.entries().items() if entry.received}  # not of tokens
                for account in accounts
            ],
        )
        return manifest.model_copy(update={"problems": list(problems(manifest, short))})

    def _teacher_rows(self) -> TeacherRows | None:
        tokenizer, fingerprint = self.teacher_tokenizer, self.identity.teacher_fingerprint
        if tokenizer is None or fingerprint is None:
            return None
        size = vocabulary_size(tokenizer)
        return TeacherRows(
            tokenizer_fingerprint=fingerprint,
            vocab_size=size,
            special_tokens=_special_tokens(tokenizer),
            sequence_length=self.data.teacher_length(tokenizer),
            dtype=row_dtype(size),
        )

    def _open(self, folder: Path) -> PreparedData:
        prepared = PreparedData.open(folder)
        if prepared.fingerprint != self.identity.fingerprint:
            raise DataError(
                "the folder already contains other prepared data",
                where=str(folder),
                hint="choose another folder, or remove this one first",
            )
        return prepared

    def _blame_the_machine(self, folder: Path, error: OSError) -> None:
        """Raise an InfrastructureError for a full disk or read-only folder, unless another process has finished."""
        if not (folder / PreparedData.MANIFEST).is_file():
            hint = "finished pieces are kept: run the same command again to resume"
            raise InfrastructureError(f"{folder}: the data cannot be prepared: {error}\n  {hint}") from error


def _documents(records: Sequence[WrittenUnit]) -> dict[PreparedSplit, int]:
    return {split: sum(record.counts[split].get("documents", 0) for record in records) for split in PreparedData.SPLITS}


def _special_tokens(tokenizer: Any) -> SpecialTokens:
    ids = special_ids(tokenizer)
    return SpecialTokens(pad=ids.pad, cls=ids.cls, sep=ids.sep, mask=ids.mask, unk=ids.unk, all=list(ids.all))


def staging_of(folder: Path) -> Path:
    """Return the folder of an unfinished preparation; it is kept after an interruption, so that work can be resumed."""
    return folder.with_name(f".{folder.name}.preparing")


def _is_being_assembled(folder: Path) -> bool:
    """Return whether all units are prepared, so that the process that holds the lock will finish soon."""
    staging = staging_of(folder)
    # In the order in which they appear, because the process that holds the lock removes earlier ones.
    steps = (staging / _ASSEMBLING, staging / PreparedData.MANIFEST, folder / PreparedData.MANIFEST)
    return any(step.is_file() for step in steps)


def _refuse_other_content(folder: Path) -> None:
    if folder.exists() and (
        not folder.is_dir() or (any(folder.iterdir()) and not (folder / PreparedData.MANIFEST).is_file())
    ):
        raise DataError(
            "is neither empty nor a folder of prepared data",
            where=str(folder),
            hint="choose another folder",
        )


def _remove_all_but_the_result(staging: Path) -> None:
    manifest = PreparedData.open(staging).manifest
    kept = {PreparedData.MANIFEST, PreparedData.TOKENIZER, PreparedData.TEACHER_TOKENIZER}
    kept.update(shard.file for split in manifest.splits.values() for shard in split.shards)
    for path in staging.iterdir():
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
