"""Define the exception hierarchy and the exit codes of all commands.

A launcher acts on the exit code: 2 means invalid input (never requeue), 1 an infrastructure failure (requeue),
3 a training failure, 130 an interruption.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

EXIT_MACHINE = 1
EXIT_INPUT = 2
EXIT_TRAINING = 3
EXIT_INTERRUPTED = 130

_LONGEST_PART = 4000


@dataclass(frozen=True)
class Problem:
    """One problem with the user's input.

    Attributes:
        what: the problem, as one sentence without a final full stop.
        where: location of the problem (a file, `file:line`, an override or a folder).
        key: dotted key path at that location, such as `losses.hidden_mse.layers`.
        allowed: the valid values or names.
        hint: how to fix it.
    """

    what: str
    where: str | None = None
    key: str | None = None
    allowed: Sequence[str] | str | None = None
    hint: str | None = None

    def __str__(self) -> str:
        place = ": ".join(_shortened(part) for part in (self.where, self.key) if part)
        what = _shortened(self.what)
        lines = [f"{place}: {what}" if place else what]
        if self.allowed:
            allowed = self.allowed if isinstance(self.allowed, str) else ", ".join(self.allowed)
            lines.append(f"  allowed: {_shortened(allowed)}")
        if self.hint:
            lines.append(f"  Hint: {_shortened(self.hint)}")
        return "\n".join(lines)


def _shortened(text: str) -> str:
    """Omit the middle of a long text, so that a value from a file does not flood the screen."""
    left_out = len(text) - _LONGEST_PART
    half = _LONGEST_PART // 2
    return text if left_out <= 0 else f"{text[:half]}... ({left_out:,} characters left out) ...{text[-half:]}"


def similar(name: str, names: Iterable[str]) -> str | None:
    """Return a hint with the most similar name; None if none is similar."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"Did you mean `{near[0]}`?" if near else None


class KdcoreError(Exception):
    """Base class of the errors that commands print without a traceback."""

    exit_code = EXIT_MACHINE


class InputError(KdcoreError):
    """The user's input is invalid: a recipe, data, a folder or a plugin. Contains one or more problems."""

    exit_code = EXIT_INPUT

    def __init__(
        self,
        what: str | Problem | Iterable[Problem],
        *,
        where: str | None = None,
        key: str | None = None,
        allowed: Sequence[str] | str | None = None,
        hint: str | None = None,
    ) -> None:
        if isinstance(what, str):
            self.problems = [Problem(what, where, key, allowed, hint)]
        elif isinstance(what, Problem):
            self.problems = [what]
        else:
            self.problems = list(what)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class RecipeError(InputError):
    """A recipe, or a combination of its settings, is invalid."""


class PluginError(InputError):
    """A component is unknown, ambiguous, broken or built for another version of kdcore."""


class DataError(InputError):
    """Raw text, a prepared folder, a tokenizer or a model folder cannot be used."""


class InfrastructureError(KdcoreError):
    """The infrastructure failed: for example, a process died, a disk is full, or a port is in use."""

    exit_code = EXIT_MACHINE


class TrainingError(KdcoreError):
    """Training itself failed: the loss is not finite, or the loss scale stays at its minimum."""

    exit_code = EXIT_TRAINING


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error message, or the class name if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip()
