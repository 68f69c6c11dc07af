"""`kdcore distil`: a student from a teacher and text, with task and losses chosen by the kind of the teacher."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcore.commands.base import Command, add_overrides
from kdcore.commands.train import train
from kdcore.errors import InputError
from kdcore.recipe.loading import load_recipe
from kdcore.recipe.paths import resolve_path
from kdcore.recipe.schema import DEFAULT_PREPARATION
from kdcore.registry import models, preparations

if TYPE_CHECKING:
    from kdcore.scripting.defaults import TeacherKind
    from kdcore.scripting.opened_run import Run


class DistilCommand(Command):
    """Distil a teacher into a student with fewer blocks, on your text.

    DATA is a file or folder of text, JSON Lines or Parquet, a folder of prepared data, or a data recipe. Task and
    losses depend on the teacher: packages have defaults for the kinds of teachers that they know. The complete recipe
    is printed, and stored in the run folder: `kdcore-train RUN/recipe.yaml run.id=NEW` repeats the run.

    Exit codes are those of `kdcore train`; the same command resumes the run.
    """

    help = "distil a teacher on text, with losses chosen by the kind of the teacher"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare TEACHER, DATA, overrides, --layers, --losses, --hours."""
        parser.add_argument("teacher", metavar="TEACHER", help="folder or hub name of the teacher")
        parser.add_argument("data", metavar="DATA", help="text: a file, a folder, prepared data, or a data recipe")
        parser.add_argument("--layers", type=int, default=3, metavar="N", help="blocks of the student; default: 3")
        parser.add_argument("--losses", metavar="NAME,...", help="losses; default: by the kind of the teacher")
        parser.add_argument("--hours", type=float, metavar="H", help="budget; default: 10 epochs, at most 1 hour")
        add_overrides(parser)

    def run(self, arguments: argparse.Namespace) -> int:
        """Print the recipe, and train it."""
        losses = None if arguments.losses is None else [name.strip() for name in arguments.losses.split(",")]
        made = _make_recipe(arguments.teacher, arguments.data, arguments.layers, losses, arguments.hours)
        print(load_recipe(made, arguments.overrides, allow_imports=True).resolved_yaml(), flush=True)
        result = train(made, arguments.overrides)
        print(f"run: {result.folder}\nstudent: {result.export}")
        return result.exit_code


def distil(
    teacher: str | Path,
    data: Any,
    layers: int = 3,
    losses: str | Sequence[str] | Mapping[str, Any] | None = None,
    hours: float | None = None,
    *,
    column: str = "text",
    max_texts: int = 1_000_000,
    **settings: Any,
) -> Run:
    """Distil a teacher into a student with fewer blocks, and open the run.

    The run's folder is `runs/distil-NAME/1` by default, NAME being that of the teacher's folder. The same call resumes
    an interrupted run, and opens a finished one; `run={"id": "2"}` starts another one.

    Args:
        teacher: folder or hub name of an encoder.
        data: texts (any iterable of str), a `datasets.Dataset`, a file or folder of text, JSON Lines or Parquet, a
            folder of prepared data, or a data recipe (a map or its file).
        layers: blocks of the student, which starts from as many of the teacher's, evenly spread.
        losses: names of losses, or the recipe's section `losses`; default: by the kind of the teacher.
        hours: hours of training; default: 10 passes over the text, at most 1 hour.
        column: column of the text in a Dataset, and key of the text in JSON Lines and Parquet.
        max_texts: number of texts to read from an iterable without a length, which may be endless.
        settings: further sections of the recipe, such as `seed=1` or `training={"batch_size": 64}`, merged into it.

    Raises:
        InputError: the teacher is not an encoder, there is no text, or a setting is wrong.
        TrainingError: training failed.
    """
    from kdcore.scripting.opened_run import open_run

    made = _make_recipe(teacher, data, layers, losses, hours, column, max_texts)
    training = settings.get("training")
    if isinstance(training, Mapping) and "budget" in training:
        del made["training"]["budget"]
    return open_run(train(made, settings).folder, allow_imports=True)


def _make_recipe(
    teacher: str | Path,
    data: Any,
    layers: int,
    losses: str | Sequence[str] | Mapping[str, Any] | None,
    hours: float | None,
    column: str = "text",
    max_texts: int = 1,
) -> dict[str, Any]:
    """Compose the recipe; arguments are those of `distil`."""
    import torch

    from kdcore.layers import resolve_pairs
    from kdcore.scripting.defaults import sections_for

    section, kind = _describe_teacher(teacher)
    if not isinstance(layers, int) or not 1 <= layers <= kind.info.num_layers:
        what = f"the student cannot have {layers} blocks"
        raise InputError(what, key="layers", allowed=f"1 to {kind.info.num_layers}, the teacher's blocks")
    try:
        chosen = dict(sections_for(kind))
    except InputError:
        if losses is None:
            raise
        chosen = {"task": {"name": "masked_lm"}}
    if losses is not None:
        listed = [losses] if isinstance(losses, str) else losses
        chosen["losses"] = dict(listed) if isinstance(listed, Mapping) else {name: {} for name in listed}
    task = dict(chosen["task"])
    if "data" not in task:
        task["data"] = _data_section(data, kind, column, max_texts)
    blocks = list(resolve_pairs("all", kind.info.num_layers, layers).teacher)
    dropout = {name: 0.0 for name in ("hidden_dropout_prob", "attention_probs_dropout_prob") if name in kind.config}
    named = {"name": section["name"]} if "name" in section else {}
    budget = {"epochs": 10, "hours": 1.0} if hours is None else {"hours": hours}
    return {
        "run": {"name": f"distil-{Path(kind.source).name}"},
        "teacher": section,
        "student": {
            **named,
            "config": {"num_hidden_layers": layers, **dropout},
            "initialize": {"from": "teacher", "blocks": blocks},
        },
        "optimizer": {"name": "adamw", "lr": 5e-4, "weight_decay": 0.01},
        "scheduler": {"name": "linear", "warmup": 0.06},
        "training": {
            "budget": budget,
            "batch_size": 32,
            "precision": "bf16" if torch.cuda.is_available() else "fp32",
        },
        **chosen,
        "task": task,
    }


def _describe_teacher(teacher: Any) -> tuple[dict[str, Any], TeacherKind]:
    """Find the model that reads the teacher; return the recipe's section and a description.

    Raises:
        InputError: no installed model reads it, such as a decoder; the error is that of `transformers`.
    """
    from kdcore.scripting.defaults import TeacherKind

    if not isinstance(teacher, str | Path):
        what = f"the teacher must be a folder or a hub name (found a {type(teacher).__name__})"
        raise InputError(what, hint="save it and its tokenizer with `save_pretrained(FOLDER)`")
    source = resolve_path(str(teacher), Path.cwd(), hub=True)
    first: InputError | None = None
    for name in sorted(models.names(), key=lambda name: name != "transformers"):
        try:
            cls = models.get(name)
            model = cls(cls.Config(path=source), "teacher", None)
        except (InputError, ValueError) as error:  # a package's model may have other keys
            first = first or (error if isinstance(error, InputError) else InputError(str(error), where=source))
            continue
        section = {"path": source} if name == "transformers" else {"name": name, "path": source}
        config = getattr(model, "hf_config", None)
        return section, TeacherKind(source, model.info, {} if config is None else config.to_dict())
    assert first is not None
    raise first


def _data_section(data: Any, kind: TeacherKind, column: str, max_texts: int) -> Any:
    """Return the recipe's `task.data`: prepared data, a data recipe, or one that the default preparation makes."""
    recipe: dict[str, Any] = {"tokenizer": kind.source, "sequence_length": min(128, kind.info.max_length)}
    recipe["held_out"] = 0.05
    if isinstance(data, Mapping) and not hasattr(data, "column_names"):  # that is a dictionary of Datasets
        return {**recipe, **data}
    if isinstance(data, str | Path):
        data = Path(resolve_path(str(data), Path.cwd()))
        if (data / "manifest.json").is_file() or data.suffix in (".yaml", ".yml"):
            return str(data)
        if not data.exists():
            hint = "give texts as a list, such as `[text]`"
            raise InputError("the data is neither a file nor a folder", where=str(data), hint=hint)
    elif not isinstance(data, Iterable):
        raise InputError(f"the data must be texts, a Dataset or a path (found a {type(data).__name__})")
    from kdcore.training.run.build import cache_folder

    return recipe | preparations.get(DEFAULT_PREPARATION).section_for(data, cache_folder(), column, max_texts)
