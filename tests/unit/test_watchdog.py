"""What counts as too long, without waiting for it: the watchdog's clock is made by the test."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from kdcore.training.runtime import watchdog
from kdcore.training.runtime.watchdog import Watchdog, duration, end_process, stacks


class Clock:
    """Replace the watchdog's event and the time: each slice lasts as long as the test states."""

    def __init__(self, slices: Iterator[float]) -> None:
        self.now = 0.0
        self.slices = slices

    def monotonic(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        length = next(self.slices, None)
        if length is None:
            return True
        self.now += length
        return False


class Ended(Exception):  # noqa: N818 - represents the end of the process
    pass


def silence_until_the_end(monkeypatch, tmp_path, slices, stall_minutes=None) -> tuple[Watchdog, Clock, list[str]]:
    """Run the watchdog's thread here, over slices of time; `slices` may tick in between. Gives its last words."""
    dog = Watchdog(stall_minutes, tmp_path / "train.log")
    words: list[str] = []

    def end(message: str, *_: object) -> None:
        words.append(message)
        raise Ended

    clock = Clock(slices(dog))
    monkeypatch.setattr(watchdog, "time", clock)
    monkeypatch.setattr(watchdog, "end_process", end)
    monkeypatch.setattr(dog, "_over", clock)
    with suppress(Ended):
        dog._watch()
    return dog, clock, words


def test_until_the_first_step_is_done_half_an_hour_is_waited(monkeypatch, tmp_path):
    def slices(dog):
        dog.starting("loading the models")
        yield 1.0
        dog.tick("step 1")
        yield from [1.0] * 3600

    _, clock, (words,) = silence_until_the_end(monkeypatch, tmp_path, slices, stall_minutes=0.5)
    assert 1800 < clock.now < 1810
    assert "made no progress for 30 minutes (phase: step 1; the limit before the first step)" in words


def test_a_component_that_reports_progress_may_take_longer_than_half_an_hour(monkeypatch, tmp_path):
    def slices(dog):
        watchdog.report_progress("nothing: no run is active")
        dog.starting("loading the models")
        yield from [1.0] * 1700
        monkeypatch.setattr(watchdog, "_entered", [dog])
        watchdog.report_progress("computing signals")
        yield from [1.0] * 3600

    _, clock, (words,) = silence_until_the_end(monkeypatch, tmp_path, slices)
    assert 3500 < clock.now < 3510
    assert "(phase: computing signals; the limit before the first step)" in words
    monkeypatch.undo()
    with Watchdog(None, tmp_path / "train.log") as dog:
        watchdog.report_progress("computing signals")
        assert dog._doing == "computing signals"
    watchdog.report_progress("more signals")
    assert dog._doing == "computing signals"


@pytest.mark.parametrize(("slow", "bound"), [(5, 600), (90, 1800)])
def test_the_bound_is_twenty_times_the_slowest_but_at_least_ten_minutes(monkeypatch, tmp_path, slow, bound):
    def slices(dog):
        for step in range(1, 5):
            dog.tick(f"step {step}")
            yield from [1.0] * (slow + 1 if step == 2 else 2)
        dog.tick("the checkpoint after step 4")
        yield from [1.0] * 4000

    _, clock, (words,) = silence_until_the_end(monkeypatch, tmp_path, slices)
    passed_before = 3 * 2 + slow + 1
    assert bound < clock.now - passed_before < bound + 10
    assert "(phase: the checkpoint after step 4;" in words
    assert "training.stall_minutes sets the limit" in words


def test_the_recipes_minutes_are_the_bound(monkeypatch, tmp_path):
    def slices(dog):
        for step in range(1, 4):
            dog.tick(f"step {step}")
            yield 0.5
        yield from [0.5] * 1000

    _, clock, (words,) = silence_until_the_end(monkeypatch, tmp_path, slices, stall_minutes=1.5)
    assert 90 < clock.now < 95
    assert "(phase: step 3; training.stall_minutes)" in words


def test_a_leap_of_the_clock_is_no_silence(monkeypatch, tmp_path):
    """The process was stopped, or the machine slept, for ten hours."""

    def slices(dog):
        for step in range(1, 4):
            dog.tick(f"step {step}")
            yield 1.0
        yield 36_000.0
        for step in range(4, 9):
            yield 1.0
            dog.tick(f"step {step}")
            yield 1.0
        assert dog._bound()[0] == 60, "nor does it make the bound any larger"

    _, _, words = silence_until_the_end(monkeypatch, tmp_path, slices, stall_minutes=1)
    assert words == []


def test_a_display_that_hangs_does_not_delay_the_end(monkeypatch, tmp_path):
    hangs, released, ended = threading.Event(), threading.Event(), threading.Event()
    messages: list[str] = []

    def show(phase: str) -> None:
        hangs.set()
        released.wait()

    def end(message: str, *_: object) -> None:
        messages.append(message)
        ended.set()
        dog._over.set()

    monkeypatch.setattr(watchdog, "end_process", end)
    monkeypatch.setattr(watchdog, "_SLICE_SECONDS", 0.01)
    with Watchdog(0.001, tmp_path / "train.log", show) as dog:
        assert hangs.wait(20)
        dog.tick("step 1")
        dog.tick("step 2")
        assert ended.wait(20)
    released.set()
    assert "(phase: step 2; training.stall_minutes)" in messages[0]


def test_a_display_that_fails_does_not_end_the_watch(monkeypatch, tmp_path):
    ended, failures = threading.Event(), []

    def show(phase: str) -> None:
        failures.append(phase)
        if len(failures) == 3:
            dog.tick("step 1")
            dog.tick("step 2")
        raise BrokenPipeError

    monkeypatch.setattr(watchdog, "end_process", lambda *_: ended.set())
    monkeypatch.setattr(watchdog, "_SLICE_SECONDS", 0.01)
    with Watchdog(0.001, tmp_path / "train.log", show) as dog:
        assert ended.wait(20)
    assert len(failures) >= 3


def test_the_last_words_go_to_stderr_and_log_with_every_threads_stack(monkeypatch, tmp_path):
    log = tmp_path / "train.log"
    log.write_text("before\n", encoding="utf-8")
    ended: list[int] = []
    monkeypatch.setattr(watchdog.os, "_exit", ended.append)
    read, write = os.pipe()
    waits, done = threading.Event(), threading.Event()

    def sit() -> None:
        waits.set()
        done.wait()

    thread = threading.Thread(target=sit, name="the-one-that-waits")
    thread.start()
    waits.wait()
    end_process("that is why", write, log)
    done.set()
    thread.join()
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as pipe:
        text = pipe.read()
    assert ended == [1]
    assert log.read_text(encoding="utf-8") == "before\n" + text
    assert text.endswith("error: that is why\n")
    assert "thread the-one-that-waits:\n" in text
    assert f'File "{__file__}", line' in text
    assert "in sit\n" in text


def test_a_log_that_cannot_be_written_keeps_nobody_alive(monkeypatch, tmp_path):
    ended: list[int] = []
    monkeypatch.setattr(watchdog.os, "_exit", ended.append)
    monkeypatch.setattr(watchdog, "_WRITING_SECONDS", 0.2)
    hanging = tmp_path / "train.log"
    monkeypatch.setattr(watchdog, "_append", lambda path, text: threading.Event().wait())
    end_process("why", os.open(os.devnull, os.O_WRONLY), hanging)
    assert ended == [1]


def test_stacks_name_process_and_threads(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    assert stacks().startswith(f"stacks of process 3 (pid {os.getpid()}):\n")


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.25, "0.25 seconds"), (6.0, "6 seconds"), (90.0, "90 seconds"), (720.0, "12 minutes")]
)
def test_durations_are_short(seconds, words):
    assert duration(seconds) == words
