"""Reading from a cache: precisions, partly stored predictions, and the refusal of anything that does not match."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from kdcore_teacher_cache import cached_teacher, caching
from kdcore_teacher_cache.cache_manifest import hash_of
from kdcore_teacher_cache.cache_reader import CacheReader
from kdcore_teacher_cache.caching import SignalRecorder, cache_signals
from kdcore_teacher_cache.signal_columns import SignalColumn
from kdcore_teacher_cache.stored_predictions import SampleNumbers, calibration_error
from kdcore_teacher_cache.stored_values import arrays_of, as_tensor, decode, encode

import kdcore
from kdcore.commands.main import main
from kdcore.training.engine.teachers import FrozenTeachers


def coded(values: torch.Tensor, kind: Any, **column: Any) -> torch.Tensor:
    """Values as they are read back."""
    entry = SignalColumn(name="logits.all", level="token", shape=tuple(values.shape[1:]), **column)
    stored = encode(entry, values, kind, np.random.default_rng(5).random((len(values), entry.kept)))
    arrays = {one.key: as_tensor(stored[one.key].reshape(-1, *one.shape)) for one in arrays_of(entry, kind)}
    return decode(entry, arrays, kind)


@pytest.fixture(scope="module")
def values() -> torch.Tensor:
    return torch.randn(40, 4, 8, generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 2, 40)[:, None, None]


def test_values_are_read_with_the_error_of_their_type(values: torch.Tensor) -> None:
    assert torch.equal(coded(values, "fp32"), values)
    assert torch.equal(coded(values, "bf16"), values.bfloat16())
    assert torch.equal(coded(values, "fp16"), values.half())
    steps = values.abs().amax((1, 2), keepdim=True) / 127
    error = (coded(values, "int8") - values).abs()
    assert bool((error <= 0.5001 * steps).all())
    assert float(error.max()) > 0
    assert torch.equal(coded(torch.zeros(2, 3), "int8"), torch.zeros(2, 3))


def test_a_value_beyond_fp16_is_refused(values: torch.Tensor) -> None:
    with pytest.raises(kdcore.InputError, match="too large for fp16"):
        coded(values * 1e6, "fp16")


def test_top_k_keeps_the_largest_probabilities_and_spreads_the_remainder() -> None:
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(2)) * 3
    read = coded(logits, "fp32", form="top_k", kept=5).double().softmax(-1).numpy()
    for row, true in zip(read, logits.double().softmax(-1).numpy(), strict=True):
        order = np.argsort(-true)
        np.testing.assert_allclose(row[order[:5]], true[order[:5]], rtol=1e-5)
        np.testing.assert_allclose(row[order[5:]], true[order[5:]].sum() / 45, rtol=1e-5)


def test_random_sampling_is_unbiased_and_top_k_is_not() -> None:
    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(3)).mul(2).expand(4000, 40).contiguous()
    true = logits[0].double().softmax(-1)
    sampled, largest = (
        coded(logits, "fp32", form=form, kept=16).double().softmax(-1).mean(0) for form in ("random_sampling", "top_k")
    )
    deviation = (true * (1 - true) / (16 * 4000)).sqrt()
    assert bool(((sampled - true).abs() < 5 * deviation).all())
    assert float(((largest - true).abs() / deviation).max()) > 20
    errors = [
        calibration_error(logits, coded(logits, "fp32", form=form, kept=16)) for form in ("random_sampling", "top_k")
    ]
    assert errors[0] < 0.3 * errors[1]


def test_samples_share_no_random_numbers_and_do_not_depend_on_batches() -> None:
    samples, counts = np.arange(24), np.arange(24) % 5 + 1
    whole = SampleNumbers(0, 0, samples).draw(counts, 16)
    places = (slice(0, 8), slice(8, 16), slice(16, 24))
    batches = [SampleNumbers(0, 0, samples[one]).draw(counts[one], 16) for one in places]
    assert np.array_equal(np.concatenate(batches), whole)
    others = [SampleNumbers(*place, samples).draw(counts, 16) for place in ((0, 1), (1, 0))]
    every = np.concatenate([whole, *others])
    assert len(np.unique(every)) == every.size
    assert abs(every.mean() - 0.5) < 5 / np.sqrt(12 * every.size)


def test_soft_targets_of_sampled_predictions_are_finite_and_have_the_gradient_of_their_shares() -> None:
    from kdcore.losses.soft_targets import _SlicedDivergence

    logits = torch.randn(7, 30, generator=torch.Generator().manual_seed(4))
    read = coded(logits, "fp32", form="random_sampling", kept=8)
    student = torch.randn(7, 30, generator=torch.Generator().manual_seed(6), requires_grad=True)
    loss = _SlicedDivergence.apply(student, read, 1.0)
    loss.backward()
    assert torch.isfinite(loss)
    shares = read.exp()
    torch.testing.assert_close((shares * 8).round() / 8, shares, rtol=0, atol=1e-5)
    torch.testing.assert_close(student.grad, student.detach().softmax(-1) - shares, rtol=1e-4, atol=1e-5)


RECIPE = """\
run: {{name: stored, id: 1}}
seed: 3
teacher: {{path: {teacher}}}
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
losses:
  states: {{name: hidden_mse, layers: [[1, 0]]}}
  words: {{name: soft_targets, positions: masked}}
training: {{budget: {{epochs: 3}}, batch_size: 8}}
"""


@pytest.fixture(scope="module")
def recipe(
    tmp_path_factory: pytest.TempPathFactory, teacher_folder: Path, corpus_file: Path, cache_folder: Path
) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("stored")
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(teacher=teacher_folder, corpus=corpus_file), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDCORE_CACHE", str(cache_folder))
        patch.chdir(folder)
        patch.setattr(caching, "SHARD_BYTES", 100_000)
        yield path


def recorder_of(recipe: Path, *overrides: str, **options: Any) -> SignalRecorder:
    task, teachers = kdcore.recipe_teachers(kdcore.load_recipe(recipe, overrides))
    return SignalRecorder(task, teachers["teacher"], batch_size=8, **options)


@pytest.fixture(scope="module")
def recorder(recipe: Path) -> SignalRecorder:
    return recorder_of(recipe)


def fill(recorder: SignalRecorder, folder: Path, task: tuple[int, int] = (1, 1)) -> bool:
    return cache_signals(recorder, folder, task=task, progress=lambda done, total: None)


@pytest.fixture(scope="module")
def complete(recorder: SignalRecorder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("complete") / "cache"
    assert fill(recorder, folder)
    return folder


@pytest.fixture
def cache(complete: Path, tmp_path: Path) -> Path:
    """A copy of the complete cache, to be damaged."""
    return Path(shutil.copytree(complete, tmp_path / "cache"))


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(recipe: Path, folder: Path, *overrides: str) -> str:
    with pytest.raises(kdcore.InputError) as caught:
        kdcore.recipe_teachers(kdcore.load_recipe(recipe, [f"teacher.cache={folder}", *overrides]))
    return str(caught.value)


def test_tasks_write_the_same_bytes_as_one_process(recorder: SignalRecorder, complete: Path, tmp_path: Path) -> None:
    assert len(recorder.contents.shard_files()) > 4
    folder = tmp_path / "cache"
    assert not fill(recorder, folder, (2, 3))
    assert not fill(recorder, folder, (1, 3))
    assert fill(recorder, folder, (3, 3))
    assert content_of(folder) == content_of(complete)


def test_every_stored_file_is_listed_with_its_checksum(complete: Path) -> None:
    manifest = json.loads((complete / "manifest.json").read_text(encoding="utf-8"))
    assert set(content_of(complete)) == {"manifest.json", *manifest["files"]}
    assert main(["teacher", "verify", str(complete)]) == 0


def test_an_interrupted_cache_is_not_read_and_is_continued(
    recorder: SignalRecorder, complete: Path, tmp_path: Path, recipe: Path
) -> None:
    folder = tmp_path / "cache"
    fill(recorder, folder, (1, 2))
    assert "the cache is incomplete" in refusal(recipe, folder)
    assert fill(recorder, folder)
    assert content_of(folder) == content_of(complete)


def test_a_second_writer_of_the_same_files_is_refused(recorder: SignalRecorder, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    with kdcore.locked(folder / ".task-1-of-1.lock"):
        (folder / "contents.json").write_text(recorder.contents.model_dump_json(), encoding="utf-8")
        with pytest.raises(kdcore.DataError, match="another process writes this cache"):
            fill(recorder, folder)


def test_the_cache_of_another_recipe_is_not_continued(recipe: Path, cache: Path) -> None:
    other = recorder_of(recipe, "losses.words=null", values="bf16")
    with pytest.raises(kdcore.DataError) as caught:
        fill(other, cache)
    assert "the cache of another recipe" in str(caught.value)
    assert "values: differs (found fp32, expected bf16)" in str(caught.value)
    with pytest.raises(kdcore.DataError, match="is not empty"):
        fill(other, recipe.parent)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    recorder: SignalRecorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 1000, 1000))
    with pytest.raises(kdcore.InfrastructureError, match=r"found 1.0 kB free, needed \d.* MB"):
        fill(recorder, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_disk_that_fills_up_leaves_a_cache_that_is_continued(
    recorder: SignalRecorder, complete: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: Path
) -> None:
    folder, opened = tmp_path / "cache", pyarrow.ipc.new_file
    calls = iter(range(100))

    def full(*arguments: Any) -> Any:
        if next(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(pyarrow.ipc, "new_file", full)
        with pytest.raises(OSError, match="No space left"):
            fill(recorder, folder)
    assert len(list(folder.glob("*.arrow"))) == len(list(folder.glob("*.entry"))) == 2
    assert list(folder.glob(".staging-*")) == []
    assert "the cache is incomplete" in refusal(recipe, folder)
    assert fill(recorder, folder)
    assert content_of(folder) == content_of(complete)


def test_truncated_and_changed_files_are_named(cache: Path, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = cache / "train-00001.arrow"
    content = shard.read_bytes()
    shard.write_bytes(content[:-8] + b"\0" * 8)
    assert main(["teacher", "verify", str(cache)]) == 2
    assert f"{shard}: is damaged: its checksum differs" in capsys.readouterr().err
    reader = CacheReader(cache)
    rows = reader.contents.splits["train"].samples_per_shard
    task, _ = kdcore.recipe_teachers(kdcore.load_recipe(recipe, [f"teacher.cache={cache}"]))
    batch = task.draw("train", np.array([rows]), np.array([0]))
    with pytest.raises(kdcore.DataError, match=r"train-00001.arrow: is damaged"):
        reader.read(batch, ["hidden.1"])
    shard.write_bytes(content[:-8])
    assert f"{shard}: has the wrong size" in refusal(recipe, cache)
    shard.unlink()
    assert f"{shard}: is missing" in refusal(recipe, cache)


def test_a_changed_manifest_and_another_version_are_refused(cache: Path, recipe: Path) -> None:
    path = cache / "manifest.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, "kdcore_version": "9"}), encoding="utf-8")
    assert "its content differs from its own checksum" in refusal(recipe, cache)
    del content["sha256"]
    other = {**content, "format_version": 2, "kdcore_version": "7.0"}
    path.write_text(json.dumps({**other, "sha256": hash_of(other)}), encoding="utf-8")
    assert "was written by kdcore-teacher-cache 7.0 (found format version 2, expected 1)" in refusal(recipe, cache)


def test_other_masks_data_signals_and_teachers_are_refused_by_name(
    complete: Path, recipe: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    assert "the masks of the samples differ" in refusal(recipe, complete, "task.masking.probability=0.2")
    assert ", seed 4, expected" in refusal(recipe, complete, "seed=4")
    found = refusal(recipe, complete, "task.masking.duplicates=3")
    assert "masks repeat after 3 epochs (expected 2)" in found
    found = refusal(recipe, complete, "losses.deep={name: hidden_mse, layers: [[2, 1]]}")
    assert "the losses read signals that are not stored for `train`: hidden.2" in found
    texts = tmp_path / "corpus.txt"
    texts.write_text("ab cd ef\ngh ab de\nab ab\n" * 9, encoding="utf-8")
    found = refusal(recipe, complete, f"task.data.corpora.0.path={texts}")
    assert "the data of the samples differ" in found
    assert "the tokenizer of" not in found
    other = Path(shutil.copytree(teacher_folder, tmp_path / "teacher"))
    weights = other / "model.safetensors"
    tensors = __import__("safetensors.torch").torch.load_file(weights)
    tensors["bert.embeddings.word_embeddings.weight"][0, 0] += 1
    __import__("safetensors.torch").torch.save_file(tensors, weights, {"format": "pt"})
    assert "the teacher's file model.safetensors differs" in refusal(recipe, complete, f"teacher.path={other}")


def test_another_key_of_the_teacher_is_refused_and_its_path_is_not_compared(
    complete: Path, recipe: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    found = refusal(recipe, complete, "teacher.dtype=bf16")
    assert "the teacher's key `dtype` differs (found bf16, expected none)" in found
    same = shutil.copytree(teacher_folder, tmp_path / "same")
    kdcore.recipe_teachers(kdcore.load_recipe(recipe, [f"teacher.cache={complete}", f"teacher.path={same}"]))
    assert str(recorder_of(recipe, f"teacher.path={same}").contents) == str(CacheReader(complete).contents)


def test_a_file_has_a_limited_number_of_sequences(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching, "SHARD_BYTES", 2**40)
    monkeypatch.setattr(caching, "SHARD_SAMPLES", 20)
    assert recorder_of(recipe).contents.splits["train"].samples_per_shard == 16  # whole batches of 8


def test_prefetching_stops_at_the_limit_and_forgets_batches_that_are_never_read(
    complete: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, teachers = kdcore.recipe_teachers(kdcore.load_recipe(recipe, [f"teacher.cache={complete}"]))
    request = kdcore.Signals.hidden([1])
    encoder = teachers["teacher"].model.load_teacher(request)
    batches = [task.draw("train", np.full(2, sample), np.zeros(2, np.int64)) for sample in range(8)]
    encoder(batches[0], request)
    reads: list[int] = []
    read = CacheReader.read

    def counted(self: CacheReader, batch: kdcore.Batch, names: Any) -> Any:
        assert batch.samples is not None
        reads.append(int(batch.samples[0]))
        return read(self, batch, names)

    monkeypatch.setattr(CacheReader, "read", counted)
    limit = sum(int(batch.lengths.sum()) * 32 * 4 for batch in batches[1:4])
    monkeypatch.setattr(cached_teacher, "_MOST_AHEAD", limit)
    for batch in batches[1:6]:
        encoder.prefetch(batch)
    assert reads == [1, 2, 3]
    for batch in batches[1:6]:
        encoder(batch, request)
    assert reads == [1, 2, 3, 4, 5]
    for batch in batches[1:4]:
        encoder.prefetch(batch)
    encoder(batches[6], request)
    encoder.prefetch(batches[7])
    encoder(batches[7], request)
    assert reads[5:] == [1, 2, 3, 6, 7]


def test_a_late_writer_leaves_a_complete_cache_as_it_is(
    recorder: SignalRecorder, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, answers, is_file = content_of(cache), iter([False, False]), Path.is_file

    def late(path: Path) -> bool:
        """Return the state before another process completed the cache, until the lock is held."""
        return next(answers, is_file(path)) if path.name == "manifest.json" else is_file(path)

    (cache / "contents.json").write_text(recorder.contents.model_dump_json(), encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_file", late)
        patch.setattr(recorder, "write", None)
        assert fill(recorder, cache, (1, 2))
    (cache / "contents.json").unlink()
    assert content_of(cache) == before


def test_a_batch_of_other_tokens_is_refused_when_it_is_read(complete: Path, recipe: Path) -> None:
    task, _ = kdcore.recipe_teachers(kdcore.load_recipe(recipe))
    batch = task.draw("train", np.arange(4), np.zeros(4, np.int64))
    batch.input_ids[2, 1] += 1
    with pytest.raises(kdcore.DataError, match="the tokens of sample 2 of the split `train` differ"):
        CacheReader(complete).read(batch, ["hidden.1"])
    with pytest.raises(kdcore.DataError, match="without sample numbers"):
        CacheReader(complete).read(task.batch("train", np.arange(4), np.zeros(4, np.int64)), ["hidden.1"])


def test_samples_are_read_in_any_order(complete: Path, recipe: Path) -> None:
    task, _ = kdcore.recipe_teachers(kdcore.load_recipe(recipe))
    reader, samples = CacheReader(complete), np.arange(20)
    whole = task.draw("train", samples, np.ones(20, np.int64))
    expected = np.split(reader.read(whole, ["hidden.1"])["hidden.1"].numpy(), np.cumsum(whole.lengths)[:-1])
    order = np.random.default_rng(1).permutation(samples)
    mixed = task.draw("train", order, np.full(20, 3))
    found = np.split(reader.read(mixed, ["hidden.1"])["hidden.1"].numpy(), np.cumsum(mixed.lengths)[:-1])
    for sample, rows in zip(order, found, strict=True):
        assert np.array_equal(rows, expected[sample])


def test_masks_that_never_repeat_are_refused(recipe: Path) -> None:
    with pytest.raises(kdcore.RecipeError, match=r"task\.masking\.duplicates: K"):
        recorder_of(recipe, "task.masking.duplicates=null")


def test_a_teacher_that_is_not_finite_is_refused(
    recorder: SignalRecorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: Path
) -> None:
    rows_of = caching.rows_of

    def broken(signals: Any, name: str) -> torch.Tensor:
        rows = rows_of(signals, name).clone()
        if name == "hidden.1":
            rows[0] = float("nan")
        return rows

    monkeypatch.setattr(caching, "rows_of", broken)
    with pytest.raises(kdcore.InputError, match=r"`hidden\.1` is not finite in sample 0 of the split `train`"):
        fill(recorder, tmp_path / "cache")
    assert list((tmp_path / "cache").glob("*.arrow")) == []
    assert "the cache is incomplete" in refusal(recipe, tmp_path / "cache")


def test_the_union_of_a_sweep_is_stored(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "cache"
    command = ["teacher", "cache", str(recipe), str(folder), "--kept", "16", "--predictions", "random_sampling"]
    assert main([*command, "--sweep", "losses.states.layers=[[1,0]],[[2,0]]"]) == 0
    output = capsys.readouterr().out
    assert "hidden.1, hidden.2, hidden.3, logits.masked" in output
    errors = {line.split()[3]: float(line.split()[7]) for line in output.splitlines() if line.startswith("calibration")}
    assert errors.keys() == {"top_k", "random_sampling"}
    for blocks in ("[[1,0]]", "[[2,0]]"):
        kdcore.recipe_teachers(
            kdcore.load_recipe(recipe, [f"teacher.cache={folder}", f"losses.states.layers={blocks}"])
        )
    assert main([*command, "--sweep", "seed=3,4"]) == 2
    assert "they differ in masks" in capsys.readouterr().err


def test_sampled_predictions_are_those_of_training_at_temperature_1(
    recipe: Path, complete: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    options = ["--predictions", "random_sampling", "--kept", "16"]
    command = ["teacher", "cache", str(recipe), str(tmp_path / "cache")]
    for words in (["losses.words.temperature=4"], ["--sweep", "losses.words.temperature=1,4"]):
        assert main([*command, *words, *options]) == 2
        assert "unbiased only at temperature 1 (found 4" in capsys.readouterr().err
    sampled = recorder_of(recipe, form="random_sampling", kept=16)
    assert fill(sampled, tmp_path / "sampled")
    caplog.set_level("INFO", "kdcore")
    for folder, stated in ((complete, False), (tmp_path / "sampled", True)):
        caplog.clear()
        _, teachers = kdcore.recipe_teachers(kdcore.load_recipe(recipe, [f"teacher.cache={folder}"]))
        teachers["teacher"].model.load_teacher(kdcore.SignalRequest())
        assert ("unbiased only at temperature 1" in caplog.text) == stated
    splits = sampled.contents.splits
    forms = {name: {column.name: column.form for column in rows.columns} for name, rows in splits.items()}
    assert (forms["train"]["logits.masked"], forms["held_out"]["logits.masked"]) == ("random_sampling", "full")


def test_a_target_that_can_hold_no_cache_is_refused_before_the_teacher_runs(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kdcore.TransformersModel, "load_teacher", None)
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for name, message in (("file", "is a file"), ("file/below", "is a file"), (".", "is not empty")):
        assert main(["teacher", "cache", str(recipe), str(tmp_path / name)]) == 2
        assert message in capsys.readouterr().err


def automatic(recipe: Path, *overrides: str) -> tuple[kdcore.Task, Any]:
    task, teachers = kdcore.recipe_teachers(kdcore.load_recipe(recipe, ["teacher.cache=auto", *overrides]))
    return task, teachers["teacher"].model


def test_an_automatic_cache_is_computed_once_and_completed_by_later_runs(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdcore_teacher_cache import automatic_cache

    made: list[list[str]] = []

    class Recorded(SignalRecorder):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            made.append([column.name for column in self.contents.splits["train"].columns])

    monkeypatch.setattr(automatic_cache, "SignalRecorder", Recorded)
    monkeypatch.setattr(automatic_cache, "cache_folder", lambda: tmp_path)
    more = "losses.deep={name: hidden_mse, layers: [[2, 1]]}"
    for overrides in ([], [], ["training.batch_size=4"], [more], [more]):
        task, model = automatic(recipe, *overrides)
        encoder = model.load_teacher(kdcore.SignalRequest())
    assert made == [["hidden.1", "logits.masked"], ["hidden.2"]]
    batch = task.draw("train", np.arange(5), np.ones(5, np.int64))
    request = kdcore.Signals.hidden([1, 2]) | kdcore.Signals.predictions("masked")
    with torch.no_grad():
        expected = model.described.load_teacher(request).eval()(batch, request)
    found = encoder(batch, request)
    for block in (1, 2):
        torch.testing.assert_close(found.tokens(block), expected.tokens(block), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.logits("masked"), expected.logits("masked"), rtol=1e-5, atol=1e-4)
    automatic(recipe, "seed=4")[1].load_teacher(kdcore.SignalRequest())
    assert len(made) == 3


def test_an_automatic_cache_is_completed_with_training_signals_that_only_validation_had(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdcore_teacher_cache import automatic_cache

    monkeypatch.setattr(automatic_cache, "cache_folder", lambda: tmp_path)
    validated, trained = kdcore.Signals.hidden([3]), kdcore.Signals.hidden([0])
    for train in (trained, trained | validated):
        task, model = automatic(recipe)
        model.check_task(task, {"train": train, "held_out": trained | validated})
        encoder = model.load_teacher(trained | validated)
    batch = task.draw("train", np.arange(4), np.zeros(4, np.int64))
    assert encoder(batch, validated).tokens(3).shape == (batch.lengths.sum(), 32)


def test_an_automatic_cache_discards_a_part_of_other_contents_and_reports_progress(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdcore_teacher_cache import automatic_cache

    reported: list[str] = []
    monkeypatch.setattr(automatic_cache, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(caching, "report_progress", reported.append)
    written = iter(range(100))
    write = SignalRecorder.write

    def interrupted(self: SignalRecorder, *arguments: Any) -> None:
        if next(written) == 2:
            raise KeyboardInterrupt
        write(self, *arguments)

    monkeypatch.setattr(SignalRecorder, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        automatic(recipe)[1].load_teacher(kdcore.SignalRequest())
    (part,) = (tmp_path / "teachers").glob("*/part-*")
    contents = json.loads((part / "contents.json").read_text(encoding="utf-8"))
    (part / "contents.json").write_text(json.dumps({**contents, "batch_size": 7}), encoding="utf-8")
    assert len(list(part.glob("*.arrow"))) == 2
    found = len(reported)
    assert found >= 2
    _, model = automatic(recipe)
    model.load_teacher(kdcore.SignalRequest())
    assert CacheReader(part).contents.batch_size == 32
    assert len(reported) - found >= len(CacheReader(part).contents.shard_files())  # every file is written again


def test_products_of_another_precision_and_another_dtype_have_their_own_automatic_cache(recipe: Path) -> None:
    from kdcore_teacher_cache.automatic_cache import automatic_folder

    def folder(*overrides: str) -> Path:
        task, teachers = kdcore.recipe_teachers(kdcore.load_recipe(recipe, overrides))
        return automatic_folder(task, teachers["teacher"])

    first = folder()
    assert folder("teacher.name=transformers") == first
    assert folder("teacher.dtype=bf16") != first
    torch.set_float32_matmul_precision("high")
    try:
        assert folder() != first
    finally:
        torch.set_float32_matmul_precision("highest")


def test_caching_applies_tf32_and_reading_in_more_precision_is_warned_about(
    recipe: Path, complete: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(kdcore, "own_device", lambda: torch.device("cuda"))  # read by the command for `numerics` only
        assert main(["teacher", "cache", str(recipe), str(tmp_path / "tf32"), "training.tf32=true"]) == 0
    assert torch.get_float32_matmul_precision() == "highest"
    assert fill(recorder_of(recipe, precision="bf16"), tmp_path / "bf16")

    def warning(folder: Path, dtype: torch.dtype) -> str:
        _, teachers = kdcore.recipe_teachers(kdcore.load_recipe(recipe, [f"teacher.cache={folder}"]))
        encoder = teachers["teacher"].model.load_teacher(kdcore.SignalRequest())
        caplog.clear()
        FrozenTeachers({"teacher": encoder}, {}).to(torch.device("cpu")).to(dtype)
        return caplog.text

    assert "(found float32 with TF32, expected float32 without TF32)" in warning(tmp_path / "tf32", torch.float32)
    assert "(found bfloat16, expected float32)" in warning(tmp_path / "bf16", torch.float32)
    assert "(found bfloat16, expected float16)" in warning(tmp_path / "bf16", torch.float16)
    torch.set_float32_matmul_precision("high")
    try:
        assert warning(tmp_path / "tf32", torch.float32) == ""
    finally:
        torch.set_float32_matmul_precision("highest")
    assert warning(tmp_path / "tf32", torch.bfloat16) == ""
    for dtype in (torch.float32, torch.bfloat16):
        assert warning(complete, dtype) == ""
    assert warning(tmp_path / "bf16", torch.bfloat16) == ""


def test_a_teacher_with_its_own_dtype_is_not_compared_with_the_precision_of_training(
    recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = "teacher.dtype=bf16"
    assert fill(recorder_of(recipe, own), tmp_path / "cache")
    overrides = [own, f"teacher.cache={tmp_path / 'cache'}"]
    _, teachers = kdcore.recipe_teachers(kdcore.load_recipe(recipe, overrides))
    encoder = teachers["teacher"].model.load_teacher(kdcore.SignalRequest())
    FrozenTeachers({"teacher": encoder}, {}).to(torch.float32)
    assert "lower precision" not in caplog.text


def test_a_run_waits_visibly_for_the_one_that_computes(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from kdcore_teacher_cache import automatic_cache

    monkeypatch.setattr(automatic_cache, "cache_folder", lambda: tmp_path)
    _, model = automatic(recipe)
    model.load_teacher(kdcore.SignalRequest())
    (folder,) = (tmp_path / "teachers").iterdir()
    _, model = automatic(recipe)
    waiting = Thread(target=model.load_teacher, args=[kdcore.SignalRequest()])
    with kdcore.locked(kdcore.lock_of(folder)):
        waiting.start()
        printed = ""
        while "waiting for another process that computes signals into" not in printed:
            assert waiting.is_alive()
            printed += capsys.readouterr().err
    waiting.join(60)
    assert not waiting.is_alive()


def test_cache_auto_without_a_teacher_is_refused(recipe: Path) -> None:
    with pytest.raises(kdcore.InputError, match="`cache: auto` requires the keys of the teacher"):
        kdcore.recipe_teachers(kdcore.load_recipe(recipe, ["teacher.path=null", "teacher.cache=auto"]))


def test_the_summary_states_the_cache_of_a_run(tmp_path: Path) -> None:
    from kdcore_teacher_cache.cache_rows import CacheRows

    run = type("Run", (), {"folder": tmp_path})
    for teacher, expected in (
        ("{path: t, cache: auto}", {"teacher's signals": "read from a cache (auto)"}),
        ("{path: t}", {}),
    ):
        text = f"run: {{name: r}}\nteacher: {teacher}\nstudent: {{}}\ntask: {{name: masked_lm, data: d}}\n"
        text += "losses: {hidden_mse: {}}\ntraining: {budget: {steps: 1}, batch_size: 8}\n"
        (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
        assert CacheRows().rows(run) == expected  # type: ignore[arg-type]
