"""Export students as Hugging Face folders in float32, with tokenizer and model card."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from kdcore.data.tokenizers import fit_tokenizer_settings
from kdcore.errors import InfrastructureError, InputError
from kdcore.models.base import Encoder
from kdcore.models.encoder import TransformersEncoder
from kdcore.models.heads import own_module
from kdcore.recipe.loading import Recipe, load_recipe
from kdcore.recipe.paths import package_path
from kdcore.recipe.schema import without_cache
from kdcore.recipe.yaml import dump_yaml
from kdcore.signals import MASKED_LM, Head
from kdcore.tasks.base import Task
from kdcore.training.checkpoint.format import checkpoint_folder, latest_checkpoint, read_state, require_good
from kdcore.training.engine.engine import check_weights, float32_student_of
from kdcore.training.loop.events import ValidationEvent
from kdcore.training.loop.plan import Plan
from kdcore.training.run.build import make_plan
from kdcore.training.run.run_folder import stored_data
from kdcore.utils.atomic import atomic_directory

TOKENIZER = "tokenizer"
"""Folder of a run with a copy of its tokenizer, because the data folder may be deleted during training."""


def export_student(
    folder: Path,
    student: Encoder,
    weights: Mapping[str, Tensor],
    plan: Plan,
    tokenizer: Path,
    step: int,
    validation: ValidationEvent | None,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Write the export to a staging folder, then rename it atomically.

    Args:
        folder: folder of the export; an existing one is replaced.
        student: the network whose configuration is written.
        weights: a float32 tensor for every name in the student's state.
        plan: the run's plan, whose task writes the parts of the export other than the network.
        tokenizer: the run's copy of the tokenizer; if there is none, the task writes it.
        step: number of completed steps.
        validation: held-out values at that step and their baselines, for the model card.
        check: function that raises an error if this run may no longer write there; called right before the rename.

    Raises:
        InfrastructureError: the disk fails.
    """
    try:
        with atomic_directory(folder, replace=True, check=check) as staging:
            student.export(staging, weights)
            _save_tokenizer(plan.task, tokenizer, staging)
            token_types = not isinstance(student, TransformersEncoder) or student.takes_token_types
            fit_tokenizer_settings(staging, student.info.max_length, token_types=token_types)
            plan.task.finish_export(staging)
            (staging / "README.md").write_text(model_card(student, plan, step, validation), encoding="utf-8")
            for file in staging.iterdir():
                file.chmod(0o666 & ~_umask())  # safetensors creates files that only their owner can read
    except (OSError, SafetensorError) as error:
        raise InfrastructureError(f"{folder}: the student cannot be written: {error}") from error


def _save_tokenizer(task: Task, stored: Path, folder: Path) -> None:
    if not stored.is_dir():
        task.save_tokenizer(folder)
        return
    for file in stored.iterdir():
        shutil.copyfile(file, folder / file.name)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def export_run(run: Path, folder: Path, step: int | None, *, allow_imports: bool = False) -> Path:
    """Export a run's student from the newest checkpoint, or from the checkpoint of `step`.

    The files under `imports:` of the run's recipe run only with `allow_imports`.

    Raises:
        InputError: the run or checkpoint does not exist, or `folder` is not empty.
    """
    folder = folder.absolute()
    if not (run / "recipe.yaml").is_file():
        raise InputError("no run was started in this folder", where=str(run), hint="pass a folder runs/NAME/ID")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError("the folder exists and is not empty", where=str(folder), hint="give a new folder")
    checkpoint = latest_checkpoint(run) if step is None else checkpoint_folder(run, step)
    if checkpoint is None or not checkpoint.is_dir():
        have = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
        raise InputError(
            "the run has no checkpoint" if step is None else f"the run has no checkpoint of step {step}",
            where=str(run),
            allowed=have or None,
        )
    if step is not None:
        require_good(checkpoint)
    state = read_state(checkpoint)
    recipe = load_recipe(run / "recipe.yaml", allow_imports=allow_imports)
    plan = make_plan(recipe, stored_data(run))
    weights = float32_student_of(checkpoint, state.zero_stage)
    student = plan.build_student(state.stage)
    check_weights(student, weights, checkpoint)
    export_student(folder, student, weights, plan, run / TOKENIZER, state.step, None)
    return folder


def model_card(student: Encoder, plan: Plan, step: int, validation: ValidationEvent | None) -> str:
    """Compose the export's README.md, with metadata for the Hugging Face hub."""
    settings, task, info = plan.recipe.settings, plan.task, student.info
    teachers = [
        _short(str(section.get("path", label))) + ("" if settings.teachers is None else f" (`{label}`)")
        for label, section in settings.models_of_teachers.items()
    ]
    cached = any("cache" in section for section in settings.models_of_teachers.values())
    parameters = sum(parameter.numel() for parameter in student.parameters())
    on_hub = [model.source for model in plan.teachers.values() if model.source and not os.path.isabs(model.source)]
    heads = task.heads(task.config)
    auto_class = _auto_class(student, plan)
    tags = {"library_name": "transformers", "pipeline_tag": _PIPELINES.get(auto_class, "feature-extraction")}
    usual = _USAGE.format(auto_class=auto_class, result=_RESULTS.get(auto_class, "logits"))
    own_tags, usage = task.card_usage() or ({}, usual)
    lines = [
        "---",
        *(f"{name}: {value}" for name, value in (tags | dict(own_tags)).items()),
        *([f"base_model: {on_hub[0] if len(on_hub) == 1 else on_hub}"] if on_hub else []),
        "tags: [kdcore, knowledge-distillation]",
        "---",
        f"# {settings.run.name}",
        "",
        f"An encoder with {info.num_layers} blocks, hidden size {info.hidden_size} and {parameters:,} parameters, "
        f"{'distilled' if teachers else 'trained'} with kdcore {metadata.version('kdcore')}.",
        "",
        *([f"**Warning:** {validation.warning}.", ""] if validation is not None and validation.findings else []),
        "| | |",
        "| --- | --- |",
        f"| {'teacher' if len(teachers) < 2 else 'teachers'} | {', '.join(teachers) or 'none'} |",
        *(["| signals of the teacher | read from a cache, not computed in the run |"] if cached else []),
        f"| losses | {', '.join(settings.losses)} |",
        f"| steps | {step:,} with {settings.training.batch_size} sequences each |",
        f"| fingerprint of the data | {task.fingerprint} |",
    ]
    for one in heads:
        head = info.head(one.name)
        if head is not None and head.name != MASKED_LM and head.name not in student.unexported_heads:
            outputs = "a number" if head.num_outputs == 1 else f"{head.num_outputs} numbers"
            own = "" if own_module(head, info) is None else "; load it with `kdcore.load_head`"
            lines.append(f"| predicts (`{head.name}`) | {', '.join(head.labels) or outputs}{own} |")
    if student.unexported_heads:
        lines.append(f"| heads left out | {', '.join(student.unexported_heads)} |")
    if validation is not None:
        without = {name: f"; without the text: {value:.5g}" for name, value in task.baselines("held_out").items()}
        lines += [
            f"| held-out {name} | {value:.5g}{validation.baselines_of(name)}{without.get(name, '')} |"
            for name, value in validation.values.items()
        ]
    lines += ["", "## Usage", "", "```python", usage.strip(), "```", ""]
    lines += ["## Recipe", "", "`kdcore-train` repeats the run with this recipe. Folders of the machine it ran on have"]
    lines += [
        "the last two parts of their paths.",
        "",
        "```yaml",
        dump_yaml(_repeatable(plan.recipe)).rstrip(),
        "```",
        "",
    ]
    if getattr(student, "pooler", None) is not None and not _pools_for_classes(student):
        lines += ["The pooler was not trained: no loss reads it.", ""]
    return "\n".join(lines)


_PIPELINES = {
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
}
_RESULTS = {"AutoModel": "last_hidden_state"}
_USAGE = """\
from transformers import AutoTokenizer, {auto_class}

path = "."  # this folder, or its name on the hub
tokenizer, model = AutoTokenizer.from_pretrained(path), {auto_class}.from_pretrained(path)
inputs = tokenizer("A sentence.", return_tensors="pt")
print(model(**inputs).{result})
"""


def _auto_class(student: Encoder, plan: Plan) -> str:
    """Return the transformers class that loads the export with the head that losses have trained, if any."""
    requests = plan.requests.student
    for head in plan.task.heads(plan.task.config):
        if head.name in requests.heads and head.name not in student.unexported_heads:
            return head.auto_class
    if requests.predicts_tokens and MASKED_LM not in student.unexported_heads:
        return Head.masked_lm(student.info.vocab_size).auto_class
    return "AutoModel"


def _repeatable(recipe: Recipe) -> Any:
    """Return the recipe's keys with the packages of components, but without folders on this machine.

    A teacher that can compute its signals is listed without its cache, which exists on this machine only.
    """
    data: Any = recipe.pinned_data()
    data = data | {"run": {key: one for key, one in data["run"].items() if key != "folder"}}
    if recipe.settings.teacher is not None:
        data["teacher"] = without_cache(data["teacher"])
    elif recipe.settings.teachers is not None:
        data["teachers"] = {label: without_cache(section) for label, section in data["teachers"].items()}
    return _without_folders(data)


def _pools_for_classes(student: Encoder) -> bool:
    """Return whether the pooler is part of the student's classification head."""
    if not isinstance(student, TransformersEncoder) or not student.architecture.class_head_pools:
        return False
    return type(student.network).__name__.endswith("ForSequenceClassification")


def _without_folders(value: Any) -> Any:
    """Replace absolute paths with their installed package, or drop the parts that are specific to this machine."""
    if isinstance(value, dict):
        return {key: _without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_folders(inner) for inner in value]
    if not isinstance(value, str) or not os.path.isabs(value):
        return value
    return package_path(value) or _short(value)


def _short(path: str) -> str:
    """Return a hub name unchanged, or only the last two parts of a folder's path."""
    return "/".join(Path(path).parts[-2:])
