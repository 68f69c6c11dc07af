"""Trials: the individual measurements of a suite, each identified by a hash of everything that affects its outcome."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any, Literal

from kdcore_embeddings import EmbeddingTexts
from kdcore_supervised import LabelledData, LabelledTexts, TaggedPart

from kdcore import DataError, InputError, Problem, load_recipe, sha256_of_file
from kdcore_evaluation.run.compared_runs import short_name
from kdcore_evaluation.run.evaluated_models import EvaluatedModel, bytes_on_disk, teacher_fingerprint
from kdcore_evaluation.run.results import PREDICTIONS
from kdcore_evaluation.run.suite import EmbeddingsProbe, Suite, SuiteTask

TrialKind = Literal["finetune", "predictions", "cost", "masked_lm", "agreement", "linear", "retrieval", "embeddings"]

PROBES: tuple[TrialKind, ...] = ("cost", "masked_lm", "agreement", "linear", "retrieval", "embeddings")
_ID_LENGTH = 16


@dataclass(frozen=True)
class TaskData:
    """A task with properties of its labelled texts.

    Attributes:
        task: the task's section of the suite.
        fingerprint: SHA-256 of texts, labels and classes.
        baselines: scores of predictions that ignore the text, by metric, for each labelled part.
    """

    task: SuiteTask
    fingerprint: str
    baselines: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Trial:
    """One measurement of one model.

    Attributes:
        id: hash that identifies the measurement, regardless of the location of models and data.
        kind: `finetune`, `predictions` for a run that was trained on the task, or the name of a probe.
        model: the model.
        task: label of the task; None for probes without a task.
        settings: settings of a probe, or the recipe of a fine-tuning run without its section `run`.
        learning_rate, batch_size, seed: position in the grid; None for probes.
        data: fingerprint of labelled texts or of prepared data; None if no data is read.
    """

    id: str
    kind: TrialKind
    model: EvaluatedModel
    task: str | None
    settings: dict[str, Any]
    learning_rate: float | None = None
    batch_size: int | None = None
    seed: int | None = None
    data: str | None = None

    def __str__(self) -> str:
        what = (
            self.kind if self.kind != "finetune" else f"learning rate {self.learning_rate:g}, batch {self.batch_size}"
        )
        seed = f", seed {self.seed}" if self.seed is not None else ""
        return ": ".join(part for part in (self.model.name, self.task, what + seed) if part)


def read_task(label: str, task: SuiteTask) -> TaskData:
    """Read and check a task's texts before any trial starts.

    Raises:
        DataError: the texts cannot be used, or have no labelled validation part.
    """
    try:
        parts = task.data.read(Counter())
    except DataError as error:
        raise DataError(_in_suite(problem, f"tasks.{label}.data") for problem in error.problems) from error
    digest = hashlib.sha256(task.data.identity().encode())
    for part in parts:
        for piece in part.content():
            digest.update(piece)
    _require_validation(label, parts)
    return TaskData(task, digest.hexdigest(), {part.name: part.baselines() for part in parts if part.labelled})


def read_embedding_texts(label: str, texts: EmbeddingTexts, report: Counter[str]) -> str:
    """Read and check the texts of a task of the probe `embeddings`, and return their fingerprint.

    Raises:
        DataError: the texts cannot be used.
    """
    try:
        return texts.read(report).fingerprint()
    except DataError as error:
        own = f"probes.embeddings.tasks.{label}"
        raise DataError(_in_suite(replace(problem, key="task.data"), own) for problem in error.problems) from error


def _in_suite(problem: Problem, own: str) -> Problem:
    """Replace the key `task.data` in a problem of a recipe with `own`, the corresponding key in the suite."""
    key, hint = (text and text.replace("task.data", own) for text in (problem.key, problem.hint))
    return replace(problem, key=key, hint=hint)


def _require_validation(label: str, parts: Sequence[LabelledTexts | TaggedPart]) -> None:
    if not any(part.name == "validation" and part.labelled for part in parts):
        raise DataError(
            "no labelled texts for validation, which are needed to select the learning rate",
            key=f"tasks.{label}.data",
            hint="set `validation` to a file, or take a fraction of `train`: `split: {validation: 0.1, test: 0.1}`",
        )


def make_trials(
    suite: Suite, models: Sequence[EvaluatedModel], tasks: Mapping[str, TaskData], texts: Mapping[str, str]
) -> list[Trial]:
    """List all trials of a suite, probes first.

    Args:
        suite: the suite.
        models: the models.
        tasks: data of each task, by label.
        texts: fingerprints of the data of probes that read text, by kind; for `embeddings`, by kind and label.
    """
    trials = [trial for model in models for trial in _probes(suite, model, tasks, texts)]
    grid = list(product(suite.learning_rates, suite.batch_sizes, suite.seeds))
    for model in models:
        for label, known in tasks.items():
            own = _own_predictions(model, label, known)
            trials += [own] if own else [_finetuning(suite, model, label, known, *place) for place in grid]
    return trials


def _own_predictions(model: EvaluatedModel, label: str, known: TaskData) -> Trial | None:
    """Create the trial for a model whose run was trained on the task and has predictions; None for other models."""
    export = Path(model.source)
    run = export.parent.parent
    if model.role not in ("student", "teacher", "model") or export.parent.name != "exports":
        return None
    try:
        stored = json.loads((run / PREDICTIONS / "scores.json").read_text(encoding="utf-8"))["export"]
        section = load_recipe(run / "recipe.yaml").settings.task
        task = short_name("kdcore.tasks", str(section["name"]))
        if stored != f"exports/{export.name}" or task != known.task.data.task:
            return None
        data = type(known.task.data).model_validate(section["data"])
        same = read_task(label, SuiteTask(data=data)).fingerprint == known.fingerprint
    except (OSError, ValueError, KeyError, TypeError, InputError):
        return None
    if not same:
        return None
    settings = {"predictions": str(run / PREDICTIONS), "metric": known.task.main_metric}
    key = {"metric": known.task.main_metric}
    return _trial("predictions", model, label, settings, key, known.fingerprint)


def _probes(
    suite: Suite, model: EvaluatedModel, tasks: Mapping[str, TaskData], texts: Mapping[str, str]
) -> list[Trial]:
    found = []
    for kind in PROBES:
        probe = getattr(suite.probes, kind)
        if probe is None or (kind == "agreement" and model.teacher is None):
            continue
        if model.role == "random" and (kind == "cost" or (suite.all_tasks and suite.seeds)):
            continue  # fine-tuned instead; its cost equals that of the student, which has the same architecture
        settings = probe.model_dump(mode="json")
        if not settings.get("latency", True):
            del settings["latency"]  # not in earlier results
        if kind == "linear":
            for label, known in tasks.items():
                if not isinstance(known.task.data, LabelledData) or known.task.data.multi_label:
                    continue
                data = known.task.data
                newer = {"multi_label", *(["quoting"] if data.quoting is None else [])}  # not in earlier results
                task = known.task.model_dump(mode="json", exclude={"data": newer})
                own = settings | {"task": task}
                key = settings | {"max_length": known.task.data.max_length, "metric": known.task.main_metric}
                found.append(_trial(kind, model, label, own, key, known.fingerprint))
        elif isinstance(probe, EmbeddingsProbe):
            for label, texts_of_task in probe.tasks.items():
                own, key = texts_of_task.model_dump(mode="json"), {"modules": model.modules()}
                found.append(_trial(kind, model, label, own, key, texts[f"{kind} {label}"]))
        else:
            key = {name: value for name, value in settings.items() if name != "data"}
            found.append(_trial(kind, model, None, settings, key, texts.get(kind)))
    return found


def _trial(
    kind: TrialKind,
    model: EvaluatedModel,
    task: str | None,
    settings: dict[str, Any],
    key: dict[str, Any],
    data: str | None,
) -> Trial:
    against = teacher_fingerprint(model.teacher) if kind == "agreement" and model.teacher else None
    return Trial(_identify(kind, model, key, data, against), kind, model, task, settings, data=data)


def _finetuning(
    suite: Suite, model: EvaluatedModel, label: str, known: TaskData, lr: float, batch_size: int, seed: int
) -> Trial:
    recipe = finetuning_recipe(suite, model, known.task, lr, batch_size, seed)
    key = {**recipe, "student": None, "task": {"max_length": known.task.data.max_length, "metric": known.task.metric}}
    if model.imports:  # by content, so that the location of the files does not matter
        key["imports"] = [sha256_of_file(Path(file)) if Path(file).is_file() else file for file in model.imports]
    trial_id = _identify("finetune", model, key, known.fingerprint)
    return Trial(trial_id, "finetune", model, label, recipe, lr, batch_size, seed, known.fingerprint)


def finetuning_recipe(
    suite: Suite, model: EvaluatedModel, task: SuiteTask, lr: float, batch_size: int, seed: int
) -> dict[str, Any]:
    """Create the recipe of a fine-tuning run, without `run`; the student starts from the model and learns labels."""
    student: dict[str, Any] = {"name": model.component}
    if model.role == "random":
        student["config"] = model.config()
    else:
        student["initialize"] = {"from": model.source}
    data = task.data.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    section: dict[str, Any] = {"name": task.data.task, "data": {"tokenizer": model.source, **data}}
    if task.metric is not None:
        section["metric"] = task.metric
    further = suite.recipe
    defaults: dict[str, Any] = {
        "optimizer": {"name": "adamw", "weight_decay": 0.01},
        "scheduler": {"name": "linear", "warmup": 0.06},
        "validation": {"every": {"epochs": 1}},
        "checkpoints": {"every": {"epochs": 1}},
        "training": {},
    }
    sections = {key: _laid_on(defaults.get(key), further.get(key)) for key in {**defaults, **further}}
    sections["optimizer"] = {**sections["optimizer"], "lr": lr}
    budget = suite.budget.model_dump(exclude_none=True)
    sections["training"] = {**sections["training"], "batch_size": batch_size, "budget": budget}
    imports = {"imports": list(model.imports)} if model.imports else {}
    return {
        **imports,
        "seed": seed,
        "student": student,
        "task": section,
        "losses": {"classification": {}},
        **sections,
        "tracking": ["jsonl"],
    }


def _laid_on(default: Any, stated: Any) -> Any:
    """Merge the given keys over defaults, unless they name a component other than the default one."""
    if not isinstance(stated, dict) or not isinstance(default, dict):
        return default if stated is None else stated
    other = "name" in stated and stated["name"] != default.get("name", stated["name"])
    return dict(stated) if other else {**default, **stated}


def _identify(
    kind: TrialKind, model: EvaluatedModel, key: Mapping[str, Any], data: str | None, against: str | None = None
) -> str:
    whole = {
        "kind": kind,
        # Inference cost does not depend on the values of weights, so students with the same architecture share it.
        "model": [model.config(), bytes_on_disk(model.source)] if kind == "cost" else model.sha256,
        "random": model.role == "random",
        "settings": key,
        "data": data,
        "against": against,
        "kdcore": metadata.version("kdcore"),
    }
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:_ID_LENGTH]
