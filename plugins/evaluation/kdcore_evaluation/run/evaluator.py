"""From models and a suite to result rows: what is finished is not measured again."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

from kdcore.data.preparation import open_data
from kdcore.data.staging import locked
from kdcore.errors import EXIT_INPUT, EXIT_INTERRUPTED, EXIT_MACHINE, EXIT_TRAINING, InputError
from kdcore.evaluation.cells import Cell, make_cells, read_task
from kdcore.evaluation.outcomes import Outcome, collect_finetuning, place_of, read_outcome, rows_of
from kdcore.evaluation.pool import Job, run_jobs
from kdcore.evaluation.results import Row, merged_rows, read_rows, write_rows
from kdcore.evaluation.subjects import Subject
from kdcore.evaluation.suite import Suite
from kdcore.recipe.loading import load_recipe
from kdcore.recipe.yaml import dump_yaml
from kdcore.tasks.metrics import require_libraries

CELLS = "cells"
_SHOWN_CHARACTERS = 4000
_WORST_FIRST = (EXIT_INTERRUPTED, EXIT_INPUT, EXIT_TRAINING, EXIT_MACHINE)

Say = Callable[[str], None]
Launch = Callable[[Sequence[Path]], int]
Finished = Callable[[Path], bool]


@dataclass
class Evaluation:
    """How an evaluation ended.

    Attributes:
        folder: where everything lies.
        rows: all result rows of the models that were measured now.
        failed: exit code of each cell that has failed.
    """

    folder: Path
    rows: list[Row]
    failed: dict[str, int] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 if nothing failed; 130 if a cell was interrupted, which ends the evaluation; else 2 before 3 before 1."""
        codes = set(self.failed.values())
        return next((code for code in _WORST_FIRST if code in codes), EXIT_MACHINE if codes else 0)


class Evaluator:
    """Measures models by a suite, into a folder.

    Arguments of the constructor:
        suite: the suite.
        folder: gets `results.jsonl`, `results.parquet`, and a folder for each cell.
        cache: where prepared data is kept.
        say: told how it goes.
    """

    def __init__(self, suite: Suite, folder: Path, cache: Path, say: Say) -> None:
        self.suite = suite
        self.folder = folder.absolute()
        self.cache = cache
        self.say = say
        content = json.dumps(suite.model_dump(mode="json"), sort_keys=True)
        self._suite = (suite.name, hashlib.sha256(content.encode()).hexdigest())
        self._failed: dict[str, int] = {}
        self._outcomes: dict[str, Outcome] = {}
        self._before: list[Row] = []

    def run(
        self, subjects: Sequence[Subject], slots: int, launch: Launch | None = None, finished: Finished | None = None
    ) -> Evaluation:
        """Measure all that is not yet measured.

        Args:
            subjects: the models.
            slots: how many fine-tunings run at once.
            launch: trains recipes elsewhere, waits, and gives an exit code; without it they are trained here.
            finished: whether a run that was launched has come to its end.

        Raises:
            InputError: a task, its data or a model cannot be used, a library is missing, or the folder is in use.
        """
        if self.suite.all_tasks:
            require_libraries()
        self.tasks = {label: read_task(label, task) for label, task in self.suite.all_tasks.items()}
        texts = self._texts()
        self.cells = make_cells(self.suite, subjects, self.tasks, texts)
        with self._lock():
            self._check_recipes()
            self._remember_suite()
            self._before = read_rows(self.folder)
            self._write_rows()
            unfinished = self._unfinished()
            every = {cell.id for cell in self.cells}
            if len(unfinished) < len(every):
                self.say(f"{len(every) - len(unfinished)} of {len(every)} cells are finished already")
            try:
                self._run_probes([cell for cell in unfinished if cell.kind != "finetune"])
                cells = [cell for cell in unfinished if cell.kind == "finetune"]
                if EXIT_INPUT not in self._failed.values():
                    if launch is None or finished is None:
                        self._train(cells, slots)
                    else:
                        self._launch(cells, launch, finished)
            finally:
                rows = self._write_rows()
        return Evaluation(self.folder, rows, self._failed)

    def _texts(self) -> dict[str, str]:
        """Prepare what probes read, once and for all models; gives its fingerprints."""
        probes = self.suite.probes
        reading = {"masked_lm": probes.masked_lm, "agreement": probes.agreement}
        return {
            kind: open_data(probe.data, self.cache).fingerprint for kind, probe in reading.items() if probe is not None
        }

    def _lock(self) -> AbstractContextManager[int]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            what = f"the folder cannot be made: {error.strerror}"
            raise InputError(what, where=str(self.folder), hint="give another --output") from error
        taken = "another `kdcore evaluate` is at work in this folder"
        return locked(self.folder / ".lock", wait=False, taken=taken)

    def _remember_suite(self) -> None:
        text = dump_yaml(self.suite.model_dump(mode="json", exclude_none=True))
        (self.folder / "suite.yaml").write_text(text, encoding="utf-8")

    def _unfinished(self) -> list[Cell]:
        found = {cell.id: cell for cell in reversed(self.cells)}  # of equal ones the first
        return [cell for cell in self.cells if found[cell.id] is cell and read_outcome(self._place(cell)) is None]

    def _place(self, cell: Cell) -> Path:
        return self.folder / CELLS / cell.id

    def _recipe(self, cell: Cell) -> Path:
        return self.folder / "recipes" / f"{cell.id}.yaml"

    def _check_recipes(self) -> None:
        """One recipe of each model and task, so that mistakes are told at once."""
        seen: set[tuple[str, str | None]] = set()
        for cell in self.cells:
            if cell.kind == "finetune" and (cell.subject.sha256, cell.task) not in seen:
                seen.add((cell.subject.sha256, cell.task))
                load_recipe(self._write_recipe(cell)).components()
                self._tell_other_classes(cell)

    def _tell_other_classes(self, cell: Cell) -> None:
        theirs, task = cell.subject.classes(), self.tasks[cell.task or ""].task
        if theirs and theirs != task.data.classes:
            ours = ", ".join(task.data.classes) or "numbers"
            head = f"comes with a head for other labels ({', '.join(theirs)}) than those of {cell.task} ({ours})"
            self.say(f"{cell.subject.name} {head}: it gets a new one")

    def _write_recipe(self, cell: Cell) -> Path:
        path = self._recipe(cell)
        run = {"name": CELLS, "id": cell.id, "folder": str(self.folder)}
        text = f"# {cell}\n{dump_yaml({'run': run, **cell.settings})}"
        if path.is_file() and path.read_text(encoding="utf-8") != text and read_outcome(self._place(cell)) is None:
            shutil.rmtree(self._place(cell), ignore_errors=True)  # begun with the model or the data elsewhere
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def _run_probes(self, cells: Sequence[Cell]) -> None:
        """One process a model, one after the other: speed is measured alone."""
        jobs: dict[str, list[Cell]] = {}
        for cell in cells:
            jobs.setdefault(f"{cell.subject.role} {cell.subject.source}", []).append(cell)
        for own in jobs.values():
            subject = own[0].subject
            self.say(f"probing {subject.name}: {', '.join(cell.kind for cell in own)}")
            path = self.folder / "logs" / f"{own[0].id}.json"
            path.parent.mkdir(exist_ok=True)
            probes = [{"kind": cell.kind, "settings": cell.settings, "folder": str(self._place(cell))} for cell in own]
            job = {"source": subject.source, "teacher": subject.teacher, "cache": str(self.cache), "probes": probes}
            path.write_text(json.dumps(job), encoding="utf-8")
            arguments = ["-m", "kdcore.evaluation.probing", str(path)]
            run_jobs([Job(subject.name, arguments, path.with_suffix(".log"))], 1, self._probed)
            path.unlink()
            for cell in own:
                skipped = (read_outcome(self._place(cell)) or {}).get("skipped")
                if skipped is not None:
                    self.say(f"{cell}: left out: {skipped}")

    def _probed(self, job: Job, code: int) -> bool:
        if code:
            self._tell_failure(job, code)
        else:
            job.log.unlink(missing_ok=True)
        return code == 0

    def _train(self, cells: Sequence[Cell], slots: int) -> None:
        jobs, known = [], {cell.id: cell for cell in cells}
        for cell in cells:
            arguments = ["-m", "kdcore", "train", str(self._write_recipe(cell))]
            jobs.append(Job(cell.id, arguments, self.folder / "logs" / f"{cell.id}.log"))
        if jobs:
            self.say(f"{len(jobs)} fine-tunings, {min(slots, len(jobs))} at a time")
        count = 0

        def ended(job: Job, code: int) -> bool:
            nonlocal count
            count += 1
            cell = known[job.name]
            if code:
                self._tell_failure(replace(job, name=str(cell)), code)
                return code not in (EXIT_INPUT, EXIT_INTERRUPTED)
            self._collect(cell, f"{count} of {len(jobs)}")
            self._write_rows()
            job.log.unlink(missing_ok=True)
            return True

        run_jobs(jobs, slots, ended)

    def _launch(self, cells: Sequence[Cell], launch: Launch, finished: Finished) -> None:
        if not cells:
            return
        code = launch([self._write_recipe(cell) for cell in cells])
        for number, cell in enumerate(cells, 1):
            if finished(self._place(cell)):
                self._collect(cell, f"{number} of {len(cells)}")
            else:
                self._failed[str(cell)] = code or EXIT_MACHINE
                self.say(f"{cell}: not finished; see {self._place(cell)}")

    def _collect(self, cell: Cell, number: str) -> None:
        assert cell.task is not None
        collect_finetuning(self._place(cell), self.tasks[cell.task])
        outcome = read_outcome(self._place(cell)) or {}
        scores = [
            f"{one['split']} {one['value']:.4f}"
            for one in outcome["measured"]
            if one["metric"] == self.tasks[cell.task].task.main_metric
        ]
        self.say(f"{number}: {cell}: {self.tasks[cell.task].task.main_metric} {', '.join(scores)}")

    def _tell_failure(self, job: Job, code: int) -> None:
        self._failed[job.name] = code
        log = job.log.read_text(encoding="utf-8", errors="replace").strip()
        at = log.rfind("error: ")
        said = log[at:] if at >= 0 else log[-_SHOWN_CHARACTERS:]
        self.say(f"{job.name}: failed with exit code {code} ({job.log}):\n{said}")

    def _write_rows(self) -> list[Row]:
        """Write the rows of all that is finished, beside those of models that were measured before."""
        now: list[Row] = []
        for cell in self.cells:
            outcome = self._outcomes.get(cell.id) or read_outcome(self._place(cell))
            if outcome is not None:
                self._outcomes[cell.id] = outcome
                known = self.tasks[cell.task] if cell.task is not None else None
                now += rows_of(cell, outcome, known, self._suite, self.folder)
        measured = {(cell.subject.role, place_of(cell.subject, self.folder)) for cell in self.cells}
        write_rows(self.folder, merged_rows(self._before, now, measured))
        return now
