"""`kdcore.distil`, `kdcore.open_run` and `kdcore.train` with maps, used as scripts and notebooks use them."""

from __future__ import annotations

import itertools
import json
import logging
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from kdcore_preparation.given_texts import corpora_for, store_texts, texts_of
from transformers import AutoModel, AutoTokenizer, GPT2Config, GPT2Model

import kdcore
from kdcore.commands.main import main
from kdcore.recipe.loading import load_recipe
from kdcore.registry import models
from kdcore.scripting.distilling import _make_recipe

SMALL = {"training": {"budget": {"steps": 4}, "batch_size": 8}, "logging": {"every": 1}, "tracking": ["jsonl"]}
TEXTS = [f"{word} of the {word} and {number}" for number, word in enumerate(["teacher", "student", "abc"] * 20)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory of all tests here, with a separate cache."""
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


def test_results_of_a_run_that_is_not_finished_need_an_explicit_name(run: kdcore.Run, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text((run.folder / "recipe.yaml").read_text())
    shutil.copytree(run.exports()["final"], tmp_path / "exports" / "best")
    opened = kdcore.open_run(tmp_path)
    assert (run.finished, opened.finished) == (True, False)
    with pytest.raises(kdcore.InputError, match="no finished student"):
        opened.student()
    assert opened.student("best").config.num_hidden_layers == 2
    (tmp_path / "train.log").write_text("run: finished\n")
    assert opened.student().config.num_hidden_layers == 2


def test_arguments_of_another_type_are_named(run: kdcore.Run, tmp_path: Path) -> None:
    for call, words in (
        (lambda: kdcore.open_run(None), "folder: must be the path of a folder"),
        (lambda: kdcore.open_run("a" * 300), "too long"),
        (lambda: run.export(5), "folder: must be the path of a folder"),
        (lambda: run.export(tmp_path / "new", step="x"), "step: must be a step number"),
        (lambda: run.compare(5), "others: must be the path of a folder"),
        (lambda: run.student(auto_class="Nope"), "transformers has no class `Nope`"),
    ):
        with pytest.raises(kdcore.InputError, match=words):
            call()


class Pressing(kdcore.Callback):
    """Presses Ctrl-C, or asks to stop, at the second step."""

    class Config(kdcore.ComponentConfig):
        press: bool = True

    step = 0
    pressed = False

    def on_step(self, event: kdcore.StepEvent) -> None:
        self.step = event.progress.step

    def should_stop(self) -> bool:
        if self.step == 2 and self.config.press and not self.pressed:
            self.pressed = True
            signal.raise_signal(signal.SIGINT)
        return self.step == 2 and not self.config.press


@pytest.mark.usefixtures("run")
def test_an_interrupt_is_raised_after_a_checkpoint_and_a_requested_stop_is_returned(
    place: Path, teacher_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from kdcore.registry import callbacks

    text = tmp_path / "text.txt"
    text.write_text("\n".join(TEXTS))
    kdcore.register_callback("pressing")(Pressing)
    try:
        with pytest.raises(KeyboardInterrupt, match="the same call continues"):
            kdcore.distil(teacher_folder, text, 2, **SMALL, run={"name": "key"}, callbacks=["pressing"])
        stopping = [{"name": "pressing", "press": False}]
        stopped = kdcore.distil(teacher_folder, text, 2, **SMALL, run={"name": "asked"}, callbacks=stopping)
        capsys.readouterr()
        settings = ["training.budget={steps: 4}", "tracking=[jsonl]", f"callbacks={json.dumps(stopping)}"]
        assert main(["distil", str(teacher_folder), str(text), "--layers=2", "run.name=shown", *settings]) == 130
    finally:
        callbacks._registered.pop("pressing")
    for opened in (kdcore.open_run(place / "runs" / "key" / "1"), stopped):
        assert [path.name for path in opened.checkpoints()] == ["step-0000002"]
        assert not opened.finished
        assert opened.status.state == "stopped"
    printed = capsys.readouterr().out
    assert "student: none yet: the same command resumes" in printed
    assert "student: None" not in printed


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
    texts = kdcore.GivenData(Path("texts.txt"))
    assert sections_for(kind, texts)["losses"] == {"hidden_mse": {"layers": "last"}}
    assert kind.file("tokenizer.json") is not None
    assert kind.file("modules.json") is None

    made = {"task": {"name": "masked_lm"}, "losses": {"mine": {}}}

    class Narrower(kdcore.Defaults):
        priority = 20

        def sections(self, teacher: kdcore.TeacherKind, data: kdcore.GivenData) -> Any:
            return made if teacher.info.num_layers == 4 else None

    kdcore.register_defaults("narrower")(Narrower)
    try:
        assert sections_for(kind, texts) == made
    finally:
        from kdcore.registry import defaults

        del defaults._registered["narrower"]


@pytest.mark.parametrize("value", [["a", "list"], {"losses": {"mine": {}}}, ValueError("my mistake")])
def test_defaults_that_fail_are_named_with_their_package(teacher_folder: Path, value: Any) -> None:
    from kdcore.registry import defaults
    from kdcore.scripting.defaults import sections_for

    class Faulty(kdcore.Defaults):
        def sections(self, teacher: kdcore.TeacherKind, data: kdcore.GivenData) -> Any:
            if isinstance(value, Exception):
                raise value
            return value

    kdcore.register_defaults("faulty")(Faulty)
    kind = kdcore.TeacherKind(str(teacher_folder), kdcore.ModelInfo("bert", 4, 32, 4, 8, 100, 64), {})
    try:
        with pytest.raises(kdcore.PluginError, match=r"`faulty` of .*test_distil.* failed: "):
            sections_for(kind, kdcore.GivenData(None))
    finally:
        del defaults._registered["faulty"]


def composed(
    teacher: Path, overrides: Any, hours: float | None = None, data: Any = None, losses: Any = None
) -> dict[str, Any]:
    made = _make_recipe(teacher, {"corpora": []} if data is None else data, 2, losses, hours, overrides)
    recipe = load_recipe(made, overrides, check_names=False)
    if data is not None:
        recipe.components()
    return recipe.data


@pytest.fixture
def sentence_encoder(teacher_folder: Path, tmp_path: Path) -> Path:
    """The small teacher with the files of sentence-transformers."""
    folder = tmp_path / "sentences"
    shutil.copytree(teacher_folder, folder)
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Hides defaults as if their package were not installed."""
    from kdcore.registry import Registry, defaults

    def hide(name: str) -> None:
        kept = [entry for entry in defaults.entries() if entry.name != name]
        entries = Registry.entries
        monkeypatch.setattr(Registry, "entries", lambda self: kept if self is defaults else entries(self))

    return hide


class TestKindsOfTeachers:
    def test_a_sentence_encoder_and_texts_get_the_recipe_for_domains(
        self, sentence_encoder: Path, tmp_path: Path, place: Path
    ) -> None:
        text = tmp_path / "text.txt"
        text.write_text("\n".join(TEXTS))
        domain = load_recipe(
            "kdcore:embeddings/domain.yaml", {"teacher.path": str(sentence_encoder), "task.data.train": str(text)}
        ).data
        for data in (text, TEXTS, iter(TEXTS)):
            made = composed(sentence_encoder, {"training.batch_size": 8}, data=data)
            stored = made["task"]["data"]["train"]
            assert stored == str(text) or Path(stored).parent == place / "cache" / "texts"
            made["task"]["data"]["train"] = str(text)
            for section in ("teacher", "task", "losses", "optimizer", "scheduler", "validation"):
                assert made[section] == domain[section], section
            assert made["training"] == {**domain["training"], "batch_size": 8}
            assert made["student"]["config"]["num_hidden_layers"] == 2

    def test_stated_losses_and_budgets_replace_those_of_the_recipe(self, sentence_encoder: Path, place: Path) -> None:
        made = composed(sentence_encoder, {"training.budget.steps": 5}, data=TEXTS, losses=["hidden_mse"])
        assert (set(made["losses"]), made["task"]["name"]) == ({"hidden_mse"}, "embeddings")
        assert made["training"]["budget"] == {"steps": 5}
        assert composed(sentence_encoder, {}, 2, data=TEXTS)["training"]["budget"] == {"hours": 2}

    def test_without_its_package_a_kind_is_refused_unless_losses_are_stated(
        self, sentence_encoder: Path, teacher_folder: Path, tmp_path: Path, place: Path, without: Any
    ) -> None:
        without("sentence_encoder")
        with pytest.raises(kdcore.InputError, match="pip install kdcore-embeddings"):
            composed(sentence_encoder, {}, data=TEXTS)
        assert composed(sentence_encoder, {}, data=TEXTS, losses="hidden_mse")["task"]["name"] == "masked_lm"
        without("labelled")
        with pytest.raises(kdcore.InputError, match="pip install kdcore-supervised"):
            composed(fine_tuned(teacher_folder, tmp_path, "Sequence"), {}, data=labelled(tmp_path))

    def test_a_classifier_and_a_tagger_with_labelled_texts_get_their_task(
        self, teacher_folder: Path, tmp_path: Path, place: Path
    ) -> None:
        table = labelled(tmp_path)
        made = composed(fine_tuned(teacher_folder, tmp_path, "Sequence"), {}, data=table)
        assert made["task"] == {
            "name": "sequence_classification",
            "data": {
                "train": str(table),
                "text": "text",
                "label": "label",
                "split": {"validation": 0.1},
                "labels": ["O", "B-x", "I-x"],
            },
        }
        assert set(made["losses"]) == {"soft_targets", "classification"}
        assert made["losses"]["soft_targets"]["positions"] == "classes"
        tags = tmp_path / "train.conll"
        tags.write_text("a\tO\nb\tB-x\n\n")
        made = composed(fine_tuned(teacher_folder, tmp_path, "Token"), {}, data=tags)
        assert made["task"]["name"] == "token_classification"
        assert made["losses"]["soft_targets"]["head"] == "token_classes"
        stated = {
            "train": str(table),
            "text": "text",
            "label": "label",
            "labels": ["a", "b", "c"],
            "split": {"validation": 0.2},
        }
        made = composed(fine_tuned(teacher_folder, tmp_path, "Sequence"), {}, data=stated)
        assert made["task"]["data"] == stated

    def test_a_classifier_and_plain_texts_get_losses_on_hidden_states(
        self, teacher_folder: Path, tmp_path: Path, place: Path
    ) -> None:
        made = composed(fine_tuned(teacher_folder, tmp_path, "Sequence"), {}, data=TEXTS)
        assert (made["task"]["name"], set(made["losses"])) == ("masked_lm", {"hidden_mse"})


def fine_tuned(teacher: Path, folder: Path, kind: str) -> Path:
    """Save the small teacher with a head for three classes."""
    made = folder / f"fine-tuned-{kind}"
    if not made.exists():
        names = dict(enumerate(["O", "B-x", "I-x"]))
        cls = getattr(transformers, f"AutoModelFor{kind}Classification")
        cls.from_pretrained(teacher, id2label=names, label2id={one: n for n, one in names.items()}).save_pretrained(
            made
        )
        AutoTokenizer.from_pretrained(teacher).save_pretrained(made)
    return made


def labelled(folder: Path) -> Path:
    table = folder / "train.csv"
    table.write_text("text,label\n" + "".join(f"{text},O\n" for text in TEXTS))
    return table


class TestBudgetAndData:
    @pytest.mark.parametrize(
        ("overrides", "budget"),
        [
            ({}, {"epochs": 10, "hours": 1.0}),
            (["training.budget.steps=60"], {"steps": 60}),
            ({"training": {"budget": {"steps": 60}}}, {"steps": 60}),
            ({"training.budget.steps": 60}, {"steps": 60}),
            ({"training": {"budget": {"steps": 5}}, "training.budget": {"hours": 2}}, {"steps": 5, "hours": 2}),
            (["training.budget.exit_after_hours=1"], {"epochs": 10, "hours": 1.0, "exit_after_hours": 1}),
        ],
    )
    def test_a_stated_limit_replaces_the_default_ones(self, teacher_folder: Path, overrides: Any, budget: Any) -> None:
        assert composed(teacher_folder, overrides)["training"]["budget"] == budget

    def test_hours_are_the_budget(self, teacher_folder: Path) -> None:
        assert composed(teacher_folder, {"seed": 1}, 2)["training"]["budget"] == {"hours": 2}

    def test_another_task_keeps_the_data(self, teacher_folder: Path) -> None:
        task = composed(teacher_folder, {"task": {"name": "embeddings"}})["task"]
        assert task["name"] == "embeddings"
        assert task["data"]["corpora"] == []

    def test_a_package_changes_sections_deeply(self, teacher_folder: Path) -> None:
        from kdcore.registry import defaults

        class Slower(kdcore.Defaults):
            priority = 30

            def sections(self, teacher: kdcore.TeacherKind, data: kdcore.GivenData) -> Any:
                losses = {"hidden_mse": {}}
                return {"task": {"name": "masked_lm"}, "losses": losses, "training": {"batch_size": 8}}

        kdcore.register_defaults("slower")(Slower)
        try:
            training = composed(teacher_folder, {})["training"]
        finally:
            del defaults._registered["slower"]
        assert (training["batch_size"], training["budget"]["epochs"]) == (8, 10)


def test_runs_are_named_by_the_last_two_parts_of_the_path(teacher_folder: Path, tmp_path: Path) -> None:
    named = tmp_path / "my r\u00f6berta (1)" / "model"
    shutil.copytree(teacher_folder, named)
    assert composed(named, {})["run"]["name"] == "distil-my-r\u00f6berta-1-model"


class TestBadInput:
    def test_no_text_and_texts_that_are_none(self, place: Path, teacher_folder: Path) -> None:
        before = sorted(place.rglob("*"))
        for data, words in (
            (iter(()), "the data contains no text"),
            (["", " \n"], "the data contains no text"),
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
            (["a.txt", "b.tsv"], r"b\.tsv: CSV and TSV tables are not read"),
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

    def test_a_number_of_blocks_that_the_teacher_does_not_have(self, teacher_folder: Path) -> None:
        with pytest.raises(kdcore.InputError, match=r"cannot have 5 blocks\s+allowed: 1 to 4"):
            kdcore.distil(teacher_folder, TEXTS, 5)

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"layers": 0}, r"layers.*greater than or equal to 1"),
            ({"layers": True}, r"layers.*found true"),
            ({"layers": "3"}, r"layers.*found.*3"),
            ({"max_texts": -1}, r"max_texts"),
            ({"column": 5}, r"column.*found the number 5"),
            ({"hours": float("inf")}, r"hours.*Infinity"),
            ({"hours": "two"}, r"hours.*two"),
            ({"losses": 5}, r"losses"),
            ({"losses": print}, r"losses"),
            ({"losses": [{"hidden_mse": {}}]}, r"losses"),
            ({"losses": "hiden_mse"}, r"(?s)unknown loss `hiden_mse`.*hidden_mse"),
            ({"hours": 2, "training": {"budget": {"steps": 5}}}, r"set twice: by `hours` and in training.budget"),
            ({"losses": {"hidden_mse": {"layrs": "last"}}}, r"hidden_mse\.layrs"),
            ({"sed": 1}, r"unknown key `?sed"),
        ],
    )
    def test_arguments_are_checked_before_texts_are_read(
        self, place: Path, teacher_folder: Path, arguments: dict[str, Any], words: str
    ) -> None:
        texts = iter(TEXTS)
        with pytest.raises(kdcore.InputError, match=words):
            kdcore.distil(teacher_folder, texts, **arguments)
        assert next(texts) == TEXTS[0]

    def test_a_hub_name_without_network_is_looked_up_once(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        asked: list[str] = []
        get = models.get
        monkeypatch.setattr("kdcore.scripting.distilling.models.get", lambda name: (asked.append(name), get(name))[1])
        with pytest.raises(kdcore.InputError, match="neither an existing folder nor a model on the hub"):
            kdcore.distil("no-one/nothing", TEXTS)
        assert asked == ["transformers"]

    def test_a_folder_without_a_run_and_one_whose_run_is_starting(self, tmp_path: Path) -> None:
        with pytest.raises(kdcore.InputError, match="contains no run"):
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

    def test_texts_keep_control_characters_and_a_recipe_is_a_path_or_a_map(self, small_recipe: Path) -> None:
        text = "a\x00b\x1bc\x7fd\x85e\u2028f\ufeff\U0001f600"
        data = {"extends": str(small_recipe), "losses": {"hidden_mse": {"layers": text}}}
        assert load_recipe(data).data["losses"]["hidden_mse"]["layers"] == text
        with pytest.raises(kdcore.RecipeError, match="None: the file does not exist"):
            load_recipe(None)  # type: ignore[arg-type]

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
            ({"seed": {1, 2}}, r"`?seed`?.*cannot contain a set"),
            ({"training": {"budget": {"steps": object()}}}, r"training\.budget\.steps.*cannot contain a object"),
            ({5: 1}, r"a key must be text \(found 5\)"),
            (["seed=1", 5], r"must be a list of strings, or a map \(found 5\)"),
            ("seed=1", r"must be a list of strings, or a map \(found 'seed=1'\)"),
            (None, r"must be a list of strings, or a map \(found None\)"),
            (5, r"must be a list of strings, or a map \(found 5\)"),
            ({"seed": "three"}, "seed"),
        ],
    )
    def test_values_that_a_recipe_cannot_hold_are_named(self, small_recipe: Path, overrides: Any, words: str) -> None:
        with pytest.raises(kdcore.RecipeError, match=words):
            kdcore.train(small_recipe, overrides)
