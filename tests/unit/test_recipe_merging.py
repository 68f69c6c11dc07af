"""How a recipe is put together from what it extends, itself, and overrides."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdcore.errors import RecipeError
from kdcore.recipe.merging import load_merged
from kdcore.recipe.schema import SECTION_DEFAULTS


def merged(folder: Path, files: dict[str, str], *overrides: str):
    """The data of r.yaml."""
    return tree(folder, files, *overrides).plain()


def tree(folder: Path, files: dict[str, str], *overrides: str):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return load_merged(folder / "r.yaml", overrides, SECTION_DEFAULTS).root


def failure(folder: Path, files: dict[str, str], *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        merged(folder, files, *overrides)
    return str(caught.value)


def test_maps_merge_lists_replace_and_null_removes(tmp_path):
    files = {
        "base/b.yaml": "a: {x: 1, y: 2, z: {q: 1}}\nl: [1, 2, 3]\nk: 1\n",
        "r.yaml": "extends: base/b.yaml\na: {y: 3, z: {r: 2}}\nl: [4]\nk: null\n",
    }
    assert merged(tmp_path, files) == {"a": {"x": 1, "y": 3, "z": {"q": 1, "r": 2}}, "l": [4]}


def test_of_several_bases_the_later_wins_and_the_file_wins_over_all(tmp_path):
    files = {
        "b1.yaml": "a: 1\nb: 1\nc: 1\n",
        "b2.yaml": "a: 2\nb: 2\n",
        "r.yaml": "extends: [b1.yaml, b2.yaml]\na: 3\n",
    }
    assert merged(tmp_path, files) == {"a": 3, "b": 2, "c": 1}


def test_a_base_is_relative_to_the_file_that_extends_it(tmp_path):
    files = {
        "base/deep/b2.yaml": "x: 1\n",
        "base/b1.yaml": "extends: deep/b2.yaml\ny: 2\n",
        "r.yaml": "extends: base/b1.yaml\n",
    }
    root = tree(tmp_path, files)
    assert root.plain() == {"x": 1, "y": 2}
    assert root.value["x"].origin.file == tmp_path / "base/deep/b2.yaml"


def test_one_base_may_be_extended_on_two_ways(tmp_path):
    files = {
        "b.yaml": "x: 1\n",
        "l.yaml": "extends: b.yaml\nl: 1\n",
        "m.yaml": "extends: b.yaml\nm: 1\n",
        "r.yaml": "extends: [l.yaml, m.yaml]\n",
    }
    assert merged(tmp_path, files) == {"x": 1, "l": 1, "m": 1}


def test_a_circle_of_extends_is_told_with_its_files(tmp_path):
    text = failure(tmp_path, {"r.yaml": "extends: b.yaml\n", "b.yaml": "extends: r.yaml\n"})
    assert "`extends` is circular" in text
    assert "b.yaml -> " in text


@pytest.mark.parametrize(
    ("extends", "words"),
    [
        ("no.yaml", ["r.yaml:1: extends", "no.yaml does not exist"]),
        ("[no.yaml, nor.yaml]", ["no.yaml does not exist", "nor.yaml does not exist"]),
        ("5", ["expected the path of a recipe, found the number 5"]),
        ("{a: 1}", ["found a map"]),
        ("kdcore:base/nothing.yaml", ["kdcore does not ship a recipe `base/nothing.yaml`"]),
        ("package:no-such-package-here/x.yaml", ["pip install no-such-package-here"]),
    ],
)
def test_a_base_that_is_not_there_is_told_with_its_line(tmp_path, extends, words):
    text = failure(tmp_path, {"r.yaml": f"extends: {extends}\n"})
    for word in words:
        assert word in text


def test_a_map_that_changes_its_name_replaces_the_whole_map(tmp_path):
    files = {
        "b.yaml": "optimizer: {name: adamw, lr: 1, betas: [0, 0]}\ntask: {name: t, x: 1}\n",
        "r.yaml": "extends: b.yaml\noptimizer: {name: lamb, lr: 2}\ntask: {name: t, y: 2}\n",
    }
    assert merged(tmp_path, files) == {"optimizer": {"name": "lamb", "lr": 2}, "task": {"name": "t", "x": 1, "y": 2}}


def test_a_name_that_was_only_implied_is_changed_too(tmp_path):
    files = {
        "b.yaml": "losses: {a: {x: 1}, b: {x: 1}}\nstudent: {x: 1}\noptimizer: {x: 1}\n",
        "r.yaml": "extends: b.yaml\nlosses: {a: {name: other}, b: {name: b}}\n"
        "student: {name: transformers, y: 1}\noptimizer: {name: lamb}\n",
    }
    assert merged(tmp_path, files) == {
        "losses": {"a": {"name": "other"}, "b": {"name": "b", "x": 1}},
        "student": {"name": "transformers", "x": 1, "y": 1},
        "optimizer": {"name": "lamb"},
    }


def test_saying_which_package_a_name_is_of_changes_no_name(tmp_path):
    files = {
        "b.yaml": "losses: {a: {x: 1}, b: {name: p:c, x: 1}}\noptimizer: {name: adamw, x: 1}\n",
        "r.yaml": "extends: b.yaml\nlosses: {a: {name: p:a}, b: {name: q:c}}\noptimizer: {name: p:adamw}\n",
    }
    assert merged(tmp_path, files) == {
        "losses": {"a": {"name": "p:a", "x": 1}, "b": {"name": "q:c"}},
        "optimizer": {"name": "p:adamw", "x": 1},
    }


def test_the_name_of_a_run_is_not_the_name_of_a_component(tmp_path):
    files = {"b.yaml": "run: {name: a, folder: f}\n", "r.yaml": "extends: b.yaml\nrun: {name: b}\n"}
    assert merged(tmp_path, files) == {"run": {"name": "b", "folder": "f"}}


def test_overrides_set_add_and_remove(tmp_path):
    files = {"r.yaml": "a: {x: 1, y: 2}\nb: 3\n"}
    found = merged(tmp_path, files, "a.x=5e-4", "a.y=null", "c.d.e=[1, {f: g}]", "b=a=b")
    assert found == {"a": {"x": 0.0005}, "b": "a=b", "c": {"d": {"e": [1, {"f": "g"}]}}}


def test_an_override_reaches_into_lists(tmp_path):
    files = {"r.yaml": "l: [1, {a: 1, b: 2}]\n"}
    assert merged(tmp_path, files, "l.0=7", "l.1.a=8") == {"l": [7, {"a": 8, "b": 2}]}
    assert "l.2: index out of range: the list has 2 items, counted from 0" in failure(tmp_path, files, "l.2=1")


def test_the_order_of_overrides_does_not_decide_what_a_changed_name_keeps(tmp_path):
    files = {"r.yaml": "optimizer: {name: adamw, lr: 1, eps: 2}\n"}
    for overrides in (["optimizer.name=lamb", "optimizer.lr=3"], ["optimizer.lr=3", "optimizer.name=lamb"]):
        assert merged(tmp_path, files, *overrides) == {"optimizer": {"name": "lamb", "lr": 3}}


def test_the_later_of_two_overrides_of_one_key_wins(tmp_path):
    assert merged(tmp_path, {"r.yaml": "a: 1\n"}, "a=2", "a=3") == {"a": 3}


def test_values_know_whether_file_or_override_states_them(tmp_path):
    root = tree(tmp_path, {"r.yaml": "a:\n  x: 1\n  y: 2\n"}, "a.y=3")
    inner = root.value["a"].value
    assert str(inner["x"].origin) == f"{tmp_path / 'r.yaml'}:2"
    assert str(inner["y"].origin) == "override `a.y=3`"
    assert str(root.value["a"].origin) == f"{tmp_path / 'r.yaml'}:1"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("a", "this is not a valid override"),
        ("=1", "this is not a valid override"),
        ("a..b=1", "this is not a valid override"),
        ("a.=1", "this is not a valid override"),
        ("a.x=", "the value is missing"),
        ("a.x=[1", "invalid YAML"),
        ("a.x=!!python/none 1", "tag"),
        ("extends=b.yaml", "`extends` cannot be overridden"),
        ("a.xx=null", "the key to remove does not exist"),
    ],
)
def test_a_malformed_override_is_told_with_its_text(tmp_path, override, words):
    text = failure(tmp_path, {"r.yaml": "a: {xy: 1}\n"}, override)
    assert words in text
    assert f"override `{override}`" in text


def test_all_malformed_overrides_are_told_at_once(tmp_path):
    text = failure(tmp_path, {"r.yaml": "a: {weight: 1}\n"}, "b", "c=", "a.wieght=null")
    assert text.count("override `") == 3
    assert "Did you mean `weight`?" in text
