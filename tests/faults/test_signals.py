"""Signals at every moment of a run: training is saved and ends, everything else just ends, with exit code 130."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

RUN = Path("runs", "small", "1")
SLOW_READER = """
import time
from pathlib import Path

from kdcore import ComponentConfig, Corpus, Document, register_corpus


@register_corpus("slow")
class Slow(Corpus):
    class Config(ComponentConfig):
        pass

    def files(self):
        return {"slow.py": Path("slow.py").absolute()}

    def documents(self):
        yield Document("first", "a document")
        Path("reading").touch()
        while True:
            time.sleep(0.01)
"""


def saved(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / RUN / "checkpoints").glob("step-*"))


@pytest.mark.parametrize(("event", "name"), [("interrupt", "SIGINT"), ("terminate", "SIGTERM"), ("requeue", "SIGUSR2")])
def test_a_signal_during_training_saves_the_step_and_the_next_start_goes_on(start, eventful, tmp_path, event, name):
    overrides = eventful(event, step=3)
    run = start(*overrides)
    assert run.wait() == 130, run.text
    assert saved(tmp_path) == ["step-0000003"]
    assert "run the same command again to resume" in run.text
    if name == "SIGINT":
        again = start(*overrides, EVENT="")
        assert again.wait() == 0, again.text
        assert "continued from step-0000003" in again.text


def test_a_second_sigint_ends_training_now(start, eventful, tmp_path):
    run = start(*eventful("interrupt twice", step=3))
    assert run.wait() == 130, run.text
    assert run.errors == []
    assert run.text.splitlines()[-1] == "interrupted by SIGINT"
    assert saved(tmp_path) == []


def test_a_second_sigint_ends_a_run_that_waits_for_a_lost_process(start, eventful, is_stopped, has_pending_signal):
    """The main thread sits in a collective, where Python runs no signal handler."""
    run = start(*eventful("stop", step=3, rank=1), processes=2)
    run.until(lambda: any(map(is_stopped, run.children())))
    run.process.send_signal(signal.SIGINT)
    # Two signals of a kind that come at once are one; the stopped process keeps what was passed on to it.
    run.until(lambda: any(map(has_pending_signal, run.children())))
    run.until(lambda: sum(map(has_pending_signal, [run.process.pid, *run.children()])) == 1)
    run.process.send_signal(signal.SIGINT)
    assert run.wait() == 130, run.text
    assert run.errors == []
    assert run.children() == []


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_libraries_are_imported_ends_the_start(start, imports_torch, tmp_path, number):
    run = start()
    run.until(lambda: imports_torch(run.process.pid))
    run.process.send_signal(number)
    assert run.wait() == 130, run.text
    assert run.text == f"interrupted by {number.name}\n"
    assert not (tmp_path / "runs").exists()


def test_a_signal_ends_the_start_of_two_processes(start, tmp_path):
    run = start(processes=2)
    run.until(run.children)  # the first of them may not even run Python yet
    run.process.send_signal(signal.SIGUSR2)
    assert run.wait() == 130, run.text
    assert run.errors == []
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_while_data_is_prepared_leaves_nothing_half_written(start, tmp_path, number):
    (tmp_path / "slow.py").write_text(SLOW_READER, encoding="utf-8")
    cache = tmp_path / "cache"
    run = start("imports=[slow.py]", "task.data.corpora=[{name: slow}]", KDCORE_CACHE=str(cache))
    run.until(lambda: (tmp_path / "reading").exists())
    run.process.send_signal(number)
    assert run.wait() == 130, run.text
    assert run.text.splitlines()[-1] == f"interrupted by {number.name}"
    assert run.errors == []
    # What is finished of it may be kept for the next start, under a name that is not read as prepared data.
    assert not [path for path in cache.iterdir() if path.is_dir() and not path.name.startswith(".")]
    assert not (tmp_path / "runs").exists()
