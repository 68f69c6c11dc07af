"""Rows of `kdcore summary` that compare a student with its teacher."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from kdcore import FinishedRun, SummaryRows

if TYPE_CHECKING:
    from kdcore_evaluation.probes.similarity import Agreement

_MOST_SEQUENCES = 512
_FEWEST_SEQUENCES = 30
"""With fewer texts, a bootstrap does not describe the error."""


class SimilarityRows(SummaryRows):
    """Speed of inference relative to the teacher, and similarity of embeddings of held-out text with 95% intervals."""

    def rows(self, run: FinishedRun) -> dict[str, str]:
        """Compare student and teacher on up to 512 held-out sequences; empty without a teacher or held-out text."""
        import numpy as np

        from kdcore_evaluation.probes.similarity import compare

        count = min(run.task.num_samples("held_out"), _MOST_SEQUENCES)
        samples = np.arange(count)
        held_out = run.task.sequences("held_out", samples)
        if run.teacher is None or held_out is None or count < 2:
            return {}
        print(f"comparing the embeddings of {count} held-out texts with the teacher's", file=sys.stderr)
        theirs = run.task.teacher_sequences("held_out", samples)
        enough = count >= _FEWEST_SEQUENCES

        def compared(model: object) -> Agreement:
            return compare(run.teacher, model, *held_out, teacher_rows=theirs, with_values=enough)

        found = compared(run.student)
        before = None if run.initial is None else compared(run.initial)
        rows = {"inference speed": f"student {found.speedup:.2f} times the teacher's, on this machine"}
        if found.cosine is not None:
            rows["embeddings"] = f"mean cosine {_shown(found, 'cosine')} to the teacher's"
            if before is not None and before.cosine is not None:
                rows["embeddings"] += f"; before training: {_shown(before, 'cosine')}"
        correlation = f"rank correlation {_shown(found, 'rank_correlation')}"
        rows["similarities"] = f"{correlation}, all pairs of {found.sequences} texts"
        if before is not None:
            rows["similarities"] += f"; before training: {_shown(before, 'rank_correlation')}"
        return rows


def _shown(found: Agreement, name: str) -> str:
    """Format a value and its interval over the texts."""
    from kdcore_evaluation.statistics.intervals import estimate_mean

    values = found.by_text.get(name)
    estimate = None if values is None else estimate_mean(values[None])
    interval = "" if estimate is None else f" [{', '.join(f'{bound:.3f}' for bound in estimate.interval)}]"
    return f"{getattr(found, name):.3f}{interval}"
