"""A small tokenizer for the tests of kdcore-preparation."""

from __future__ import annotations

import string
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT tokenizer of one letter a token (and some whole words), which can spell any ASCII text."""
    from transformers import BertTokenizer

    characters = string.ascii_lowercase + string.digits + string.punctuation
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "of", "and", "teacher", "student"]
    vocabulary = dict.fromkeys([*words, *characters, *(f"##{character}" for character in characters)])
    folder = tmp_path_factory.mktemp("tokenizer")
    BertTokenizer(vocab={word: index for index, word in enumerate(vocabulary)}).save_pretrained(folder)
    return folder
