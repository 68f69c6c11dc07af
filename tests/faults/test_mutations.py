"""Damaged files of every kind: thousands of mutations, seeded and bounded, each against an independent check.

Half of them change bytes, half values and keys. No command may end in a traceback or take longer than 5 seconds;
nothing changed is accepted where a file is hashed, and only rows and objects of the right types are used elsewhere.
Messages have to name file and line or key. `make test-faults` tries 50 of each kind, `make test-mutations` 1,000.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import math
import os
import random
import re
import shutil
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from kdcore_evaluation.run.results import ResultRow, read_rows

import kdcore
from kdcore.commands.main import main
from kdcore.recipe.yaml import read_yaml
from kdcore.trackers.base import Tracker
from kdcore.trackers.jsonl import JsonLinesTracker
from kdcore.training.checkpoint import format as checkpoints

COUNT = int(os.environ.get("KDCORE_MUTATIONS", "50"))
SECONDS = 5.0
STEP = "step-0000006"
ODD_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**400, 1e308, -0.5, math.nan, math.inf, -math.inf),
    *("", "x", "<b>", "a" * 3000, "../../x", "/etc/passwd", "\0", "\ud800", "1", "é", "a\nb"),
    *([], {}, [1], {"a": 1}, [[]]),
]


class Mutations:
    """Mutations of one file, the same for the same seed."""

    def __init__(self, name: str) -> None:
        self.random = random.Random(name)
        self.kinds: Counter[str] = Counter()

    def of(self, content: bytes, *, rows: bool = False) -> Iterator[bytes]:
        """Yield contents that differ from the given one; half of them by bytes, half by JSON values."""
        made = 0
        while made < COUNT:
            kind = "bytes" if self.random.random() < 0.5 else "structure"
            if kind == "bytes":
                changed = self.bytes(content)
            elif rows:
                changed = self.rows(content)
            else:
                changed = self.dump(self.value(json.loads(content)))
            if changed != content:
                made += 1
                self.kinds[kind] += 1
                yield changed

    def bytes(self, content: bytes) -> bytes:
        """Flip bits, replace, remove and repeat bytes, or cut the end off."""
        changed = bytearray(content)
        for _ in range(self.random.choice([1, 1, 1, 2, 4])):
            place, what = self.random.randrange(len(changed)), self.random.randrange(4)
            if what == 0:
                changed[place] ^= 1 << self.random.randrange(8)
            elif what == 1:
                changed[place] = self.random.randrange(256)
            elif what == 2:
                del changed[place : place + self.random.randrange(1, 40)]
            else:
                changed[place:place] = changed[place : place + self.random.randrange(1, 60)]
            changed = changed or bytearray(b"x")
        if self.random.random() < 0.05:
            changed = changed[: self.random.randrange(len(changed) + 1)]
        return bytes(changed)

    def rows(self, content: bytes) -> bytes:
        """Change values and keys of some rows."""
        lines = [json.loads(line) for line in content.decode().splitlines()]
        for _ in range(self.random.choice([1, 1, 3, len(lines)])):
            place = self.random.randrange(len(lines))
            lines[place] = self.value(lines[place])
        return b"\n".join(map(self.dump, lines)) + b"\n"

    def value(self, value: Any) -> Any:
        """Give a value another type somewhere, or remove or rename a key."""
        for _ in range(self.random.choice([1, 1, 2, 4])):
            places = list(_places(value))
            if not places:
                return copy.deepcopy(self.random.choice(ODD_VALUES))
            *outer, last = self.random.choice(places)
            inner = value
            for key in outer:
                inner = inner[key]
            what = self.random.random()
            if what < 0.25:
                del inner[last]
            elif what < 0.35 and isinstance(inner, dict):
                inner[str(last)[::-1] + "x"] = inner.pop(last)
            else:
                inner[last] = copy.deepcopy(self.random.choice(ODD_VALUES))
        return value

    @staticmethod
    def dump(value: Any) -> bytes:
        """Write JSON, also of what cannot be written in UTF-8."""
        return json.dumps(value).encode()


def _places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if place:
        yield place
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from _places(value[key], (*place, key))


class HangError(BaseException):
    """A command took too long."""


class Warnings(logging.Handler):
    """Collect kdcore's warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


class Outcome:
    """What a command or a function did."""

    def __init__(self, run: Callable[[], Any]) -> None:
        out, err, warnings, logger = io.StringIO(), io.StringIO(), Warnings(), logging.getLogger("kdcore")
        logger.addHandler(warnings)
        signal.signal(signal.SIGALRM, self._alarm)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                self.value = run()
        except kdcore.InputError as error:
            self.value = error
        except BaseException:  # HangError and the panics of libraries included
            pytest.fail(traceback.format_exc()[-3000:])
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            logger.removeHandler(warnings)
        self.out, self.err, self.warnings = out.getvalue(), err.getvalue(), warnings.texts
        assert "Traceback" not in self.out + self.err
        assert "KDCORE_TRACEBACK" not in self.err, f"an error that no reader expects: {self.err}"
        assert len(self.err) < 20_000

    @staticmethod
    def _alarm(*_: object) -> None:
        raise HangError(f"longer than {SECONDS} seconds")

    @property
    def errors(self) -> list[str]:
        """The lines that name a problem."""
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


def command(*arguments: str) -> Outcome:
    """Run a command in this process."""
    outcome = Outcome(lambda: main(arguments))
    assert outcome.value in (0, 1, 2), outcome.err
    if outcome.value and arguments[0] != "checkpoint":
        assert outcome.errors, outcome.err
    return outcome


def loaded(text: bytes) -> Any:
    """Parse JSON as RFC 8259 with NaN and Infinity does; raises ValueError for text that UTF-8 cannot hold."""
    value = json.loads(text.decode("utf-8"))
    json.dumps(value, ensure_ascii=False).encode()
    return value


def is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) <= sys.float_info.max)


def same(one: Any, other: Any) -> bool:
    """Compare values, types included; NaN equals NaN."""
    return repr(one) == repr(other)


RECIPE = """\
run: {{name: small, id: 1}}
seed: 3
teacher: {{path: {teacher}}}
student:
  config: {{num_hidden_layers: 2}}
  initialize: {{from: teacher, blocks: uniform}}
task:
  name: masked_lm
  data:
    tokenizer: {teacher}
    sequence_length: 48
    held_out: 0.1
    corpora:
      - {{name: text, path: {corpus}, documents: lines}}
losses:
  hidden_mse: {{layers: last}}
optimizer: {{name: adamw, lr: 1.0e-3, betas: [0.9, 0.98], eps: 1.0e-6, weight_decay: 0.01}}
training: {{budget: {{steps: 6}}, batch_size: 8, precision: fp32}}
validation: {{every: 3}}
checkpoints: {{every: 3}}
logging: {{every: 1}}
tracking: [jsonl]
"""


@pytest.fixture(scope="module")
def project(
    tmp_path_factory: pytest.TempPathFactory, teacher_folder: Path, corpus_file: Path, compared_project: Path
) -> Iterator[Path]:
    """A finished run `runs/small/1`, its unharmed copy `runs/small/2`, prepared data and results."""
    folder = tmp_path_factory.mktemp("mutations")
    recipe = folder / "small.yaml"
    recipe.write_text(RECIPE.format(teacher=teacher_folder, corpus=corpus_file), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDCORE_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        assert main(["train", str(recipe)]) == 0
        shutil.copytree(folder / "runs" / "small" / "1", folder / "runs" / "small" / "2")
        other = folder / "runs" / "small" / "2" / "recipe.yaml"
        other.write_text(re.sub(r"(?m)^  id: .*$", "  id: 2", other.read_text(encoding="utf-8")), encoding="utf-8")
        (prepared,) = (path.parent for path in (folder / "cache").glob("*/manifest.json"))
        shutil.copytree(prepared, folder / "data")
        shutil.copytree(compared_project, folder / "compared")
        shutil.copy(Path(__file__).parents[1] / "source-command.sh", folder / "command.sh")
        yield folder


@pytest.fixture
def damaged(project: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """The file that a test mutates, given by its path in the project; restored at the end."""
    path = project / request.param
    content = path.read_bytes()
    yield path
    path.write_bytes(content)


def mutates(path: str) -> Any:
    return pytest.mark.parametrize("damaged", [path], indirect=True, ids=[Path(path).name])


def report(name: str, mutations: Mutations, results: Counter[str]) -> None:
    kinds = ", ".join(f"{count:,} of {kind}" for kind, count in sorted(mutations.kinds.items()))
    counts = ", ".join(f"{count:,} {what}" for what, count in sorted(results.items()))
    print(f"\n{name}: {mutations.kinds.total():,} mutations ({kinds}): {counts}")


@mutates("runs/small/1/metrics.jsonl")
def test_metrics(damaged: Path, project: Path) -> None:
    run, mutations, results = damaged.parent, Mutations("metrics"), Counter[str]()
    for content in mutations.of(damaged.read_bytes(), rows=True):
        good, bad = [], []
        for number, line in enumerate(content.split(b"\n"), 1):
            try:
                row = loaded(line) if line.strip() else None
            except ValueError:
                row = {}
            if row is None and not line.strip():
                continue
            typed = isinstance(row, dict) and all(map(is_number, row.values()))
            if typed and type(row.get("step")) is int and 0 <= row["step"] < 1 << 62:
                good.append({"step": row.pop("step"), **row})
            else:
                bad.append(number)
        damaged.write_bytes(content)
        read = Outcome(lambda: kdcore.read_metrics(run))
        assert same(read.value, good), content
        starts = [f"{damaged}:{bad[0]}: skipped a damaged row"] if bad else []
        assert [text[: len(start)] for text, start in zip(read.warnings, starts, strict=True)] == starts
        listed = command("runs", "list", "runs")
        assert listed.value == 0
        assert [line.split()[0] for line in listed.out.splitlines()[1:]] == ["small/1", "small/2"]
        assert [f"{project}/{text}" for text in listed.warnings] == read.warnings
        compared = command("compare", "runs", "--html", "page.html")
        assert compared.value == 0
        assert compared.warnings == read.warnings

        def resume() -> list[Any]:
            tracker = JsonLinesTracker(Tracker.Config(), run)
            tracker.rewind(4)
            tracker.close()
            return [json.loads(line) for line in damaged.read_text(encoding="utf-8").splitlines()]

        assert same(Outcome(resume).value, [row for row in good if row["step"] <= 4])
        results["with skipped rows" if bad else "without"] += 1
    report("metrics.jsonl", mutations, results)


def is_result_row(row: Any) -> bool:
    if not isinstance(row, dict):
        return False
    if any("\0" in (row.get(name) or "") for name in ("run", "source") if isinstance(row.get(name, ""), str)):
        return False
    for name, hint in get_type_hints(ResultRow).items():
        types = get_args(hint) or (hint,)
        value = row.get(name, ...)
        fits = (
            (type(value) in types) or (float in types and type(value) is int) or (type(None) in types and value is None)
        )
        if not fits:
            return False
    try:
        versions = loaded(row["versions"].encode())
    except ValueError:
        return False
    return isinstance(versions, dict) and all(isinstance(version, str) for version in versions.values())


@mutates("compared/evaluations/quick/results.jsonl")
def test_results(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mutations, results = Mutations("results"), Counter[str]()
    monkeypatch.chdir(damaged.parents[2])
    names = [field.name for field in fields(ResultRow)]
    floats = {name for name, hint in get_type_hints(ResultRow).items() if float in (hint, *get_args(hint))}
    for content in mutations.of(damaged.read_bytes(), rows=True):
        good, bad = [], []
        for number, line in enumerate(content.split(b"\n"), 1):
            if not line.strip():
                continue
            try:
                row = loaded(line)
            except ValueError:
                row = None
            if is_result_row(row):
                typed = {name: row[name] for name in names}
                good.append({k: _float(v) if k in floats and v is not None else v for k, v in typed.items()})
            else:
                bad.append(number)
        damaged.write_bytes(content)
        read = Outcome(lambda: [asdict(row) for row in read_rows(damaged.parent)])
        assert same(read.value, good), content
        starts = [f"{damaged}:{bad[0]}: skipped a damaged row"] if bad else []
        assert [text[: len(start)] for text, start in zip(read.warnings, starts, strict=True)] == starts
        compared = command("compare", "runs", "--html", "page.html")
        assert compared.value == 0, compared.err
        assert len(compared.warnings) == len(starts)
        results["with skipped rows" if bad else "without"] += 1
    report("results.jsonl", mutations, results)


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


@mutates("runs/small/1/environment.json")
def test_environment(damaged: Path) -> None:
    mutations, results = Mutations("environment"), Counter[str]()
    texts = {"python": str, "data_fingerprint": (str, type(None))}
    for content in mutations.of(damaged.read_bytes()):
        try:
            value = loaded(content)
        except ValueError:
            value = None
        wrong = set() if isinstance(value, dict) else {""}
        if isinstance(value, dict):
            wrong = {key for key, types in texts.items() if not isinstance(value.get(key, ""), types)}
            for key, empty in (("packages", False), ("teacher_sha256", True)):
                inner = value.get(key, {})
                if (not (empty and inner is None) and not isinstance(inner, dict)) or any(
                    not isinstance(one, str) for one in (inner or {}).values()
                ):
                    wrong.add(key)
            git = value.get("git")
            if git is not None and not (
                isinstance(git, dict) and all(isinstance(one, (str, bool)) for one in git.values())
            ):
                wrong.add("git")
        damaged.write_bytes(content)
        read = Outcome(lambda: kdcore.read_environment(damaged.parent))
        if wrong:
            assert isinstance(read.value, kdcore.DataError), content
            assert {problem.where for problem in read.value.problems} == {str(damaged)}
            assert {(problem.key or "").split(".")[0] for problem in read.value.problems} == wrong
        else:
            assert isinstance(value, dict)
            assert read.value.data_fingerprint == value.get("data_fingerprint")
            assert read.value.teacher_sha256 == value.get("teacher_sha256")
        compared = command("compare", "runs", "--html", "page.html")
        assert compared.value == 0
        assert [text.startswith(f"{damaged}: ") for text in compared.warnings] == [True] * bool(wrong)
        assert command("runs", "list", "runs").value == 0
        results["refused" if wrong else "of the right types"] += 1
    report("environment.json", mutations, results)


@mutates(f"runs/small/1/checkpoints/{STEP}/state.json")
def test_state(damaged: Path) -> None:
    mutations, results = Mutations("state"), Counter[str]()
    counts = {"step": 0, "world_size": 1, "zero_stage": 0, "stage": 0}
    for content in mutations.of(damaged.read_bytes()):
        try:
            value = loaded(content)
        except ValueError:
            value = None
        wrong = {""}
        if isinstance(value, dict):
            wrong = {
                key
                for key, least in counts.items()
                if not (
                    type(value.get(key, 0 if key == "stage" else None)) is int and least <= value.get(key, 0) < 1 << 62
                )
            }
            for key in ("seconds", "done_seconds"):
                if not is_number(value.get(key)) or not math.isfinite(value[key]):
                    wrong.add(key)
            wrong |= {"milestone"} if type(value.get("milestone", False)) is not bool else set()
            best = value.get("best_score")
            wrong |= {"best_score"} if best is not None and type(best) not in (int, float) else set()
            waited = value.get("waited", 0)
            wrong |= {"waited"} if type(waited) is not int or not 0 <= waited < 1 << 62 else set()
            for key in ("initial", "watched"):
                values = value.get(key, {})
                if not isinstance(values, dict):
                    wrong.add(key)
                    continue
                wrong |= {
                    f"{key}.{name}"
                    for name, number in values.items()
                    if not is_number(number) or not math.isfinite(number)
                }
        damaged.write_bytes(content)
        read = Outcome(lambda: checkpoints.read_state(damaged.parent))
        if wrong:
            assert isinstance(read.value, kdcore.DataError), content
            assert {problem.where for problem in read.value.problems} == {str(damaged)}
            assert {problem.key or "" for problem in read.value.problems} == wrong
        else:
            assert read.value.step == value["step"]
        verified = command("checkpoint", "verify", "runs/small/1")
        assert verified.value == 1, "a hashed file has changed"
        lines = dict(line.split("  ", 1) for line in verified.out.splitlines())
        assert lines["step-0000003"] == "valid"
        assert lines[STEP].startswith("state.json ")
        listed = command("checkpoint", "list", "runs/small/1")
        assert listed.value == 0
        assert f"{STEP}  damaged: " in listed.out
        shown = command("checkpoint", "show", "runs/small/1", "6")
        assert shown.value == 2
        assert "state.json" in shown.errors[0]
        assert command("runs", "list", "runs").value == 0
        results["refused by type" if wrong else "refused by hash"] += 1
    report("state.json", mutations, results)


@mutates(f"runs/small/1/checkpoints/{STEP}/manifest.json")
def test_checkpoint_manifest(damaged: Path) -> None:
    mutations, results = Mutations("checkpoint manifest"), Counter[str]()
    for content in mutations.of(damaged.read_bytes()):
        damaged.write_bytes(content)
        verified = command("checkpoint", "verify", "runs/small/1")
        assert verified.value == 1, content
        assert re.search(rf"^{STEP}  manifest\.json ", verified.out, re.MULTILINE)
        assert "step-0000003  valid" in verified.out
        listed = command("checkpoint", "list", "runs/small/1")
        assert listed.value == 0
        assert f"{STEP}  damaged: manifest.json " in listed.out
        shown = command("checkpoint", "show", "runs/small/1", "6")
        assert shown.value == 2
        assert f"{STEP}: manifest.json " in shown.errors[0]
        assert command("runs", "list", "runs").value == 0
        results["refused"] += 1
    report("manifest.json of a checkpoint", mutations, results)


@mutates("data/manifest.json")
def test_data_manifest(damaged: Path) -> None:
    mutations, results = Mutations("data manifest"), Counter[str]()
    canonical = json.dumps(json.loads(damaged.read_bytes()), sort_keys=True)
    for content in mutations.of(damaged.read_bytes()):
        try:
            unchanged = json.dumps(loaded(content), sort_keys=True) == canonical
        except ValueError:
            unchanged = False
        damaged.write_bytes(content)
        for action in ("verify", "inspect"):
            outcome = command("data", action, "data")
            assert outcome.value == (0 if unchanged else 2), content
            if not unchanged:
                assert re.search(r"^error: data(/manifest\.json)?: ", outcome.errors[0])
        results["accepted: another text of the same content" if unchanged else "refused"] += 1
    report("manifest.json of prepared data", mutations, results)


@mutates("data/tokenizer/tokenizer.json")
def test_tokenizer(damaged: Path) -> None:
    mutations, results = Mutations("tokenizer"), Counter[str]()
    for content in mutations.of(damaged.read_bytes()):
        damaged.write_bytes(content)
        for action in ("verify", "inspect"):
            outcome = command("data", action, "data")
            assert outcome.value == 2, "a hashed file has changed"
            assert outcome.errors[0].startswith(
                "error: data/tokenizer/tokenizer.json: is damaged: its checksum differs"
            )
        # A tokenizer that is given as such has no checksum: it can be loaded, or is named in an error.
        read = Outcome(lambda: kdcore.load_tokenizer("data/tokenizer"))
        if isinstance(read.value, kdcore.DataError):
            assert {problem.where for problem in read.value.problems} == {"data/tokenizer"}
            results["refused"] += 1
        else:
            size = kdcore.vocabulary_size(read.value)
            encoded = Outcome(partial(read.value, "The student, 42!"))
            assert max(encoded.value["input_ids"], default=0) < size
            assert max(kdcore.special_ids(read.value).all) < size
            results["refused by hash, can be loaded"] += 1
    report("tokenizer.json", mutations, results)


def _without_nulls(value: Any) -> Any:
    """Leave out keys whose null removes nothing."""
    if not isinstance(value, dict):
        return value
    return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}


@mutates("small.yaml")
def test_recipes(damaged: Path) -> None:
    mutations, results = Mutations("recipes"), Counter[str]()
    plain = json.dumps(read_yaml(damaged).plain()).encode()
    made = [mutations.bytes(damaged.read_bytes()) for _ in range(COUNT // 2)]
    made += [mutations.dump(mutations.value(json.loads(plain))) for _ in range(COUNT - len(made))]
    mutations.kinds.update(bytes=COUNT // 2, structure=COUNT - COUNT // 2)
    for content in made:
        damaged.write_bytes(content)
        lines = content.count(b"\n") + 1
        outcome = command("recipe", "check", "small.yaml")
        assert outcome.value in (0, 2)
        for error in outcome.errors:
            if error.startswith("error: /etc/passwd: task.data"):  # a file of a data recipe, which is named itself
                continue
            place = re.match(rf"error: {re.escape(str(damaged))}(?::(\d+))?: ", error)
            assert place is not None, error
            assert place[1] is None or 1 <= int(place[1]) <= lines
            needs_line = not re.search(r": (the file|`\w+` is missing|invalid YAML)|has the run|is not UTF-8", error)
            assert place[1] is not None or not needs_line, error
        shown = command("recipe", "show", "small.yaml")
        assert shown.value in (0, 2)
        if outcome.value == 0:
            assert shown.value == 0
            (damaged.parent / "shown.yaml").write_text(shown.out, encoding="utf-8")
            assert not kdcore.recipe_problems(_without_nulls(read_yaml(damaged).plain()))
        results["refused" if outcome.value else "valid"] += 1
    report("recipes", mutations, results)


@mutates("command.sh")
def test_source_commands(damaged: Path) -> None:
    mutations, results = Mutations("source commands"), Counter[str]()
    original = damaged.read_bytes()
    words = original.decode().split(" ")
    odd = [value if isinstance(value, str) else json.dumps(value) for value in ODD_VALUES]
    odd = [
        value
        for value in odd
        if value.isprintable() and value.encode(errors="ignore") == value.encode("utf-8", "replace")
    ]
    for number in range(COUNT):
        if number % 2:
            content = mutations.bytes(original)
        else:
            changed = list(words)
            for _ in range(mutations.random.choice([1, 1, 2, 4])):
                place = mutations.random.randrange(len(changed))
                what = mutations.random.random()
                changed[place : place + 1] = (
                    [] if what < 0.25 else [changed[place]] * 2 if what < 0.4 else [mutations.random.choice(odd)]
                )
            content = " ".join(changed).encode()
        mutations.kinds["structure" if number % 2 == 0 else "bytes"] += 1
        damaged.write_bytes(content)
        outcome = command("recipe", "import", "command.sh")
        assert outcome.value in (0, 2)
        if outcome.value:
            for error in outcome.errors:
                assert re.match(r"error: command\.sh(:\d+)?: ", error), error
            results["refused"] += 1
        else:
            imported = damaged.with_name("imported.yaml")
            imported.write_text(outcome.out, encoding="utf-8")
            assert not kdcore.recipe_problems(read_yaml(imported).plain())
            results["imported"] += 1
    report("source commands", mutations, results)
