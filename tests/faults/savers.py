"""A program that lets pairs of processes save checkpoints of a stand-in for the engine, and disturbs them.

    savers.py kill RUN SEED TRIALS    kill -9 at random moments; prints a line for each
    savers.py walk RUN                kill -9 at each thing that a single process does to files while it saves
    savers.py fail RUN CALL NUMBER    let CALL of the operating system fail on process 1 with the error NUMBER

Forking after torch has been imported is what makes so many processes affordable.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
import torch.distributed as dist

from kdcore.errors import InfrastructureError
from kdcore.training.checkpoint import format as files
from kdcore.training.checkpoint.manager import Checkpoints, latest_checkpoint
from kdcore.training.engine import tensors as tensor_files
from kdcore.training.runtime.distributed import DistributedContext

NUMBERS = 50_000


def content(step: int, rank: int, part: int) -> torch.Tensor:
    seed = int.from_bytes(hashlib.sha256(f"{step} {rank} {part}".encode()).digest()[:7])
    return torch.randn(NUMBERS, generator=torch.Generator().manual_seed(seed))


class StandIn:
    """Writes two files a process; process 1 is slow at it."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.step = 0

    def state_bytes(self) -> int:
        return 2 * 4 * NUMBERS

    def unsaveable(self) -> None:
        return None

    def save(self, staging: Path) -> list[Path]:
        paths = []
        for part in range(2):
            paths.append(staging / "engine" / f"rank-{self.rank}-part-{part}.pt")
            tensor_files.write_tensors(content(self.step, self.rank, part), paths[-1])
            time.sleep(0.01 * self.rank)
        return paths


def join(rank: int, count: int, meeting: Path) -> DistributedContext:
    dist.init_process_group("gloo", store=dist.FileStore(str(meeting), count), rank=rank, world_size=count)
    return DistributedContext(rank, count, torch.device("cpu"), dist.group.WORLD)


def saver(run: Path, processes: DistributedContext, announce: Path, steps: int = 10**6) -> None:
    """Go on from the newest checkpoint and save after every step."""
    logging.getLogger("kdcore").addHandler(logging.NullHandler())
    found = latest_checkpoint(run, processes)
    first = 0 if found is None else files.read_state(found).step
    engine = StandIn(processes.rank)
    with Checkpoints(run, 2, processes, lambda: None) as checkpoints:
        for step in range(first + 1, first + 1 + steps):
            engine.step = step
            state = files.TrainingState(step, float(step), float(step), processes.world_size, 1)
            checkpoints.save(state, {"seen": float(step)}, engine)  # type: ignore[arg-type]
            checkpoints.wait()
            if processes.is_main:
                announce.write_text(str(step), encoding="utf-8")


def child(work) -> int:
    """Run `work` in a separate process."""
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        work()
        code = 0
    except InfrastructureError as error:
        os.write(2, f"error: {error}\n".encode())
    except BaseException:
        traceback.print_exc()
        code = 99
    finally:
        os._exit(code)


def code_of(number: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def check(run: Path, announced: int, ranks: int) -> int:
    """The promises of a checkpoint, after any disturbance; gives the newest step."""
    for folder in files.all_checkpoints(run):
        assert files.problems_of(folder) == [], folder
    files.clean_up(run)
    found = files.latest_checkpoint(run)
    step = 0 if found is None else files.read_state(found).step
    assert step >= announced, f"step {announced} had been announced, {step} is the newest"
    if found is not None:
        for rank in range(ranks):
            for part in range(2):
                tensor = torch.load(found / "engine" / f"rank-{rank}-part-{part}.pt")
                assert torch.equal(tensor, content(step, rank, part))
        assert all(files.problems_of(folder) == [] for folder in files.all_checkpoints(run))
        rest = {path.name for path in found.parent.iterdir()} - {path.name for path in files.all_checkpoints(run)}
        assert rest <= {"latest"}, rest
    return step


def kill(run: Path, seed: int, trials: int) -> None:
    announce = run.with_name("announced")
    announce.write_text("0", encoding="utf-8")
    generator = random.Random(seed)
    step = 0
    for trial in range(trials):
        meeting = run.with_name(f"meeting-{trial}")
        pair = [child(lambda r=rank, m=meeting: saver(run, join(r, 2, m), announce)) for rank in range(2)]
        before = step
        while int(announce.read_text(encoding="utf-8") or before) <= before:  # it has begun, and saves all the time
            time.sleep(0.005)
        delay = generator.uniform(0, 0.15)
        time.sleep(delay)
        victim = generator.choice(["both", 0, 1])
        for rank in range(2) if victim == "both" else [victim]:
            os.kill(pair[rank], signal.SIGKILL)
        codes = [code_of(number) for number in pair]
        # A process that has lost its peer ends with its own error.
        for rank, code in enumerate(codes):
            assert code == (-signal.SIGKILL if victim in ("both", rank) else 1), codes
        step = check(run, int(announce.read_text(encoding="utf-8") or before), 2)
        print(f"killed {victim} after {delay * 1000:.0f} ms: {codes}, step {step} is good", flush=True)


def walk(run: Path) -> None:
    """Two checkpoints are complete; the third is cut off at its first access to a file, then its second, ..."""
    announce = run.with_name("announced")
    announce.write_text("0", encoding="utf-8")
    assert code_of(child(lambda: saver(run, join(0, 1, run.with_name("meeting")), announce, steps=2))) == 0
    events = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove"}
    count, fatal = 0, 1

    def cut_off() -> None:
        meeting = run.with_name(f"meeting-{fatal}")
        processes = join(0, 1, meeting)
        seen = 0

        def watch(event: str, arguments: tuple) -> None:
            nonlocal seen
            if event in events and str(run) in str(arguments[0]):
                seen += 1
                if seen == fatal:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        saver(run, processes, announce, steps=1)

    while code_of(child(cut_off)) != 0:
        step = check(run, int(announce.read_text(encoding="utf-8")), 1)
        assert step >= 2
        assert len(files.all_checkpoints(run)) >= 1
        count += 1
        fatal += 1
        assert fatal < 500
    print(f"cut off at {count} places")


def fail(run: Path, call: str, number: int) -> None:
    announce = run.with_name("announced")
    announce.write_text("0", encoding="utf-8")

    def work(rank: int) -> None:
        processes = join(rank, 2, run.with_name("meeting"))
        saver(run, processes, announce, steps=1)
        if rank == 1:
            original = getattr(os, call) if call == "fsync" else tensor_files._File.write

            def failing(*arguments: object) -> object:
                raise OSError(number, os.strerror(number))

            def failing_write(self: tensor_files._File, data: memoryview) -> int:
                self._file = FailingFile(number)
                return original(self, data)

            if call == "fsync":
                os.fsync = failing
            else:
                tensor_files._File.write = failing_write
        saver(run, processes, announce, steps=5)

    codes = [code_of(number) for number in [child(lambda r=rank: work(r)) for rank in range(2)]]  # no hang
    assert codes == [1, 1], codes
    folder = run / "checkpoints"
    names = {path.name for path in folder.iterdir()}
    assert names == {"step-0000001", "latest"}, names
    assert check(run, 1, 2) == 1


class FailingFile:
    def __init__(self, number: int) -> None:
        self.number = number

    def write(self, data: memoryview) -> int:
        raise OSError(self.number, os.strerror(self.number))

    def close(self) -> None:
        pass


if __name__ == "__main__":
    torch.set_num_threads(1)
    action, folder, *rest = sys.argv[1:]
    if action == "kill":
        kill(Path(folder), int(rest[0]), int(rest[1]))
    elif action == "walk":
        walk(Path(folder))
    else:
        fail(Path(folder), rest[0], getattr(errno, rest[1]))
