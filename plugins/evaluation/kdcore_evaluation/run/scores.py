"""Aggregate result rows into means, standard deviations and intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from kdcore_evaluation.run.item_scores import ItemScores, StoredItems, StoredPredictions, StoredValues
from kdcore_evaluation.run.results import PREDICTIONS, TRIALS_FOLDER, ResultRow
from kdcore_evaluation.statistics.intervals import SampleValues, estimate_mean

Labels = tuple[str, ...]

_LARGEST = 1e150
_FEWEST_TEXTS = 30
"""With fewer texts, neither a bootstrap nor a linear approximation of F1 describes the error of a score."""

_EMBEDDING_TITLES = {
    "spearman": "Spearman",
    "average_precision": "average precision",
    "ndcg_at_10": "nDCG@10",
    "mrr_at_10": "MRR@10",
    "recall_at_1": "recall@1",
    "recall_at_10": "recall@10",
}
_LATENCY = "latency_"
_PROBE_TITLES = {
    "cosine": "cosine to the teacher",
    "rank_correlation": "similarities, rank correlation",
    "same_neighbours": "nearest neighbours shared",
    "recall_at_1": "retrieval, recall@1",
    "reciprocal_rank": "retrieval, MRR",
    "masked_lm_loss": "masked-LM loss",
    "parameters": "parameters",
    "all_parameters": "parameters with head",
    "relative_size": "size relative to the teacher",
    "relative_speed": "speed relative to the teacher",
    "bytes_on_disk": "size on disk",
    "sequences_per_second": "speed",
    "memory_bytes": "memory",
}
CHANCE_TITLES = {
    "accuracy": "majority-class baseline",
    "f1_micro": "constant-labels baseline",
    "f1_macro": "constant-labels baseline",
}
"""Metrics with a baseline that ignores the text, and its name."""

REFERENCES = ("teacher", "initial", "random")
"""Roles of reference models, which are listed below the students in this order and not ranked."""

_KINDS = ("predictions", "finetune", "embeddings", "linear", "retrieval", "agreement", "masked_lm", "cost")


@dataclass(frozen=True)
class Column:
    """One compared quantity.

    Attributes:
        kind: `finetune`, or the name of a probe.
        task: label of the task; empty for probes without one.
        part: empty, or the name of a second part of a split, such as `mismatched`.
        split: `test` if it has labels, otherwise `validation`; empty for probes without one.
        metric: name of the metric in result rows.
        higher_is_better: whether higher values are better.
    """

    kind: str
    task: str
    part: str
    split: str
    metric: str
    higher_is_better: bool

    @property
    def title(self) -> str:
        """Heading of the column."""
        if self.kind == "predictions":
            return " ".join(word for word in (self.task, self.part, self.metric, f"({self.split})") if word)
        if self.kind in ("finetune", "linear"):
            words = [self.task, self.part, self.metric, "(linear probe)" if self.kind == "linear" else ""]
            return " ".join(word for word in words if word)
        if self.kind == "embeddings":
            return f"{self.task} {_EMBEDDING_TITLES.get(self.metric, self.metric)}"
        if self.metric.startswith(_LATENCY):
            return f"latency of {self.metric.removeprefix(_LATENCY)}"
        return _PROBE_TITLES.get(self.metric, self.metric)

    def has_spread(self, score: Score) -> bool:
        """Return whether a score's deviation is meaningful; sizes of equal architectures do not vary."""
        return score.deviation is not None and (self.kind != "cost" or score.deviation > 0)

    def show(self, value: float) -> str:
        """Format a value of this column."""
        if self.metric == "relative_size":
            return f"{value:.0%}"
        if self.metric == "relative_speed":
            return f"{value:.2f}x"
        if self.metric in ("parameters", "all_parameters"):
            return f"{value / 1e6:.2f} M"
        if self.metric in ("bytes_on_disk", "memory_bytes"):
            return f"{value / 1e6:.1f} MB"
        if self.metric == "sequences_per_second":
            return f"{value:.1f}/s"
        if self.metric.startswith(_LATENCY):
            return f"{value * 1e3:.1f} ms"
        return f"{value:.3f}"

    def show_signed(self, value: float) -> str:
        """Format a difference of values of this column."""
        text = self.show(value)
        return text if text.startswith("-") else f"+{text}"


@dataclass(frozen=True)
class Score:
    """A mean over repetitions.

    Attributes:
        mean: mean over repetitions.
        deviation: sample standard deviation; None for a single repetition.
        count: number of repetitions.
        unit: unit of the repetitions.
        interval: bounds that contain the true mean with a probability of 95%; None if nothing varies.
        runs: number of trained runs, with their unit; empty for models that are not runs.
        texts: number of test texts whose choice the interval accounts for; 0 if only scores are known.
        values: value of each repetition.
    """

    mean: float
    deviation: float | None
    count: int
    unit: str
    interval: tuple[float, float] | None = None
    runs: str = ""
    texts: int = 0
    values: tuple[float, ...] = ()

    @property
    def repetitions(self) -> str:
        """Text such as `3 seeds, 700 texts`, or `1 seed, 3 fine-tunings`; empty for a single value of a fixed model."""
        own = counted(self.count, self.unit)
        repeated = [] if self.count == 1 or self.runs == own else [own]
        texts = [f"{self.texts:,} texts"] if self.texts else []
        return ", ".join([*([self.runs] if self.runs else []), *repeated, *texts])


@dataclass(frozen=True)
class Measurement:
    """One value that enters a mean.

    Attributes:
        column: the column of the value.
        repetition: the repetition over which values are averaged, such as a seed of distillation.
        value: the number.
        predictions: stored predictions or values of texts from which the score was computed; None if there are none.
    """

    column: Column
    repetition: Hashable
    value: float
    predictions: StoredItems | None = None


@dataclass(frozen=True)
class Difference:
    """Difference of the means of two rows of a table, on the same column.

    Attributes:
        column: what is compared.
        first: labels of the first group.
        second: labels of the second group, or of a reference.
        value: mean of the first minus mean of the second.
        interval: bounds that contain the true difference with a probability of 95%.
        p_value: two-sided p-value of no difference, adjusted by Holm's method for all differences of the table.
        over: what varies, such as `3 paired seeds`.
        p_within: one-sided p-value of the first being worse than the second by at least the margin, adjusted in the
            same way; None without a margin.
    """

    column: Column
    first: Labels
    second: Labels
    value: float
    interval: tuple[float, float]
    p_value: float
    over: str
    p_within: float | None = None


@dataclass
class ScoreTable:
    """Scores of groups of runs.

    Attributes:
        keys: names of the labels of a group.
        columns: what is compared.
        groups: scores of each group by column, without unmeasured ones.
        references: the same for reference models, which are not ranked.
        chance: score of predictions that ignore the text, for columns with a metric of `CHANCE_TITLES`.
        differences: comparisons of two groups, or of a group and a reference.
        favoured: names of the losses that give a group an advantage in a column by construction.
    """

    keys: Labels
    columns: list[Column]
    groups: dict[Labels, dict[Column, Score]]
    references: dict[Labels, dict[Column, Score]] = field(default_factory=dict)
    chance: dict[Column, float] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    favoured: dict[tuple[Labels, Column], tuple[str, ...]] = field(default_factory=dict)


def score_table(rows: Sequence[ResultRow], folder: Path | None = None) -> ScoreTable:
    """Build a table with one group per model; deviations are over fine-tuning runs with several seeds.

    Args:
        rows: the rows of one evaluation.
        folder: folder of the evaluation, so that intervals account for the choice of texts; None to use only scores.
    """
    folders = None if folder is None else dict.fromkeys(rows, folder)
    groups: dict[Labels, list[Measurement]] = {}
    references: dict[Labels, list[Measurement]] = {}
    for own in by_model(by_role(rows)).values():
        target = references if own[0].role in REFERENCES else groups
        target.setdefault((own[0].model,), []).extend(measurements(own, 0, folders))
    return make_table(("model",), groups, references, "", chances(rows))


def by_role(rows: Iterable[ResultRow]) -> list[ResultRow]:
    """Order rows as in tables, with reference models last."""
    return sorted(rows, key=lambda row: REFERENCES.index(row.role) if row.role in REFERENCES else -1)


def by_model(rows: Iterable[ResultRow]) -> dict[tuple[str, str, str | None, str], list[ResultRow]]:
    """Group rows by model."""
    found: dict[tuple[str, str, str | None, str], list[ResultRow]] = {}
    for row in rows:
        found.setdefault(row.identity, []).append(row)
    return found


def measurements(
    rows: Sequence[ResultRow], repetition: Hashable, folders: Mapping[ResultRow, Path] | None = None
) -> list[Measurement]:
    """Select the values of one model for the learning rate and batch size with the best validation score.

    Scores are taken from the test split if it is labelled, otherwise from the validation split.

    Args:
        rows: the rows of one model.
        repetition: the repetition to which the model belongs, such as a seed.
        folders: folder of the evaluation of each row, to find its predictions; None to use only scores.
    """
    found = []
    for kind, task in dict.fromkeys((row.kind, row.task) for row in rows):
        own = [row for row in rows if (row.kind, row.task) == (kind, task)]
        if kind == "finetune":
            chosen = _preferred(own)
            own = [row for row in own if (row.learning_rate, row.batch_size) == chosen]
        split = reported_split(own)
        for row in own:
            if not row.main or (split is not None and not (row.split or "").startswith(split)):
                continue
            part = (row.split or "")[len(split or "") :].strip("_") if split else ""
            column = Column(kind, task or "", part, split or "", row.metric, row.higher_is_better)
            predictions = _stored_items(row, folders[row]) if folders is not None else None
            found.append(Measurement(column, (repetition, row.seed), row.value, predictions))
    return [*found, *_averages(found)]


def _stored_items(row: ResultRow, folder: Path) -> StoredItems:
    path = folder / TRIALS_FOLDER / row.cell / PREDICTIONS / f"{row.split}.parquet"
    if row.task is None or row.kind == "embeddings":
        return StoredValues(path, row.data or "")
    classes = tuple(row.labels.split(",")) if row.labels else ()
    return StoredPredictions(path, classes, spans="token_classification" in row.recipe)


def _averages(values: Sequence[Measurement]) -> list[Measurement]:
    """Average over tasks, for each repetition that was fine-tuned on all of them."""
    own = [one for one in values if one.column.kind == "finetune" and not one.column.part]
    tasks = {one.column.task for one in own}
    if len(tasks) < 2:
        return []
    column = Column("finetune", "average", "", "", "score", True)
    by_repetition: dict[Hashable, dict[str, float]] = {}
    for one in own:
        by_repetition.setdefault(one.repetition, {})[one.column.task] = one.value
    return [
        Measurement(column, repetition, _mean(scores.values()))
        for repetition, scores in by_repetition.items()
        if scores.keys() == tasks
    ]


def reported_split(rows: Sequence[ResultRow]) -> str | None:
    """Return `test` if it has scores, otherwise `validation`; None for probes without labelled texts."""
    splits = {row.split for row in rows if row.split is not None and row.kind in ("predictions", "finetune", "linear")}
    return "test" if "test" in splits else "validation" if "validation" in splits else None


def _preferred(rows: Sequence[ResultRow]) -> tuple[float | None, int | None]:
    """Return the learning rate and batch size with the best mean over seeds on the validation split."""
    scores: dict[tuple[float | None, int | None], list[float]] = {}
    for row in rows:
        if row.main and row.split == "validation":
            scores.setdefault((row.learning_rate, row.batch_size), []).append(row.value)
    most = max(map(len, scores.values()), default=0)
    whole = {place: _mean(values) for place, values in scores.items() if len(values) == most}
    return max(whole, key=whole.__getitem__) if whole else (None, None)


def chances(rows: Iterable[ResultRow]) -> dict[Column, float]:
    """Return the score of predictions that ignore the text, for each column that has one."""
    found = {}
    for own in by_model(rows).values():
        for one in measurements(own, 0):
            column = one.column
            split = "_".join(word for word in (column.split, column.part) if word)
            for row in own:
                if column.metric in CHANCE_TITLES and (row.kind, row.task or "", row.split) == (
                    column.kind,
                    column.task,
                    split,
                ):
                    found[column] = row.chance or 0.0
    return found


def make_table(
    keys: Labels,
    groups: Mapping[Labels, Sequence[Measurement]],
    references: Mapping[Labels, Sequence[Measurement]],
    over: str,
    chance: Mapping[Column, float],
) -> ScoreTable:
    """Compute means and intervals of groups; `over` names the repetitions, and is empty without runs."""
    everything = [*groups.values(), *references.values()]
    columns = list(dict.fromkeys(one.column for own in everything for one in own))
    columns.sort(key=lambda column: _KINDS.index(column.kind) if column.kind in _KINDS else len(_KINDS))
    return ScoreTable(
        keys,
        columns,
        {labels: _scores(own, over) for labels, own in groups.items()},
        {labels: _scores(own, over if len(_repetitions(own)) > 1 else "") for labels, own in references.items()},
        dict(chance),
    )


def _scores(values: Sequence[Measurement], over: str) -> dict[Column, Score]:
    columns = dict.fromkeys(one.column for one in values)
    return {column: summary([one for one in values if one.column == column], over) for column in columns}


def summary(values: Sequence[Measurement], over: str) -> Score:
    """Compute mean, deviation and interval over repetitions, or over fine-tuning seeds for a single repetition.

    A repetition counts once, regardless of the number of its fine-tuning runs.
    """
    found = sample_of(values)
    unit = "fine-tunings" if found.tuned else over or "runs"
    means = [float(row.mean()) for row in found.values]
    usable = bool(np.isfinite(found.values).all())
    estimate = estimate_mean(found.values) if usable else None
    return Score(
        _mean(means),
        statistics.stdev(means) if len(means) > 1 and usable else None,
        len(means),
        unit,
        estimate.interval if estimate is not None else None,
        counted(found.runs, over) if over else "",
        found.values.shape[1] if found.texts else 0,
        tuple(means),
    )


@dataclass(frozen=True)
class GroupSample:
    """Values of one group and column.

    Attributes:
        seeds: identity of each row: a repetition, or the seed of a fine-tuning run.
        values: (n, m) values of m texts whose mean is a score, or (n, 1) scores; NaN for unusable values.
        runs: number of repetitions.
        tuned: whether the rows are fine-tuning runs of a single repetition.
        texts: identifies the texts; empty if only scores are known.
    """

    seeds: tuple[Hashable, ...]
    values: SampleValues
    runs: int
    tuned: bool
    texts: str

    def scores(self) -> GroupSample:
        """Return the scores (n, 1) alone."""
        return replace(self, values=self.values.mean(1, keepdims=True), texts="")

    def averaged(self) -> GroupSample:
        """Return the mean (1, m) over the fine-tuning runs of a single repetition."""
        return replace(self, seeds=self.seeds[:1], values=self.values.mean(0, keepdims=True), tuned=False)


def sample_of(values: Sequence[Measurement]) -> GroupSample:
    """Collect the measurements of one group and column, one row for each repetition."""
    by_repetition = _repetitions(values)
    runs = len(by_repetition)
    tuned = runs == 1 and values[0].column.kind == "finetune"
    if tuned:
        by_repetition = {}
        for one in values:
            by_repetition.setdefault(one.repetition[1] if isinstance(one.repetition, tuple) else 0, []).append(one)
    seeds = tuple(by_repetition)
    items = {id(one): _item_scores(one) for one in values}
    texts = {found.texts if found is not None else "" for found in items.values()}
    enough = all(found is not None and len(found.values) >= _FEWEST_TEXTS for found in items.values())
    if len(texts) == 1 and enough:
        of_texts = [[found.values for one in own if (found := items[id(one)])] for own in by_repetition.values()]
        rows = [np.mean(own, axis=0) for own in of_texts]
        return GroupSample(seeds, np.stack(rows), runs, tuned, texts.pop())
    scores = [np.mean([_usable(one.value) for one in own]) for own in by_repetition.values()]
    return GroupSample(seeds, np.array(scores)[:, None], runs, tuned, "")


def _item_scores(one: Measurement) -> ItemScores | None:
    return None if one.predictions is None else one.predictions.item_scores(one.column.metric, one.value)


def _repetitions(values: Iterable[Measurement]) -> dict[Hashable, list[Measurement]]:
    found: dict[Hashable, list[Measurement]] = {}
    for one in values:
        outer = one.repetition[0] if isinstance(one.repetition, tuple) else one.repetition
        found.setdefault(outer, []).append(one)
    return found


def counted(count: int, unit: str) -> str:
    """Format a number with its unit in the plural, such as `3 seeds`."""
    if count == 1:
        first, _, rest = unit.partition(" ")
        unit = " ".join(part for part in (first.removesuffix("s"), rest) if part)
    return f"{count} {unit}"


def _usable(value: float) -> float:
    return value if _is_usable(value) else math.nan


def _is_usable(value: float) -> bool:
    """Return whether sums and squares of the value are finite; damaged results may contain any number."""
    return abs(value) <= _LARGEST


def _mean(values: Iterable[float]) -> float:
    """Average values; NaN if a value is not finite or is extremely large."""
    known = list(values)
    return statistics.fmean(known) if all(map(_is_usable, known)) else math.nan
