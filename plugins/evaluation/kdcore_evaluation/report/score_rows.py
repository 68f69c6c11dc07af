"""Rows of `kdcore summary` with the scores of a run's predictions."""

from __future__ import annotations

import argparse

from kdcore import FinishedRun, SummaryRows


class ScoreRows(SummaryRows):
    """Scores on labelled texts with intervals, next to the scores of the teacher and of a constant prediction."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare --predict-with-teacher."""
        parser.add_argument(
            "--predict-with-teacher",
            action="store_true",
            help="predict the run's labelled texts with its teacher, for this table and for kdcore compare",
        )

    def rows(self, run: FinishedRun) -> dict[str, str]:
        """Format the scores of each predicted part; empty without predictions for labelled texts.

        Raises:
            InputError: predictions of the teacher are requested, but cannot be computed.
        """
        if getattr(run.arguments, "predict_with_teacher", False):
            from kdcore_evaluation.run.teacher_predictions import write_teacher_predictions

            write_teacher_predictions(run)
        from kdcore_evaluation.report.table_formats import shown
        from kdcore_evaluation.run.compared_runs import read_run
        from kdcore_evaluation.run.finished_scores import KIND, of_teacher, read_predictions
        from kdcore_evaluation.run.scores import summary

        stored = read_run(run.folder, "finished")
        own = read_predictions(stored)
        if own is None:
            return {}
        theirs, (constant, constants) = of_teacher(stored, own), own.constant()
        others = {"teacher": theirs.measurements(0) if theirs is not None else [], constant: constants}
        rows = {}
        for one in own.measurements(0):
            if one.column.kind == KIND:
                beside = [
                    f"; {name}: {shown(one.column, summary([other], ''))}"
                    for name, found in others.items()
                    for other in found
                    if other.column == one.column
                ]
                rows[one.column.title] = shown(one.column, summary([one], "")) + "".join(beside)
        return rows
