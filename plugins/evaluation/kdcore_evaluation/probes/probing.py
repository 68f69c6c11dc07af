"""The probes of one model, in a separate process: `python -m kdcore_evaluation.probes.probing JOB.json`.

A separate process makes peak memory meaningful and isolates crashes. It writes the outcome of each probe at once.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from kdcore import EXIT_INPUT, DataError, InputError, KdcoreError
from kdcore_evaluation.run.outcomes import write_outcome


def main(arguments: list[str]) -> int:
    """Run the probes of a job: `{source, teacher, cache, probes: [{kind, settings, folder}]}`."""
    job: dict[str, Any] = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    try:
        for probe in job["probes"]:
            began = time.monotonic()
            outcome = run_probe(probe["kind"], probe["settings"], job["source"], job["teacher"], Path(job["cache"]))
            write_outcome(Path(probe["folder"]), {**outcome, "seconds": time.monotonic() - began})
    except KdcoreError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def run_probe(kind: str, settings: dict[str, Any], source: str, teacher: str | None, cache: Path) -> dict[str, Any]:
    """Run one probe.

    Returns:
        `measured`: a list of maps with `metric`, `value`, `higher_is_better`, and where it fits `split` and `examples`;
        or `skipped`: why the probe does not support this model. `items`, if present, are tables by name with a row for
        each text: predictions, or values whose means are the measured ones.

    Raises:
        InputError: the model or the data cannot be used.
    """
    from transformers.utils import logging

    from kdcore_evaluation.probes import probes
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
