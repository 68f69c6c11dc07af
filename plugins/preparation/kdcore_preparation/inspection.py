"""Describe a folder of prepared data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdcore import CharactersEntry, Manifest, PreparedData, PreparedSplit, Sequences, SplitEntry, load_tokenizer
from kdcore_preparation.readers.character_account import CharacterAccount

_BINS = 8
_BAR = 40
_SAMPLE_CHARACTERS = 400
_MANY_UNKNOWN = 0.01
_MANY_SHORT = 0.5
_MANY_REPEATED = 0.01
_FEW_DOCUMENTS = 10


@dataclass(frozen=True)
class LengthBin:
    """The number of sequences with a length from `low` to `high`."""

    low: int
    high: int
    sequences: int


def length_histogram(lengths: NDArray[np.int32], sequence_length: int) -> list[LengthBin]:
    """Count sequences by length, special tokens included; the last bin contains only full sequences."""
    borders = np.unique(np.linspace(1, sequence_length, _BINS + 1).astype(int))
    counts, _ = np.histogram(lengths, bins=[*borders.tolist(), sequence_length + 1])
    lows = [*borders.tolist()]
    highs = [low - 1 for low in lows[1:]] + [sequence_length]
    return [LengthBin(*one) for one in zip(lows, highs, counts.tolist(), strict=True)]


def problems(manifest: Manifest, short: Mapping[PreparedSplit, float]) -> Iterator[str]:
    """List likely problems of prepared data whose files are intact.

    Args:
        manifest: the manifest of the data.
        short: fraction of the sequences of each split that are less than half full.
    """
    for damage in manifest.damages:
        yield f"could not be read completely: {damage.where or damage.part}: {damage.what}"
    for split, entry in manifest.splits.items():
        if not entry.sequences:
            if split != "held_out" or manifest.recipe.get("held_out") != 0:
                yield f"{split} is empty"
            continue
        unknown, what = unknown_share(entry)
        if unknown > _MANY_UNKNOWN:
            yield f"{split}: {unknown:.1%} of the {what} are unknown to the tokenizer; was it trained on such text?"
        if entry.documents < _FEW_DOCUMENTS:
            yield f"{split}: only {entry.documents} documents: losses and metrics on so few are hardly reproducible"
        repeated = entry.repeated_documents or 0
        if repeated > _MANY_REPEATED * entry.documents:
            yield (
                f"{split}: {repeated:,} of {entry.documents:,} documents repeat another one except for case, white "
                "space and punctuation; `remove_duplicates: true` removes those that differ in white space only"
            )
        if short[split] > _MANY_SHORT:
            yield (
                f"{split}: {short[split]:.0%} of the sequences are less than half full; documents are short: a smaller "
                "sequence_length or `packing: full` wastes less"
            )
    for number, (report, corpus) in enumerate(zip(manifest.reports, manifest.recipe.get("corpora", []), strict=False)):
        broken = report.get("broken UTF-8 replaced", 0)
        if broken:
            yield f"corpora.{number} ({corpus['name']}): {broken:,} invalid UTF-8 sequences; check the encoding"
    for number, entries in enumerate(manifest.characters):
        for imbalance in CharacterAccount.of(entries).imbalances():
            yield f"corpora.{number} ({corpus_label(manifest, number)}): {imbalance}"


def unknown_share(entry: SplitEntry) -> tuple[float, str]:
    """Return the fraction of unknown text, and its unit: characters other than white space, or tokens.

    Tokens are used only if characters were not counted, because one [UNK] may replace a long word.
    """
    if entry.unknown_characters is None or not entry.visible_characters:
        return entry.unknown_tokens / max(1, entry.tokens), "tokens"
    return entry.unknown_characters / entry.visible_characters, "characters"


def account_table(manifest: Manifest) -> Iterator[str]:
    """Tabulate the characters of each corpus."""
    for number, entries in enumerate(manifest.characters):
        if entries:
            yield f"characters of {corpus_label(manifest, number)}"
            yield from stage_table(entries)


def stage_table(entries: Mapping[str, CharactersEntry]) -> Iterator[str]:
    """Tabulate the characters that each stage received, dropped, rewrote and passed on.

    In every row of a stage, `in + dropped + changed == out`; dropped counts are negative.
    """
    rows: list[tuple[str, ...]] = [("stage", "in", "dropped", "changed", "out")]
    for name, stage in CharacterAccount.of(entries).items():
        counts = (stage.received, -stage.dropped.total(), stage.net_change, stage.passed)
        rows.append((name, *(f"{count:,}" for count in counts)))
        rows += [(f"  {reason}", "", f"{-count:,}", "", "") for reason, count in stage.dropped.items()]
        for reason, (before, after) in stage.rewritten.items():
            rows.append((f"  {reason}: {before:,} -> {after:,}", "", "", f"{after - before:,}", ""))
    yield from _aligned(rows)


def _aligned(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        yield f"  {first.ljust(widths[0])}  {'  '.join(cells)}".rstrip()


def corpus_label(manifest: Manifest, number: int) -> str:
    """Return the name of a corpus of the recipe, followed by its number if several corpora share the name."""
    names = [corpus["name"] for corpus in manifest.recipe.get("corpora", [])]
    name = str(names[number]) if number < len(names) else f"corpus {number}"
    return f"{name} ({number})" if names.count(name) > 1 else name


def samples(data: PreparedData, sequences: Sequences, count: int) -> Iterator[tuple[int, str]]:
    """Decode some sequences, evenly spread over a split; yield the number and beginning of each."""
    tokenizer = load_tokenizer(str(data.tokenizer_folder))
    numbers = np.unique(np.linspace(0, len(sequences) - 1, min(count, len(sequences))).astype(np.int64))
    rows, lengths = sequences.rows(numbers)
    for number, row, length in zip(numbers.tolist(), rows, lengths, strict=True):
        text = tokenizer.decode(row[:length].tolist(), skip_special_tokens=False)
        yield number, text if len(text) <= _SAMPLE_CHARACTERS else text[:_SAMPLE_CHARACTERS] + " ..."


def describe(data: PreparedData, samples_a_split: int) -> Iterator[str]:
    """Describe a folder of prepared data: sources, counts, lengths, samples, problems."""
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
    yield from (f"  {line}" for line in account_table(manifest))
    opened = {split: data.split(split) for split in PreparedData.SPLITS}
    for split, entry in manifest.splits.items():
        yield from _describe_split(data, split, entry, opened[split], samples_a_split)
    half = data.sequence_length / 2
    short = {split: float((rows.lengths < half).mean()) if len(rows) else 0.0 for split, rows in opened.items()}
    found = list(problems(manifest, short))
    yield ""
    yield "problems:" if found else "no problems found (kdcore data verify compares checksums)"
    yield from (f"  {problem}" for problem in found)


def _describe_split(
    data: PreparedData, split: PreparedSplit, entry: SplitEntry, sequences: Sequences, count: int
) -> Iterator[str]:
    yield ""
    sentences = "" if entry.sentences is None else f"{entry.sentences:,} sentences, "
    unknown, what = unknown_share(entry)
    masks = ", masks stored" if sequences.has_masks else ""
    files = f"{len(entry.shards)} file{'' if len(entry.shards) == 1 else 's'}"
    yield (
        f"{split}: {entry.documents:,} documents, {sentences}{entry.sequences:,} sequences in {files}, "
        f"{entry.tokens:,} tokens, {unknown:.3%} of the {what} unknown{masks}"
    )
    if entry.repeated_documents is not None:
        yield (
            f"  {entry.text_characters:,} characters; {entry.repeated_documents:,} documents repeat another one of the "
            "split except for case, white space and punctuation"
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
