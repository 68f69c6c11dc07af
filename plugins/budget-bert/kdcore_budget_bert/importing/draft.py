"""The recipe that `kdcore recipe import` writes: values with the flags that set them, and remarks."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from kdcore import InputError, Problem, flow_yaml, plain_scalar
from kdcore_budget_bert.importing.flags import FLAGS
from kdcore_budget_bert.importing.source_command import SourceCommand

_WIDTH = 118
_COLUMN = 44


@dataclass
class _Leaf:
    """A value and the comment that follows it."""

    value: str
    comment: str


@dataclass
class Draft:
    """Collect keys and values, and record which flags have been converted.

    Attributes:
        command: the imported command.
        approximated: differences between the recipe and the command, with reasons.
        without: flags of the command that have no counterpart in a recipe.
        problems: reasons why the command cannot be converted.
        data: the keys and values that have been set, as plain data.
    """

    command: SourceCommand
    approximated: list[str] = field(default_factory=list)
    without: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    _leaves: dict[str, Any] = field(default_factory=dict)
    _dealt_with: set[str] = field(default_factory=set)
    _flags_of: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def given(self, name: str) -> bool:
        """Return whether the command sets a flag."""
        return name in self.command.stated

    def value(self, name: str) -> Any:
        """Return a flag's value in the command, or else the source's default."""
        self._dealt_with.add(name)
        return self.command.stated[name].value if self.given(name) else FLAGS[name].default

    def as_given(self, *names: str) -> str:
        """Format flags as in the command; flags that it does not set are marked as defaults."""
        words = [str(self.command.stated[name]) for name in names if self.given(name)]
        words += [f"--{name} by default" for name in names if not self.given(name)]
        return ", ".join(words)

    def put(self, key: str, value: Any, *names: str, note: str = "") -> None:
        """Set a value.

        Args:
            key: dotted path in the recipe.
            value: the value.
            names: the flags that set it.
            note: further text for the comment.
        """
        self._dealt_with.update(names)
        self._flags_of[key] = names
        *sections, last = key.split(".")
        data, leaves = self.data, self._leaves
        for section in sections:
            data, leaves = data.setdefault(section, {}), leaves.setdefault(section, {})
        data[last] = value
        given = self.as_given(*names) if names else ""
        leaves[last] = _Leaf(self._text(value, names), "; ".join(part for part in (given, note) if part))

    def flag(self, name: str, key: str, *, note: str = "") -> None:
        """Set a key to a flag's unchanged value."""
        self.put(key, self.value(name), name, note=note)

    def approximate(self, text: str, *names: str) -> None:
        """Note a difference from the source."""
        self._dealt_with.update(names)
        self.approximated.append(f"{self.as_given(*names)}: {text}" if names else text)

    def leave_out(self, why: str, *names: str) -> None:
        """Note why these flags have no key; flags that the command does not set are skipped."""
        self._dealt_with.update(names)
        given = [name for name in names if self.given(name)]
        if given:
            self.without.append(f"{self.as_given(*given)}: {why}")

    def refuse(self, name: str, what: str, allowed: Any = None, hint: str | None = None) -> None:
        """Record a flag that prevents the conversion."""
        self._dealt_with.add(name)
        self.problems.append(Problem(what, self.where(name), f"--{name}", allowed, hint))

    def where(self, name: str) -> str | None:
        """Return the place in the command where a flag is set."""
        return self.command.stated[name].where if self.given(name) else None

    def flags_of(self, key: str) -> tuple[str, ...]:
        """Return the flags that set the value at a key, or at the nearest enclosing key."""
        while key and key not in self._flags_of:
            key = key.rpartition(".")[0]
        return self._flags_of.get(key, ())

    def finish(self) -> None:
        """Check that no flag has been dropped.

        Raises:
            InputError: there are problems; all of them are listed.
        """
        if self.problems:
            raise InputError(self.problems)
        forgotten = self.command.stated.keys() - self._dealt_with
        assert not forgotten, f"no recipe key and no remark for {sorted(forgotten)}"

    def text(self, header: list[str]) -> str:
        """Compose the recipe as YAML under a header of comment lines."""
        lines = [_comment(line) for line in header]
        for title, remarks in (("Approximated", self.approximated), ("Without a counterpart", self.without)):
            if remarks:
                lines += ["#", f"# {title}:"]
                lines += [_comment(remark, "#   - ", "#     ") for remark in remarks]
        return "\n".join([*lines, *_section(self._leaves, "")]) + "\n"

    def _text(self, value: Any, names: tuple[str, ...]) -> str:
        """Format the value in YAML; numbers are formatted as in the command."""
        for name in names:
            text = self.command.stated[name].text if self.given(name) else None
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if text is not None and number and plain_scalar(text) == value:
                return text
        return flow_yaml(value)


def _comment(text: str, first: str = "# ", following: str = "# ") -> str:
    wrapped = textwrap.wrap(
        text, _WIDTH, initial_indent=first, subsequent_indent=following, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(wrapped) if wrapped else "#"


def _section(leaves: dict[str, Any], indent: str) -> Iterator[str]:
    for key, leaf in leaves.items():
        if isinstance(leaf, dict):
            if not indent:
                yield ""
            yield f"{indent}{key}:"
            yield from _section(leaf, indent + "  ")
            continue
        if not indent:
            yield ""
        line = f"{indent}{key}: {leaf.value}"
        whole = f"{line:<{_COLUMN}}  # {leaf.comment}"
        if not leaf.comment:
            yield line
        elif len(whole) <= _WIDTH:
            yield whole
        else:
            yield from _comment(leaf.comment, f"{indent}# ", f"{indent}# ").splitlines()
            yield line
