"""Find the prepared data that a run started with, when the run is resumed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kdcore import (
    Corpus,
    DataError,
    Manifest,
    PluginError,
    PreparedData,
    find_component,
    without_paths,
)
from kdcore_preparation.pipeline.data_recipe import (
    PREPARATION_REVISION,
    DataRecipe,
    Identity,
    build_corpora,
    identify,
    load_tokenizers,
    stated_keys,
)
from kdcore_preparation.pipeline.old_manifests import OLD_READERS, OLD_RECIPE_DEFAULTS
from kdcore_preparation.pipeline.preparation_progress import ReportProgress
from kdcore_preparation.pipeline.prepare import find, find_or_prepare, folder_in
from kdcore_preparation.readers.input_files import FileHashes

logger = logging.getLogger("kdcore")

_NEW_DATA = "start another run with `run.id=NEW` to prepare and use new data"


def reopen(
    data: DataRecipe, cache: Path, folder: Path | None, fingerprint: str, *, progress: ReportProgress | None = None
) -> tuple[PreparedData, str]:
    """Open the data that a run started with; warn if a reader's revision has increased since.

    The folder recorded by the run is opened, or, if it is missing, the cache folder of the fingerprint. If both are
    missing but the recipe describes the run's data, that data is used, and prepared if necessary.

    Args:
        data: the data recipe; paths in it are absolute.
        cache: folder of prepared data.
        folder: the folder that the run recorded; None if the run recorded only a fingerprint.
        fingerprint: the fingerprint that the run recorded.
        progress: called regularly while data is prepared.

    Returns:
        The data and its fingerprint. If the recipe describes the run's data, in any format, this is the fingerprint
        that the run recorded.

    Raises:
        DataError: the folder is damaged; or the data is missing, even from the cache, and the recipe describes
            different data; or as for `find_or_prepare`.
    """
    hashes = FileHashes(cache)
    places = [*([] if folder is None else [folder]), folder_in(cache, fingerprint)]
    prepared = next((found for place in places if (found := _opened(place, fingerprint)) is not None), None)
    corpora = build_corpora(data)
    try:
        identity = identify(data, corpora, load_tokenizers(data), hashes)
    except DataError as error:
        if prepared is None or not _same_recipe(prepared.manifest, data, corpora):
            raise
        logger.warning(
            f"{prepared.folder}: the text or tokenizer that the data was prepared from cannot be read "
            f"({error.problems[0]}); the run continues with the prepared data"
        )
        return prepared, fingerprint
    hashes.save()
    same = fingerprint == identity.fingerprint
    if prepared is None:
        if not same and find(data, cache) is None:
            raise DataError(
                "the run was started with other data than the recipe describes, and its data is missing "
                f"(found neither {' nor '.join(map(str, places))})",
                hint=f"restore that folder, or {_NEW_DATA}",
            )
        found = find_or_prepare(data, cache, progress=progress)
        return found, fingerprint if same else found.fingerprint
    if not same:
        if not (_same_recipe(prepared.manifest, data, corpora) and _same_content(prepared.manifest, identity)):
            return prepared, identity.fingerprint
        for what in _risen(prepared.manifest, identity):
            logger.warning(f"{prepared.folder}: {what}; the run continues with its original data. {_NEW_DATA}")
    return prepared, fingerprint


def _opened(folder: Path, fingerprint: str) -> PreparedData | None:
    if not os.path.isfile(folder / PreparedData.MANIFEST):  # not Path.is_file, which raises for invalid paths
        return None
    prepared = PreparedData.open(folder)
    return prepared if prepared.fingerprint == fingerprint else None


def _same_recipe(manifest: Manifest, data: DataRecipe, corpora: Sequence[Corpus]) -> bool:
    """Return whether the manifest's recipe had the same settings, regardless of revisions and defaults."""
    entries, now = manifest.recipe.get("corpora", []), stated_keys(data)
    if manifest.stated is None:
        now = {key: value for key, value in now.items() if value != OLD_RECIPE_DEFAULTS.get(key)}
    return (
        _stated(manifest) == now
        and len(entries) == len(corpora)
        and all(_same_entry(*three) for three in zip(entries, data.corpora, corpora, strict=True))
    )


def _same_content(manifest: Manifest, identity: Identity) -> bool:
    """Return whether the text, tokenizer and readers' source files are the same as when the data was prepared."""
    sources = [reader.source for reader in manifest.readers]
    teacher = None if manifest.teacher is None else manifest.teacher.tokenizer_fingerprint
    return (
        manifest.tokenizer_fingerprint == identity.tokenizer_fingerprint
        and teacher == identity.teacher_fingerprint
        and _inputs(manifest.inputs) == _inputs(identity.inputs)
        and (not sources or sources == [reader.source for reader in identity.readers])
    )


def _inputs(inputs: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(entry["corpus"], entry["name"], entry["sha256"]) for entry in inputs]


def _stated(manifest: Manifest) -> dict[str, Any]:
    """Return the settings of the manifest's recipe, without the defaults that versions up to 2 also store."""
    stored = {
        key: value for key, value in manifest.recipe.items() if key not in ("corpora", "tokenizer", "teacher_tokenizer")
    }
    if manifest.stated is None:
        return {key: value for key, value in stored.items() if value != OLD_RECIPE_DEFAULTS.get(key)}
    return {key: value for key, value in stored.items() if key in manifest.stated}


def _same_entry(before: dict[str, Any], now: dict[str, Any], corpus: Corpus) -> bool:
    try:
        same_reader = before["name"] == now["name"] or find_component("kdcore.corpora", before["name"]).cls is type(
            corpus
        )
    except PluginError:
        return False
    settings = [without_paths(type(corpus.config), {**entry, "name": None}) for entry in (before, now)]
    return same_reader and settings[0] == settings[1]


def _risen(manifest: Manifest, identity: Identity) -> Iterator[str]:
    """Describe the revisions that have changed since the data was prepared."""
    for number, reader in enumerate(identity.readers):
        if number < len(manifest.readers):
            before = manifest.readers[number].revision
        elif reader.name in OLD_READERS:
            before = OLD_READERS[reader.name].revision
        else:
            yield f"prepared before revisions of the reader `{reader.name}` were recorded"
            continue
        if before != reader.revision:
            yield (
                f"prepared with revision {before} of the reader `{reader.name}`, which has revision {reader.revision}"
            )
    if manifest.preparation != PREPARATION_REVISION:
        yield f"prepared with revision {manifest.preparation} of the preparation, which has {PREPARATION_REVISION}"
