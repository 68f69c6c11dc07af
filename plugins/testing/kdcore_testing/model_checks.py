"""Check the requirements on models."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcore import Batch, Encoder, Head, Model, Signals, find_component
from kdcore_testing.signal_cases import make_batch

_LENGTHS = (6, 3, 5)


def check_model(name: str | type[Model], *, teacher: Mapping[str, Any], student: Mapping[str, Any]) -> None:
    """Check the requirements on every model, using its hidden states.

    1. Teacher and student return the requested signals: hidden states after every block and of the embeddings, which
       differ from block to block, with the width and depth given by `info`; a teacher loaded for a lower block gives
       the same states as the whole teacher.
    2. The signals of a sequence do not depend on padding or on other sequences, and are deterministic in eval mode. An
       encoder with `packs` gives the same signals when it is set to False and padding is computed.
    3. Weights are in float32. Gradients reach the student's weights, which are not shared with the teacher.
    4. `AutoModel` loads an export with doubled weights without missing weights, and its outputs equal those of the
       student with doubled weights.
    5. If it supports classes (`set_heads`), a student with three classes has three outputs per sequence, for which 2.
       and 3. hold; `AutoModelForSequenceClassification` and, if implemented, `load_export` load its export with the
       names of the classes and the same outputs.

    Args:
        name: registered name, or class.
        teacher: keys of the section `teacher`, without `name`.
        student: keys of the section `student`, without `name`.

    Raises:
        AssertionError: with the violated requirement.
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
        _check_blocks(whose, model, encoder)
        _check_answers(whose, model, encoder)
        _check_independence(whose, model, encoder)
    _check_depth(described, large)
    _check_gradients(own, small, large)
    _check_export(own, small)
    _check_classes(cls(cls.Config.model_validate(dict(student)), "student", described))


def _places(model: Model) -> list[Any]:
    return ["embeddings", *range(model.info.num_layers)]


def _load_teacher(model: Model) -> Encoder:
    return model.load_teacher(Signals.hidden(_places(model)))


def _batch(model: Model, lengths: tuple[int, ...] = _LENGTHS, extra: int = 0, first: int = 0) -> Batch:
    """Create sequences of the given lengths; the tokens of the i-th do not depend on the others."""
    longest = max(lengths) + extra
    real = np.arange(longest) < np.asarray(lengths)[:, None]
    batch = make_batch(real, np.zeros_like(real), np.zeros(real.shape, dtype=np.int64))
    tokens = np.full(real.shape, model.info.vocab_size // 2, dtype=np.int64)
    for row, length in enumerate(lengths):
        generator = np.random.default_rng(first + row)
        tokens[row, :length] = generator.integers(model.info.vocab_size // 2, model.info.vocab_size, length)
    batch.input_ids.copy_(torch.from_numpy(tokens))
    return batch


@torch.no_grad()
def _tokens(model: Model, encoder: Encoder, batch: Batch) -> dict[Any, Tensor]:
    signals = encoder(batch, Signals.hidden(_places(model)))
    return {place: signals.tokens(place) for place in _places(model)}


@torch.no_grad()
def _check_blocks(whose: str, model: Model, encoder: Encoder) -> None:
    """Count the blocks after which the states are other ones than before."""
    signals = encoder(_batch(model), Signals.hidden(_places(model)))
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
    batch = _batch(model)
    for place, states in _tokens(model, encoder, batch).items():
        expected = (batch.num_tokens, model.info.hidden_size)
        assert tuple(states.shape) == expected, f"the {whose}'s states of {place!r} have the shape "\
            f"{tuple(states.shape)}, expected {expected} from `info`"  # fmt: skip
        assert torch.isfinite(states).all(), f"the {whose}'s states of {place!r} are not finite"


def _check_independence(whose: str, model: Model, encoder: Encoder) -> None:
    together = _tokens(model, encoder, _batch(model))
    for what, batch in (("a second forward pass", _batch(model)), ("further padding", _batch(model, extra=4))):
        _assert_close(together, _tokens(model, encoder, batch), f"{what} changes the {whose}'s states")
    if encoder.packs:
        encoder.packs = False
        _assert_close(together, _tokens(model, encoder, _batch(model)), f"packing changes the {whose}'s states")
        encoder.packs = True
    alone = _tokens(model, encoder, _batch(model, _LENGTHS[1:2], first=1))
    rows = slice(_LENGTHS[0], _LENGTHS[0] + _LENGTHS[1])
    own = {place: states[rows] for place, states in together.items()}
    _assert_close(own, alone, f"other sequences of the batch change the {whose}'s states")


def _check_depth(model: Model, whole: Encoder) -> None:
    batch = _batch(model)
    lower = [*_places(model)[:2]]
    short = model.load_teacher(Signals.hidden(lower)).eval()
    with torch.no_grad():
        signals = short(batch, Signals.hidden(lower))
    expected = _tokens(model, whole, batch)
    found = {place: signals.tokens(place) for place in lower}
    message = "loading fewer blocks of the teacher changes its states"
    _assert_close({place: expected[place] for place in lower}, found, message)


def _check_gradients(model: Model, student: Encoder, teacher: Encoder) -> None:
    last = model.info.num_layers - 1
    signals = student(_batch(model), Signals.hidden([last]))
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
    batch = _batch(model)
    with TemporaryDirectory() as folder:
        student.export(Path(folder), weights)
        loaded, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    missing = sorted(report["missing_keys"])
    assert not missing, f"{len(missing)} weights are missing in the export for `AutoModel`, the first is `{missing[0]}`"
    mask = None if batch.attention_mask is None else batch.attention_mask.long()
    with torch.no_grad():
        states = loaded.eval()(input_ids=batch.input_ids, attention_mask=mask).last_hidden_state
    last = model.info.num_layers - 1
    found = {last: states.reshape(-1, states.shape[-1]).index_select(0, batch.token_index)}
    expected = {last: _tokens(model, doubled, batch)[last]}
    _assert_close(expected, found, "exporting the weights changes the states")


def _check_classes(model: Model) -> None:
    from transformers import AutoModelForSequenceClassification

    head = Head.sequence_classes(("one", "two", "three"))
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
    batch = _batch(model)

    def logits(encoder: Encoder, asked: Batch) -> dict[Any, Tensor]:
        found: Tensor = encoder(asked, request).outputs(head.name)
        return {"classes": found}

    expected = {"classes": logits(student, batch)["classes"].detach()}
    shape = tuple(expected["classes"].shape)
    assert shape == (batch.num_sequences, 3), f"the outputs have the shape {shape}, expected {(batch.num_sequences, 3)}"
    _assert_close(expected, logits(student, _batch(model, extra=4)), "further padding changes the outputs")
    torch.autograd.backward(logits(student, batch)["classes"].square().sum())
    new = [name for name, one in student.named_parameters() if one.shape[0] == 3 and one.grad is not None]
    assert new, "no gradient reaches the weights of the classification head"
    weights = {name: tensor.detach().float().cpu().clone() for name, tensor in student.state_dict().items()}
    with TemporaryDirectory() as folder:
        student.export(Path(folder), weights)
        loaded, report = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
        again = model.load_export(Path(folder), request)
    missing = sorted(report["missing_keys"])
    assert not missing, f"`{missing[0]}` is missing in the export for `AutoModelForSequenceClassification`"
    assert loaded.config.id2label == dict(enumerate(head.labels)), f"the export's classes are {loaded.config.id2label}"
    mask = None if batch.attention_mask is None else batch.attention_mask.long()
    with torch.no_grad():
        found = {"classes": loaded.eval()(input_ids=batch.input_ids, attention_mask=mask).logits}
        _assert_close(expected, found, "exporting changes the outputs")
        if again is not None:
            _assert_close(expected, logits(again.eval(), batch), "`load_export` changes the outputs")


def _assert_close(one: Mapping[Any, Tensor], other: Mapping[Any, Tensor], what: str) -> None:
    for place, states in one.items():
        distance = (states - other[place]).abs().max().item()
        scale = states.abs().max().item()
        assert distance <= 1e-4 * scale + 1e-6, f"{what} of {place!r} by up to {distance:.3g} (maximum: {scale:.3g})"
