"""Probes: measurements of an encoder without training it."""

from __future__ import annotations

import os
import platform
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from kdcore_supervised import LabelledData, LabelledTexts, TokenizedTexts, metrics_of, read_labelled, tokenize
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModel, AutoModelForMaskedLM, PreTrainedModel

from kdcore import MaskedLM, PreparedData, load_tokenizer, open_data
from kdcore_evaluation.probes.peak_memory import PeakMemory
from kdcore_evaluation.probes.retrieval import passages_of, ranks
from kdcore_evaluation.probes.similarity import compare, fastest_device, mean_pooled, wait_for
from kdcore_evaluation.run.evaluated_models import bytes_on_disk
from kdcore_evaluation.run.outcomes import Outcome
from kdcore_evaluation.run.suite import (
    AgreementProbe,
    CostProbe,
    LinearProbe,
    MaskedLMProbe,
    RetrievalProbe,
    SuiteTask,
)

if TYPE_CHECKING:
    from pyarrow import Table

_BATCH = 32
_WARM_UP, _FEWEST, _MOST, _SECONDS = 2, 5, 50, 3.0
_ITERATIONS = 1000
_FEWEST_TEXTS = 4  # for values of single texts: three pairs are left when one text is removed


def cost(source: str, probe: CostProbe) -> Outcome:
    """Measure the number of parameters (without heads), bytes of weight files, and inference speed and peak memory.

    Speed and latencies, in seconds, are medians over passes. Memory is the peak during the speed measurement minus the
    memory in use before the model was loaded, so it covers weights and activations.
    """
    device = fastest_device()
    memory = PeakMemory(device)
    model = _load(source).to(device)
    longest = min(probe.sequence_length, _positions(model))
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, model.config.vocab_size, (probe.batch_size, longest), generator=generator).to(device)
    with torch.inference_mode():
        for _ in range(_WARM_UP):
            model(input_ids=tokens)
        memory.reset()
        seconds = _seconds_of_passes(model, tokens)
        peak = memory.peak()
        latencies = {}
        for size in probe.latency:
            own = torch.randint(0, model.config.vocab_size, (size, longest), generator=generator).to(device)
            model(input_ids=own)
            latencies[size] = _seconds_of_passes(model, own)
    measured = [
        _measured("parameters", sum(parameter.numel() for parameter in model.parameters()), higher=False),
        _measured("bytes_on_disk", bytes_on_disk(source), higher=False),
        _measured("sequences_per_second", probe.batch_size / float(np.median(seconds)), examples=len(seconds)),
    ]
    if peak is not None:
        measured.append(_measured("memory_bytes", peak, higher=False))
    for size, passes in latencies.items():
        median = float(np.median(passes))
        measured.append(_measured(f"latency_{size}", median, higher=False, examples=len(passes)))
    return {"measured": measured, "device": device_name(device)}


def _seconds_of_passes(model: PreTrainedModel, tokens: Tensor) -> list[float]:
    """Return the seconds of each of several forward passes on tokens (B, L)."""
    seconds: list[float] = []
    while len(seconds) < _FEWEST or (sum(seconds) < _SECONDS and len(seconds) < _MOST):
        wait_for(tokens.device)
        began = time.perf_counter()
        model(input_ids=tokens)
        wait_for(tokens.device)
        seconds.append(time.perf_counter() - began)
    return seconds


def masked_lm(source: str, probe: MaskedLMProbe, cache: Path) -> Outcome:
    """Measure cross-entropy in nats per masked token, with the same masks for every model."""
    task = MaskedLM(MaskedLM.Config(data=probe.data), 0, cache)
    refusal = _other_vocabulary(source, task.data)
    model, report = AutoModelForMaskedLM.from_pretrained(
        source, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
    )
    if report["missing_keys"]:
        return {"skipped": "the model has no masked-LM head"}
    if refusal is not None:
        return {"skipped": refusal}
    device = fastest_device()
    model = model.to(device).eval()
    count = min(probe.sequences, task.num_samples("held_out"))
    if not count:
        return {"skipped": f"{task.data.folder} has no held-out text"}
    total, predicted = 0.0, 0
    with torch.inference_mode():
        for start in range(0, count, _BATCH):
            samples = np.arange(start, min(start + _BATCH, count))
            batch = task.batch("held_out", samples, np.zeros_like(samples)).to(device)
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
            rows = logits.flatten(0, 1)[batch.masked_index]
            total += float(cross_entropy(rows.double(), batch.masked_labels, reduction="sum"))
            predicted += len(batch.masked_labels)
    if not predicted:
        return {"skipped": "no token of the held-out text is masked"}
    loss = _measured("masked_lm_loss", total / predicted, higher=False, split="held_out", examples=predicted)
    return {"measured": [loss], "device": device_name(device)}


def agreement(source: str, teacher: str, probe: AgreementProbe, cache: Path) -> Outcome:
    """Measure the similarity of embeddings of held-out text to the teacher's."""
    import pyarrow

    data = open_data(probe.data, cache)
    held_out = data.split("held_out")
    if len(held_out) < 2:
        return {"skipped": f"{data.folder} has fewer than two sequences of held-out text"}
    numbers = np.arange(min(len(held_out), probe.sequences))
    views = []
    for model in (teacher, source):
        if data.teacher is not None and _other_vocabulary(model, data, data.teacher_tokenizer_folder) is None:
            view = held_out.teacher_view(numbers)
            views.append((view.tokens, view.lengths))
            continue
        refusal = _other_vocabulary(model, data)
        if refusal is not None:
            return {"skipped": refusal}
        views.append(held_out.rows(numbers))
    theirs, own = views
    enough = len(numbers) >= _FEWEST_TEXTS
    models = _load(teacher), _load(source)
    found = compare(*models, *own, probe.neighbours, teacher_rows=theirs, with_values=enough)
    values = {"cosine": found.cosine, "rank_correlation": found.rank_correlation, "same_neighbours": found.neighbours}
    measured = [
        _measured(name, value, split="held_out", examples=found.sequences)
        for name, value in values.items()
        if value is not None
    ]
    by_text = {name: own for name, own in found.by_text.items() if own is not None}
    return {
        "measured": measured,
        "device": device_name(fastest_device()),
        "items": {"held_out": pyarrow.table({"id": numbers, **by_text})},
    }


def retrieval(source: str, probe: RetrievalProbe, cache: Path) -> Outcome:
    """Measure how often, and at which rank, the first half of a held-out passage retrieves its second half."""
    import pyarrow

    data = open_data(probe.data, cache)
    first, second, numbers = passages_of(data, probe.passages)
    if len(numbers) < 2:
        return {"skipped": f"{data.folder} has fewer than two passages of held-out text"}
    tokenizer, model, device = load_tokenizer(source), _load(source), fastest_device()
    longest = _positions(model)
    model = model.to(device)
    queries, candidates = (
        embeddings(model, tokenize(tokenizer, [texts], longest), device) for texts in (first, second)
    )
    found = ranks(queries, candidates)
    values = {"recall_at_1": (found == 1).astype(np.float64), "reciprocal_rank": 1 / found}
    return {
        "measured": [
            _measured(name, float(own.mean()), split="held_out", examples=len(own)) for name, own in values.items()
        ],
        "device": device_name(device),
        "items": {"held_out": pyarrow.table({"id": numbers, **values})},
    }


def linear(source: str, task: SuiteTask, probe: LinearProbe) -> Outcome:
    """Fit a linear model on frozen embeddings and score it on each labelled part except `train`."""
    data = task.data
    assert isinstance(data, LabelledData)
    tokenizer = load_tokenizer(data.tokenizer or source)
    model = _load(source)
    device = fastest_device()
    model = model.to(device)
    parts = read_labelled(data, Counter())
    train = parts[0]
    if len(train) > probe.texts:
        train = train.select(np.sort(np.random.default_rng(0).permutation(len(train))[: probe.texts]), train.name)
    longest = min(data.max_length, _positions(model))

    def embedded(part: LabelledTexts) -> np.ndarray:
        return embeddings(model, tokenize(tokenizer, part.texts, longest, cleaned=True), device)

    fitted = _fit(embedded(train), train.labels, classes=bool(data.classes))
    measured, items = [], {}
    for part in parts[1:]:
        if part.labels is not None:
            outputs = _outputs(fitted, embedded(part), len(data.classes))
            items[part.name] = _predictions(part, part.labels, outputs, data.classes)
            measured += [
                _measured(name, value, split=part.name, examples=len(part))
                for name, value in metrics_of(outputs, part.labels).items()
            ]
    return {"measured": measured, "device": device_name(device), "items": items}


def _predictions(part: LabelledTexts, labels: np.ndarray, outputs: np.ndarray, classes: Sequence[str]) -> Table:
    """Return the predictions for a part, in the same columns that fine-tuning runs store."""
    import pyarrow

    sides: list[Any] = [labels, outputs.argmax(1)] if classes else [labels, outputs[:, 0]]
    if classes:
        sides = [[classes[index] for index in side] for side in sides]
    return pyarrow.table({"id": part.ids, "label": sides[0], "prediction": sides[1]})


@torch.inference_mode()
def embeddings(model: PreTrainedModel, texts: TokenizedTexts, device: torch.device) -> np.ndarray:
    """Compute (n, d) means over the last hidden states of each text's tokens, in batches of similar length."""
    order = np.argsort(texts.lengths, kind="stable")
    found: np.ndarray | None = None
    for start in range(0, len(order), _BATCH):
        chosen = order[start : start + _BATCH]
        ids, lengths, types = texts.rows(chosen)
        mask = torch.from_numpy(np.arange(ids.shape[1]) < lengths[:, None]).to(device)
        extra: dict[str, Tensor] = {}
        if types is not None and getattr(model.config, "type_vocab_size", 0) > 1:
            extra["token_type_ids"] = torch.from_numpy(types).to(device)
        states = model(
            input_ids=torch.from_numpy(ids).to(device), attention_mask=mask.long(), **extra
        ).last_hidden_state
        pooled = mean_pooled(states, mask).float().cpu().numpy()
        if found is None:
            found = np.empty((len(order), pooled.shape[1]), dtype=np.float32)
        found[chosen] = pooled
    assert found is not None
    return found


def _fit(features: np.ndarray, labels: np.ndarray | None, *, classes: bool) -> Any:
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = LogisticRegression(max_iter=_ITERATIONS) if classes else Ridge()
    return make_pipeline(StandardScaler(), model).fit(features, labels)


def _outputs(fitted: Any, features: np.ndarray, classes: int) -> np.ndarray:
    """Return (n, C) log probabilities, -inf for classes absent from the training texts; (n, 1) for numbers."""
    if not classes:
        return np.asarray(fitted.predict(features), dtype=np.float64)[:, None]
    outputs = np.full((len(features), classes), -np.inf)
    outputs[:, fitted.classes_] = fitted.predict_log_proba(features)
    return outputs


def device_name(device: torch.device) -> str:
    """Return the name of the device of a measurement."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_processor()}, {threads} thread{'' if threads == 1 else 's'}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or os.uname().machine


def _measured(
    metric: str, value: float, *, higher: bool = True, split: str | None = None, examples: int | None = None
) -> dict[str, Any]:
    return {"metric": metric, "value": value, "higher_is_better": higher, "split": split, "examples": examples}


def _load(source: str) -> PreTrainedModel:
    return AutoModel.from_pretrained(source, dtype=torch.float32, trust_remote_code=False).eval()


def _positions(model: PreTrainedModel) -> int:
    """Return the maximum sequence length; positions of RoBERTa-like models start after the padding id."""
    positions = int(getattr(model.config, "max_position_embeddings", 512))
    offset = getattr(getattr(model, "embeddings", None), "padding_idx", None)
    return positions - offset - 1 if isinstance(offset, int) and offset else positions


def _other_vocabulary(source: str, data: PreparedData, tokenizer: Path | None = None) -> str | None:
    """Return the reason why a model cannot read prepared data; None if it can.

    `tokenizer` is the folder of the tokenizer used to prepare the data; default: the student's tokenizer.
    """
    own, theirs = (
        load_tokenizer(source).get_vocab(),
        load_tokenizer(str(tokenizer or data.tokenizer_folder)).get_vocab(),
    )
    return None if own == theirs else f"the text in {data.folder} was prepared with another tokenizer than {source} has"
