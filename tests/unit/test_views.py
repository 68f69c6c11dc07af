"""A teacher with another tokenizer: its batch, the units that both batches share, and what losses read of them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kdcore_preparation import train_tokenizer
from ruamel.yaml import YAML

import kdcore
from kdcore import Batch, Signals, Units, load_recipe
from kdcore.commands.main import main
from kdcore.data.shards import NO_UNIT
from kdcore.models.base import Encoder
from kdcore.models.transformers import TransformersModel
from kdcore.registry import losses
from kdcore.relations import ScoreMaps
from kdcore.tasks.masked_lm import MaskedLM
from kdcore.training.run.build import make_plan

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def own_tokenizer(tmp_path_factory: pytest.TempPathFactory, corpus_file: Path) -> Path:
    """A byte-level BPE, trained on the corpus of the small recipe."""
    folder = tmp_path_factory.mktemp("own") / "tokenizer"
    lines = corpus_file.read_text(encoding="utf-8").splitlines()
    train_tokenizer(lines, folder, kind="byte_level_bpe", vocabulary=300)
    return folder


@pytest.fixture
def two_views(small_recipe: Path, own_tokenizer: Path, teacher_folder: Path) -> Callable[..., Path]:
    """The small recipe with a student of its own tokenizer: `two_views(losses, keys of the data recipe)`."""

    def write(losses: str, **keys: Any) -> Path:
        yaml = YAML(typ="safe")
        recipe = yaml.load(small_recipe)
        config = {"model_type": "bert", "num_hidden_layers": 2, "vocab_size": 300, "max_position_embeddings": 48}
        recipe["student"] = {"config": config}
        recipe["losses"] = yaml.load(losses)
        recipe["task"]["data"] |= {
            "tokenizer": str(own_tokenizer),
            "teacher_tokenizer": str(teacher_folder),
            "teacher_sequence_length": 64,
            **keys,
        }
        path = small_recipe.with_name("two_views.yaml")
        yaml.dump(recipe, path)
        return path

    return write


ALIGNED = "hidden_mse: {unit: aligned}"


@pytest.fixture
def task(two_views: Callable[..., Path]) -> MaskedLM:
    task = make_plan(load_recipe(two_views(ALIGNED))).task
    assert isinstance(task, MaskedLM)
    return task


def test_the_teacher_sees_no_text_that_is_hidden_from_the_student(task: MaskedLM) -> None:
    samples = np.arange(task.num_samples("train"))
    batch = task.draw("train", samples, np.full(len(samples), 2))
    teacher = batch.teacher_view
    rows, lengths = task.data.split("train").rows(samples)
    view = task.data.split("train").teacher_view(samples)
    assert task.data.teacher is not None
    mask_id = task.data.teacher.special_tokens.mask
    positions, labels, masked = [], [], 0
    for number in samples:
        inputs = batch.input_ids[number, : lengths[number]].numpy()
        changed = inputs != rows[number, : lengths[number]]
        hidden = set(view.student_units[number, : lengths[number]][changed].tolist()) - {NO_UNIT}
        masked += int(changed.sum())
        for place in range(view.lengths[number]):
            text = view.tokens[number, place]
            if view.units[number, place] in hidden:
                positions.append(number * teacher.input_ids.shape[1] + place)
                labels.append(text)
                text = mask_id
            assert teacher.input_ids[number, place] == text
    assert masked > 50
    assert teacher.masked_index.tolist() == positions
    assert teacher.masked_labels.tolist() == labels
    assert teacher.lengths.tolist() == view.lengths.tolist()
    assert teacher.num_tokens == view.lengths.sum()
    assert teacher.columns.keys() == batch.columns.keys()


def test_units_are_the_same_spans_in_the_same_order_on_both_sides(task: MaskedLM) -> None:
    samples = np.array([3, 0, 7])
    batch = task.draw("train", samples, np.zeros(3, dtype=np.int64))
    view = task.data.split("train").teacher_view(samples)
    lengths = task.data.split("train").rows(samples)[1]
    for side, numbers, sizes in (
        (batch, view.student_units, lengths),
        (batch.teacher_view, view.units, view.lengths),
    ):
        expected, place, counts = [], 0, []
        for row, size in zip(numbers.tolist(), sizes.tolist(), strict=True):
            units: dict[int, list[int]] = {}
            for number in row[:size]:
                if number != NO_UNIT:
                    units.setdefault(number, []).append(place)
                place += 1
            expected += [units[number] for number in range(len(units))]
            counts.append(len(units))
        assert side.units is not None
        found = np.split(side.units.tokens.numpy(), side.units.starts.numpy()[1:])
        assert [unit.tolist() for unit in found] == expected
        assert side.units.lengths.tolist() == counts
        assert side.num_units == len(expected)
    assert batch.num_units == batch.teacher_view.num_units


def test_a_batch_carries_split_samples_and_epochs_for_both_models(task: MaskedLM) -> None:
    samples, epochs = np.array([4, 2]), np.array([1, 0])
    batch = task.draw("held_out", samples, epochs).to(torch.device("cpu"))
    for side in (batch, batch.teacher_view):
        assert side.split == "held_out"
        assert side.samples is samples
        assert side.epochs is epochs


def test_with_one_tokenizer_both_views_are_the_same_object_and_tokens_are_units(small_recipe: Path) -> None:
    task = make_plan(load_recipe(small_recipe)).task
    batch = task.draw("train", np.arange(3), np.zeros(3, dtype=np.int64))
    assert batch.teacher_view is batch
    assert batch.units is None
    assert not task.separate_views
    assert batch.num_units == batch.num_tokens
    signals = Signals(batch, {0: torch.randn(*batch.input_ids.shape, 4)}, {}, {})
    assert signals.units(0) is signals.tokens(0)


def grouped(batch: Batch, seed: int) -> Batch:
    """The batch with random units of one to three tokens; every seventh token belongs to none."""
    choice = random.Random(seed)
    tokens: list[int] = []
    starts, lengths = [], []
    first = 0
    for length in batch.lengths.tolist():
        place = count = 0
        while place < length:
            size = min(choice.randint(1, 3), length - place)
            kept = [first + place + step for step in range(size) if (place + step) % 7 != 6]
            place += size
            if kept:
                starts.append(len(tokens))
                tokens += kept
                count += 1
        lengths.append(count)
        first += length
    return replace(batch, units=Units(torch.tensor(tokens), torch.tensor(starts), np.array(lengths)))


EVERYTHING = Signals.hidden([3]) | Signals.attention(["query", "key", "value"], [3])


@pytest.fixture
def encoder(saved_model: Callable[..., Path]) -> Callable[[str], Encoder]:
    def make(model_type: str) -> Encoder:
        teacher = TransformersModel(TransformersModel.Config(path=str(saved_model(model_type))), "teacher", None)
        return teacher.load_teacher(EVERYTHING).eval().double()

    return make


@pytest.mark.parametrize("model_type", ["bert", "modernbert"])
@pytest.mark.parametrize("packs", [False, True])
def test_units_average_tokens_of_padded_and_packed_encoders(
    model_type: str, packs: bool, encoder: Callable[[str], Encoder], token_batch: Callable[..., Any]
) -> None:
    network = encoder(model_type)
    network.packs = packs
    batch = grouped(token_batch((13, 4, 4, 20, 1, 9), 24), 1)
    units = batch.units
    assert units is not None
    signals = network(batch, EVERYTHING)
    tokens = signals.tokens(3)
    bounds = [*units.starts.tolist(), len(units.tokens)]
    means = [tokens[units.tokens[slice(*pair)]].mean(0) for pair in itertools.pairwise(bounds)]
    torch.testing.assert_close(signals.units(3), torch.stack(means), rtol=1e-12, atol=1e-12)
    for part in ("query", "value"):
        (chunk,) = signals.heads(part, 3)
        real = torch.arange(chunk.states.shape[2]) < torch.as_tensor(batch.lengths)[:, None]
        rows = chunk.states.transpose(1, 2)[real]  # (N, A, d_k)
        expected = torch.stack([rows[units.tokens[slice(*pair)]].mean(0) for pair in itertools.pairwise(bounds)])
        (whole,) = signals.unit_heads(part, 3)
        assert whole.states.shape[2] == units.lengths.max()
        assert whole.lengths is units.lengths
        assert whole.rows is not None
        torch.testing.assert_close(whole.states.transpose(1, 2)[whole.rows], expected, rtol=1e-12, atol=1e-12)


def test_unit_states_in_half_precision_are_averaged_in_float32() -> None:
    units = Units(torch.tensor([0, 1]), torch.tensor([0]), np.array([1]))
    states = torch.tensor([[1.0], [1.0 + 2**-7]], dtype=torch.bfloat16)
    assert units.means(states).item() == 1.0 + 2**-8, "bfloat16 cannot hold this number"


LOSSES = {
    "hidden_mse": {},
    "hidden_cosine": {},
    "hidden_mse_concat": {"layers": "last"},
    "minilm_v2": {"relation_heads": 4},
    "value_relation_kl": {},
}


def test_a_loss_on_factored_predictions_of_the_teacher_compares_tokens() -> None:
    class Factored(kdcore.Loss):
        def requests(self) -> kdcore.Requests:
            return kdcore.Requests(teacher=kdcore.Signals.predictions("all", factored=True))

        def counts(self, batch: Any) -> dict[str, int]:
            return {}

        def forward(self, student: Any, teacher: Any, batch: Any) -> dict[str, torch.Tensor]:
            return {}

    assert Factored(Factored.Config(name="factored", label="factored")).compares_tokens


@pytest.mark.parametrize("name", LOSSES)
def test_with_equal_tokens_an_aligned_loss_is_the_plain_one(
    name: str, encoder: Callable[[str], Encoder], token_batch: Callable[..., Any]
) -> None:
    """Also where units are stored: each token is a unit."""
    network = encoder("bert").float()
    batch = token_batch((13, 4, 20, 1, 9), 20)
    own = Units(torch.arange(batch.num_tokens), torch.arange(batch.num_tokens), batch.lengths)
    cls = losses.get(name)
    values = []
    for unit, given in (("token", batch), ("aligned", batch), ("aligned", replace(batch, units=own))):
        config = cls.Config(name=name, label=name, unit=unit, **LOSSES[name])
        torch.manual_seed(0)
        loss = cls(config, network.info, network.info)
        assert loss.compares_tokens == (unit == "token")
        requests = loss.requests()
        teacher = network(given, requests.teacher)
        student = network(replace(given, input_ids=given.input_ids.flip(0)), requests.student)
        (total,) = torch.stack(list(loss(student, teacher, given).values())).sum(0, keepdim=True)
        values.append(total.item() / sum(loss.counts(given).values()))
    assert values[0] > 0
    assert values[1] == values[0]
    assert values[2] == pytest.approx(values[0], rel=1e-6)


@pytest.mark.parametrize("name", ["hidden_mse", "minilm_v2", "value_relation_kl"])
def test_splitting_a_batch_of_units_changes_no_sum(
    name: str, encoder: Callable[[str], Encoder], token_batch: Callable[..., Any]
) -> None:
    network = encoder("bert")
    cls = losses.get(name)
    loss = cls(cls.Config(name=name, label=name, unit="aligned"), network.info, network.info).double()
    requests = loss.requests()

    def sums(batch: Batch, shuffled: Batch) -> tuple[float, int]:
        teacher, student = network(shuffled, requests.teacher), network(batch, requests.student)
        return sum(loss(student, teacher, batch).values()).item(), sum(loss.counts(batch).values())

    lengths = (13, 4, 20, 9)
    whole = grouped(token_batch(lengths, 20), 5)
    total, count = sums(whole, replace(whole, input_ids=whole.input_ids.roll(1, 1)))
    parts = []
    for number, length in enumerate(lengths):
        assert whole.units is not None
        first = int(whole.units.lengths[:number].sum())
        last = first + int(whole.units.lengths[number])
        bounds = [*whole.units.starts.tolist(), len(whole.units.tokens)]
        tokens = whole.units.tokens[bounds[first] : bounds[last]] - sum(lengths[:number])
        starts = whole.units.starts[first:last] - bounds[first]
        units = Units(tokens, starts, whole.units.lengths[number : number + 1])
        one = replace(
            token_batch((length,), 20),
            input_ids=whole.input_ids[number : number + 1],
            units=units,
        )
        parts.append(sums(one, replace(one, input_ids=one.input_ids.roll(1, 1))))
    assert sum(part[1] for part in parts) == count
    assert sum(part[0] for part in parts) == pytest.approx(total, rel=1e-9)


def test_relations_of_units_are_those_of_their_averages(
    encoder: Callable[[str], Encoder], token_batch: Callable[..., Any]
) -> None:
    network = encoder("bert")
    batch = grouped(token_batch((13, 4), 13), 2)
    other = replace(batch, input_ids=batch.input_ids.roll(1, 1))
    own, theirs = network(batch, EVERYTHING), network(other, EVERYTHING)
    found = ScoreMaps.relations(own, "value", 3, 2, unit="aligned").kl_from(
        ScoreMaps.relations(theirs, "value", 3, 2, unit="aligned")
    )
    expected = 0.0
    assert batch.units is not None
    for sequence, count in enumerate(batch.units.lengths.tolist()):
        maps = []
        for signals in (own, theirs):
            (chunk,) = signals.unit_heads("value", 3)
            rows = chunk.states[sequence, :, :count].transpose(0, 1).flatten(1)
            heads = rows.view(count, 2, -1).transpose(0, 1)
            maps.append((heads @ heads.transpose(1, 2) / heads.shape[-1] ** 0.5).log_softmax(-1))
        expected += (maps[1].exp() * (maps[1] - maps[0])).sum().item()
    assert found.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ("hidden_mse: {}", "losses.hidden_mse: `hidden_mse` compares the tokens of teacher and student one by one"),
        ("attention_kl: {}", "losses.attention_kl: `attention_kl` compares the tokens"),
        ("attention_pearson: {}", "losses.attention_pearson: `attention_pearson` compares the tokens"),
        ("two: {name: minilm_v2}", "losses.two: `minilm_v2` compares the tokens"),
    ],
)
def test_a_loss_on_single_tokens_is_refused_before_training(
    two_views: Callable[..., Path], capsys: pytest.CaptureFixture[str], loss: str, words: str
) -> None:
    assert main(["train", str(two_views(f"{{masked_lm: {{}}, {loss}}}"))]) == 2
    message = capsys.readouterr().err
    assert words in message
    assert "unit: aligned" in message
    assert "hidden_mse_cls" in message


def test_another_tokenizer_is_refused_with_the_key_that_helps(
    two_views: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = two_views(ALIGNED, teacher_tokenizer=None, teacher_sequence_length=None)
    assert main(["train", str(path), "student.config.vocab_size=400"]) == 2
    message = capsys.readouterr().err
    assert "the data's vocabulary is larger than the teacher's" in message
    assert "name the teacher's as `teacher_tokenizer`" in message


def test_the_teachers_tokens_must_be_the_teachers(
    two_views: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path, corpus_file: Path
) -> None:
    lines = corpus_file.read_text(encoding="utf-8").splitlines()
    train_tokenizer(lines, tmp_path / "other", kind="wordpiece", vocabulary=60)
    assert main(["train", str(two_views(ALIGNED, teacher_tokenizer=str(tmp_path / "other")))]) == 2
    message = capsys.readouterr().err
    assert "the data's vocabulary differs from the teacher's" in message
    assert "prepare the data with the teacher's own tokenizer as `teacher_tokenizer`" in message


def test_sequences_too_long_for_the_teacher_are_refused(
    two_views: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(two_views(ALIGNED, teacher_sequence_length=96))]) == 2
    message = capsys.readouterr().err
    assert "sequences are too long for the teacher" in message
    assert "prepare the data with a smaller teacher_sequence_length" in message
