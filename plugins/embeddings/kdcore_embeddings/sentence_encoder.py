"""Compute embeddings of texts outside a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from kdcore import DataError, InputError, Signals, TransformersModel
from kdcore_embeddings.data.text_tokens import TextTokenizer
from kdcore_embeddings.head import EMBEDDING
from kdcore_embeddings.sentence_folder import is_sentence_folder
from kdcore_embeddings.sentence_modules import SentenceModules
from kdcore_embeddings.teacher import SentenceTransformerModel

_BATCH = 32


class SentenceEncoder:
    """A sentence encoder with its prompts and length limit, or a plain encoder with mean pooling.

    Args:
        source: folder of a sentence encoder or plain encoder, or hub name of a sentence encoder.
        device: device on which embeddings are computed.
        layers: whether modules after the pooling are applied.

    Attributes:
        source: folder or hub name.
        query_prompt: prompt for queries.
        document_prompt: prompt for documents.
        prompt: prompt for other texts.
        similarity: name of the similarity of two embeddings.

    Raises:
        InputError: the folder cannot be read, or its pooling excludes prompts.
    """

    def __init__(self, source: str, device: torch.device | None = None, *, layers: bool = True) -> None:
        self.source = source
        self._device = device or torch.device("cpu")
        config = {"path": source, "dtype": "fp32"}
        self.query_prompt = self.document_prompt = self.prompt = ""
        self.similarity = "cosine"
        if is_sentence_folder(source) or not Path(source).is_dir():
            model = SentenceTransformerModel(SentenceTransformerModel.Config.model_validate(config), "teacher", None)
            folder = model.folder
            assert folder is not None
            if not folder.include_prompt and any((*folder.prompts.values(), folder.default_prompt)):
                raise InputError(
                    "excludes prompt tokens from its pooling (`include_prompt: false`), which is not supported",
                    where=source,
                )
            self.query_prompt, self.prompt = folder.prompt("query"), folder.default_prompt
            self.document_prompt = folder.prompt("document", "passage", "corpus")
            self.similarity = folder.similarity
            self._encoder = model.load_teacher(Signals.head(EMBEDDING))
            if not layers:
                width = len(folder.modes) * model.info.hidden_size
                self._encoder.heads[EMBEDDING] = SentenceModules(folder.modes, width, ())
            limits = [model.info.max_length, *([] if folder.max_length is None else [folder.max_length])]
            self._tokenizer = TextTokenizer(
                str(folder.encoder), min(limits), lower_case=folder.lower_case, own_side=True
            )
        else:
            plain = TransformersModel(TransformersModel.Config.model_validate(config), "teacher", None)
            self._encoder = plain.load_teacher(Signals.hidden([plain.info.num_layers - 1]))
            self._encoder.heads[EMBEDDING] = SentenceModules(("mean",), plain.info.hidden_size, ())
            self._tokenizer = TextTokenizer(source, plain.info.max_length)
        self._encoder.eval().to(self._device)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], prompt: str = "") -> NDArray[np.float32]:
        """Return the embeddings (n, C) of texts, each preceded by the prompt; long texts are truncated.

        Raises:
            DataError: embeddings are not finite.
        """
        tokens = self._tokenizer.encode(texts, [prompt] * len(texts))
        request = Signals.head(EMBEDDING)
        order = np.argsort(tokens.lengths, kind="stable")
        found: NDArray[np.float32] | None = None
        for start in range(0, len(order), _BATCH):
            chosen = order[start : start + _BATCH]
            vectors = self._encoder(tokens.batch(chosen).to(self._device), request).outputs(EMBEDDING)
            if found is None:
                found = np.empty((len(order), vectors.shape[1]), np.float32)
            found[chosen] = vectors.float().cpu().numpy()
        if found is None:
            return np.empty((0, 0), np.float32)
        broken = int((~np.isfinite(found)).any(1).sum())
        if broken:
            raise DataError(
                f"the embeddings of {broken:,} of {len(found):,} texts are not finite (found NaN or infinity)",
                where=self.source,
                hint="the weights are damaged, or training diverged",
            )
        return found
