"""Runs on odd models, tokenizers and recipes: the logged values are right, or a message names the reason."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import kdcore
from kdcore.errors import InputError
from kdcore.recipe.loading import load_recipe
from kdcore.training.loop.batches import TrainingBatches
from kdcore.training.run.build import make_plan
from kdcore.training.run.run import RunResult
from kdcore.training.runtime.distributed import DistributedContext

Rows = list[dict[str, Any]]


def rows_of(run: Path) -> Rows:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def log_of(run: Path) -> str:
    return (run / "train.log").read_text(encoding="utf-8")


@pytest.fixture
def train(small_recipe: Path) -> Callable[..., RunResult]:
    def run(*overrides: str) -> RunResult:
        return kdcore.train(small_recipe, list(overrides))

    return run


@pytest.fixture
def teacher(teacher_folder: Path, tmp_path: Path) -> Path:
    """A copy of the teacher that may be changed."""
    return Path(shutil.copytree(teacher_folder, tmp_path / "teacher"))


def change(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def change_weights(folder: Path, make: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    file = folder / "model.safetensors"
    save_file(make(load_file(file)), file, metadata={"format": "pt"})


def test_logged_losses_are_sums_over_counts(train: Callable[..., RunResult], small_recipe: Path) -> None:
    """One short text a step: most steps have no masked token, and those count neither as loss 0 nor otherwise."""
    settings = [
        "losses={masked_lm: {}, hidden_mse: {layers: last, weight: 0.5, active: [0.5, 1]}}", "training.batch_size=1",
        "training.budget.steps=20", "task.masking={probability: 0.02}", "optimizer.lr=1e-12",
    ]  # fmt: skip
    each = [row for row in rows_of(train(*settings, "run.id=each").folder) if "train/lr" in row]
    ten = [row for row in rows_of(train(*settings, "run.id=ten", "logging.every=10").folder) if "train/lr" in row]
    assert len(each) == 20
    plan = make_plan(load_recipe(small_recipe, settings))
    counts = []
    processes = DistributedContext(0, 1, torch.device("cpu"), None)
    batches = TrainingBatches(plan.task, 3, 1, 1, processes, whole=False)
    for step in range(20):
        (batch,) = batches.step(step).micro_batches
        counts.append((batch.num_masked, batch.num_tokens))
    batches.close()
    masked, tokens = np.array(counts).T
    assert 0 < (masked[:10] > 0).sum() < 8, "steps with and without masked tokens"
    assert [("train/masked_lm" in row) for row in each] == (masked > 0).tolist()
    for row, first in zip(ten, (0, 10), strict=True):
        steps = slice(first, first + 10)
        sums = sum(
            one["train/masked_lm"] * count for one, count in zip(each[steps], masked[steps], strict=True) if count
        )
        wanted = sums / masked[steps].sum()
        assert row["train/masked_lm"] == pytest.approx(wanted, rel=1e-6)
        if first:
            hidden = sum(one["train/hidden_mse"] * count for one, count in zip(each[steps], tokens[steps], strict=True))
            assert row["train/hidden_mse"] == pytest.approx(hidden / tokens[steps].sum(), rel=1e-6)
            assert row["train/loss"] == pytest.approx(wanted + 0.5 * hidden / tokens[steps].sum(), rel=1e-6)
        else:
            assert row["train/loss"] == pytest.approx(wanted, rel=1e-6)
        assert 3 < row["train/masked_lm"] < 12, "a cross-entropy of an untrained model"


def test_a_loss_that_was_active_in_a_part_of_a_window_counts_in_proportion(train: Callable[..., RunResult]) -> None:
    settings = [
        "losses={hidden_mse: {layers: last, active: [0, 0.5]}, hidden_cosine: {layers: last}}",
        "logging.every=8",
    ]
    (row,) = [row for row in rows_of(train(*settings, "training.budget.steps=8").folder) if "train/lr" in row]
    assert row["train/loss"] == pytest.approx(row["train/hidden_mse"] / 2 + row["train/hidden_cosine"], rel=1e-6)


def test_a_logging_window_is_continued_after_an_interruption(
    train: Callable[..., RunResult], small_recipe: Path
) -> None:
    from kdcore.training.run.run import train_recipe

    settings = ["losses.masked_lm={weight: 0.5}", "logging.every=6"]
    whole = train(*settings, "run.id=whole").folder
    recipe = load_recipe(small_recipe, [*settings, "run.id=parts"])
    train_recipe(recipe, exit_steps=4)
    train_recipe(recipe)
    ours, theirs = ([row for row in rows_of(run) if "train/lr" in row] for run in (recipe.run_folder, whole))
    clock = {"seconds", "train/tokens_per_second"}
    assert [{k: v for k, v in row.items() if k not in clock} for row in ours] == [
        {k: v for k, v in row.items() if k not in clock} for row in theirs
    ]


def test_gradient_checkpointing_trains_alike_and_may_change_on_resuming(
    train: Callable[..., RunResult], small_recipe: Path
) -> None:
    from kdcore.training.run.run import train_recipe

    dropout = ["student.config.hidden_dropout_prob=0.1", "losses.masked_lm={}"]
    plain = train(*dropout, "run.id=plain").export
    other = train(*dropout, "run.id=checkpointed", "training.gradient_checkpointing=true").export
    settings = [*dropout, "run.id=changed"]
    train_recipe(load_recipe(small_recipe, [*settings, "training.gradient_checkpointing=true"]), exit_steps=3)
    changed = train(*settings).export
    assert plain is not None
    assert other is not None
    assert changed is not None
    weights = [load_file(export / "model.safetensors") for export in (plain, other, changed)]
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name
        assert torch.equal(tensor, weights[2][name]), name


def test_early_stopping_may_change_on_resuming(train: Callable[..., RunResult], small_recipe: Path) -> None:
    from kdcore.training.run.run import train_recipe

    train_recipe(load_recipe(small_recipe), exit_steps=3)
    result = train("early_stopping={after_minutes: 100, max_loss: 3}", "validation.every=3")
    assert result.finished


def test_early_stopping_without_validation_names_its_key(train: Callable[..., RunResult]) -> None:
    with pytest.raises(InputError) as error:
        train("early_stopping={after_minutes: 1, max_loss: 3}", "validation.every=never")
    (problem,) = error.value.problems
    assert problem.key == "early_stopping.max_loss"
    assert "`early_stopping.max_loss` needs the held-out loss" in problem.what


def test_what_no_loss_reads_is_reported_by_blocks_and_embeddings(train: Callable[..., RunResult]) -> None:
    folder = train("losses={hidden_mse: {layers: [[embeddings, embeddings]]}}", "training.budget.steps=1").folder
    assert "no loss uses the student's states beyond the embeddings, so blocks 0 to 1 are not trained" in log_of(folder)
    folder = train("losses={hidden_mse: {layers: [[1, 0]]}}", "training.budget.steps=1", "run.id=2").folder
    assert "no loss uses the student's states beyond block 0, so block 1 is not trained" in log_of(folder)


def test_an_untied_teacher_gives_the_student_both_matrices(train: Callable[..., RunResult], teacher: Path) -> None:
    own = torch.randn(load_file(teacher / "model.safetensors")["bert.embeddings.word_embeddings.weight"].shape) * 0.3
    change_weights(teacher, lambda weights: {**weights, "cls.predictions.decoder.weight": own})
    losses = "losses={hidden_mse: {layers: last}, soft_targets: {positions: all}}"
    export = train(f"teacher.path={teacher}", losses, "training.budget.steps=1", "optimizer.lr=1e-12").export
    assert export is not None
    weights = load_file(export / "model.safetensors")
    theirs = load_file(teacher / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    torch.testing.assert_close(weights["bert.embeddings.word_embeddings.weight"], theirs, atol=1e-5, rtol=0)
    torch.testing.assert_close(weights["cls.predictions.decoder.weight"], own, atol=1e-5, rtol=0)


def test_an_encoder_saved_without_the_head_that_its_config_names_is_distilled(
    train: Callable[..., RunResult], teacher: Path
) -> None:
    change_weights(teacher, lambda weights: {k: v for k, v in weights.items() if k.startswith("bert.")})
    assert json.loads((teacher / "config.json").read_text())["architectures"] == ["BertForMaskedLM"]
    assert train(f"teacher.path={teacher}").finished
    with pytest.raises(InputError, match="the teacher has no masked-LM head"):
        train(f"teacher.path={teacher}", "losses={soft_targets: {}}", "run.id=2")


def test_a_teacher_with_nan_is_refused_by_the_name_of_the_weight(
    train: Callable[..., RunResult], teacher: Path
) -> None:
    name = "bert.encoder.layer.3.output.dense.weight"

    def spoil(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weights[name][0, 0] = float("nan")
        return weights

    change_weights(teacher, spoil)
    with pytest.raises(InputError, match=re.escape(f"{name.removeprefix('bert.')}` contains NaN")):
        train(f"teacher.path={teacher}")


def test_a_misspelt_loss_has_one_hint(train: Callable[..., RunResult]) -> None:
    with pytest.raises(InputError) as error:
        train("losses={hidden_mze: {}}")
    assert str(error.value).count("Did you mean") == 1


def frozen_and_trained(teacher: Path, export: Path) -> tuple[dict[str, bool], list[str]]:
    """Whether each weight of the export equals the teacher's, and the names of those that are in bf16."""
    theirs, ours = load_file(teacher / "model.safetensors"), load_file(export / "model.safetensors")
    blocks = {"encoder.layer.0.": "encoder.layer.1.", "encoder.layer.1.": "encoder.layer.3."}
    equal, rounded = {}, []
    for name, tensor in ours.items():
        found = next((name.replace(here, there) for here, there in blocks.items() if here in name), name)
        if found in theirs:
            equal[name] = torch.equal(tensor, theirs[found])
        if torch.equal(tensor, tensor.bfloat16().float()) and tensor.abs().max() > 0 and not tensor.eq(1).all():
            rounded.append(name)
    return equal, rounded


def test_weights_that_no_loss_reaches_keep_their_precision(
    train: Callable[..., RunResult], small_recipe: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    """Also after an interruption, and in an export of a checkpoint."""
    from kdcore.commands.main import main
    from kdcore.training.run.run import train_recipe

    settings = ["losses={hidden_mse: {layers: [[1, 0]]}}", "training.precision=bf16", "run.id=parts"]
    train_recipe(load_recipe(small_recipe, settings), exit_steps=3)
    exports = [train(*settings).export, tmp_path / "exported"]
    assert exports[0] is not None
    assert main(["export", str(exports[0].parents[1]), str(exports[1])]) == 0
    for export in exports:
        assert export is not None
        equal, rounded = frozen_and_trained(teacher_folder, export)
        assert rounded == []
        read = ("embeddings.", "encoder.layer.0.")
        assert {name for name, same in equal.items() if same} == {
            name for name in equal if not any(part in name for part in read)
        }
        assert sum(equal.values()) > 15


def cased_copy(folder: Path, to: Path, **settings: Any) -> Path:
    """A copy of a BERT tokenizer with the same vocabulary and other settings."""
    from transformers import BertTokenizer

    to.mkdir()
    shutil.copy(folder / "config.json", to)
    tokenizer = BertTokenizer.from_pretrained(folder)
    vocabulary = tokenizer.get_vocab()
    BertTokenizer(vocab=vocabulary, **settings).save_pretrained(to)
    return to


def test_data_in_another_casing_than_the_teachers_is_refused(
    train: Callable[..., RunResult], teacher: Path, tmp_path: Path
) -> None:
    cased = cased_copy(teacher, tmp_path / "cased", do_lower_case=False)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(cased / file, teacher)  # the teacher keeps upper case, the data's tokenizer does not
    with pytest.raises(InputError) as error:
        train(f"teacher.path={teacher}")
    (problem,) = error.value.problems
    assert "the data's tokenizer treats text differently from the teacher's" in problem.what
    assert "`The Quick Fox` becomes `the quick fox` in the data and `The Quick Fox` in the teacher" in problem.what
    assert problem.key == "task.data"
    assert train(f"teacher.path={teacher}", f"task.data.tokenizer={teacher}", "run.id=2").finished


def test_the_exported_tokenizer_fits_the_student(train: Callable[..., RunResult]) -> None:
    from transformers import AutoModel, AutoTokenizer

    export = train("student.initialize=null", "student.config.max_position_embeddings=50").export
    assert export is not None
    tokenizer, model = AutoTokenizer.from_pretrained(export), AutoModel.from_pretrained(export)
    assert tokenizer.model_max_length == 50
    states = model(**tokenizer("the teacher " * 100, truncation=True, return_tensors="pt")).last_hidden_state
    assert states.shape[1] == 50


def test_a_student_without_token_types_gets_none(train: Callable[..., RunResult], small_recipe: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    text = small_recipe.read_text(encoding="utf-8")
    other = re.sub(r"config: \{num_hidden_layers.*", "config: {model_type: distilbert, num_hidden_layers: 1}", text)
    small_recipe.write_text(other, encoding="utf-8")
    export = train("student.initialize=null").export
    assert export is not None
    inputs = AutoTokenizer.from_pretrained(export)("the teacher", "the student", return_tensors="pt")
    assert set(inputs) == {"input_ids", "attention_mask"}
    AutoModel.from_pretrained(export)(**inputs)


def test_a_cached_preparation_keeps_the_settings_of_each_recipes_tokenizer(
    train: Callable[..., RunResult], small_recipe: Path, teacher: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    from kdcore.training.run.run import train_recipe

    first = train("run.id=first")
    path = teacher / "tokenizer_config.json"
    settings_of_tokenizer = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(settings_of_tokenizer | {"model_max_length": 49, "truncation_side": "left"}))
    settings = [f"teacher.path={teacher}", f"task.data.tokenizer={teacher}", "run.id=second"]
    train_recipe(load_recipe(small_recipe, settings), exit_steps=3)
    second = train(*settings)
    folders = [json.loads((result.folder / "data.json").read_text())["folder"] for result in (first, second)]
    assert folders[0] == folders[1], "prepared once"
    exports = [result.export for result in (first, second)]
    found = [AutoTokenizer.from_pretrained(export) for export in exports]
    assert [(one.model_max_length, one.truncation_side) for one in found] == [(64, "right"), (49, "left")]


def test_text_that_the_vocabulary_lacks_is_reported_at_the_start(
    train: Callable[..., RunResult], tmp_path: Path
) -> None:
    greek = tmp_path / "greek.txt"
    lines = ["αβγ δεζ ηθι κλμ νξο πρσ τυφ χψω. " * 3 + f"{number}\n" for number in range(60)]
    greek.write_text("".join(lines), encoding="utf-8")
    result = train(f"task.data.corpora.0.path={greek}", "losses.masked_lm={}")
    log = log_of(result.folder)
    # 24 letters and 8 spaces three times, 3 points and a number of 1 or 2 digits, of which the letters are unknown.
    assert re.search(r"train: 93\.\d% of the characters are unknown to the tokenizer", log)
    assert "held_out: only" in log
