"""Compute the value of a loss, and check the requirements on losses."""

from __future__ import annotations

import copy
import inspect
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcore import Head, Loss, ModelInfo, Units, find_component
from kdcore_testing.signal_cases import (
    Case,
    Read,
    RecordingSignals,
    UnaskedSignalError,
    given_reads,
    make_case,
    reads_of,
    shape_of,
)
from kdcore_testing.tensor_origins import TensorOrigins

ColumnMaker = Callable[[int], Mapping[str, np.ndarray]] | Callable[[int, int], Mapping[str, np.ndarray]]

IGNORED_LABEL = -100
"""In `labels` of shape (B, L): a position without a prediction."""


def compute_loss(
    name: str | type[Loss],
    config: Mapping[str, Any] | None = None,
    *,
    student: Mapping[str, Any],
    teacher: Mapping[str, Any] | None,
    attention_mask: Any = None,
    labels: Any = None,
    sample_ids: Any = None,
    columns: Mapping[str, Any] | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Compute the value of a loss on given arrays, in their precision (float64 stays float64).

    Args:
        name: registered name of the loss, or its class.
        config: its keys in a recipe, without `name`.
        student: signals: `hidden`, a list with one array (B, L, d) per block; optionally `embeddings` (B, L, d),
            `query`, `key`, `value`, lists with one array (B, A, L, d_k) per block, `logits` (B, L, V), `classes`
            (B, C), and `outputs`, a mapping from names of heads to arrays (B, C) or (B, L, C).
        teacher: the same for the teacher; None for a loss without a teacher.
        attention_mask: (B, L), 1 on real tokens; None without padding.
        labels: (B, L) tokens to be predicted, -100 elsewhere; or (B,) classes or numbers, the batch's column `labels`.
        sample_ids: (B,), the batch's column `sample_ids`.
        columns: additional columns of the batch by name: arrays (B, ...), or (B, L) for columns of level `token`.
        parameters: values of the loss's parameters and buffers, by name.

    Returns:
        Each term's sum divided by its count, and under `total` their sum times the loss's weight (its first value, if
        it is a schedule).

    Raises:
        InputError: the configuration is not valid for the models.
        AssertionError: the loss reads a signal that it does not request or that is not given, or requests a column
            that is not given.
    """
    own, theirs = given_reads(student), {} if teacher is None else given_reads(teacher)
    shape = _shape([*own.items(), *theirs.items()])
    real = np.ones(shape, dtype=bool) if attention_mask is None else np.asarray(attention_mask).astype(bool)
    given = {column: np.asarray(values) for column, values in (columns or {}).items()}
    if sample_ids is not None:
        given["sample_ids"] = np.asarray(sample_ids, dtype=np.int64)
    tokens = np.full(shape, IGNORED_LABEL)
    if labels is not None and np.ndim(labels) == 1:
        given["labels"] = np.asarray(labels)
    elif labels is not None:
        tokens = np.asarray(labels)
    infos = _info(own), None if teacher is None else _info(theirs)
    loss = _build(name, config, infos[0], infos[1])
    if any(tensor.dtype == torch.float64 for tensor in (*own.values(), *theirs.values())):
        loss.double()
    if parameters:
        known = loss.state_dict()
        unknown = sorted(set(parameters) - set(known))
        assert not unknown, f"the loss has no parameter {unknown[0]!r}; it has {sorted(known)}"
        loss.load_state_dict({key: torch.as_tensor(value) for key, value in parameters.items()}, strict=False)
    requests = loss.requests()
    missing = sorted(requests.columns - set(given))
    assert not missing, f"the loss requests the column `{missing[0]}`: pass it in `columns`"
    case = Case(
        real,
        tokens != IGNORED_LABEL,
        tokens,
        given,
        _asked(own, reads_of(requests.student), "student"),
        _asked(theirs, reads_of(requests.teacher), "teacher"),
    )
    with torch.no_grad():
        values, _ = _evaluate(loss, case)
    terms = {term: value.item() for term, value in values.items()}
    return terms | {"total": loss.config.weight_at(loss.config.active[0]) * sum(terms.values())}


def check_loss(
    name: str | type[Loss],
    config: Mapping[str, Any] | None = None,
    *,
    teacher: ModelInfo | None = None,
    student: ModelInfo | None = None,
    columns: ColumnMaker | None = None,
    large: bool = True,
    maps_teacher: bool = False,
) -> None:
    """Check the requirements on every loss.

    1. `counts` and `forward` return the same terms; sums are scalars of at least float32.
    2. It reads exactly the signals that it requests, and no column of the batch that it does not request.
    3. The loss between equal models is 0 (unless `zero_when_equal` is False).
    4. Gradients reach every requested signal of the student, and equal finite differences in float64.
    5. Additional padding with any content changes neither value nor gradient.
    6. Counts of a whole batch are the sums of the counts of its parts. Splitting a batch changes neither the value nor
       any gradient, including the gradients of the loss's own parameters (unless `couples_batch` is True).
    7. In fp16 and bf16 it is finite and agrees with float32 on the same numbers. This is checked for 256 sequences with
       12 heads and 128 tokens, after moving its own parameters away from their initial values, and for two short
       sequences.
    8. Saving and loading its state does not change its value. Its own parameters have at least one dimension.
    9. Its sign is correct: it is lowest between equal models, and has a lower bound.
    10. With `couples_batch`, sequences influence each other. Without it, its own parameters do not act on the teacher's
        signals alone, because this could make the task trivial.
    11. Unless `compares_tokens` is True, a teacher with different tokens of the same text, aligned by units, is
        supported.

    Args:
        name: registered name of the loss, or its class.
        config: its keys in a recipe, without `name`.
        teacher: description of the teacher; default: 4 blocks, 4 heads, hidden size 8, and the heads of `student`.
        student: description of the student; default: 2 blocks, otherwise like the teacher.
        columns: function that returns the batch's additional columns for B sequences, or for B and L if it takes two
            arguments; arrays (B, L) are columns of level `token`. Default: `sample_ids` and `labels`.
        large: whether to run check 7 at the large size, which takes some seconds and 1 to 3 GB of memory.
        maps_teacher: whether to skip the second part of check 10, because the published loss applies a learned map to
            the teacher's signals.

    Raises:
        AssertionError: a requirement is violated; the message names it.
    """
    student = student or tiny(2)
    if teacher is None:
        usual = tiny(4)
        teacher = replace(usual, heads=(*student.heads, *usual.heads))
    check = _LossCheck(name, config or {}, teacher, student, columns or _default_columns)
    check.reads()
    check.terms()
    check.zero()
    check.sign()
    check.gradients()
    check.padding()
    check.splitting()
    check.coupling()
    if not maps_teacher:
        check.teacher_side()
    check.own_precision()
    if large:
        check.half_precision()
    check.state()
    check.views()


def tiny(num_layers: int, hidden_size: int = 8, num_heads: int = 4) -> ModelInfo:
    """Describe a small model for checks of a loss."""
    heads = (Head.masked_lm(11), Head.sequence_classes(num_outputs=3))
    return ModelInfo("bert", num_layers, hidden_size, num_heads, hidden_size // num_heads, 11, 512, heads=heads)


class _LossCheck:
    """The checks, one per method."""

    def __init__(
        self,
        name: str | type[Loss],
        config: Mapping[str, Any],
        teacher: ModelInfo,
        student: ModelInfo,
        columns: ColumnMaker,
    ) -> None:
        self.name, self.config = name, config
        self.teacher, self.student = teacher, student
        self._make_columns: Callable[..., Mapping[str, np.ndarray]] = columns
        self._takes_length = len(inspect.signature(columns).parameters) > 1
        torch.manual_seed(0)
        self.loss = self._new()
        requests = self.loss.requests()
        self.requested = requests.columns
        self.asked = requests.student, requests.teacher

    def _new(self) -> Loss:
        return _build(self.name, self.config, self.student, self.teacher)

    def columns(self, size: int, length: int) -> Mapping[str, np.ndarray]:
        """Return the columns of a batch; reading a column that the loss does not request raises an error."""
        made = self._make_columns(size, length) if self._takes_length else self._make_columns(size)
        missing = sorted(self.requested - set(made))
        assert not missing, f"the loss requests the column `{missing[0]}`: pass `columns` that return it"
        return {name: column for name, column in made.items() if name in self.requested}

    def _case(self, lengths: Sequence[int], seed: int = 0) -> Case:
        infos = self.student, self.teacher
        generator = np.random.default_rng(seed)
        return make_case(self.asked, infos, lengths, generator, self.columns(len(lengths), max(lengths)))

    def _double(self) -> Loss:
        return copy.deepcopy(self.loss).double()

    def terms(self) -> None:
        case = self._case([4, 2])
        counts, values = self.loss.counts(case.batch), self._sums(copy.deepcopy(self.loss), case.map(Tensor.float))
        assert set(counts) == set(values), f"`counts` returns {sorted(counts)}, `forward` {sorted(values)}"
        assert counts, "the loss has no terms"
        for term, value in values.items():
            assert value.ndim == 0, f"the sum of `{term}` is not a scalar but of shape {tuple(value.shape)}"
            assert value.dtype in (torch.float32, torch.float64), f"the sum of `{term}` is {value.dtype}"
        for term, count in counts.items():
            assert isinstance(count, int), f"the count of `{term}` is of type {type(count).__name__}, not int"

    def reads(self) -> None:
        case = self._case([4, 2]).map(Tensor.float)
        student, teacher = (RecordingSignals(case.batch, side) for side in (case.student, case.teacher))
        try:
            copy.deepcopy(self.loss)(student, teacher if case.teacher else None, case.batch)
        except UnaskedSignalError as error:
            raise AssertionError(f"the loss reads a signal that it does not request: {error}") from error
        except KeyError as error:
            if error.args[0] in self.requested:
                raise
            raise AssertionError(f"the loss reads the column {error}, which it does not request") from error
        for side, signals, asked in (("student", student, case.student), ("teacher", teacher, case.teacher)):
            unread = sorted(set(asked) - signals.read, key=str)
            assert not unread, f"the loss requests {unread} of the {side}, but does not read it"

    def _equal_models(self) -> tuple[Loss, Case]:
        """Return a new loss between two models like the teacher, and equal signals for both."""
        loss = _build(self.name, self.config, self.teacher, self.teacher)
        requests = loss.requests()
        reads = set(reads_of(requests.student)) | set(reads_of(requests.teacher))
        whole = make_case((requests.student | requests.teacher,) * 2, (self.teacher,) * 2, [4, 2, 3],
                          np.random.default_rng(0), self.columns(3, 4))  # fmt: skip
        return loss, _equal_pairs(loss, whole, reads)

    def zero(self) -> None:
        if not self.loss.zero_when_equal:
            return
        loss, by_pair = self._equal_models()
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            values, _ = _evaluate(copy.deepcopy(loss), by_pair.map(lambda tensor, dtype=dtype: tensor.to(dtype)))  # type: ignore[misc]
            for term, value in values.items():
                assert abs(value.item()) < 1e-6, f"equal models have {term} = {value.item():g} in {dtype}, expected 0"

    def sign(self) -> None:
        loss, equal = self._equal_models()
        trained = any(True for _ in loss.parameters())
        if self.asked[1] and (self.loss.zero_when_equal or not trained):
            at_best = _total(loss, equal)
            generator = np.random.default_rng(5)
            for _ in range(3):
                noise = {
                    read: torch.from_numpy(generator.standard_normal(tuple(one.shape)))
                    for read, one in equal.student.items()
                }
                value = _total(loss, _with_student(equal, noise))
                assert value >= at_best - 1e-9, (
                    f"the sign is wrong: the loss between different models is {value:.4g}, below the {at_best:.4g} "
                    "between equal ones"
                )
        case = self._case([3, 2])
        start = _total(self.loss, case)
        tensors = {read: one.clone().requires_grad_() for read, one in case.student.items()}
        descent = torch.optim.Adam(list(tensors.values()), lr=0.5)
        used = self._double()
        for _ in range(200):
            _, gradients = _evaluate(copy.deepcopy(used), _with_student(case, tensors))
            for read, tensor in tensors.items():
                tensor.grad = gradients[read]
            descent.step()
        end = _total(self.loss, _with_student(case, {read: one.detach() for read, one in tensors.items()}))
        assert end > -10 * (1 + abs(start)), (
            f"the sign is wrong: along its gradient the loss falls from {start:.4g} to {end:.4g}, without a lower bound"
        )

    def gradients(self) -> None:
        case = self._case([3, 2])
        used = self._double()
        _evaluate(used, case)  # values that it estimates from its first batch are constants from now on
        _, gradients = _evaluate(copy.deepcopy(used), case)
        for read, gradient in gradients.items():
            assert gradient.abs().max() > 0, f"no gradient reaches {read} of the student"
        generator = torch.Generator().manual_seed(1)
        for read, gradient in gradients.items():
            direction = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
            step = 1e-6
            ends = []
            for sign in (1, -1):
                moved = {**case.student, read: case.student[read] + sign * step * direction}
                values, _ = _evaluate(copy.deepcopy(used), _with_student(case, moved))
                ends.append(sum(values.values()))
            measured = float(ends[0] - ends[1]) / (2 * step)
            computed = float((gradient * direction).sum())
            assert np.isclose(measured, computed, rtol=1e-4, atol=1e-7), (
                f"the directional derivative for {read} of the student is {computed:g}, but finite differences give "
                f"{measured:g}"
            )

    def padding(self) -> None:
        case = self._case([4, 2, 3])
        wider = case.padded(3, np.random.default_rng(9))
        values, gradients = _evaluate(self._double(), case)
        other_values, other_gradients = _evaluate(self._double(), wider)
        _assert_equal(values, other_values, "further padding changes")
        for read, gradient in gradients.items():
            other = other_gradients[read]
            if read[0] == "outputs" and gradient.ndim == 2:
                assert torch.allclose(gradient, other, rtol=1e-8, atol=1e-12), "further padding changes the gradient"
                continue
            axis = 1 if read[0] in ("hidden", "logits", "outputs") else 2
            kept = other.narrow(axis, 0, gradient.shape[axis])
            rest = other.narrow(axis, gradient.shape[axis], 3)
            assert torch.allclose(gradient, kept, rtol=1e-8, atol=1e-12), (
                f"further padding changes the gradient of {read}"
            )
            assert not rest.any(), f"the gradient of {read} is not 0 at padding"

    def splitting(self) -> None:
        if self.loss.couples_batch:
            return
        case = self._case([4, 2, 3, 1])
        halves = [case.rows(chosen) for chosen in (slice(0, 1), slice(1, 4))]
        counts = self.loss.counts(case.batch)
        for term, count in counts.items():
            added = sum(self.loss.counts(half.batch)[term] for half in halves)
            assert count == added, (
                f"the count of `{term}` is {count} for a batch, but {added} for its two parts together"
            )
        loss = _perturbed(self._double())
        values, gradients = _evaluate(loss, case)
        own = {name: parameter.grad for name, parameter in loss.named_parameters() if parameter.grad is not None}
        sums: dict[str, float] = {}
        parts: dict[Read, list[Tensor]] = {}
        split = _perturbed(self._double())
        for part in halves:
            own_values, own_gradients = _evaluate(split, part, counts)
            for term, value in own_values.items():
                sums[term] = sums.get(term, 0.0) + value.item()
            for read, gradient in own_gradients.items():
                parts.setdefault(read, []).append(gradient)
        together = {term: torch.tensor(value, dtype=torch.float64) for term, value in sums.items()}
        _assert_equal(values, together, "splitting a batch changes")
        for read, gradient in gradients.items():
            assert torch.allclose(gradient, torch.cat(parts[read]), rtol=1e-8, atol=1e-12), (
                f"splitting changes the gradient of {read}"
            )
        for name, parameter in split.named_parameters():
            if name in own:
                assert parameter.grad is not None, f"splitting changes whether `{name}` gets a gradient"
                assert torch.allclose(own[name], parameter.grad, rtol=1e-8, atol=1e-12), (
                    f"splitting changes the gradient of the loss's parameter `{name}`"
                )

    def coupling(self) -> None:
        if not self.loss.couples_batch:
            return
        case = self._case([4, 2, 3, 1])
        _, before = _evaluate(self._double(), case)
        generator = np.random.default_rng(3)

        def other(tensor: Tensor) -> Tensor:
            changed = tensor.clone()
            changed[1:] = torch.from_numpy(generator.standard_normal(tuple(changed[1:].shape)))
            return changed

        _, after = _evaluate(self._double(), case.map(other))
        influence = max((before[read][0] - after[read][0]).abs().max().item() for read in before)
        assert influence > 1e-12, (
            "`couples_batch` is True, but the gradient of a sequence does not depend on the others: return sums and "
            "their counts instead of means over the batch, and leave `couples_batch` out"
        )

    def teacher_side(self) -> None:
        if self.loss.couples_batch:
            return
        case = self._case([4, 2, 3]).map(Tensor.float)
        loss = copy.deepcopy(self.loss)
        origins = TensorOrigins()
        for origin, tensors in (
            ("parameter", list(loss.parameters())),
            ("student", list(case.student.values())),
            ("teacher", list(case.teacher.values())),
        ):
            for tensor in tensors:
                origins.mark(tensor, origin)
        with torch.no_grad(), origins:
            self._sums(loss, case)
        assert not origins.meetings("parameter", "teacher"), (
            "a parameter of the loss acts on the teacher's signals alone (in "
            f"{', '.join(sorted(origins.meetings('parameter', 'teacher')))}): it would learn to make them trivial. Map "
            "the student's signals instead"
        )

    def half_precision(self) -> None:
        teacher, student = (_large(info) for info in (self.teacher, self.student))
        loss = _perturbed(_build(self.name, self.config, student, teacher))
        requests = loss.requests()
        torch_generator = torch.Generator().manual_seed(0)
        lengths = [128 if row % 4 else 96 for row in range(256)]

        def draw(read: Read, info: ModelInfo) -> Tensor:
            return 2 * torch.randn(shape_of(read, info, 256, 128), generator=torch_generator)

        real = np.arange(128) < np.asarray(lengths)[:, None]
        masked = real & (np.random.default_rng(0).random(real.shape) < 0.15)
        labels = np.random.default_rng(1).integers(0, student.vocab_size, real.shape)
        exact = Case(
            real,
            masked,
            labels,
            self.columns(256, 128),
            {read: draw(read, student) for read in reads_of(requests.student)},
            {read: draw(read, teacher) for read in reads_of(requests.teacher)},
        )
        for dtype in (torch.float16, torch.bfloat16):
            rounded = exact.map(lambda tensor, dtype=dtype: tensor.to(dtype))  # type: ignore[misc]
            with torch.no_grad():
                # The engine casts parameters, too. Both losses get rounded parameters, so that only arithmetic differs.
                cast = copy.deepcopy(loss).to(dtype)
                half, _ = _evaluate(copy.deepcopy(cast), rounded)
                single, _ = _evaluate(cast.float(), rounded.map(Tensor.float))
            for term, value in half.items():
                assert torch.isfinite(value), f"`{term}` is {value.item()} in {dtype} at 256 x 12 x 128 x 128"
            _assert_equal(single, half, f"{dtype} instead of float32 on the same numbers changes", rtol=1e-4)

    def own_precision(self) -> None:
        """Compare results on few numbers, because rounding errors do not average out in small sums."""
        loss, case = _perturbed(copy.deepcopy(self.loss)), self._case([2, 1])
        for dtype in (torch.float16, torch.bfloat16):
            cast, rounded = copy.deepcopy(loss).to(dtype), case.map(lambda tensor, dtype=dtype: tensor.to(dtype))  # type: ignore[misc]
            with torch.no_grad():
                half, _ = _evaluate(copy.deepcopy(cast), rounded)
                single, _ = _evaluate(cast.float(), rounded.map(Tensor.float))
            _assert_equal(single, half, f"{dtype} instead of float32 on the same numbers changes", rtol=2e-5)

    def state(self) -> None:
        scalars = [name for name, parameter in self.loss.named_parameters() if not parameter.ndim]
        assert not scalars, f"the parameter `{scalars[0]}` has no dimensions, which DeepSpeed needs: use the shape (1,)"
        case = self._case([4, 2, 3]).map(Tensor.float)
        used = copy.deepcopy(self.loss)
        _evaluate(used, case)  # sets the state of losses that keep one
        file = io.BytesIO()
        torch.save(used.state_dict(), file)
        file.seek(0)
        again = self._new()
        again.load_state_dict(torch.load(file, weights_only=True))
        _assert_equal(_evaluate(used, case)[0], _evaluate(again, case)[0], "saving and loading changes")

    def views(self) -> None:
        if self.loss.compares_tokens or not self.asked[1]:
            return
        sides = self._case([5, 3]), self._case([4, 6], seed=1)
        theirs, own = (replace(case.batch, units=_two_units(case.real)) for case in reversed(sides))
        student = RecordingSignals(own, sides[0].student)
        batch = replace(own, teacher=theirs)
        try:
            values = self._double()(student, RecordingSignals(theirs, sides[1].teacher), batch)
        except (RuntimeError, AssertionError) as error:
            raise AssertionError(
                f"`compares_tokens` is False, but the loss fails for a teacher with different tokens: {error}"
            ) from error
        for term, value in values.items():
            assert torch.isfinite(value), f"`{term}` is {value.item()} for a teacher with different tokens"

    @staticmethod
    def _sums(loss: Loss, case: Case) -> dict[str, Tensor]:
        student, teacher = (RecordingSignals(case.batch, side) for side in (case.student, case.teacher))
        sums: dict[str, Tensor] = loss(student, teacher if case.teacher else None, case.batch)
        return sums


def _perturbed(loss: Loss) -> Loss:
    """Move parameters away from their initial values, where errors may have no effect."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in loss.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_((0.1 * noise).to(parameter.dtype))
    return loss


def _two_units(real: np.ndarray) -> Units:
    """Align the first token of each sequence, and the rest of it; `real` is (B, L)."""
    lengths = real.sum(1)
    starts = np.stack([np.zeros_like(lengths), np.ones_like(lengths)], 1) + (np.cumsum(lengths) - lengths)[:, None]
    return Units(torch.arange(int(lengths.sum())), torch.from_numpy(starts.reshape(-1)), np.full(len(lengths), 2))


def _evaluate(
    loss: Loss, case: Case, counts: Mapping[str, int] | None = None
) -> tuple[dict[str, Tensor], dict[Read, Tensor]]:
    """Return each term divided by its count (or a given count), and the gradients of their sum by student signal."""
    needs_gradient = torch.is_grad_enabled()
    student = {read: tensor.detach().requires_grad_(needs_gradient) for read, tensor in case.student.items()}
    batch = case.batch
    counts = loss.counts(batch) if counts is None else counts
    teacher = RecordingSignals(batch, case.teacher) if case.teacher else None
    sums = loss(RecordingSignals(batch, student), teacher, batch)
    values = {term: value / counts[term] if counts[term] else value * 0 for term, value in sums.items()}
    gradients: dict[Read, Tensor] = {}
    if needs_gradient and student:
        total = torch.stack(list(values.values())).sum()
        inputs = [*student.values(), *(one for one in loss.parameters() if one.requires_grad)]
        found = torch.autograd.grad(total, inputs, allow_unused=True)
        for parameter, gradient in zip(inputs[len(student) :], found[len(student) :], strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        for (read, tensor), gradient in zip(student.items(), found, strict=False):
            gradients[read] = torch.zeros_like(tensor) if gradient is None else gradient
    return {term: value.detach() for term, value in values.items()}, gradients


def _build(
    name: str | type[Loss], config: Mapping[str, Any] | None, student: ModelInfo, teacher: ModelInfo | None
) -> Loss:
    cls: Any = find_component("kdcore.losses", name).cls if isinstance(name, str) else name
    label = name if isinstance(name, str) else cls.__name__
    loss: Loss = cls(cls.Config(name=label, label=label, **(config or {})), teacher, student)
    return loss


def _equal_pairs(loss: Loss, whole: Case, reads: set[Read]) -> Case:
    """Create signals of student and teacher that are equal for any pairing of blocks.

    All blocks of both models have the same states.
    """
    first: dict[str, Tensor] = {}
    for read in sorted(reads, key=str):
        first.setdefault(read[0], whole.student[read])
    requests = loss.requests()
    sides = [{read: first[read[0]] for read in reads_of(asked)} for asked in (requests.student, requests.teacher)]
    return Case(whole.real, whole.masked, whole.labels, whole.columns, sides[0], sides[1])


def _with_student(case: Case, student: Mapping[Read, Tensor]) -> Case:
    return Case(case.real, case.masked, case.labels, case.columns, student, case.teacher)


def _large(info: ModelInfo) -> ModelInfo:
    """Return the same model with 12 heads of width 64, or 32 if its hidden size is below 8."""
    head_size = 64 if info.hidden_size >= 8 else 32
    large = replace(info, hidden_size=12 * head_size, num_heads=12, head_size=head_size)
    return replace(large, vocab_size=64, max_length=512)


def _default_columns(size: int) -> dict[str, np.ndarray]:
    return {"sample_ids": np.arange(size), "labels": np.arange(size) % 3}


def _total(loss: Loss, case: Case) -> float:
    """Return the sum of all terms' means in float64."""
    with torch.no_grad():
        values, _ = _evaluate(copy.deepcopy(loss).double(), case)
    return float(sum(value.item() for value in values.values()))


def _assert_equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor], what: str, rtol: float = 1e-8) -> None:
    for term, value in one.items():
        assert np.isclose(value.item(), other[term].item(), rtol=rtol, atol=1e-12), (
            f"{what} `{term}` from {value.item():.10g} to {other[term].item():.10g}"
        )


def _shape(reads: Sequence[tuple[Read, Tensor]]) -> tuple[int, int]:
    """Return (B, L) of the given signals."""
    assert reads, "no signals are given"
    read, tensor = reads[0]
    if read[0] == "outputs" and tensor.ndim == 2:
        return int(tensor.shape[0]), 1
    return int(tensor.shape[0]), int(tensor.shape[1 if read[0] in ("hidden", "logits", "outputs") else 2])


def _info(reads: Mapping[Read, Tensor]) -> ModelInfo:
    """Describe a model with the given signals."""
    hidden = [tensor for read, tensor in reads.items() if read[0] == "hidden"]
    heads = [tensor for read, tensor in reads.items() if read[0] in ("query", "key", "value")]
    logits = [tensor for read, tensor in reads.items() if read[0] == "logits"]
    num_heads, head_size = (int(heads[0].shape[1]), int(heads[0].shape[3])) if heads else (1, 1)
    width = int(hidden[0].shape[2]) if hidden else num_heads * head_size
    blocks = [place for kind, place in reads if kind not in ("logits", "outputs") and place != "embeddings"]
    layers = 1 + max((int(place) for place in blocks), default=0)
    vocab_size = int(logits[0].shape[2]) if logits else 1
    head_size = head_size if heads else width
    predicted = [Head.masked_lm(vocab_size)] if logits else []
    for (kind, name), tensor in reads.items():
        if kind == "outputs" and name == "sequence_classes":
            predicted.append(Head.sequence_classes(num_outputs=int(tensor.shape[-1])))
        elif kind == "outputs":
            predicted.append(Head(str(name), "sequence" if tensor.ndim == 2 else "token", int(tensor.shape[-1])))
    return ModelInfo("bert", layers, width, num_heads, head_size, vocab_size, 512, heads=predicted)


def _asked(reads: Mapping[Read, Tensor], asked: Sequence[Read], side: str) -> dict[Read, Tensor]:
    missing = [read for read in asked if read not in reads]
    assert not missing, f"the loss requests {missing[0][0]} of {missing[0][1]!r} of the {side}, which is not given"
    return {read: reads[read] for read in asked}
