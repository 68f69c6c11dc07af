"""From a data recipe to a folder of prepared data: read, tokenise, pack, split, write; all of it or nothing."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from kdcore import registry
from kdcore.data.base import Corpus, Document
from kdcore.data.encoding import Encoder
from kdcore.data.files import FileHashes
from kdcore.data.packing import Layout, Packer
from kdcore.data.shards import (
    FORMAT_VERSION,
    MANIFEST,
    TOKENIZER_FOLDER,
    Manifest,
    PreparedData,
    ShardWriter,
    SpecialTokens,
    Split,
    SplitEntry,
    row_dtype,
    write_manifest,
)
from kdcore.data.splitting import Splitter
from kdcore.data.staging import staged_folder
from kdcore.data.tokenizers import load_tokenizer, special_ids, tokenizer_fingerprint
from kdcore.errors import DataError, MachineError, Problem
from kdcore.recipe.checking import check, dotted
from kdcore.recipe.fields import Option, options
from kdcore.recipe.schema import ComponentConfig, ComponentSection, PathOrHubName
from kdcore.recipe.yaml import Origin


class DataRecipe(ComponentConfig):
    """What text, cut into what. Stands under `task.data` of a recipe or in a file of its own."""

    corpora: list[Annotated[dict[str, Any], ComponentSection("kdcore.corpora")]] = Field(
        min_length=1, description="Readers of raw text: maps with the `name` of a corpus and its own keys."
    )
    tokenizer: PathOrHubName = Field(
        description="Folder with tokenizer files, a SentencePiece .model file, or the name of a model on a hub."
    )
    sequence_length: int = Field(128, ge=8, description="Tokens a sequence, [CLS] and [SEP] included.")
    held_out: float = Field(0.02, ge=0, le=0.5, description="Share of the documents kept for validation; 0 keeps none.")
    seed: int = Field(0, ge=0, lt=2**63, description="Decides which documents are held out.")


class PreparationProgress(NamedTuple):
    """How far a preparation has come."""

    documents: int
    sequences: int
    tokens: int


Progress = Callable[[PreparationProgress], None]


@dataclass(frozen=True)
class Identity:
    """What makes prepared data the same data.

    Attributes:
        fingerprint: SHA-256 over all that decides its content: the recipe without paths, the readers' revisions, the
            input files' names and contents, the tokenizer, the format version.
        inputs: name, size and SHA-256 of every input file.
        tokenizer_fingerprint: of the tokenizer alone.
    """

    fingerprint: str
    inputs: list[dict[str, Any]]
    tokenizer_fingerprint: str


def build_corpora(data: DataRecipe, *, where: str | Path = "data recipe", key: str = "") -> list[Corpus]:
    """Make the readers of a recipe's `corpora`, each checked with its own `Config`.

    Args:
        data: the recipe; paths in it are absolute.
        where: the recipe's file, for messages.
        key: dotted place of the data recipe in that file.

    Raises:
        PluginError: there is no such corpus.
        DataError: keys of an entry are wrong; all that is wrong is said at once.
    """
    prefix: tuple[str | int, ...] = tuple(key.split(".")) if key else ()
    problems: list[Problem] = []
    built: list[Corpus] = []
    for number, entry in enumerate(data.corpora):
        place = (*prefix, "corpora", number)
        cls = registry.corpora.get(str(entry.get("name")), where=str(where), key=dotted(place))
        own = {name: value for name, value in entry.items() if name != "name"}
        config = check(cls.Config, own, place, lambda _: Origin(Path(where)))
        if isinstance(config, list):
            problems += config
        else:
            built.append(cls(config))
    if problems:
        raise DataError(problems)
    return built


def find_or_prepare(data: DataRecipe, cache: str | Path, *, progress: Progress | None = None) -> PreparedData:
    """Prepared data of a recipe: taken from the cache folder, or prepared there first.

    When several processes ask at once, one prepares and the others wait for it.

    Raises:
        DataError: raw text, tokenizer or a folder in the cache cannot be used.
        MachineError: the disk is full, or the cache cannot be written.
    """
    cache = Path(cache)
    tokenizer = load_tokenizer(data.tokenizer)
    corpora = build_corpora(data)
    hashes = FileHashes(cache)
    identity = identify(data, corpora, tokenizer, hashes)
    hashes.save()
    return _prepare(data, corpora, tokenizer, identity, cache / identity.fingerprint[:32], progress)


def prepare(
    data: DataRecipe,
    folder: str | Path,
    *,
    progress: Progress | None = None,
    corpora: Sequence[Corpus] | None = None,
) -> PreparedData:
    """Prepare a recipe's data into a folder of your choice. A folder that already holds just this is left as it is.

    Args:
        data: the recipe; paths in it are absolute.
        folder: where to; it appears when all is written.
        progress: called after each document.
        corpora: readers to use instead of those that the recipe names.

    Raises:
        DataError: raw text or tokenizer cannot be used, or the folder holds something else.
    """
    tokenizer = load_tokenizer(data.tokenizer)
    corpora = build_corpora(data) if corpora is None else corpora
    identity = identify(data, corpora, tokenizer, FileHashes(None))
    return _prepare(data, corpora, tokenizer, identity, Path(folder), progress)


def identify(data: DataRecipe, corpora: Sequence[Corpus], tokenizer: Any, hashes: FileHashes) -> Identity:
    """Fingerprint a recipe. It costs reading each input file once, unless `hashes` knows it."""
    inputs = [
        {"corpus": number, "name": name, "bytes": path.stat().st_size, "sha256": hashes.sha256(path)}
        for number, corpus in enumerate(corpora)
        for name, path in corpus.files().items()
    ]
    fingerprint_of_tokenizer = tokenizer_fingerprint(tokenizer)
    content = {
        "format_version": FORMAT_VERSION,
        "corpora": [
            {
                "reader": f"{type(corpus).__module__}:{type(corpus).__qualname__}",
                "revision": corpus.revision,
                "settings": _without_paths(corpus.config),
            }
            for corpus in corpora
        ],
        "inputs": inputs,
        "tokenizer": fingerprint_of_tokenizer,
        "sequence_length": data.sequence_length,
        "held_out": data.held_out,
        "seed": data.seed,
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return Identity(hashlib.sha256(canonical.encode()).hexdigest(), inputs, fingerprint_of_tokenizer)


def _without_paths(config: Any) -> dict[str, Any]:
    """A reader's settings but for its paths: the files that they lead to are identified by what is in them."""
    dumped: dict[str, Any] = config.model_dump(mode="json")
    for name, field in type(config).model_fields.items():
        found: list[Option] = list(options(field.annotation, tuple(field.metadata)))
        if any(option.path is not None and not option.path.hub for option in found):
            del dumped[name]
    return dumped


def _prepare(
    data: DataRecipe,
    corpora: Sequence[Corpus],
    tokenizer: Any,
    identity: Identity,
    folder: Path,
    progress: Progress | None,
) -> PreparedData:
    try:
        with staged_folder(folder, finished=MANIFEST) as staging:
            if staging is not None:
                _write(data, corpora, tokenizer, identity, staging, progress)
    except OSError as error:  # a full disk, a folder that may not be written
        raise MachineError(f"{folder}: the data could not be prepared: {error}") from error
    prepared = PreparedData.open(folder)
    if prepared.fingerprint != identity.fingerprint:
        raise DataError(
            "the folder already holds other prepared data",
            where=str(folder),
            hint="choose another folder, or remove this one first",
        )
    return prepared


def _write(
    data: DataRecipe,
    corpora: Sequence[Corpus],
    tokenizer: Any,
    identity: Identity,
    folder: Path,
    progress: Progress | None,
) -> None:
    ids = special_ids(tokenizer)
    vocab_size = len(tokenizer)
    dtype = row_dtype(vocab_size)
    packer = Packer(Layout(data.sequence_length), ids, np.random.default_rng(0))
    entries: dict[Split, Counter[str]] = {"train": Counter(), "held_out": Counter()}
    with (
        ShardWriter(folder, "train", data.sequence_length, dtype) as train,
        ShardWriter(folder, "held_out", data.sequence_length, dtype) as held_out,
    ):
        writers: dict[Split, ShardWriter] = {"train": train, "held_out": held_out}
        for split, tokens in _split(data, corpora, tokenizer):
            rows, lengths = packer.add(tokens, np.array([tokens.size]))
            writers[split].append(rows, lengths)
            entry = entries[split]
            entry["documents"] += 1
            entry["sequences"] += len(rows)
            entry["tokens"] += tokens.size
            entry["unknown_tokens"] += 0 if ids.unk is None else int(np.count_nonzero(tokens == ids.unk))
            if progress is not None:
                progress(PreparationProgress(*(_total(entries, name) for name in PreparationProgress._fields)))
    tokenizer.save_pretrained(folder / TOKENIZER_FOLDER)
    write_manifest(
        folder,
        Manifest(
            format_version=FORMAT_VERSION,
            kdcore_version=_kdcore_version(),
            fingerprint=identity.fingerprint,
            recipe=data.model_dump(mode="json"),
            inputs=identity.inputs,
            tokenizer_fingerprint=identity.tokenizer_fingerprint,
            vocab_size=vocab_size,
            special_tokens=SpecialTokens(
                pad=ids.pad, cls=ids.cls, sep=ids.sep, mask=ids.mask, unk=ids.unk, all=list(ids.all)
            ),
            sequence_length=data.sequence_length,
            dtype=dtype,
            reports=[dict(sorted(corpus.report.items())) for corpus in corpora],
            splits={name: SplitEntry(**entries[name], shards=writers[name].shards) for name in writers},
        ),
    )


def _split(data: DataRecipe, corpora: Sequence[Corpus], tokenizer: Any) -> Iterator[tuple[Split, NDArray[np.int32]]]:
    splitter = Splitter(data.held_out, data.seed)
    for number, corpus in enumerate(corpora):
        corpus.report.clear()
        for document, tokens in _encoded(Encoder(tokenizer), _texts(corpus)):
            if tokens.size:
                yield from splitter.place(f"{number}:{document.id}", tokens)
            else:
                corpus.report["documents without tokens skipped"] += 1
    yield from splitter.finish()


def _texts(corpus: Corpus) -> Iterator[Document]:
    for document in corpus.documents():
        if not isinstance(document, Document):
            raise DataError("sequences that were tokenised elsewhere are not stored yet", where=document.id)
        yield document


def _encoded(encoder: Encoder, documents: Iterator[Document]) -> Iterator[tuple[Document, NDArray[np.int32]]]:
    while waiting := list(islice(documents, 100)):
        encoded = encoder.encode([document.text for document in waiting])
        yield from zip(waiting, np.split(encoded.tokens, encoded.ends[:-1]), strict=True)


def _total(entries: dict[Split, Counter[str]], name: str) -> int:
    return sum(entry[name] for entry in entries.values())


def _kdcore_version() -> str:
    return metadata.version("kdcore")
