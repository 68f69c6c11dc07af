"""Check the requirements on corpus readers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kdcore import Corpus, Document, TokenizedSequences, find_component


def check_corpus(name: str | type[Corpus], config: Mapping[str, Any]) -> None:
    """Check the requirements on every corpus reader with the given files.

    1. Its files exist, and their names do not depend on their folder.
    2. Its documents have unique ids and a text that can be encoded as UTF-8 and has no NUL characters.
    3. Reading again, with the same reader or a new one, yields the same documents in the same order.
    4. Its parts have unique names and belong to its files. Read separately, each by a new reader and the last part
       first, they yield the same documents and counts as when all parts are read together.
    5. The keys of its report are descriptions in words, and the values are counts.
    6. If it keeps an account of its characters, every stage is balanced whenever a document has been yielded: it has
       received what the previous stage passed on, and has dropped, rewritten or passed on all of it. At the end, the
       last stage has passed on the texts of all documents.

    The same requirements apply to a reader of tokenised sequences. Instead of texts, sequences are checked: lengths
    must be valid, and predictions must be within the sequence. Its account counts tokens.

    Args:
        name: registered name, or class.
        config: its keys in a recipe, without `name`; paths are absolute.

    Raises:
        AssertionError: a requirement is violated; the message names it.
    """
    cls: type[Corpus] = find_component("kdcore.corpora", name).cls if isinstance(name, str) else name

    def new() -> Corpus:
        return cls(cls.Config.model_validate(dict(config)))

    corpus = new()
    files = corpus.files()
    for own, path in files.items():
        assert path.is_file(), f"`files` contains {path}, which is not a file"
        assert str(path.parent) not in own, f"the file name {own!r} contains its folder, so moving the file changes it"
    documents = corpus.documents()
    assert isinstance(documents, Iterator), "`documents` does not return an iterator; yield one document at a time"
    read = list(_accounted(corpus, documents))
    assert read, "the given files contain no document"
    seen: set[str] = set()
    for document in read:
        _check_document(document)
        assert document.id not in seen, f"two documents have the id {document.id!r}"
        seen.add(document.id)
    report = +corpus.report
    for words, count in corpus.report.items():
        assert isinstance(words, str), f"`report` has the key {words!r}, which is not a str"
        assert count > 0, f"`report` counts {words!r} as {count}"
    found = [_content(document) for document in read]
    for what, again in (("again", corpus), ("with a new reader", new())):
        assert [_content(each) for each in again.documents()] == found, f"reading {what} gives different documents"
    _check_parts(new, files, found, report)


def _accounted(
    corpus: Corpus, documents: Iterator[Document | TokenizedSequences]
) -> Iterator[Document | TokenizedSequences]:
    yielded = 0
    for document in documents:
        yielded += len(document.text) if isinstance(document, Document) else int(document.lengths.sum())
        if corpus.characters:
            faults = corpus.characters.imbalances()
            assert not faults, f"at the document {document.id!r}, `characters` is not balanced: {'; '.join(faults)}"
        yield document
    if corpus.characters:
        name, stage = list(corpus.characters.items())[-1]
        assert stage.passed == yielded, (
            f"the last stage of `characters`, {name!r}, passed on {stage.passed:,}, but the documents hold {yielded:,}"
        )


def _check_parts(new: Callable[[], Corpus], files: Mapping[str, Path], found: list[Any], report: Counter[str]) -> None:
    parts = new().parts()
    assert parts == new().parts(), "`parts` of a new reader differ"
    names = [part.name for part in parts]
    assert len(set(names)) == len(names), "two parts have the same name"
    by_part: dict[str, list[Any]] = {}
    counted: Counter[str] = Counter()
    for part in reversed(parts):
        assert not part.file or part.file in files, f"`files` does not contain {part.file!r} of the part {part.name!r}"
        assert not any(str(path.parent) in part.name for path in files.values()), (
            f"the part name {part.name!r} contains its folder, so moving the file changes it"
        )
        reader = new()
        by_part[part.name] = [_content(document) for document in reader.read(part)]
        counted += reader.report
    together = [document for part in parts for document in by_part[part.name]]
    assert together == found, "the documents of all parts differ from those of `documents`, or in their order"
    assert counted == report, f"the reports of all parts sum to {dict(counted)}, that of `documents` is {dict(report)}"


def _check_document(document: Document | TokenizedSequences) -> None:
    if isinstance(document, TokenizedSequences):
        _check_sequences(document)
        return
    assert isinstance(document, Document), f"{document!r} is not a kdcore.Document"
    assert document.text.strip(), f"the document {document.id!r} is empty: skip it and count it in `report`"
    assert "\0" not in document.text, f"the document {document.id!r} contains a NUL character"
    try:
        document.text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise AssertionError(f"the document {document.id!r} cannot be encoded as UTF-8: {error.reason}") from error


def _check_sequences(group: TokenizedSequences) -> None:
    count, width = group.tokens.shape
    assert group.lengths.shape == (count,), f"the group {group.id!r} does not have one length per sequence"
    inside = (group.lengths >= 2) & (group.lengths <= width)
    assert inside.all(), f"the group {group.id!r} has lengths below 2 or above its width {width}"
    real = np.arange(width) < group.lengths[:, None]
    assert (group.tokens[real] >= 0).all(), f"the group {group.id!r} has negative ids"
    positions, inputs = group.masked_positions, group.masked_inputs
    assert (positions is None) == (inputs is None), f"the group {group.id!r} has only one of positions and inputs"
    if positions is None or inputs is None:
        return
    assert positions.shape == inputs.shape, f"the group {group.id!r} does not have one masked input per position"
    assert len(positions) == count, f"the group {group.id!r} does not have masked positions for each sequence"
    assert ((positions >= 0) & (positions < group.lengths[:, None])).all(), (
        f"the group {group.id!r} has masked positions outside of a sequence"
    )


def _content(document: Document | TokenizedSequences) -> Any:
    """Convert a document to a value that can be compared."""
    if isinstance(document, Document):
        return document
    arrays = (document.tokens, document.lengths, document.masked_positions, document.masked_inputs)
    return (document.id, document.split, *(None if array is None else array.tolist() for array in arrays))
