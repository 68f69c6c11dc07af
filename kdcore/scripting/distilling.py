"""Implement `kdcore distil`: distil a teacher on text, with a task and losses that suit the teacher."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from kdcore.commands.base import Command, add_overrides
from kdcore.commands.train import train
from kdcore.errors import InputError
from kdcore.recipe.checking import checked_or_raise
from kdcore.recipe.loading import load_recipe, override_texts
from kdcore.recipe.merging import load_merged
from kdcore.recipe.paths import resolve_path
from kdcore.recipe.schema import DEFAULT_PREPARATION, MERGE_DEFAULTS, ComponentConfig
from kdcore.recipe.yaml import Origin
from kdcore.registry import models, preparations

if TYPE_CHECKING:
    from kdcore.scripting.defaults import GivenData, TeacherKind
    from kdcore.scripting.opened_run import Run


class _DistilArguments(ComponentConfig):
    """Arguments of `distil` whose types are checked first."""

    layers: int = Field(ge=1)
    losses: str | list[str] | dict[str, Any] | None = None
    hours: float | None = Field(None, gt=0)
    column: str
    max_texts: int = Field(ge=1)


class DistilCommand(Command):
    """Distil a teacher into a student with fewer blocks, on your text.

    DATA is a file or folder of text, JSON Lines or Parquet, labelled texts in CSV, TSV or CoNLL files, a folder of
    prepared data, or a data recipe. The task and the losses depend on the teacher and the data. Packages define
    defaults for the kinds of teachers that they support. The complete recipe is printed, and stored in the run folder:
    `kdcore-train RUN/recipe.yaml run.id=NEW` repeats the run.

    Exit codes are those of `kdcore train`; the same command resumes the run.
    """

    help = "distil a teacher on text, with losses chosen by the kind of the teacher"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare TEACHER, DATA, overrides, --layers, --losses, --hours."""
        parser.add_argument("teacher", metavar="TEACHER", help="folder or hub name of the teacher")
        parser.add_argument("data", metavar="DATA", help="text: a file, a folder, prepared data, or a data recipe")
        parser.add_argument("--layers", type=int, default=3, metavar="N", help="blocks of the student; default: 3")
        parser.add_argument("--losses", metavar="NAME,...", help="losses; default: chosen by the kind of teacher")
        parser.add_argument("--hours", type=float, metavar="H", help="budget; default: 10 epochs, at most 1 hour")
        add_overrides(parser)

    def run(self, arguments: argparse.Namespace) -> int:
        """Print the recipe, and train it."""
        losses = None if arguments.losses is None else [name.strip() for name in arguments.losses.split(",")]
        given = arguments.teacher, arguments.data, arguments.layers, losses, arguments.hours
        made = _make_recipe(*given, arguments.overrides)
        print(load_recipe(made, arguments.overrides, allow_imports=True).resolved_yaml(), flush=True)
        result = train(made, arguments.overrides)
        stopped = "none yet: the same command resumes, and `kdcore export RUN FOLDER` exports the current one"
        print(f"run: {result.folder}\nstudent: {result.export or ('none' if result.finished else stopped)}")
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

    The run's folder is `runs/distil-NAME/1` by default, where NAME is the last two parts of the teacher's path. The
    same call resumes an interrupted run, and opens a finished one; `run={"id": "2"}` starts another run. If a
    callback's `should_stop` or a signal other than Ctrl-C stops the run, the returned run is not `finished`.

    Args:
        teacher: folder or hub name of an encoder.
        data: texts (any iterable of str), a `datasets.Dataset`, a file or folder of text, JSON Lines or Parquet, a
            folder of prepared data, or a data recipe (a map or its file).
        layers: number of blocks of the student, which are initialized from evenly spaced blocks of the teacher.
        losses: names of losses, or the recipe's section `losses`; default: chosen according to the kind of teacher.
        hours: hours of training; default: the budget in `settings`, or 10 passes over the text, at most 1 hour.
        column: column of the text in a Dataset, and key of the text in JSON Lines and Parquet.
        max_texts: number of texts to read from an iterable without a length, which may be endless.
        settings: further sections of the recipe, such as `seed=1` or `training={"batch_size": 64}`, merged into it.

    Raises:
        InputError: the teacher is not an encoder, there is no text, or a setting is wrong.
        TrainingError: training failed.
        KeyboardInterrupt: Ctrl-C was pressed. A checkpoint has been written.
    """
    from kdcore.scripting.opened_run import open_run

    result = train(_make_recipe(teacher, data, layers, losses, hours, settings, column, max_texts), settings)
    if result.interrupted:
        raise KeyboardInterrupt(f"{result.folder}: stopped with a checkpoint; the same call continues")
    return open_run(result.folder, allow_imports=True)


def _make_recipe(
    teacher: str | Path,
    data: Any,
    layers: int,
    losses: str | Sequence[str] | Mapping[str, Any] | None,
    hours: float | None,
    overrides: Sequence[str] | Mapping[str, Any],
    column: str = "text",
    max_texts: int = 1,
) -> dict[str, Any]:
    """Compose the recipe to which `overrides` are applied; the other arguments are those of `distil`.

    Everything is checked before texts are read and stored.
    """
    from kdcore.training.run.build import cache_folder

    values = {"layers": layers, "losses": losses, "hours": hours, "column": column, "max_texts": max_texts}
    given = checked_or_raise(_DistilArguments, load_merged(values, [], {}).root.plain(), lambda place: Origin()).losses
    source = _given_data(data, column, cache_folder())
    section, kind = _describe_teacher(teacher)
    if not 1 <= layers <= kind.info.num_layers:
        what = f"the student cannot have {layers} blocks"
        raise InputError(what, key="layers", allowed=f"1 to {kind.info.num_layers}, the teacher's blocks")
    compose = partial(_compose, _base(section, kind, layers), kind, given, hours, overrides)
    if source.path is None or isinstance(data, str | Path):
        return compose(source, partial(_corpora, source.path, column))
    unread = {"corpora": [{"name": "text", "path": str(Path.cwd())}]}
    load_recipe(compose(source, lambda: unread), overrides, allow_imports=True).components()  # reports mistakes
    corpora = _corpora(data, column, max_texts)
    stored = replace(source, path=Path(corpora["corpora"][0]["path"]), column="text")
    return compose(stored, lambda: corpora)


def _given_data(data: Any, column: str, cache: Path) -> GivenData:
    """Describe the data without reading it."""
    from kdcore.scripting.defaults import GivenData

    if isinstance(data, Mapping) and not hasattr(data, "column_names"):  # that is a dictionary of Datasets
        return GivenData(None, column, data)
    if not isinstance(data, str | Path):
        if not isinstance(data, Iterable):
            raise InputError(f"the data must be texts, a Dataset or a path (found a {type(data).__name__})")
        return GivenData(cache / "texts.jsonl", column)
    path = Path(resolve_path(str(data), Path.cwd()))
    if (path / "manifest.json").is_file() or path.suffix in (".yaml", ".yml"):
        return GivenData(None, column, str(path))
    if not path.exists():
        raise InputError("the data is neither a file nor a folder", where=str(path))
    return GivenData(path, column)


def _base(section: Mapping[str, Any], kind: TeacherKind, layers: int) -> dict[str, Any]:
    """Return the sections that suit every teacher: models, optimizer, batch and precision."""
    import torch

    from kdcore.layers import resolve_pairs

    blocks = list(resolve_pairs("all", kind.info.num_layers, layers).teacher)
    dropout = {name: 0.0 for name in ("hidden_dropout_prob", "attention_probs_dropout_prob") if name in kind.config}
    return {
        # Folders are often called `model`.
        "run": {"name": "distil-" + re.sub(r"[^\w.]+", "-", "-".join(Path(kind.source).parts[-2:])).strip("-.")[-100:]},
        "teacher": section,
        "student": {key: value for key, value in section.items() if key == "name"}
        | {"config": {"num_hidden_layers": layers, **dropout}, "initialize": {"from": "teacher", "blocks": blocks}},
        "optimizer": {"name": "adamw", "lr": 5e-4, "weight_decay": 0.01},
        "scheduler": {"name": "linear", "warmup": 0.06},
        "training": {"batch_size": 32, "precision": "bf16" if torch.cuda.is_available() else "fp32"},
    }


def _compose(
    base: Mapping[str, Any],
    kind: TeacherKind,
    losses: str | list[str] | dict[str, Any] | None,
    hours: float | None,
    overrides: Sequence[str] | Mapping[str, Any],
    source: GivenData,
    corpora: Callable[[], Mapping[str, Any]],
) -> dict[str, Any]:
    """Merge the defaults of packages over `base`, and add budget and data; `corpora` returns the corpora of texts."""
    from kdcore.scripting.defaults import sections_for

    chosen: dict[str, Any] = {"task": {"name": "masked_lm"}}
    with suppress(*([] if losses is None else [InputError])):
        chosen = dict(sections_for(kind, source))
    if losses is not None:
        names = [losses] if isinstance(losses, str) else losses
        chosen["losses"] = names if isinstance(names, dict) else {name: {} for name in names}
    made: dict[str, Any] = load_merged(base, override_texts(chosen), MERGE_DEFAULTS).root.plain()
    usual = made["training"].pop("budget", {"epochs": 10, "hours": 1.0})
    merged = load_merged(made, override_texts(overrides), MERGE_DEFAULTS).root.plain()
    limits = {"steps", "epochs", "hours"} & _inside(merged, "training", "budget").keys()
    if hours is not None and limits:
        raise InputError("the budget is set twice: by `hours` and in training.budget", hint="set it there only")
    if not limits:
        made["training"]["budget"] = usual if hours is None else {"hours": hours}
    if _inside(merged, "task").get("name") != made["task"]["name"]:
        made["task"] = {"name": _inside(merged, "task").get("name")}  # the keys of the other task would be dropped
    if "data" not in made["task"]:
        recipe = {"tokenizer": kind.source, "sequence_length": min(128, kind.info.max_length), "held_out": 0.05}
        stated = corpora() if source.section is None else source.section
        made["task"]["data"] = stated if isinstance(stated, str) else recipe | dict(stated)
    return made


def _corpora(data: Any, column: str, max_texts: int = 1) -> Mapping[str, Any]:
    """Return the corpora of a file, a folder or texts, which are stored first."""
    from kdcore.training.run.build import cache_folder

    return preparations.get(DEFAULT_PREPARATION).section_for(data, cache_folder(), column, max_texts)  # type: ignore[no-any-return]


def _inside(stated: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """Return a nested map; empty if there is none."""
    for key in keys:
        stated = inner if isinstance(inner := stated.get(key), Mapping) else {}
    return stated


def _describe_teacher(teacher: Any) -> tuple[dict[str, Any], TeacherKind]:
    """Find the model that can read the teacher; return its recipe section and a description.

    Raises:
        InputError: no installed model can read it, for example because it is a decoder; the error is from
            `transformers`.
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
            if isinstance(error.__cause__, OSError) and not Path(source).exists():
                break  # nothing was found; each further model would query the hub again
            continue
        section = {"path": source} if name == "transformers" else {"name": name, "path": source}
        config = getattr(model, "hf_config", None)
        return section, TeacherKind(source, model.info, {} if config is None else config.to_dict())
    assert first is not None
    raise first
