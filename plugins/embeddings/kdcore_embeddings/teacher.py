"""The model `sentence_transformer`: an encoder followed by the modules of sentence-transformers."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdcore import Head, Model, Role, SignalRequest, Signals, TransformersEncoder, TransformersModel, sha256_of_file
from kdcore_embeddings.head import EMBEDDING
from kdcore_embeddings.sentence_folder import SentenceFolder, read_sentence_folder


class SentenceTransformerModel(TransformersModel):
    """A teacher from a sentence-transformers folder of versions 2 to 6. Its embeddings are the head `embedding`.

    The folder may have the modules Transformer, Pooling (in all modes), Dense, LayerNorm and Normalize; other modules
    are rejected. A student of this model is the same as a student of the model `transformers`.
    """

    folder: SentenceFolder | None = None
    """Description in a teacher's folder."""

    def __init__(self, config: Any, role: Role, teacher: Model | None) -> None:
        if role == "teacher" and config.path is not None:
            self.folder = read_sentence_folder(config.path)
            config = config.model_copy(update={"path": str(self.folder.encoder)})
        super().__init__(config, role, teacher)
        if self.folder is not None:
            # Read the weights, so that damage is detected before data is read.
            outputs = self.folder.modules(self.info.hidden_size).dimension
            head = Head(EMBEDDING, "sequence", outputs, problem_type="regression", pooling="own")
            self.info = replace(self.info, heads=(*self.info.heads, head))

    def find_heads(self, heads: Sequence[Head]) -> None:
        """Add the task's other heads that are in the folder."""
        super().find_heads([head for head in heads if self.folder is None or head.name != EMBEDDING])

    def file_hashes(self) -> dict[str, str]:
        """Return the hashes of the files of the encoder, the pooling and the layers after it."""
        files = {} if self.folder is None else self.folder.module_files()
        return super().file_hashes() | {name: sha256_of_file(path) for name, path in files.items()}

    def save_description(self, folder: Path) -> None:
        """Write the encoder's configuration and tokenizer, and the modules after it with their weights."""
        if self.folder is None:
            super().save_description(folder)
            return
        encoder = self.folder.encoder
        settings = [self.folder.path / "config_sentence_transformers.json", *encoder.glob("sentence_*_config.json")]
        for path in (*self.folder.module_files().values(), *(path for path in settings if path.is_file())):
            target = folder / path.relative_to(self.folder.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        super().save_description(folder / encoder.relative_to(self.folder.path))

    def load_teacher(self, request: SignalRequest) -> TransformersEncoder:
        """Load the encoder; if embeddings are requested, also load the pooling and the layers after it."""
        if self.folder is None or EMBEDDING not in request.heads:
            return super().load_teacher(request)
        last = Signals.hidden([self.info.num_layers - 1])
        encoder = super().load_teacher(replace(request, heads=request.heads - {EMBEDDING}) | last)
        encoder.heads[EMBEDDING] = self.folder.modules(self.info.hidden_size)
        return encoder
