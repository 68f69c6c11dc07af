"""Data recipes: what text, cut into what; and what makes prepared data the same data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from kdcore import registry
from kdcore.data.base import Corpus
from kdcore.data.files import FileHashes
from kdcore.data.manifest import FORMAT_VERSION
from kdcore.data.packing import Layout
from kdcore.data.tokenizers import tokenizer_fingerprint
from kdcore.errors import DataError, Problem
from kdcore.recipe.checking import check, dotted
from kdcore.recipe.fields import Option, options
from kdcore.recipe.schema import ComponentConfig, ComponentSection, PathOrHubName
from kdcore.recipe.yaml import Origin

_HASHING_THREADS = 8


class DataRecipe(ComponentConfig):
    """What text, cut into what. Stands under `task.data` of a recipe or in a file of its own."""

    corpora: list[Annotated[dict[str, Any], ComponentSection("kdcore.corpora")]] = Field(
        min_length=1, description="Readers of raw text: maps with the `name` of a corpus and its own keys."
    )
    tokenizer: PathOrHubName = Field(
        description="Folder with tokenizer files, a SentencePiece .model file, or the name of a model on a hub."
    )
    sequence_length: int = Field(128, ge=8, le=2**16, description="Tokens a sequence, [CLS] and [SEP] included.")
    packing: Literal["document", "full"] = Field(
        "document",
        description="`document`: a sequence ends with its document; `full`: it goes on with the next, behind [SEP].",
    )
    sentences: bool | None = Field(
        None, description="Cut no sentence that fits a sequence. Default: true for `packing: full`."
    )
    short_sequences: float = Field(
        0.0, ge=0, le=1, description="Share of the sequences that are made shorter, each to a random length."
    )
    remove_duplicates: bool = Field(
        False, description="Keep one of several documents that have the same text, over all corpora: the first."
    )
    held_out: float = Field(0.02, ge=0, le=0.5, description="Share of the documents kept for validation; 0 keeps none.")
    seed: int = Field(
        0, ge=0, lt=2**63, description="Decides which documents are held out and which sequences are short."
    )

    @property
    def layout(self) -> Layout:
        """How tokens become sequences."""
        sentences = self.packing == "full" if self.sentences is None else self.sentences
        return Layout(self.sequence_length, self.packing, sentences, self.short_sequences)


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


def weight_of(corpus: Corpus) -> float:
    """How often an epoch shows each of a corpus's sequences; 1 for readers that know no weights."""
    return float(getattr(corpus.config, "weight", 1.0))


def identify(data: DataRecipe, corpora: Sequence[Corpus], tokenizer: Any, hashes: FileHashes) -> Identity:
    """Fingerprint a recipe. It costs reading each input file once, unless `hashes` knows it."""
    files = [(number, name, path) for number, corpus in enumerate(corpora) for name, path in corpus.files().items()]
    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        digests = list(pool.map(hashes.sha256, [path for _, _, path in files]))
    inputs = [
        {"corpus": number, "name": name, "bytes": path.stat().st_size, "sha256": digest}
        for (number, name, path), digest in zip(files, digests, strict=True)
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
        **data.model_dump(mode="json", exclude={"corpora", "tokenizer"}),
        "sentences": data.layout.sentences,
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
