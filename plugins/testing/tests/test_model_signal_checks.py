"""`check_model` names what is wrong with predictions, attention signals, heads and the description of a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kdcore_testing import check_model
from torch import Tensor

from kdcore import AttentionPattern, AttentionTap, Batch, Head, InputError, SignalRequest, Signals, TransformersModel

STUDENT = {"config": {"num_hidden_layers": 2}, "initialize": {"from": "teacher"}}
Change = Callable[[Batch, SignalRequest, Signals], Signals]


def wrong_signals(change: Change) -> type[TransformersModel]:
    """The model `transformers` with signals that are changed after each forward pass."""

    def wrap(encoder: Any) -> Any:
        class WrongEncoder(type(encoder)):  # type: ignore[misc]
            def forward(self, batch: Batch, request: SignalRequest) -> Signals:
                return change(batch, request, super().forward(batch, request))

        encoder.__class__ = WrongEncoder  # a copy of the encoder has it, too
        return encoder

    class Wrong(TransformersModel):
        def load_teacher(self, request: SignalRequest) -> Any:
            return wrap(super().load_teacher(request))

        def build_student(self, request: SignalRequest) -> Any:
            return wrap(super().build_student(request))

    return Wrong


def wrong_logits(change: Callable[[Tensor, Batch, str], Tensor]) -> type[TransformersModel]:
    def whole(batch: Batch, request: SignalRequest, signals: Signals) -> Signals:
        if request.prediction_positions:
            signals._logits = {place: change(one, batch, place) for place, one in signals._logits.items()}
        return signals

    return wrong_signals(whole)


def wrong_outputs(change: Callable[[Tensor, Batch], Tensor]) -> type[TransformersModel]:
    def whole(batch: Batch, request: SignalRequest, signals: Signals) -> Signals:
        signals._outputs = {name: change(one, batch) for name, one in signals._outputs.items()}
        return signals

    return wrong_signals(whole)


def wrong_taps(change: Callable[[AttentionTap, Batch], AttentionTap]) -> type[TransformersModel]:
    def whole(batch: Batch, request: SignalRequest, signals: Signals) -> Signals:
        if request.attention_parts:
            taps = {block: change(padded(tap, batch), batch) for block, tap in signals._attention.items()}
            return Signals(batch, {}, taps, {})
        return signals

    return wrong_signals(whole)


def padded(tap: AttentionTap, batch: Batch) -> AttentionTap:
    """Return a tap (B, A, L, d_k) without padding between sequences; a pattern hides the padding."""

    def lay(states: Tensor) -> Tensor:
        if not tap.packed:
            return states
        whole = states.new_zeros((batch.input_ids.numel(), *states.shape[1:])).index_copy(0, batch.token_index, states)
        return whole.view(*batch.input_ids.shape, *states.shape[1:]).transpose(1, 2)

    query, key, value = lay(tap.query), lay(tap.key), lay(tap.value)
    return replace(tap, query=query, key=key, value=value, mask=None, pattern=AttentionPattern(), packed=False)


def wrong_info(**values: Any) -> type[TransformersModel]:
    class Wrong(TransformersModel):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self.info = replace(self.info, **values)

    return Wrong


def check(model: type[TransformersModel], folder: Path) -> None:
    check_model(model, teacher={"path": str(folder)}, student=STUDENT)


def test_signals_as_they_are_pass(teacher_folder: Path) -> None:
    check(wrong_signals(lambda batch, request, signals: signals), teacher_folder)
    check(wrong_taps(lambda tap, batch: tap), teacher_folder)


passes = [0]


def counted(logits: Tensor, batch: Batch, place: str) -> Tensor:
    """Add something that grows with every forward pass."""
    passes[0] += place == "all"
    return logits + passes[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda logits, batch, place: torch.randn_like(logits, requires_grad=True),
            "a second forward pass changes the teacher's predictions at all positions by up to",
        ),
        (counted, "a second forward pass changes the teacher's predictions at all positions by up to"),
        (
            lambda logits, batch, place: logits * 0 + 1,
            "other tokens do not change the teacher's predictions at all positions",
        ),
        (
            lambda logits, batch, place: logits * batch.input_ids.shape[1],
            "further padding changes the teacher's predictions at all positions by up to",
        ),
        (
            lambda logits, batch, place: logits * batch.num_sequences,
            "splitting the batch changes the teacher's predictions at all positions by up to",
        ),
        (
            lambda logits, batch, place: logits[:, 1:],
            r"at all positions is \(14, \d+\), expected \(14, \d+\): tokens, outputs of the head",
        ),
        (
            lambda logits, batch, place: logits[:1] if place == "masked" else logits,
            r"predictions at masked positions is \(1, \d+\), expected \(3, \d+\): masked positions",
        ),
        (
            lambda logits, batch, place: logits * 2 if place == "masked" else logits,
            "predictions at masked positions differ from those at all positions",
        ),
        (
            lambda logits, batch, place: logits / 0,
            "values of the teacher's predictions at all positions are not finite",
        ),
    ],
)
def test_wrong_predictions_are_named(teacher_folder: Path, change: Any, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check(wrong_logits(change), teacher_folder)


def test_predictions_that_are_not_returned_are_named(teacher_folder: Path) -> None:
    model = wrong_signals(lambda batch, request, signals: Signals(batch, signals._hidden, {}, {})
                          if request.prediction_positions else signals)  # fmt: skip
    with pytest.raises(AssertionError, match="the teacher does not return the requested predictions at all positions"):
        check(model, teacher_folder)


def test_predictions_without_a_gradient_are_named(teacher_folder: Path) -> None:
    with pytest.raises(AssertionError, match="no gradient reaches the student from its predictions at all positions"):
        check(wrong_logits(lambda logits, batch, place: logits.detach()), teacher_folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda tap, batch: replace(tap, query=torch.randn_like(tap.query)),
            "a second forward pass changes the teacher's query of block 0 by up to",
        ),
        (
            lambda tap, batch: replace(tap, value=tap.value * 0 + 1),
            "other tokens do not change the teacher's value of block 0",
        ),
        (
            lambda tap, batch: replace(tap, key=tap.key * batch.input_ids.shape[1]),
            "further padding changes the teacher's key of block 0 by up to",
        ),
        (
            lambda tap, batch: replace(tap, key=tap.key * batch.num_sequences),
            "splitting the batch changes the teacher's key of block 0 by up to",
        ),
        (
            lambda tap, batch: replace(tap, scale=tap.scale * batch.input_ids.shape[1]),
            "further padding changes the teacher's attention map of block 0 by up to",
        ),
        (
            lambda tap, batch: replace(tap, pattern=None),
            "the teacher's mask of block 0 lets tokens attend to padding",
        ),
        (
            lambda tap, batch: replace(tap, query=tap.query.repeat(1, 2, 1, 1)),
            r"query of block 0 is \(14, 8, \d+\), expected \(14, 4, \d+\): tokens, `info.num_heads`",
        ),
    ],
)
def test_wrong_attention_signals_are_named(teacher_folder: Path, change: Any, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check(wrong_taps(change), teacher_folder)


def test_attention_that_info_has_and_the_model_does_not_is_named(teacher_folder: Path) -> None:
    class Refusing(TransformersModel):
        def load_teacher(self, request: SignalRequest) -> Any:
            if request.attention_parts:
                raise InputError("there are none")
            return super().load_teacher(request)

    words = r"the model refuses query, key and value \(`info.attention` of the teacher is True\): InputError: there are"
    with pytest.raises(AssertionError, match=words):
        check(Refusing, teacher_folder)

    missing = wrong_signals(lambda batch, request, signals: Signals(batch, signals._hidden, {}, {})
                            if request.attention_parts else signals)  # fmt: skip
    with pytest.raises(AssertionError, match="the teacher does not return the requested query of block 0"):
        check(missing, teacher_folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda outputs, batch: torch.randn_like(outputs, requires_grad=True),
            "a second forward pass changes the student's outputs of `sequence_classes` by up to",
        ),
        (
            lambda outputs, batch: outputs[:, :2],
            r"outputs of `sequence_classes` is \(3, 2\), expected \(3, 3\): sequences, outputs of the head",
        ),
        (
            lambda outputs, batch: outputs if len(outputs) == batch.num_sequences else outputs[:1],
            r"outputs of `token_classes` is \(1, 3\), expected \(14, 3\): tokens, outputs of the head",
        ),
        (
            lambda outputs, batch: outputs if len(outputs) == batch.num_sequences else outputs * 0,
            "other tokens do not change the student's outputs of `token_classes`",
        ),
        (
            lambda outputs, batch: outputs if len(outputs) == batch.num_sequences else outputs * 2,
            "exporting changes the outputs of 'classes'",
        ),
    ],
)
def test_wrong_heads_for_classes_are_named(teacher_folder: Path, change: Any, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check(wrong_outputs(change), teacher_folder)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_layers": 5}, "the teacher rejects the 5 blocks of `info`"),
        ({"num_layers": 1}, "`AutoModel` runs 2 blocks of the export, but `info.num_layers` is 1"),
        ({"hidden_size": 7}, r"the teacher's states of 'embeddings' have the shape \(14, \d+\), expected \(14, 7\)"),
        ({"num_heads": 2}, r"query of block 0 is \(14, 4, \d+\), expected \(14, 2, \d+\)"),
        ({"head_size": 3}, r"query of block 0 is \(14, 4, \d+\), expected \(14, 4, 3\)"),
        ({"vocab_size": 20}, "`info.vocab_size` of the teacher is 20, but there is an embedding of token 20"),
        ({"vocab_size": 9999}, r"`info.vocab_size` of the teacher is 9999, but token 9998 fails: IndexError"),
        ({"max_length": 1500}, "`info.max_length` of the teacher is 1500, but a sequence of 1500 tokens fails"),
        ({"heads": (Head.token_classes(("a",)),)}, "the model refuses the head `token_classes`, which `info.heads` of"),
    ],
)
def test_a_description_of_another_model_is_named(teacher_folder: Path, values: dict[str, Any], words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check(wrong_info(**values), teacher_folder)
