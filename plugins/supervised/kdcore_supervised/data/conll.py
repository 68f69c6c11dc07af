"""CoNLL files: one word with its columns per line, and an empty line between sentences."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from kdcore_preparation import RecordMistakes, decoded_lines, open_input
from pydantic import Field

from kdcore import ComponentConfig

CONLL_FORMATS = (".conll", ".iob", ".iob2", ".bio", ".bioes", ".tsv", ".txt")
_BLANKS = " \t\r\n"


class ConllFormat(ComponentConfig):
    """Columns of CoNLL files."""

    token: int = Field(0, description="Column of the word, counted from 0; negative numbers count from the end.")
    tag: int = Field(-1, description="Column of the tag.")
    separator: str | None = Field(
        None, min_length=1, description="Text between columns; default: any number of spaces and tabs."
    )
    document: str = Field("-DOCSTART-", description="Word that marks lines between documents, which are skipped.")


@dataclass
class ConllSentence:
    """The words of a sentence, with their line numbers.

    Attributes:
        tokens: the words.
        tags: one tag per word; empty if tags were not read.
        lines: line of each word in the file, counted from 1.
    """

    tokens: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)


def read_conll(
    path: Path, form: ConllFormat, tags: Literal["required", "if present", "ignored"], report: Counter[str]
) -> list[ConllSentence]:
    """Read the sentences of a file. Blank lines separate sentences.

    Args:
        path: the file.
        form: the columns of the file.
        tags: whether tags are read; with `if present`, a file with a single column has no tags.
        report: counts of repaired or left-out content.

    Raises:
        DataError: rows differ in their number of columns, a column is missing, or a word or tag is empty.
    """
    split = _splitter(form.separator)
    sentences = [ConllSentence()]
    mistakes = RecordMistakes(str(path))
    first: tuple[int, int] | None = None
    with open_input(path) as stream:
        for number, line in enumerate(decoded_lines(stream, report, str(path)), start=1):
            if not line.strip(_BLANKS):
                sentences.append(ConllSentence())
                continue
            fields = split(line)
            if _field(fields, form.token) == form.document:
                report["document markers left out"] += 1
                sentences.append(ConllSentence())
                continue
            first = first or (number, len(fields))
            if len(fields) != first[1]:
                mistakes.add(
                    f"line {number}", f"has {len(fields)} columns (expected {first[1]}, as in line {first[0]})"
                )
                continue
            if tags == "if present" and len(fields) == 1:
                tags = "ignored"
            columns = {"token": form.token} | ({} if tags == "ignored" else {"tag": form.tag})
            values = {name: _field(fields, column) for name, column in columns.items()}
            problem = next((name for name, value in values.items() if not value), None)
            if problem is not None:
                what = "column is missing" if values[problem] is None else "is empty"
                mistakes.add(f"line {number}", f"cannot be read: the {problem} {what}")
                continue
            if len(fields) == 1 and "tag" in values:
                mistakes.add(f"line {number}", "has a single column and therefore no tag")
                continue
            sentences[-1].tokens.append(str(values["token"]))
            sentences[-1].lines.append(number)
            if "tag" in values:
                sentences[-1].tags.append(str(values["tag"]))
    mistakes.raise_if_any(
        key="task.data.conll",
        hint="every row needs the same columns: set `separator`, `token` and `tag` under `task.data.conll`, or repair "
        "the file",
    )
    return [sentence for sentence in sentences if sentence.tokens]


def _splitter(separator: str | None) -> Callable[[str], list[str]]:
    if separator is None:
        blanks = re.compile("[ \t]+")
        return lambda line: blanks.split(line.strip(_BLANKS))
    return lambda line: line.rstrip("\r\n").split(separator)


def _field(fields: list[str], column: int) -> str | None:
    return fields[column].strip(_BLANKS) if -len(fields) <= column < len(fields) else None
