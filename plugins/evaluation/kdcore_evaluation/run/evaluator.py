"""Evaluate models with a suite and write result rows; finished trials are not repeated."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

from kdcore_supervised import require_libraries

from kdcore import (
    EXIT_INPUT,
    EXIT_INTERRUPTED,
    EXIT_MACHINE,
    EXIT_TRAINING,
    InputError,
    dump_yaml,
    load_recipe,
    locked,
    open_data,
)
from kdcore_evaluation.run.evaluated_models import EvaluatedModel
from kdcore_evaluation.run.outcomes import Outcome, collect_finetuning, place_of, read_outcome, rows_of
from kdcore_evaluation.run.pool import ChildProcess, run_children
from kdcore_evaluation.run.results import PREDICTIONS, TRIALS_FOLDER, ResultRow, merged_rows, read_rows, write_rows
from kdcore_evaluation.run.suite import Suite
from kdcore_evaluation.run.trials import Trial, make_trials, read_embedding_texts, read_task

_SHOWN_CHARACTERS = 4000
_WORST_FIRST = (EXIT_INTERRUPTED, EXIT_INPUT, EXIT_TRAINING, EXIT_MACHINE)

Report = Callable[[str], None]
Launch = Callable[[Sequence[Path]], int]
Finished = Callable[[Path], bool]


@dataclass
class Evaluation:
    """Outcome of an evaluation.

    Attributes:
        folder: folder of results, trials and recipes.
        rows: result rows of the models of this evaluation.
        failed: exit code of each failed trial.
    """

    folder: Path
    rows: list[ResultRow]
    failed: dict[str, int] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """Exit code: 0 without failures; otherwise the first of 130 (interrupted), 2, 3 and 1 that occurred."""
        codes = set(self.failed.values())
        return next((code for code in _WORST_FIRST if code in codes), EXIT_MACHINE if codes else 0)


class Evaluator:
    """Evaluate models with a suite and write the results into a folder.

    Arguments of the constructor:
        suite: the suite.
        folder: output folder for `results.jsonl`, `results.parquet`, and a folder for each trial.
        cache: folder of prepared data.
        report: called with each line of progress.
    """

    def __init__(self, suite: Suite, folder: Path, cache: Path, report: Report) -> None:
        self.suite = suite
        self.folder = folder.absolute()
        self.cache = cache
        self.report = report
        content = json.dumps(suite.model_dump(mode="json"), sort_keys=True)
        self._suite = (suite.name, hashlib.sha256(content.encode()).hexdigest())
        self._failed: dict[str, int] = {}
        self._outcomes: dict[str, Outcome] = {}
        self._before: list[ResultRow] = []

    def run(
        self,
        models: Sequence[EvaluatedModel],
        slots: int,
        launch: Launch | None = None,
        finished: Finished | None = None,
    ) -> Evaluation:
        """Run every unfinished trial.

        Args:
            models: the models.
            slots: number of parallel fine-tuning runs.
            launch: function that trains recipes elsewhere, waits and returns an exit code; None trains them on this
                machine.
            finished: function that returns whether a launched run has finished.

        Raises:
            InputError: a task, its data or a model cannot be used, a library is missing, or the folder is in use.
        """
        if self.suite.all_tasks:
            require_libraries()
        self.tasks = {label: read_task(label, task) for label, task in self.suite.all_tasks.items()}
        texts = self._texts()
        self.trials = make_trials(self.suite, models, self.tasks, texts)
        with self._lock():
            self._check_recipes()
            self._remember_suite()
            self._before = read_rows(self.folder)
            self._write_rows()
            unfinished = self._unfinished()
            every = {trial.id for trial in self.trials}
            if len(unfinished) < len(every):
                self.report(f"{len(every) - len(unfinished)} of {len(every)} trials are already finished")
            try:
                self._score([trial for trial in unfinished if trial.kind == "predictions"])
                self._run_probes([trial for trial in unfinished if trial.kind not in ("finetune", "predictions")])
                trials = [trial for trial in unfinished if trial.kind == "finetune"]
                if EXIT_INPUT not in self._failed.values():
                    if launch is None or finished is None:
                        self._train(trials, slots)
                    else:
                        self._launch(trials, launch, finished)
            finally:
                rows = self._write_rows()
        return Evaluation(self.folder, rows, self._failed)

    def _texts(self) -> dict[str, str]:
        """Prepare the text that probes read, once for all models; return fingerprints for `make_trials`."""
        probes = self.suite.probes
        reading = {"masked_lm": probes.masked_lm, "agreement": probes.agreement, "retrieval": probes.retrieval}
        found = {
            kind: open_data(probe.data, self.cache).fingerprint for kind, probe in reading.items() if probe is not None
        }
        for label, texts in probes.embeddings.tasks.items() if probes.embeddings is not None else ():
            report: Counter[str] = Counter()
            found[f"embeddings {label}"] = read_embedding_texts(label, texts, report)
            for what, count in report.items():
                if count:
                    self.report(f"{label}: {count:,} {what}")
        return found

    def _lock(self) -> AbstractContextManager[int]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            what = f"the folder cannot be made: {error.strerror}"
            raise InputError(what, where=str(self.folder), hint="choose another --output") from error
        taken = "another `kdcore evaluate` is running in this folder"
        return locked(self.folder / ".lock", wait=False, taken=taken)

    def _remember_suite(self) -> None:
        text = dump_yaml(self.suite.model_dump(mode="json", exclude_none=True))
        (self.folder / "suite.yaml").write_text(text, encoding="utf-8")

    def _unfinished(self) -> list[Trial]:
        found = {trial.id: trial for trial in reversed(self.trials)}  # the first of duplicates
        return [trial for trial in self.trials if found[trial.id] is trial and read_outcome(self._place(trial)) is None]

    def _place(self, trial: Trial) -> Path:
        return self.folder / TRIALS_FOLDER / trial.id

    def _recipe(self, trial: Trial) -> Path:
        return self.folder / "recipes" / f"{trial.id}.yaml"

    def _check_recipes(self) -> None:
        """Check one recipe of each model and task before any training starts."""
        seen: set[tuple[str, str | None]] = set()
        for trial in self.trials:
            if trial.kind == "finetune" and (trial.model.sha256, trial.task) not in seen:
                seen.add((trial.model.sha256, trial.task))
                load_recipe(self._write_recipe(trial)).components()
                self._report_other_classes(trial)

    def _report_other_classes(self, trial: Trial) -> None:
        theirs, task = trial.model.classes(), self.tasks[trial.task or ""].task
        if theirs and theirs != task.data.classes:
            ours = ", ".join(task.data.classes) or "numbers"
            head = f"has a head for other labels ({', '.join(theirs)}) than those of {trial.task} ({ours})"
            self.report(f"{trial.model.name} {head}: the head is replaced")

    def _write_recipe(self, trial: Trial) -> Path:
        path = self._recipe(trial)
        run = {"name": TRIALS_FOLDER, "id": trial.id, "folder": str(self.folder)}
        unneeded = {"checkpoints": {**trial.settings.get("checkpoints", {}), "export_at_start": False}}
        text = f"# {trial}\n{dump_yaml({'run': run, **trial.settings, **unneeded})}"
        if path.is_file() and path.read_text(encoding="utf-8") != text and read_outcome(self._place(trial)) is None:
            shutil.rmtree(self._place(trial), ignore_errors=True)  # started with another location of model or data
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def _score(self, trials: Sequence[Trial]) -> None:
        """Score the predictions of runs that were trained on a task, instead of fine-tuning the students again."""
        for trial in trials:
            self.report(f"{trial.model.name}: {trial.task}: trained on these texts, so its own predictions are scored")
            place, predictions = self._place(trial), Path(trial.settings["predictions"])
            shutil.copytree(predictions, place / PREDICTIONS, dirs_exist_ok=True)
            for name in ("environment.json", "metrics.jsonl"):
                if (predictions.parent / name).is_file():
                    shutil.copy(predictions.parent / name, place / name)
            assert trial.task is not None
            collect_finetuning(place, self.tasks[trial.task])

    def _run_probes(self, trials: Sequence[Trial]) -> None:
        """Probe models one after the other, each in its own process, so that speed is measured undisturbed."""
        jobs: dict[str, list[Trial]] = {}
        for trial in trials:
            jobs.setdefault(f"{trial.model.role} {trial.model.source}", []).append(trial)
        for own in jobs.values():
            model = own[0].model
            self.report(f"probing {model.name}: {', '.join(trial.kind for trial in own)}")
            path = self.folder / "logs" / f"{own[0].id}.json"
            path.parent.mkdir(exist_ok=True)
            probes = [
                {"kind": trial.kind, "settings": trial.settings, "folder": str(self._place(trial))} for trial in own
            ]
            job = {"source": model.source, "random": model.role == "random", "teacher": model.teacher}
            job |= {"cache": str(self.cache), "probes": probes}
            path.write_text(json.dumps(job), encoding="utf-8")
            arguments = ["-m", "kdcore_evaluation.probes.probing", str(path)]
            run_children([ChildProcess(model.name, arguments, path.with_suffix(".log"))], 1, self._probed)
            path.unlink()
            for trial in own:
                skipped = (read_outcome(self._place(trial)) or {}).get("skipped")
                if skipped is not None:
                    self.report(f"{trial}: skipped: {skipped}")

    def _probed(self, job: ChildProcess, code: int) -> bool:
        if code:
            self._report_failure(job, code)
        else:
            job.log.unlink(missing_ok=True)
        return code == 0

    def _train(self, trials: Sequence[Trial], slots: int) -> None:
        jobs, known = [], {trial.id: trial for trial in trials}
        for trial in trials:
            arguments = ["-m", "kdcore", "train", str(self._write_recipe(trial))]
            jobs.append(ChildProcess(trial.id, arguments, self.folder / "logs" / f"{trial.id}.log"))
        if jobs:
            self.report(f"{len(jobs)} fine-tunings, {min(slots, len(jobs))} at a time")
        count = 0

        def ended(job: ChildProcess, code: int) -> bool:
            nonlocal count
            count += 1
            trial = known[job.name]
            if code:
                self._report_failure(replace(job, name=str(trial)), code)
                return code not in (EXIT_INPUT, EXIT_INTERRUPTED)
            self._collect(trial, f"{count} of {len(jobs)}")
            self._write_rows()
            job.log.unlink(missing_ok=True)
            return True

        run_children(jobs, slots, ended)

    def _launch(self, trials: Sequence[Trial], launch: Launch, finished: Finished) -> None:
        if not trials:
            return
        code = launch([self._write_recipe(trial) for trial in trials])
        for number, trial in enumerate(trials, 1):
            if finished(self._place(trial)):
                self._collect(trial, f"{number} of {len(trials)}")
            else:
                self._failed[str(trial)] = code or EXIT_MACHINE
                self.report(f"{trial}: not finished; see {self._place(trial)}")

    def _collect(self, trial: Trial, number: str) -> None:
        assert trial.task is not None
        collect_finetuning(self._place(trial), self.tasks[trial.task])
        outcome = read_outcome(self._place(trial)) or {}
        scores = [
            f"{one['split']} {one['value']:.4f}"
            for one in outcome["measured"]
            if one["metric"] == self.tasks[trial.task].task.main_metric
        ]
        self.report(f"{number}: {trial}: {self.tasks[trial.task].task.main_metric} {', '.join(scores)}")

    def _report_failure(self, job: ChildProcess, code: int) -> None:
        self._failed[job.name] = code
        log = job.log.read_text(encoding="utf-8", errors="replace").strip()
        at = log.rfind("error: ")
        message = log[at:] if at >= 0 else log[-_SHOWN_CHARACTERS:]
        self.report(f"{job.name}: failed with exit code {code} ({job.log}):\n{message}")

    def _write_rows(self) -> list[ResultRow]:
        """Write the rows of all finished trials, and keep the rows of models from earlier evaluations."""
        now: list[ResultRow] = []
        for trial in self.trials:
            outcome = self._outcomes.get(trial.id) or read_outcome(self._place(trial))
            if outcome is not None:
                self._outcomes[trial.id] = outcome
                known = None if trial.task is None or trial.kind == "embeddings" else self.tasks[trial.task]
                now += rows_of(trial, outcome, known, self._suite, self.folder)
        measured = {(trial.model.role, place_of(trial.model, self.folder)) for trial in self.trials}
        write_rows(self.folder, merged_rows(self._before, now, measured))
        return now
