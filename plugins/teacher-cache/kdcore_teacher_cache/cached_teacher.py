"""A teacher whose signals are read from a cache: `teacher: {cache: FOLDER}`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from kdcore import (
    AttentionTap,
    Batch,
    Block,
    ComponentConfig,
    DataError,
    Encoder,
    FactoredLogits,
    Head,
    InputError,
    Model,
    ModelInfo,
    PathString,
    Positions,
    Problem,
    RecipeTeacher,
    Role,
    SignalRequest,
    Signals,
    Split,
    Task,
    find_component,
    sha256_of_file,
)
from kdcore_teacher_cache.cache_manifest import DESCRIPTION, MANIFEST, CacheContents, teacher_section
from kdcore_teacher_cache.cache_reader import CacheReader
from kdcore_teacher_cache.factored_weights import read_factored_weights
from kdcore_teacher_cache.signal_columns import block_of, names_of, pattern_of, refuse_biased_scores
from kdcore_teacher_cache.stored_values import decode

logger = logging.getLogger("kdcore")

AUTO = "auto"
"""Value of `cache` that computes the signals on first use."""

_MOST_AHEAD = 2**29
"""Maximum number of bytes to read ahead."""


class CachedTeacher(Model):
    """Read the stored signals of a teacher, whose weights are neither loaded nor needed.

    The recipe may also contain the teacher's own keys; its files are then compared with those of the cached teacher.
    """

    class Config(ComponentConfig):
        """Keys of a cached teacher; `model` is filled in with the other keys of the section."""

        cache: Literal["auto"] | PathString = Field(description="Folder written by `kdcore teacher cache`, or `auto`.")
        model: dict[str, Any] | None = Field(None, description="The teacher's section, if the recipe has one.")

    config: Config

    def __init__(self, config: Config, role: Role, teacher: Model | None) -> None:
        super().__init__(config, role, teacher)
        if role == "student":
            raise InputError("a student cannot be read from a cache", key="student.name")
        self._automatic = config.cache == AUTO
        if self._automatic and (teacher is None or config.model is None):
            what, hint = "`cache: auto` requires the keys of the teacher", "add `path: FOLDER_OR_HUB_NAME`"
            raise InputError(what, key="teacher.cache", hint=hint)
        self.readers = [] if self._automatic else [CacheReader(Path(config.cache))]
        self._stated = teacher
        self._task: Task | None = None
        self._requests: Mapping[Split, SignalRequest] = {}
        self._model = self._description() if teacher is None else teacher
        self.info = self._model.info

    @property
    def _contents(self) -> CacheContents:
        return self.readers[0].contents

    def _description(self) -> Model:
        """Construct the cached model from its configuration in the cache."""
        section = dict(self._contents.teacher.section)
        cls: type[Model] = find_component("kdcore.models", section.pop("name")).cls
        keys = {**section, "path": str(self.readers[0].folder / DESCRIPTION)}
        return cls(cls.Config.model_validate(keys), "teacher", None)

    @property
    def _stated_name(self) -> str:
        assert self.config.model is not None
        return str(self.config.model["name"])

    @property
    def described(self) -> Model:
        """Return the model whose signals are stored."""
        return self._model

    @property
    def source(self) -> str | None:
        """Return the folder or hub name of the weights, from the recipe or, if it has none, from the manifest."""
        return self.readers[0].manifest.source if self._stated is None else self._stated.source

    def vocabulary(self) -> Mapping[str, int] | None:
        """Return the mapping of tokens to ids of the cached model."""
        return self._model.vocabulary()

    def tokenizer(self) -> Any | None:
        """Return the tokenizer of the cached model."""
        return self._model.tokenizer()

    def find_heads(self, heads: Sequence[Head]) -> None:
        """Add the task's heads whose outputs are stored."""
        if self._stated is not None:
            self._stated.find_heads(heads)
            self.info = self._stated.info
            return
        stored = {column.name for rows in self._contents.splits.values() for column in rows.columns}
        known = {head.name for head in self.info.heads}
        found = [head for head in heads if f"head.{head.name}" in stored and head.name not in known]
        self.info = replace(self.info, heads=(*self.info.heads, *found))

    def file_hashes(self) -> dict[str, str]:
        """Return the hashes of the cached teacher's files and of the manifest, which lists the hashes of row files."""
        if self._automatic:
            assert self._stated is not None
            return self._stated.file_hashes()
        return {**self._contents.teacher.files, "cache": sha256_of_file(self.readers[0].folder / MANIFEST)}

    def check_task(self, task: Task, requests: Mapping[Split, SignalRequest]) -> None:
        """Reject a teacher, data, tokenizer or masks that differ from the cache, and signals that the cache lacks.

        Raises:
            DataError: the cache does not match; all differences are listed.
        """
        if self._automatic:
            self._task, self._requests = task, requests
            return
        folder, contents = str(self.readers[0].folder), self._contents
        problems = []
        if self._stated is not None:
            now, before = self._stated.file_hashes(), contents.teacher.files
            problems += [
                Problem(
                    f"the teacher's file {name} differs (found {_short(now, name)}, expected {_short(before, name)})"
                )
                for name in sorted({*now, *before})
                if now.get(name) != before.get(name)
            ]
            own, cached = teacher_section(self._stated_name, self._stated), contents.teacher.section
            problems += [
                Problem(
                    f"the teacher's key `{key}` differs (found {own.get(key, 'none')}, expected "
                    f"{cached.get(key, 'none')})"
                )
                for key in sorted({*own, *cached})
                if own.get(key) != cached.get(key)
            ]
        identity = dict(task.batch_identity)
        for name in sorted({*identity, *contents.task}):
            if identity.get(name) != contents.task.get(name):
                found, expected = (one.get(name, "nothing") for one in (identity, contents.task))
                problems.append(Problem(f"the {name} of the samples differ (found {found}, expected {expected})"))
        problems += self._missing_rows(task, requests)
        if problems:
            hint = "undo the difference, or compute another cache with `kdcore teacher cache RECIPE FOLDER`"
            raise DataError([Problem("the cache does not match the recipe", folder, hint=hint), *problems])

    def _missing_rows(self, task: Task, requests: Mapping[Split, SignalRequest]) -> list[Problem]:
        problems = []
        for split, rows in self._contents.splits.items():
            if (found := task.num_samples(split)) != rows.samples:
                problems.append(Problem(f"the split `{split}` has {found} samples (expected {rows.samples})"))
            if split == "train" and task.distinct_epochs not in (None, rows.copies):
                what = f"masks repeat after {task.distinct_epochs} epochs (expected {rows.copies})"
                problems.append(Problem(what))
        for asked, request in requests.items():
            entry = next((rows for name, rows in self._contents.splits.items() if name == asked), None)
            stored = [] if entry is None else [column.name for column in entry.columns]
            missing = sorted(set(names_of(request)) - set(stored))
            if missing and task.num_samples(asked):
                what = f"the losses read signals that are not stored for `{asked}`: {', '.join(missing)}"
                problems.append(Problem(what, allowed=stored))
        return problems

    def load_teacher(self, request: SignalRequest) -> CachedEncoder:
        """Open the cache for reading; signals missing from an automatic cache are computed first."""
        if self._automatic and not self.readers:
            self.readers = self._automatic_readers()
        for reader in self.readers:
            refuse_biased_scores(reader.contents.attention, names_of(request))
        folders = ", ".join(str(reader.folder) for reader in self.readers)
        precisions = {reader.contents.teacher.precision for reader in self.readers}
        logger.info(f"the teacher's signals are read from {folders}; they were computed in {', '.join(precisions)}")
        columns = [one for reader in self.readers for rows in reader.contents.splits.values() for one in rows.columns]
        if any(column.form == "random_sampling" for column in columns):
            logger.info("the stored predictions are samples; losses on them are unbiased only at temperature 1")
        return CachedEncoder(self.info, self.readers)

    def _automatic_readers(self) -> list[CacheReader]:
        from kdcore_teacher_cache.automatic_cache import automatic_folder, automatic_readers

        assert self._task is not None, "`check_task` is called first"
        assert self._stated is not None
        teacher = RecipeTeacher("teacher", self._stated_name, self._stated, self._requests)
        return automatic_readers(automatic_folder(self._task, teacher), self._task, teacher)

    def build_student(self, request: SignalRequest) -> Encoder:
        """Raise an error, because a cache cannot be a student."""
        raise InputError("a student cannot be read from a cache", key="student.name")


def _short(hashes: Mapping[str, str], name: str) -> str:
    return f"sha256 {hashes[name][:12]}..." if name in hashes else "none"


class CachedEncoder(Encoder):
    """Look up the signals of a batch by its split, samples and epochs."""

    def __init__(self, info: ModelInfo, readers: Sequence[CacheReader]) -> None:
        super().__init__()
        self.info = info
        self._readers = readers
        self.keeps_precision = any("dtype" in reader.contents.teacher.section for reader in readers)
        self._attention = {place: entry for one in readers for place, entry in one.contents.attention.items()}
        self._factored: tuple[Tensor, Tensor | None] | None = None
        for reader in readers:
            if _is_factored(reader.contents):
                self._factored = read_factored_weights(reader.folder)
        self._wanted: dict[str | None, list[str]] = {}
        self._ahead: dict[tuple[Any, ...], list[dict[str, Tensor]]] = {}
        self._lock = Lock()

    def to(self, *arguments: Any, **options: Any) -> Self:
        """Warn if signals have lower precision than training; a live teacher would be cast to training precision."""
        target = arguments[0] if arguments else None
        if isinstance(target, torch.dtype):
            for reader in self._readers:
                _compare_precision(reader, target)
        return super().to(*arguments, **options)

    def prefetch(self, batch: Batch) -> None:
        """Read the columns that were requested for the last batch of the split, up to a memory limit."""
        names = self._wanted.get(batch.split, [])
        if not names or self._is_full():
            return
        read = [reader.read(batch, names) for reader in self._readers]
        with self._lock:
            self._ahead[(*_key(batch), *names)] = read

    def forward(self, batch: Batch, request: SignalRequest) -> Signals:
        """Return the stored signals on the batch's device."""
        names = self._wanted[batch.split] = names_of(request)
        with self._lock:
            found = self._ahead.pop((*_key(batch), *names), None)
        if found is None:
            if self._is_full():  # the oldest entry may belong to a batch that was drawn but is never read
                with self._lock:
                    self._ahead.pop(next(iter(self._ahead)))
            found = [reader.read(batch, names) for reader in self._readers]
        device = batch.input_ids.device
        rows = {}
        for reader, stored in zip(self._readers, found, strict=True):
            arrays = {key: tensor.to(device, non_blocking=True) for key, tensor in stored.items()}
            for column in reader.columns(batch, names):
                rows[column.name] = decode(column, arrays, reader.contents.values)
        if lacking := [name for name in names if name not in rows]:
            what = f"holds no {', '.join(lacking)} of the split `{batch.split}`"
            raise DataError(what, where=str(self._readers[0].folder))
        return self._signals(batch, rows)

    def _is_full(self) -> bool:
        with self._lock:
            tensors = (tensor for found in self._ahead.values() for one in found for tensor in one.values())
            return sum(tensor.nbytes for tensor in tensors) >= _MOST_AHEAD

    def _signals(self, batch: Batch, rows: Mapping[str, Tensor]) -> CachedSignals:
        hidden: dict[Block, Tensor] = {}
        attention: dict[int, dict[str, Tensor]] = {}
        logits: dict[Positions, Tensor] = {}
        factored: dict[Positions, FactoredLogits] = {}
        heads: dict[str, Tensor] = {}
        for name, values in rows.items():
            kind, _, place = name.partition(".")
            positions: Positions = "masked" if place == "masked" else "all"
            if kind == "hidden":
                hidden[block_of(place)] = values
            elif kind == "logits":
                logits[positions] = values
            elif kind == "factored":
                assert self._factored is not None
                weight, bias = (None if one is None else one.to(values.device) for one in self._factored)
                assert weight is not None
                factored[positions] = FactoredLogits(values.to(weight.dtype), weight, bias)
            elif kind == "head":
                heads[place] = values
            else:
                attention.setdefault(int(place), {})[kind] = values
        taps = {block: self._tap(block, parts) for block, parts in attention.items()}
        return CachedSignals(batch, hidden, taps, logits, factored=factored, heads=heads)

    def _tap(self, block: int, parts: Mapping[str, Tensor]) -> AttentionTap:
        entry = self._attention[str(block)]
        absent = torch.empty(0)
        query, key, value = (parts.get(part, absent) for part in ("query", "key", "value"))
        return AttentionTap(query, key, value, None, entry.scale, pattern_of(entry), packed=True)

    def compile_parts(self) -> None:
        """Do nothing: there is nothing to compile."""

    def export(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Raise an error, because a cache has no weights."""
        raise InputError("a cached teacher has no weights to export")


class CachedSignals(Signals):
    """Signals whose hidden states contain only real tokens: (N, d)."""

    def __init__(self, batch: Batch, states: Mapping[Block, Tensor], *signals: Any, **further: Any) -> None:
        super().__init__(batch, {}, *signals, **further)
        self._states = states
        self._lengths = batch.lengths

    def tokens(self, block: Block) -> Tensor:
        """Return the hidden states of the real tokens after `block`: (N, d)."""
        return self._states[block]

    def first(self, block: Block) -> Tensor:
        """Return the hidden states of each sequence's first token after `block`: (B, d)."""
        starts = torch.from_numpy(self._lengths.cumsum() - self._lengths)
        return self._states[block].index_select(0, starts.to(self._states[block].device))


def _compare_precision(reader: CacheReader, training: torch.dtype) -> None:
    """Warn if the stored signals are less precise than those of a live teacher in training precision."""
    teacher = reader.contents.teacher
    computed: torch.dtype = getattr(torch, teacher.precision)
    products = teacher.tf32 and computed == training == torch.float32
    products = products and torch.get_float32_matmul_precision() == "highest"
    if products or torch.finfo(computed).eps > torch.finfo(training).eps:
        found = f"{teacher.precision}{' with TF32' if teacher.tf32 else ''}"
        expected = str(training).removeprefix("torch.")
        logger.warning(
            f"{reader.folder}: the signals were computed in lower precision than this run uses (found {found}, "
            f"expected {expected}{' without TF32' if products else ''}); losses differ from those of the live teacher. "
            "Hint: compute the cache again with training.precision and training.tf32 of this recipe"
        )


def _is_factored(contents: CacheContents) -> bool:
    return any(column.name.startswith("factored.") for rows in contents.splits.values() for column in rows.columns)


def _key(batch: Batch) -> tuple[Any, ...]:
    assert batch.samples is not None
    assert batch.epochs is not None
    return batch.split, batch.samples.tobytes(), batch.epochs.tobytes()
