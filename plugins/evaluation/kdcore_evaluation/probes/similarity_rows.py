"""Rows of `kdcore summary` that compare a student with its teacher."""

from __future__ import annotations

from kdcore import FinishedRun, SummaryRows

_MOST_SEQUENCES = 512


class SimilarityRows(SummaryRows):
    """Speed of inference relative to the teacher, and similarity of embeddings of held-out text."""

    def rows(self, run: FinishedRun) -> dict[str, str]:
        """Compare student and teacher on up to 512 held-out sequences; nothing without a teacher or such sequences."""
        import numpy as np

        from kdcore_evaluation.probes.similarity import compare

        count = min(run.task.num_samples("held_out"), _MOST_SEQUENCES)
        samples = np.arange(count)
        held_out = run.task.sequences("held_out", samples)
        if run.teacher is None or held_out is None or count < 2:
            return {}
        theirs = run.task.teacher_sequences("held_out", samples)
        found = compare(run.teacher, run.student, *held_out, teacher_rows=theirs)
        before = None if run.initial is None else compare(run.teacher, run.initial, *held_out, teacher_rows=theirs)
        rows = {"inference speed": f"student {found.speedup:.2f} times the teacher's, on this machine"}
        if found.cosine is not None:
            rows["embeddings"] = f"mean cosine {found.cosine:.3f} to the teacher's"
            if before is not None and before.cosine is not None:
                rows["embeddings"] += f"; before training: {before.cosine:.3f}"
        correlation = f"rank correlation {found.rank_correlation:.3f}"
        rows["similarities"] = f"{correlation}, all pairs of {found.sequences} texts"
        if before is not None:
            rows["similarities"] += f"; before training: {before.rank_correlation:.3f}"
        return rows
