"""Run the probes of one model in a separate process: `python -m kdcore_evaluation.probes.probing JOB.json`.

A separate process makes peak memory meaningful and isolates crashes. The outcome of each probe is written immediately.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from kdcore import EXIT_INPUT, DataError, InputError, KdcoreError
from kdcore_evaluation.run.outcomes import write_outcome


def main(arguments: list[str]) -> int:
    """Run the probes of a job: `{source, random, teacher, cache, probes: [{kind, settings, folder}]}`.

    If `random` is true, the probed model has the source's architecture and tokenizer, but random weights.
    """
    job: dict[str, Any] = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    try:
        with _random_weights(job["source"]) if job["random"] else nullcontext(job["source"]) as source:
            for probe in job["probes"]:
                began = time.monotonic()
                outcome = run_probe(probe["kind"], probe["settings"], source, job["teacher"], Path(job["cache"]))
                write_outcome(Path(probe["folder"]), {**outcome, "seconds": time.monotonic() - began})
    except KdcoreError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


@contextmanager
def _random_weights(source: str) -> Iterator[str]:
    """Write a model with the architecture, head and tokenizer of another model, and random weights from seed 0."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

    from kdcore import load_tokenizer

    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    has_head = any("MaskedLM" in name for name in config.architectures or ())
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="kdcore-") as folder:
        (AutoModelForMaskedLM if has_head else AutoModel).from_config(config).save_pretrained(folder)
        load_tokenizer(source).save_pretrained(folder)
        yield folder


def run_probe(kind: str, settings: dict[str, Any], source: str, teacher: str | None, cache: Path) -> dict[str, Any]:
    """Run one probe.

    Returns:
        `measured`: a list of mappings with `metric`, `value`, `higher_is_better`, and, where applicable, `split` and
        `examples`; or `skipped`: the reason why the probe does not support this model. `items`, if present, are tables
        by name with one row per text: predictions, or values whose means are the measured values.

    Raises:
        InputError: the model or the data cannot be used.
    """
    from kdcore_embeddings import EmbeddingTexts
    from transformers.utils import logging

    from kdcore_evaluation.probes import embedding_scores, probes
    from kdcore_evaluation.run.suite import (
        AgreementProbe,
        CostProbe,
        LinearProbe,
        MaskedLMProbe,
        RetrievalProbe,
        SuiteTask,
    )

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        if kind == "cost":
            return probes.cost(source, CostProbe.model_validate(settings))
        if kind == "masked_lm":
            return probes.masked_lm(source, MaskedLMProbe.model_validate(settings), cache)
        if kind == "agreement":
            assert teacher is not None
            return probes.agreement(source, teacher, AgreementProbe.model_validate(settings), cache)
        if kind == "retrieval":
            return probes.retrieval(source, RetrievalProbe.model_validate(settings), cache)
        if kind == "embeddings":
            return embedding_scores.embeddings(source, EmbeddingTexts.model_validate(settings))
        task = SuiteTask.model_validate(settings["task"])
        own = {key: value for key, value in settings.items() if key != "task"}
        return probes.linear(source, task, LinearProbe.model_validate(own))
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise DataError(f"the model cannot be probed: {error}", where=source) from error


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(EXIT_INPUT)
    sys.exit(main(sys.argv[1:]))
