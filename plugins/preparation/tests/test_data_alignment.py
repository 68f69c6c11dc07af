"""The teacher's tokens beside the student's, compared with alignments computed one character at a time."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kdcore_preparation import DataRecipe, prepare, train_tokenizer
from kdcore_preparation.pipeline.alignment import common_spans
from kdcore_preparation.pipeline.prepare import staging_of
from kdcore_preparation.pipeline.text_encoding import TextEncoder
from transformers import AutoTokenizer, BertTokenizer

from kdcore import NO_UNIT, Corpus, CorpusConfig, DataError, Part, PreparedData, TokenizedSequences
from kdcore.commands.main import main

LENGTH = 48


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """Short texts with case, accents, symbols, double spaces, emojis, and characters that the teacher drops."""
    choice = random.Random(3)
    words = [
        "Zürich",
        "naïve",
        "Café",
        "don't",
        "x+y",
        "(1.5)",
        "Straße",
        "日本語",
        "😀",
        "ﬁne",
        "--",
        "hello",
        "Hello",
    ]
    words += ["".join(choice.choices("abcdefgh", k=choice.randint(1, 6))) for _ in range(60)]
    joints = [" ", " ", " ", ", ", "  ", " \u200b"]
    return ["".join(choice.choice(words) + choice.choice(joints) for _ in range(6)) + "end" for _ in range(60)]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> tuple[Path, Path]:
    """A cased byte-level BPE for the student, an uncased WordPiece for the teacher."""
    folder = tmp_path_factory.mktemp("tokenizers")
    train_tokenizer(lines, folder / "student", kind="byte_level_bpe", vocabulary=330)
    train_tokenizer(lines, folder / "teacher", kind="wordpiece", vocabulary=120, lowercase=True)
    return folder / "student", folder / "teacher"


def recipe(lines: Sequence[str], tokenizers: tuple[Path, Path], folder: Path, **keys: Any) -> DataRecipe:
    folder.mkdir(exist_ok=True)
    (folder / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    corpora = [{"name": "text", "path": str(folder / "text.txt"), "documents": "lines"}]
    stated = {"tokenizer": str(tokenizers[0]), "teacher_tokenizer": str(tokenizers[1]), "max_unaligned": 0.1}
    return DataRecipe(**{"corpora": corpora, "sequence_length": LENGTH, "held_out": 0, **stated, **keys})


def units_one_by_one(text: str, one: list[tuple[int, int]], other: list[tuple[int, int]]) -> list[set[int]]:
    """Return the shortest spans between common boundaries that tokens of both sides cover at least in part."""
    boundaries = [
        place
        for place in range(len(text) + 1)
        if not any(start < place < end for side in (one, other) for start, end in side)
    ]
    spans = [set(range(*pair)) for pair in itertools.pairwise(boundaries)]

    def covers(side: list[tuple[int, int]], span: set[int]) -> bool:
        return any(span & set(range(*token)) for token in side)

    return [span for span in spans if covers(one, span) and covers(other, span)]


def numbers_of(units: list[set[int]], offsets: list[tuple[int, int]]) -> list[int]:
    """Number of each token's unit, from 1 as [CLS] is unit 0."""
    found = []
    for start, end in offsets:
        inside = [number for number, unit in enumerate(units, start=1) if unit & set(range(start, end))]
        found.append(inside[0] if inside else NO_UNIT)
    return found


SEGMENTATION = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 4)), max_size=8).map(
    lambda tokens: sorted((start, min(12, start + size)) for start, size in tokens)
)


@settings(max_examples=300, deadline=None)
@given(SEGMENTATION, SEGMENTATION)
def test_spans_are_those_found_one_character_at_a_time(
    one: list[tuple[int, int]], other: list[tuple[int, int]]
) -> None:
    text = "abcdefghijkl"
    spans = common_spans(len(text), *(np.array(side, np.int64).reshape(-1, 2) for side in (one, other)))
    found = [set(np.flatnonzero(spans.of_characters == number)) for number in np.flatnonzero(spans.shared)]
    assert found == units_one_by_one(text, one, other)


def test_rows_hold_what_both_tokenizers_give_for_the_text_and_its_units(
    tmp_path: Path, lines: list[str], tokenizers: tuple[Path, Path]
) -> None:
    data = prepare(recipe(lines, tokenizers, tmp_path), tmp_path / "prepared", workers=1)
    student, teacher = (AutoTokenizer.from_pretrained(folder) for folder in tokenizers)
    train = data.split("train")
    assert len(train) == len(lines), "every line fits a row"
    view = train.teacher_view(np.arange(len(lines)))
    rows, lengths = train.rows(np.arange(len(lines)))
    assert train.teacher_lengths is not None
    assert train.teacher_lengths.tolist() == view.lengths.tolist()
    characters = lost = tokens = total = 0
    for number, text in enumerate(lines):
        own = student(text, return_offsets_mapping=True, add_special_tokens=False)
        theirs = teacher(text, return_offsets_mapping=True, add_special_tokens=False)
        assert rows[number, : lengths[number]].tolist() == student(text)["input_ids"]
        assert view.tokens[number, : view.lengths[number]].tolist() == teacher(text)["input_ids"]
        units = units_one_by_one(text, own["offset_mapping"], theirs["offset_mapping"])
        last = len(units) + 1
        expected = [[0, *numbers_of(units, side["offset_mapping"]), last] for side in (own, theirs)]
        assert view.student_units[number, : lengths[number]].tolist() == expected[0]
        assert view.units[number, : view.lengths[number]].tolist() == expected[1]
        assert (view.student_units[number, lengths[number] :] == NO_UNIT).all()
        assert (view.units[number, view.lengths[number] :] == NO_UNIT).all()
        visible = {place for place, character in enumerate(text) if not character.isspace()}
        characters += len(visible)
        lost += len(visible - set().union(*units))
        tokens += len(theirs["input_ids"])
        total += last + 1
    found = data.manifest.splits["train"].alignment
    assert found is not None
    assert (found.characters, found.unaligned, found.teacher_tokens) == (characters, lost, tokens)
    assert found.units == total
    assert 0 < lost < 0.1 * characters
    assert found.split_sequences == 0
    assert AutoTokenizer.from_pretrained(data.teacher_tokenizer_folder).get_vocab() == teacher.get_vocab()
    data.verify()


@pytest.mark.parametrize(
    "keys",
    [
        {"sequence_length": 16},
        {"sequence_length": 16, "packing": "full", "sentences": False},
        {"sequence_length": 24, "packing": "full", "short_sequences": 0.3},
        {"remove_duplicates": True},
    ],
)
def test_the_students_rows_do_not_depend_on_the_teacher_and_both_hold_the_same_text(
    tmp_path: Path, lines: list[str], tokenizers: tuple[Path, Path], keys: dict[str, Any]
) -> None:
    whole = recipe(lines, tokenizers, tmp_path, teacher_sequence_length=500, **keys)
    both = prepare(whole, tmp_path / "both", workers=1)
    stated = whole.model_dump(exclude={"teacher_tokenizer", "teacher_sequence_length", "max_unaligned"})
    alone = prepare(DataRecipe(**stated), tmp_path / "alone", workers=1)
    numbers = np.arange(len(both.split("train")))
    for one, other in zip(both.split("train").rows(numbers), alone.split("train").rows(numbers), strict=True):
        assert (one == other).all()
    assert alone.teacher is None
    assert both.fingerprint != alone.fingerprint
    student, teacher = (AutoTokenizer.from_pretrained(folder) for folder in tokenizers)
    rows, lengths = both.split("train").rows(numbers)
    view = both.split("train").teacher_view(numbers)
    for number in numbers:
        row, theirs = rows[number, : lengths[number]], view.tokens[number, : view.lengths[number]]
        assert (row == student.sep_token_id).sum() == (theirs == teacher.sep_token_id).sum()
        if (row == student.sep_token_id).sum() == 1 and "\ufffd" not in student.decode(row):
            text = student.decode(row, skip_special_tokens=True)
            assert theirs.tolist() == teacher(text)["input_ids"]
        own_units, units = (set(side[number].tolist()) - {NO_UNIT} for side in (view.student_units, view.units))
        assert own_units == units == set(range(len(units))), "the same units on both sides, without gaps"


def test_sequences_that_do_not_fit_the_teacher_are_split_and_counted_and_no_text_is_lost(
    tmp_path: Path, lines: list[str], tokenizers: tuple[Path, Path]
) -> None:
    limit = 14
    data = prepare(recipe(lines, tokenizers, tmp_path, teacher_sequence_length=limit), tmp_path / "prepared", workers=1)
    student, teacher = (AutoTokenizer.from_pretrained(folder) for folder in tokenizers)
    train = data.split("train")
    rows, lengths = train.rows(np.arange(len(train)))
    assert train.teacher_lengths is not None
    assert train.teacher_lengths.max() <= limit
    ids = np.concatenate([row[1 : length - 1] for row, length in zip(rows, lengths, strict=True)]).tolist()
    assert ids == [number for line in lines for number in student(line, add_special_tokens=False)["input_ids"]]
    found = data.manifest.splits["train"].alignment
    assert found is not None
    assert found.split_sequences == sum(len(teacher(line)["input_ids"]) > limit for line in lines)
    assert len(train) > len(lines)


def test_workers_and_shares_and_duplicates_give_the_same_rows(
    tmp_path: Path, lines: list[str], tokenizers: tuple[Path, Path]
) -> None:
    def sums(name: str, workers: int, **keys: Any) -> list[str]:
        made = prepare(recipe(lines, tokenizers, tmp_path, held_out=0.2, **keys), tmp_path / name, workers=workers)
        return [shard.sha256 for split in made.manifest.splits.values() for shard in split.shards]

    assert sums("one", 1) == sums("two", 2) == sums("unique", 1, remove_duplicates=True)


def test_a_teacher_with_the_students_tokenizer_changes_nothing(
    tmp_path: Path, lines: list[str], tokenizers: tuple[Path, Path]
) -> None:
    same = (tokenizers[0], shutil.copytree(tokenizers[0], tmp_path / "copy"))
    data = prepare(recipe(lines, same, tmp_path), tmp_path / "prepared", workers=1)
    stated = recipe(lines, same, tmp_path).model_dump(
        exclude={"teacher_tokenizer", "teacher_sequence_length", "max_unaligned"}
    )
    alone = prepare(DataRecipe(**stated), tmp_path / "alone", workers=1)
    assert data.teacher is None
    assert data.fingerprint == alone.fingerprint


def test_too_little_alignment_is_refused_with_the_key_and_the_share(
    tmp_path: Path, tokenizers: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["ab\u200b\u200b\u200b\u200bcd"] * 30  # the teacher's normalizer drops zero-width spaces
    path = tmp_path / "data.yaml"
    content = recipe(lines, tokenizers, tmp_path, max_unaligned=0.4).model_dump(exclude_unset=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    assert main(["prepare", str(path), str(tmp_path / "prepared")]) == 2
    message = capsys.readouterr().err
    assert "max_unaligned: corpora.0: too many characters are not aligned" in message
    assert "found 50.00% of 240, expected at most 40.00%" in message
    assert not (tmp_path / "prepared").exists()
    assert main(["prepare", str(path), str(tmp_path / "prepared"), "max_unaligned=0.5"]) == 0
    assert main(["data", "inspect", str(tmp_path / "prepared")]) == 0
    assert "120 of 240 characters (50.000%) not aligned" in capsys.readouterr().out


@pytest.mark.parametrize("remove_duplicates", [False, True])
def test_a_rerun_with_a_higher_bound_reuses_the_tokenised_pieces(
    tmp_path: Path, tokenizers: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, remove_duplicates: bool
) -> None:
    lines = [f"ab\u200b\u200b\u200b\u200bc{letter}" for letter in "abcdefgh"]  # half of the characters
    keys: dict[str, Any] = {"remove_duplicates": remove_duplicates, "held_out": 1e-9}  # one document is moved
    folder = tmp_path / "prepared"
    with pytest.raises(DataError, match=r"found 50\.00% of 64, expected at most 40\.00%"):
        prepare(recipe(lines, tokenizers, tmp_path, max_unaligned=0.4, **keys), folder, workers=1)
    assert staging_of(folder).is_dir()
    encoded: list[str] = []
    encode = TextEncoder.encode

    def counting(self: TextEncoder, texts: Sequence[str]) -> Any:
        encoded.extend(texts)
        return encode(self, texts)

    monkeypatch.setattr(TextEncoder, "encode", counting)
    data = prepare(recipe(lines, tokenizers, tmp_path, max_unaligned=0.5, **keys), folder, workers=1)
    assert not encoded
    assert not staging_of(folder).exists()
    fresh = prepare(recipe(lines, tokenizers, tmp_path, max_unaligned=0.5, **keys), tmp_path / "fresh", workers=1)
    assert encoded, "tokenising is counted"
    assert [len(data.split(split)) for split in data.SPLITS] == [7, 1]
    names, others = (sorted(path.relative_to(one.folder) for path in one.folder.rglob("*")) for one in (data, fresh))
    assert names == others
    for name in names:
        if (folder / name).is_file():
            assert (folder / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"teacher_tokenizer": "nowhere/tokenizer"}, "teacher_tokenizer: the tokenizer cannot be loaded"),
        ({"teacher_tokenizer": None}, "`max_unaligned` has no effect without `teacher_tokenizer`"),
        ({"teacher_sequence_length": 4}, "teacher_sequence_length"),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path,
    lines: list[str],
    tokenizers: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
    keys: dict[str, Any],
    words: str,
) -> None:
    content = recipe(lines, tokenizers, tmp_path).model_dump(exclude_unset=True) | keys
    (tmp_path / "data.yaml").write_text(json.dumps(content), encoding="utf-8")
    assert main(["prepare", str(tmp_path / "data.yaml"), str(tmp_path / "prepared")]) == 2
    assert words in capsys.readouterr().err


def test_a_teachers_slow_tokenizer_is_refused(
    tmp_path: Path, lines: list[str], tokenizers: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = BertTokenizer.from_pretrained(tokenizers[1])
    load = AutoTokenizer.from_pretrained

    class Slow:
        is_fast = False

    monkeypatch.setattr(
        AutoTokenizer, "from_pretrained", lambda name, **keys: Slow() if name == "slow" else load(name, **keys)
    )
    assert teacher.is_fast
    with pytest.raises(DataError, match=r"slow: teacher_tokenizer: has only a slow tokenizer"):
        prepare(recipe(lines, (tokenizers[0], Path("slow")), tmp_path), tmp_path / "prepared", workers=1)


def test_a_token_that_has_more_of_the_teachers_tokens_than_fit_is_refused(
    tmp_path: Path, tokenizers: tuple[Path, Path]
) -> None:
    train_tokenizer(["-" * 20] * 40, tmp_path / "dashes", kind="byte_level_bpe", vocabulary=266)
    made = recipe(["-" * 20] * 40, (tmp_path / "dashes", tokenizers[1]), tmp_path, teacher_sequence_length=8)
    with pytest.raises(DataError, match=r"teacher_sequence_length: a token of the student spans more than 6"):
        prepare(made, tmp_path / "prepared", workers=1)


class Ids(Corpus):
    Config = CorpusConfig

    def files(self) -> dict[str, Path]:
        return {}

    def parts(self) -> list[Part]:
        return [Part("0", bytes=1)]

    def documents(self) -> Any:
        raise NotImplementedError

    def read(self, part: Part) -> Any:
        yield TokenizedSequences("0", np.array([[2, 7, 3]]), np.array([3]))


def test_a_corpus_of_token_ids_is_refused(tmp_path: Path, lines: list[str], tokenizers: tuple[Path, Path]) -> None:
    with pytest.raises(DataError, match=r"teacher_tokenizer: 0: contains token ids"):
        prepare(recipe(lines, tokenizers, tmp_path), tmp_path / "prepared", workers=1, corpora=[Ids(CorpusConfig())])


def test_another_teachers_tokenizer_in_the_folder_is_found(
    tmp_path: Path, lines: list[str], tokenizers: tuple[Path, Path]
) -> None:
    data = prepare(recipe(lines, tokenizers, tmp_path), tmp_path / "prepared", workers=1)
    shutil.rmtree(data.teacher_tokenizer_folder)
    with pytest.raises(DataError, match="the teacher's tokenizer's files are missing"):
        PreparedData.open(data.folder)
    shutil.copytree(tokenizers[0], data.teacher_tokenizer_folder)
    with pytest.raises(DataError, match=r"teacher_tokenizer/tokenizer\.json: is damaged: its checksum differs"):
        PreparedData.open(data.folder).verify()


def test_decomposed_accents_align_as_composed_ones(tmp_path: Path, tokenizers: tuple[Path, Path]) -> None:
    composed = ["Zürich naïve Café"] * 4
    decomposed = [unicodedata.normalize("NFD", line) for line in composed]
    made = [
        prepare(recipe(lines, tokenizers, tmp_path / str(number)), tmp_path / f"{number}-out", workers=1)
        for number, lines in enumerate((composed, decomposed))
    ]
    one, other = (data.split("train").teacher_view(np.arange(4)) for data in made)
    assert all((left == right).all() for left, right in zip(one, other, strict=True))
    assert made[1].manifest.splits["train"].alignment.unaligned == 0  # type: ignore[union-attr]
