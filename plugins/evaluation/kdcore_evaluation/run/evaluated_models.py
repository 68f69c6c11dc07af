"""Find the models to evaluate: exports of runs, model folders, hub models, and their references."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal
from unicodedata import normalize

from kdcore import DataError, InputError, load_recipe, resolve_path, sha256_of_file
from kdcore_evaluation.run.suite import Reference

ModelRole = Literal["student", "initial", "teacher", "random", "model"]

_WEIGHTS = ("*.safetensors", "*.bin")
_MODEL_FILES = (*_WEIGHTS, "*.json", "*.txt", "*.model", "*.py")
_MODULE_FILES = ("modules.json", "*/config.json", "*/*.safetensors", "*/*.bin")
"""Files of the sentence-transformers modules after the encoder."""
_INITIAL = "initial"
_BUDGET = re.compile(r"budget-(\d*\.?\d+)")
_NOT_SIZES = (
    "architectures",
    "auto_map",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "_name_or_path",
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
)


@dataclass(frozen=True)
class EvaluatedModel:
    """A model to measure.

    Attributes:
        name: name in tables.
        role: `student` of a run, `initial` (the student before training), `teacher` of a run, `random` (a student's
            architecture with random weights), or `model` for others.
        source: folder of the weights; for random weights, the folder of the student with the same architecture.
        given: the source as given by the user: a folder or a hub name.
        component: name of the kdcore model that reads it.
        imports: files that register `component` if it is not installed.
        run: folder of the run that exported it.
        export: name of the export, such as `final` or `budget-0.5`.
        teacher: folder or hub name of the run's teacher; if there are several, the teacher whose configuration the
            student uses.
        teacher_component: name of the kdcore model that reads the teacher.
        sha256: hash of weights, configuration and tokenizer; without the weights if they are random.
    """

    name: str
    role: ModelRole
    source: str
    given: str
    component: str
    imports: tuple[str, ...]
    run: Path | None
    export: str | None
    teacher: str | None
    teacher_component: str | None
    sha256: str

    @property
    def share(self) -> float | None:
        """Fraction of the run's budget at export: 0 for `initial`, 1 for `final`, None if unknown."""
        match = _BUDGET.fullmatch(self.export or "")
        return float(match[1]) if match else {_INITIAL: 0.0, "final": 1.0}.get(self.export or "")

    def classes(self) -> tuple[str, ...]:
        """Return the classes of the model's classification head in order, in normal form C; empty without a head."""
        stated = self._stated()
        if self.role == "random" or not any("SequenceClass" in name for name in stated.get("architectures") or ()):
            return ()
        labels: dict[str, str] = stated.get("id2label") or {}
        return tuple(normalize("NFC", labels[key]) for key in sorted(labels, key=int))

    def config(self) -> dict[str, Any]:
        """Return the keys of config.json that define the architecture, to build it with random weights."""
        stated = self._stated()
        known = _known_keys(str(stated.get("model_type"))) or stated.keys()
        return {
            key: value
            for key, value in stated.items()
            if key == "model_type" or (key in known and key not in _NOT_SIZES and value is not None)
        }

    def modules(self) -> str:
        """Return the SHA-256 of the sentence-transformers files after the encoder, such as its pooling."""
        return _digest(Path(self.source), _MODULE_FILES)

    def _stated(self) -> dict[str, Any]:
        stated: dict[str, Any] = json.loads((Path(self.source) / "config.json").read_text(encoding="utf-8"))
        return stated


def bytes_on_disk(folder: str) -> int:
    """Return the total size of a model's weight files in bytes."""
    return sum(path.stat().st_size for pattern in _WEIGHTS for path in Path(folder).glob(pattern))


@cache
def _known_keys(model_type: str) -> frozenset[str] | None:
    """Return the keys that a transformers configuration class defines; None for unknown types."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.for_model(model_type)
    except ValueError:
        return None
    return frozenset(config.to_dict()) | frozenset(config.attribute_map)


def find_models(
    places: Sequence[str],
    exports: Sequence[str] | None,
    references: Iterable[Reference],
    remark: Callable[[str], None],
    *,
    allow_imports: bool = False,
) -> list[EvaluatedModel]:
    """Find all models named on a command line.

    Args:
        places: run folders, folders of runs, model folders and hub names.
        exports: names of the exports to take from each run, or `all` for all except `initial`. None selects `best`; if
            it is missing, `final`; if both are missing, the export with the largest fraction of the budget.
        references: reference models to add.
        remark: called with each warning.
        allow_imports: whether to run the files under `imports:` of the runs' recipes.

    Raises:
        InputError: one of `places` contains nothing to evaluate.
    """
    found: list[EvaluatedModel] = []
    for place in places:
        path = Path(place)
        runs = [path] if _is_run(path) else _runs_below(path)
        if runs:
            of_runs = [model for run in runs for model in _of_run(run, exports, remark, allow_imports)]
            if not of_runs:
                raise InputError(
                    "nothing to evaluate: no student has been exported" + _wanted(exports),
                    where=place,
                    hint="let the run finish, or export a checkpoint: kdcore export RUN FOLDER",
                )
            found += of_runs
        else:
            found.append(_of_folder(place))
    return _unique([*found, *_references(found, set(references), remark)])


def _wanted(exports: Sequence[str] | None) -> str:
    return f" as {', '.join(exports)}" if exports and "all" not in exports else ""


def _is_run(path: Path) -> bool:
    return (path / "recipe.yaml").is_file()


def _runs_below(path: Path, depth: int = 2) -> list[Path]:
    """Find runs in a folder of runs, such as `runs` or `runs/NAME`."""
    if not path.is_dir() or (path / "config.json").is_file():
        return []
    found = []
    for inner in sorted(path.iterdir()):
        if inner.is_dir() and not inner.name.startswith("."):
            found += [inner] if _is_run(inner) else _runs_below(inner, depth - 1) if depth > 1 else []
    return found


def _of_run(
    run: Path, exports: Sequence[str] | None, remark: Callable[[str], None], allow_imports: bool
) -> list[EvaluatedModel]:
    folder = run / "exports"
    there = (
        [path.name for path in sorted(folder.iterdir()) if (path / "config.json").is_file()] if folder.is_dir() else []
    )
    trained = [name for name in there if name != _INITIAL]
    if not trained and _INITIAL not in (exports or ()):
        remark(f"{run}: skipped: no student was exported yet")
        return []
    if exports is None:
        chosen = [name for name in ("best", "final") if name in there][:1] or _latest(trained)
        if "final" not in there:
            remark(f"{run}: unfinished: no exports/final; evaluating {' and '.join(chosen)}")
    elif "all" in exports:
        chosen = trained
    else:
        chosen = [name for name in exports if name in there]
        for name in exports:
            if name not in there:
                remark(f"{run}: no exports/{name} (found {', '.join(there)})")
    recipe = load_recipe(run / "recipe.yaml", allow_imports=allow_imports)
    settings = recipe.settings
    if recipe.allowed_imports != settings.imports:
        remark(f"{recipe.path}: imports: skipped {', '.join(settings.imports)}; `--allow-imports` runs such files")
    teacher = settings.models_of_teachers.get(settings.students_teacher or "", {})
    path = teacher.get("path")
    return [
        EvaluatedModel(
            name=f"{settings.run.name}/{settings.run.id}" + ("" if name == "final" else f" {name}"),
            role="student",
            source=str((folder / name).absolute()),
            given=str((folder / name).absolute()),
            component=str(settings.student.get("name", "transformers")),
            imports=tuple(recipe.allowed_imports),
            run=run.absolute(),
            export=name,
            teacher=resolve_path(str(path), run, hub=True) if path is not None else None,
            teacher_component=str(teacher.get("name", "transformers")) if path is not None else None,
            sha256=fingerprint(folder / name),
        )
        for name in chosen
    ]


def _latest(there: Sequence[str]) -> list[str]:
    """Return the export with the largest fraction of the budget."""
    shares = {name: float(match[1]) for name in there if (match := _BUDGET.fullmatch(name))}
    return [max(shares, key=shares.__getitem__)] if shares else list(there[:1])


def _of_folder(place: str, role: ModelRole = "model", component: str = "transformers") -> EvaluatedModel:
    """Describe a model folder, or a hub model after downloading it."""
    folder = Path(place)
    if not folder.is_dir():
        folder = _fetch(place)
    elif not (folder / "config.json").is_file():
        hint = "name a run folder (runs/NAME/ID), a folder of runs, a Hugging Face model folder or a hub model"
        what = (
            "this folder is empty"
            if not any(folder.iterdir())
            else "this is neither a run, nor a folder of runs, nor a model"
        )
        raise InputError(what, where=place, hint=hint)
    name = place if folder != Path(place) else "/".join(Path(os.path.abspath(place)).parts[-2:])
    given = place if folder != Path(place) else str(folder.absolute())
    source = str(folder.absolute())
    return EvaluatedModel(name, role, source, given, component, (), None, None, None, None, fingerprint(folder))


def _fetch(name: str) -> Path:
    from huggingface_hub import snapshot_download

    hint = "check the spelling; without network access, name a folder, or download the model first: hf download NAME"
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise DataError("no such folder", where=name, hint="pass a run folder, a model folder or a hub model")
    try:
        return Path(
            snapshot_download(
                name, allow_patterns=[*_MODEL_FILES, *_MODULE_FILES], ignore_patterns=["onnx/*", "openvino/*"]
            )
        )
    except Exception as error:  # network, hub and cache raise many types
        lines = str(error).strip().splitlines() or [type(error).__name__]
        what = f"no such folder, and the hub returned no such model ({lines[0]})"
        raise DataError(what, where=name, hint=hint) from error


def fingerprint(folder: Path) -> str:
    """Return the SHA-256 of weights, configuration and tokenizer files."""
    return _digest(folder, _MODEL_FILES)


@cache
def teacher_fingerprint(given: str) -> str:
    """Return the fingerprint of a teacher's folder, or its hub name."""
    return fingerprint(Path(given)) if Path(given).is_dir() else given


def _digest(folder: Path, patterns: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        digest.update(f"{path.relative_to(folder).as_posix()} {sha256_of_file(path)}\n".encode())
    return digest.hexdigest()


def _references(
    found: Sequence[EvaluatedModel], wanted: set[Reference], remark: Callable[[str], None]
) -> list[EvaluatedModel]:
    added: list[EvaluatedModel] = []
    students = [model for model in found if model.role == "student"]
    if wanted and not students:
        remark("the suite's `references` are skipped: they need runs, and none is given")
    for model in students:
        if _INITIAL in wanted and (initial := _initial(model, remark)) is not None:
            added.append(initial)
        if "teacher" in wanted and model.teacher is not None and model.teacher_component is not None:
            added.append(_of_folder(model.teacher, "teacher", model.teacher_component))
        if "random" in wanted:
            added.append(_random(model))
    several = len({model.teacher for model in students}) > 1  # one model with random weights represents all of them
    return [replace(one, teacher=None) if one.role == "random" and several else one for one in added]


def _initial(model: EvaluatedModel, remark: Callable[[str], None]) -> EvaluatedModel | None:
    assert model.run is not None
    folder = model.run / "exports" / _INITIAL
    if not (folder / "config.json").is_file():
        remark(f"{model.run}: the suite's reference `initial` is skipped: no exports/{_INITIAL}")
        return None
    source, name = str(folder), f"{model.run.parent.name}/{model.run.name} before training"
    digest = fingerprint(folder)
    return replace(model, name=name, role="initial", source=source, given=source, export=_INITIAL, sha256=digest)


def _random(model: EvaluatedModel) -> EvaluatedModel:
    config = model.config()
    digest = hashlib.sha256(json.dumps([model.component, config], sort_keys=True).encode())
    digest.update(_digest(Path(model.source), ("token*.json", "vocab.*", "special*.json", "*.model")).encode())
    layers = config.get("num_hidden_layers", config.get("n_layers", "?"))
    width = config.get("hidden_size", config.get("dim", "?"))
    return replace(
        model,
        name=f"random weights ({config.get('model_type', 'model')}, {layers} blocks of {width})",
        role="random",
        run=None,
        export=None,
        sha256=digest.hexdigest(),
    )


def _unique(models: Iterable[EvaluatedModel]) -> list[EvaluatedModel]:
    """Remove duplicates, because runs often share their teacher and architecture."""
    found: dict[tuple[str, str, str | None], EvaluatedModel] = {}
    for model in models:
        key = (model.role, model.sha256, model.source if model.role in ("student", "initial", "model") else None)
        found.setdefault(key, model)
    return list(found.values())
