"""Folders made from others: two encoders with a Router, and embeddings rotated to principal components."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from kdcore_embeddings import rotate_embeddings, write_router
from kdcore_embeddings.sentence_encoder import SentenceEncoder

from kdcore import InputError


def test_queries_and_documents_have_the_vectors_of_their_encoders(
    make_sentence_folder: Callable[..., Path], some_texts: list[str], tmp_path: Path
) -> None:
    library = pytest.importorskip("sentence_transformers")
    queries = make_sentence_folder(prompts={"query": "of ", "document": "the "})
    documents = make_sentence_folder(
        ("cls_token",), ("Dense", "LayerNorm", "Normalize"), prompts={"passage": "and "}, max_seq_length=12
    )
    write_router(queries, documents, tmp_path / "router")
    loaded, first, second = (
        library.SentenceTransformer(str(folder), device="cpu") for folder in (tmp_path / "router", queries, documents)
    )
    asked = first.encode_query(some_texts)
    found = second.encode(some_texts, prompt_name="passage")
    np.testing.assert_allclose(loaded.encode_query(some_texts), asked, atol=1e-6)
    np.testing.assert_allclose(loaded.encode_document(some_texts), found, atol=1e-6)
    np.testing.assert_allclose(loaded.encode(some_texts), found, atol=1e-6)
    assert np.abs(asked - found).max() > 0.1
    modules = json.loads((tmp_path / "router/modules.json").read_text(encoding="utf-8"))
    assert [module["type"] for module in modules] == ["sentence_transformers.models.Router"]


def test_encoders_that_cannot_be_combined_are_refused(
    make_sentence_folder: Callable[..., Path], teacher_folder: Path, tmp_path: Path
) -> None:
    narrow, wide, cut = make_sentence_folder(), make_sentence_folder(layers=()), make_sentence_folder()
    (cut / "config_sentence_transformers.json").write_text('{"truncate_dim": 8}', encoding="utf-8")
    for queries, message in [
        (narrow, r"the widths of embeddings differ \(queries: 24, documents: 32\)"),
        (cut, "embeddings are truncated"),
        (teacher_folder, "is not a sentence-transformers folder"),
    ]:
        with pytest.raises(InputError, match=message):
            write_router(queries, wide, tmp_path / "router")
        assert not (tmp_path / "router").exists()
    with pytest.raises(InputError, match="the folder already exists"):
        write_router(wide, wide, tmp_path)


@pytest.mark.parametrize("layers", [(), ("Dense", "Normalize")])
def test_rotated_embeddings_have_equal_similarities_and_descending_components(
    layers: tuple[str, ...], make_sentence_folder: Callable[..., Path], some_texts: list[str], tmp_path: Path
) -> None:
    source = make_sentence_folder(layers=layers, prompts={"document": "the "})
    rotate_embeddings(source, some_texts, tmp_path / "rotated")
    own = SentenceEncoder(str(source)).encode(some_texts, "the ").astype(np.float64)
    found = SentenceEncoder(str(tmp_path / "rotated")).encode(some_texts, "the ").astype(np.float64)
    np.testing.assert_allclose(found @ found.T, own @ own.T, atol=1e-4)
    singular = np.linalg.svd(own, compute_uv=False)
    np.testing.assert_allclose((found**2).sum(0), singular**2, rtol=1e-3, atol=1e-3)
    library = pytest.importorskip("sentence_transformers")
    loaded = library.SentenceTransformer(str(tmp_path / "rotated"), device="cpu")
    np.testing.assert_allclose(loaded.encode(some_texts, prompt_name="document"), found, atol=1e-5)


def test_embeddings_that_cannot_be_rotated_are_refused(
    sentence_folder: Path, make_sentence_folder: Callable[..., Path], some_texts: list[str], tmp_path: Path
) -> None:
    rotate_embeddings(sentence_folder, some_texts, tmp_path / "rotated")
    cut = make_sentence_folder()
    (cut / "config_sentence_transformers.json").write_text('{"truncate_dim": 8}', encoding="utf-8")
    for source, texts, message in [
        (sentence_folder, some_texts[:24], r"too few different texts .* \(found 24, expected more than the 24 comp"),
        (tmp_path / "rotated", some_texts, "embeddings are already rotated"),
        (cut, some_texts, "embeddings are already truncated"),
    ]:
        with pytest.raises(InputError, match=message):
            rotate_embeddings(source, texts, tmp_path / "new")
        assert not (tmp_path / "new").exists()
    with pytest.raises(InputError, match="the folder already exists"):
        rotate_embeddings(sentence_folder, some_texts, tmp_path / "rotated")
