"""YAML as recipes are read: version 1.2, plain data, no surprises, every value with its line."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import pytest

from kdcore.errors import RecipeError
from kdcore.recipe.yaml import Origin, dump_yaml, parse_value, plain_scalar, read_yaml


def read(folder: Path, text: str | bytes):
    file = folder / "recipe.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_yaml(file)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-4", 0.0005),
        ("1e-6", 0.000001),
        ("1e5", 100000),
        ("-2E+3", -2000),
        ("1.5e3", 1500.0),
        ("0.06", 0.06),
        (".5", 0.5),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("no", "no"),
        ("on", "on"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("'5e-4'", "5e-4"),
        ('"null"', "null"),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("[1, [2, a]]", [1, [2, "a"]]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
    ],
)
def test_values_are_those_of_yaml_1_2(text, value):
    found = parse_value(text, Origin(override=f"key={text}")).plain()
    assert found == value
    assert type(found) is type(value)


def test_every_value_knows_the_line_of_its_key(tmp_path):
    root = read(tmp_path, "a: 1\nb:\n  c: 2\n\n  d:\n    - 3\n    - 4\n")
    lines = {key: node.origin.line for key, node in root.value.items()}
    inner = {key: node.origin.line for key, node in root.value["b"].value.items()}
    assert (lines, inner) == ({"a": 1, "b": 2}, {"c": 3, "d": 5})
    assert [item.origin.line for item in root.value["b"].value["d"].value] == [6, 7]
    assert str(root.value["a"].origin) == f"{tmp_path / 'recipe.yaml'}:1"


def test_an_anchor_repeats_its_value_and_the_alias_has_its_own_line(tmp_path):
    root = read(tmp_path, "a: &sizes {x: 1}\nb: *sizes\n")
    assert root.plain() == {"a": {"x": 1}, "b": {"x": 1}}
    assert root.value["b"].origin.line == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["recipe.yaml: ", "the file is empty"]),
        ("# nothing\n", ["the file is empty"]),
        ("- 1\n- 2\n", ["recipe.yaml: ", "must contain a map, found a list"]),
        ("just words", ["must contain a map, found the text 'just words'"]),
        ("a: 1\nb: [1, 2\n", ["recipe.yaml:", "invalid YAML", "expected ',' or ']'"]),
        ("a: 1\n\tb: 2\n", ["recipe.yaml:2", "invalid YAML"]),
        ("a: 1\nb: 2\na: 3\n", ["recipe.yaml:3: a: ", "duplicate key `a`, first in line 1"]),
        ("x:\n  a: 1\n  'a': 2\n", ["recipe.yaml:3", "first in line 2"]),
        ("a: !!python/object/apply:os.system ['true']\n", ["recipe.yaml:1", "tag", "not allowed"]),
        ("a: !mine 1\n", ["the tag `!mine` is not allowed"]),
        ("base: &b {x: 1}\na:\n  <<: *b\n", ["recipe.yaml:3", "`<<` is not part of YAML 1.2"]),
        ("a: *nothing\n", ["recipe.yaml:1", "`*nothing` has no preceding anchor"]),
        ("a: 1\n---\nb: 2\n", ["recipe.yaml:2", "second document"]),
        ("[1, 2]: 3\n", ["recipe.yaml:1", "a key must be text"]),
        (b"a: 1\nb: \xff\xfe\n", ["recipe.yaml:2", "not UTF-8 text"]),
        (b"a: \x00\n", ["invalid YAML"]),
    ],
)
def test_what_is_no_recipe_is_refused_with_its_place(tmp_path, text, words):
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, text)
    for word in words:
        assert word in str(caught.value)


def test_all_duplicate_keys_are_told_at_once(tmp_path):
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, "a: 1\na: 2\nb: {c: 1, c: 2}\n")
    assert [problem.key for problem in caught.value.problems] == ["a", "c"]


def test_a_missing_file_is_answered_with_the_files_that_are_there(tmp_path):
    (tmp_path / "quickstart.yaml").touch()
    with pytest.raises(RecipeError, match=r"does not exist\n  Hint: YAML files in .*: quickstart\.yaml"):
        read_yaml(tmp_path / "quick.yaml")
    with pytest.raises(RecipeError, match="this is a folder"):
        read_yaml(tmp_path)
    with pytest.raises(RecipeError, match=r"The folder .* does not exist"):
        read_yaml(tmp_path / "no" / "quick.yaml")


def test_a_byte_order_mark_and_windows_line_ends_are_no_matter(tmp_path):
    assert read(tmp_path, b"\xef\xbb\xbfa: 1\r\nb: x\r\n").plain() == {"a": 1, "b": "x"}


def test_what_is_written_reads_back_the_same(tmp_path):
    strings = ["5e-4", "null", "true", "no", "", " x ", "a: b", "# c", "1_000", "0o7", "~", "-", "zwei\nZeilen", "é"]
    data = {
        "strings": strings,
        "z": 1,
        "a": {"float": 5e-4, "tiny": 1e-12, "large": 1e300, "negative": -0.5, "flag": True, "nothing": [None]},
        "5e-4": [[11, 5], []],
        "empty": {},
    }
    text = dump_yaml(data)
    back = read(tmp_path, text).plain()
    assert back == data
    assert list(back) == list(data)
    assert [type(value) for value in back["a"].values()] == [type(value) for value in data["a"].values()]


BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{level}: &a{level} [{','.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 10)
)
HOSTILE = {
    "an alias bomb": (BOMB, "4: aliases such as `*a2` expand to more than 10,000 values"),
    "an alias bomb of long texts": (
        f"a: &a {'x' * 100_000}\nb: &b [{','.join(['*a'] * 50)}]\nc: [{','.join(['*b'] * 50)}]\n",
        "2: aliases such as `*a` expand to more than 10,000 values",
    ),
    "2,000 brackets": ("a: 1\nb: " + "[" * 2000 + "]" * 2000, "2: values are nested more than 100 levels deep"),
    "2,000 braces": ("b: " + "{b: " * 2000 + "1" + "}" * 2000, "1: values are nested more than 100 levels deep"),
    "brackets that are not closed": ("b: " + "[" * 50_000, "1: values are nested more than 100 levels deep"),
    "brackets over lines": ("b:\n" + " [\n" * 200, "102: values are nested more than 100 levels deep"),
    "nested lists": ("b:\n " + "- " * 500 + "1", "2: values are nested more than 100 levels deep"),
    "nested maps": ("\n".join(" " * depth + "b:" for depth in range(300)), "100: values are nested more than 100"),
    "5,000 digits": (
        "a: 1\nb: " + "9" * 5000,
        "2: the number is out of range (found 99999999999999999999..., ",
    ),
    "a negative one": ("b: -" + "9" * 5000, "1: the number is out of range"),
    "400 digits": ("b: " + "9" * 400, "1: the number is out of range"),
    "a giant hexadecimal number": ("b: 0x" + "f" * 5000, "1: the number is out of range (found 0xffffffffffffffffff"),
    "a giant octal number": ("b: 0o" + "7" * 50_000, "1: the number is out of range"),
    "half a surrogate pair": ('a: 1\nb: "\\ud800"', "2: the text contains half of a surrogate pair"),
    "more than a mebibyte": ("a: " + "x" * (1 << 20), " the file is larger than 1 MiB"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_refused_by_its_line_within_a_second(tmp_path: Path, name: str) -> None:
    text, words = HOSTILE[name]
    started = time.process_time()
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, text)
    assert time.process_time() - started < 1.0
    assert str(caught.value).startswith(f"{tmp_path / 'recipe.yaml'}:{words}")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("text", ["9" * 308, "-" + "9" * 308, "0x" + "f" * 255, "1e99"])
def test_large_numbers_that_python_can_print_are_numbers(text: str) -> None:
    expected = int(text, 0) if "e" not in text or "x" in text else 10**99
    assert plain_scalar(text) == expected


@pytest.mark.parametrize("text", ["9" * 5000 + "e5", "1" * 300 + "e9", "-" + "1" * 300 + "e99"])
def test_whole_numbers_with_an_exponent_have_the_same_limit(text: str) -> None:
    with pytest.raises(RecipeError, match="the number is out of range"):
        plain_scalar(text)


def test_aliases_of_moderate_size_are_expanded(tmp_path: Path) -> None:
    root = read(tmp_path, "a: &a [1, 2]\nb: [" + ", ".join(["*a"] * 3000) + "]\n")
    assert root.plain()["b"] == [[1, 2]] * 3000


def test_a_pipe_does_not_block_reading(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "recipe.yaml")
    with pytest.raises(RecipeError, match=r"recipe\.yaml: the file cannot be read"):
        read_yaml(tmp_path / "recipe.yaml")
