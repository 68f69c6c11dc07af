"""Preparations that are killed, run out of disk or are attacked by other preparations."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import pytest
from kdcore_preparation import DataRecipe, prepare, prepare_share

from kdcore.data.base import PART_BYTES, Corpus, CorpusConfig, Document, Part
from kdcore.errors import InfrastructureError

PARTS = 9
DOCUMENTS = 150  # of each part
KILLS = 20


class Babble(Corpus):
    """Parts of some thousands of words, each a unit of its own."""

    def __init__(self) -> None:
        super().__init__(CorpusConfig())

    def files(self) -> Mapping[str, Path]:
        return {}

    def parts(self) -> list[Part]:
        return [Part(str(number), bytes=PART_BYTES) for number in range(PARTS)]

    def documents(self) -> Iterator[Document]:
        raise NotImplementedError

    def read(self, part: Part) -> Iterator[Document]:
        choice = random.Random(part.name)
        for number in range(DOCUMENTS):
            words = choice.choices(["the", "teacher", "of", "student", "zebra", "and"], k=choice.randint(1, 200))
            yield Document(f"{part.name}:{number}", " ".join(words) + ".")


def recipe(tokenizer_folder: Path, **keys: Any) -> DataRecipe:
    entry = {"name": "text", "path": "unused"}
    return DataRecipe(corpora=[entry], tokenizer=str(tokenizer_folder), sequence_length=32, **keys)


def content(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


DOCUMENT = "document"
ANY_FILE = r"(?!document$).*"


class Gate:
    """Hold a preparation at a mark until it is killed: no process of it passes the gate again after that.

    Each document read and each rename of a file or folder passes the gate, under the name `document` or that of the
    rename's target. What is held does not depend on the machine's pace.

    Args:
        reached: file that is written when the mark is reached.
        pattern: regular expression of the names that count.
        number: the mark: the document or rename, counted from 1 over all processes, that does not pass.
    """

    def __init__(self, reached: Path, pattern: str, number: int) -> None:
        self.reached = reached
        self._pattern = pattern
        self._number = number
        self._passed = get_context("fork").Value("q", 0)

    @property
    def passed(self) -> int:
        """How many have passed or are held."""
        return int(self._passed.value)

    def enter(self, name: str) -> None:
        with self._passed.get_lock():
            self._passed.value += re.fullmatch(self._pattern, name) is not None
            held = self._passed.value >= self._number
        if held:
            self.reached.touch()
            while True:
                signal.pause()

    def before(self, rename: Callable[..., None]) -> Callable[..., None]:
        """Return the same rename behind the gate."""

        def gated(source: Any, target: Any, **keys: Any) -> None:
            self.enter(Path(target).name)
            rename(source, target, **keys)

        return gated


class GatedBabble(Babble):
    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self._gate = gate

    def read(self, part: Part) -> Iterator[Document]:
        for document in super().read(part):
            self._gate.enter(DOCUMENT)
            yield document


def _prepare_behind(gate: Gate, data: DataRecipe, folder: Path, workers: int) -> None:
    os.replace, os.rename = gate.before(os.replace), gate.before(os.rename)  # pathlib calls them, too
    prepare(data, folder, corpora=[GatedBabble(gate)], workers=workers)


@pytest.mark.parametrize("keys", [{}, {"packing": "full", "remove_duplicates": True}], ids=["plain", "all stages"])
def test_twenty_kills_at_random_moments_leave_no_trace(
    tmp_path: Path, tokenizer_folder: Path, keys: dict[str, Any]
) -> None:
    data = recipe(tokenizer_folder, **keys)
    context = get_context("fork")
    choice = random.Random(0)

    def start(gate: Gate, folder: Path, workers: int) -> Any:
        child = context.Process(target=_prepare_behind, args=(gate, data, folder, workers))
        child.start()
        return child

    undisturbed = Gate(tmp_path / "never", ANY_FILE, sys.maxsize)
    child = start(undisturbed, tmp_path / "undisturbed", 2)
    child.join()
    assert child.exitcode == 0
    renames = undisturbed.passed
    assert renames > 3 * PARTS, "each part is written to three files"

    # An attempt that is held at rename n has completed at most n - 1 renames. Their sum stays below that of a whole
    # preparation, and the first kills leave parts to read, so every attempt reaches its mark.
    documents = [(DOCUMENT, choice.randrange(1, DOCUMENTS)) for _ in range(10)]
    early = [(ANY_FILE, choice.randint(1, 3)) for _ in range(2)]
    late = [(ANY_FILE, choice.randint(1, (renames - 6) // 6)) for _ in range(6)]
    marks = [*documents[:5], *early, *documents[5:], *late, (r"manifest\.json", 1), ("killed", 1)]
    assert len(marks) == KILLS
    folder = tmp_path / "killed"
    for kill, (pattern, number) in enumerate(marks):
        gate = Gate(tmp_path / f"reached-{kill}", pattern, number)
        child = start(gate, folder, 1 + kill % 3)
        while not gate.reached.exists():
            child.join(0.01)
            assert child.is_alive(), f"it ended with {child.exitcode} before mark {number} of {pattern}"
        workers = psutil.Process(child.pid).children(recursive=True)
        child.kill()
        child.join()
        psutil.wait_procs(workers, timeout=60)
        assert not any(worker.is_running() for worker in workers), "a worker outlives the preparation"
        assert not folder.exists()
    child = start(Gate(tmp_path / "never", ANY_FILE, sys.maxsize), folder, 2)
    child.join()
    assert child.exitcode == 0
    assert content(folder) == content(tmp_path / "undisturbed")
    assert leftovers(tmp_path) == []


def test_tasks_that_work_side_by_side_put_the_same_together(tmp_path: Path, tokenizer_folder: Path) -> None:
    data = recipe(tokenizer_folder)
    context = get_context("fork")
    folder = tmp_path / "tasks"
    tasks = [
        context.Process(
            target=prepare_share, args=(data, folder, task, 3), kwargs={"corpora": [Babble()], "workers": 1}
        )
        for task in (1, 2, 3)
    ]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join()
        assert task.exitcode == 0
    prepare(data, tmp_path / "alone", corpora=[Babble()], workers=1)
    assert content(folder) == content(tmp_path / "alone")
    assert leftovers(tmp_path) == []


def _limited(data: DataRecipe, folder: Path, result: Any) -> None:
    """Prepare where no file may be larger than 20 kB: writing more fails as on a full disk, but with another number."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    try:
        prepare(data, folder, corpora=[Babble()], workers=2)
    except InfrastructureError as error:
        cause = error.__cause__
        result.put((str(error), cause.errno if isinstance(cause, OSError) else None))


def test_writing_that_fails_leaves_nothing_that_looks_whole(tmp_path: Path, tokenizer_folder: Path) -> None:
    data = recipe(tokenizer_folder)
    context = get_context("fork")
    result = context.Queue()
    folder = tmp_path / "data"
    child = context.Process(target=_limited, args=(data, folder, result))
    child.start()
    message, number = result.get(timeout=60)
    child.join()
    assert number == errno.EFBIG
    assert "the data cannot be prepared" in message
    assert not folder.exists()
    staging = tmp_path / ".data.preparing"
    assert not list(staging.glob("train-*.arrow")), "a shard has its name before it is whole"
    prepare(data, folder, corpora=[Babble()], workers=2).verify()
    prepare(data, tmp_path / "undisturbed", corpora=[Babble()], workers=2)
    assert content(folder) == content(tmp_path / "undisturbed")


def test_the_command_refuses_to_run_twice_and_starts_again_after_a_kill(tmp_path: Path, tokenizer_folder: Path) -> None:
    (tmp_path / "texts.txt").write_text(("the teacher of the student and the zebra " * 100 + "\n") * 400)
    (tmp_path / "data.yaml").write_text(
        f"corpora: [{{name: text, path: texts.txt}}]\ntokenizer: {tokenizer_folder}\nheld_out: 0.1\n"
    )
    command = [sys.executable, "-m", "kdcore.commands.main", "prepare", "data.yaml", "data"]
    with subprocess.Popen(command, cwd=tmp_path) as first:
        while not (tmp_path / ".data.preparing" / "plan.json").is_file():
            assert first.poll() is None
            os.sched_yield()
        first.send_signal(signal.SIGSTOP)  # so that it is at work as long as this takes
        second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        first.send_signal(signal.SIGKILL)
    assert second.returncode == 2
    assert "another process is preparing this data" in second.stderr
    assert not (tmp_path / "data").exists()
    done = subprocess.run([*command, "held_out=0"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "train: 400 documents" in done.stdout
    assert "tokens/s" in done.stdout
    subprocess.run([*command[:3], "data", "verify", "data"], cwd=tmp_path, check=True)
