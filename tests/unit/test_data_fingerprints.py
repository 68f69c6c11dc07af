"""Runs keep the data that an earlier kdcore has prepared; fingerprints do not depend on where a reader is defined."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from kdcore_preparation.pipeline.data_recipe import PREPARATION_REVISION, Identity, identify, load_tokenizers
from kdcore_preparation.pipeline.old_manifests import OLD_READERS, OLD_RECIPE_DEFAULTS
from kdcore_preparation.pipeline.prepare import DataRecipe, build_corpora, find, find_or_prepare, prepare
from kdcore_preparation.pipeline.reopening import reopen
from kdcore_preparation.readers.input_files import FileHashes
from kdcore_preparation.readers.json_lines import JsonLinesCorpus
from kdcore_preparation.readers.text_files import TextCorpus
from pydantic import Field, create_model

from kdcore import registry
from kdcore.data.tokenizers import load_tokenizer, tokenizer_fingerprint
from kdcore.errors import DataError
from kdcore.recipe.imports import run_import
from kdcore.recipe.loading import load_config

GOLDEN = Path(__file__).parents[1] / "golden" / "format-1"
NAMES = json.loads((GOLDEN / "prepared" / "fingerprints.json").read_text())


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    root = tmp_path / "golden"
    for part in ("teacher", "corpus.txt", "cache", "prepared"):
        source = GOLDEN / part
        root.mkdir(exist_ok=True)
        shutil.copytree(source, root / part) if source.is_dir() else shutil.copy(source, root / part)
    for file in (*root.rglob("*.json"), *root.rglob("*.yaml")):
        text = file.read_text(encoding="utf-8")
        if "@ROOT@" in text:
            file.write_text(text.replace("@ROOT@", str(root)), encoding="utf-8")
    return root


def recipe_of(golden: Path, name: str) -> DataRecipe:
    return load_config(golden / "prepared" / "recipes" / f"{name}.yaml", DataRecipe)


@pytest.mark.parametrize("name", NAMES)
def test_data_of_manifest_version_2_is_reopened_by_its_runs_and_not_used_by_others(
    golden: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    if name in ("hdf5", "huggingface"):
        pytest.importorskip({"hdf5": "h5py", "huggingface": "datasets"}[name])
    cache = golden / "prepared" / "cache"
    before = sorted(path.name for path in cache.iterdir())
    data = recipe_of(golden, name)
    found, fingerprint = reopen(data, cache, None, NAMES[name])
    assert found.fingerprint == fingerprint == NAMES[name]
    assert found.folder == cache / NAMES[name][:32]
    assert sorted(path.name for path in cache.iterdir() if path.name != "file-hashes.json") == before
    found.verify()
    assert "revision 1 of the preparation, which has 2; the run continues with its original data" in caplog.text
    assert find(data, cache) is None, "the documents that it holds out are others by now"
    with pytest.raises(DataError, match="already contains other prepared data"):
        prepare(data, found.folder)


@pytest.mark.parametrize("name", ["books", "wikipedia"])
def test_data_of_a_reader_with_a_higher_revision_is_prepared_again(golden: Path, name: str) -> None:
    cache = golden / "prepared" / "cache"
    data = recipe_of(golden, name)
    old = cache / NAMES[name][:32]
    assert build_corpora(data)[0].revision > OLD_READERS[name].revision
    found = find_or_prepare(data, cache)
    assert found.folder.parent == cache
    assert found.folder != old
    assert (old / "manifest.json").is_file(), "runs continue with their own data"


def identity_of(data: DataRecipe) -> Identity:
    return identify(data, build_corpora(data), load_tokenizers(data), FileHashes(None))


def with_corpus(golden: Path, entry: dict[str, Any], **keys: Any) -> DataRecipe:
    path = str(golden / "corpus.txt")
    return DataRecipe(corpora=[{"path": path, **entry}], tokenizer=str(golden / "teacher"), **keys)


def sha256_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def test_the_fingerprint_is_over_names_stated_settings_and_content(golden: Path) -> None:
    """The documented content, written down by hand. Moving or renaming code must not change it."""
    texts = {"blocks.txt": 0, "records.jsonl": 1}
    inputs = []
    for name, number in texts.items():
        raw = (golden / "prepared" / "inputs" / name).read_bytes()
        sha256 = hashlib.sha256(raw).hexdigest()
        inputs.append({"corpus": number, "name": name, "bytes": len(raw), "sha256": sha256})
    content = {
        "preparation": 2,
        "corpora": [
            {"reader": "text", "revision": 2, "source": None, "settings": {"weight": 2.0}},
            {"reader": "jsonl", "revision": 1, "source": None, "settings": {"field": "body"}},
        ],
        "inputs": inputs,
        "tokenizer": tokenizer_fingerprint(load_tokenizer(str(golden / "teacher"))),
        "recipe": {
            "sequence_length": 24,
            "held_out": 0.2,
            "packing": "full",
            "sentences": False,
            "short_sequences": 0.3,
            "remove_duplicates": True,
            "seed": 7,
        },
    }
    assert identity_of(recipe_of(golden, "stated")).fingerprint == sha256_of(content)


def test_new_data_gets_the_new_fingerprint_and_is_found_under_it(golden: Path, tmp_path: Path) -> None:
    data = recipe_of(golden, "jsonl")
    made = find_or_prepare(data, tmp_path / "cache")
    identity = identity_of(data)
    assert made.fingerprint == identity.fingerprint
    assert made.folder.name == identity.fingerprint[:32]
    assert [(one.name, one.revision) for one in made.manifest.readers] == [("jsonl", 1)]
    assert made.manifest.stated == ["held_out", "sequence_length"]
    before = (made.folder / "manifest.json").stat().st_mtime_ns
    assert find_or_prepare(data, tmp_path / "cache").folder == made.folder
    assert (made.folder / "manifest.json").stat().st_mtime_ns == before


def test_stating_a_default_changes_nothing_and_stating_something_else_does(golden: Path) -> None:
    plain = identity_of(with_corpus(golden, {"name": "text"}))
    for entry, keys in (
        ({"name": "text", "documents": "lines", "weight": 1}, {}),
        ({"name": "kdcore:text"}, {"sequence_length": 128, "packing": "document", "sentences": None, "seed": 0}),
        ({"name": "text"}, {"sentences": False, "held_out": 0.02, "short_sequences": 0, "remove_duplicates": False}),
    ):
        assert identity_of(with_corpus(golden, entry, **keys)).fingerprint == plain.fingerprint, (entry, keys)
    full = identity_of(with_corpus(golden, {"name": "text"}, packing="full"))
    assert identity_of(with_corpus(golden, {"name": "text"}, packing="full", sentences=True)) == full
    others = [
        with_corpus(golden, {"name": "text", "documents": "blank_lines"}),
        with_corpus(golden, {"name": "text", "weight": 2}),
        with_corpus(golden, {"name": "text"}, sentences=True),
        with_corpus(golden, {"name": "text"}, packing="full", sentences=False),
        with_corpus(golden, {"name": "text"}, seed=1),
    ]
    assert len({plain.fingerprint, full.fingerprint, *(identity_of(one).fingerprint for one in others)}) == 7


@pytest.mark.parametrize("name", ["text", "stated"])
def test_moving_readers_to_another_module_changes_no_fingerprint(
    golden: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = identity_of(recipe_of(golden, name))
    for cls in (TextCorpus, JsonLinesCorpus):
        monkeypatch.setattr(cls, "__module__", "kdcore_preparation.readers.elsewhere")
    assert identity_of(recipe_of(golden, name)) == before


def test_a_new_option_of_a_reader_keeps_old_and_new_fingerprints(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity_of(recipe_of(golden, "text"))
    more = create_model("Config", __base__=TextCorpus.Config, reverse=(bool, Field(False)))
    monkeypatch.setattr(TextCorpus, "Config", more)
    assert identity_of(recipe_of(golden, "text")) == before
    data = recipe_of(golden, "text")
    other = data.model_copy(update={"corpora": [{**data.corpora[0], "reverse": True}]})
    assert identity_of(other).fingerprint != before.fingerprint


def test_a_raised_revision_matches_no_earlier_data(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity_of(recipe_of(golden, "text"))
    monkeypatch.setattr(TextCorpus, "revision", TextCorpus.revision + 1)
    now = identity_of(recipe_of(golden, "text"))
    assert now.fingerprint != before.fingerprint


READER = """
from kdcore_preparation.readers.text_files import TextCorpus

class Mine(TextCorpus):
    class Config(TextCorpus.Config):
        loud: bool = False
"""


def test_an_installed_reader_is_known_by_package_and_name_wherever_its_class_is(
    golden: Path, tmp_path: Path, packages: Any
) -> None:
    modules = {"one_home.py": READER, "other_home.py": READER, "third.py": READER}
    packages.install("some-readers", {"kdcore.corpora:mine": "one_home:Mine"}, modules)
    data = with_corpus(golden, {"name": "mine", "loud": True})
    before = identity_of(data)
    assert [one.name for one in before.readers] == ["some-readers:mine"]
    made = find_or_prepare(data, tmp_path / "cache")
    points = packages.folder / "some_readers-1.0.dist-info" / "entry_points.txt"
    shutil.rmtree(points.parent)
    packages.install("some-readers", {"kdcore.corpora:mine": "other_home:Mine"}, version="2.0")
    assert type(build_corpora(data)[0]).__module__ == "other_home"
    assert identity_of(data).fingerprint == before.fingerprint
    assert find_or_prepare(data, tmp_path / "cache").folder == made.folder
    packages.install("more-readers", {"kdcore.corpora:mine": "third:Mine"})
    theirs = with_corpus(golden, {"name": "more-readers:mine", "loud": True})
    assert identity_of(theirs).fingerprint != before.fingerprint, "another package's reader of the same name"


def test_a_reader_of_a_file_is_known_by_its_name_and_the_content_of_the_file(golden: Path, tmp_path: Path) -> None:
    code = READER.replace("class Mine", '@register_corpus("mine_of_a_file")\nclass Mine')
    code = code.replace("import TextCorpus", "import TextCorpus\nfrom kdcore import register_corpus")
    data = with_corpus(golden, {"name": "mine_of_a_file"})
    found = []
    for folder, text in (("a", code), ("b", code), ("c", code + "# changed\n")):
        file = tmp_path / folder / "readers.py"
        file.parent.mkdir()
        file.write_text(text)
        run_import(str(file), where="test", key="imports.0")
        registered = build_registered(str(file), data)
        found.append(identify(data, registered, load_tokenizers(data), FileHashes(None)))
    assert found[0].readers[0].source == hashlib.sha256(code.encode()).hexdigest()
    assert found[0].fingerprint == found[1].fingerprint, "the file may lie elsewhere"
    assert found[2].fingerprint != found[0].fingerprint


def build_registered(file: str, data: DataRecipe) -> list[Any]:
    """The reader that a file has registered, after taking back what other files registered under that name."""
    name = data.corpora[0]["name"]
    own = [one for one in registry.corpora._registered[name] if one.source == file]
    registry.corpora._registered[name] = own
    return build_corpora(data)


def test_paths_are_left_out_at_any_depth(golden: Path, packages: Any) -> None:
    code = """
from kdcore import ComponentConfig, PathString
from kdcore_preparation.readers.text_files import TextCorpus

class Words(ComponentConfig):
    file: PathString
    limit: int = 3

class Mine(TextCorpus):
    class Config(TextCorpus.Config):
        words: Words
        more: list[PathString] = []
"""
    packages.install("some-readers", {"kdcore.corpora:mine": "nested_home:Mine"}, {"nested_home.py": code})

    def fingerprint(folder: str, limit: int) -> str:
        entry = {"name": "mine", "words": {"file": f"{folder}/words", "limit": limit}, "more": [f"{folder}/x"]}
        return identity_of(with_corpus(golden, entry)).fingerprint

    assert fingerprint("/here", 4) == fingerprint("/there", 4) != fingerprint("/here", 5)


@pytest.mark.parametrize("name", OLD_READERS)
def test_a_default_of_a_reader_changes_only_with_its_revision(name: str) -> None:
    cls, old = registry.corpora.get(name), OLD_READERS[name]
    fields = cls.Config.model_fields
    now = {key: fields[key].get_default(call_default_factory=True) for key in old.defaults}
    assert cls.revision >= old.revision
    assert now == old.defaults or cls.revision > old.revision, "raise the reader's `revision` with the default"


def test_a_default_of_the_recipe_changes_only_with_the_revision_of_the_preparation() -> None:
    fields = DataRecipe.model_fields
    now = {key: fields[key].get_default(call_default_factory=True) for key in OLD_RECIPE_DEFAULTS}
    assert now == OLD_RECIPE_DEFAULTS or PREPARATION_REVISION > 1
