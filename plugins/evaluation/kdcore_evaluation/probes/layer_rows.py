"""Rows of `kdcore summary --layers`, which compare each layer with the teacher."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from kdcore import FinishedRun, SummaryRows

if TYPE_CHECKING:
    from kdcore_evaluation.run.layer_report import Errors, LayerReport, SimilarityMatrix

_MEASURES = {
    "masked_lm": "masked-LM loss",
    "state": "error of states",
    "state_mapped": "error of mapped states",
}


class LayerRows(SummaryRows):
    """Similarity of all blocks, divergence of attention heads, and errors by groups of tokens."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare --layers."""
        parser.add_argument(
            "--layers",
            action="store_true",
            help="compare all blocks with the teacher's on held-out text, and write layers.json into the run folder",
        )

    def rows(self, run: FinishedRun) -> dict[str, str]:
        """Compare the layers, write `layers.json`, and format it; do nothing without the option.

        Raises:
            InputError: the run has no teacher, too little held-out text, or a model that is not supported.
        """
        if not getattr(run.arguments, "layers", False):
            return {}
        from kdcore_evaluation.probes.layer_comparison import measure_layers
        from kdcore_evaluation.run.layer_report import write_layers

        print("comparing all blocks with the teacher's", file=sys.stderr)
        report = measure_layers(run)
        path = write_layers(run.folder, report)
        return {"layers": f"{path}  ({report.tokens:,} tokens of held-out text)", **dict(format_layers(report))}


def format_layers(report: LayerReport) -> Iterator[tuple[str, str]]:
    """Yield titles and texts of the rows that describe a report."""
    heads = [str(block) for block in report.student_blocks]
    width = max(5, *map(len, heads))
    yield "CKA, student's block", "  ".join(f"{head:>{width}}" for head in heads)
    for block, values in zip(report.teacher_blocks, report.cka["student"], strict=True):
        yield f"CKA, teacher's {block}", "  ".join(f"{_shown(value):>{width}}" for value in values)
    for pair in report.pairs:
        yield (
            f"CKA of {pair[0]} and {pair[1]}",
            _with_before(report.cka, report, pair)
            + (f"; without dominant dimensions: {_with_before(report.cka_without_dominant, report, pair)}"),
        )
    for one in report.heads:
        texts = {name: _heads(values) for name, values in one.divergence.items()}
        yield f"heads of {one.teacher} and {one.student}", f"divergence {_before(texts)}"
    for errors in report.errors:
        yield from _error_rows(errors)


def _with_before(values: Mapping[str, SimilarityMatrix], report: LayerReport, pair: Sequence[int | str]) -> str:
    row, column = report.teacher_blocks.index(pair[0]), report.student_blocks.index(pair[1])  # type: ignore[arg-type]
    return _before({name: _shown(matrix[row][column]) for name, matrix in values.items()})


def _before(texts: Mapping[str, str]) -> str:
    return texts["student"] + (f" (before training: {texts['initial']})" if "initial" in texts else "")


def _heads(values: Sequence[float | None]) -> str:
    defined = [value for value in values if value is not None]
    if not defined:
        return "-"
    most = max(defined)
    return f"{sum(defined) / len(defined):.3f}, at most {most:.3f} in head {list(values).index(most)}"


def _error_rows(errors: Errors) -> Iterator[tuple[str, str]]:
    title = f"{_MEASURES[errors.measure]} by {errors.by}"
    yield title, _models(errors.overall)
    unit = " in a million" if errors.by == "frequency" else ""
    for group in errors.groups:
        until = f"{group.lowest:,} and more" if group.highest is None else f"{group.lowest:,} to {group.highest - 1:,}"
        yield f"  {until}{unit}", f"{_models(group.values)}; {group.count:,} tokens"


def _models(values: Mapping[str, float]) -> str:
    names = {"student": "", "initial": "before training ", "teacher": "teacher "}
    return ", ".join(f"{word}{values[name]:.4g}" for name, word in names.items() if name in values)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
