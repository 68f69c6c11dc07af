"""Read and write YAML 1.2 as plain data with the file and line of every value.

Values follow the core schema of YAML 1.2 (`5e-4` is a number, `no` is text). Tags are rejected, so that a recipe cannot
run code; duplicate keys are errors; anchors are supported. An integer may be written as `1e5`.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentEndEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from kdcore.errors import Problem, RecipeError
from kdcore.utils.stored import open_regular

Plain: TypeAlias = Any
"""None, bool, int, float, str, or a list or a `dict[str, ...]` of these."""


@dataclass(frozen=True)
class Origin:
    """The origin of a value: a line of a file, an override, or neither if the recipe was passed as a map."""

    file: Path | None = None
    line: int | None = None
    override: str | None = None

    def __str__(self) -> str:
        if self.override is not None:
            return f"override `{self.override}`"
        if self.file is None:
            return "the recipe"
        return str(self.file) if self.line is None else f"{self.file}:{self.line}"

    @property
    def folder(self) -> Path:
        """Return the base folder of relative paths with this origin."""
        return self.file.parent if self.file is not None else Path.cwd()


@dataclass(frozen=True)
class Node:
    """A value with its origin; maps and lists contain nodes."""

    value: bool | int | float | str | list[Node] | dict[str, Node] | None
    origin: Origin

    def plain(self) -> Plain:
        """Return the value without origins."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def origin_at(self, place: Sequence[str | int]) -> Origin:
        """Return the origin of the value at a key path, or of its nearest ancestor if the key is not given."""
        node = self
        for part in place:
            inner: Node | None = None
            if isinstance(node.value, dict):
                inner = node.value.get(str(part))
            elif isinstance(node.value, list) and str(part).isdigit() and int(part) < len(node.value):
                inner = node.value[int(part)]
            if inner is None:
                break
            node = inner
        return node.origin


_NOT_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")
"""Characters that JSON allows in strings, but YAML only if escaped or as white space."""


def read_yaml(file: Path) -> Node:
    """Read a file that contains one map.

    Raises:
        RecipeError: the file cannot be read, is empty, is not YAML, or does not contain a map.
    """
    try:
        with open_regular(file) as opened:
            content = opened.read(_LARGEST_FILE + 1)
        if len(content) > _LARGEST_FILE:
            raise RecipeError(f"the file is larger than {_LARGEST_FILE >> 20} MiB", where=str(file))
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise RecipeError("the file does not exist", where=str(file), hint=yaml_files_near(file)) from None
    except IsADirectoryError:
        raise RecipeError("this is a folder, not a recipe file", where=str(file), hint=yaml_files_near(file)) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise RecipeError("the file is not UTF-8 text", where=f"{file}:{line}") from None
    except OSError as error:
        raise RecipeError(f"the file cannot be read: {error.strerror}", where=str(file)) from None
    node = _parse(text, Origin(file, 1))
    if node is None or node.value is None:
        raise RecipeError("the file is empty", where=str(file), hint="A recipe is a map of keys and values in YAML.")
    if not isinstance(node.value, dict):
        raise RecipeError(
            f"the file must contain a map, found {describe(node.plain())}",
            where=str(file),
            hint="A recipe is a map of keys and values in YAML, such as `seed: 43`.",
        )
    return node


def parse_value(text: str, origin: Origin) -> Node:
    """Parse the value of an override; all nodes get the same origin."""
    node = _parse(text, origin)
    return node if node is not None else Node(None, origin)


def as_json(value: Any, key: str = "") -> str:
    """Format a Python value as JSON that `parse_value` can read. Paths become strings, and tuples become lists.

    Raises:
        RecipeError: a part of it has a type that a recipe cannot contain; the message names its dotted key.
    """
    text = json.dumps(_as_plain(value, key), ensure_ascii=False)
    return _NOT_IN_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _as_plain(value: Any, key: str) -> Plain:
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise RecipeError(f"a key must be text (found {name!r})", key=key or None)
        return {name: _as_plain(inner, f"{key}.{name}".lstrip(".")) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_as_plain(inner, f"{key}.{index}".lstrip(".")) for index, inner in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    what = f"a recipe cannot contain a {type(value).__name__} (found {repr(value)[:60]})"
    raise RecipeError(what, key=key or None, allowed=["text", "a number", "true or false", "None", "a list", "a map"])


def dump_yaml(data: Plain) -> str:
    """Write plain data as YAML that `read_yaml` reads back unchanged."""
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    writer.allow_unicode = True
    writer.width = 4096
    stream = io.StringIO()
    writer.dump(data, stream)
    return stream.getvalue()


def describe(value: Plain) -> str:
    """Format a value for an error message; long text is shortened."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the text {value if len(value) <= 60 else value[:57] + '...'!r}"
    if isinstance(value, list):
        return "a list"
    return "a map" if isinstance(value, dict) else f"the number {value}"


_LARGEST_FILE = 1 << 20
_DEEPEST = 100
_MOST_FROM_ALIASES = 10_000
_CHARACTERS_OF_A_VALUE = 100
_LARGEST_NUMBER = 10**308
_BRACKET = re.compile(r"[\[\]{}]")
_INTEGER = re.compile(r"[-+]?[0-9]+")
_WHOLE_WITH_EXPONENT = re.compile(r"([-+]?[0-9]+)[eE]\+?([0-9]{1,2})")
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPELLINGS: list[tuple[str, bool | float | None]] = [
    (" ~ null Null NULL", None),
    ("true True TRUE", True),
    ("false False FALSE", False),
    # Numbers that are not written with digits.
    (".inf .Inf .INF +.inf +.Inf +.INF", float("inf")),
    ("-.inf -.Inf -.INF", float("-inf")),
    (".nan .NaN .NAN", float("nan")),
]
_CONSTANTS: dict[str, bool | float | None] = {text: value for texts, value in _SPELLINGS for text in texts.split(" ")}


def plain_scalar(text: str) -> bool | int | float | str | None:
    """Parse a plain (unquoted) scalar by the core schema of YAML 1.2.

    Raises:
        RecipeError: it is an integer with more than 308 digits, which no setting accepts.
    """
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text):
        return _integer(text, 10)
    if _BASED.fullmatch(text):
        return _integer(text, 0)
    # `steps: 1e5` is an integer. Integers are also accepted as numbers.
    whole = _WHOLE_WITH_EXPONENT.fullmatch(text)
    if whole:
        return _integer(whole[1] + "0" * int(whole[2]), 10)
    return float(text) if _FLOAT.fullmatch(text) else text


def _integer(text: str, base: int) -> int:
    # Python refuses to convert decimals of more than 4,300 digits.
    number = _LARGEST_NUMBER if base == 10 and len(text) > 400 else int(text, base)
    if abs(number) >= _LARGEST_NUMBER:
        raise RecipeError(f"the number is out of range (found {text[:20]}..., expected fewer than 309 digits)")
    return number


def _parse(text: str, origin: Origin) -> Node | None:
    _refuse_deep_brackets(text, origin)
    try:
        return _Composer(text, origin).document()
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Origin(origin.file, mark.line + 1) if mark is not None and origin.override is None else origin
        column = f" (column {mark.column + 1})" if mark is not None else ""
        what = " ".join(part for part in (error.context, error.problem) if part)
        raise RecipeError(f"invalid YAML: {what}{column}", where=str(place)) from None
    except YAMLError as error:
        first = str(error).strip().partition("\n")[0]
        raise RecipeError(f"invalid YAML: {first}", where=str(origin)) from None


def _refuse_deep_brackets(text: str, origin: Origin) -> None:
    """Reject deep nesting before scanning, because the scanning time grows with the square of the depth."""
    depth = 0
    for bracket in _BRACKET.finditer(text):
        depth = depth + 1 if bracket[0] in "[{" else max(0, depth - 1)
        if depth > _DEEPEST:
            line = Origin(origin.file, text.count("\n", 0, bracket.start()) + 1) if origin.file else origin
            raise RecipeError(f"values are nested more than {_DEEPEST} levels deep", where=str(line))


class _Composer:
    """Build nodes from ruamel.yaml's events, which keep tags and distinguish plain from quoted scalars."""

    def __init__(self, text: str, origin: Origin) -> None:
        self.origin = origin
        self.events: Iterator[Event] = YAML(typ="safe", pure=True).parse(text)
        self.anchors: dict[str, tuple[Node, int]] = {}
        self.depth = 0
        self.values = 0  # after the expansion of aliases; a long text counts as several
        self.values_from_aliases = 0
        self.problems: list[Problem] = []

    def document(self) -> Node | None:
        node = None
        for event in self.events:
            if isinstance(event, DocumentStartEvent):
                if node is not None:
                    raise RecipeError("the file contains a second document (`---`)", where=str(self.at(event)))
                node = self.node(next(self.events))
            elif not isinstance(event, DocumentEndEvent):
                continue
        if self.problems:
            raise RecipeError(self.problems)
        return node

    def at(self, event: Event) -> Origin:
        return self.origin if self.origin.file is None else Origin(self.origin.file, event.start_mark.line + 1)

    def node(self, event: Event, origin: Origin | None = None) -> Node:
        """Build the node that starts with an event; `origin` is the origin of its key, if it has one."""
        origin = origin or self.at(event)
        if isinstance(event, AliasEvent):
            if event.anchor not in self.anchors:
                raise RecipeError(f"`*{event.anchor}` has no preceding anchor `&{event.anchor}`", where=str(origin))
            node, values = self.anchors[event.anchor]
            self.values += values
            self.values_from_aliases += values
            if self.values_from_aliases > _MOST_FROM_ALIASES:
                what = f"aliases such as `*{event.anchor}` expand to more than {_MOST_FROM_ALIASES:,} values"
                raise RecipeError(what, where=str(origin))
            return Node(node.value, origin)
        assert isinstance(event, ScalarEvent | SequenceStartEvent | MappingStartEvent)
        if event.tag is not None:
            self.problems.append(
                Problem(f"the tag `{event.tag}` is not allowed", str(origin), hint="A recipe is plain data, not code.")
            )
        before = self.values
        self.depth += 1
        if self.depth > _DEEPEST:
            raise RecipeError(f"values are nested more than {_DEEPEST} levels deep", where=str(origin))
        node = Node(self.value(event, origin), origin)
        self.depth -= 1
        self.values += 1
        if event.anchor is not None:
            self.anchors[event.anchor] = node, self.values - before
        return node

    def value(self, event: Event, origin: Origin) -> bool | int | float | str | list[Node] | dict[str, Node] | None:
        if isinstance(event, ScalarEvent):
            return self.scalar(event, origin)
        if isinstance(event, SequenceStartEvent):
            items = []
            while not isinstance(item := next(self.events), SequenceEndEvent):
                items.append(self.node(item))
            return items
        assert isinstance(event, MappingStartEvent)
        return self.map()

    def scalar(self, event: ScalarEvent, origin: Origin) -> bool | int | float | str | None:
        text = str(event.value)
        self.values += len(text) // _CHARACTERS_OF_A_VALUE
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise RecipeError("the text contains half of a surrogate pair, which UTF-8 forbids", where=str(origin))
        try:
            return plain_scalar(text) if event.implicit[0] else text
        except RecipeError as error:
            raise RecipeError(error.problems[0].what, where=str(origin)) from None

    def map(self) -> dict[str, Node]:
        found: dict[str, Node] = {}
        while not isinstance(event := next(self.events), MappingEndEvent):
            origin = self.at(event)
            if not isinstance(event, ScalarEvent):
                raise RecipeError("a key must be text", where=str(origin))
            key = str(event.value)
            value = self.node(next(self.events), origin)
            if key == "<<":
                hint = "Use `extends:`, or repeat the value with an anchor."
                self.problems.append(Problem("`<<` is not part of YAML 1.2", str(origin), hint=hint))
            elif key in found:
                what = f"duplicate key `{key}`, first in line {found[key].origin.line}"
                self.problems.append(Problem(what, str(origin), key))
            else:
                found[key] = value
        return found


def yaml_files_near(file: Path) -> str | None:
    """Suggest the YAML files in the folder of a missing file."""
    folder = file if file.is_dir() else file.parent
    if not folder.is_dir():
        return f"The folder {folder} does not exist."
    names = sorted(path.name for path in folder.iterdir() if path.suffix in (".yaml", ".yml"))
    if not names:
        return None
    return f"YAML files in {folder}: {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"
