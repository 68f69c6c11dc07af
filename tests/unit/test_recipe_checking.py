"""Errors of configs in kdcore's own words: what is wrong, where, what is allowed, what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, model_validator

from kdcore.errors import RecipeError
from kdcore.recipe.loading import load_config
from kdcore.recipe.schema import ComponentConfig, ComponentSection, PathOrHubName, PathString


class Inner(ComponentConfig):
    rate: float = Field(0.5, ge=0, le=1)
    kind: Literal["mean", "first"] = "mean"


class Ends(ComponentConfig):
    start: int = 0
    end: int = 1

    @model_validator(mode="after")
    def _ordered(self):
        if self.start > self.end:
            raise ValueError("`start` is behind `end`")
        return self


class Config(ComponentConfig):
    size: int = Field(8, gt=0, description="How large it is.")
    flag: bool = False
    name_of: str = "x"
    pair: tuple[float, float] = (0.9, 0.98)
    layers: Literal["last", "all"] | list[tuple[int, int]] = "last"
    inner: Inner = Inner()
    either: int | Inner = 1
    ends: Ends = Ends()
    several: list[Inner] = Field(default_factory=list)
    mapping: dict[str, Inner] = Field(default_factory=dict)
    from_: str = Field("teacher", alias="from")
    needed: Annotated[int, Field(description="Must be said.")]
    path: PathString | None = None
    paths: list[PathString] = Field(default_factory=list)
    model: PathOrHubName | Literal["none"] = "none"
    source: PathString | Inner | None = None
    readers: list[Annotated[dict[str, Any], ComponentSection("kdcore.schedulers")]] = Field(default_factory=list)


def load(folder: Path, text: str, *overrides: str) -> Config:
    file = folder / "c.yaml"
    file.write_text(f"needed: 1\n{text}\n", encoding="utf-8")
    return load_config(file, Config, overrides)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("siez: 3", ["c.yaml:2: siez: unknown key `siez`", "allowed: either, ", "Did you mean `size`?"]),
        ("size: '64'", ["size: expected an integer, found the text '64'", "without quotes"]),
        ("size: 6.5", ["size: expected an integer, found the number 6.5"]),
        ("size: true", ["size: expected an integer, found true"]),
        ("size: 0", ["size: must be greater than 0, found the number 0"]),
        ("flag: yes", ["flag: expected true or false, found the text 'yes'"]),
        ("flag: 1", ["flag: expected true or false, found the number 1"]),
        ("name_of: 5", ["name_of: expected text, found the number 5", "in quotes"]),
        ("name_of: [a]", ["name_of: expected text, found a list"]),
        ("pair: 0.9", ["pair: expected a list, found the number 0.9"]),
        ("pair: [0.9, x]", ["c.yaml:2: pair.1: expected a number, found the text 'x'"]),
        ("pair: [0.9]", ["pair.1"]),
        ("pair: [0.9, .nan]", ["pair.1: expected a finite number"]),
        ("inner: 3", ["inner: expected a map, found the number 3"]),
        ("inner: {rate: 2}", ["inner.rate: must be less than or equal to 1, found the number 2"]),
        ("inner: {kind: maen}", ["inner.kind: the text 'maen' is not one", "allowed: mean, first", "mean `mean`?"]),
        ("inner:\n  kind: mean\n  raet: 1", ["c.yaml:4: inner.raet: unknown key", "allowed: kind, rate\n"]),
        ("layers: lats", ["layers: expected 'last' or 'all' or a list, found the text 'lats'"]),
        ("layers: [[1, a]]", ["layers.0.1: expected an integer, found the text 'a'"]),
        ("either: {rate: 7}", ["either.rate: must be less than or equal to 1"]),
        ("either: {raet: 1}", ["either.raet: unknown key `raet`", "allowed: kind, rate"]),
        ("either: x", ["either: expected an integer or a map, found the text 'x'"]),
        ("source: {raet: 1}", ["source.raet: unknown key"]),
        ("source: 5", ["source: expected text or a map, found the number 5"]),
        ("ends: {start: 5, end: 1}", ["c.yaml:2: ends: `start` is behind `end`"]),
        ("several:\n  - {rate: 1}\n  - {rat: 1}", ["c.yaml:4: several.1.rat: unknown key", "Did you mean `rate`?"]),
        ("mapping: {a: {rate: x}}", ["mapping.a.rate: expected a number"]),
        ("from_: x", ["from_: unknown key", "Did you mean `from`?"]),
        ("needed: null", ["duplicate key `needed`"]),
        ("readers: [{name: linaer}]", ["readers.0", "unknown scheduler `linaer`", "Did you mean `linear`?"]),
        ("readers: [{}]", ["readers.0: `name` is missing", "cosine, exponential, linear"]),
        ("readers: [{name: linear, warmpu: 3}]", ["readers.0.warmpu: unknown key", "Did you mean `warmup`?"]),
        ("path: ''", ["path: the path is empty"]),
        ("path: ~nobody-of-that-name/x", ["path: cannot expand `~`"]),
        ("path: package:no-such-package/x", ["c.yaml:2: path: ", "not installed", "pip install no-such-package"]),
    ],
)
def test_a_mistake_is_told_with_place_expectation_and_help(tmp_path, text, words):
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, text)
    for word in words:
        assert word in str(caught.value)
    if words != ["duplicate key `needed`"]:
        assert len(caught.value.problems) == 1, "one mistake, one message"


def test_a_missing_key_is_told_with_the_place_where_it_belongs(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("size: 3\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"`needed` is missing\n  Hint: Add `needed:` to the file: Must be said\."):
        load_config(file, Config)


def test_all_mistakes_are_told_at_once_each_with_its_own_line(tmp_path):
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, "size: x\ninner:\n  rate: 5\nflagg: true\npath: package:no-such-package/x", "ends.start=a")
    found = {(problem.key, problem.where.removeprefix(str(tmp_path))) for problem in caught.value.problems}
    assert found == {
        ("size", "/c.yaml:2"),
        ("inner.rate", "/c.yaml:4"),
        ("flagg", "/c.yaml:5"),
        ("path", "/c.yaml:6"),
        ("ends.start", "override `ends.start=a`"),
    }


def test_right_values_arrive_in_the_types_of_the_config(tmp_path):
    config = load(
        tmp_path, "size: 1e3\npair: [1, 5e-1]\nlayers: [[11, 5]]\nfrom: disk\neither: {rate: 1}\nmapping: {a: {}}"
    )
    assert config.size == 1000
    assert config.pair == (1.0, 0.5)
    assert config.layers == [(11, 5)]
    assert config.from_ == "disk"
    assert config.either == Inner(rate=1.0)
    assert config.mapping == {"a": Inner()}


def test_paths_are_relative_to_the_file_that_states_them(tmp_path, monkeypatch):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "b.yaml").write_text("paths: [x.txt]\nsource: y\nneeded: 1\n", encoding="utf-8")
    file = tmp_path / "c.yaml"
    file.write_text("extends: base/b.yaml\npath: ../z\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path / "base")
    config = load_config("../c.yaml", Config, ["model=./m"])
    assert config.paths == [str(tmp_path / "base" / "x.txt")]
    assert config.source == str(tmp_path / "base" / "y")
    assert config.path == str(tmp_path.parent / "z")
    assert config.model == str(tmp_path / "base" / "m")


def test_a_model_is_a_path_only_if_it_looks_like_one_or_exists(tmp_path):
    (tmp_path / "here").mkdir()
    for text, expected in [
        ("bert-base-uncased", "bert-base-uncased"),
        ("organisation/model", "organisation/model"),
        ("none", "none"),
        ("here", str(tmp_path / "here")),
        ("./not-here", str(tmp_path / "not-here")),
        ("/not/here", "/not/here"),
        ("~/model", str(Path.home() / "model")),
    ]:
        assert load(tmp_path, f"model: {text}").model == expected


def test_a_path_in_a_package_is_found_without_importing_it(tmp_path, packages):
    packages.install("carrier-of-data", {}, {"carrier/__init__.py": "raise RuntimeError", "carrier/d/text.txt": "x"})
    config = load(tmp_path, "path: package:carrier-of-data/carrier/d/text.txt")
    assert Path(config.path).read_text() == "x"
    with pytest.raises(RecipeError, match=r"carrier-of-data 1\.0 does not contain `carrier/d/txet\.txt`"):
        load(tmp_path, "path: package:carrier-of-data/carrier/d/txet.txt")


def test_paths_of_nested_components_are_resolved_and_their_keys_checked(tmp_path, packages):
    code = """
from kdcore.recipe.schema import ComponentConfig, PathString
from kdcore.schedulers.base import Scheduler
class Table(Scheduler):
    class Config(ComponentConfig):
        file: PathString
    def factor(self, progress): return 1.0
"""
    packages.install("kdcore-table", {"kdcore.schedulers:table": "table_of_rates:Table"}, {"table_of_rates.py": code})
    config = load(tmp_path, "readers: [{name: table, file: rates.csv}]")
    assert config.readers == [{"name": "table", "file": str(tmp_path / "rates.csv")}]
    with pytest.raises(RecipeError, match=r"readers\.0\.file: expected text"):
        load(tmp_path, "readers: [{name: table, file: 5}]")
