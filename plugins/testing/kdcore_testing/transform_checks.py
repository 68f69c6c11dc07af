"""Check the requirements on transforms of students."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from kdcore import (
    KEPT_BY_TRANSFORMS,
    Encoder,
    ModelInfo,
    ParameterSource,
    Signals,
    Transform,
    find_component,
    transform_fault,
    with_sources,
)
from kdcore_testing.signal_cases import make_batch

_LENGTH = 6


def check_transform(
    name: str | type[Transform], student: Callable[[], Encoder], config: Mapping[str, Any] | None = None
) -> None:
    """Check the requirements on every transform.

    1. `apply` returns the student that `describe` predicts; vocabulary, length and sequence head stay the same.
    2. Sources name existing parameters of matching shapes. All weights are in float32 on the CPU.
    3. Equal students and generators lead to equal weights; different weights lead to the same names and shapes.
    4. The changed student returns the hidden states of every block, with the width given in `info`.

    Args:
        name: registered name, or class.
        student: function that creates a new student in float32 on the CPU, with the same weights at every call.
        config: its keys in a recipe, without `name`; `at` may be left out.

    Raises:
        AssertionError: a requirement is violated; the message names it.
    """
    cls: Any = find_component("kdcore.transforms", name).cls if isinstance(name, str) else name
    transform: Transform = cls(cls.Config.model_validate({"at": 0.5, **(config or {})}))

    def changed(
        encoder: Encoder, elsewhere: int = 0
    ) -> tuple[Encoder, ModelInfo, dict[str, ParameterSource], dict[str, torch.Size]]:
        described, before = transform.describe(encoder.info), dict(encoder.named_parameters())
        for key in KEPT_BY_TRANSFORMS:
            found, expected = getattr(described, key), getattr(encoder.info, key)
            assert found == expected, f"`describe` changes {key} (found {found}, expected {expected})"
        shapes = {key: parameter.shape for key, parameter in before.items()}
        with torch.random.fork_rng():
            torch.manual_seed(elsewhere)  # a transform must not draw from torch's own generator
            after, stated = transform.apply(encoder, torch.Generator().manual_seed(0))
        return after, described, with_sources(after, before, stated), shapes

    after, described, sources, shapes = changed(student())
    problem = transform_fault(after, described, sources, shapes)
    assert not problem, f"the transform {problem}"
    weights = dict(after.named_parameters())
    for key, parameter in weights.items():
        assert parameter.dtype == torch.float32, f"`{key}` is {parameter.dtype}, not float32"
        assert parameter.device.type == "cpu", f"`{key}` is on {parameter.device}, not on the CPU"

    again = dict(changed(student(), elsewhere=1)[0].named_parameters())
    assert again.keys() == weights.keys(), "a second student gets other parameters"
    for key, parameter in weights.items():
        assert torch.equal(again[key], parameter), f"`{key}` differs between two equal students"

    other = student()
    with torch.no_grad():
        for number, parameter in enumerate(other.parameters()):
            parameter.normal_(generator=torch.Generator().manual_seed(number))
    found = {key: parameter.shape for key, parameter in changed(other)[0].named_parameters()}
    assert found == {key: parameter.shape for key, parameter in weights.items()}, "the structure depends on the weights"

    real = np.ones((2, _LENGTH), dtype=bool)
    batch = make_batch(real, np.zeros_like(real), np.zeros(real.shape, dtype=np.int64))
    places = ["embeddings", *range(after.info.num_layers)]
    with torch.no_grad():
        signals: Signals = after.eval()(batch, Signals.hidden(places))
    for place in places:
        shape = tuple(signals.tokens(place).shape)
        expected = (2 * _LENGTH, after.info.hidden_size)
        assert shape == expected, f"hidden states of {place} have the shape {shape}, not {expected}"
