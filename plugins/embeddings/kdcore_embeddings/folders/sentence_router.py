"""Combine two sentence encoders, one for queries and one for documents, into one sentence-transformers folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from kdcore import InputError, atomic_directory
from kdcore_embeddings.head import EMBEDDING
from kdcore_embeddings.sentence_folder import SentenceFolder
from kdcore_embeddings.teacher import SentenceTransformerModel

_TYPES = "sentence_transformers.models."
_OF_THE_FOLDER = ("modules.json", "config_sentence_transformers.json", "README.md")


def write_router(queries: str | Path, documents: str | Path, folder: str | Path) -> None:
    """Write a folder with a `Router`: sentence-transformers 5 and later encodes queries and documents separately.

    `encode_query` then uses the query encoder, `encode_document` and `encode` use the document encoder, each with its
    own prompt. The embeddings of both encoders must be comparable, like those of a teacher and its student from
    `kdcore:embeddings/leaf.yaml`.

    Args:
        queries: folder of the query encoder, such as an exported student.
        documents: folder of the document encoder, such as its teacher.
        folder: the new folder.

    Raises:
        InputError: `queries` or `documents` is not the folder of a sentence encoder, the widths of embeddings differ,
            or `folder` exists.
    """
    target = Path(folder)
    if target.exists():
        raise InputError("the folder already exists", where=str(target), hint="remove it, or choose another one")
    routes = {"query": _encoder(queries), "document": _encoder(documents)}
    widths = {name: width for name, (_, width) in routes.items()}
    if widths["query"] != widths["document"]:
        raise InputError(
            f"the widths of embeddings differ (queries: {widths['query']}, documents: {widths['document']})",
            where=str(queries),
            hint="only embeddings of the same width can be compared: train the student with the loss `embedding`",
        )
    types: dict[str, str] = {}
    structure: dict[str, list[str]] = {}
    with atomic_directory(target) as staging:
        for route, (stated, _) in routes.items():
            structure[route] = []
            parts = [("Transformer", stated.encoder), ("Pooling", stated.pooling)]
            for number, (kind, source) in enumerate([*parts, *((one.kind, one.folder) for one in stated.layers)]):
                name = f"{route}_{number}_{kind}"
                types[name] = _TYPES + kind
                structure[route].append(name)
                _copy_files(source, staging / name)
        parameters = {"default_route": "document", "allow_empty_key": True}
        _write(staging / "router_config.json", {"types": types, "structure": structure, "parameters": parameters})
        _write(staging / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": f"{_TYPES}Router"}])
        _write(staging / "config_sentence_transformers.json", _settings(routes["query"][0], routes["document"][0]))


def _encoder(source: str | Path) -> tuple[SentenceFolder, int]:
    """Read a folder, and find the width of its embeddings."""
    config = SentenceTransformerModel.Config.model_validate({"path": str(source)})
    model = SentenceTransformerModel(config, "teacher", None)
    head = model.info.head(EMBEDDING)
    assert model.folder is not None
    assert head is not None
    if model.folder.truncate_dim is not None:
        raise InputError("embeddings are truncated (`truncate_dim`), which Routers do not support", where=str(source))
    return model.folder, head.num_outputs


def _settings(queries: SentenceFolder, documents: SentenceFolder) -> dict[str, Any]:
    """Return prompts and similarity; `encode` uses the prompt and the encoder for documents."""
    prompts = {"query": queries.prompt("query"), "document": documents.prompt("document", "passage", "corpus")}
    return {
        "prompts": prompts,
        "default_prompt_name": "document" if prompts["document"] else None,
        "similarity_fn_name": documents.similarity,
    }


def _copy_files(source: Path, target: Path) -> None:
    """Copy the files of a module, but neither subfolders nor files that belong to the whole folder."""
    target.mkdir()
    for path in source.iterdir() if source.is_dir() else ():
        if path.is_file() and path.name not in _OF_THE_FOLDER and not path.name.startswith("head_"):
            shutil.copyfile(path, target / path.name)


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
