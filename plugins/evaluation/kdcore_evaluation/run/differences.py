"""Compare the groups of a table with each other and with reference models."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from kdcore_evaluation.run.scores import Column, Difference, GroupSample, Labels, Measurement, counted, sample_of
from kdcore_evaluation.statistics.intervals import Estimate, SampleValues, estimate_difference, holm

COMPARED_KINDS = ("predictions", "finetune", "embeddings", "linear", "retrieval", "agreement", "masked_lm")
"""Kinds of columns whose differences are tested; sizes and speeds are not random samples."""

_POINT = 0.01


def differences(
    groups: Mapping[Labels, Sequence[Measurement]],
    references: Mapping[Labels, Sequence[Measurement]],
    against: Mapping[Labels, Sequence[Labels]],
    teachers: Iterable[Labels],
    over: str,
    margin: float | None = None,
    trained: Collection[Labels] = (),
) -> list[Difference]:
    """Compare all pairs of groups, and each group with some references, in the columns that both have.

    Args:
        groups: measurements of each group.
        references: measurements of each reference.
        against: references to compare each group with.
        teachers: references for the test of whether a group is worse by less than the margin.
        over: unit of the repetitions of a group, such as `seeds`.
        margin: points (hundredths) by which a score may be worse; None for no test.
        trained: references that, like the groups, depend on a seed, such as students without a teacher. Any other
            reference with a single model is a fixed model.

    Returns:
        The differences with an interval. Holm's method adjusts their p-values for the number of differences, which
        includes those that could have been tested if their scores varied.
    """
    found: list[tuple[Difference | None, float, float | None]] = []
    known = set(teachers)
    pairs = list(combinations(groups.items(), 2))
    pairs += [((first, own), (name, references[name])) for first, own in groups.items() for name in against[first]]
    for (first, own), (second, theirs) in pairs:
        for column, values, others in _common_columns(own, theirs):
            compared = _compare(values, others, over, fixed=second in references and second not in trained)
            if compared is None:
                continue
            estimate, varied = compared
            labelled = second in known and column.kind in ("predictions", "finetune", "linear")
            if estimate is None:
                found.append((None, 1.0, 1.0 if margin is not None and labelled else None))
                continue
            within = estimate.p_at_most(-margin * _POINT) if margin is not None and labelled else None
            difference = Difference(column, first, second, estimate.value, estimate.interval, 1.0, varied)
            found.append((difference, estimate.p_value(), within))
    adjusted = holm([p_value for _, p_value, _ in found])
    of_margin = iter(holm([within for _, _, within in found if within is not None]))
    adjusted_within = [None if within is None else next(of_margin) for _, _, within in found]
    return [
        replace(difference, p_value=p_value, p_within=within)
        for (difference, _, _), p_value, within in zip(found, adjusted, adjusted_within, strict=True)
        if difference is not None
    ]


def _common_columns(
    own: Sequence[Measurement], theirs: Sequence[Measurement]
) -> Iterator[tuple[Column, list[Measurement], list[Measurement]]]:
    others = {one.column for one in theirs}
    for column in dict.fromkeys(one.column for one in own):
        if column in others and column.kind in COMPARED_KINDS:
            yield column, [one for one in own if one.column == column], [one for one in theirs if one.column == column]


def _compare(
    own: Sequence[Measurement], theirs: Sequence[Measurement], over: str, *, fixed: bool
) -> tuple[Estimate | None, str] | None:
    """Estimate the difference between two groups in one column, and describe what varies.

    Args:
        own: measurements of a group.
        theirs: measurements of another group or of a reference.
        over: unit of the repetitions of a group.
        fixed: whether `theirs` belongs to a reference that does not depend on a seed.

    Returns:
        The estimate (None if nothing varied) and its description; None if nothing could vary or a value is unusable.
    """
    first, second = sample_of(own), sample_of(theirs)
    if first.texts != second.texts:
        first, second = first.scores(), second.scores()
    texts = [f"{first.values.shape[1]:,} texts"] if first.texts else []
    if not (np.isfinite(first.values).all() and np.isfinite(second.values).all()):
        return None
    if first.values.size == second.values.size == 1:
        return None
    common = [seed for seed in first.seeds if seed in second.seeds]
    if first.tuned == second.tuned and len(common) > 1:
        unit = "fine-tunings" if first.tuned else over
        rows = [_rows(sample, common) for sample in (first, second)]
        return estimate_difference(*rows, paired=True), ", ".join([f"{len(common)} paired {unit}", *texts])
    if first.runs == 1 < second.runs:
        first = first.averaged()
    elif second.runs == 1 < first.runs and not fixed:
        second = second.averaged()
    sizes = [_size(first, over), _size(second, "" if fixed else over)]
    varied = ", ".join([" and ".join(dict.fromkeys(sizes)), *texts])
    fixed = fixed and len(second.values) == 1
    return estimate_difference(first.values, second.values, paired=False, fixed=fixed), varied


def _size(sample: GroupSample, over: str) -> str:
    return counted(len(sample.seeds), "fine-tunings" if sample.tuned else over or "models")


def _rows(sample: GroupSample, seeds: Sequence[Hashable]) -> SampleValues:
    return sample.values[[sample.seeds.index(seed) for seed in seeds]]
