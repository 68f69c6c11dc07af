"""`kdcore.distil`, `kdcore.open_run` and `kdcore.train` with maps, used as scripts and notebooks use them."""

from __future__ import annotations

import itertools
import json
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from kdcore_preparation.given_texts import corpora_for, store_texts, texts_of
from transformers import AutoModel, AutoTokenizer, GPT2Config, GPT2Model

import kdcore
from kdcore.commands.main import main
from kdcore.recipe.loading import load_recipe

SMALL = {"training": {"budget": {"steps": 4}, "batch_size": 8}, "logging": {"every": 1}, "tracking": ["jsonl"]}
TEXTS = [f"{word} of the {word} and {number}" for number, word in enumerate(["teacher", "student", "abc"] * 20)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory of all tests here, with a cache of its own."""
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("KDCORE_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def run(place: Path, teacher_folder: Path) -> kdcore.Run:
    """A finished run, distilled in a thread from a generator of texts."""
    made: list[kdcore.Run] = []
    texts = (text for text in TEXTS)
    thread = threading.Thread(target=lambda: made.append(kdcore.distil(teacher_folder, texts, 2, seed=1, **SMALL)))
    thread.start()
    thread.join()
    return made[0]


def test_a_thread_distils_a_generator_of_texts_into_a_student_of_some_blocks(run: kdcore.Run, place: Path) -> None:
    assert run.folder.parent.parent == place / "runs"
    assert run.student().config.num_hidden_layers == 2
    assert run.teacher().config.num_hidden_layers == 4
    assert run.student("initial", "AutoModelForMaskedLM").config.hidden_dropout_prob == 0
    assert run.tokenizer().mask_token == "[MASK]"
    assert run.exports().keys() == {"initial", "final"}
    (checkpoint,) = run.checkpoints()
    assert kdcore.open_run(run.folder).checkpoints() == [checkpoint]
    assert checkpoint.name == "step-0000004"


def test_a_teacher_with_its_masked_lm_head_gets_losses_on_predictions(run: kdcore.Run) -> None:
    assert set(run.recipe.settings.losses) == {"soft_targets", "masked_lm"}
    assert run.recipe.settings.seed == 1


def test_the_stored_recipe_is_complete_and_repeats_the_run(run: kdcore.Run) -> None:
    again = load_recipe(run.folder / "recipe.yaml", ["run.id=again"])
    assert again.run_folder == run.folder.parent / "again"
    repeated = kdcore.train(run.folder / "recipe.yaml", {"run.id": "again"})
    first, second = (kdcore.open_run(folder).metrics() for folder in (run.folder, repeated.folder))
    assert first["train/loss"].to_pylist() == second["train/loss"].to_pylist()


def test_metrics_are_a_table_with_the_step(run: kdcore.Run) -> None:
    table = run.metrics()
    assert table.schema.names[0] == "step"
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert table["step"].to_pylist() == [row["step"] for row in rows]
    assert table["train/loss"].to_pylist() == [row.get("train/loss") for row in rows]


def test_rows_without_a_step_are_skipped_and_a_run_without_metrics_gives_an_empty_table(
    run: kdcore.Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "recipe.yaml").write_text((run.folder / "recipe.yaml").read_text())
    opened = kdcore.open_run(tmp_path)
    assert opened.metrics().num_rows == 0
    assert opened.metrics().schema.names == ["step"]
    (tmp_path / "metrics.jsonl").write_text('{"train/loss": 1.0}\n{"step": 2, "train/loss": 0.5}\n')
    logging.getLogger("kdcore").propagate = True
    assert opened.metrics().to_pylist() == [{"step": 2, "train/loss": 0.5}]
    assert "step" in caplog.text


def test_the_start_is_measured_from_the_call(run: kdcore.Run) -> None:
    """This process is older than the run, and imported torch long before."""
    log = (run.folder / "train.log").read_text()
    imports = float(log.partition("imports ")[2].partition(" s")[0])
    assert imports < 60
    assert log.count("started in") == 1


def test_a_notebook_shows_a_table_and_a_terminal_one_line(run: kdcore.Run) -> None:
    assert "finished, step 4" in repr(run)
    html = run._repr_html_()
    assert "<td>soft_targets, masked_lm</td>" in html
    assert "<td>final, initial</td>" in html


def test_summary_export_and_comparison_are_those_of_the_commands(run: kdcore.Run, tmp_path: Path) -> None:
    assert "teacher 4, student 2" in run.summary()
    exported = run.export(tmp_path / "student")
    state = run.student().state_dict()
    loaded = AutoModel.from_pretrained(exported).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    with pytest.raises(kdcore.InputError, match="not empty"):
        run.export(tmp_path / "student")
    comparison = run.compare()
    assert [one.name for one in comparison.runs] == [f"{run.folder.parent.name}/1"]
    assert "<iframe" in comparison._repr_html_()


def test_without_the_package_a_comparison_names_it(run: kdcore.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kdcore_evaluation", None)
    with pytest.raises(kdcore.InputError, match="pip install kdcore-evaluation"):
        run.compare([run.folder])


def test_the_same_call_opens_the_finished_run(run: kdcore.Run, teacher_folder: Path) -> None:
    log = (run.folder / "train.log").read_text()
    again = kdcore.distil(teacher_folder, TEXTS, 2, seed=1, **SMALL)
    assert again.folder == run.folder
    assert (run.folder / "train.log").read_text() == log


def test_the_command_prints_the_recipe_and_trains_it(
    place: Path, teacher_folder: Path, corpus_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--losses", "hidden_mse", "--layers", "3"]
    small = ["run.id=shell", "training.budget={steps: 2}", "tracking=[jsonl]"]
    assert main(["distil", str(teacher_folder), str(corpus_file), *options, *small]) == 0
    printed = capsys.readouterr().out
    recipe = printed.partition("run: /")[0]
    folder = next((place / "runs").glob("distil-*/shell"))
    assert recipe.strip() == (folder / "recipe.yaml").read_text().strip()
    opened = kdcore.open_run(folder)
    assert set(opened.recipe.settings.losses) == {"hidden_mse"}
    blocks = opened.recipe.settings.student["initialize"]["blocks"]
    assert blocks == [0, 2, 3]  # 3 of 4 blocks, spread as evenly as possible


def test_a_teacher_without_a_head_gets_losses_on_hidden_states(
    place: Path, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    AutoModel.from_pretrained(teacher_folder).save_pretrained(tmp_path / "headless")
    AutoTokenizer.from_pretrained(teacher_folder).save_pretrained(tmp_path / "headless")
    seen: dict[str, Any] = {}

    def train(recipe: dict[str, Any], overrides: Any) -> Any:
        seen.update(recipe)
        raise kdcore.TrainingError("stopped here")

    monkeypatch.setattr("kdcore.scripting.distilling.train", train)
    with pytest.raises(kdcore.TrainingError):
        kdcore.distil(tmp_path / "headless", TEXTS)
    assert seen["losses"] == {"hidden_mse": {"layers": "last"}}
    assert seen["task"]["data"]["corpora"][0]["name"] == "jsonl"


def test_a_package_adds_defaults_for_a_narrower_kind_of_teacher(teacher_folder: Path) -> None:
    from kdcore.scripting.defaults import sections_for

    kind = kdcore.TeacherKind(str(teacher_folder), kdcore.ModelInfo("bert", 4, 32, 4, 8, 100, 64), {})
    assert sections_for(kind)["losses"] == {"hidden_mse": {"layers": "last"}}
    assert kind.file("tokenizer.json") is not None
    assert kind.file("modules.json") is None

    class Narrower(kdcore.Defaults):
        priority = 20

        def sections(self, teacher: kdcore.TeacherKind) -> Any:
            return {"losses": {"mine": {}}} if teacher.info.num_layers == 4 else None

    kdcore.register_defaults("narrower")(Narrower)
    try:
        assert sections_for(kind) == {"losses": {"mine": {}}}
    finally:
        from kdcore.registry import defaults

        del defaults._registered["narrower"]


class TestBadInput:
    def test_no_text_and_texts_that_are_none(self, place: Path, teacher_folder: Path) -> None:
        before = sorted(place.rglob("*"))
        for data, words in (
            (iter(()), "the data holds no text"),
            (["", " \n"], "the data holds no text"),
            (["text", 5], r"text 1 is not a str \(found 5\)"),
            ("no-such-file.txt", "neither a file nor a folder"),
            (5, "must be texts, a Dataset or a path"),
        ):
            with pytest.raises(kdcore.InputError, match=words):
                kdcore.distil(teacher_folder, data, run={"name": "bad"})
        (place / "cache" / "texts").mkdir(parents=True, exist_ok=True)
        assert not (place / "runs" / "bad").exists()
        assert set(place.rglob("*")) - set(before) <= {place / "cache", place / "cache" / "texts"}

    @pytest.mark.parametrize(
        ("names", "words"),
        [
            (["a.jsonl", "b/c.JSONL.gz"], "jsonl"),
            (["a.parquet"], "parquet"),
            (["a.txt", "b.md", "c"], "text"),
            (["a.jsonl", "b.txt"], r"several kinds \(found jsonl: a\.jsonl, text: b\.txt\)"),
            (["a.txt", "b.tsv"], r"b\.tsv: tables of CSV and TSV are not read"),
            (["config.json", "model.safetensors"], "this is a model"),
        ],
    )
    def test_the_files_of_a_folder_choose_its_reader(self, tmp_path: Path, names: list[str], words: str) -> None:
        for name in names:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("text")
        if words.isalpha():
            assert [one["name"] for one in corpora_for(tmp_path, tmp_path, "text", 1)] == [words]
        else:
            with pytest.raises(kdcore.InputError, match=words):
                corpora_for(tmp_path, tmp_path, "text", 1)

    def test_an_endless_generator_is_read_up_to_a_limit(self, place: Path, caplog: pytest.LogCaptureFixture) -> None:
        logging.getLogger("kdcore").propagate = True
        endless = (f"text {number}" for number in itertools.count())
        stored = store_texts(texts_of(endless, "text", 100), place)
        assert len(stored.read_text().splitlines()) == 100
        assert "only the first 100 texts are used" in caplog.text

    def test_a_table_needs_its_column(self, place: Path, teacher_folder: Path) -> None:
        datasets = pytest.importorskip("datasets")
        table = datasets.Dataset.from_dict({"sentence": ["one", "two"]})
        with pytest.raises(kdcore.InputError, match=r"no column `text`\s+allowed: sentence"):
            kdcore.distil(teacher_folder, table)
        with pytest.raises(kdcore.InputError, match=r"several splits\s+allowed: train"):
            kdcore.distil(teacher_folder, datasets.DatasetDict(train=table))
        lines = store_texts(texts_of(table, "sentence", 1), place).read_text().splitlines()
        assert [json.loads(line)["text"] for line in lines] == ["one", "two"]

    def test_a_teacher_that_is_not_an_encoder(self, place: Path, tmp_path: Path) -> None:
        config = GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=10)
        GPT2Model(config).save_pretrained(tmp_path / "decoder")
        with pytest.raises(kdcore.InputError, match="gpt2"):
            kdcore.distil(tmp_path / "decoder", TEXTS)
        with pytest.raises(kdcore.InputError, match="must be a folder or a hub name"):
            kdcore.distil(GPT2Model(config), TEXTS)  # type: ignore[arg-type]

    @pytest.mark.parametrize("layers", [0, 5, "two"])
    def test_a_number_of_blocks_that_the_teacher_does_not_have(self, teacher_folder: Path, layers: Any) -> None:
        with pytest.raises(kdcore.InputError, match=rf"cannot have {layers} blocks\s+allowed: 1 to 4"):
            kdcore.distil(teacher_folder, TEXTS, layers)

    def test_a_folder_without_a_run_and_one_whose_run_is_starting(self, tmp_path: Path) -> None:
        with pytest.raises(kdcore.InputError, match="holds no run"):
            kdcore.open_run(tmp_path)
        (tmp_path / ".lock").write_text("")
        with pytest.raises(kdcore.InputError, match="is starting: it has no recipe yet"):
            kdcore.open_run(tmp_path)


def test_a_run_can_be_opened_while_it_trains_and_no_second_one_starts(small_recipe: Path) -> None:
    content = {"extends": str(small_recipe), "run": {"id": "live"}}
    events = kdcore.steps(content, {"training.budget.steps": 3})
    for event in events:
        if isinstance(event, kdcore.StepEvent):
            break
    opened = kdcore.open_run("runs/small/live")
    assert opened.status.state == "running"
    assert opened.metrics()["step"].to_pylist()[-1] == 1
    with pytest.raises(kdcore.InputError, match=r"no finished student \(the run is running, step 1 of 3\)"):
        opened.student()
    assert opened.student("initial").config.num_hidden_layers == 2
    with pytest.raises(kdcore.InputError, match="another run is active in this process"):
        kdcore.train(small_recipe)
    assert not Path("runs/small/1").exists()
    events.close()
    finished = [event for event in kdcore.steps(content, {"training": {"budget": {"steps": 3}}})][-1]
    assert isinstance(finished, kdcore.FinishedEvent)
    assert opened.student().config.num_hidden_layers == 2


class TestOverrides:
    def test_a_map_means_the_same_as_texts(self, small_recipe: Path) -> None:
        texts = ["training.batch_size=4", "run.id='7'", "losses.hidden_mse.layers=uniform", "validation=null"]
        values = {
            "training": {"batch_size": 4},
            "run.id": "7",
            "losses.hidden_mse": {"layers": "uniform"},
            "validation": None,
        }
        one, other = (load_recipe(small_recipe, overrides) for overrides in (texts, values))
        assert one.data == other.data
        content = {"extends": str(small_recipe), "training.batch_size": 4}
        with pytest.raises(kdcore.RecipeError, match=r"the recipe.*training\.batch_size"):
            load_recipe(content)

    def test_a_map_of_a_recipe_means_the_same_as_its_file(self, small_recipe: Path) -> None:
        one = load_recipe(small_recipe)
        one.components()
        other = load_recipe(one.data)
        other.components()
        assert other.data == one.data
        assert other.run_folder == one.run_folder

    @pytest.mark.parametrize(
        ("overrides", "words"),
        [
            ({"seed": {1, 2}}, r"`?seed`?.*cannot hold a set"),
            ({"training": {"budget": {"steps": object()}}}, r"training\.budget\.steps.*cannot hold a object"),
            ({5: 1}, r"a key must be text \(found 5\)"),
            (["seed=1", 5], r"must be a list of texts, or a map \(found 5\)"),
            ("seed=1", r"must be a list of texts, or a map \(found 'seed=1'\)"),
            ({"seed": "three"}, "seed"),
        ],
    )
    def test_values_that_a_recipe_cannot_hold_are_named(self, small_recipe: Path, overrides: Any, words: str) -> None:
        with pytest.raises(kdcore.RecipeError, match=words):
            kdcore.train(small_recipe, overrides)
