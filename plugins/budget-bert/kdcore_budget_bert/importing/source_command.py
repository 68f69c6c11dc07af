"""Parse a pasted command line into the source system's flags with their values."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from kdcore import InputError, Problem
from kdcore_budget_bert.importing.flags import FLAGS, Flag, FlagValue

_TRUE = ("true", "t", "yes", "y", "1")
_FALSE = ("false", "f", "no", "n", "0")
_NUMBER = re.compile(r"-\.?[0-9].*")
_CONTINUATION = re.compile(r"\\[ \t]*\r?\n?\Z|\\[ \t]*\r?\n")
_PROCESS_FLAGS = ("nproc_per_node", "num_gpus", "nnodes", "num_nodes")
_VARIABLE = re.compile(r"[A-Za-z_]\w*=")
_STARTS_ONE = re.compile(r"(.*/)?(python[0-9.]*|torchrun)")


@dataclass(frozen=True)
class Word:
    """A word of the command and the line where it begins."""

    text: str
    line: int

    @property
    def is_flag(self) -> bool:
        """Return whether a word is a flag and not a value; `-1` is a value."""
        return self.text.startswith("-") and len(self.text) > 1 and not _NUMBER.fullmatch(self.text)


@dataclass(frozen=True)
class Stated:
    """A flag that is set in the command."""

    flag: Flag
    text: str | None
    value: FlagValue | None
    where: str

    def __str__(self) -> str:
        return f"--{self.flag.name}" if self.text is None else f"--{self.flag.name} {self.text}"


@dataclass(frozen=True)
class SourceCommand:
    """A command of the source.

    Attributes:
        environment: names of the environment variables that are set before the command.
        start: the words before the script's own flags: launcher and script.
        processes: number of processes that the launcher starts; None if its flags do not determine it.
        stated: the command's flags, by name.
        repeated: flags that occur more than once; the last occurrence counts, as in the source.
    """

    environment: Sequence[str]
    start: str
    processes: int | None
    stated: Mapping[str, Stated]
    repeated: Sequence[str]


def parse_command(text: str, source: str) -> SourceCommand:
    """Parse a command.

    Line ends are treated as blanks, with or without a preceding backslash; `#` starts a comment.

    Args:
        text: the command.
        source: name of the command's origin, for messages.

    Raises:
        InputError: the command is invalid; all problems are listed.
    """
    words = list(_words(text, source))
    if words and words[0].text == "$":  # copied with the prompt
        del words[0]
    if not words:
        raise InputError("no command is given", where=source, hint=_EXAMPLE)
    script = next((index for index, word in enumerate(words) if word.text.endswith(".py")), None)
    if script is None and not words[0].is_flag:
        raise InputError(
            "the command starts no Python script", where=f"{source}:{words[0].line}", key=words[0].text, hint=_EXAMPLE
        )
    start = [] if script is None else words[: script + 1]
    stated: dict[str, Stated] = {}
    repeated: list[str] = []
    problems: list[Problem] = []
    for found in _flags(words[len(start) :], source):
        if isinstance(found, Problem):
            problems.append(found)
            continue
        if found.flag.name in stated:
            repeated.append(found.flag.name)
        stated[found.flag.name] = found
    if problems:
        raise InputError(problems)
    # Only the names: a value may be a secret that must not end up in a file.
    variables = list(takewhile(_VARIABLE.match, (word.text for word in start)))
    launcher = [word.text for word in start[len(variables) :]]
    return SourceCommand(
        [variable.partition("=")[0] for variable in variables],
        " ".join(launcher),
        _processes(launcher),
        stated,
        list(dict.fromkeys(repeated)),
    )


_EXAMPLE = "such as: python -m torch.distributed.launch run_pretraining.py --model_type bert-mlm ..."


def _words(text: str, source: str) -> Iterator[Word]:
    """Split text into words like a shell, with quotes and escapes but without expansion."""
    position, line = 0, 1
    while position < len(text):
        character = text[position]
        continuation = _CONTINUATION.match(text, position)
        if continuation:
            line += continuation[0].count("\n")
            position = continuation.end()
        elif character.isspace():
            line += character == "\n"
            position += 1
        elif character == "#" or text.startswith("```", position):  # a comment, or the fence of a page
            position = _line_end(text, position)
        else:
            began = line
            word, position, line = _word(text, position, line, source)
            yield Word(word, began)


def _word(text: str, position: int, line: int, source: str) -> tuple[str, int, int]:
    """Return the word at a position, the position of its end, and the line in which it ends."""
    parts: list[str] = []
    began = line
    while position < len(text) and not text[position].isspace():
        character = text[position]
        if character in "\"'":
            end = position + 1
            while end < len(text) and text[end] != character:
                end += 2 if text[end] == "\\" and character == '"' else 1
            if end >= len(text):
                raise InputError(f"the quote {character} is not closed", where=f"{source}:{began}")
            inside = text[position + 1 : end]
            parts.append(re.sub(r'\\([\\"$`])', r"\1", inside) if character == '"' else inside)
            line += inside.count("\n")
            position = end + 1
        elif character == "\\":
            continuation = _CONTINUATION.match(text, position)
            if continuation:
                line += continuation[0].count("\n")
                position = continuation.end()
                continue
            parts.append(text[position + 1])
            position += 2
        else:
            parts.append(character)
            position += 1
    return "".join(parts), position, line


def _line_end(text: str, position: int) -> int:
    end = text.find("\n", position)
    return len(text) if end < 0 else end


def _flags(words: Sequence[Word], source: str) -> Iterator[Stated | Problem]:
    index = 0
    while index < len(words):
        word = words[index]
        where = f"{source}:{word.line}"
        index += 1
        if not word.is_flag:
            yield Problem(
                "this does not belong to any flag",
                where,
                f"`{word.text}`",
                hint="Quote values that contain spaces, and remove anything after the command, such as `| tee log`.",
            )
            continue
        name, equals, behind = word.text.partition("=")
        value = behind if equals else None
        if not equals and index < len(words) and not words[index].is_flag:
            value = words[index].text
            index += 1
        yield _stated(name, value, where)


def _stated(given: str, text: str | None, where: str) -> Stated | Problem:
    name = given.removeprefix("--")
    negated = FLAGS.get(name.removeprefix("no_")) if name.startswith("no_") else None
    if name not in FLAGS and negated is not None and negated.default is True:
        if text is not None:
            return Problem("this flag takes no value", where, given, hint=f"`{text}` does not belong to any flag.")
        return Stated(negated, "false", False, where)
    flag = FLAGS.get(name) if given.startswith("--") else None
    if flag is None:
        near = difflib.get_close_matches(name.lstrip("-").replace("-", "_"), FLAGS, n=3)
        meant = " or ".join(f"`--{one}`" for one in near)
        hint = f"Did you mean {meant}?" if near else "docs/source-command.md lists all flags."
        return Problem("run_pretraining.py has no such flag", where, given, hint=hint)
    if text is None and flag.type != "switch" and not flag.bare:
        return Problem(f"the flag needs a value: {_KINDS[flag.type]}", where, given, flag.choices or None)
    try:
        value = None if text is None and flag.bare else _value(flag, text)
    except ValueError:
        return Problem(f"`{text}` is not {_KINDS[flag.type]}", where, given, _ALLOWED.get(flag.type))
    if flag.choices and value not in flag.choices:
        near = difflib.get_close_matches(str(value), flag.choices, n=1)
        one = f"Did you mean `{near[0]}`?" if near else None
        return Problem(f"`{text}` is not one of the allowed values", where, given, flag.choices, one)
    return Stated(flag, text, value, where)


_KINDS = {"switch": "true or false", "integer": "an integer", "number": "a number", "text": "text"}
_ALLOWED: dict[str, str] = {"switch": ", ".join((*_TRUE, *_FALSE))}


def _value(flag: Flag, text: str | None) -> FlagValue:
    if flag.type == "switch":
        lowered = "true" if text is None else text.lower()
        if lowered not in (*_TRUE, *_FALSE):
            raise ValueError(text)
        return lowered in _TRUE
    assert text is not None
    if flag.type == "integer":
        return int(text)
    if flag.type == "number":
        number = float(text)
        if not math.isfinite(number):
            raise ValueError(text)
        return number
    return text


def _processes(launcher: Sequence[str]) -> int | None:
    """Return the number of processes on all machines from the launcher's flags; None if they do not determine it."""
    counts: dict[str, str] = {}
    for index, word in enumerate(launcher):
        name, equals, value = word.lstrip("-").replace("-", "_").partition("=")
        if word.startswith("-") and name in _PROCESS_FLAGS:
            counts[name] = value if equals else launcher[index + 1]
    if not all(value.isdigit() for value in counts.values()):
        return None  # `--nproc_per_node gpu`
    if not counts and launcher and not _STARTS_ONE.fullmatch(launcher[0]):
        return None  # `deepspeed` uses all available devices
    return math.prod(int(value) for value in counts.values())
