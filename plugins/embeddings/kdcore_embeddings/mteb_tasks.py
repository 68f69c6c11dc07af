"""Make tasks of the benchmark library mteb from local texts."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from kdcore import InputError
from kdcore_embeddings.data.embedding_texts import EmbeddingTexts, TextPairs, TextQueries

logger = logging.getLogger("kdcore")

_SPLIT = "test"


def mteb_task(name: str, texts: Mapping[str, Any], *, language: str = "eng-Latn") -> Any:
    """Return a task of mteb that scores sentence encoders on a local file, beside its public tasks.

    Queries with their documents become a retrieval task with the main score `ndcg_at_10`, pairs with scores an STS task
    with `cosine_spearman`, and pairs with labels a pair classification task with `max_ap`. Nothing is downloaded.

    Args:
        name: name of the task.
        texts: keys of a task of `probes.embeddings.tasks`, such as `path`, `query` and `positive`; paths are relative
            to the working folder.
        language: language and script of the texts, as in mteb.

    Returns:
        An `mteb.AbsTask`, which `mteb.evaluate` accepts.

    Raises:
        InputError: mteb is not installed, or the texts cannot be used.
    """
    try:
        from mteb.abstasks.task_metadata import TaskMetadata
    except ImportError as error:
        hint = "run `pip install 'kdcore-embeddings[mteb]'`"
        raise InputError(f"the package mteb cannot be imported ({error})", hint=hint) from error
    try:
        stated = EmbeddingTexts.model_validate(dict(texts))
    except ValidationError as error:
        raise InputError(error.errors()[0]["msg"], key="texts") from error
    report: Counter[str] = Counter()
    found = stated.read(report)
    for what, count in report.items():
        if count:
            logger.info(f"{name}: {count:,} {what}")
    base, kind, score, content = _retrieval(found) if isinstance(found, TextQueries) else _pairs(found)
    metadata = TaskMetadata(
        name=name,
        description=f"Texts of {stated.path}",
        type=kind,
        main_score=score,
        eval_splits=[_SPLIT],
        eval_langs=[language],
        dataset={"path": stated.path, "revision": found.fingerprint()},  # results are cached by revision
        is_public=False,
    )
    task = type(name, (base,), {"metadata": metadata})()
    for attribute, value in content.items():
        setattr(task, attribute, value)
    task.data_loaded = True
    return task


def _retrieval(texts: TextQueries) -> tuple[Any, str, str, dict[str, Any]]:
    """Return base class, type, main score and attributes of a retrieval task."""
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    queries, documents = (
        Dataset.from_dict({"id": [f"{kind}{number}" for number in range(len(own))], "text": own})
        for kind, own in (("q", texts.queries), ("d", texts.documents))
    )
    relevant = {f"q{query}": {f"d{document}": 1 for document in own} for query, own in enumerate(texts.relevant)}
    split = {"corpus": documents, "queries": queries, "relevant_docs": relevant, "top_ranked": None}
    return AbsTaskRetrieval, "Retrieval", "ndcg_at_10", {"dataset": {"default": {_SPLIT: split}}}


def _pairs(texts: TextPairs) -> tuple[Any, str, str, dict[str, Any]]:
    """Return base class, type, main score and attributes of an STS or pair classification task."""
    from datasets import Dataset
    from mteb.abstasks.pair_classification import AbsTaskPairClassification
    from mteb.abstasks.sts import AbsTaskSTS

    columns: dict[str, Any] = {"sentence1": texts.first, "sentence2": texts.second}
    if texts.labelled:
        columns["labels"] = texts.values.astype(int).tolist()
        content = {"dataset": {_SPLIT: Dataset.from_dict(columns)}}
        return AbsTaskPairClassification, "PairClassification", "max_ap", content
    columns["score"] = texts.values.tolist()
    limits = {"min_score": min(columns["score"]), "max_score": max(columns["score"])}
    return AbsTaskSTS, "STS", "cosine_spearman", {"dataset": {_SPLIT: Dataset.from_dict(columns)}} | limits
