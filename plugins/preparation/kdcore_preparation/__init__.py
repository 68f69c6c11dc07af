"""Prepare raw text for kdcore: read, clean, tokenise, pack, split; train tokenizers.

What other packages may use is a name of this module, imported on first access.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdcore_preparation.pipeline.data_recipe import DataRecipe, build_corpora
    from kdcore_preparation.pipeline.preparation_progress import PreparationProgress
    from kdcore_preparation.pipeline.prepare import prepare, prepare_share
    from kdcore_preparation.pipeline.sentence_splitting import split_sentences
    from kdcore_preparation.pipeline.text_encoding import tokenizer_threads
    from kdcore_preparation.readers.cleaning import clean_text, cut_text, decode_utf8
    from kdcore_preparation.readers.huggingface import DatasetSource, load_source
    from kdcore_preparation.readers.input_files import input_files, open_input
    from kdcore_preparation.tokenizer_training import train_tokenizer

# The public names and the modules that define them; tests compare this table with the README.
_HOMES = {
    "DataRecipe": "pipeline.data_recipe",
    "DatasetSource": "readers.huggingface",
    "PreparationProgress": "pipeline.preparation_progress",
    "build_corpora": "pipeline.data_recipe",
    "clean_text": "readers.cleaning",
    "cut_text": "readers.cleaning",
    "decode_utf8": "readers.cleaning",
    "input_files": "readers.input_files",
    "load_source": "readers.huggingface",
    "open_input": "readers.input_files",
    "prepare": "pipeline.prepare",
    "prepare_share": "pipeline.prepare",
    "split_sentences": "pipeline.sentence_splitting",
    "tokenizer_threads": "pipeline.text_encoding",
    "train_tokenizer": "tokenizer_training",
}

__all__ = [
    "DataRecipe",
    "DatasetSource",
    "PreparationProgress",
    "build_corpora",
    "clean_text",
    "cut_text",
    "decode_utf8",
    "input_files",
    "load_source",
    "open_input",
    "prepare",
    "prepare_share",
    "split_sentences",
    "tokenizer_threads",
    "train_tokenizer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
