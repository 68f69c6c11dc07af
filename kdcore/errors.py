"""One exception tree and the exit codes that every command keeps.

Exit codes tell a launcher what to do next: 2 means the user's input is wrong (never requeue), 1 means the machine
failed (requeue), 3 means that training itself failed, 130 means interrupted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

EXIT_MACHINE = 1
EXIT_INPUT = 2
EXIT_TRAINING = 3
EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with the user's input.

    Attributes:
        what: what is wrong, as one sentence without a full stop at its end.
        where: the place: a file, `file:line`, an override, a folder.
        key: dotted key path inside that place, such as `losses.hidden_mse.layers`.
        allowed: the values or names that would have been right.
        hint: what to do about it.
    """

    what: str
    where: str | None = None
    key: str | None = None
    allowed: Sequence[str] | str | None = None
    hint: str | None = None

    def __str__(self) -> str:
        place = ": ".join(part for part in (self.where, self.key) if part)
        lines = [f"{place}: {self.what}" if place else self.what]
        if self.allowed:
            allowed = self.allowed if isinstance(self.allowed, str) else ", ".join(self.allowed)
            lines.append(f"  allowed: {allowed}")
        if self.hint:
            lines.append(f"  {self.hint}")
        return "\n".join(lines)


class KdcoreError(Exception):
    """Base of every error that kdcore raises on purpose; printed without a traceback."""

    exit_code = EXIT_MACHINE


class InputError(KdcoreError):
    """The user's input is wrong: a recipe, data, a folder, a plugin. Carries one problem or many."""

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
    """A recipe, or a combination of what it asks for, cannot be used."""


class PluginError(InputError):
    """A component is unknown, ambiguous, broken or built for another kdcore."""


class DataError(InputError):
    """Raw text, a prepared folder, a tokenizer or a model folder cannot be used."""


class MachineError(KdcoreError):
    """The machine failed: a process died, a disk is full, a port is taken."""

    exit_code = EXIT_MACHINE


class TrainingError(KdcoreError):
    """Training itself failed: a loss that is not finite, a loss scale at its floor."""

    exit_code = EXIT_TRAINING


def first_line(error: Exception) -> str:
    """What an error of another library says, shortened to a line; its kind if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip()
