"""Choose task and losses by the kind of a teacher: the registry `kdcore.defaults`."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from kdcore.errors import InputError, PluginError, first_line
from kdcore.faults import plugin_faults
from kdcore.registry import defaults

if TYPE_CHECKING:
    from kdcore.signals import ModelInfo


@dataclass(frozen=True)
class TeacherKind:
    """Properties of a teacher that are available before its weights are loaded.

    Attributes:
        source: folder or hub name.
        info: its sizes, and the heads that it was saved with.
        config: keys of its Hugging Face configuration.
    """

    source: str
    info: ModelInfo
    config: Mapping[str, Any]

    def file(self, name: str) -> Path | None:
        """Return a file that was saved with the weights, such as `modules.json`; None without such a file."""
        from transformers.utils import cached_file

        flags = ("entries", "gated_repo", "missing_entries", "connection_errors")
        found = cached_file(self.source, name, **{f"_raise_exceptions_for_{flag}": False for flag in flags})
        return None if found is None else Path(found)


class Defaults(ABC):
    """Task and losses for one kind of teacher (registry `kdcore.defaults`).

    Among the installed defaults that suit a teacher, `kdcore.distil` selects the highest `priority`, then the first
    name. Constructed without arguments.
    """

    priority: ClassVar[int] = 0
    """0 for losses that suit every encoder, 10 for a common head, 20 for a narrower kind."""

    @abstractmethod
    def sections(self, teacher: TeacherKind) -> Mapping[str, Any] | None:
        """Return sections of a recipe, `losses` and `task` among them; None if they do not suit this teacher.

        `distil` merges them over its own: teacher, student, optimizer and budget, and the task's `data` unless it is
        stated here.
        """


class MaskedLMDefaults(Defaults):
    """Soft targets and masked language modelling, for teachers that were saved with their masked-LM head."""

    priority = 10

    def sections(self, teacher: TeacherKind) -> Mapping[str, Any] | None:
        """Return both losses for a teacher with that head."""
        if teacher.info.head("masked_lm") is None:
            return None
        losses = {"soft_targets": {"temperature": 2.0}, "masked_lm": {"weight": 0.5}}
        return {"task": {"name": "masked_lm"}, "losses": losses}


def sections_for(teacher: TeacherKind) -> Mapping[str, Any]:
    """Return the sections of the best installed defaults.

    Raises:
        InputError: none suits this teacher.
        PluginError: one fails, or returns no map with `task` and `losses`.
    """
    suiting = [
        (-one.priority, name, made) for name, one in _installed() if (made := _sections(one, teacher)) is not None
    ]
    if not suiting:
        raise InputError(
            "no installed package has losses for this kind of teacher, which has no masked-LM head",
            where=teacher.source,
            hint="Run `pip install kdcore-hidden-mse`, or state `losses`.",
        )
    return min(suiting, key=lambda one: one[:2])[2]


def _sections(one: Defaults, teacher: TeacherKind) -> Mapping[str, Any] | None:
    with plugin_faults(one):
        sections = one.sections(teacher)
        if sections is not None and not ({"losses", "task"} <= sections.keys() and sections["task"].get("name")):
            raise ValueError("`sections` must return `losses`, and `task` with its `name`")
        return sections


def _installed() -> Iterator[tuple[str, Defaults]]:
    names = [f"{entry.distribution}:{entry.name}" for entry in defaults.entries()]
    for name in [*names, *defaults.registered()]:
        try:
            yield name, defaults.get(name)()
        except PluginError as error:  # a broken package must not keep others from distilling
            print(f"warning: defaults `{name}` are left out: {first_line(error)}", file=sys.stderr)
