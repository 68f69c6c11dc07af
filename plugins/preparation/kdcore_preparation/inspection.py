"""Describe a folder of prepared data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdcore import PreparedData, PreparedSplit, Sequences, SplitEntry, load_tokenizer

_BINS = 8
_BAR = 40
_SAMPLE_CHARACTERS = 400
_MANY_UNKNOWN = 0.01
_MANY_SHORT = 0.5


@dataclass(frozen=True)
class LengthBin:
    """The number of sequences with a length from `low` to `high`."""

    low: int
    high: int
    sequences: int


def length_histogram(lengths: NDArray[np.int32], sequence_length: int) -> list[LengthBin]:
    """Count sequences by length, special tokens included; the last bin holds the full ones only."""
    borders = np.unique(np.linspace(1, sequence_length, _BINS + 1).astype(int))
    counts, _ = np.histogram(lengths, bins=[*borders.tolist(), sequence_length + 1])
    lows = [*borders.tolist()]
    highs = [low - 1 for low in lows[1:]] + [sequence_length]
    return [LengthBin(*one) for one in zip(lows, highs, counts.tolist(), strict=True)]


def problems(data: PreparedData, sequences: dict[PreparedSplit, Sequences]) -> Iterator[str]:
    """List likely problems of prepared data whose files are intact."""
    manifest = data.manifest
    for damage in manifest.damages:
        yield f"could not be read completely: {damage.where or damage.part}: {damage.what}"
    for split, entry in manifest.splits.items():
        if not entry.sequences:
            yield f"{split} is empty"
            continue
        unknown = entry.unknown_tokens / max(1, entry.tokens)
        if unknown > _MANY_UNKNOWN:
            yield f"{split}: {unknown:.1%} of the tokens are unknown to the tokenizer; was it trained on such text?"
        short = float((sequences[split].lengths < data.sequence_length / 2).mean())
        if short > _MANY_SHORT:
            yield (
                f"{split}: {short:.0%} of the sequences are less than half full; documents are short: a smaller "
                "sequence_length or `packing: full` wastes less"
            )
    for number, (report, corpus) in enumerate(zip(manifest.reports, manifest.recipe.get("corpora", []), strict=False)):
        broken = report.get("broken UTF-8 replaced", 0)
        if broken:
            yield f"corpora.{number} ({corpus['name']}): {broken:,} invalid UTF-8 sequences; check the encoding"


def samples(data: PreparedData, sequences: Sequences, count: int) -> Iterator[tuple[int, str]]:
    """Decode some sequences, evenly spread over a split: number and beginning of each."""
    tokenizer = load_tokenizer(str(data.tokenizer_folder))
    numbers = np.unique(np.linspace(0, len(sequences) - 1, min(count, len(sequences))).astype(np.int64))
    rows, lengths = sequences.rows(numbers)
    for number, row, length in zip(numbers.tolist(), rows, lengths, strict=True):
        text = tokenizer.decode(row[:length].tolist(), skip_special_tokens=False)
        yield number, text if len(text) <= _SAMPLE_CHARACTERS else text[:_SAMPLE_CHARACTERS] + " ..."


def describe(data: PreparedData, samples_a_split: int) -> Iterator[str]:
    """Describe a folder: its sources, counts, lengths, samples, problems."""
    manifest = data.manifest
    layout = manifest.recipe
    yield f"{data.folder}"
    yield f"  made by kdcore {manifest.kdcore_version}, fingerprint {manifest.fingerprint[:16]}"
    yield f"  tokenizer {layout.get('tokenizer')}, {manifest.vocab_size:,} ids stored as {manifest.dtype}"
    yield f"  sequences of {data.sequence_length} tokens, packing: {layout.get('packing')}"
    if data.teacher is not None:
        yield (
            f"  teacher's tokenizer {layout.get('teacher_tokenizer')}, {data.teacher.vocab_size:,} ids, sequences of "
            f"{data.teacher.sequence_length} tokens"
        )
    for number, corpus in enumerate(layout.get("corpora", [])):
        size = sum(entry["bytes"] for entry in manifest.inputs if entry["corpus"] == number)
        files = sum(entry["corpus"] == number for entry in manifest.inputs)
        weight = manifest.weights[number] if number < len(manifest.weights) else 1
        yield f"  corpus {number}: {corpus['name']}, {files:,} files, {size / 1e6:,.1f} MB, weight {weight:g}"
        for what, count in (manifest.reports[number] if number < len(manifest.reports) else {}).items():
            yield f"    {count:,} {what}"
    opened = {split: data.split(split) for split in PreparedData.SPLITS}
    for split, entry in manifest.splits.items():
        yield from _describe_split(data, split, entry, opened[split], samples_a_split)
    found = list(problems(data, opened))
    yield ""
    yield "problems:" if found else "no problems found (kdcore data verify compares checksums)"
    yield from (f"  {problem}" for problem in found)


def _describe_split(
    data: PreparedData, split: PreparedSplit, entry: SplitEntry, sequences: Sequences, count: int
) -> Iterator[str]:
    yield ""
    sentences = "" if entry.sentences is None else f"{entry.sentences:,} sentences, "
    unknown = entry.unknown_tokens / max(1, entry.tokens)
    masks = ", masks stored" if sequences.has_masks else ""
    files = f"{len(entry.shards)} file{'' if len(entry.shards) == 1 else 's'}"
    yield (
        f"{split}: {entry.documents:,} documents, {sentences}{entry.sequences:,} sequences in {files}, "
        f"{entry.tokens:,} tokens, {unknown:.3%} unknown{masks}"
    )
    if entry.alignment is not None:
        aligned = entry.alignment
        fraction = aligned.unaligned / max(1, aligned.characters)
        yield (
            f"  teacher: {aligned.teacher_tokens:,} tokens, {aligned.units:,} units; {aligned.unaligned:,} of "
            f"{aligned.characters:,} characters ({fraction:.3%}) not aligned; {aligned.split_sequences:,} sequences "
            "split to fit it"
        )
    if not len(sequences):
        return
    full = entry.tokens / (entry.sequences * (data.sequence_length - 2))
    yield f"  lengths (mean {sequences.lengths.mean():.1f}; {full:.1%} of the positions for text are used)"
    histogram = length_histogram(sequences.lengths, data.sequence_length)
    most = max(one.sequences for one in histogram)
    for one in histogram:
        name = f"{one.low}-{one.high}" if one.low < one.high else f"{one.low}"
        bar = "#" * -(-one.sequences * _BAR // most)
        yield f"  {name:>11} {one.sequences:>12,} {bar}".rstrip()
    for number, text in samples(data, sequences, count):
        yield f"  sequence {number:,}: {text}"
