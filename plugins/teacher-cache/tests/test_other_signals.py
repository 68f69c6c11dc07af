"""Signals besides those of one masked-LM teacher: classes, all kinds of a token's signals, and several teachers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kdcore_teacher_cache.cached_teacher import CachedTeacher
from kdcore_teacher_cache.caching import SignalRecorder, cache_signals
from kdcore_teacher_cache.signal_columns import attention_of, names_of, request_of
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, MPNetConfig, MPNetForMaskedLM

import kdcore
from kdcore.commands.main import main

TRAINING = "training: {budget: {epochs: 1}, batch_size: 8}\n"


@pytest.fixture(autouse=True)
def _cache(cache_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KDCORE_CACHE", str(cache_folder))
    monkeypatch.chdir(tmp_path)


def both(
    task: kdcore.Task, teacher: kdcore.RecipeTeacher, request: kdcore.SignalRequest, folder: Path, **options: Any
) -> tuple[kdcore.Signals, kdcore.Signals]:
    """The signals of a batch: those of the live teacher, and those of its cache."""
    teacher = kdcore.RecipeTeacher(teacher.key, teacher.name, teacher.model, {"train": request, "held_out": request})
    recorder = SignalRecorder(task, teacher, batch_size=8, **options)
    assert cache_signals(recorder, folder, progress=lambda done, total: None)
    stored = CachedTeacher(CachedTeacher.Config(cache=str(folder)), "teacher", None)
    stored.find_heads(task.heads(task.config))
    stored.check_task(task, {"train": request, "held_out": request})
    batch = task.draw("train", np.arange(8), np.ones(8, np.int64))
    with torch.no_grad():
        live = teacher.model.load_teacher(request).eval()(batch, request)
    return live, stored.load_teacher(request)(batch, request)


def test_outputs_of_classes_are_stored_for_each_sequence(tmp_path: Path, tokenizer_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = BertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        initializer_range=0.2,
        id2label={0: "sad", 1: "glad"},
        label2id={"sad": 0, "glad": 1},
        **sizes,
    )
    torch.manual_seed(1)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    lines = [f"{'abc' if number % 2 else 'xyz'} {number},{'glad' if number % 2 else 'sad'}" for number in range(40)]
    (tmp_path / "mood.csv").write_text("text,mood\n" + "\n".join(lines) + "\n", encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"""\
run: {{name: classes}}
teacher: {{path: teacher}}
student: {{config: {{num_hidden_layers: 1}}}}
task:
  name: sequence_classification
  data: {{train: mood.csv, validation: mood.csv, text: text, label: mood, labels: [sad, glad], max_length: 32}}
losses: {{soft_targets: {{positions: classes}}}}
{TRAINING}""",
        encoding="utf-8",
    )
    task, teachers = kdcore.recipe_teachers(kdcore.load_recipe(recipe))
    request = kdcore.Signals.head("sequence_classes")
    assert teachers["teacher"].requests["train"] == request
    live, cached = both(task, teachers["teacher"], request, tmp_path / "cache")
    assert live.outputs("sequence_classes").shape == (8, 2)
    assert torch.equal(cached.outputs("sequence_classes"), live.outputs("sequence_classes"))
    overrides = ["teacher.path=null", f"teacher.cache={tmp_path / 'cache'}", "task.data.tokenizer=teacher"]
    with pytest.raises(kdcore.DataError, match=r"not stored for `held_out`: hidden\.1"):  # pooled at validation
        kdcore.recipe_teachers(kdcore.load_recipe(recipe, overrides))


def masked_recipe(path: Path, teacher: Path, corpus: Path, teachers: str, losses: str) -> Path:
    path.write_text(
        f"""\
run: {{name: masked}}
seed: 3
{teachers}
student: {{config: {{num_hidden_layers: 2}}}}
task:
  name: masked_lm
  masking: {{duplicates: 2}}
  data:
    tokenizer: {teacher}
    sequence_length: 48
    held_out: 0.1
    corpora:
      - {{name: text, path: {corpus}, documents: lines}}
losses: {losses}
{TRAINING}""",
        encoding="utf-8",
    )
    return path


def heads_of(signals: kdcore.Signals, part: Any, block: int) -> list[torch.Tensor]:
    """The real tokens' states of each sequence."""
    packed = signals.packed_heads(part, block)
    return list(packed.states.split(packed.offsets.diff().tolist()))


def test_every_kind_of_signal_is_read_as_the_live_teacher_gives_it(
    tmp_path: Path, teacher_folder: Path, corpus_file: Path
) -> None:
    path = masked_recipe(
        tmp_path / "r.yaml", teacher_folder, corpus_file, f"teacher: {{path: {teacher_folder}}}", "{hidden_mse: {}}"
    )
    task, teachers = kdcore.recipe_teachers(kdcore.load_recipe(path))
    request = kdcore.Signals.hidden(["embeddings", 3]) | kdcore.Signals.attention(["query", "value"], [1])
    request |= kdcore.Signals.predictions("all") | kdcore.Signals.predictions("masked", factored=True)
    assert request_of(names_of(request)) == request
    live, cached = both(task, teachers["teacher"], request, tmp_path / "cache")
    for block in ("embeddings", 3):
        assert torch.equal(cached.tokens(block), live.tokens(block))
        assert torch.equal(cached.first(block), live.first(block))
    assert torch.equal(cached.logits("all"), live.logits("all"))
    for part in ("query", "value"):
        assert all(map(torch.equal, heads_of(cached, part, 1), heads_of(live, part, 1)))
        (own,), (theirs,) = list(cached.heads(part, 1)), list(live.heads(part, 1))
        assert (own.scale, own.only_padding) == (theirs.scale, True)
        real = torch.ones(own.states.shape[0], own.states.shape[2], dtype=torch.bool) if own.rows is None else own.rows
        assert torch.equal(own.states.transpose(1, 2)[real], theirs.states.transpose(1, 2)[real])
    found, expected = cached.factored("masked"), live.factored("masked")
    assert torch.equal(found.states, expected.states)
    assert torch.equal(found.logits(), expected.logits())
    asked = kdcore.Signals.predictions("masked", factored=True)
    live, cached = both(task, teachers["teacher"], asked, tmp_path / "bf16", values="bf16")
    expected = live.factored("masked")
    rounded = kdcore.FactoredLogits(expected.states.bfloat16().float(), expected.weight, expected.bias)
    assert torch.equal(cached.factored("masked").logits(), rounded.logits())


def test_one_of_several_teachers_is_cached(
    tmp_path: Path, teacher_folder: Path, corpus_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teachers = f"teachers: {{one: {{path: {teacher_folder}}}, two: {{path: {teacher_folder}}}}}"
    losses = "{states: {name: hidden_mse, teacher: one}, words: {name: soft_targets, teacher: two}}"
    path = masked_recipe(tmp_path / "r.yaml", teacher_folder, corpus_file, teachers, losses)
    assert main(["teacher", "cache", str(path), "cache"]) == 2
    assert "the recipe has several teachers" in capsys.readouterr().err
    assert main(["teacher", "cache", str(path), "cache", "--teacher", "one"]) == 0
    _, found = kdcore.recipe_teachers(kdcore.load_recipe(path, ["teachers.one.cache=cache"]))
    assert isinstance(found["one"].model, CachedTeacher)
    assert not isinstance(found["two"].model, CachedTeacher)
    with pytest.raises(kdcore.DataError, match=r"teachers\.two: the losses read .* not stored for `train`: logits"):
        kdcore.recipe_teachers(kdcore.load_recipe(path, ["teachers.two.cache=cache"]))


class Masked:
    """Signals whose blocks have one kind of mask."""

    def __init__(self, pattern: kdcore.AttentionPattern | None) -> None:
        self._pattern = pattern

    def packed_heads(self, part: str, block: int) -> kdcore.PackedHeads:
        return kdcore.PackedHeads(torch.zeros(3, 2, 4), torch.tensor([0, 3]), 3, 0.5, self._pattern)


def test_attention_with_an_unknown_mask_is_refused_with_the_reason() -> None:
    signals: Any = Masked(None)
    with pytest.raises(kdcore.InputError) as caught:
        attention_of(signals, ["hidden.1", "key.2"])
    reason = "has a mask that depends on more than lengths and a window"
    assert f"`key.2` cannot be stored: the attention of block 2 of this teacher {reason}" in str(caught.value)
    assert "live teacher" in str(caught.value)
    assert attention_of(signals, ["hidden.1"]) == {}


def test_queries_with_keys_are_refused_where_scores_have_a_bias() -> None:
    signals: Any = Masked(kdcore.AttentionPattern(bias=torch.zeros(1, 2, 3, 3)))
    with pytest.raises(kdcore.InputError) as caught:
        attention_of(signals, ["key.1", "key.2", "query.2", "value.2"])
    assert (
        "`query.2` and `key.2` cannot both be read from a cache: the attention of block 2 of this teacher adds a bias"
        in str(caught.value)
    )
    for hint in ("live teacher", "`minilm_v2` with `relations: {key: 0}`"):
        assert hint in str(caught.value)
    found = attention_of(signals, ["key.1", "query.2", "value.2"])
    assert {place: entry.biased for place, entry in found.items()} == {"1": True, "2": True}


def test_relations_of_a_teacher_with_position_biases_are_read_as_the_live_teacher_gives_them(
    tmp_path: Path, tokenizer_folder: Path, corpus_file: Path
) -> None:
    AutoTokenizer.from_pretrained(tokenizer_folder).save_pretrained(tmp_path / "teacher")
    path = tmp_path / "teacher/tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    swapped = {0: 1, 1: 0}  # MPNet computes positions from the padding id 1
    content["model"]["vocab"] = {word: swapped.get(i, i) for word, i in content["model"]["vocab"].items()}
    for token in content["added_tokens"]:
        token["id"] = swapped.get(token["id"], token["id"])
    path.write_text(json.dumps(content), encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "teacher")
    assert tokenizer.pad_token_id == 1
    config = MPNetConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,
    )
    torch.manual_seed(1)
    MPNetForMaskedLM(config).save_pretrained(tmp_path / "teacher")
    losses = "{value_relation_kl: {layers: last}, minilm_v2: {layers: last, relations: {key: 0}}}"
    recipe = masked_recipe(
        tmp_path / "r.yaml", tmp_path / "teacher", corpus_file, "teacher: {path: teacher, dtype: fp32}", losses
    )
    task, teachers = kdcore.recipe_teachers(kdcore.load_recipe(recipe))
    request = kdcore.Signals.attention(["query", "value"], [1])
    assert teachers["teacher"].requests["train"] == request
    live, cached = both(task, teachers["teacher"], request, tmp_path / "cache")
    (chunk,) = live.heads("value", 1)
    assert chunk.pattern is not None
    assert chunk.pattern.bias is not None

    def relations(signals: kdcore.Signals, part: Any) -> kdcore.ScoreMaps:
        return kdcore.ScoreMaps.relations(signals, part, 1)

    expected = relations(live, "query").kl_from(relations(live, "value"))
    assert expected > 0.01
    torch.testing.assert_close(relations(live, "query").kl_from(relations(cached, "value")), expected)
    torch.testing.assert_close(relations(cached, "query").kl_from(relations(live, "value")), expected)
    stored = CachedTeacher(CachedTeacher.Config(cache=str(tmp_path / "cache")), "teacher", None)
    with pytest.raises(kdcore.InputError, match=r"`query\.1` and `key\.1` cannot both be read from a cache"):
        stored.load_teacher(kdcore.Signals.attention(["query", "key"], [1]))
    (tmp_path / "both.yaml").write_text(recipe.read_text().replace(", relations: {key: 0}", ""), encoding="utf-8")
    assert main(["teacher", "cache", str(tmp_path / "both.yaml"), "refused"]) == 2
