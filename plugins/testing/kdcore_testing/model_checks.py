"""Check the requirements on models."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from kdcore import Batch, Encoder, Head, InputError, Model, Signals, find_component
from kdcore_testing.model_signal_checks import (
    LENGTHS,
    assert_close,
    check_description,
    check_head,
    check_signals,
    model_batch,
)


def check_model(name: str | type[Model], *, teacher: Mapping[str, Any], student: Mapping[str, Any]) -> None:
    """Check the requirements on every model.

    1. `info` is correct: `num_layers` different blocks run, states have `hidden_size` columns, query, key and value
       have `num_heads` heads of `head_size`, and predictions have `vocab_size` columns. The model accepts the token id
       `vocab_size - 1`, but not `vocab_size`; it accepts `max_length` tokens (at most 2048 are tried). The student's
       export runs `num_layers` blocks. A teacher that is loaded only up to a lower block returns the same states as the
       complete teacher.
    2. Signals depend on the tokens, but not on padding, on other sequences or on earlier forward passes, and are equal
       for a whole batch and for its parts. These signals are the hidden states and, if `info` has them, query, key,
       value, the attention maps computed from them, predictions and the outputs of each of `info.heads`. Masks hide
       padding. Predictions at masked positions equal those at all positions. An encoder with `packs` returns the same
       signals if `packs` is set to False, so that padding is computed.
    3. Weights are in float32. Each kind of signal has a gradient, gradients reach the student's weights, and the
       student shares no weights with the teacher.
    4. If the student's weights are doubled and exported, `AutoModel` finds all weights in the export, and its outputs
       equal those of the changed student.
    5. If it supports classes of sequences or tokens (`set_heads`), a student with three classes has three outputs per
       sequence or token, which satisfy 2. and 3.; the head's Auto class and, if implemented, `load_export` load its
       export with the names of the classes and the same outputs.

    Args:
        name: registered name, or class.
        teacher: keys of the section `teacher`, without `name`.
        student: keys of the section `student`, without `name`.

    Raises:
        AssertionError: a requirement is violated; the message names it.
    """
    cls: Any = find_component("kdcore.models", name).cls if isinstance(name, str) else name
    described: Model = cls(cls.Config.model_validate(dict(teacher)), "teacher", None)
    own: Model = cls(cls.Config.model_validate(dict(student)), "student", described)
    large = _load_teacher(described)
    torch.manual_seed(0)
    small = own.build_student(Signals.hidden(_places(own)))
    for whose, model, encoder in (("teacher", described, large), ("student", own, small)):
        encoder.eval()
        for key, parameter in encoder.named_parameters():
            assert parameter.dtype == torch.float32, f"the {whose}'s `{key}` is {parameter.dtype}, not float32"
        check_description(whose, model, encoder)
        _check_blocks(whose, model, encoder)
        _check_answers(whose, model, encoder)
        _check_independence(whose, model, encoder)
    _check_depth(described, large)
    _check_gradients(own, small, large)
    check_signals("teacher", described, described.load_teacher)
    check_signals("student", own, own.build_student)
    _check_export(own, small)
    for head in (Head.sequence_classes(("one", "two", "three")), Head.token_classes(("one", "two", "three"))):
        _check_classes(cls(cls.Config.model_validate(dict(student)), "student", described), head)


def _places(model: Model) -> list[Any]:
    return ["embeddings", *range(model.info.num_layers)]


def _load_teacher(model: Model) -> Encoder:
    try:
        return model.load_teacher(Signals.hidden(_places(model)))
    except InputError as error:
        raise AssertionError(f"the teacher rejects the {model.info.num_layers} blocks of `info`: {error}") from error


@torch.no_grad()
def _tokens(model: Model, encoder: Encoder, batch: Batch) -> dict[Any, Tensor]:
    signals = encoder(batch, Signals.hidden(_places(model)))
    return {place: signals.tokens(place) for place in _places(model)}


@torch.no_grad()
def _check_blocks(whose: str, model: Model, encoder: Encoder) -> None:
    """Count the blocks that change the states."""
    signals = encoder(model_batch(model), Signals.hidden(_places(model)))
    ran, before = 0, signals.tokens("embeddings")
    for block in range(model.info.num_layers):
        try:
            states = signals.tokens(block)
        except KeyError:
            continue
        ran += not torch.equal(states, before)
        before = states
    assert ran == model.info.num_layers, (
        f"the {whose}'s forward pass ran {ran} of the {model.info.num_layers} listed blocks"
    )


def _check_answers(whose: str, model: Model, encoder: Encoder) -> None:
    assert encoder.info == model.info, f"`info` of the {whose}'s encoder is {encoder.info}, of the model {model.info}"
    batch = model_batch(model)
    for place, states in _tokens(model, encoder, batch).items():
        expected = (batch.num_tokens, model.info.hidden_size)
        assert tuple(states.shape) == expected, f"the {whose}'s states of {place!r} have the shape "\
            f"{tuple(states.shape)}, expected {expected} from `info`"  # fmt: skip
        assert torch.isfinite(states).all(), f"the {whose}'s states of {place!r} are not finite"


def _check_independence(whose: str, model: Model, encoder: Encoder) -> None:
    together = _tokens(model, encoder, model_batch(model))
    for what, batch in (
        ("a second forward pass", model_batch(model)),
        ("further padding", model_batch(model, extra=4)),
    ):
        assert_close(together, _tokens(model, encoder, batch), f"{what} changes the {whose}'s states")
    if encoder.packs:
        encoder.packs = False
        assert_close(together, _tokens(model, encoder, model_batch(model)), f"packing changes the {whose}'s states")
        encoder.packs = True
    alone = _tokens(model, encoder, model_batch(model, LENGTHS[1:2], first=1))
    rows = slice(LENGTHS[0], LENGTHS[0] + LENGTHS[1])
    own = {place: states[rows] for place, states in together.items()}
    assert_close(own, alone, f"other sequences of the batch change the {whose}'s states")


def _check_depth(model: Model, whole: Encoder) -> None:
    batch = model_batch(model)
    lower = [*_places(model)[:2]]
    short = model.load_teacher(Signals.hidden(lower)).eval()
    with torch.no_grad():
        signals = short(batch, Signals.hidden(lower))
    expected = _tokens(model, whole, batch)
    found = {place: signals.tokens(place) for place in lower}
    message = "loading fewer blocks of the teacher changes its states"
    assert_close({place: expected[place] for place in lower}, found, message)


def _check_gradients(model: Model, student: Encoder, teacher: Encoder) -> None:
    last = model.info.num_layers - 1
    signals = student(model_batch(model), Signals.hidden([last]))
    signals.tokens(last).square().sum().backward()
    reached = [name for name, one in student.named_parameters() if one.grad is not None and one.grad.abs().max() > 0]
    assert reached, "no gradient reaches the student's weights"
    student.zero_grad(set_to_none=True)
    shared = {one.data_ptr() for one in teacher.parameters()} & {one.data_ptr() for one in student.parameters()}
    assert not shared, "student and teacher share weights, so training the student would change the teacher"


def _check_export(model: Model, student: Encoder) -> None:
    from transformers import AutoModel

    doubled = copy.deepcopy(student)
    with torch.no_grad():
        for parameter in doubled.parameters():
            parameter.mul_(2)
    weights = {name: tensor.detach().float().cpu().clone() for name, tensor in doubled.state_dict().items()}
    batch = model_batch(model)
    with TemporaryDirectory() as folder:
        student.export(Path(folder), weights)
        loaded, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    missing = sorted(report["missing_keys"])
    assert not missing, f"{len(missing)} weights are missing in the export for `AutoModel`, the first is `{missing[0]}`"
    mask = None if batch.attention_mask is None else batch.attention_mask.long()
    with torch.no_grad():
        outputs = loaded.eval()(input_ids=batch.input_ids, attention_mask=mask, output_hidden_states=True)
    states, every = outputs.last_hidden_state, outputs.hidden_states
    assert every is None or len(every) == model.info.num_layers + 1, (
        f"`AutoModel` runs {len(every) - 1} blocks of the export, but `info.num_layers` is {model.info.num_layers}"
    )
    last = model.info.num_layers - 1
    found = {last: states.reshape(-1, states.shape[-1]).index_select(0, batch.token_index)}
    expected = {last: _tokens(model, doubled, batch)[last]}
    assert_close(expected, found, "exporting the weights changes the states")


def _check_classes(model: Model, head: Head) -> None:
    import transformers

    model.set_heads((head,))
    found_head = model.info.head(head.name)
    if found_head is None:
        return
    assert (found_head.num_outputs, found_head.labels) == (3, head.labels), (
        "`info` does not have the head passed to `set_heads`"
    )
    request = Signals.head(head.name)
    torch.manual_seed(0)
    student = model.build_student(request).eval()
    assert student.info == model.info, f"`info` of the student's encoder is {student.info}, of the model {model.info}"
    check_head("student", model, student, head)
    batch = model_batch(model)

    def logits(encoder: Encoder, asked: Batch) -> dict[Any, Tensor]:
        found: Tensor = encoder(asked, request).outputs(head.name)
        return {"classes": found}

    expected = {"classes": logits(student, batch)["classes"].detach()}
    torch.autograd.backward(logits(student, batch)["classes"].square().sum())
    new = [name for name, one in student.named_parameters() if one.shape[0] == 3 and one.grad is not None]
    assert new, f"no gradient reaches the weights of the head `{head.name}`"
    weights = {name: tensor.detach().float().cpu().clone() for name, tensor in student.state_dict().items()}
    with TemporaryDirectory() as folder:
        student.export(Path(folder), weights)
        auto = getattr(transformers, head.auto_class)
        loaded, report = auto.from_pretrained(folder, output_loading_info=True)
        again = model.load_export(Path(folder), request)
    missing = sorted(report["missing_keys"])
    assert not missing, f"`{missing[0]}` is missing in the export for `{head.auto_class}`"
    assert loaded.config.id2label == dict(enumerate(head.labels)), f"the export's classes are {loaded.config.id2label}"
    mask = None if batch.attention_mask is None else batch.attention_mask.long()
    with torch.no_grad():
        found = loaded.eval()(input_ids=batch.input_ids, attention_mask=mask).logits
        if head.level == "token":
            found = found.flatten(0, 1).index_select(0, batch.token_index)
        assert_close(expected, {"classes": found}, "exporting changes the outputs")
        if again is not None:
            assert_close(expected, logits(again.eval(), batch), "`load_export` changes the outputs")
