"""The engine of a preparation: the same bytes for any number of processes and interruptions."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kdcore_preparation.pipeline.duplicates import content_keys, repeated, text_key
from kdcore_preparation.pipeline.held_out import points_of_contents
from kdcore_preparation.pipeline.prepare import DataRecipe, PreparationProgress, prepare, prepare_share
from kdcore_preparation.pipeline.units import units_of

from kdcore.data.base import PART_BYTES, Corpus, CorpusConfig, Document, Part, TokenizedSequences
from kdcore.data.shards import PreparedData
from kdcore.errors import DataError, InfrastructureError, PluginError

LENGTH = 16


class Texts(Corpus):
    """Parts given as lists of texts; each is a unit of its own. `before` is called before each part is read."""

    Config = CorpusConfig

    def __init__(self, parts: Sequence[Sequence[str]], before: Callable[[int], None] = lambda _: None) -> None:
        super().__init__(CorpusConfig())
        self.texts = parts
        self.before = before

    def files(self) -> Mapping[str, Path]:
        return {}

    def parts(self) -> list[Part]:
        return [Part(str(number), bytes=PART_BYTES) for number in range(len(self.texts))]

    def documents(self) -> Iterator[Document]:
        raise NotImplementedError

    def read(self, part: Part) -> Iterator[Document]:
        self.before(int(part.name))
        for number, text in enumerate(self.texts[int(part.name)]):
            self.report["texts seen"] += 1
            yield Document(f"{part.name}:{number}", text)


def texts(parts: int = 5, seed: int = 0) -> list[list[str]]:
    choice = random.Random(seed)
    words = ["the", "teacher", "of", "student", "zebra", "a1", "and"]

    def sentence() -> str:
        return " ".join(choice.choices(words, k=choice.randint(1, 12))).capitalize() + "."

    return [
        [" ".join(sentence() for _ in range(choice.randint(1, 6))) for _ in range(choice.randint(1, 12))]
        for _ in range(parts)
    ]


def recipe(tokenizer_folder: Path, **keys: Any) -> DataRecipe:
    entry = {"name": "text", "path": "unused"}
    defaults = {"corpora": [entry], "tokenizer": str(tokenizer_folder), "sequence_length": LENGTH, "held_out": 0.1}
    return DataRecipe(**{**defaults, **keys})


def content(folder: Path) -> dict[str, str]:
    """Hash of every file."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def text_tokens(data: PreparedData, split: Any) -> list[int]:
    part = data.split(split)
    rows, lengths = part.rows(np.arange(len(part)))
    tokens = [token for row, length in zip(rows, lengths, strict=True) for token in row[:length].tolist()]
    return [token for token in tokens if token not in (data.cls_id, data.sep_id)]


MANY_KEYS = {"packing": "full", "short_sequences": 0.3, "remove_duplicates": True}


@pytest.mark.parametrize("keys", [{}, MANY_KEYS], ids=["plain", "all stages"])
def test_the_number_of_workers_and_shares_leaves_no_trace(
    tmp_path: Path, tokenizer_folder: Path, keys: dict[str, Any]
) -> None:
    data = recipe(tokenizer_folder, **keys)
    parts = texts()
    parts[3] += parts[0]
    for workers in (1, 2, 7):
        prepare(data, tmp_path / f"workers-{workers}", corpora=[Texts(parts)], workers=workers).verify()
    expected = content(tmp_path / "workers-1")
    assert content(tmp_path / "workers-2") == content(tmp_path / "workers-7") == expected
    assert len([name for name in expected if name.startswith("train-")]) == 5

    folder = tmp_path / "shares"
    results = [prepare_share(data, folder, share, 3, corpora=[Texts(parts)], workers=1) for share in (2, 1, 3)]
    assert [left for _, left in results] == [3, 1, 0]
    assert [prepared is not None for prepared, _ in results] == [False, False, True]
    assert content(folder) == expected

    folder = tmp_path / "one-share-is-missing"
    prepare_share(data, folder, 1, 2, corpora=[Texts(parts)], workers=1)
    assert not folder.exists()
    read: list[int] = []
    prepare(data, folder, corpora=[Texts(parts, read.append)], workers=1)
    assert read == [1, 3], "what the first share has done is not done again"
    assert content(folder) == expected
    assert prepare_share(data, folder, 2, 2, corpora=[Texts(parts)])[1] == 0, "a share that comes late finds all done"
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("keys", [{}, MANY_KEYS], ids=["plain", "all stages"])
def test_an_interrupted_preparation_goes_on_where_it_was(
    tmp_path: Path, tokenizer_folder: Path, keys: dict[str, Any]
) -> None:
    data = recipe(tokenizer_folder, **keys)
    parts = texts()
    prepare(data, tmp_path / "undisturbed", corpora=[Texts(parts)], workers=1)
    folder = tmp_path / "interrupted"
    read: list[int] = []

    def interrupt(part: int) -> None:
        read.append(part)
        if len(read) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(data, folder, corpora=[Texts(parts, interrupt)], workers=1)
    assert not folder.exists()
    seen: list[PreparationProgress] = []
    prepare(data, folder, corpora=[Texts(parts, interrupt)], workers=1, progress=seen.append)
    assert read == [0, 1, 2, 2, 3, 4]
    assert seen[0].bytes == 2 * PART_BYTES
    assert seen[0].documents == len(parts[0]) + len(parts[1])
    assert content(folder) == content(tmp_path / "undisturbed")
    assert leftovers(tmp_path) == []


def test_a_worker_that_is_killed_is_the_machines_failure_and_what_was_done_is_kept(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    parts = texts(4)
    data = recipe(tokenizer_folder)
    parent = os.getpid()

    def kill_third(part: int) -> None:
        if part == 3 and os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(InfrastructureError, match="ended by SIGKILL"):
        prepare(data, tmp_path / "data", corpora=[Texts(parts, kill_third)], workers=2)
    prepare(data, tmp_path / "data", corpora=[Texts(parts)], workers=1)
    prepare(data, tmp_path / "undisturbed", corpora=[Texts(parts)], workers=1)
    assert content(tmp_path / "data") == content(tmp_path / "undisturbed")


def test_a_mistake_in_a_reader_comes_out_of_the_workers_with_its_place(tmp_path: Path, tokenizer_folder: Path) -> None:
    def divide(part: int) -> None:
        _ = 1 / (part - 1)

    with pytest.raises(PluginError, match=r"^Texts of .*test_data_preparation.py failed: ZeroDivisionError") as caught:
        prepare(recipe(tokenizer_folder), tmp_path / "data", corpora=[Texts(texts(), divide)], workers=2)
    assert "`_ = 1 / (part - 1)`" in str(caught.value)
    assert "in divide" in "".join(caught.value.__notes__)
    assert not (tmp_path / "data").exists()


def test_unfinished_work_of_another_recipe_is_not_mixed_in(tmp_path: Path, tokenizer_folder: Path) -> None:
    def fail_at_last(part: int) -> None:
        if part == 4:
            raise OSError("no such luck")

    folder = tmp_path / "data"
    with pytest.raises(InfrastructureError):
        prepare(recipe(tokenizer_folder), folder, corpora=[Texts(texts(), fail_at_last)], workers=1)
    other = recipe(tokenizer_folder, seed=5)
    with pytest.raises(DataError, match="unfinished preparation of other data"):
        prepare_share(other, folder, 1, 2, corpora=[Texts(texts())])
    read: list[int] = []
    prepare(other, folder, corpora=[Texts(texts(), read.append)], workers=1)
    assert read == [0, 1, 2, 3, 4]


def test_units_are_parts_joined_up_to_a_limit_within_a_corpus() -> None:
    class Sized(Texts):
        def parts(self) -> list[Part]:
            third = PART_BYTES // 3
            return [Part(str(n), size) for n, size in enumerate([third, third, third, 1, 3 * PART_BYTES, 0, 0, 1])]

    units = units_of([Sized([]), Texts([["a"]]), Texts([])])
    names = [[part.name for part in unit.parts] for unit in units]
    assert names == [["0", "1", "2", "3"], ["4"], ["5"], ["6"], ["7"], ["0"], []]
    assert [unit.corpus for unit in units] == [0, 0, 0, 0, 0, 1, 2]
    assert [unit.number for unit in units] == list(range(7))


def test_of_documents_with_the_same_text_the_first_is_kept_over_all_corpora(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    one = Texts([["the teacher", "zebra one"], ["the  teacher ", "of the"]])
    other = Texts([["zebra one", "student", "of the", "student"]])
    entry = {"name": "text", "path": "unused"}
    data = recipe(tokenizer_folder, held_out=0, remove_duplicates=True, corpora=[entry, entry])
    prepared = prepare(data, tmp_path / "data", corpora=[one, other], workers=2)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    expected = [
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in ("the teacher", "zebra one", "of the", "student")
    ]
    assert text_tokens(prepared, "train") == list(itertools.chain(*expected))
    assert prepared.manifest.reports == [
        {"duplicates removed": 1, "texts seen": 4},
        {"duplicates removed": 3, "texts seen": 4},
    ]
    assert prepared.manifest.splits["train"].documents == 4


def test_repeated_keys_are_those_after_the_first_wherever_they_are() -> None:
    choice = random.Random(0)
    keys = [[text_key(str(choice.randrange(3000))) for _ in range(choice.randrange(800))] for _ in range(9)]
    seen: set[int] = set()
    expected = [[key in seen or bool(seen.add(key)) for key in each] for each in keys]  # type: ignore[func-returns-value]
    found = repeated([np.array(each, np.uint64) for each in keys])
    assert [each.tolist() for each in found] == expected


def test_where_nobody_would_be_held_out_the_nearest_document_of_any_part_is(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    parts = texts(4)
    names = [f"{part}:{number}" for part in range(4) for number in range(len(parts[part]))]
    contents = [parts[int(part)][int(number)] for part, number in (name.split(":") for name in names)]
    points = points_of_contents(content_keys(contents), 0)
    part, number = names[points.argmin()].split(":")
    share = points.min() / 2
    prepared = prepare(recipe(tokenizer_folder, held_out=share), tmp_path / "data", corpora=[Texts(parts)], workers=2)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    held_out = tokenizer(parts[int(part)][int(number)], add_special_tokens=False)["input_ids"]
    assert text_tokens(prepared, "held_out") == held_out
    assert prepared.manifest.splits["train"].documents == len(names) - 1
    prepared.verify()


def test_held_out_documents_stay_held_out_when_the_corpus_grows(tmp_path: Path, tokenizer_folder: Path) -> None:
    parts = texts(6)
    small, large = (
        prepare(recipe(tokenizer_folder, held_out=0.3), tmp_path / str(count), corpora=[Texts(parts[:count])])
        for count in (3, 6)
    )
    held_out = text_tokens(small, "held_out")
    assert held_out
    assert text_tokens(large, "held_out")[: len(held_out)] == held_out


ascii_texts = st.lists(
    st.lists(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=120), max_size=6),
    min_size=1,
    max_size=3,
)


@given(
    parts=ascii_texts,
    packing=st.sampled_from(["document", "full"]),
    sentences=st.booleans(),
    short_sequences=st.sampled_from([0.0, 0.5]),
    remove_duplicates=st.booleans(),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_decoding_all_rows_gives_the_normalised_texts_back(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer_folder: Path,
    parts: list[list[str]],
    packing: str,
    sentences: bool,
    short_sequences: float,
    remove_duplicates: bool,
) -> None:
    from tokenizers import Tokenizer

    # The first word identifies a document, so that rows can be assigned to documents.
    parts = [[f"{part}x{number}y {text}" for number, text in enumerate(each)] for part, each in enumerate(parts)]
    if not any(parts):
        return
    data = prepare(
        recipe(
            tokenizer_folder,
            packing=packing,
            sentences=sentences,
            short_sequences=short_sequences,
            remove_duplicates=remove_duplicates,
            held_out=0,
        ),
        tmp_path_factory.mktemp("conservation") / "data",
        corpora=[Texts(parts)],
        workers=1,
    )
    tokenizer = Tokenizer.from_file(str(data.tokenizer_folder / "tokenizer.json"))
    spelling = "".join(tokenizer.id_to_token(token).removeprefix("##") for token in text_tokens(data, "train"))
    normalised = [tokenizer.normalizer.normalize_str(text) for part in parts for text in part]
    assert spelling == "".join("".join(text.split()) for text in normalised)
    assert data.manifest.splits["train"].tokens == len(text_tokens(data, "train"))


def test_ids_beyond_two_bytes_come_back(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    roles = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    words = [*roles.values(), *(f"w{number}" for number in range(70_000))]
    vocabulary = {word: number for number, word in enumerate(words)}
    vocabulary["last"] = 2**17  # ids with a hole between them
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend, **roles).save_pretrained(tmp_path / "tokenizer")
    data = prepare(
        recipe(tmp_path / "tokenizer", held_out=0), tmp_path / "data", corpora=[Texts([["w0 w69999 last w65531"]])]
    )
    assert data.manifest.dtype == "int32"
    assert data.vocab_size == 2**17 + 1
    assert text_tokens(data, "train") == [5, 70_004, 2**17, 65_536]


class Sequences(Corpus):
    """Sequences created by another program."""

    def __init__(self, *groups: TokenizedSequences) -> None:
        super().__init__(CorpusConfig())
        self.groups = groups

    def files(self) -> Mapping[str, Path]:
        return {}

    def documents(self) -> Iterator[TokenizedSequences]:
        return iter(self.groups)


def group(name: str = "a", *, count: int = 4, split: Any = None, **changes: Any) -> TokenizedSequences:
    """Rows `[CLS] 10 11 12 [SEP]` of the letter tokenizer ([CLS] is 2, [SEP] 3, [MASK] 4), the second place masked."""
    tokens = np.tile(np.array([2, 10, 11, 12, 3, 77, 77], np.int32), (count, 1))
    fields = {
        "tokens": tokens,
        "lengths": np.full(count, 5, np.int32),
        "masked_positions": np.tile(np.array([2, 0], np.int32), (count, 1)),
        "masked_inputs": np.tile(np.array([4, 99], np.int32), (count, 1)),
    }
    return TokenizedSequences(id=name, split=split, **{**fields, **changes})


@pytest.mark.parametrize("remove_duplicates", [False, True])
def test_sequences_of_another_program_are_stored_as_they_are(
    tmp_path: Path, tokenizer_folder: Path, remove_duplicates: bool
) -> None:
    data = prepare(
        recipe(tokenizer_folder, remove_duplicates=remove_duplicates),
        tmp_path / "data",
        corpora=[Sequences(group(split="train"), group("b", count=2, split="held_out"))],
    )
    train, held_out = data.split("train"), data.split("held_out")
    assert (len(train), len(held_out)) == (4, 2)
    rows, lengths = train.rows(np.arange(4))
    assert rows[0].tolist() == [2, 10, 11, 12, 3] + [0] * (LENGTH - 5)
    assert lengths.tolist() == [5, 5, 5, 5]
    assert train.has_masks
    masks = train.masks(np.array([3, 0]))
    assert masks.positions.tolist() == [[2, 0], [2, 0]]
    assert masks.inputs.tolist() == [[4, 0], [4, 0]]
    assert data.manifest.splits["train"].tokens == 12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": np.full(4, 4, np.int32)}, r"do not start with \[CLS\] \(2\) or end with \[SEP\] \(3\)"),
        ({"lengths": np.full(4, 9, np.int32)}, "sequences of invalid lengths"),
        ({"masked_positions": np.full((4, 2), 5, np.int32)}, "masked positions after the ends"),
        ({"masked_inputs": np.full((4, 2), 5000, np.int32)}, "ids outside the tokenizer's vocabulary"),
        (
            {"tokens": np.tile(np.array([2] + [9] * 18 + [3], np.int32), (4, 1)), "lengths": np.full(4, 20, np.int32)},
            "up to 20 tokens .expected at most 16.",
        ),
    ],
)
def test_sequences_that_do_not_fit_the_recipe_are_refused(
    tmp_path: Path, tokenizer_folder: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        prepare(recipe(tokenizer_folder), tmp_path / "data", corpora=[Sequences(group(**changes))])
    assert leftovers(tmp_path) == []
    assert not (tmp_path / "data").exists()
