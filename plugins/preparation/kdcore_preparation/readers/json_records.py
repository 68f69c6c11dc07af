"""Parse JSON objects as records, and reject repeated keys."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import Any


def json_record(line: str, used: Collection[str]) -> dict[str, Any]:
    """Parse a line of JSON Lines.

    Objects with a repeated key are valid JSON, but only one of the values can be read. They are rejected if one of
    these values is used.

    Args:
        line: the line.
        used: keys whose values are used, if the object has them. If there are none, repeated keys are not detected,
            which is faster.

    Raises:
        ValueError: the line is not a JSON object, or it repeats a key that is used or that is inside a used value; the
            message completes a sentence such as "line 3 ...".
    """
    try:
        record = (_DECODER if used else _PLAIN_DECODER).decode(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"is not a JSON object (found {type(record).__name__})")
    own = record.repeated if isinstance(record, _WithRepeatedKeys) else ()
    for name in used:
        for key in [name] if name in own else _repeated_inside(record.get(name)):
            raise ValueError(repeated_key(key))
    return record


def repeated_key(key: str) -> str:
    """Describe a record that repeats a key, to complete a sentence such as "line 3 ..."."""
    return f"has the key `{key}` more than once, and only one value can be read"


class _WithRepeatedKeys(dict[str, Any]):
    """The last value of each key of an object, and its repeated keys."""

    repeated: list[str]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    marked = _WithRepeatedKeys(found)
    keys = [key for key, _ in pairs]
    marked.repeated = [key for key in found if keys.count(key) > 1]
    return marked


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
_PLAIN_DECODER = json.JSONDecoder()


def _repeated_inside(value: Any) -> Iterator[str]:
    if isinstance(value, _WithRepeatedKeys):
        yield from value.repeated
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _repeated_inside(one)
