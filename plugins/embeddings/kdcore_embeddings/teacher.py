"""The model `sentence_transformer`: an encoder with the modules of sentence-transformers behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kdcore import Head, Model, Role, SignalRequest, Signals, TransformersEncoder, TransformersModel
from kdcore_embeddings.head import EMBEDDING
from kdcore_embeddings.sentence_folder import SentenceFolder, read_sentence_folder


class SentenceTransformerModel(TransformersModel):
    """A teacher from a folder of sentence-transformers, versions 2 to 6. Its embeddings are the head `embedding`.

    The folder may have the modules Transformer, Pooling (in all modes), Dense, LayerNorm and Normalize; others are
    refused.
    As a student it is the model `transformers`.
    """

    folder: SentenceFolder | None = None
    """What a teacher's folder states."""

    def __init__(self, config: Any, role: Role, teacher: Model | None) -> None:
        if role == "teacher" and config.path is not None:
            self.folder = read_sentence_folder(config.path)
            config = config.model_copy(update={"path": str(self.folder.encoder)})
        super().__init__(config, role, teacher)
        if self.folder is not None:
            # Reads weights, so that damaged ones are found before data is read.
            outputs = self.folder.modules(self.info.hidden_size).dimension
            head = Head(EMBEDDING, "sequence", outputs, problem_type="regression", pooling="own")
            self.info = replace(self.info, heads=(*self.info.heads, head))

    def find_heads(self, heads: Sequence[Head]) -> None:
        """Add the task's other heads that the folder holds."""
        super().find_heads([head for head in heads if self.folder is None or head.name != EMBEDDING])

    def load_teacher(self, request: SignalRequest) -> TransformersEncoder:
        """Load the encoder, and pooling and the layers behind it if embeddings are requested."""
        if self.folder is None or EMBEDDING not in request.heads:
            return super().load_teacher(request)
        last = Signals.hidden([self.info.num_layers - 1])
        encoder = super().load_teacher(replace(request, heads=request.heads - {EMBEDDING}) | last)
        encoder.heads[EMBEDDING] = self.folder.modules(self.info.hidden_size)
        return encoder
