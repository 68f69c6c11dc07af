"""Data recipes, and the identity of prepared data."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from packaging.utils import canonicalize_name
from pydantic import BaseModel, Field, model_validator

from kdcore import (
    ComponentConfig,
    ComponentSection,
    Corpus,
    DataError,
    FoundComponent,
    InputError,
    PathOrHubName,
    PluginError,
    Problem,
    ReaderEntry,
    build_component,
    find_component,
    load_tokenizer,
    sha256_of_file,
    tokenizer_fingerprint,
    without_paths,
)
from kdcore_preparation.pipeline.sequence_packing import Layout
from kdcore_preparation.readers.input_files import FileHashes

logger = logging.getLogger("kdcore")

PREPARATION_REVISION = 2
"""Increase it when preparation yields other data for the same recipe and text, or a default of `DataRecipe` changes."""

_TOKENIZERS = {"tokenizer", "teacher_tokenizer"}
_HASHING_THREADS = 8
# Their readers are known by bare names, so that a reader may move from one of these packages to the other.
_OWN_PACKAGES = ("kdcore", "kdcore-preparation")


class DataRecipe(ComponentConfig):
    """A data recipe under `task.data` or in a separate file: corpora, tokenizer, and how to cut text into sequences."""

    corpora: list[Annotated[dict[str, Any], ComponentSection("kdcore.corpora")]] = Field(
        min_length=1, description="Readers of raw text: mappings with the `name` of a corpus and its keys."
    )
    tokenizer: PathOrHubName = Field(
        description="Folder with tokenizer files, a SentencePiece .model file, or the name of a model on a hub."
    )
    sequence_length: int = Field(128, ge=8, le=2**16, description="Tokens per sequence, [CLS] and [SEP] included.")
    packing: Literal["document", "full"] = Field(
        "document",
        description="`document`: a sequence ends with its document; `full`: the next document follows after [SEP].",
    )
    sentences: bool | None = Field(
        None, description="Do not cut sentences that fit into a sequence. Default: true for `packing: full`."
    )
    short_sequences: float = Field(
        0.0, ge=0, le=1, description="Fraction of the sequences that are shortened, each to a random length."
    )
    remove_duplicates: bool = Field(
        False, description="Keep only the first of several documents with the same text, across all corpora."
    )
    held_out: float = Field(
        0.02, ge=0, le=0.5, description="Fraction of the documents held out for validation; 0 for none."
    )
    seed: int = Field(
        0, ge=0, lt=2**63, description="Seed for choosing the held-out documents and the short sequences."
    )

    teacher_tokenizer: PathOrHubName | None = Field(
        None,
        description="Tokenizer of the teacher if it is not the student's. Sequences then also contain the "
        "teacher's tokens of the same text, aligned by characters.",
    )
    teacher_sequence_length: int | None = Field(
        None,
        ge=8,
        lt=2**15,
        description="Teacher's tokens per sequence; longer sequences are split in half. Default: twice "
        "`sequence_length`, at most the limit of the teacher's tokenizer.",
    )
    max_unaligned: float = Field(
        0.02,
        ge=0,
        le=1,
        description="Maximum fraction of the characters (white space excluded) that only one of the two tokenizers "
        "covers with tokens.",
    )

    @model_validator(mode="after")
    def _of_a_teacher(self) -> DataRecipe:
        for name in ("max_unaligned", "teacher_sequence_length"):
            changed = getattr(self, name) != type(self).model_fields[name].default
            if changed and self.teacher_tokenizer is None:
                raise ValueError(f"`{name}` has no effect without `teacher_tokenizer`")
        return self

    def teacher_length(self, teacher_tokenizer: Any) -> int:
        """Return the teacher's tokens per sequence."""
        return self.teacher_sequence_length or min(2 * self.sequence_length, int(teacher_tokenizer.model_max_length))

    @property
    def layout(self) -> Layout:
        """The layout of sequences."""
        sentences = self.packing == "full" if self.sentences is None else self.sentences
        return Layout(self.sequence_length, self.packing, sentences, self.short_sequences)


@dataclass(frozen=True)
class Identity:
    """The identity of prepared data.

    Attributes:
        fingerprint: SHA-256 of everything that determines the data: the readers' registered names and revisions, the
            recipe's settings except paths and defaults, the input files' names and contents, the tokenizer, and the
            revision of the preparation.
        readers: name and revision of each corpus's reader.
        inputs: name, size and SHA-256 of every input file.
        tokenizer_fingerprint: fingerprint of the tokenizer.
        teacher_fingerprint: fingerprint of the teacher's tokenizer; None if both models have the same tokenizer.
    """

    fingerprint: str
    readers: list[ReaderEntry]
    inputs: list[dict[str, Any]]
    tokenizer_fingerprint: str
    teacher_fingerprint: str | None = None


def build_corpora(data: DataRecipe, *, where: str | Path = "data recipe", key: str = "") -> list[Corpus]:
    """Construct the readers of a recipe's `corpora`, and check the keys of each with the reader's `Config`.

    Args:
        data: the recipe; paths in it are absolute.
        where: the recipe's file, for messages.
        key: dotted path of the data recipe in that file.

    Raises:
        PluginError: a corpus does not exist.
        DataError: keys of an entry are wrong; all problems are listed.
    """
    problems: list[Problem] = []
    built: list[Corpus] = []
    for number, entry in enumerate(data.corpora):
        place = f"{key}.corpora.{number}" if key else f"corpora.{number}"
        try:
            built.append(build_component("kdcore.corpora", entry, where=where, key=place))
        except PluginError:
            raise
        except InputError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    return built


def weight_of(corpus: Corpus) -> float:
    """Return how many times each sequence of a corpus occurs in an epoch; 1 for readers without weights."""
    return float(getattr(corpus.config, "weight", 1.0))


class Tokenizers(NamedTuple):
    """The tokenizers of a data recipe; the teacher's tokenizer is None if both models use the same one."""

    student: Any
    teacher: Any | None


def load_tokenizers(data: DataRecipe) -> Tokenizers:
    """Load the tokenizers of a recipe.

    Raises:
        DataError: a tokenizer is missing or cannot be used.
    """
    student = load_tokenizer(data.tokenizer)
    if data.teacher_tokenizer is None:
        return Tokenizers(student, None)
    try:
        teacher = load_tokenizer(data.teacher_tokenizer)
    except DataError as error:
        raise DataError([replace(one, key="teacher_tokenizer") for one in error.problems]) from error
    if tokenizer_fingerprint(teacher) == tokenizer_fingerprint(student):
        logger.info("`teacher_tokenizer` is the tokenizer of the student: both models receive the same tokens")
        return Tokenizers(student, None)
    return Tokenizers(student, teacher)


def identify(data: DataRecipe, corpora: Sequence[Corpus], tokenizers: Tokenizers, hashes: FileHashes) -> Identity:
    """Compute the fingerprints of a recipe; read each input file once, unless `hashes` contains its hash."""
    files = [(number, name, path) for number, corpus in enumerate(corpora) for name, path in corpus.files().items()]
    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        digests = list(pool.map(hashes.sha256, [path for _, _, path in files]))
    inputs = [
        {"corpus": number, "name": name, "bytes": path.stat().st_size, "sha256": digest}
        for (number, name, path), digest in zip(files, digests, strict=True)
    ]
    fingerprint_of_tokenizer = tokenizer_fingerprint(tokenizers.student)
    names = [entry.get("name") for entry in data.corpora[: len(corpora)]]
    readers = [reader_entry(name, corpus) for name, corpus in zip_longest(names, corpora)]
    content = {
        "preparation": PREPARATION_REVISION,
        "corpora": [
            {
                "reader": reader.name,
                "revision": reader.revision,
                "source": reader.source,
                "settings": _stated_settings(corpus.config),
            }
            for reader, corpus in zip(readers, corpora, strict=True)
        ],
        "inputs": inputs,
        "tokenizer": fingerprint_of_tokenizer,
        "recipe": _stated_layout(data),
    }
    teacher = None if tokenizers.teacher is None else tokenizer_fingerprint(tokenizers.teacher)
    if teacher is not None:
        content["teacher"] = {"tokenizer": teacher, "sequence_length": data.teacher_length(tokenizers.teacher)}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    fingerprint = hashlib.sha256(canonical.encode()).hexdigest()
    return Identity(fingerprint, readers, inputs, fingerprint_of_tokenizer, teacher)


def reader_entry(stated: object, corpus: Corpus) -> ReaderEntry:
    """Identify a reader independently of where its class is defined.

    An installed reader is identified by its entry point, with its package (`package:name`) unless the package belongs
    to kdcore. A class registered at runtime is identified by its name and the content of its source file, because
    several files may register the same name.

    Args:
        stated: the name in the data recipe.
        corpus: the reader; it may differ from the one registered under that name, because callers of `prepare` may pass
            their own.
    """
    cls = type(corpus)
    found = _registered(stated)
    if found is None or found.cls is not cls:
        return ReaderEntry(name=cls.__qualname__, revision=corpus.revision, source=_source_of(cls))
    if found.package is None:
        return ReaderEntry(name=found.name, revision=corpus.revision, source=_source_of(cls))
    package = canonicalize_name(found.package)
    name = found.name if package in _OWN_PACKAGES else f"{package}:{found.name}"
    return ReaderEntry(name=name, revision=corpus.revision)


def _registered(name: object) -> FoundComponent | None:
    try:
        return find_component("kdcore.corpora", name) if isinstance(name, str) else None
    except PluginError:
        return None


def stated_keys(data: DataRecipe) -> dict[str, Any]:
    """Return the keys set in a data recipe, except `corpora` and tokenizers."""
    return data.model_dump(mode="json", exclude={"corpora"} | _TOKENIZERS, exclude_unset=True)


def _stated_settings(config: BaseModel) -> dict[str, Any]:
    """Return the settings of a reader that differ from their defaults; a default that is set explicitly is left out."""
    dumped = config.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_defaults=True)
    return without_paths(type(config), dumped)


def _stated_layout(data: DataRecipe) -> dict[str, Any]:
    """Return the keys of a data recipe, except `corpora` and tokenizers, that differ from their defaults."""
    excluded = {"corpora", "teacher_sequence_length", "max_unaligned"} | _TOKENIZERS
    stated = data.model_dump(mode="json", exclude=excluded, exclude_unset=True, exclude_defaults=True)
    if data.layout.sentences == (data.packing == "full"):
        stated.pop("sentences", None)
    return stated


def _source_of(cls: type) -> str:
    """Hash the file that defines a class (SHA-256); empty for code without a file, such as code in a notebook."""
    try:
        file = inspect.getsourcefile(cls)
        return "" if file is None else sha256_of_file(Path(file))
    except (TypeError, OSError):
        return ""
