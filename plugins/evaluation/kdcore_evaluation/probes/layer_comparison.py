"""Compare each layer of a student with its teacher, on held-out text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from kdcore import (
    Batch,
    Block,
    Encoder,
    FinishedRun,
    HeadChunk,
    InputError,
    LayerPairs,
    Model,
    ModelInfo,
    SignalRequest,
    Signals,
    Task,
    resolve_pairs,
)
from kdcore_evaluation.probes.cka import debiased_cka, dominant_dimensions
from kdcore_evaluation.probes.similarity import fastest_device
from kdcore_evaluation.run.layer_report import ErrorGroup, Errors, LayerReport, PairedHeads, SimilarityMatrix

_FEWEST_TOKENS, _CKA_TOKENS, _MOST_TOKENS = 2000, 4096, 16_384
_BATCH = 16
_COUNTED_SEQUENCES = 8192
_FREQUENCIES = (0, 10, 100, 1000, 10_000)
_POSITIONS = (0, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_TOKENS_PER_DIMENSION = 4
_RIDGE = 1e-6


@dataclass(frozen=True)
class _ComparedEncoders:
    """The encoders to compare, and the compared blocks.

    Attributes:
        encoders: `teacher`, `student`, and `initial` if the run exported it.
        pairs: pairs of blocks that the losses compare.
        heads: the pairs whose attention heads are compared.
        requests: signals requested from each encoder.
    """

    encoders: dict[str, Encoder]
    pairs: list[tuple[Block, Block]]
    heads: list[tuple[int, int]]
    requests: dict[str, SignalRequest]

    @property
    def students(self) -> list[str]:
        """Names of the encoders that are compared with the teacher."""
        return [name for name in self.encoders if name != "teacher"]

    def last_block(self, name: str) -> Block:
        """Return the block of an encoder in the last pair."""
        return self.pairs[-1][name != "teacher"]


@dataclass
class _GroupedTokens:
    """Tokens by which errors are grouped, in the same order as the errors."""

    ids: list[np.ndarray] = field(default_factory=list)
    positions: list[np.ndarray] = field(default_factory=list)
    sequences: list[np.ndarray] = field(default_factory=list)

    def add(self, ids: Tensor, flat: Tensor, width: int, first_sequence: int) -> None:
        """Add tokens (n,) at flat positions (n,) of a batch (B, width)."""
        places = flat.cpu().numpy()
        self.ids.append(ids.cpu().numpy())
        self.positions.append(places % width)
        self.sequences.append(first_sequence + places // width)


@dataclass
class _EncoderMeasurements:
    """Measurements of one encoder.

    Attributes:
        states: states of the first tokens after each block, one tensor per batch.
        last: states of all tokens after the block of the last pair.
        masked: cross-entropy of each masked token.
        heads: pair of blocks -> sum over all queries of each head's divergence from the teacher's.
    """

    states: dict[Block, list[Tensor]] = field(default_factory=dict)
    last: list[Tensor] = field(default_factory=list)
    masked: list[Tensor] = field(default_factory=list)
    heads: dict[tuple[int, int], Tensor] = field(default_factory=dict)


@torch.inference_mode()
def measure_layers(run: FinishedRun) -> LayerReport:
    """Compare all blocks of the student, before and after training, with the teacher's blocks.

    Batches and masks are the same as in validation. With two tokenizers, units are compared instead of tokens.

    Raises:
        InputError: the run has no teacher, too little held-out text, or a model that is not supported.
    """
    compared = _load(run)
    found = {name: _EncoderMeasurements() for name in compared.encoders}
    tokens, masked = _GroupedTokens(), _GroupedTokens()
    sequences = total = 0
    for batch in _batches(run.task):
        signals = {
            name: encoder(batch.teacher_view if name == "teacher" else batch, compared.requests[name])
            for name, encoder in compared.encoders.items()
        }
        for name, one in signals.items():
            _collect(found[name], one, batch, compared, name, keep=_CKA_TOKENS - total)
            if name != "teacher":
                for pair in compared.heads:
                    sums = found[name].heads.get(pair, torch.zeros(()))
                    found[name].heads[pair] = sums + head_divergence(signals["teacher"], one, *pair)
        width = batch.input_ids.shape[1]
        tokens.add(*_compared_tokens(batch), width, sequences)
        masked.add(batch.masked_labels, batch.masked_index, width, sequences)
        sequences, total = sequences + batch.num_sequences, total + batch.num_units
        if total >= _MOST_TOKENS:
            break
    if total < _FEWEST_TOKENS:
        raise InputError(
            f"too little held-out text for --layers (found {total:,} tokens, expected at least {_FEWEST_TOKENS:,})",
            where=str(run.folder),
            hint="hold out more of `task.data`",
        )
    return _report(run, compared, found, sequences, total, _errors(run, compared, found, tokens, masked))


def _report(
    run: FinishedRun,
    compared: _ComparedEncoders,
    found: Mapping[str, _EncoderMeasurements],
    sequences: int,
    total: int,
    errors: list[Errors],
) -> LayerReport:
    states = {name: [torch.cat(parts) for parts in one.states.values()] for name, one in found.items()}
    similarities = {name: debiased_cka(states["teacher"], states[name]) for name in compared.students}
    heads = [
        PairedHeads(
            teacher=pair[0],
            student=pair[1],
            divergence={name: (found[name].heads[pair] / total).tolist() for name in compared.students},
        )
        for pair in compared.heads
    ]
    return LayerReport(
        export=run.export.name,
        teacher=str(run.teacher_source),
        sequences=sequences,
        tokens=min(total, _CKA_TOKENS),
        teacher_blocks=list(found["teacher"].states),
        student_blocks=list(found["student"].states),
        pairs=compared.pairs,
        cka={name: _defined(values.all) for name, values in similarities.items()},
        cka_without_dominant={name: _defined(values.without_dominant) for name, values in similarities.items()},
        dominant={
            name: [dominant_dimensions(one).nonzero().flatten().tolist() for one in own] for name, own in states.items()
        },
        heads=heads,
        errors=errors,
    )


def _load(run: FinishedRun) -> _ComparedEncoders:
    """Load the encoders, and choose the blocks to compare."""
    teacher, student = run.teacher_model, run.student_model
    if teacher is None or student is None:
        raise InputError("--layers compares with a teacher, but the run has none", where=str(run.folder))
    encoders = {"student": _load_student(student, run.export)}
    folder = run.folder / "exports" / "initial"
    if folder.is_dir():
        initial = _load_student(student, folder)
        if initial.info == encoders["student"].info:  # stages may change the student
            encoders["initial"] = initial
    own, theirs = encoders["student"].info, teacher.info
    pairs = _pairs(run, theirs, own)
    comparable = own.attention and theirs.attention and own.num_heads == theirs.num_heads
    heads = [(int(t), int(s)) for t, s in pairs if comparable and "embeddings" not in (t, s)]
    requests = {}
    for name, info in {"teacher": theirs, **{name: one.info for name, one in encoders.items()}}.items():
        request = Signals.hidden(["embeddings", *range(info.num_layers)])
        request |= Signals.attention(["query", "key"], [pair[name != "teacher"] for pair in heads])
        if info.head("masked_lm") is not None and own.head("masked_lm") is not None and not run.task.separate_views:
            request |= Signals.predictions("masked")
        requests[name] = request
    encoders = {"teacher": teacher.load_teacher(requests["teacher"]), **encoders}
    device = fastest_device()
    return _ComparedEncoders({name: one.to(device).eval() for name, one in encoders.items()}, pairs, heads, requests)


def _load_student(model: Model, folder: Path) -> Encoder:
    """Load an export, with its masked-LM head if it has one."""
    loaded = model.load_export(folder, Signals.predictions("masked")) or model.load_export(folder, SignalRequest())
    if loaded is None:
        raise InputError("--layers does not support this model, which cannot load its own exports", where=str(folder))
    return loaded


def _pairs(run: FinishedRun, teacher: ModelInfo, student: ModelInfo) -> list[tuple[Block, Block]]:
    """Return the pairs of blocks that the losses with this teacher compare, from the first blocks to the last."""
    labels = [None, *(label for label, source in run.teacher_sources.items() if source == run.teacher_source)]
    rules: list[LayerPairs] = [
        loss.config.layers  # type: ignore[attr-defined]
        for loss in run.losses.values()
        if loss.config.teacher in labels and _is_rule(loss.config)
    ]
    pairs = {pair for rule in rules or ["all"] for pair in resolve_pairs(rule, teacher.num_layers, student.num_layers)}
    return sorted(pairs, key=lambda pair: [-1 if block == "embeddings" else int(block) for block in reversed(pair)])


def _is_rule(config: object) -> bool:
    """Return whether a loss has the usual key for pairs of blocks."""
    stated = getattr(type(config), "model_fields", {}).get("layers")
    return stated is not None and stated.annotation == LayerPairs


def _batches(task: Task) -> Iterator[Batch]:
    device = fastest_device()
    for start in range(0, task.num_samples("held_out"), _BATCH):
        samples = np.arange(start, min(start + _BATCH, task.num_samples("held_out")))
        yield task.draw("held_out", samples, np.zeros_like(samples)).to(device)


def _collect(
    found: _EncoderMeasurements, signals: Signals, batch: Batch, compared: _ComparedEncoders, name: str, keep: int
) -> None:
    """Add the states of a batch (the first `keep` are used for CKA) and the losses of its masked tokens."""
    request = compared.requests[name]
    blocks: list[Block] = ["embeddings", *range(compared.encoders[name].info.num_layers)]
    for block in blocks if keep > 0 else ():
        found.states.setdefault(block, []).append(signals.units(block)[:keep].clone())
    found.last.append(signals.units(compared.last_block(name)).clone())
    if request.prediction_positions:
        losses = cross_entropy(signals.logits("masked").double(), batch.masked_labels, reduction="none")
        found.masked.append(losses)


def _compared_tokens(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return original ids and flat positions of real tokens; with two tokenizers, of the first token of each unit."""
    ids = batch.input_ids.flatten().clone()
    ids[batch.masked_index] = batch.masked_labels
    flat = batch.token_index
    if batch.units is not None:
        flat = flat[batch.units.tokens[batch.units.starts]]
    return ids[flat], flat


def head_divergence(teacher: Signals, student: Signals, teacher_block: int, student_block: int) -> Tensor:
    """Return the Jensen-Shannon divergence in bits of each head's attention, summed over real queries: (A,) float64."""
    chunks = [
        one.unit_heads(part, block)
        for one, block in ((teacher, teacher_block), (student, student_block))
        for part in ("query", "key")
    ]
    sums = torch.zeros((), dtype=torch.float64)
    for theirs, their_keys, own, own_keys in zip(*chunks, strict=True):
        for row in range(own.states.shape[0]):
            first, second = _attention(theirs, their_keys, row), _attention(own, own_keys, row)
            entropies = (
                torch.special.entr((first + second) / 2) - (torch.special.entr(first) + torch.special.entr(second)) / 2
            )
            sums = sums.to(own.states.device) + entropies.sum((1, 2)) / math.log(2)
    return sums


def _attention(queries: HeadChunk, keys: HeadChunk, row: int) -> Tensor:
    """Return the attention of one sequence's real tokens: (A, l, l) float64."""
    length = queries.states.shape[2] if queries.rows is None else int(queries.rows[row].sum())
    real = slice(0, length)
    scores = (queries.states[row, :, real].double() @ keys.states[row, :, real].double().mT) * queries.scale
    if queries.mask is not None:
        mask = queries.mask.expand(*queries.states.shape[:3], queries.states.shape[2])[row, :, real, real]
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1)


def _errors(
    run: FinishedRun,
    compared: _ComparedEncoders,
    found: Mapping[str, _EncoderMeasurements],
    tokens: _GroupedTokens,
    masked: _GroupedTokens,
) -> list[Errors]:
    """Group errors of masked tokens, and of states, by frequency and position."""
    errors: list[Errors] = []
    counts = _counts(run.task)
    losses = {name: torch.cat(one.masked).cpu().numpy() for name, one in found.items() if one.masked}
    if "student" in losses and len(losses["student"]):
        errors += _grouped("masked_lm", losses, masked, counts, slice(None))
    states = {name: torch.cat(one.last) for name, one in found.items()}
    sequences = np.concatenate(tokens.sequences)
    asked = [loss.requests() for loss in run.losses.values()]
    direct = any(one.teacher.hidden_blocks and one.student.hidden_blocks for one in asked)
    theirs = states.pop("teacher")
    if direct and theirs.shape == states["student"].shape:
        distances = {name: _relative(own, theirs, theirs.double().mean(0)) for name, own in states.items()}
        return errors + _grouped("state", distances, tokens, counts, slice(None))
    fitted = torch.from_numpy(sequences % 2 == 0).to(theirs.device)
    if int(fitted.sum()) < _TOKENS_PER_DIMENSION * states["student"].shape[1]:
        return errors
    mean = theirs[fitted].double().mean(0)
    distances = {name: _relative(_mapped(own, theirs, fitted), theirs[~fitted], mean) for name, own in states.items()}
    return errors + _grouped("state_mapped", distances, tokens, counts, np.flatnonzero(sequences % 2))


def _relative(states: Tensor, targets: Tensor, constant: Tensor) -> np.ndarray:
    """Return squared distances (n,) of states from targets, divided by the mean squared distance of a constant."""
    distances = (states.double() - targets.double()).square().sum(1)
    return (distances / (targets.double() - constant).square().sum(1).mean()).cpu().numpy()


def _mapped(states: Tensor, targets: Tensor, fitted: Tensor) -> Tensor:
    """Fit the best affine map from states to targets where `fitted` (n,) is true, and map the other states."""
    x, y = states[fitted].double(), targets[fitted].double()
    center = x.mean(0)
    product = (x - center).T @ (x - center)
    product.diagonal().add_(_RIDGE * product.diagonal().mean())
    weight: Tensor = torch.linalg.lstsq(product, (x - center).T @ (y - y.mean(0))).solution
    return (states[~fitted].double() - center) @ weight + y.mean(0)


def _counts(task: Task) -> np.ndarray | None:
    """Count each token in up to 8,192 sequences of the training text; None if the task has no tokens to count."""
    number = task.num_samples("train")
    samples = np.unique(np.linspace(0, number - 1, min(number, _COUNTED_SEQUENCES)).astype(np.int64))
    found = task.sequences("train", samples)
    if found is None:
        return None
    ids, lengths = found
    return np.bincount(ids[np.arange(ids.shape[1]) < lengths[:, None]])


def _grouped(
    measure: Literal["masked_lm", "state", "state_mapped"],
    values: Mapping[str, np.ndarray],
    tokens: _GroupedTokens,
    counts: np.ndarray | None,
    chosen: slice | np.ndarray,
) -> list[Errors]:
    """Average values of the chosen tokens by position and, if known, by frequency."""
    overall = {name: float(one.mean()) for name, one in values.items()}
    found = []
    if counts is not None:
        ids = np.concatenate(tokens.ids)[chosen]
        frequencies = np.append(counts, 0)[np.minimum(ids, len(counts))] * 1e6 / counts.sum()
        groups = error_groups(values, frequencies, _FREQUENCIES)
        found.append(Errors(measure=measure, by="frequency", overall=overall, groups=groups))
    groups = error_groups(values, np.concatenate(tokens.positions)[chosen], _POSITIONS)
    return [*found, Errors(measure=measure, by="position", overall=overall, groups=groups)]


def error_groups(values: Mapping[str, np.ndarray], by: np.ndarray, edges: Sequence[int]) -> list[ErrorGroup]:
    """Average values (n,) in groups that ascending edges define on `by` (n,); omit empty groups."""
    numbers = np.searchsorted(edges, by, side="right") - 1
    found = []
    for number in np.unique(numbers):
        inside = numbers == number
        found.append(
            ErrorGroup(
                lowest=edges[number],
                highest=edges[number + 1] if number + 1 < len(edges) else None,
                count=int(inside.sum()),
                values={name: float(one[inside].mean()) for name, one in values.items()},
            )
        )
    return found


def _defined(values: np.ndarray) -> SimilarityMatrix:
    """Convert a matrix to lists, NaN to None."""
    return [[None if np.isnan(value) else float(value) for value in row] for row in values]
