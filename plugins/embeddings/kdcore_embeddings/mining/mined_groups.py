"""Read pairs, mine hard negatives with a sentence encoder, and write groups."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from kdcore_preparation import RecordMistakes, clean_text

from kdcore import DataError, InputError, atomic_write
from kdcore_embeddings.data.records import read_files
from kdcore_embeddings.data.texts import TextData, read_texts
from kdcore_embeddings.mining.cross_encoder import cross_encoder_logits
from kdcore_embeddings.mining.hard_negatives import hard_negatives
from kdcore_embeddings.sentence_encoder import SentenceEncoder

_COLUMN = "text"


def mine_groups(
    file: str,
    columns: tuple[str, str],
    teacher: str,
    output: Path,
    *,
    documents: str | None,
    cross_encoder: str | None,
    count: int,
    margin: float,
    report: Callable[[str], None],
) -> dict[str, int]:
    """Write a group for each pair whose query has a negative, in the order of the pairs.

    Args:
        file: file, folder or glob of pairs.
        columns: columns of queries and of their documents.
        teacher: folder of the sentence encoder.
        output: the JSON Lines file.
        documents: further documents to search; None to search only the documents of the pairs.
        cross_encoder: folder of a reranker whose logits are the scores; None for the teacher's similarities.
        count: number of negatives per group.
        margin: relative margin.
        report: called with each line of progress.

    Returns:
        The number of groups written, the number of groups with fewer than `count` negatives, and the number of pairs
        left out because they have no negatives.

    Raises:
        InputError: the texts or the encoder cannot be used, no query has a negative, or the file cannot be written.
    """
    left_out: Counter[str] = Counter()
    try:
        part, _ = read_texts(TextData(train=file, query=columns[0], positive=columns[1]), left_out)
        further = [] if documents is None else _read_documents(documents, left_out)
    except DataError as error:
        hint = f"name the columns with --query and --positive (further documents are in the column `{_COLUMN}`)"
        problems = (replace(one, key=None, hint=hint if "task.data" in (one.hint or "") else one.hint)
                    for one in error.problems)  # fmt: skip
        raise DataError(problems) from error
    for what, number in left_out.items():
        if number:
            report(f"texts: {number:,} {what}")
    pairs = list(zip(part.texts[::2], part.texts[1::2], strict=True))
    numbers: dict[str, int] = {}
    for text in [*(document for _, document in pairs), *further]:
        numbers.setdefault(text, len(numbers))
    known: dict[str, set[int]] = {}
    for query, document in pairs:
        known.setdefault(query, {numbers[query]} if query in numbers else set()).add(numbers[document])
    encoder = SentenceEncoder(teacher, _fastest_device())
    report(f"computing embeddings of {len(known):,} queries and {len(numbers):,} documents")
    rows = {query: row for row, query in enumerate(known)}
    mined = hard_negatives(
        encoder.encode(list(known), encoder.query_prompt)[[rows[query] for query, _ in pairs]],
        encoder.encode(list(numbers), encoder.document_prompt),
        [numbers[document] for _, document in pairs],
        [known[query] for query, _ in pairs],
        count=count,
        margin=margin,
        similarity=encoder.similarity,
    )
    texts = list(numbers)
    groups: list[dict[str, Any]] = [
        {
            "query": query,
            "positive": document,
            "negatives": [texts[number] for number in own.documents],
            "scores": [float(score) for score in own.scores],
        }
        for (query, document), own in zip(pairs, mined, strict=True)
        if len(own.documents)
    ]
    if not groups:
        raise InputError(
            f"none of {len(pairs):,} queries has a negative whose score is at most {1 - margin:g} times the score of "
            "its document",
            where=file,
            hint="decrease --margin, or add documents with --documents",
        )
    if cross_encoder is not None:
        _rescore(groups, cross_encoder, report)
    try:
        with atomic_write(output) as stream:
            stream.writelines(json.dumps(group, ensure_ascii=False).encode() + b"\n" for group in groups)
    except OSError as error:
        raise InputError(f"the file cannot be written: {error.strerror}", where=str(output)) from error
    return {
        "groups written": len(groups),
        f"groups with fewer than {count} negatives": sum(0 < len(own.documents) < count for own in mined),
        "pairs left out without a negative": len(pairs) - len(groups),
    }


def _rescore(groups: list[dict[str, Any]], source: str, report: Callable[[str], None]) -> None:
    """Replace the scores of groups by logits of a cross-encoder."""
    pairs = [(group["query"], text) for group in groups for text in (group["positive"], *group["negatives"])]
    report(f"scoring {len(pairs):,} pairs with {source}")
    logits = iter(cross_encoder_logits(source, pairs, _fastest_device()).tolist())
    for group in groups:
        group["scores"] = [next(logits) for _ in group["scores"]]


def _fastest_device() -> torch.device:
    """Return the GPU if there is one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _read_documents(path: str, report: Counter[str]) -> list[str]:
    """Read further documents, leaving out empty ones."""
    found: list[str] = []
    for records in read_files(path, (_COLUMN,), report):
        mistakes = RecordMistakes(records.where)
        for record, value in enumerate(records.columns[_COLUMN]):
            if value is not None and not isinstance(value, str):
                mistakes.add(records.place(record), f"has no text under `{_COLUMN}` (found {type(value).__name__})")
                continue
            text = clean_text(value or "", report)
            report["empty documents left out"] += not text
            if text:
                found.append(text)
        mistakes.raise_if_any(hint=f"documents are texts in the column `{_COLUMN}`")
    return found
