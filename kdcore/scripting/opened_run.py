"""Read the results in a run folder, even while the run is training."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import pyarrow as pa

from kdcore.commands.export import export_to
from kdcore.commands.summary import summarise
from kdcore.data.tokenizers import load_tokenizer
from kdcore.errors import InputError
from kdcore.recipe.loading import Recipe, load_recipe
from kdcore.recipe.paths import refuse_impossible
from kdcore.tasks.finished_run import load_encoder
from kdcore.trackers.jsonl import read_metrics
from kdcore.training.run.run_status import RunStatus, run_state, run_status

_FINISHED = ("best", "final")


def open_run(folder: str | Path, *, allow_imports: bool = False) -> Run:
    """Open a run folder, `runs/NAME/ID`; the run may still be training.

    Args:
        folder: the run folder.
        allow_imports: whether to run the Python files under `imports:` of the run's recipe (docs/trust.md).

    Raises:
        InputError: no run was started in the folder.
    """
    path = _path(folder, "folder").absolute()
    if not (path / "recipe.yaml").is_file():
        starting = (path / ".lock").exists()
        raise InputError(
            "the run in this folder is starting: it has no recipe yet" if starting else "the folder contains no run",
            where=str(path),
            hint="wait until its models are loaded" if starting else "pass a run folder, such as runs/NAME/ID",
        )
    return Run(path, allow_imports)


def _path(given: Any, key: str) -> Path:
    if not isinstance(given, str | Path):
        raise InputError(f"must be the path of a folder (found {repr(given)[:60]})", key=key)
    refuse_impossible(str(given))
    return Path(given)


class Run:
    """A run folder, opened for reading. Each call reads the current state of the folder.

    Attributes:
        folder: the run folder.
    """

    def __init__(self, folder: Path, allow_imports: bool = False) -> None:
        """Use `open_run`, which checks the folder."""
        self.folder = folder
        self._allow_imports = allow_imports

    @cached_property
    def recipe(self) -> Recipe:
        """The complete recipe stored by the run, with absolute paths."""
        return load_recipe(self.folder / "recipe.yaml", allow_imports=self._allow_imports)

    @property
    def finished(self) -> bool:
        """Whether the run has used up its budget. If not, it is still running, or was stopped and can be resumed."""
        return run_state(self.folder) == "finished"

    @property
    def status(self) -> RunStatus:
        """State, step and last losses, as `kdcore runs list` shows them."""
        return run_status(self.folder)

    def metrics(self) -> pa.Table:
        """Return the recorded metrics: the column `step` (int64) and a float64 column for each name.

        Values that were not recorded in a step are null. If the run has no metrics yet, the table has no rows.
        `metrics().to_pandas()` needs pandas.
        """
        rows = read_metrics(self.folder)
        names = dict.fromkeys(name for row in rows for name in row if name != "step")
        columns = {"step": pa.array([row["step"] for row in rows], pa.int64())}
        for name in names:
            values = [None if name not in row else float(row[name]) for row in rows]
            columns[name] = pa.array(values, pa.float64())
        return pa.table(columns)

    def exports(self) -> dict[str, Path]:
        """Return the exported students by name, such as `initial`, `best` and `final`."""
        return {path.name: path for path in sorted((self.folder / "exports").glob("*")) if path.is_dir()}

    def student(self, export: str | None = None, auto_class: str = "AutoModel") -> Any:
        """Load an exported student with transformers, in float32, on the CPU and in eval mode.

        Args:
            export: name of the export. The default for a finished run is `best` if a student was selected by its score,
                otherwise `final`.
            auto_class: class of transformers that loads it, such as `AutoModelForSequenceClassification`.

        Raises:
            InputError: there is no such export, for example because the run is still training.
        """
        found = self.exports()
        finished = _FINISHED if export is None and self.finished else ()
        name = next((name for name in finished if name in found), None) if export is None else export
        if name not in found:
            raise InputError(
                ("there is no finished student" if name is None else f"there is no export `{name}`")
                + f" (the run is {self._state()})",
                where=str(self.folder),
                allowed=list(found) or None,
                hint="`export(FOLDER)` exports the student of the newest checkpoint",
            )
        return load_encoder(str(found[name]), auto_class)

    def teacher(self, auto_class: str = "AutoModel") -> Any:
        """Load the teacher in the same way; of several teachers, load the one whose configuration the student copies.

        Raises:
            InputError: the recipe has no teacher with weights.
        """
        component = self.recipe.components().teachers.get(self.recipe.settings.students_teacher or "")
        source = None if component is None else component.cls(component.config, "teacher", None).source
        if source is None:
            raise InputError("the run has no teacher", where=str(self.folder))
        return load_encoder(source, auto_class)

    def tokenizer(self) -> Any:
        """Load the student's tokenizer from the run or, for runs of kdcore 0.1, from an export or the data.

        Raises:
            DataError: none of them exists.
        """
        copies = (self.folder / "tokenizer", *reversed(self.exports().values()))
        own = next((one for one in copies if (one / "tokenizer.json").is_file()), None)
        if own is None:  # a run of 0.1 without exports
            data = self.recipe.data["task"]["data"]
            own = data["tokenizer"] if isinstance(data, dict) else Path(data) / "tokenizer"
        return load_tokenizer(str(own))

    def summary(self) -> str:
        """Return the output of `kdcore summary`.

        Raises:
            InputError: the run is not finished.
        """
        return summarise(self.folder, allow_imports=self._allow_imports)

    def checkpoints(self) -> list[Path]:
        """Return the folders of all checkpoints, from the oldest step to the newest."""
        from kdcore.training.checkpoint.format import all_checkpoints

        return all_checkpoints(self.folder)

    def export(self, folder: str | Path, step: int | None = None) -> Path:
        """Export the student of a checkpoint to a new folder, and return its absolute path.

        Args:
            folder: the folder to write.
            step: step of the checkpoint; default: the newest.

        Raises:
            InputError: the folder is not empty, or the run has no such checkpoint.
        """
        if step is not None and type(step) is not int:
            raise InputError(f"must be a step number (found {step!r})", key="step")
        return export_to(_path(folder, "folder"), self.folder, step, allow_imports=self._allow_imports)

    def compare(self, others: Run | str | Path | Sequence[Run | str | Path] = (), **options: Any) -> Any:
        """Compare this run with others, like `kdcore compare`; this calls `kdcore_evaluation.compare`.

        Args:
            others: further runs, or their folders.
            options: arguments `by`, `over` and `results` of that function.

        Raises:
            InputError: the package kdcore-evaluation is not installed, or a folder contains no run.
        """
        try:
            evaluation = importlib.import_module("kdcore_evaluation")
        except ModuleNotFoundError as error:
            what, hint = "comparing runs needs the package kdcore-evaluation", "Run `pip install kdcore-evaluation`."
            raise InputError(what, hint=hint) from error
        more = others if isinstance(others, Sequence) and not isinstance(others, str) else [others]
        folders = [self.folder, *(one.folder if isinstance(one, Run) else _path(one, "others") for one in more)]
        return evaluation.compare(folders, **options)

    def __repr__(self) -> str:
        return f"<kdcore.Run {self._place()}: {self._state()}>"

    def _repr_html_(self) -> str:
        """Return a table of the run's state for notebooks."""
        status = self.status
        losses = {"training loss": status.loss, "held-out loss": status.held_out}
        rows = {"run": self._place(), "state": self._state(status)}
        rows |= {title: f"{value:.5g}" for title, value in losses.items() if value is not None}
        rows["losses"] = ", ".join(self.recipe.settings.losses)
        rows["exports"] = ", ".join(self.exports()) or "none"
        cells = "".join(f"<tr><th>{escape(title)}</th><td>{escape(text)}</td></tr>" for title, text in rows.items())
        return f"<table>{cells}</table>"

    def _place(self) -> str:
        near = self.folder.is_relative_to(Path.cwd())
        return str(self.folder.relative_to(Path.cwd()) if near else self.folder)

    def _state(self, status: RunStatus | None = None) -> str:
        status = self.status if status is None else status
        limit = "" if status.max_steps is None else f" of {status.max_steps}"
        step = "no step" if status.step is None else f"step {status.step}{limit}"
        return f"{status.state}{f' ({status.note})' if status.note else ''}, {step}"
