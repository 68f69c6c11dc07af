"""A run resumes on the prepared data that it has started on."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kdcore_preparation.readers.text_files import TextCorpus

import kdcore
from kdcore.data.shards import PreparedData
from kdcore.training.loop.plan import Plan
from kdcore.training.run import run_folder
from kdcore.training.run.build import make_plan
from kdcore.training.run.export import export_run
from kdcore.training.run.run_folder import check_resumable, stored_data

GOLDEN = Path(__file__).parents[1] / "golden" / "format-1"
OTHER_DATA = r"task\.data: the run was started with other data"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_recipe: Path) -> Path:
    """An empty cache for the small recipe's data."""
    monkeypatch.setenv("KDCORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def corpus(tmp_path: Path, corpus_file: Path, small_recipe: Path) -> Path:
    """A corpus that a test may change."""
    path = tmp_path / "corpus.txt"
    shutil.copy(corpus_file, path)
    small_recipe.write_text(small_recipe.read_text().replace(str(corpus_file), str(path)))
    return path


@pytest.fixture
def run(small_recipe: Path, cache: Path, corpus: Path) -> Path:
    """A run as its first session leaves it: recipe, environment and data are stored."""
    recipe = kdcore.load_recipe(small_recipe)
    plan = make_plan(recipe)
    data = run_folder.StoredData(plan.task.fingerprint, plan.task.data_folder)
    run_folder.store(recipe.run_folder, recipe, data, {})
    return recipe.run_folder


def resumed(recipe_file: Path, *overrides: str) -> Plan:
    recipe = kdcore.load_recipe(recipe_file, list(overrides))
    plan = make_plan(recipe, stored_data(recipe.run_folder))
    check_resumable(recipe.run_folder, recipe, plan.task.fingerprint)
    return plan


def folders(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.is_dir())


def data_of(plan: Plan) -> PreparedData:
    assert isinstance(plan.task, kdcore.MaskedLM)
    return plan.task.data


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings about where the data comes from; that the corpus is small is another matter."""
    found = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    return [message for message in found if not re.search(r": (train|held_out): ", message)]


def raise_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TextCorpus, "revision", 3)


def test_a_run_stores_its_data_and_resumes_on_it_in_silence(
    run: Path, small_recipe: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stored = json.loads((run / "data.json").read_text())
    (name,) = folders(cache)
    fingerprint = json.loads((cache / name / "manifest.json").read_text())["fingerprint"]
    assert stored == {"format_version": 1, "folder": str(cache / name), "fingerprint": fingerprint}
    plan = resumed(small_recipe)
    assert data_of(plan).folder == cache / name
    assert plan.task.data_folder == cache / name
    assert warnings_in(caplog) == []


def test_moving_the_readers_class_resumes_a_stored_run(
    run: Path, small_recipe: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = folders(cache)
    monkeypatch.setattr(TextCorpus, "__module__", "kdcore_preparation.readers.text")
    plan = resumed(small_recipe)
    assert folders(cache) == before == [data_of(plan).folder.name]
    assert warnings_in(caplog) == []


def test_a_risen_revision_resumes_with_a_warning_and_a_new_run_prepares_new_data(
    run: Path, small_recipe: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = folders(cache)
    raise_revision(monkeypatch)
    plan = resumed(small_recipe)
    assert folders(cache) == before == [data_of(plan).folder.name]
    (warning,) = warnings_in(caplog)
    assert "revision 2 of the reader `text`, which has revision 3" in warning
    assert "run.id=NEW" in warning
    assert str(data_of(plan).folder) in warning
    new = make_plan(kdcore.load_recipe(small_recipe, ["run.id=new"]))
    assert data_of(new).folder.name not in before


def test_a_risen_revision_excuses_no_other_difference(
    run: Path, small_recipe: Path, cache: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raise_revision(monkeypatch)
    before = folders(cache)
    with pytest.raises(kdcore.RecipeError, match=OTHER_DATA):
        resumed(small_recipe, "task.data.held_out=0.2")
    corpus.write_text(corpus.read_text() + "one more line\n")
    with pytest.raises(kdcore.RecipeError, match=OTHER_DATA):
        resumed(small_recipe)
    assert folders(cache) == before, "nothing is prepared for a run that is refused"


def test_another_cache_folder_changes_nothing(
    run: Path, small_recipe: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDCORE_CACHE", str(tmp_path / "elsewhere"))
    raise_revision(monkeypatch)
    assert data_of(resumed(small_recipe)).folder.parent == cache
    assert folders(tmp_path / "elsewhere") == []


def test_a_cache_that_was_moved_is_searched(
    run: Path, small_recipe: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = cache.rename(tmp_path / "moved")
    monkeypatch.setenv("KDCORE_CACHE", str(moved))
    raise_revision(monkeypatch)
    assert data_of(resumed(small_recipe)).folder.parent == moved


def test_data_that_is_gone_is_prepared_again_by_the_recipe(
    run: Path, small_recipe: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (name,) = folders(cache)
    content = (cache / name / "train-00000.arrow").read_bytes()
    shutil.rmtree(cache / name)
    assert data_of(resumed(small_recipe)).folder == cache / name
    assert (cache / name / "train-00000.arrow").read_bytes() == content
    shutil.rmtree(cache / name)
    raise_revision(monkeypatch)
    with pytest.raises(kdcore.DataError, match=OTHER_DATA) as caught:
        resumed(small_recipe)
    assert str(cache / name) in str(caught.value)
    assert "run.id=NEW" in str(caught.value)
    assert folders(cache) == [], "nothing is prepared for a run that is refused"


def test_text_that_is_gone_does_not_stop_a_run_whose_data_is_there(
    run: Path, small_recipe: Path, cache: Path, corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus.unlink()
    assert [data_of(resumed(small_recipe)).folder.name] == folders(cache)
    (warning,) = warnings_in(caplog)
    assert str(corpus) in warning
    assert "cannot be read" in warning
    with pytest.raises(kdcore.InputError, match="no such file"):
        resumed(small_recipe, "task.data.seed=5")


def test_changed_prepared_data_stops_the_run(run: Path, small_recipe: Path, cache: Path) -> None:
    path = cache / folders(cache)[0] / "manifest.json"
    path.write_text(path.read_text().replace('"mask": 4', '"mask": 5'))
    with pytest.raises(kdcore.DataError, match=r"manifest\.json: is damaged: its content differs"):
        resumed(small_recipe)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "is not valid JSON"),
        ("[]", "expected a map"),
        ("{}", "format_version"),
        ("[" * 100_000, "is not valid JSON"),
        ("\0", "is not valid JSON"),
        ('{"format_version": 2}', r"newer kdcore: format version 2(.|\n)*format version 1"),
        ('{"format_version": true, "folder": "/x", "fingerprint": "x"}', "format_version"),
        ('{"format_version": 1, "fingerprint": "x"}', "folder"),
        ('{"format_version": 1, "folder": 3, "fingerprint": "x"}', "folder"),
        ('{"format_version": 1, "folder": "/a\\u0000b", "fingerprint": "x"}', "folder"),
        ('{"format_version": 1, "folder": "/x", "fingerprint": null}', "fingerprint"),
    ],
    ids=range(11),
)
def test_a_damaged_data_json_is_named(run: Path, small_recipe: Path, text: str, what: str) -> None:
    (run / "data.json").write_text(text)
    with pytest.raises(kdcore.DataError, match=rf"data\.json(.|\n)*{what}") as caught:
        resumed(small_recipe)
    assert "run.id=NEW" in str(caught.value)


def test_a_data_json_that_leads_elsewhere_does_not_replace_the_data(run: Path, small_recipe: Path, cache: Path) -> None:
    stored = json.loads((run / "data.json").read_text())
    (run / "data.json").write_text(json.dumps({**stored, "folder": "/nowhere"}))
    assert data_of(resumed(small_recipe)).folder.parent == cache
    (run / "data.json").write_text(json.dumps({**stored, "folder": "/" + "x" * 10_000}))
    assert data_of(resumed(small_recipe)).folder.parent == cache
    (run / "data.json").write_text(json.dumps({**stored, "fingerprint": "0" * 64}))
    assert [data_of(resumed(small_recipe)).folder.name] == folders(cache), (
        "the recipe's data, as environment.json has it"
    )


@pytest.fixture
def golden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The golden runs of commit 755c853 and their cache, in a place of their own."""
    root = tmp_path / "golden"
    shutil.copytree(GOLDEN, root)
    for file in (*root.rglob("*.json"), *root.rglob("*.yaml")):
        text = file.read_text(encoding="utf-8")
        if "@ROOT@" in text:
            file.write_text(text.replace("@ROOT@", str(root)), encoding="utf-8")
    monkeypatch.setenv("KDCORE_CACHE", str(root / "cache"))
    return root


@pytest.mark.parametrize("change", ["nothing", "moved", "revision"])
def test_runs_without_data_json_resume_by_their_old_fingerprint(
    golden: Path, change: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = golden / "runs" / "fp32-zero0"
    (name,) = folders(golden / "cache")
    if change == "moved":
        monkeypatch.setattr(TextCorpus, "__module__", "elsewhere")
    elif change == "revision":
        raise_revision(monkeypatch)
    plan = resumed(run / "recipe.yaml")
    assert plan.task.fingerprint == json.loads((run / "environment.json").read_text())["data_fingerprint"]
    assert folders(golden / "cache") == [name]
    assert data_of(plan).folder == golden / "cache" / name
    reader = ["revision 2 of the reader `text`"] if change == "revision" else []
    expected = [*reader, "revision 1 of the preparation, which has 2"]
    assert [part in one for part, one in zip(expected, warnings_in(caplog), strict=True)] == [True] * len(expected)


def test_a_run_whose_lost_data_cannot_be_prepared_again_is_refused(golden: Path) -> None:
    """Which documents are held out depended on their names then."""
    run = golden / "runs" / "fp32-zero0"
    (name,) = folders(golden / "cache")
    shutil.rmtree(golden / "cache" / name)
    with pytest.raises(kdcore.DataError, match=r"data is missing(.|\n)*restore that folder"):
        resumed(run / "recipe.yaml")
    assert folders(golden / "cache") == []


def test_an_export_reads_the_data_of_its_run(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = folders(golden / "cache")
    raise_revision(monkeypatch)
    export_run(golden / "runs" / "fp32-zero0", tmp_path / "export", None)
    assert folders(golden / "cache") == before, "a risen revision makes an export prepare nothing"
    assert (tmp_path / "export" / "tokenizer.json").is_file()


def test_a_run_of_755c853_trains_on_and_stores_its_data(golden: Path) -> None:
    run = golden / "runs" / "fp32-zero0"
    before = folders(golden / "cache")
    environment: dict[str, Any] = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "kdcore.commands.main", "train", str(run / "recipe.yaml")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=golden)
    assert done.returncode == 0, done.stderr
    assert "continued from step-0000004" in done.stderr
    stored = json.loads((run / "data.json").read_text())
    assert stored["folder"] == str(golden / "cache" / before[0])
    assert folders(golden / "cache") == before
