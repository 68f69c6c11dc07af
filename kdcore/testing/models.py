"""Properties of models."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcore.models.base import Encoder, Model
from kdcore.registry import models
from kdcore.signals import Batch, ClassHead, Signals
from kdcore.testing.cases import make_batch

_LENGTHS = (6, 3, 5)


def check_model(name: str | type[Model], *, teacher: Mapping[str, Any], student: Mapping[str, Any]) -> None:
    """Hold a model to what every model must do, by its hidden states.

    1. Teacher and student answer what they are asked: hidden states after every block and of the embeddings, of the
       width and the depth that `info` tells; a teacher asked for a lower block gives the same as one asked for all.
    2. A sequence's answers do not depend on padding or on the sequences beside it, and in eval mode not on chance. An
       encoder whose `packs` is true answers the same when that is false and padding is computed, too.
    3. Weights are in float32. Gradients reach the student's weights, and its weights are not the teacher's own.
    4. An export with doubled weights is loaded by `AutoModel` with none of them missing, and answers like the student
       with doubled weights.
    5. If it takes classes (`set_classes`), a student with three of them gives as many outputs a sequence, of which 2.
       and 3. hold; its export is loaded by `AutoModelForSequenceClassification` and by `load_export`, if it has that,
       with the names of the classes, and answers the same.

    Args:
        name: registered name, or class.
        teacher: keys of the section `teacher`, without `name`.
        student: keys of the section `student`, without `name`.

    Raises:
        AssertionError: says which of these does not hold, and how.
    """
    cls: Any = models.get(name) if isinstance(name, str) else name
    described: Model = cls(cls.Config.model_validate(dict(teacher)), "teacher", None)
    own: Model = cls(cls.Config.model_validate(dict(student)), "student", described)
    large = _load_teacher(described)
    torch.manual_seed(0)
    small = own.build_student(Signals.hidden(_places(own)))
    for whose, model, encoder in (("teacher", described, large), ("student", own, small)):
        encoder.eval()
        for key, parameter in encoder.named_parameters():
            assert parameter.dtype == torch.float32, f"the {whose}'s `{key}` is {parameter.dtype}, not float32"
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
    """Sequences of the given lengths; the i-th always has the same tokens."""
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


def _check_answers(whose: str, model: Model, encoder: Encoder) -> None:
    assert encoder.info == model.info, f"the {whose}'s encoder tells {encoder.info}, the model {model.info}"
    batch = _batch(model)
    for place, states in _tokens(model, encoder, batch).items():
        expected = (batch.num_tokens, model.info.hidden_size)
        assert tuple(states.shape) == expected, f"the {whose}'s states of {place!r} are {tuple(states.shape)}, by its "\
            f"`info` they are {expected}"  # fmt: skip
        assert torch.isfinite(states).all(), f"the {whose}'s states of {place!r} are not finite"


def _check_independence(whose: str, model: Model, encoder: Encoder) -> None:
    together = _tokens(model, encoder, _batch(model))
    for what, batch in (("chance", _batch(model)), ("further padding", _batch(model, extra=4))):
        _assert_close(together, _tokens(model, encoder, batch), f"{what} changes the {whose}'s states")
    if encoder.packs:
        encoder.packs = False
        _assert_close(
            together, _tokens(model, encoder, _batch(model)), f"leaving padding out changes the {whose}'s states"
        )
        encoder.packs = True
    alone = _tokens(model, encoder, _batch(model, _LENGTHS[1:2], first=1))
    rows = slice(_LENGTHS[0], _LENGTHS[0] + _LENGTHS[1])
    own = {place: states[rows] for place, states in together.items()}
    _assert_close(own, alone, f"sequences beside it change the {whose}'s states")


def _check_depth(model: Model, whole: Encoder) -> None:
    batch = _batch(model)
    lower = [*_places(model)[:2]]
    short = model.load_teacher(Signals.hidden(lower)).eval()
    with torch.no_grad():
        signals = short(batch, Signals.hidden(lower))
    expected = _tokens(model, whole, batch)
    found = {place: signals.tokens(place) for place in lower}
    _assert_close({place: expected[place] for place in lower}, found, "a teacher asked for less gives other states")


def _check_gradients(model: Model, student: Encoder, teacher: Encoder) -> None:
    last = model.info.num_layers - 1
    signals = student(_batch(model), Signals.hidden([last]))
    signals.tokens(last).square().sum().backward()
    reached = [name for name, one in student.named_parameters() if one.grad is not None and one.grad.abs().max() > 0]
    assert reached, "no gradient reaches the student's weights"
    student.zero_grad(set_to_none=True)
    shared = {one.data_ptr() for one in teacher.parameters()} & {one.data_ptr() for one in student.parameters()}
    assert not shared, "student and teacher share weights, so that training the one would change the other"


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
    assert not missing, f"`AutoModel` misses {len(missing)} weights in the export, the first is `{missing[0]}`"
    mask = None if batch.attention_mask is None else batch.attention_mask.long()
    with torch.no_grad():
        states = loaded.eval()(input_ids=batch.input_ids, attention_mask=mask).last_hidden_state
    last = model.info.num_layers - 1
    found = {last: states.reshape(-1, states.shape[-1]).index_select(0, batch.token_index)}
    expected = {last: _tokens(model, doubled, batch)[last]}
    _assert_close(expected, found, "the export answers with other states than the weights it was given")


def _check_classes(model: Model) -> None:
    from transformers import AutoModelForSequenceClassification

    head = ClassHead(("one", "two", "three"))
    model.set_classes(head)
    if model.info.num_classes is None:
        return
    assert (model.info.num_classes, model.info.class_labels) == (3, head.labels), (
        "`info` tells other classes than asked"
    )
    torch.manual_seed(0)
    student = model.build_student(Signals.classes()).eval()
    assert student.info == model.info, f"the student's encoder tells {student.info}, the model {model.info}"
    batch = _batch(model)

    def logits(encoder: Encoder, asked: Batch) -> dict[Any, Tensor]:
        found: Tensor = encoder(asked, Signals.classes()).class_logits
        return {"classes": found}

    expected = {"classes": logits(student, batch)["classes"].detach()}
    assert expected["classes"].shape == (batch.num_sequences, 3), f"outputs are {tuple(expected['classes'].shape)}"
    _assert_close(expected, logits(student, _batch(model, extra=4)), "further padding changes the outputs")
    torch.autograd.backward(logits(student, batch)["classes"].square().sum())
    new = [name for name, one in student.named_parameters() if one.shape[0] == 3 and one.grad is not None]
    assert new, "no gradient reaches the weights of a head with three outputs"
    weights = {name: tensor.detach().float().cpu().clone() for name, tensor in student.state_dict().items()}
    with TemporaryDirectory() as folder:
        student.export(Path(folder), weights)
        loaded, report = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
        again = model.load_export(Path(folder), Signals.classes())
    missing = sorted(report["missing_keys"])
    assert not missing, f"`AutoModelForSequenceClassification` misses `{missing[0]}` in the export"
    assert loaded.config.id2label == dict(enumerate(head.labels)), f"the export's classes are {loaded.config.id2label}"
    mask = None if batch.attention_mask is None else batch.attention_mask.long()
    with torch.no_grad():
        found = {"classes": loaded.eval()(input_ids=batch.input_ids, attention_mask=mask).logits}
        _assert_close(expected, found, "the export answers with other outputs")
        if again is not None:
            _assert_close(expected, logits(again.eval(), batch), "what `load_export` reads answers with other outputs")


def _assert_close(one: Mapping[Any, Tensor], other: Mapping[Any, Tensor], what: str) -> None:
    for place, states in one.items():
        distance = (states - other[place]).abs().max().item()
        scale = states.abs().max().item()
        assert distance <= 1e-4 * scale + 1e-6, f"{what} of {place!r} by up to {distance:.3g} (they reach {scale:.3g})"
