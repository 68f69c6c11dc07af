"""Compiled parts of every architecture: no graph breaks, none is compiled again for another batch, nothing changes."""

from __future__ import annotations

from functools import partialmethod

import pytest
import torch
from torch import nn

from kdcore.errors import InputError
from kdcore.models.architectures import ARCHITECTURES
from kdcore.models.base import Encoder
from kdcore.models.transformers import TransformersModel
from kdcore.signals import Signals

REQUEST = Signals.hidden(["embeddings", 0, 3]) | Signals.attention(["query"], [3]) | Signals.predictions("masked")


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_compiled_parts_answer_alike_in_one_graph_each(model_type, saved_model, token_batch, monkeypatch):
    # Breaks and repeated compilations are found before any code is generated, which would take minutes here.
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))
    torch._dynamo.reset()
    model = TransformersModel(TransformersModel.Config(path=str(saved_model(model_type))), "teacher", None)
    encoder = model.load_teacher(REQUEST).eval()
    batches = [token_batch(lengths) for lengths in ((9, 4, 12), (7, 7), (3, 20, 5, 6), (11, 11, 11))]
    plain = [encoder(batch, REQUEST) for batch in batches]
    encoder.compile_parts()
    for block in encoder.architecture.block_list(encoder._base).children():
        compiled = [part for part in block.modules() if part._compiled_call_impl is not None]
        assert compiled
        assert not any(hasattr(inner, "is_causal") for part in compiled for inner in part.modules())
    for number, (batch, before) in enumerate(zip(batches, plain, strict=True)):
        with torch._dynamo.config.patch(error_on_recompile=number >= 2):  # a row of tokens, and no padding
            after = encoder(batch, REQUEST)
        for block in ("embeddings", 0, 3):
            torch.testing.assert_close(after.tokens(block), before.tokens(block), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(after.logits("masked"), before.logits("masked"), rtol=1e-5, atol=1e-5)


def test_an_encoder_that_says_nothing_of_compiling_is_refused():
    class Plain(Encoder):
        def forward(self, batch, request):
            raise NotImplementedError

        def export(self, folder, weights):
            raise NotImplementedError

    with pytest.raises(InputError, match="this model does not support compilation"):
        Plain().compile_parts()
