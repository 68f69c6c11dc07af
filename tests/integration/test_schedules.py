"""Values that follow a schedule: the probability of masks and weights of losses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kdcore
from kdcore import MaskedLM, read_metrics

SCHEDULE = [
    "task.masking={probability: [[0.25, 0.4], [0.75, 0.1]]}",
    "losses={hidden_mse: {layers: last, weight: [[0, 1], [0.5, 0]]}, masked_lm: {}}",
    "training.budget.steps=8",
    "validation.every=4",
]


def rows(run: Path) -> list[dict[str, Any]]:
    kept = ("train/loss", "train/masked_lm", "train/weight/hidden_mse", "train/mask_probability", "held_out/loss")
    return [{name: row[name] for name in ("step", *kept) if name in row} for row in read_metrics(run)]


def test_schedules_are_logged_and_do_not_depend_on_interruptions_and_micro_batches(
    small_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdcore.training.loop.trainer import Trainer

    drawn: list[tuple[str, tuple[int, ...], float]] = []
    batch_at = MaskedLM.batch_at

    def recorded(task: MaskedLM, split: Any, samples: np.ndarray, epochs: np.ndarray, fraction: float) -> Any:
        drawn.append((split, tuple(samples), fraction))
        return batch_at(task, split, samples, epochs, fraction)

    monkeypatch.setattr(MaskedLM, "batch_at", recorded)
    whole = kdcore.train(small_recipe, [*SCHEDULE, "run.id=whole"]).folder
    fractions = [fraction for split, samples, fraction in drawn if split == "train" and len(samples) == 8]
    assert fractions == [step / 8 for step in range(10)], "one step ahead, also at the end"
    assert {fraction for split, _, fraction in drawn if split == "held_out"} == {1.0}
    logged = [row for row in rows(whole) if "train/loss" in row]
    used = np.arange(8) / 8
    assert [row["train/mask_probability"] for row in logged] == pytest.approx(np.interp(used, [0.25, 0.75], [0.4, 0.1]))
    assert [row["train/weight/hidden_mse"] for row in logged] == pytest.approx(np.interp(used, [0, 0.5], [1, 0]))

    step_of = Trainer._train_step

    def stopping(trainer: Trainer, *arguments: Any) -> None:
        step_of(trainer, *arguments)
        trainer.context.shutdown.requested = trainer.step + 1 == 3

    monkeypatch.setattr(Trainer, "_train_step", stopping)
    results = [kdcore.train(small_recipe, [*SCHEDULE, "run.id=stopped"]) for _ in range(2)]
    assert [one.finished for one in results] == [False, True]
    assert rows(results[-1].folder) == rows(whole)

    monkeypatch.setattr(Trainer, "_train_step", step_of)
    split = kdcore.train(small_recipe, [*SCHEDULE, "run.id=split", "training.micro_batch_size=2"]).folder
    for one, other in zip(rows(split), rows(whole), strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_a_scheduled_probability_masks_like_the_constant_one(small_recipe: Path) -> None:
    from kdcore import load_recipe
    from kdcore.training.run.build import make_plan

    def task(probability: str) -> MaskedLM:
        made = make_plan(load_recipe(small_recipe, [f"task.masking.probability={probability}"])).task
        assert isinstance(made, MaskedLM)
        return made

    scheduled, constant, last = task("[[0.25, 0.4], [0.75, 0.1]]"), task("0.25"), task("0.1")
    samples, epochs = np.arange(20), np.full(20, 2)
    middle = scheduled.draw("train", samples, epochs, 0.5)
    expected = constant.draw("train", samples, epochs)
    assert middle.num_masked > 50
    assert middle.input_ids.equal(expected.input_ids)
    assert middle.masked_index.equal(expected.masked_index)
    held_out, expected = (one.batch("held_out", np.arange(4), np.zeros(4, np.int64)) for one in (scheduled, last))
    assert held_out.masked_index.equal(expected.masked_index)
    assert scheduled.scheduled(0.5) == {"mask_probability": pytest.approx(0.25)}
    assert constant.scheduled(0.5) == {}
    assert constant.draw("train", samples, epochs, 0.5).masked_index.equal(
        constant.batch("train", samples, epochs).masked_index
    )


def test_a_task_that_overrides_batch_is_masked_by_the_schedule(small_recipe: Path) -> None:
    from kdcore import Batch, load_recipe

    class Marked(MaskedLM):
        def batch(self, split: Any, samples: np.ndarray, epochs: np.ndarray) -> Batch:
            found = super().batch(split, samples, epochs)
            return replace(found, columns={**found.columns, "mark": found.lengths})  # type: ignore[dict-item]

    overrides = ["task.masking={probability: [[0, 0.4], [1, 0.1]]}"]
    component = load_recipe(small_recipe, overrides).components().task
    own, plain = (cls(component.config, 3, Path("cache")) for cls in (Marked, MaskedLM))
    samples, epochs = np.arange(20), np.zeros(20, np.int64)
    for fraction in (0.0, 0.5, 1.0):
        batch = own.draw("train", samples, epochs, fraction)
        assert "mark" in batch.columns
        assert batch.masked_index.equal(plain.draw("train", samples, epochs, fraction).masked_index)
    counts = [own.draw("train", samples, epochs, fraction).num_masked for fraction in (0.0, 0.5, 1.0)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[2]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("[[0.5, 0.1], [0.5, 0.2]]", "strictly increasing fractions"),
        ("[[0.5, 0.1]]", "at least two points"),
        ("[[0, 0.1], [1, 1.5]]", "less than or equal to 1"),
        ("[[0, 0.1], [1.5, 0.2]]", "less than or equal to 1"),
        ("often", "task.masking"),
    ],
)
def test_wrong_schedules_are_refused(
    value: str, words: str, small_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from kdcore.commands.main import main

    assert main(["recipe", "check", str(small_recipe), f"task.masking={{probability: {value}}}"]) == 2
    assert words in capsys.readouterr().err
