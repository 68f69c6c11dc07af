"""Choose a task and losses for each kind of teacher (registry `kdcore.defaults`)."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

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

    @property
    def classifies(self) -> Literal["sequence", "token"] | None:
        """Whether the teacher's configuration names a classifier of sequences or tokens; None without a classifier."""
        names = " ".join(self.config.get("architectures") or ())
        return next((one for one in ("sequence", "token") if f"For{one.title()}Classification" in names), None)

    def file(self, name: str) -> Path | None:
        """Return a file that was saved with the weights, such as `modules.json`; None if there is none."""
        from transformers.utils import cached_file

        flags = ("entries", "gated_repo", "missing_entries", "connection_errors")
        found = cached_file(self.source, name, **{f"_raise_exceptions_for_{flag}": False for flag in flags})
        return None if found is None else Path(found)


_TABLES = {".csv", ".tsv", ".conll", ".iob", ".iob2", ".bio", ".bioes"}


@dataclass(frozen=True)
class GivenData:
    """The training data passed to `distil`, before anything is read.

    Attributes:
        path: the file or folder of texts; for texts passed by a program, the JSON Lines file in which they are stored.
        column: column or key of the texts.
        section: the section `task.data` or some of its keys, if given, as a map, a data recipe or a prepared folder.
    """

    path: Path | None
    column: str = "text"
    section: str | Mapping[str, Any] | None = None

    def is_table(self) -> bool:
        """Whether the data has columns such as labels, as in CSV, TSV and tagged files, labelled files and datasets."""
        if isinstance(self.section, Mapping):
            return bool({"train", "glue", "huggingface"} & self.section.keys())
        return self.path is not None and bool(_TABLES & {one.lower() for one in self.path.suffixes})


class Defaults(ABC):
    """The task and the losses for one kind of teacher (registry `kdcore.defaults`).

    Among the installed defaults that suit a teacher, `kdcore.distil` selects those with the highest `priority`; ties
    are resolved by name. Constructed without arguments.
    """

    priority: ClassVar[int] = 0
    """0 for losses that suit every encoder, 10 for a common head, 20 for a narrower kind."""

    @abstractmethod
    def sections(self, teacher: TeacherKind, data: GivenData) -> Mapping[str, Any] | None:
        """Return recipe sections, including `losses` and `task`; None if they do not suit this teacher and data.

        `distil` merges them over its own sections: teacher, student, optimizer and budget. It adds the task's `data`
        unless these sections contain it. It calls this method again after storing texts that were passed by a program.
        """


class MaskedLMDefaults(Defaults):
    """Soft targets and masked language modelling, for teachers that were saved with their masked-LM head."""

    priority = 10

    def sections(self, teacher: TeacherKind, data: GivenData) -> Mapping[str, Any] | None:
        """Return both losses for a teacher with that head."""
        if teacher.info.head("masked_lm") is None:
            return None
        losses = {"soft_targets": {"temperature": 2.0}, "masked_lm": {"weight": 0.5}}
        return {"task": {"name": "masked_lm"}, "losses": losses}


def sections_for(teacher: TeacherKind, data: GivenData) -> Mapping[str, Any]:
    """Return the sections of the best installed defaults.

    Raises:
        InputError: no defaults suit this teacher and data, or the packages with suitable ones are not installed.
        PluginError: one of them fails, or does not return a map with `task` and `losses`.
    """
    if (needed := _needed(teacher, data)) is not None:
        defaults.find(needed)  # its error names the package
    suiting = [
        (-one.priority, name, made) for name, one in _installed() if (made := _sections(one, teacher, data)) is not None
    ]
    if not suiting:
        raise InputError(
            "no installed package has losses for this kind of teacher and data",
            where=teacher.source,
            hint="Run `pip install kdcore-hidden-mse`, or set `losses`.",
        )
    return min(suiting, key=lambda one: one[:2])[2]


def _needed(teacher: TeacherKind, data: GivenData) -> str | None:
    """Return the name of our defaults that this kind of teacher requires, even if other defaults suit it."""
    if (data.path is not None or data.is_table()) and teacher.file("modules.json") is not None:
        return "sentence_encoder"
    return "labelled" if data.is_table() and teacher.classifies is not None else None


def _sections(one: Defaults, teacher: TeacherKind, data: GivenData) -> Mapping[str, Any] | None:
    with plugin_faults(one):
        sections = one.sections(teacher, data)
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
