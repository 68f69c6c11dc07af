"""Exceptions in the code of plugins: component, package and line are named, and machine faults stay what they are."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kdcore
from kdcore.commands.main import main, main_train
from kdcore.faults import plugin_faults

LOSSES = """
import errno
import torch
from kdcore import Loss, LossConfig, Requests, Signals, TrainingError, at_least_float32, resolve_pairs


class Right(Loss):
    class Config(LossConfig):
        '''No keys.'''

    def __init__(self, config, teacher, student):
        super().__init__(config)
        self.pairs = resolve_pairs("last", teacher.num_layers, student.num_layers)

    def requests(self):
        return Requests(teacher=Signals.hidden(self.pairs.teacher), student=Signals.hidden(self.pairs.student))

    def counts(self, batch):
        return {"a": batch.num_tokens}

    def forward(self, student, teacher, batch):
        return {"a": at_least_float32(student.tokens(self.pairs.student[0])).square().sum()}


class OtherTerms(Right):
    def forward(self, student, teacher, batch):
        return {"b": student.tokens(self.pairs.student[0]).sum()}


class NotRequested(Right):
    def forward(self, student, teacher, batch):
        return {"a": student.tokens(0).sum()}  # block 0


class Shapes(Right):
    def forward(self, student, teacher, batch):
        return {"a": student.tokens(self.pairs.student[0]) @ teacher.tokens(self.pairs.teacher[0])}  # shapes


class NoScalar(Right):
    def forward(self, student, teacher, batch):
        return {"a": student.tokens(self.pairs.student[0]).sum(0)}


class Init(Right):
    def __init__(self, config, teacher, student):
        super().__init__(config, teacher, student)
        self.blocks = teacher.num_blocks  # an attribute of that name is missing


class Scalar(Right):  # its parameter
    def __init__(self, config, teacher, student):
        super().__init__(config, teacher, student)
        self.scale = torch.nn.Parameter(torch.zeros(()))


class Signature(Right):
    def counts(self):
        return {}


class Asks(Right):
    def requests(self):
        return self.nothing  # not there


class Backward(Right):
    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, states):
            return states.sum()

        @staticmethod
        def backward(ctx, gradient):
            return ctx.saved  # never saved

    def forward(self, student, teacher, batch):
        return {"a": Backward.Function.apply(student.tokens(self.pairs.student[0]))}


class LaterOnly(Right):
    calls = 0

    def forward(self, student, teacher, batch):
        LaterOnly.calls += 1
        if LaterOnly.calls > 3:
            raise ERROR
        return super().forward(student, teacher, batch)
"""
OTHERS = """
import torch
from kdcore import Command, ComponentConfig, Corpus, CorpusConfig, Document, Optimizer, PathString, Scheduler, Tracker
from kdcore import MaskedLM, TransformersModel
from kdcore_preparation import input_files


class Steps(torch.optim.SGD):
    def step(self, closure=None):
        return self.undefined  # in step


class Sgd(Optimizer):
    def build(self, groups):
        return Steps(groups, lr=0.1)


class Half(Scheduler):
    class Config(ComponentConfig):
        '''No keys.'''

    def factor(self):  # takes no progress
        return 0.5


class Lines(Corpus):
    class Config(CorpusConfig):
        path: PathString

    def files(self):
        return input_files(self.config.path)

    def documents(self):
        for name, path in self.files().items():
            for number, line in enumerate(path.read_text().splitlines()):
                yield Document(f"{name}:{number}", {"text": line}["txt"])  # the wrong key


class Post(Tracker):
    class Config(ComponentConfig):
        '''No keys.'''

    def rewind(self, step):
        pass

    def close(self):
        pass

    def log(self, step, metrics):
        self.client.post(metrics)  # no client


class Count(Command):
    help = "count"

    def run(self, arguments):
        return len(None)  # nothing to count


class Model(TransformersModel):
    def build_student(self, request):
        return self.nothing  # no student


class Words(MaskedLM):
    def batch(self, split, samples, epochs):
        return self.words[samples]  # no words
"""


@pytest.fixture
def broken(packages: Any) -> Callable[..., None]:
    """Install the classes above: every loss under its name in lower case, and one component of each other kind."""

    def install(error: str = "AssertionError") -> None:
        names = re.findall(r"^class (\w+)\(", LOSSES, re.MULTILINE)
        points = {f"kdcore.losses:{name.lower()}": f"kdbroken.losses:{name}" for name in names} | {
            "kdcore.optimizers:steps": "kdbroken.others:Sgd",
            "kdcore.schedulers:half": "kdbroken.others:Half",
            "kdcore.corpora:lines": "kdbroken.others:Lines",
            "kdcore.trackers:post": "kdbroken.others:Post",
            "kdcore.commands:count": "kdbroken.others:Count",
            "kdcore.models:model": "kdbroken.others:Model",
            "kdcore.tasks:words": "kdbroken.others:Words",
        }
        code = {"kdbroken/__init__.py": "", "kdbroken/losses.py": LOSSES.replace("ERROR", error)}
        packages.install("kdbroken", points, code | {"kdbroken/others.py": OTHERS}, version="3.1")

    return install


def place_of(packages: Any, file: str, code: str) -> str:
    """Return `file:line: code` of a line of the package."""
    path = packages.folder / "kdbroken" / file
    lines = path.read_text(encoding="utf-8").splitlines()
    (number,) = [number for number, line in enumerate(lines, start=1) if code in line]
    return f"{path}:{number}: `{lines[number - 1].strip()}`"


@pytest.mark.parametrize(
    ("name", "cause", "line"),
    [
        ("notrequested", "KeyError: 0", "# block 0"),
        ("shapes", "RuntimeError: mat1 and mat2 shapes", "# shapes"),
        ("init", "AttributeError: 'ModelInfo' object has no attribute 'num_blocks'", "# an attribute"),
        ("scalar", "ValueError: its parameter `scale` has no dimensions", "# its parameter"),
        ("asks", "AttributeError: 'Asks' object has no attribute 'nothing'", "# not there"),
        ("signature", "TypeError: Signature.counts() takes 1 positional argument", "class Signature(Right):"),
        ("backward", "AttributeError", "# never saved"),
    ],
)
def test_a_faulty_loss_is_named_with_label_package_and_line(
    name: str, cause: str, line: str, broken: Any, packages: Any, small_recipe: Path, capsys: Any
) -> None:
    broken()
    assert main_train([str(small_recipe), f"losses.mine={{name: {name}}}"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    message = next(line for line in error.splitlines() if line.startswith("error: "))
    assert f"losses.mine: loss `{name}` of kdbroken 3.1 failed: {cause}" in message
    assert message.endswith(f" ({place_of(packages, 'losses.py', line)})")
    assert message.startswith(f"error: {small_recipe}") or "losses.mine={" in message, "the place in the recipe"
    assert "KDCORE_TRACEBACK=1" in error


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("otherterms", "`forward` of the loss returns other terms than `counts` (found b, expected a)"),
        ("noscalar", "`forward` of the loss must return scalar tensors (found shape (32,) for the term a)"),
    ],
)
def test_a_loss_whose_results_do_not_fit_is_named(
    name: str, what: str, broken: Any, small_recipe: Path, capsys: Any
) -> None:
    broken()
    assert main_train([str(small_recipe), f"losses.mine={{name: {name}}}"]) == 2
    error = capsys.readouterr().err
    assert f"losses.mine: {what}" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("old", "new", "who", "cause", "line"),
    [
        (
            "name: adamw, lr: 1.0e-3, betas: [0.9, 0.98], eps: 1.0e-6",
            "name: steps",
            "optimizer: optimizer `steps`",
            "AttributeError",
            "# in step",
        ),
        (
            "seed: 3",
            "scheduler: {name: half}",
            "scheduler: scheduler `half`",
            "TypeError: Half.factor() takes 1",
            "class Half(",
        ),
        ("name: text, documents: lines", "name: lines", "corpus `lines`", "KeyError: 'txt'", "# the wrong key"),
        ("tracking: [jsonl]", "tracking: [post]", "tracker `post`", "AttributeError", "# no client"),
        ("name: masked_lm", "name: words", "task: task `words`", "AttributeError", "# no words"),
        ("student:", "student:\n  name: model", "student: model `model`", "AttributeError", "# no student"),
    ],
)
def test_other_faulty_components_are_named(
    old: str, new: str, who: str, cause: str, line: str, broken: Any, packages: Any, small_recipe: Path, capsys: Any
) -> None:
    broken()
    recipe = (
        small_recipe.read_text(encoding="utf-8")
        .replace(", documents: lines", "")
        .replace("name: text", "name: text, documents: lines")
    )
    assert recipe.count(old) == 1
    small_recipe.write_text(recipe.replace(old, new), encoding="utf-8")
    assert main_train([str(small_recipe)]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    message = next(line for line in error.splitlines() if line.startswith("error: "))
    assert f"{who} of kdbroken 3.1 failed: {cause}" in message
    assert place_of(packages, "others.py", line) in message


def test_a_faulty_command_is_named(broken: Any, packages: Any, capsys: Any) -> None:
    broken()
    assert main(["count"]) == 2
    message, hint = capsys.readouterr().err.splitlines()
    cause = "TypeError: object of type 'NoneType' has no len()"
    place = place_of(packages, "others.py", "# nothing to count")
    assert message == f"error: command `count` of kdbroken 3.1 failed: {cause} ({place})"
    assert hint == "  Hint: Set KDCORE_TRACEBACK=1 for the traceback."


def test_a_command_whose_output_is_no_longer_read_is_not_at_fault(packages: Any) -> None:
    code = """
import kdcore

class Shout(kdcore.Command):
    \"\"\"Raise what writing to a closed pipe does.\"\"\"

    def add_arguments(self, parser):
        pass

    def run(self, arguments):
        raise BrokenPipeError(32, "Broken pipe")
"""
    packages.install("kdshout", {"kdcore.commands:shout": "kdshout:Shout"}, {"kdshout.py": code})
    with pytest.raises(BrokenPipeError), plugin_faults(kdcore.get_command("shout")):
        kdcore.get_command("shout")().run(None)


def test_a_loss_that_reads_a_teacher_is_refused_in_a_recipe_without_one(
    packages: Any, small_recipe: Path, capsys: Any
) -> None:
    code = """
from kdcore import Loss, Requests, Signals

class Last(Loss):
    def __init__(self, config, teacher, student):
        super().__init__(config)

    def requests(self):
        return Requests(teacher=Signals.hidden([0]))

    def counts(self, batch):
        return {"last": batch.num_tokens}

    def forward(self, student, teacher, batch):
        return {"last": teacher.tokens(0).sum()}
"""
    packages.install("kdlast", {"kdcore.losses:last": "kdlast:Last"}, {"kdlast.py": code})
    config = "student.config={model_type: bert, vocab_size: 200, num_hidden_layers: 1}"
    none = "teacher=null", "student.initialize=null", config
    assert main_train([str(small_recipe), *none, "losses={hidden_mse: null, mine: {name: last}, masked_lm: {}}"]) == 2
    assert "losses.mine: the loss `last` requires a teacher, but the recipe has none" in capsys.readouterr().err


def test_the_traceback_is_printed_on_demand(broken: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    broken()
    monkeypatch.setenv("KDCORE_TRACEBACK", "1")
    assert main(["count"]) == 2
    error = capsys.readouterr().err
    assert "Traceback (most recent call last)" in error
    assert "return len(None)" in error
    assert "error: command `count`" in error


def test_in_python_the_cause_is_chained(broken: Any, small_recipe: Path) -> None:
    broken()
    with pytest.raises(kdcore.PluginError, match=r"loss `shapes` of kdbroken 3\.1 failed") as caught:
        kdcore.train(small_recipe, ["losses.mine={name: shapes}"])
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        ("OSError(errno.ENOSPC, 'No space left on device', '/disk/file')", 1, "/disk/file: No space left on device"),
        ("KeyboardInterrupt()", 130, "interrupted"),
        ("TrainingError('the queue is empty')", 3, "the queue is empty"),
        ("ConnectionResetError('peer')", 1, "loss `lateronly` of kdbroken 3.1 failed: ConnectionResetError: peer"),
        ("FileNotFoundError(2, 'No such file', 'x')", 2, "loss `lateronly` of kdbroken 3.1 failed: FileNotFoundError"),
        ("ValueError('later')", 2, "losses.mine: loss `lateronly` of kdbroken 3.1 failed: ValueError: later"),
    ],
)
def test_errors_of_user_and_machine_keep_their_exit_codes(
    error: str, code: int, words: str, broken: Any, small_recipe: Path, capsys: Any
) -> None:
    broken(error)
    assert main_train([str(small_recipe), "losses.mine={name: lateronly}"]) == code
    printed = capsys.readouterr().err
    assert words in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    "error",
    ["MemoryError()", "torch.OutOfMemoryError('CUDA out of memory')", "RuntimeError('CUDA error: unspecified')"],
)
def test_faults_of_the_device_are_not_blamed_on_the_package(error: str, broken: Any, small_recipe: Path) -> None:
    broken(error)
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        kdcore.train(small_recipe, ["losses.mine={name: lateronly}"])
    assert not isinstance(caught.value, kdcore.KdcoreError)
